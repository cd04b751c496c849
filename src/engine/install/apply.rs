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

/// Makes all the changes, which were checked ([`check`]), or none; `first`, which says what there will be to undo, is made before the others are begun.
pub(super) fn apply(host: &Host, first: Option<&Edit>, edits: &[Edit]) -> Result<()> {
    let (mut made, mut done) = (Vec::new(), Vec::new());
    let result = make(host, first, &mut made, &mut done).and_then(|()| make(host, edits, &mut made, &mut done));
    result.map_err(|error| {
        let error = take_back(&done, error);
        for directory in made.iter().rev() {
            // Whoever put something in meanwhile keeps it.
            let _ = fs::remove_dir(directory);
        }
        error
    })
}

fn make<'a>(
    host: &Host,
    edits: impl IntoIterator<Item = &'a Edit>,
    made: &mut Vec<PathBuf>,
    done: &mut Vec<(&'a Edit, PathBuf)>,
) -> Result<()> {
    let staged = edits.into_iter().map(|edit| stage(host, edit, made)).collect::<Result<Vec<_>>>()?;
    commit(host, staged, done)
}

/// Whether the change can be made, as far as that can be known before the first one is.
pub(super) fn check(host: &Host, edit: &Edit) -> Result<()> {
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

fn stage<'a>(host: &Host, edit: &'a Edit, made: &mut Vec<PathBuf>) -> Result<Staged<'a>> {
    let mut staged = || -> Result<Staged<'a>> {
        let place = place(host, &edit.path)?;
        let draft = match &edit.after {
            None => None,
            Some(text) => {
                make_directories(place.parent().unwrap_or(Path::new("/")), made, edit.path.starts_with(STATE))?;
                Some(draft(&place, text, edit)?)
            }
        };
        Ok(Staged { edit, place, draft })
    };
    staged().with_context(|| format!("{} cannot be written", edit.path.display()))
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
    // Always the same name, so that one which a crash left is found by the next run. None is read by an engine.
    let name = format!(".{}.tunjail-draft", place.file_name().unwrap_or_default().to_string_lossy());
    match fs::remove_file(directory.join(&name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut draft = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempfile_in(directory)?;
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

fn commit<'a>(host: &Host, staged: Vec<Staged<'a>>, done: &mut Vec<(&'a Edit, PathBuf)>) -> Result<()> {
    for Staged { edit, place, draft } in staged {
        unchanged(host, edit)
            .and_then(|()| rename(&place, draft))
            .with_context(|| format!("{} cannot be changed", edit.path.display()))?;
        done.push((edit, place));
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
