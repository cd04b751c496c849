//! Sockets in another network namespace.
//!
//! A socket belongs to the namespace that it was opened in, whoever uses it later. So a thread goes into a member's
//! namespace for no longer than it takes to open sockets there, and everything else is done from the host's. A thread
//! of its own would do as well, but costs a hook a tenth of its time.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

    /// Runs `work`, which should do no more than open sockets, in this namespace, and comes back.
    ///
    /// A thread that could not come back would take the member's namespace for the host's: then the process ends on
    /// the spot, which refuses the container.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T, KernelError>) -> Result<T, KernelError> {
        struct Return(Netns);
        impl Drop for Return {
            fn drop(&mut self) {
                if setns(&self.0.file, CloneFlags::CLONE_NEWNET).is_err() {
                    eprintln!("tunjail: the host's network namespace could not be entered again");
                    std::process::abort();
                }
            }
        }
        let home = Return(Self::own()?);
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            KernelError::io(format!("entering network namespace {}", self.path.display()), errno.into())
        })?;
        let result = work();
        drop(home);
        result
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
