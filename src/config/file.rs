//! From a path to text that may be trusted: opened once, judged on the open descriptor, then read.
//!
//! The file decides which packets leave the host, so whoever can write it must be root or the user that runs tunjail.
//! All judging is done by fstat on what was opened: a path may name another file a moment later.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use super::error::{ConfigError, Fault, FileFault};

/// The largest file that is read, in bytes.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;

/// Non-blocking, or a FIFO in the file's place would stop every container's start.
const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// A file's text, and where it came from.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub text: String,
}

impl Source {
    /// The line, counted from 1, that the byte at `offset` stands in.
    pub fn line(&self, offset: usize) -> usize {
        line(self.text.as_bytes(), offset)
    }
}

/// Reads the main file.
pub(super) fn main_file(path: &Path) -> Result<Source, ConfigError> {
    let file = open(path, FLAGS, Mode::empty()).map_err(|errno| {
        fault(path, if errno == Errno::ENOENT { FileFault::Missing } else { FileFault::Open(errno.into()) })
    })?;
    read(File::from(file), path)
}

/// Reads every `*.toml` of a directory, in the order of their names; none when there is no such directory.
///
/// Names that begin with a dot are passed over: editors keep their locks and copies under such names.
pub(super) fn drop_ins(path: &Path) -> Result<Vec<Source>, ConfigError> {
    let directory = match open(path, FLAGS | OFlag::O_DIRECTORY, Mode::empty()) {
        Ok(fd) => File::from(fd),
        // A link that leads nowhere is a mistake, not an absence: the jails it should bring would be missing silently.
        Err(Errno::ENOENT) if path.symlink_metadata().is_err() => return Ok(Vec::new()),
        Err(Errno::ENOTDIR) => return Err(fault(path, FileFault::NotDirectory)),
        Err(errno) => return Err(fault(path, FileFault::Open(errno.into()))),
    };
    judge(&directory, path)?;
    let unreadable = |errno: Errno| fault(path, FileFault::Read(errno.into()));
    let mut directory = Dir::from_fd(directory.into()).map_err(unreadable)?;
    let mut names: Vec<OsString> = Vec::new();
    for entry in directory.iter() {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_bytes();
        if name.ends_with(b".toml") && !name.starts_with(b".") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    names
        .iter()
        .map(|name| {
            let path = path.join(name);
            let file = openat(&directory, name.as_os_str(), FLAGS, Mode::empty())
                .map_err(|errno| fault(&path, FileFault::Open(errno.into())))?;
            read(File::from(file), &path)
        })
        .collect()
}

fn read(file: File, path: &Path) -> Result<Source, ConfigError> {
    let metadata = judge(&file, path)?;
    if metadata.is_dir() {
        return Err(fault(path, FileFault::IsDirectory));
    }
    if !metadata.is_file() {
        return Err(fault(path, FileFault::NotRegular));
    }
    let mut bytes = Vec::new();
    // What counts is what is read, and not the size a moment ago: one byte more than may be is enough to know.
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(|error| fault(path, FileFault::Read(error)))?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(fault(path, FileFault::TooLarge));
    }
    let text = String::from_utf8(bytes).map_err(|error| ConfigError::Line {
        path: path.to_owned(),
        line: line(error.as_bytes(), error.utf8_error().valid_up_to()),
        fault: Fault::NotUtf8,
    })?;
    Ok(Source { path: path.to_owned(), text })
}

/// Refuses what somebody else could have written.
fn judge(file: &File, path: &Path) -> Result<Metadata, ConfigError> {
    let metadata = file.metadata().map_err(|error: io::Error| fault(path, FileFault::Open(error)))?;
    match trusted(path, metadata.mode(), metadata.uid(), geteuid().as_raw()) {
        Some(distrust) => Err(fault(path, distrust)),
        None => Ok(metadata),
    }
}

fn trusted(path: &Path, mode: u32, owner: u32, effective: u32) -> Option<FileFault> {
    if owner != 0 && owner != effective {
        return Some(FileFault::Owner { path: path.to_owned(), uid: owner });
    }
    (mode & 0o002 != 0).then(|| FileFault::WorldWritable(path.to_owned()))
}

fn fault(path: &Path, fault: FileFault) -> ConfigError {
    ConfigError::File { path: path.to_owned(), fault }
}

fn line(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_are_trusted() {
        let path = Path::new("/etc/tunjail/tunjail.toml");
        assert!(trusted(path, 0o100_644, 0, 0).is_none());
        assert!(trusted(path, 0o100_600, 0, 1000).is_none());
        assert!(trusted(path, 0o100_600, 1000, 1000).is_none());
        let error = |mode, owner, effective| fault(path, trusted(path, mode, owner, effective).unwrap()).to_string();
        assert_eq!(
            error(0o100_600, 1000, 0),
            "/etc/tunjail/tunjail.toml: belongs to uid 1000, who is neither root nor the user that runs tunjail; \
             run: chown root /etc/tunjail/tunjail.toml"
        );
        assert_eq!(
            error(0o100_646, 0, 0),
            "/etc/tunjail/tunjail.toml: may be written by everyone; run: chmod o-w /etc/tunjail/tunjail.toml"
        );
    }

    #[test]
    fn lines_are_counted_from_one_and_past_the_end() {
        for (offset, expected) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (400, 3)] {
            assert_eq!(line(b"a\nb\nc", offset), expected, "{offset}");
        }
    }
}
