//! Every way a configuration can be wrong, and the one line that says which, where and how to mend it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::model::names::{IfName, JailName, NameError};
use crate::model::policy::{Port, PortError};

/// Why a configuration was refused. Its text is always one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file itself, or the directory `jails.d`, cannot be used.
    #[error("{}: {fault}", show(path))]
    File { path: PathBuf, fault: FileFault },
    /// What stands in the file cannot be used.
    #[error("{}:{line}: {fault}", show(path))]
    Line {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        fault: Fault,
    },
}

/// Why a file is not read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    #[error(
        "no such file; create it with a line such as: jail.vpn = {{ subnets = [\"172.18.0.0/16\"], exit = \"tun0\" }}"
    )]
    Missing,
    #[error("cannot be opened: {}; {}", one_line(&.0.to_string()), mend_open(.0))]
    Open(io::Error),
    #[error("cannot be read: {}; check the disk it lies on", one_line(&.0.to_string()))]
    Read(io::Error),
    #[error("is a directory; name a file")]
    IsDirectory,
    #[error("is not a directory; remove it, or move it away")]
    NotDirectory,
    #[error("is not a regular file; name one")]
    NotRegular,
    #[error("is larger than {} KiB; split it into files in jails.d next to it", super::file::MAX_SIZE / 1024)]
    TooLarge,
    #[error("may be written by everyone; run: chmod o-w {}", show(.0))]
    WorldWritable(PathBuf),
    #[error("belongs to uid {uid}, who is neither root nor the user that runs tunjail; run: chown root {}", show(path))]
    Owner { path: PathBuf, uid: u32 },
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error("is not UTF-8; save the file as UTF-8")]
    NotUtf8,
    /// The TOML parser's own words.
    #[error("not valid TOML: {}; {}", .0, mend_syntax(.0))]
    Syntax(String),
    #[error(
        "unknown key \"{0}\"; a file holds jails, each under a heading such as [jail.vpn], and at most one [runtime]"
    )]
    UnknownKey(String),
    /// Of `[runtime]`, in the deserializer's words when the shape is wrong.
    #[error("runtime: {0}")]
    RuntimeShape(String),
    #[error("runtime: path \"{0}\" is not absolute; name the OCI runtime as in: path = \"/usr/bin/crun\"")]
    RuntimeNotAbsolute(String),
    #[error("runtime belongs into the main file; move it to {}", show(.0))]
    RuntimeMisplaced(PathBuf),
    #[error("jail is no value; give each jail a heading such as [jail.vpn]")]
    NoJails,
    #[error("{0}; rename the jail")]
    Name(NameError),
    #[error("jail.{jail}: {fault}")]
    Jail { jail: JailName, fault: Box<JailFault> },
}

/// What is wrong with a jail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JailFault {
    /// An unknown key or a value of the wrong type, in the deserializer's words, which name what it expected.
    #[error("{0}")]
    Shape(String),
    #[error("{key} is missing; add a line such as: {example}")]
    Missing { key: &'static str, example: &'static str },
    #[error("{key} is empty; write for example: {example}")]
    Empty { key: &'static str, example: &'static str },

    #[error("{role} \"{text}\" is not a net; write it as 172.18.0.0/16 or fd00:18::/64")]
    NotANet { role: Role, text: String },
    #[error("subnet \"{address}\" has no prefix length; write the whole net, or {address}/{bits} for this address alone",
        bits = if address.is_ipv4() { 32 } else { 128 })]
    NoPrefix { address: IpAddr },
    #[error("{role} \"{net}\" has host bits set; write {}", net.trunc())]
    HostBits { role: Role, net: IpNet },
    #[error("{role} {net} {}", too_wide(*.role))]
    TooWide { role: Role, net: IpNet },
    #[error("{role} {net} is or holds {what}; {}", unsuitable(*.role))]
    Unsuitable { role: Role, net: IpNet, what: &'static str },
    #[error("subnet {subnet} overlaps {other} of the same jail; keep the wider one")]
    OverlapsItself { subnet: IpNet, other: IpNet },
    #[error("subnet {subnet} overlaps {other} of jail.{jail} ({place}); give each address to one jail")]
    OverlapsJail { subnet: IpNet, other: IpNet, jail: JailName, place: String },
    #[error("allow {net} overlaps the jail's own subnet {subnet}; remove it: members reach each other anyway")]
    AllowsItself { net: IpNet, subnet: IpNet },

    #[error("{key}: {error}")]
    Interface { key: &'static str, error: NameError },
    #[error("{0} cannot be lo; name the interface that leads out of the host, or the containers' bridge")]
    Loopback(&'static str),
    #[error("exit {0} is named twice; name it once")]
    ExitTwice(IfName),
    #[error("exit {0} is the jail's own bridge; name the interface that leads out of the host, such as tun0")]
    ExitIsBridge(IfName),

    #[error("gateway \"{0}\" is not an address; write it as 192.0.2.1 or 2001:db8::1, without a prefix length")]
    NotAnAddress(String),
    #[error("gateway {0} is no router's own address; name the next hop that the exit's network gives")]
    NoRouter(IpAddr),
    #[error("gateway {gateway} lies in the jail's own subnet {subnet}; name the next hop on the exit's side")]
    GatewayInside { gateway: IpAddr, subnet: IpNet },
    #[error(
        "gateways {first} and {second} are of one family; name at most one IPv4 and one IPv6 gateway for each exit"
    )]
    GatewayTwice { first: IpAddr, second: IpAddr },

    #[error("{0}")]
    Port(PortError),
    #[error("port {0} is named twice; name it once")]
    PortTwice(Port),

    #[error(
        "dns \"{0}\" is not an address; list servers as in dns = [\"192.0.2.53\"], or write \"engine\" or \"block\""
    )]
    NotADnsServer(String),
    #[error("dns \"{0}\" stands alone, not in a list; write dns = \"{0}\", or list servers only")]
    DnsWordInList(String),
    #[error("dns server {server} is {what}; name one that is reached by the exit")]
    DnsUnsuitable { server: IpAddr, what: &'static str },
    #[error(
        "dns server {server} lies in the jail's own subnet {subnet}; name one that is reached by the exit, or leave dns out and let members ask it themselves"
    )]
    DnsInside { server: IpAddr, subnet: IpNet },
    #[error("dns server {0} is named twice; name it once")]
    DnsTwice(IpAddr),

    #[error("forward to \"{0}\" is not an address; name a member's, such as to = \"172.18.0.2\"")]
    NotAMember(String),
    #[error("forward to {0} leads out of the jail; name an address of its subnets")]
    ForwardOutside(IpAddr),

    #[error("routes = \"foreign\" needs the table that they stand in; add a line such as: table = 100")]
    ForeignWithoutTable,
    #[error("gateway has no meaning with routes = \"foreign\"; remove one of the two lines")]
    ForeignWithGateway,

    #[error("is defined already ({0}); rename or remove one of them")]
    DefinedTwice(String),
    #[error("table {number} belongs to jail.{jail} ({place}); choose another, or leave both out")]
    TableTaken { number: u32, jail: JailName, place: String },
    #[error("bridge {bridge} belongs to jail.{jail} ({place}); put the subnets of one bridge into one jail")]
    BridgeTaken { bridge: IfName, jail: JailName, place: String },
}

/// Which list a net stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Subnet,
    Allow,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Subnet => "subnet",
            Self::Allow => "allow",
        })
    }
}

fn too_wide(role: Role) -> &'static str {
    match role {
        Role::Subnet => "would hold the host's own addresses too; name the net of the containers' bridge",
        Role::Allow => {
            "would end the jail; list the nets that members need, such as \"192.168.178.0/24\"; to everywhere else they go by the exit"
        }
    }
}

fn unsuitable(role: Role) -> &'static str {
    match role {
        Role::Subnet => "name the net of the containers' bridge",
        Role::Allow => "remove it: packets to such addresses are never routed",
    }
}

fn mend_syntax(message: &str) -> &'static str {
    if message.starts_with("duplicate key") {
        "say it once"
    } else {
        "write text in quotes, lists in brackets, and each setting on a line of its own"
    }
}

fn mend_open(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run tunjail as root, or make the file readable for the user that runs it",
        io::ErrorKind::NotFound => "it was listed but leads nowhere: remove it, or mend the link",
        _ => "check the path",
    }
}

/// `path` without anything that could break the line.
pub(super) fn show(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}

/// `text` with control characters and line separators escaped, at most 400 characters of it.
pub(super) fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let mut line = String::with_capacity(text.len().min(LONGEST));
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}
