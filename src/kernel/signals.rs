//! Signals as something to wait for beside everything else (signalfd(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::KernelError;

/// What a service is told by signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// SIGHUP.
    Reload,
    /// SIGTERM, SIGINT.
    End,
}

/// The signals of this process, which end it no longer.
pub struct Signals(SignalFd);

impl Signals {
    /// For a process with one thread.
    pub fn catch() -> Result<Self, KernelError> {
        let set = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT].into_iter().collect::<SigSet>();
        set.thread_block()
            .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC))
            .map(Self)
            .map_err(failed)
    }

    /// The next one, if there is one.
    pub fn next(&self) -> Result<Option<Told>, KernelError> {
        let told = self.0.read_signal().map_err(failed)?;
        let is_reload = |number: u32| i32::try_from(number) == Ok(Signal::SIGHUP as i32);
        Ok(told.map(|told| if is_reload(told.ssi_signo) { Told::Reload } else { Told::End }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn failed(error: nix::Error) -> KernelError {
    KernelError::io("waiting for signals", io::Error::from(error))
}
