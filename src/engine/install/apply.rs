//! Several files changed together: everything is checked and written aside before the first file changes, each change
//! is one rename, and a failure half-way takes back what was done.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{AccessFlags, access};
use tempfile::NamedTempFile;

use super::{Edit, Host, STATE, rights};

/// Whether this process may write to a file or directory: not on a read-only file system, for example.
pub(super) fn may_write(place: &Path) -> nix::Result<()> {
    access(place, AccessFlags::W_OK)
}

/// A change that needs nothing but its rename.
struct Staged<'a> {
    edit: &'a Edit,
    /// Where the file really is, links followed.
    place: PathBuf,
    draft: Option<NamedTempFile>,
}

/// Makes all the changes, or none.
pub(super) fn apply(host: &Host, edits: &[Edit]) -> Result<()> {
    for edit in edits {
        check(host, edit)?;
    }
    let mut made = Vec::new();
    let result = stage_all(host, edits, &mut made).and_then(|staged| commit(host, staged));
    if result.is_err() {
        for directory in made.iter().rev() {
            // Whoever put something in meanwhile keeps it.
            let _ = fs::remove_dir(directory);
        }
    }
    result
}

fn check(host: &Host, edit: &Edit) -> Result<()> {
    unchanged(host, edit)?;
    let place = place(host, &edit.path)?;
    let existing = place.ancestors().skip(1).find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if !existing.is_dir() {
        bail!("{} cannot be written: {} is not a directory; move it away", edit.path.display(), existing.display());
    }
    may_write(existing).with_context(|| {
        format!("{} cannot be written: no writing in {}; nothing was changed", edit.path.display(), existing.display())
    })
}

/// Whether the file still holds what the change was planned from.
fn unchanged(host: &Host, edit: &Edit) -> Result<()> {
    if host.read(&edit.path)? != edit.before {
        bail!("{} was changed by somebody else just now; run the command again", edit.path.display());
    }
    Ok(())
}

/// The file itself: behind a link, the file that it leads to is changed, and the link stays.
fn place(host: &Host, path: &Path) -> Result<PathBuf> {
    let place = host.at(path);
    if !place.is_symlink() {
        return Ok(place);
    }
    fs::canonicalize(&place).with_context(|| format!("{} is a link that leads nowhere", path.display()))
}

fn stage_all<'a>(host: &Host, edits: &'a [Edit], made: &mut Vec<PathBuf>) -> Result<Vec<Staged<'a>>> {
    edits
        .iter()
        .map(|edit| {
            stage(host, edit, made)
                .with_context(|| format!("{} cannot be written; nothing was changed", edit.path.display()))
        })
        .collect()
}

fn stage<'a>(host: &Host, edit: &'a Edit, made: &mut Vec<PathBuf>) -> Result<Staged<'a>> {
    let place = place(host, &edit.path)?;
    let draft = match &edit.after {
        None => None,
        Some(text) => {
            let directory = place.parent().unwrap_or(Path::new("/"));
            make_directories(directory, made, edit.path.starts_with(STATE))?;
            Some(draft(&place, text, edit)?)
        }
    };
    Ok(Staged { edit, place, draft })
}

fn make_directories(directory: &Path, made: &mut Vec<PathBuf>, private: bool) -> Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for path in missing.into_iter().rev() {
        let mode = if private { 0o700 } else { 0o755 };
        fs::DirBuilder::new().mode(mode).create(path).with_context(|| path.display().to_string())?;
        made.push(path.to_owned());
        // Whatever the umask is: an engine's own user has to be able to read there.
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// The new text in a file next to the old one, with its rights, on the disk.
fn draft(place: &Path, text: &str, edit: &Edit) -> Result<NamedTempFile> {
    let directory = place.parent().unwrap_or(Path::new("/"));
    let mut draft = tempfile::Builder::new().prefix(".tunjail-").suffix(".draft").tempfile_in(directory)?;
    draft.write_all(text.as_bytes())?;
    let (mut mode, owner) = rights(fs::metadata(place).ok().as_ref());
    if edit.path.starts_with(STATE) {
        // It holds copies of files that may be for root alone.
        mode = 0o600;
    }
    if let Some((uid, gid)) = owner {
        chown(draft.path(), Some(uid), Some(gid))?;
    }
    fs::set_permissions(draft.path(), Permissions::from_mode(mode))?;
    draft.as_file().sync_all()?;
    Ok(draft)
}

fn commit(host: &Host, staged: Vec<Staged>) -> Result<()> {
    let mut done: Vec<(&Edit, PathBuf)> = Vec::new();
    for Staged { edit, place, draft } in staged {
        match unchanged(host, edit).and_then(|()| rename(&place, draft)) {
            Ok(()) => done.push((edit, place)),
            Err(error) => {
                let error = error.context(format!("{} cannot be changed", edit.path.display()));
                return Err(take_back(&done, error));
            }
        }
    }
    Ok(())
}

fn rename(place: &Path, draft: Option<NamedTempFile>) -> Result<()> {
    match draft {
        Some(draft) => {
            draft.persist(place)?;
        }
        None => fs::remove_file(place)?,
    }
    if let Some(directory) = place.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Undoes every change that was made, whatever becomes of the others.
fn take_back(done: &[(&Edit, PathBuf)], error: anyhow::Error) -> anyhow::Error {
    let mut failed = Vec::new();
    for (edit, place) in done.iter().rev() {
        let undone = match &edit.before {
            None => fs::remove_file(place).map_err(Into::into),
            Some(text) => draft(place, text, edit).and_then(|draft| rename(place, Some(draft))),
        };
        if let Err(error) = undone {
            failed.push(format!("{}: {error:#}", edit.path.display()));
        }
    }
    match failed.as_slice() {
        [] => error.context("nothing was changed"),
        _ => error.context(format!("what was changed could not be taken back wholly ({})", failed.join("; "))),
    }
}
