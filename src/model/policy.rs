//! What a jail means: the validated policy, free of files, clocks and kernels.
//!
//! `config.rs` is the only place that makes these values, so whoever holds a [`Jail`] holds one that was checked:
//! its subnets have no host bits, its exits are not its bridge, its allowed nets do not end the jail.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::{IfName, JailName};

/// A named policy: which addresses are held, which exit they may use, what else they may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Jail {
    pub name: JailName,
    /// The nets whose addresses are held; at least one, of either family, no host bits.
    pub subnets: Vec<IpNet>,
    /// The interfaces that members may leave by, most preferred first; at least one.
    pub exits: Vec<IfName>,
    /// Next hops for an exit that is no tunnel; at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// What members may reach, or be reached from, besides the exit.
    pub allow: Vec<Allow>,
    /// The bridge, when the administrator named it; otherwise it is found by its address.
    pub bridge: Option<IfName>,
    /// The routing table's number, when the administrator chose it.
    pub table: Option<u32>,
    /// Whether addresses of the subnets that no hook enrolled may not leave their bridge, not even by the exit.
    pub enrolled_only: bool,
}

/// A net that members may exchange packets with, past the exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Allow {
    pub net: IpNet,
    /// Empty: every protocol and port.
    pub ports: Vec<Port>,
    pub direction: Direction,
}

/// A transport protocol's port, written `tcp/443`. The port is always the one of the side that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Port {
    pub protocol: Transport,
    /// 1 to 65535.
    pub number: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

/// Who may open a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Members may open connections to the net.
    Out,
    /// The net may open connections to members.
    In,
    #[default]
    Both,
}

impl Direction {
    pub fn is_out(self) -> bool {
        matches!(self, Self::Out | Self::Both)
    }

    pub fn is_in(self) -> bool {
        matches!(self, Self::In | Self::Both)
    }
}

impl Transport {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Jail {
    /// Whether `address` is one that this jail holds.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(&address))
    }
}
