//! Adapters to the kernel. They carry out and they report; they decide nothing.
//!
//! - [`netns`]: sockets in another network namespace
//! - [`netlink`]: the transport of both tongues
//! - [`rtnetlink`]: links, addresses, rules, routes, and the FIB's own answer
//! - [`nfnetlink`]: nf_tables' tongue: one batch, one transaction
//! - [`nftables`]: fingerprints, set elements, the lock; and `nft` for the wall
//! - [`conntrack`]: what is remembered of where packets went, forgotten
//! - [`process`]: whether a pid is still the process it was
//! - [`watch`], [`signals`]: waiting for a network namespace to change, and for what a service is told

pub mod conntrack;
pub mod netlink;
pub mod netns;
pub mod nfnetlink;
pub mod nftables;
pub mod process;
pub mod rtnetlink;
pub mod signals;
pub mod watch;

use std::io;

use netlink_packet_core::{ErrorMessage, NlasIterator};

/// What an adapter can fail with. The text names the request; the kernel's own words (extack) are in it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{request}: {reason}")]
    Refused { request: String, reason: String, errno: i32 },
    #[error("{request}: {source}")]
    Io { request: String, source: io::Error },
    #[error("{request}: the kernel's answer was not understood: {reason}")]
    Answer { request: String, reason: String },
    #[error("{request}: the kernel's list kept changing while it was read")]
    Restless { request: String },
    #[error("nft was not found in {places}; install the nftables package")]
    NoNft { places: String },
    #[error("nft refused the ruleset: {0}")]
    Nft(String),
}

impl KernelError {
    pub fn io(request: impl Into<String>, source: io::Error) -> Self {
        Self::Io { request: request.into(), source }
    }

    pub fn answer(request: impl Into<String>, reason: impl ToString) -> Self {
        Self::Answer { request: request.into(), reason: reason.to_string() }
    }

    /// A netlink NACK, with the kernel's own explanation when it gave one (`NLMSGERR_ATTR_MSG`, linux/netlink.h).
    pub fn nack(request: impl Into<String>, error: &ErrorMessage) -> Self {
        let errno = error.raw_code().abs();
        let plain = io::Error::from_raw_os_error(errno);
        let reason = match extack(error) {
            Some(text) => format!("{text} ({plain})"),
            None => plain.to_string(),
        };
        Self::Refused { request: request.into(), reason, errno }
    }

    /// The errno that the kernel answered with, if it answered.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// The text in a NACK's extended part. With `NETLINK_CAP_ACK` set, the request's header alone stands before it.
fn extack(error: &ErrorMessage) -> Option<String> {
    const HEADER_LEN: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    NlasIterator::new(error.header.get(HEADER_LEN..)?)
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
}
