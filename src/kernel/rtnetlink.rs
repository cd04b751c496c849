//! Links, addresses, rules and routes, over rtnetlink. The socket belongs to the namespace it was opened in.

mod others;
mod own;
mod routes;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteHeader, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::KernelError;
use super::netlink::Connection;
use crate::model::facts::{Address, HostNet, Link};
use crate::model::names::IfName;
use crate::model::objects::{Family, Mac, PROTOCOL, Rule, Selector};

/// An rtnetlink connection to the namespace of the thread that opened it.
pub struct Rtnl {
    connection: Connection,
    /// Names of interfaces that were looked up: for a route, each is asked for once.
    names: HashMap<u32, String>,
}

impl Rtnl {
    /// Strict: the kernel filters lists itself and refuses what it does not know (`NETLINK_GET_STRICT_CHK`).
    pub fn open() -> Result<Self, KernelError> {
        let failed = |error| KernelError::io("opening an rtnetlink socket", error);
        let connection = Connection::open(NETLINK_ROUTE).map_err(failed)?;
        connection.be_strict().map_err(failed)?;
        Ok(Self { connection, names: HashMap::new() })
    }

    fn ask(&mut self, request: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.connection.ask(request, message, 0)
    }

    fn list(&mut self, request: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.connection.list(request, &message)
    }

    fn change(&mut self, request: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), KernelError> {
        self.connection.ask::<_, RouteNetlinkMessage>(request, message, flags).map(drop)
    }

    /// Every interface of this namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let answers = self.list("listing interfaces", RouteNetlinkMessage::GetLink(link_message()))?;
        Ok(answers.into_iter().filter_map(link_in).collect())
    }

    pub fn link_by_name(&mut self, name: &IfName) -> Result<Option<Link>, KernelError> {
        let mut message = link_message();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        self.link(&format!("looking up interface {name}"), message)
    }

    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, KernelError> {
        let mut message = link_message();
        message.header.index = index;
        self.link(&format!("looking up interface {index}"), message)
    }

    fn link(&mut self, request: &str, message: LinkMessage) -> Result<Option<Link>, KernelError> {
        match self.ask(request, RouteNetlinkMessage::GetLink(message)) {
            Ok(answers) => {
                let link = answers.into_iter().find_map(link_in);
                if let Some(link) = &link {
                    self.names.insert(link.index, link.name.clone());
                }
                Ok(link)
            }
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn name_of(&mut self, index: u32) -> Result<Option<String>, KernelError> {
        if let Some(name) = self.names.get(&index) {
            return Ok(Some(name.clone()));
        }
        Ok(self.link_by_index(index)?.map(|link| link.name))
    }

    /// Every address of this namespace, or of one interface.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, KernelError> {
        Ok(self.list_addresses(index)?.into_iter().filter_map(address_in).collect())
    }

    /// The addresses of an interface that a packet may have as its source. One whose uniqueness is not proved yet may not be
    /// used (RFC 4862, section 5.4), and where there is nothing to prove, as on a tunnel, that still takes until a work
    /// queue has its turn (net/ipv6/addrconf.c, addrconf_dad_start).
    pub fn sources(&mut self, index: u32) -> Result<Vec<Address>, KernelError> {
        let answers = self.list_addresses(Some(index))?;
        Ok(answers.into_iter().filter(|answer| !is_tentative(answer)).filter_map(address_in).collect())
    }

    /// Whether an interface has an address that is no source yet.
    pub fn has_tentative(&mut self, index: u32) -> Result<bool, KernelError> {
        Ok(self.list_addresses(Some(index))?.iter().any(is_tentative))
    }

    fn list_addresses(&mut self, index: Option<u32>) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        match self.list("listing addresses", RouteNetlinkMessage::GetAddress(message)) {
            Ok(answers) => Ok(answers),
            Err(error) if index.is_some() && error.errno() == Some(libc::ENODEV) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// How this namespace numbers another one (`RTM_GETNSID`); `None` when it knows it not.
    pub fn number_of(&mut self, netns: impl AsFd) -> Result<Option<i32>, KernelError> {
        let request = "asking for a namespace's number";
        let mut message = NsidMessage::default();
        let fd = netns.as_fd().as_raw_fd();
        message.attributes.push(NsidAttribute::Fd(fd.try_into().map_err(|_| KernelError::answer(request, "bad fd"))?));
        let answers = self.ask(request, RouteNetlinkMessage::GetNsId(message))?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            }),
            _ => None,
        }))
    }

    /// The nets of this host: what its interfaces' addresses span.
    pub fn nets(&mut self) -> Result<Vec<HostNet>, KernelError> {
        let names: Vec<(u32, String)> = self.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let addresses = self.addresses(None)?;
        Ok(addresses
            .iter()
            .filter(|address| !address.is_link_local())
            .filter_map(|address| {
                let net = IpNet::new(address.address, address.prefix_len).ok()?.trunc();
                let (_, interface) = names.iter().find(|(index, _)| *index == address.index)?;
                Some(HostNet { net, interface: interface.clone() })
            })
            .collect())
    }

    /// tunjail's rules that look up `table`.
    pub fn rules(&mut self, table: u32) -> Result<Vec<Rule>, KernelError> {
        // No family: the kernel lists every family's.
        let answers = self.list("listing ip rules", RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
        Ok(rules_in(answers, table))
    }

    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::NewRule(rule_message(rule));
        self.change(&format!("adding ip rule \"{rule}\""), message, NLM_F_CREATE | NLM_F_EXCL)
    }

    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), KernelError> {
        self.change(&format!("removing ip rule \"{rule}\""), RouteNetlinkMessage::DelRule(rule_message(rule)), 0)
    }
}

/// Asks for interfaces without their statistics, which are most of an answer.
fn link_message() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn link_in(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mac: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp | LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        tunnel: flags.intersects(LinkFlags::Pointopoint | LinkFlags::Noarp),
        peer: None,
        peer_netns: None,
        master: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

fn is_tentative(answer: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return false };
    let flags = message.header.flags;
    // An optimistic one may be used meanwhile (RFC 4429).
    flags.contains(AddressHeaderFlags::Tentative) && !flags.contains(AddressHeaderFlags::Optimistic)
}

fn address_in(answer: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    // On a point-to-point interface IFA_ADDRESS is the peer's and IFA_LOCAL one's own (linux/if_addr.h).
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let peer = find(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(peer)?;
    let peer = peer.unwrap_or(address);
    Some(Address { index: message.header.index, address, peer, prefix_len: message.header.prefix_len })
}

fn rules_in(answers: Vec<RouteNetlinkMessage>, table: u32) -> Vec<Rule> {
    let mut rules: Vec<Rule> = answers.into_iter().filter_map(rule_in).collect();
    rules.retain(|rule| rule.table == table);
    rules.sort();
    rules
}

fn rule_in(answer: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = answer else { return None };
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let (mut source, mut iif, mut table, mut ours, mut priority) =
        (None, None, u32::from(message.header.table), false, 0);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(address),
            RuleAttribute::Iifname(name) => iif = name.parse().ok(),
            RuleAttribute::Table(number) => table = number,
            RuleAttribute::Protocol(protocol) => ours = protocol == RouteProtocol::from(PROTOCOL),
            RuleAttribute::Priority(number) => priority = number,
            _ => {}
        }
    }
    if !ours || message.header.action != RuleAction::ToTable {
        return None;
    }
    let selector = match (source, iif) {
        (Some(address), None) => Selector::From(IpNet::new(address, message.header.src_len).ok()?),
        (None, Some(name)) => Selector::Iif(family, name),
        _ => return None,
    };
    Some(Rule { selector, table, priority })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family());
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    match &rule.selector {
        Selector::From(net) => {
            message.header.src_len = net.prefix_len();
            message.attributes.push(RuleAttribute::Source(net.addr()));
        }
        Selector::Iif(_, name) => message.attributes.push(RuleAttribute::Iifname(name.to_string())),
    }
    message
}
