//! A thread of its own inside another network namespace.
//!
//! A socket belongs to the namespace that it was opened in, and setns(2) moves one thread: so whatever has to be
//! asked or told inside a member runs on a thread that enters, opens its own sockets, and ends. The process' other
//! threads never leave the host's namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::KernelError;
use crate::model::facts::NetnsId;

/// An open network namespace. It stays what it was even if the pid is reused.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    pub id: NetnsId,
}

impl Netns {
    /// The namespace of the process `pid`.
    pub fn of_process(pid: i32) -> Result<Self, KernelError> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace of the calling thread: the host's.
    pub fn own() -> Result<Self, KernelError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    fn open(path: &Path) -> Result<Self, KernelError> {
        let request = || format!("opening network namespace {}", path.display());
        let file = File::open(path).map_err(|error| KernelError::io(request(), error))?;
        let metadata = file.metadata().map_err(|error| KernelError::io(request(), error))?;
        Ok(Self { file, path: path.to_owned(), id: NetnsId { dev: metadata.dev(), ino: metadata.ino() } })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside this namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, KernelError> + Send) -> Result<T, KernelError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                    KernelError::io(format!("entering network namespace {}", self.path.display()), errno.into())
                })?;
                work()
            });
            inside.join().unwrap_or_else(|_| {
                let panicked = io::Error::other("the thread inside it panicked");
                Err(KernelError::io(format!("working in network namespace {}", self.path.display()), panicked))
            })
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
