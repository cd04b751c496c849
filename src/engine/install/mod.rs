//! Wiring tunjail into engines, and taking it out again.
//!
//! A target (`podman.rs`, `docker.rs`, …) reads what is there and says, without writing, what each file should hold:
//! a [`Wanted`]. This module makes [`Changes`] of it, which are shown as a diff or applied all together (`apply.rs`).
//!
//! # How `uninstall` knows what was there before
//!
//! `install` writes down what each file held before and what it holds now (`record.rs`). When a file still holds exactly
//! that, nobody edited it in between and it gets its old bytes back, or goes if it was not there. Otherwise what is
//! tunjail's is taken out of it by meaning, a runtime that runs tunjail for example, and the rest stays as it is.

mod apply;
pub mod cdi;
pub mod containerd;
pub mod crio;
pub mod docker;
pub mod hooks_d;
pub mod podman;
mod record;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::record::Record;
pub use self::record::STATE;

/// No file that is edited here is anywhere near as large.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// What tunjail is wired into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// Podman's hooks.d
    Podman,
    /// Docker's daemon.json
    Docker,
    /// A CDI specification, for Podman, Docker and containerd
    Cdi,
    /// CRI-O's hooks.d
    Crio,
    /// A runtime handler in containerd's config.toml
    Containerd,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Cdi => "cdi",
            Self::Crio => "crio",
            Self::Containerd => "containerd",
        }
    }

    /// The target that reads the same files; whichever goes last takes their directories along.
    fn sharer(self) -> Option<Self> {
        match self {
            Self::Podman => Some(Self::Crio),
            Self::Crio => Some(Self::Podman),
            _ => None,
        }
    }
}

/// Where files are, and which program they shall name.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    program: PathBuf,
}

impl Host {
    /// This host, and the running program.
    ///
    /// # Errors
    /// When the program's own path is of no use in a file: deleted, or not UTF-8.
    pub fn own() -> Result<Self> {
        let program = super::own_path()?;
        if program.to_str().is_none_or(|path| path.contains(char::is_control)) {
            bail!("{} cannot be named in an engine's file; install tunjail under a plain path", program.display());
        }
        if !is_program(&program) {
            bail!("{} is no program any more; install tunjail again and run that one", program.display());
        }
        Ok(Self::new("/", program))
    }

    /// Files below `root`; `program` as it is named in them.
    pub fn new(root: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), program: program.into() }
    }

    /// What hooks call.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What is called in a runtime's place: the program's second name, next to it.
    pub fn runtime(&self) -> Result<PathBuf> {
        let path = self.program.with_file_name("tunjail-runtime");
        if !is_program(&self.at(&path)) {
            bail!("{} is not there; make it: ln -s tunjail {0}", path.display());
        }
        Ok(path)
    }

    /// Whether there is a file at `path`.
    pub fn has_file(&self, path: &Path) -> bool {
        self.at(path).is_file()
    }

    /// Where the file that is called `path` lies.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The file's text, `None` when there is no such file.
    pub fn read(&self, path: &Path) -> Result<Option<String>> {
        let place = self.at(path);
        match fs::symlink_metadata(&place) {
            Err(error) if is_absent(&error) => return Ok(None),
            result => result.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        let data = fs::metadata(&place)
            .with_context(|| format!("{} is a link that leads nowhere; mend or remove it", path.display()))?;
        if !data.is_file() {
            bail!("{} is not a regular file; move it away", path.display());
        }
        if data.len() > MAX_SIZE {
            bail!("{} is larger than {} MiB; that cannot be right", path.display(), MAX_SIZE / 1024 / 1024);
        }
        let mut text = String::new();
        let file = fs::File::open(&place).with_context(|| format!("{} cannot be read", path.display()))?;
        file.take(MAX_SIZE)
            .read_to_string(&mut text)
            .with_context(|| format!("{} cannot be read as UTF-8 text", path.display()))?;
        Ok(Some(text))
    }

    /// Files of `directory` with one of these extensions, in order.
    pub fn list(&self, directory: &str, extensions: &[&str]) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.at(Path::new(directory))) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| Path::new(directory).join(entry.file_name()))
            .filter(|path| {
                path.extension().and_then(|found| found.to_str()).is_some_and(|found| extensions.contains(&found))
            })
            .collect();
        files.sort();
        files
    }

    /// Whether root may write there, or make what is missing on the way there.
    fn is_writable(&self, directory: &Path) -> bool {
        directory
            .ancestors()
            .map(|ancestor| self.at(ancestor))
            .find(|place| place.exists())
            .is_some_and(|place| apply::may_write(&place).is_ok())
    }

    /// Whether there is a program at `path`.
    pub fn has_program(&self, path: &Path) -> bool {
        path.is_absolute() && is_program(&self.at(path))
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// What a file holds, and what a target would have it hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub path: PathBuf,
    pub current: Option<String>,
    pub after: Option<String>,
    /// `current` without anything of tunjail's.
    pub clean: Option<String>,
}

/// What a target would do.
#[derive(Debug, Default)]
pub struct Plan {
    pub files: Vec<Wanted>,
    /// What the user has to know or do, one line each.
    pub notes: Vec<String>,
}

/// A change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub path: PathBuf,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// Changes that belong together: all are made, or none.
#[derive(Debug, Default)]
pub struct Changes {
    /// The record, written before anything else: a crash after it leaves a record of something that did not happen, which
    /// is found out.
    record: Option<Edit>,
    edits: Vec<Edit>,
    /// Directories that go when nothing is in them any more, deepest first.
    leave: Vec<PathBuf>,
    /// The record, removed when all else is done.
    forget: Option<Edit>,
    pub notes: Vec<String>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    fn all(&self) -> impl Iterator<Item = &Edit> {
        self.record.iter().chain(&self.edits).chain(&self.forget)
    }

    /// The changes as a unified diff. Of tunjail's own record only that it changes: it repeats the rest.
    pub fn diff(&self) -> String {
        self.all().map(diff).collect()
    }

    /// Makes all of them, or none.
    pub fn apply(&self, host: &Host) -> Result<()> {
        self.all().try_for_each(|edit| apply::check(host, edit))?;
        apply::apply(host, self.record.as_ref(), &self.edits)?;
        let leave = |directories: &[PathBuf]| {
            for directory in directories {
                // It is not empty when others use it by now.
                let _ = fs::remove_dir(host.at(directory));
            }
        };
        leave(&self.leave);
        apply::apply(host, None, self.forget.as_slice())?;
        if self.record.is_none() {
            leave(&Path::new(STATE).ancestors().take(2).map(PathBuf::from).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Files that change, tunjail's own record aside.
    pub fn paths(&self) -> impl Iterator<Item = (&Path, &'static str)> {
        self.edits.iter().map(|edit| {
            let verb = match (&edit.before, &edit.after) {
                (None, _) => "wrote",
                (_, None) => "removed",
                _ => "changed",
            };
            (edit.path.as_path(), verb)
        })
    }
}

fn diff(edit: &Edit) -> String {
    if edit.path.starts_with(STATE) {
        let verb = if edit.after.is_some() { "writes down" } else { "forgets" };
        return format!("# {} {verb} what was there before\n", edit.path.display());
    }
    let [old, new] = [&edit.before, &edit.after].map(|text| text.as_deref().unwrap_or_default());
    let name = |text: &Option<String>| match text {
        Some(_) => edit.path.display().to_string(),
        None => "/dev/null".to_owned(),
    };
    similar::TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(&name(&edit.before), &name(&edit.after))
        .to_string()
}

/// The changes that install what `plan` says.
pub fn install(host: &Host, target: Target, plan: Plan) -> Result<Changes> {
    let old = Record::read(host, target)?;
    let mut new = old.clone().unwrap_or_default();
    let mut edits = Vec::new();
    for file in plan.files {
        // Untouched since the last time: what was there before is what was there before that time.
        let first = new.untouched(&file).map(|entry| entry.before.clone());
        let before = first.unwrap_or(file.clean);
        if file.after.is_some() {
            new.directories_for(host, &file.path);
            if let Some(other) = target.sharer() {
                new.directories_with(Record::read(host, other)?, &file.path);
            }
        }
        new.remember(&file.path, before, file.after.clone());
        if file.current != file.after {
            edits.push(Edit { path: file.path, before: file.current, after: file.after });
        }
    }
    let record = if old.as_ref() == Some(&new) { None } else { Some(new.edit(host, target)?) };
    Ok(Changes { record, edits, notes: plan.notes, ..Changes::default() })
}

/// The changes that take out what `plan`, whose `after` is each file's `clean`, says.
pub fn uninstall(host: &Host, target: Target, plan: Plan) -> Result<Changes> {
    let record = Record::read(host, target)?;
    let mut edits = Vec::new();
    for file in plan.files {
        let first = record.as_ref().and_then(|record| record.untouched(&file)).map(|entry| entry.before.clone());
        let after = first.unwrap_or(file.clean);
        if file.current != after {
            edits.push(Edit { path: file.path, before: file.current, after });
        }
    }
    let path = Record::path(target);
    let (leave, forget) = match record {
        Some(record) => (record.directories, Some(Edit { before: host.read(&path)?, path, after: None })),
        None => (Vec::new(), None),
    };
    Ok(Changes { record: None, edits, leave, forget, notes: plan.notes })
}

/// Whether `target` was installed by this command, and with this file.
fn is_recorded(host: &Host, target: Target, path: &Path) -> Result<bool> {
    Ok(Record::read(host, target)?.is_some_and(|record| record.names(path)))
}

/// The mode and owner that a file has, or that a new one gets.
fn rights(data: Option<&fs::Metadata>) -> (u32, Option<(u32, u32)>) {
    match data {
        Some(data) => (data.permissions().mode() & 0o7777, Some((data.uid(), data.gid()))),
        None => (0o644, None),
    }
}

#[cfg(test)]
mod tests;
