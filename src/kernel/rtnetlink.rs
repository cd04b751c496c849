//! Links, addresses, rules and routes, over rtnetlink. The socket belongs to the namespace it was opened in.

mod others;
mod own;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::KernelError;
use super::netlink::Connection;
use crate::model::facts::{Address, FibAnswer, HostNet, Link};
use crate::model::names::IfName;
use crate::model::objects::{Family, Mac, PROTOCOL, Route, Rule, Selector, Target};

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

    /// Every route in `table`, of both families, tunjail's own and others'.
    pub fn routes(&mut self, table: u32) -> Result<Vec<Route>, KernelError> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let mut message = RouteMessage::default();
            message.header.address_family = address_family(family);
            message.attributes.push(RouteAttribute::Table(table));
            match self.list("listing routes", RouteNetlinkMessage::GetRoute(message)) {
                Ok(answers) => found.extend(answers.into_iter().filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(message) if table_of(&message) == table => Some((family, message)),
                    _ => None,
                })),
                // With strict checking, a table that never held a route is an error, not an empty list.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let mut routes = Vec::new();
        for (family, message) in found {
            routes.push(self.route_from(family, &message)?);
        }
        routes.sort();
        Ok(routes)
    }

    /// The interfaces, by index, that default routes of the host's main table leave by.
    pub fn default_interfaces(&mut self) -> Result<Vec<u32>, KernelError> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let mut message = RouteMessage::default();
            message.header.address_family = address_family(family);
            message.attributes.push(RouteAttribute::Table(libc::RT_TABLE_MAIN.into()));
            for answer in self.list("listing the host's routes", RouteNetlinkMessage::GetRoute(message))? {
                if let RouteNetlinkMessage::NewRoute(route) = answer
                    && route.header.destination_prefix_length == 0
                {
                    found.extend(route.attributes.iter().flat_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => vec![*index],
                        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
                        _ => Vec::new(),
                    }));
                }
            }
        }
        Ok(found)
    }

    fn route_from(&mut self, family: Family, message: &RouteMessage) -> Result<Route, KernelError> {
        let (mut destination, mut metric, mut oif, mut gateway) = (family.everything().addr(), 0, None, None);
        let mut foreign = message.header.protocol != RouteProtocol::from(PROTOCOL);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address).unwrap_or(destination),
                RouteAttribute::Priority(value) => metric = *value,
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => foreign = true,
                _ => {}
            }
        }
        // The kernel says "dev lo" with an IPv6 route that leads nowhere.
        let name = match oif.filter(|_| foreign || message.header.kind == RouteType::Unicast) {
            Some(index) => self.name_of(index)?,
            None => None,
        };
        let target = match (message.header.kind, name.as_deref().map(str::parse)) {
            _ if foreign => Target::Foreign(format!(
                "dev {} proto {}",
                name.as_deref().unwrap_or("-"),
                u8::from(message.header.protocol)
            )),
            (RouteType::Throw, _) => Target::Throw,
            (RouteType::Unreachable, _) => Target::Unreachable,
            (RouteType::Unicast, Some(Ok(name))) => Target::Dev { name, gateway },
            (kind, _) => Target::Foreign(format!("dev {} type {}", name.as_deref().unwrap_or("-"), u8::from(kind))),
        };
        let destination = IpNet::new(destination, message.header.destination_prefix_length)
            .map_err(|error| KernelError::answer("listing routes", error))?;
        Ok(Route { destination, target, metric })
    }

    pub fn add_route(&mut self, table: u32, route: &Route) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::NewRoute(self.route_message(table, route)?);
        self.change(&format!("adding route \"{route}\" to table {table}"), message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Has whoever asks `destination`, an address of the loopback interface, do so as `source`, which has to be an
    /// address of this namespace; the route goes with it.
    pub fn loop_back_as(&mut self, destination: Ipv4Addr, source: Ipv4Addr) -> Result<(), KernelError> {
        /// In every network namespace (include/net/flow.h).
        const LOOPBACK_IFINDEX: u32 = 1;
        let request = format!("adding route \"local {destination} dev lo src {source}\"");
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        message.header.scope = RouteScope::Host;
        message.header.kind = RouteType::Local;
        message.header.table = libc::RT_TABLE_LOCAL;
        message.attributes.extend([
            RouteAttribute::Destination(RouteAddress::Inet(destination)),
            RouteAttribute::Oif(LOOPBACK_IFINDEX),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)),
        ]);
        self.change(&request, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    pub fn delete_route(&mut self, table: u32, route: &Route) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::DelRoute(self.route_message(table, route)?);
        let request = format!("removing route \"{route}\" from table {table}");
        match self.change(&request, message, 0) {
            // It went with its interface between the list and now.
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    fn route_message(&mut self, table: u32, route: &Route) -> Result<RouteMessage, KernelError> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(route.family());
        message.header.destination_prefix_length = route.destination.prefix_len();
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        // Numbers above 255 stand in RTA_TABLE alone (linux/rtnetlink.h, RT_TABLE_COMPAT).
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes.push(RouteAttribute::Table(table));
        message.attributes.push(RouteAttribute::Priority(route.metric));
        if route.destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
        }
        match &route.target {
            Target::Throw => message.header.kind = RouteType::Throw,
            Target::Unreachable => message.header.kind = RouteType::Unreachable,
            Target::Dev { name, gateway } => {
                let request = format!("looking up interface {name} for route \"{route}\"");
                let Some(link) = self.link_by_name(name)? else {
                    return Err(KernelError::answer(request, "no such interface"));
                };
                message.attributes.push(RouteAttribute::Oif(link.index));
                match gateway {
                    Some(gateway) => message.attributes.push(RouteAttribute::Gateway((*gateway).into())),
                    None if route.family() == Family::V4 => message.header.scope = RouteScope::Link,
                    None => {}
                }
            }
            Target::Foreign(text) => {
                return Err(KernelError::answer("building a route", format!("{text} is not tunjail's")));
            }
        }
        Ok(message)
    }

    /// Asks the FIB where packets from a source to a destination, come in by interface `iif`, would go.
    pub fn ways(&mut self, pairs: &[(IpAddr, IpAddr)], iif: u32) -> Result<Vec<FibAnswer>, KernelError> {
        let messages =
            pairs.iter().map(|(source, destination)| way_message(Some(*source), *destination, Some(iif))).collect();
        let answers = self.connection.ask_each("asking for the members' way", messages)?;
        let mut found = Vec::new();
        for ((source, destination), answer) in pairs.iter().zip(answers) {
            let request = format!("asking for the way from {source} to {destination}");
            found.push(match answer {
                Ok(answers) => match answers.into_iter().next() {
                    Some(RouteNetlinkMessage::NewRoute(message)) => fib_answer(&request, &message)?,
                    _ => return Err(KernelError::answer(request, "no route in it")),
                },
                Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
                    FibAnswer::Unreachable
                }
                Err(error) => return Err(error),
            });
        }
        Ok(found)
    }
}

fn way_message(source: Option<IpAddr>, destination: IpAddr, iif: Option<u32>) -> RouteNetlinkMessage {
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(destination));
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    if let Some(source) = source {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    message.attributes.extend(iif.map(RouteAttribute::Iif));
    RouteNetlinkMessage::GetRoute(message)
}

fn fib_answer(request: &str, message: &RouteMessage) -> Result<FibAnswer, KernelError> {
    match message.header.kind {
        RouteType::Unreachable => return Ok(FibAnswer::Unreachable),
        RouteType::Local => return Ok(FibAnswer::Local),
        _ => {}
    }
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(FibAnswer::Out(*index)),
            _ => None,
        })
        .ok_or_else(|| KernelError::answer(request, "no interface in it"))
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

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn table_of(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| message.header.table.into())
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
