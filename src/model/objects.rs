//! Kernel objects in the form that facts, desired state and plan share, so that they compare by meaning.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::{IfName, JailName};
use super::policy::Transport;

/// The `rtm_protocol` that marks rules and routes as tunjail's (linux/rtnetlink.h: below `RTPROT_BOOT` is the
/// kernel's, well-known daemons are listed there and in iproute2's rt_protos; 116 is free in both).
pub const PROTOCOL: u8 = 116;

/// The preference of tunjail's ip rules: after `local` (0), before Tailscale's (5210) and `main` (32766). A rule that
/// is added without a preference, as wg-quick does it, gets one less than the first that is there after `local`
/// (fib_default_rule_pref, net/core/fib_rules.c). Where that one would take a jail's packets, the jail's rules move before it,
/// down to [`FIRST_RULE_PRIORITY`]; what an administrator put before that is meant to come first.
pub const RULE_PRIORITY: u32 = 700;
/// See [`RULE_PRIORITY`].
pub const FIRST_RULE_PRIORITY: u32 = 600;

/// The metric of the first exit's default route; each further exit of the list is one worse.
pub const FIRST_EXIT_METRIC: u32 = 100;

/// The metric of `unreachable default`: worse than anything else can be.
pub const LAST_METRIC: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            Self::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        }
    }

    /// The option that makes `ip` speak of this family.
    pub fn ip_option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// Where Docker's resolver listens in a container's network namespace (libnetwork's `resolverIPSandbox`).
pub const ENGINES_RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// What an ip rule of tunjail matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Packets from these addresses, whichever way they came: reply paths and strict rp_filter need it.
    From(IpNet),
    /// Packets that came in by this interface, whatever source they claim.
    Iif(Family, IfName),
}

/// An ip rule with tunjail's protocol and action (lookup).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub selector: Selector,
    pub table: u32,
    /// [`RULE_PRIORITY`], or less where a rule of others would be asked first.
    pub priority: u32,
}

impl Rule {
    pub fn family(&self) -> Family {
        match &self.selector {
            Selector::From(net) => Family::of_net(net),
            Selector::Iif(family, _) => *family,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::From(net) => write!(f, "from {net}")?,
            Selector::Iif(_, name) => write!(f, "iif {name}")?,
        }
        write!(f, " lookup {} priority {} protocol {PROTOCOL}", self.table, self.priority)
    }
}

/// Where a route of the jail's table leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Dev {
        name: IfName,
        gateway: Option<IpAddr>,
    },
    /// Leave the jail's table and ask the host's own: the way of an allowed net.
    Throw,
    /// The end: reject and tell the sender.
    Unreachable,
    /// Nothing of tunjail's; the text says what it is.
    Foreign(String),
}

/// A route in the jail's table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub destination: IpNet,
    pub target: Target,
    pub metric: u32,
}

impl Route {
    pub fn family(&self) -> Family {
        Family::of_net(&self.destination)
    }

    /// The route as `ip route` takes it, without its table.
    fn spelled(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Throw => f.write_str("throw ")?,
            Target::Unreachable => f.write_str("unreachable ")?,
            Target::Dev { .. } | Target::Foreign(_) => {}
        }
        if self.destination.prefix_len() == 0 {
            f.write_str("default")?
        } else {
            write!(f, "{}", self.destination)?
        }
        match &self.target {
            Target::Dev { name, gateway: Some(gateway) } => write!(f, " via {gateway} dev {name}")?,
            Target::Dev { name, gateway: None } => write!(f, " dev {name}")?,
            Target::Foreign(text) => write!(f, " {text}")?,
            Target::Throw | Target::Unreachable => {}
        }
        write!(f, " metric {}", self.metric)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spelled(f)?;
        write!(f, " protocol {PROTOCOL}")
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The link-local address that the kernel derives from this MAC (RFC 4291 appendix A, modified EUI-64).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect::<Result<_, _>>()
            .map_err(|_| format!("\"{text}\" is no MAC address"))?;
        Ok(Self(bytes.try_into().map_err(|_| format!("\"{text}\" is no MAC address"))?))
    }
}

/// The nftables families that tunjail uses (`NFPROTO_*`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    Inet,
    Bridge,
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

/// One nftables table: its family and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    pub family: TableFamily,
    pub name: String,
}

impl TableId {
    /// The jail's filter wall.
    pub fn wall(jail: &JailName) -> Self {
        Self { family: TableFamily::Inet, name: format!("tunjail_{jail}") }
    }

    /// The jail's guard on its members' bridge ports.
    pub fn guard(jail: &JailName) -> Self {
        Self { family: TableFamily::Bridge, name: format!("tunjail_{jail}") }
    }

    /// The lock inside a member's network namespace.
    pub fn lock() -> Self {
        Self { family: TableFamily::Inet, name: "tunjail".to_owned() }
    }

    /// What leads questions for names away from the engine's resolver, inside a member's network namespace.
    pub fn steering() -> Self {
        Self { family: TableFamily::Inet, name: "tunjail_dns".to_owned() }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A set or map that tunjail fills with elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// guard and wall: interface indexes of members' bridge ports.
    Ports,
    /// guard: index, MAC, IPv4 that a port may speak with.
    Own4,
    /// guard: index, MAC, IPv6 that a port may speak with.
    Own6,
    /// guard: index, MAC, IPv6 that a port may advertise as its own.
    Target6,
    /// wall: MAC, IPv4 of enrolled members.
    Members4,
    /// wall: MAC, IPv6 of enrolled members.
    Members6,
    /// wall, map: protocol and port at the exit to a member's IPv4 and port.
    Forward4,
    /// wall, map: the same to a member's IPv6 and port.
    Forward6,
    /// wall: protocol, port at the exit, a member's IPv4 and port that this one leads to.
    Forwarded4,
    /// wall: the same with a member's IPv6.
    Forwarded6,
    /// wall: protocol and port at the exit that leads to some member's IPv4.
    Taken4,
    /// wall: the same for IPv6.
    Taken6,
    /// lock: interface index and IPv4 that may emit.
    Out4,
    /// lock: interface index and IPv6 that may emit.
    Out6,
    /// lock: the engine's resolver, where it may be asked.
    Resolvers,
}

impl Set {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Own4 => "own4",
            Self::Own6 => "own6",
            Self::Target6 => "target6",
            Self::Members4 => "members4",
            Self::Members6 => "members6",
            Self::Forward4 => "forward4",
            Self::Forward6 => "forward6",
            Self::Forwarded4 => "forwarded4",
            Self::Forwarded6 => "forwarded6",
            Self::Taken4 => "taken4",
            Self::Taken6 => "taken6",
            Self::Out4 => "out4",
            Self::Out6 => "out6",
            Self::Resolvers => "resolvers",
        }
    }
}

/// One component of an element's key or value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Index(u32),
    Mac(Mac),
    Address(IpAddr),
    /// An IPv6 address in a key that nft knows as a plain 128-bit integer.
    Raw(Ipv6Addr),
    Protocol(Transport),
    /// A port's number.
    Number(u16),
}

/// An element of a set or map: which table and set, its key and, in a map, its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    pub table: TableId,
    pub set: Set,
    pub key: Vec<Part>,
    /// Empty in a set.
    pub value: Vec<Part>,
}

impl Element {
    pub fn key_bytes(&self) -> Vec<u8> {
        bytes(&self.key)
    }

    pub fn value_bytes(&self) -> Vec<u8> {
        bytes(&self.value)
    }
}

/// A key or value as nf_tables compares it: each component padded with zeroes to a multiple of 4 bytes
/// (`NFT_REG32_SIZE`), indexes in the host's byte order.
fn bytes(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(44);
    for part in parts {
        match part {
            Part::Index(index) => bytes.extend(index.to_ne_bytes()),
            Part::Mac(Mac(mac)) => bytes.extend(mac),
            Part::Address(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Part::Address(IpAddr::V6(address)) | Part::Raw(address) => bytes.extend(address.octets()),
            Part::Protocol(protocol) => bytes.push(protocol.number()),
            Part::Number(number) => bytes.extend(number.to_be_bytes()),
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A key or value as nft spells it.
fn text(parts: &[Part]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .map(|part| match part {
            Part::Index(index) => index.to_string(),
            Part::Mac(mac) => mac.to_string(),
            Part::Address(address) => address.to_string(),
            Part::Raw(address) => format!("{:#034x}", u128::from(*address)),
            Part::Protocol(protocol) => protocol.as_str().to_owned(),
            Part::Number(number) => number.to_string(),
        })
        .collect();
    parts.join(" . ")
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {{ {}", self.table, self.set.name(), text(&self.key))?;
        if !self.value.is_empty() {
            write!(f, " : {}", text(&self.value))?;
        }
        f.write_str(" }")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_padded_component_by_component() {
        let element = Element {
            table: TableId::guard(&"vpn".parse().unwrap()),
            set: Set::Own4,
            key: vec![
                Part::Index(7),
                Part::Mac(Mac([2, 0x42, 0xac, 0x12, 0, 2])),
                Part::Address("172.18.0.2".parse().unwrap()),
            ],
            value: vec![],
        };
        let mut expected = 7u32.to_ne_bytes().to_vec();
        expected.extend([2, 0x42, 0xac, 0x12, 0, 2, 0, 0, 172, 18, 0, 2]);
        assert_eq!(element.key_bytes(), expected);
        assert_eq!(element.to_string(), "bridge tunjail_vpn own4 { 7 . 02:42:ac:12:00:02 . 172.18.0.2 }");
    }

    #[test]
    fn the_link_local_address_is_the_kernels_eui64() {
        let mac = Mac::try_from("02:42:ac:12:00:02".to_owned()).unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::42:acff:fe12:2");
    }
}
