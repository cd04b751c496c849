//! Waiting for a network namespace to change.

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::KernelError;

/// Groups of rtnetlink (`RTNLGRP_*`, linux/rtnetlink.h) as the bits that bind(2) takes.
const LINKS_AND_ADDRESSES: u32 = bit(1) | bit(5) | bit(9);
const ROUTES_AND_RULES: u32 = bit(7) | bit(11) | bit(8) | bit(19);
/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = bit(7);

const fn bit(group: u32) -> u32 {
    1 << (group - 1)
}

/// The kernel's multicast about one network namespace: that of the thread which opened it.
pub struct Watch(Vec<Source>);

struct Source {
    socket: Socket,
    /// There was more than was read the last time. As long as that is so after some was lost, all that is new is lost
    /// too, and nobody tells (netlink_overrun, net/netlink/af_netlink.c).
    is_behind: Cell<bool>,
    /// Whether a datagram can be about anything that is watched.
    concerns: fn(&[u8]) -> bool,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something that is watched changed, or may have.
    Changed,
    /// The other descriptor has something to say.
    Called,
    /// Time is up.
    Late,
}

impl Watch {
    /// Links and addresses.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self(vec![source(NETLINK_ROUTE, LINKS_AND_ADDRESSES, |_| true)?]))
    }

    /// All that walls are made of and follow: links, addresses, rules, routes, and tunjail's tables of nf_tables.
    pub fn walls() -> Result<Self, KernelError> {
        Ok(Self(vec![
            source(NETLINK_ROUTE, LINKS_AND_ADDRESSES | ROUTES_AND_RULES, |datagram| {
                messages(datagram).any(|(kind, body)| !is_route_of_the_host(kind, body))
            })?,
            source(NETLINK_NETFILTER, NFTABLES, |datagram| {
                messages(datagram).any(|(kind, body)| is_of_a_wall(kind, body))
            })?,
        ]))
    }

    /// Waits until something changes, `other` can be read, or `limit` is over.
    pub fn wait(&self, other: BorrowedFd<'_>, limit: Duration) -> Result<Woken, KernelError> {
        let failed = |error| KernelError::io("waiting for changes", error);
        let deadline = Instant::now() + limit;
        loop {
            let mut fds = vec![PollFd::new(&other, PollFlags::IN)];
            fds.extend(self.0.iter().map(|source| PollFd::new(&source.socket, PollFlags::IN)));
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
            match poll(&mut fds, Some(&left)) {
                Err(error) if error == rustix::io::Errno::INTR => return Ok(Woken::Changed),
                Err(error) => return Err(failed(error.into())),
                Ok(0) => return Ok(Woken::Late),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Woken::Called),
                Ok(_) => {}
            }
            let mut changed = false;
            for source in &self.0 {
                changed |= source.drain().map_err(failed)?;
            }
            if changed {
                return Ok(Woken::Changed);
            }
        }
    }
}

fn source(protocol: isize, groups: u32, concerns: fn(&[u8]) -> bool) -> Result<Source, KernelError> {
    let open = || -> io::Result<Socket> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    };
    let socket = open().map_err(|error| KernelError::io("listening to the kernel's changes", error))?;
    Ok(Source { socket, is_behind: Cell::new(false), concerns })
}

impl Source {
    /// Reads what came, and returns whether it is of interest. What it says is not: everything is read anew. So is that
    /// some of it was lost (ENOBUFS). Not for ever: somebody may make more of it than can be read.
    fn drain(&self) -> io::Result<bool> {
        let mut buffer = Vec::with_capacity(16 * 1024);
        let mut changed = self.is_behind.take();
        for _ in 0..256 {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => changed |= (self.concerns)(&buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) => return Err(error),
            }
        }
        self.is_behind.set(true);
        Ok(true)
    }
}

/// Type and body of each message (`struct nlmsghdr`, linux/netlink.h).
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER_LEN: usize = 16;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
        let body = datagram.get(HEADER_LEN..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// A route of the tables `default`, `main` or `local`, which no wall has any in: a router's may change all the time.
fn is_route_of_the_host(kind: u16, body: &[u8]) -> bool {
    // `rtm_table` of `struct rtmsg`; a number above 255 is RT_TABLE_COMPAT (252) there.
    const TABLE: usize = 4;
    matches!(kind, libc::RTM_NEWROUTE | libc::RTM_DELROUTE)
        && body
            .get(TABLE)
            .is_some_and(|table| [libc::RT_TABLE_DEFAULT, libc::RT_TABLE_MAIN, libc::RT_TABLE_LOCAL].contains(table))
}

/// Whatever is about a table of tunjail's, members aside: each of them is a message, and no wall changes by one.
fn is_of_a_wall(kind: u16, body: &[u8]) -> bool {
    const NFGENMSG_LEN: usize = 4;
    // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE and all their like (linux/netfilter/nf_tables.h).
    const TABLE_NAME: u16 = 1;
    match libc::c_int::from(kind & 0xff) {
        libc::NFT_MSG_NEWSETELEM | libc::NFT_MSG_DELSETELEM | libc::NFT_MSG_NEWGEN => false,
        _ => NlasIterator::new(body.get(NFGENMSG_LEN..).unwrap_or_default())
            .flatten()
            .any(|attribute| attribute.kind() == TABLE_NAME && attribute.value().starts_with(b"tunjail_")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_walked_and_a_broken_one_ends_the_walk() {
        let both = [message(24, &[1, 2, 3, 4, 5]), message(16, &[])].concat();
        assert_eq!(messages(&both).collect::<Vec<_>>(), [(24, &[1, 2, 3, 4, 5][..]), (16, &[])]);
        for end in 0..both.len() {
            assert!(messages(&both[..end]).count() < 2, "{end}");
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of 0 leads nowhere");
    }

    #[test]
    fn what_concerns_no_wall_wakes_nobody() {
        let route = |table| [2, 0, 0, 0, table, 0, 0, 0, 0, 0, 0, 0];
        for (table, of_the_host) in [(254, true), (255, true), (253, true), (252, false), (100, false)] {
            assert_eq!(is_route_of_the_host(libc::RTM_DELROUTE, &route(table)), of_the_host, "{table}");
        }
        assert!(!is_route_of_the_host(libc::RTM_NEWLINK, &route(254)));
        let named = |name: &[u8]| {
            let length = u16::try_from(4 + name.len()).unwrap();
            let mut body = [&[1, 0, 0, 0][..], &length.to_ne_bytes(), &1u16.to_ne_bytes(), name].concat();
            body.resize(body.len().next_multiple_of(4), 0);
            body
        };
        let about = |kind: libc::c_int| (10 << 8) | u16::try_from(kind).unwrap();
        assert!(is_of_a_wall(about(libc::NFT_MSG_DELTABLE), &named(b"tunjail_vpn\0")));
        assert!(is_of_a_wall(about(libc::NFT_MSG_NEWRULE), &named(b"tunjail_vpn\0")));
        assert!(!is_of_a_wall(about(libc::NFT_MSG_NEWRULE), &named(b"filter\0")));
        assert!(!is_of_a_wall(about(libc::NFT_MSG_NEWSETELEM), &named(b"tunjail_vpn\0")));
    }
}
