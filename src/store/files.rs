//! Records as files: read whole, written whole by a rename, removed without complaint when they are gone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{StoreError, VERSION};

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

pub fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

pub fn names_in(directory: &Path) -> Result<Vec<String>, StoreError> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at(directory)(error)),
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
    }
}

/// How many entries a directory has, up to `limit`.
pub fn count_some(directory: &Path, limit: usize) -> Result<usize, StoreError> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(at(directory)(error)),
        Ok(entries) => Ok(entries.take(limit).count()),
    }
}

pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let text = match fs::read(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        text => text.map_err(at(path))?,
    };
    #[derive(Deserialize)]
    struct VersionOnly {
        version: u32,
    }
    let damaged = |source| StoreError::Damaged { path: path.to_owned(), source };
    let VersionOnly { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version != VERSION {
        return Err(StoreError::Version { path: path.to_owned(), found: version });
    }
    let versioned: Versioned<T> = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(Some(versioned.record))
}

/// What becomes a record, whole, by being renamed. Only the holder of the lock writes, so there is one of them in each
/// directory at most, and one that a crash left is in nobody's way: the next one replaces it, or [`tidy_dir`] does.
const DRAFT: &str = ".draft";

pub fn write(path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
    let text = serde_json::to_vec(&Versioned { version: VERSION, record })
        .map_err(|source| StoreError::Damaged { path: path.to_owned(), source })?;
    let draft = path.with_file_name(DRAFT);
    remove(&draft)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(at(path))?;
    file.write_all(&text).map_err(at(path))?;
    fs::rename(&draft, path).map_err(at(path))
}

/// Makes or replaces a symbolic link; readers see the old one or the new one.
pub fn link(target: &str, path: &Path) -> Result<(), StoreError> {
    if fs::read_link(path).is_ok_and(|there| there == Path::new(target)) {
        return Ok(());
    }
    match symlink(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let draft = path.with_file_name(DRAFT);
            remove(&draft)?;
            symlink(target, &draft).map_err(at(path))?;
            fs::rename(&draft, path).map_err(at(path))
        }
        result => result.map_err(at(path)),
    }
}

pub fn make_dir(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(at(path)),
    }
}

pub fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        result => result.map_err(at(path)),
    }
}

/// Removes a directory unless it holds something.
pub fn tidy_dir(path: &Path) -> Result<(), StoreError> {
    remove(&path.join(DRAFT))?;
    remove_dir_if_empty(path)
}

pub fn remove_dir_if_empty(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        result => result.map_err(at(path)),
    }
}
