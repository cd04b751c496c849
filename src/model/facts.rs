//! What was observed, on the host and in a member's network namespace. No judgement in here.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::IfName;
use super::objects::{Family, Mac, Route, Rule};

/// A network namespace's identity: device and inode of its nsfs file (namespaces(7)). Unique among the living.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    pub dev: u64,
    pub ino: u64,
}

/// A network interface (`RTM_NEWLINK`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `IFLA_INFO_KIND`: "veth", "bridge", "tun"; absent for physical interfaces and `lo`.
    pub kind: Option<String>,
    pub mac: Option<Mac>,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOWER_UP` and `IFF_RUNNING`: there is somebody at the other end of the wire, or there is no wire, and the kernel
    /// has come to know (up to a second later, net/core/link_watch.c; until then it drops what is sent).
    pub carrier: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// Packets need no next hop: `IFF_POINTOPOINT` or `IFF_NOARP`.
    pub tunnel: bool,
    /// `IFLA_LINK`: for a veth, the index of its peer.
    pub peer: Option<u32>,
    /// `IFLA_LINK_NETNSID`: the namespace of the peer, as the namespace that was asked numbers it.
    pub peer_netns: Option<i32>,
    /// `IFLA_MASTER`: the bridge that this is a port of.
    pub master: Option<u32>,
}

impl Link {
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

/// An address of an interface (`RTM_NEWADDR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub address: IpAddr,
    /// The other end's, where it has one of its own; else the same. It is this one that the prefix length is about.
    pub peer: IpAddr,
    /// 0 to 32, or to 128.
    pub prefix_len: u8,
}

impl Address {
    /// 169.254.0.0/16 or fe80::/10: never routed, so never a way out (RFC 3927, RFC 4291).
    pub fn is_link_local(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
    }
}

/// What a container's network namespace shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsFacts {
    pub id: NetnsId,
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
}

impl NetnsFacts {
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |address| address.index == index)
    }

    /// Addresses that could be routed: neither loopback's nor link-local.
    pub fn routable(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(|address| !address.is_link_local() && !address.address.is_loopback())
    }
}

/// An exit that exists now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitFacts {
    pub link: Link,
    /// It has an IPv4 address that packets may have as their source: masquerade would take another interface's.
    pub v4: bool,
    /// The same for IPv6, link-local ones aside.
    pub v6: bool,
    /// The nets that its addresses span.
    pub nets: Vec<IpNet>,
}

impl ExitFacts {
    /// Whether it has an address of this family that packets may have as their source.
    pub fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Whether a next hop is a neighbour of it: in one of its nets, or link-local, as every interface's neighbours are.
    pub fn reaches(&self, gateway: IpAddr) -> bool {
        let is_link_local = match gateway {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        is_link_local || self.nets.iter().any(|net| net.contains(&gateway))
    }
}

/// What the wall is built from: the parts of the host that tunjail does not own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The jail's exits that exist, in the jail's order.
    pub exits: Vec<ExitFacts>,
    /// The jail's bridge, when it exists or was named.
    pub bridge: Option<IfName>,
    /// The preference of the first rule of others that takes packets of the jail, where the jail's own may move before it.
    pub first_of_others: Option<u32>,
}

/// What the kernel holds of a jail's wall.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WallFacts {
    /// Rules with tunjail's protocol that look up the jail's table.
    pub rules: Vec<Rule>,
    /// Every route in the jail's table, whoever made it.
    pub routes: Vec<Route>,
    /// Fingerprints of the nftables tables; `None` when a table is missing.
    pub tables: Tables,
}

/// Fingerprints of the wall's and the guard's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tables {
    pub wall: Option<Fingerprint>,
    pub guard: Option<Fingerprint>,
}

/// A digest of a table's chains and rules, free of handles and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(pub u64);

/// An ip rule that is not tunjail's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherRule {
    pub family: Family,
    pub priority: u32,
    /// `not`: it takes what its selectors do not match.
    pub inverted: bool,
    pub source: Option<IpNet>,
    pub destination: Option<IpNet>,
    pub iif: Option<String>,
    /// It has a mark to match.
    pub marked: bool,
    /// As `ip rule` takes it.
    pub text: String,
}

/// A net that the host itself is in, with the interface that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNet {
    pub net: IpNet,
    pub interface: String,
}

/// The kernel's answer to "where would this packet go" (`RTM_GETROUTE`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FibAnswer {
    /// Out by the interface with this index.
    Out(u32),
    /// To the host itself.
    Local,
    /// Nowhere: the kernel would reject it.
    Unreachable,
}
