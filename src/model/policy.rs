//! What a jail means: the validated policy, free of files, clocks and kernels.
//!
//! `config.rs` is the only place that makes these values, so whoever holds a [`Jail`] holds one that was checked:
//! its subnets have no host bits, its exits are not its bridge, its allowed nets do not end the jail.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::{IfName, JailName, shorten};

/// A named policy: which addresses are held, which exit they may use, what else they may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Jail {
    pub name: JailName,
    /// The nets whose addresses are held; at least one, of either family, no host bits.
    pub subnets: Vec<IpNet>,
    /// The interfaces that members may leave by, most preferred first; at least one.
    pub exits: Vec<IfName>,
    /// The subnets of all other jails that may leave by one of these exits, in order.
    #[serde(skip)]
    pub sharing: Vec<IpNet>,
    /// Next hops for exits that are no tunnels, each for the one whose neighbour it is; at most one of each family for each.
    pub gateways: Vec<IpAddr>,
    /// What members may reach, or be reached from, besides the exit.
    pub allow: Vec<Allow>,
    /// Who answers members that ask for names.
    pub dns: Dns,
    /// Ports of the host itself that members may reach.
    pub host: Vec<Port>,
    /// Ports of the exit's address that lead to a member; no two are of one protocol and number.
    pub forward: Vec<Forward>,
    /// The bridge, when the administrator named it; otherwise it is found by its address.
    pub bridge: Option<IfName>,
    /// The routing table's number, when the administrator chose it.
    pub table: Option<u32>,
    /// Whose routes lead out of the jail; foreign ones need a table that was chosen.
    pub routes: Routes,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    pub protocol: Transport,
    /// 1 to 65535.
    pub number: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

/// Who answers members that ask for names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub enum Dns {
    /// These, by the exit, whomever a member asks; at least one, in the order of the file.
    Servers(Vec<IpAddr>),
    /// The engine's resolver, which may ask past the exit.
    Engine,
    /// Nobody but servers that the member reaches by the exit itself.
    #[default]
    Block,
}

/// Whose routes lead out of a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routes {
    /// tunjail's, one for each exit.
    #[default]
    Own,
    /// Somebody else's, in the table that the jail names; tunjail ends it.
    Foreign,
}

/// A port of the exit's address that leads to a member, written `tcp/51413`, or `tcp/8443:443` when the member listens
/// on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Forward {
    /// At the exit.
    pub port: Port,
    /// At the member, 1 to 65535; the protocol is the same.
    pub to_port: u16,
    /// The member's address; otherwise it is whichever member asks.
    pub to: Option<IpAddr>,
}

/// Two nets share an address exactly when one holds the other.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
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

    /// `IPPROTO_*` (linux/in.h).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Jail {
    /// Whether `address` is one that this jail holds.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(&address))
    }

    /// Whether members of both may leave by one exit.
    pub fn shares_an_exit(&self, other: &Self) -> bool {
        self.exits.iter().any(|exit| other.exits.contains(exit))
    }
}

/// What was written where a port, or a forwarded port, has to stand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("port \"{0}\" is not a port; write tcp/N or udp/N with N from 1 to 65535")]
    NotAPort(String),
    #[error(
        "\"{0}\" is not a forwarded port; write tcp/N or udp/N, or tcp/N:M when the member listens on M, with N and M from 1 to 65535"
    )]
    NotAForward(String),
}

impl FromStr for Port {
    type Err = PortError;
    fn from_str(text: &str) -> Result<Self, PortError> {
        port(text).ok_or_else(|| PortError::NotAPort(shorten(text)))
    }
}

impl FromStr for Forward {
    type Err = PortError;
    fn from_str(text: &str) -> Result<Self, PortError> {
        let (at_exit, at_member) = text.split_once(':').map_or((text, None), |(port, to)| (port, Some(to)));
        let read = || {
            let port = port(at_exit)?;
            let to_port = at_member.map_or(Some(port.number), number)?;
            Some(Self { port, to_port, to: None })
        };
        read().ok_or_else(|| PortError::NotAForward(shorten(text)))
    }
}

fn port(text: &str) -> Option<Port> {
    let (protocol, digits) = text.split_once('/')?;
    let protocol = match protocol {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    Some(Port { protocol, number: number(digits)? })
}

/// `parse` alone would take "+443".
fn number(digits: &str) -> Option<u16> {
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&number| only_digits && number != 0)
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.as_str(), self.number)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_port == self.port.number {
            true => write!(f, "{}", self.port),
            false => write!(f, "{}:{}", self.port, self.to_port),
        }
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

impl TryFrom<String> for Port {
    type Error = PortError;
    fn try_from(text: String) -> Result<Self, PortError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_forwards_are_read_as_they_are_written() {
        for text in ["tcp/1", "udp/65535"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        let forward: Forward = "tcp/8443:443".parse().unwrap();
        assert_eq!((forward.port.number, forward.to_port, forward.to), (8443, 443, None));
        assert_eq!(forward.to_string(), "tcp/8443:443");
        assert_eq!("udp/53:53".parse::<Forward>().unwrap().to_string(), "udp/53");
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in ["", "443", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/+1", "tcp/ 1", "TCP/1", "sctp/1", "tcp/1/2"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
        for bad in ["tcp/1:", "tcp/1:0", "tcp/1:65536", "tcp/0:1", ":1", "tcp/1:2:3", "tcp/1:udp/2", "tcp/1: 2"] {
            let error = bad.parse::<Forward>().unwrap_err().to_string();
            assert!(error.contains("is not a forwarded port; write tcp/N"), "{error}");
        }
    }
}
