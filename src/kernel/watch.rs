//! Waiting for a network namespace to change, or for a process to end.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::KernelError;

/// Links and addresses of both families (`RTMGRP_*`, linux/rtnetlink.h).
const GROUPS: u32 = (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// rtnetlink's multicast of one network namespace.
pub struct Watch(Socket);

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Links or addresses changed, or may have.
    Changed,
    /// The process ended.
    Ended,
    /// Time is up.
    Late,
}

impl Watch {
    /// In the namespace that the calling thread is in.
    pub fn open() -> Result<Self, KernelError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        open().map(Self).map_err(|error| KernelError::io("listening to interfaces and addresses", error))
    }

    /// Waits until something changes, the process behind `process` ends, or `limit` is over.
    pub fn wait(&self, process: BorrowedFd<'_>, limit: Duration) -> Result<Woken, KernelError> {
        let failed = |error| KernelError::io("waiting for interfaces and addresses", error);
        let mut sources = [PollFd::new(&process, PollFlags::IN), PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec::try_from(limit).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        match poll(&mut sources, Some(&limit)) {
            Err(error) if error == rustix::io::Errno::INTR => Ok(Woken::Changed),
            Err(error) => Err(failed(error.into())),
            Ok(0) => Ok(Woken::Late),
            Ok(_) if !sources[0].revents().is_empty() => Ok(Woken::Ended),
            Ok(_) => self.drain().map(|()| Woken::Changed).map_err(failed),
        }
    }

    /// Reads what came. What it says is of no interest: everything is read anew. So is that some of it was lost
    /// (ENOBUFS). Not for ever: a container may make more of it than can be read.
    fn drain(&self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(8192);
        for _ in 0..256 {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
