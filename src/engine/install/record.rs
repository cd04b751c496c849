//! What was there before: one file for each target, in a directory for root alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Edit, Host, Target, Wanted};

/// It has to outlive a reboot, as the files that engines read do.
pub const STATE: &str = "/var/lib/tunjail/install";

const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub path: PathBuf,
    pub before: Option<String>,
    pub after: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub files: Vec<Entry>,
    /// Directories that were made, deepest first.
    pub directories: Vec<PathBuf>,
}

impl Default for Record {
    fn default() -> Self {
        Self { version: VERSION, files: Vec::new(), directories: Vec::new() }
    }
}

impl Record {
    pub fn path(target: Target) -> PathBuf {
        Path::new(STATE).join(format!("{}.json", target.name()))
    }

    pub fn read(host: &Host, target: Target) -> Result<Option<Self>> {
        let path = Self::path(target);
        let Some(text) = host.read(&path)? else { return Ok(None) };
        let mend = || format!("{} is damaged; remove it, and look at the engine's own file", path.display());
        let record: Self = serde_json::from_str(&text).with_context(mend)?;
        if record.version != VERSION {
            bail!("{} was written by another version of tunjail; use that one", path.display());
        }
        Ok(Some(record))
    }

    /// The change that writes it.
    pub fn edit(&self, host: &Host, target: Target) -> Result<Edit> {
        let path = Self::path(target);
        let before = host.read(&path)?;
        let after = serde_json::to_string_pretty(self).context("the record")? + "\n";
        Ok(Edit { path, before, after: Some(after) })
    }

    /// The entry of a file that holds what was written there, so that nobody edited it since.
    pub fn untouched(&self, file: &Wanted) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.path == file.path && entry.after == file.current)
    }

    /// The entry of a file, whatever became of it.
    pub fn entry(&self, path: &Path) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.path == path)
    }

    pub fn names(&self, path: &Path) -> bool {
        self.entry(path).is_some_and(|entry| entry.after.is_some())
    }

    pub fn remember(&mut self, path: &Path, before: Option<String>, after: Option<String>) {
        self.files.retain(|entry| entry.path != path);
        if before != after {
            self.files.push(Entry { path: path.to_owned(), before, after });
        }
    }

    /// Remembers which directories a file needs that are not there.
    pub fn directories_for(&mut self, host: &Host, path: &Path) {
        let missing = path.ancestors().skip(1).take_while(|ancestor| !host.at(ancestor).exists());
        self.directories_add(missing.map(PathBuf::from).collect());
    }

    /// Remembers those above a file that another record has.
    pub fn directories_with(&mut self, other: Option<Self>, path: &Path) {
        let theirs = other.into_iter().flat_map(|other| other.directories);
        self.directories_add(theirs.filter(|directory| path.starts_with(directory)).collect());
    }

    fn directories_add(&mut self, mut new: Vec<PathBuf>) {
        new.retain(|path| !self.directories.contains(path));
        self.directories.extend(new);
        self.directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    }
}
