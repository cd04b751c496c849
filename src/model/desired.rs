//! What the kernel should hold for a jail and its members. Pure: the same input gives the same output, always.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::admit::Confirmed;
use super::facts::{ExitFacts, Surroundings};
use super::names::{IfName, JailName};
use super::objects::{
    ENGINES_RESOLVER, Element, FIRST_EXIT_METRIC, Family, LAST_METRIC, Part, RULE_PRIORITY, Route, Rule, Selector, Set,
    TableId, Target,
};
use super::policy::{Dns, Jail, Routes};
use super::ruleset;

/// A jail's wall: both layers, and the guard that its members' elements go into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wall {
    /// The number of the jail's routing table.
    pub table: u32,
    pub rules: Vec<Rule>,
    pub routes: Vec<Route>,
    /// Whose ways out its table holds: those of others are nobody's to judge there, or nobody's to be there.
    pub ways_out: Routes,
    pub ruleset: ruleset::Ruleset,
}

/// What the kernel should hold for `jail`, given its surroundings.
pub fn wall(jail: &Jail, table: u32, surroundings: &Surroundings) -> Wall {
    Wall {
        table,
        rules: every_packet_of_the_jail_asks_its_table(jail, table, surroundings),
        routes: routes(jail, surroundings),
        ways_out: jail.routes,
        ruleset: ruleset::of(jail, surroundings.bridge.as_ref()),
    }
}

/// That of the jail's rules: before any of others that would take its packets.
pub fn preference(surroundings: &Surroundings) -> u32 {
    surroundings.first_of_others.map_or(RULE_PRIORITY, |first| first - 1)
}

fn every_packet_of_the_jail_asks_its_table(jail: &Jail, table: u32, surroundings: &Surroundings) -> Vec<Rule> {
    let priority = preference(surroundings);
    let mut rules: Vec<Rule> =
        jail.subnets.iter().map(|net| Rule { selector: Selector::From(*net), table, priority }).collect();
    if let Some(bridge) = &surroundings.bridge {
        rules.extend(by_the_bridge(bridge, table, priority));
    }
    rules.sort();
    rules
}

/// Whatever source a packet claims to have.
pub(super) fn by_the_bridge(bridge: &IfName, table: u32, priority: u32) -> [Rule; 2] {
    Family::BOTH.map(|family| Rule { selector: Selector::Iif(family, bridge.clone()), table, priority })
}

fn routes(jail: &Jail, surroundings: &Surroundings) -> Vec<Route> {
    let mut routes = members_are_reached_by_the_bridge(jail, surroundings);
    routes.extend(allowed_nets_leave_by_the_hosts_own_route(jail));
    match jail.routes {
        Routes::Own => {
            routes.extend(
                Family::BOTH
                    .into_iter()
                    .flat_map(|family| everything_else_leaves_by_an_exit(jail, &surroundings.exits, family)),
            );
        }
        Routes::Foreign => {}
    }
    routes.extend(nothing_else_leaves());
    routes.sort();
    routes
}

fn members_are_reached_by_the_bridge(jail: &Jail, surroundings: &Surroundings) -> Vec<Route> {
    let Some(bridge) = &surroundings.bridge else { return Vec::new() };
    jail.subnets
        .iter()
        .map(|net| Route {
            destination: *net,
            target: Target::Dev { name: bridge.clone(), gateway: None },
            metric: FIRST_EXIT_METRIC,
        })
        .collect()
}

/// A `throw` route hands the packet on to the next ip rules, and so to the host's own table: the allowed net is
/// reached as the host itself reaches it at that moment, and no copy of a route can go stale here.
fn allowed_nets_leave_by_the_hosts_own_route(jail: &Jail) -> Vec<Route> {
    let mut nets: Vec<_> = jail.allow.iter().map(|allow| allow.net).collect();
    nets.sort();
    nets.dedup();
    nets.into_iter()
        .map(|destination| Route { destination, target: Target::Throw, metric: FIRST_EXIT_METRIC })
        .collect()
}

/// One default route for each exit that can carry the family, by its place in the list: when the first exit's route goes
/// with its interface, the kernel itself falls back to the next one, in that instant.
///
/// An interface that is up without a carrier keeps its route, and loses what is sent into it. So it comes after every
/// exit that has one.
fn everything_else_leaves_by_an_exit(jail: &Jail, exits: &[ExitFacts], family: Family) -> Vec<Route> {
    let ways: Vec<(usize, &ExitFacts, Target)> = jail
        .exits
        .iter()
        .enumerate()
        .filter_map(|(place, name)| {
            let exit = exits.iter().find(|exit| exit.link.name == name.as_str())?;
            Some((place, exit, way_out(jail, name, exit, family)?))
        })
        .collect();
    let some_have_a_carrier = ways.iter().any(|(_, exit, _)| exit.link.carrier);
    ways.into_iter()
        .map(|(place, exit, target)| {
            let place = match some_have_a_carrier && !exit.link.carrier {
                true => jail.exits.len() + place,
                false => place,
            };
            let metric = FIRST_EXIT_METRIC + u32::try_from(place).unwrap_or(u32::MAX - FIRST_EXIT_METRIC - 1);
            Route { destination: family.everything(), target, metric }
        })
        .collect()
}

/// `None`: the exit cannot carry the family now.
fn way_out(jail: &Jail, name: &IfName, exit: &ExitFacts, family: Family) -> Option<Target> {
    if !exit.link.up || !exit.has(family) {
        return None;
    }
    if exit.link.tunnel {
        return Some(Target::Dev { name: name.clone(), gateway: None });
    }
    // Without a next hop, an Ethernet exit would ask by ARP for every address of the internet; the kernel takes none that
    // is no neighbour.
    let gateway = next_hop(jail, exit, family)?;
    Some(Target::Dev { name: name.clone(), gateway: Some(gateway) })
}

/// The jail's next hop of this family for an exit that is no tunnel, if one of them is its neighbour.
pub fn next_hop(jail: &Jail, exit: &ExitFacts, family: Family) -> Option<IpAddr> {
    jail.gateways.iter().copied().find(|gateway| Family::of(*gateway) == family && exit.reaches(*gateway))
}

pub(super) fn nothing_else_leaves() -> [Route; 2] {
    Family::BOTH.map(|family| Route {
        destination: family.everything(),
        target: Target::Unreachable,
        metric: LAST_METRIC,
    })
}

/// The set elements that make a container a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// On its bridge ports: it speaks only with its own MAC and addresses.
    pub guard: Vec<Element>,
    /// In the wall: it is enrolled.
    pub membership: Vec<Element>,
    /// In its own namespace: the confirmed addresses may emit.
    pub lock: Vec<Element>,
}

/// What the kernel should hold for a member with these interfaces.
pub fn member(jail: &JailName, interfaces: &[Confirmed]) -> Member {
    Member {
        guard: interfaces.iter().flat_map(|interface| guard(jail, interface)).collect(),
        membership: interfaces.iter().flat_map(|interface| membership(jail, interface)).collect(),
        lock: interfaces.iter().flat_map(lock).collect(),
    }
}

/// IPv6's unspecified address is among a member's own, for duplicate address detection (RFC 4862); the guard's rules let
/// it through for that alone.
fn guard(jail: &JailName, interface: &Confirmed) -> Vec<Element> {
    let table = TableId::guard(jail);
    let mac = Part::Mac(interface.mac);
    let port = Part::Index(interface.port);
    let mut elements: Vec<Element> = is_judged(jail, interface.port).into();
    for address in own_addresses(interface).into_iter().chain([IpAddr::V6(Ipv6Addr::UNSPECIFIED)]) {
        let set = match address {
            IpAddr::V4(_) => Set::Own4,
            IpAddr::V6(_) => Set::Own6,
        };
        let key = vec![port.clone(), mac.clone(), Part::Address(address)];
        elements.push(Element { table: table.clone(), set, key, value: vec![] });
        if let IpAddr::V6(address) = address
            && !address.is_unspecified()
        {
            let key = vec![port.clone(), mac.clone(), Part::Raw(address)];
            elements.push(Element { table: table.clone(), set: Set::Target6, key, value: vec![] });
        }
    }
    elements
}

/// Bridge ports of a container that cannot be held: they are judged, and nothing is their own, so they may say nothing.
pub fn shut(jail: &JailName, ports: &[u32]) -> Vec<Element> {
    let judged = |port: &u32| is_judged(jail, *port);
    ports.iter().flat_map(judged).collect()
}

fn is_judged(jail: &JailName, port: u32) -> [Element; 2] {
    [TableId::guard(jail), TableId::wall(jail)].map(|table| Element {
        table,
        set: Set::Ports,
        key: vec![Part::Index(port)],
        value: vec![],
    })
}

fn membership(jail: &JailName, interface: &Confirmed) -> Vec<Element> {
    interface
        .addresses
        .iter()
        .map(|address| Element {
            table: TableId::wall(jail),
            set: match address {
                IpAddr::V4(_) => Set::Members4,
                IpAddr::V6(_) => Set::Members6,
            },
            key: vec![Part::Mac(interface.mac), Part::Address(*address)],
            value: vec![],
        })
        .collect()
}

fn lock(interface: &Confirmed) -> Vec<Element> {
    own_addresses(interface)
        .into_iter()
        .map(|address| Element {
            table: TableId::lock(),
            set: match address {
                IpAddr::V4(_) => Set::Out4,
                IpAddr::V6(_) => Set::Out6,
            },
            key: vec![Part::Index(interface.index), Part::Address(address)],
            value: vec![],
        })
        .collect()
}

/// How a member's own namespace leads questions to the engine's resolver elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steering {
    /// One of the jail's servers; on the host, every question is dealt to one of them anyway.
    pub server: Ipv4Addr,
    /// The member's own address, which asks instead of 127.0.0.1: what comes from there leaves no interface but `lo`.
    pub source: Ipv4Addr,
}

/// The engine's resolver as the jail wants it in a member's namespace: elements that open it in the lock, and what leads
/// its questions elsewhere. With neither, the lock refuses it.
pub fn resolver(dns: &Dns, interfaces: &[Confirmed]) -> (Vec<Element>, Option<Steering>) {
    let v4 = |address: &IpAddr| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    };
    match dns {
        Dns::Block => (Vec::new(), None),
        Dns::Engine => {
            let key = vec![Part::Address(ENGINES_RESOLVER.into())];
            (vec![Element { table: TableId::lock(), set: Set::Resolvers, key, value: vec![] }], None)
        }
        Dns::Servers(servers) => {
            let server = servers.iter().find_map(v4);
            let source = interfaces.iter().flat_map(|interface| &interface.addresses).find_map(v4);
            (Vec::new(), server.zip(source).map(|(server, source)| Steering { server, source }))
        }
    }
}

/// The confirmed addresses, the link-local ones that were seen, and the one that the kernel will make of the MAC when
/// the link comes up (it may not be there yet).
fn own_addresses(interface: &Confirmed) -> Vec<IpAddr> {
    let mut own = interface.addresses.clone();
    own.extend(&interface.link_local);
    own.push(interface.mac.link_local().into());
    own.sort();
    own.dedup();
    own
}
