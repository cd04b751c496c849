//! From what the file says to a [`Jail`]: everything that can be judged by looking at one jail alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::Spanned;

use super::error::{Fault, JailFault, Role};
use super::raw::{List, OneOrMany, RawAllow, RawAllowTable, RawForward, RawJail, TextOr};
use super::{At, Checked};
use crate::model::names::{IfName, JailName, shorten};
use crate::model::policy::{Allow, Direction, Dns, Forward, Jail, Port, Routes, overlap};

/// The shortest prefix of a net that a jail may hold or allow. `2000::/3` is the whole of today's IPv6 internet, and
/// two nets of prefix 1 are as good as a default route.
pub(super) const SHORTEST_PREFIX: u8 = 4;

const SUBNETS_EXAMPLE: &str = "subnets = [\"172.18.0.0/16\"]";
const EXIT_EXAMPLE: &str = "exit = \"tun0\"";
const ALLOW_EXAMPLE: &str = "{ net = \"192.0.2.5\", ports = [\"tcp/443\"] }";
const PORTS_EXAMPLE: &str = "ports = [\"tcp/443\"], or leave it out to allow every port";
const HOST_EXAMPLE: &str = "host = [\"udp/123\"], or leave it out to keep every port of the host closed";
const DNS_EXAMPLE: &str = "dns = [\"192.0.2.53\"]";
const FORWARD_EXAMPLE: &str = "forward = [\"tcp/51413\"], or leave it out to forward none";

/// Nets that no container's address lies in (RFC 6890's registry), and whether allowing them has no meaning either.
/// 169.254.0.0/16 may be allowed: clouds answer there.
const UNSUITABLE: [(IpNet, &str, bool); 9] = [
    (v4([0, 0, 0, 0], 8), "the unspecified address", true),
    (v4([127, 0, 0, 0], 8), "loopback", true),
    (v4([169, 254, 0, 0], 16), "link-local", false),
    (v4([224, 0, 0, 0], 4), "multicast", true),
    (v6(0, 128), "the unspecified address", true),
    (v6(1, 128), "loopback", true),
    (v6(0xffff << 32, 96), "IPv4-mapped addresses, which are written as IPv4", true),
    (v6(0xfe80 << 112, 10), "link-local", true),
    (v6(0xff00 << 112, 8), "multicast", true),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(bits: u128, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), prefix))
}

/// A fault and the byte it was found at; the jail's name is added on the way out.
type Found<T> = Result<T, (usize, JailFault)>;

/// Checks one jail; `heading` is where its name stands.
pub(super) fn check(heading: usize, name: JailName, raw: RawJail) -> Result<Checked, At> {
    checked(heading, &name, raw)
        .map_err(|(offset, fault)| At { offset, fault: Fault::Jail { jail: name, fault: Box::new(fault) } })
}

fn checked(heading: usize, name: &JailName, raw: RawJail) -> Found<Checked> {
    let missing = |key, example| (heading, JailFault::Missing { key, example });
    let subnets = subnets(&raw.subnets.ok_or_else(|| missing("subnets", SUBNETS_EXAMPLE))?)?;
    let (subnets_at, subnets): (Vec<usize>, Vec<IpNet>) = subnets.into_iter().unzip();
    let bridge_at = raw.bridge.as_ref().map_or(heading, |bridge| bridge.span().start);
    let bridge = raw.bridge.map(|bridge| interface("bridge", &bridge)).transpose()?;
    let exits = exits(&raw.exit.ok_or_else(|| missing("exit", EXIT_EXAMPLE))?, bridge.as_ref())?;
    let gateways = raw.gateway.map_or(Ok(Vec::new()), |raw| gateways(&raw, &subnets, exits.len()))?;
    if let Some(routes) = raw.routes.as_ref().filter(|routes| *routes.get_ref() == Routes::Foreign) {
        foreign_routes_are_somewhere(routes.span().start, raw.table.is_some(), !gateways.is_empty())?;
    }
    let allow = raw.allow.map_or(Ok(Vec::new()), |raw| allows(raw, &subnets))?;
    let dns = raw.dns.map_or(Ok(Dns::default()), |raw| dns(&raw, &subnets))?;
    let host = raw.host.map_or(Ok(Vec::new()), |raw| ports("host", HOST_EXAMPLE, &raw))?;
    let forward = raw.forward.map_or(Ok(Vec::new()), |raw| forwards(raw, &subnets))?;
    Ok(Checked {
        heading,
        subnets_at,
        bridge_at,
        table_at: raw.table.as_ref().map_or(heading, |table| table.span().start),
        jail: Jail {
            name: name.clone(),
            subnets,
            exits,
            sharing: Vec::new(),
            gateways,
            allow,
            dns,
            host,
            forward,
            bridge,
            table: raw.table.map(|table| table.into_inner().0),
            routes: raw.routes.map(Spanned::into_inner).unwrap_or_default(),
            enrolled_only: raw.enrolled_only,
        },
    })
}

fn subnets(raw: &List<String>) -> Found<Vec<(usize, IpNet)>> {
    if raw.items.is_empty() {
        return Err((raw.at, JailFault::Empty { key: "subnets", example: SUBNETS_EXAMPLE }));
    }
    each(&raw.items, |text| match text.parse::<IpAddr>() {
        Ok(address) => Err(JailFault::NoPrefix { address }),
        Err(_) => net(Role::Subnet, text),
    })
}

fn exits(raw: &OneOrMany, bridge: Option<&IfName>) -> Found<Vec<IfName>> {
    if raw.items.is_empty() {
        return Err((raw.at, JailFault::Empty { key: "exit", example: EXIT_EXAMPLE }));
    }
    let mut exits = Vec::with_capacity(raw.items.len());
    for item in &raw.items {
        let exit = interface("exit", item)?;
        let at = item.span().start;
        if bridge == Some(&exit) {
            return Err((at, JailFault::ExitIsBridge(exit)));
        }
        if exits.contains(&exit) {
            return Err((at, JailFault::ExitTwice(exit)));
        }
        exits.push(exit);
    }
    Ok(exits)
}

fn interface(key: &'static str, text: &Spanned<String>) -> Found<IfName> {
    let at = text.span().start;
    let name: IfName = text.get_ref().parse().map_err(|error| (at, JailFault::Interface { key, error }))?;
    if name.as_str() == "lo" {
        return Err((at, JailFault::Loopback(key)));
    }
    Ok(name)
}

/// One of each family for each exit; which one is whose is known when the exits have addresses.
fn gateways(raw: &OneOrMany, subnets: &[IpNet], exits: usize) -> Found<Vec<IpAddr>> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    for (at, gateway) in each(&raw.items, |text| gateway(text, subnets))? {
        let alike: Vec<IpAddr> =
            gateways.iter().copied().filter(|other| other.is_ipv4() == gateway.is_ipv4()).collect();
        if let Some(&first) = alike.first().filter(|_| alike.len() == exits || alike.contains(&gateway)) {
            return Err((at, JailFault::GatewayTwice { first, second: gateway }));
        }
        gateways.push(gateway);
    }
    Ok(gateways)
}

fn gateway(text: &str, subnets: &[IpNet]) -> Result<IpAddr, JailFault> {
    let gateway: IpAddr = text.parse().map_err(|_| JailFault::NotAnAddress(shorten(text)))?;
    let broadcast = gateway == IpAddr::V4(Ipv4Addr::BROADCAST);
    // A mapped address turns into an IPv4 one here, which has no meaning as an IPv6 next hop.
    let mapped = gateway.to_canonical() != gateway;
    if gateway.is_unspecified() || gateway.is_loopback() || gateway.is_multicast() || broadcast || mapped {
        return Err(JailFault::NoRouter(gateway));
    }
    match subnets.iter().find(|subnet| subnet.contains(&gateway)) {
        Some(&subnet) => Err(JailFault::GatewayInside { gateway, subnet }),
        None => Ok(gateway),
    }
}

fn allows(raw: List<RawAllow>, subnets: &[IpNet]) -> Found<Vec<Allow>> {
    raw.items
        .into_iter()
        .map(|item| {
            let at = item.span().start;
            match item.into_inner() {
                TextOr::Text(text) => Ok(Allow {
                    net: allowed_net(&text, subnets).map_err(|fault| (at, fault))?,
                    ports: Vec::new(),
                    direction: Direction::Both,
                }),
                TextOr::Table(table) => allow_table(at, table, subnets),
            }
        })
        .collect()
}

fn allow_table(at: usize, raw: RawAllowTable, subnets: &[IpNet]) -> Found<Allow> {
    let Some(net) = raw.net else {
        return Err((at, JailFault::Missing { key: "net of an allow table", example: ALLOW_EXAMPLE }));
    };
    let at = net.span().start;
    Ok(Allow {
        net: allowed_net(net.get_ref(), subnets).map_err(|fault| (at, fault))?,
        ports: raw.ports.map_or(Ok(Vec::new()), |raw| ports("ports", PORTS_EXAMPLE, &raw))?,
        direction: raw.direction,
    })
}

fn allowed_net(text: &str, subnets: &[IpNet]) -> Result<IpNet, JailFault> {
    let net = net(Role::Allow, text)?;
    match subnets.iter().find(|subnet| overlap(subnet, &net)) {
        Some(&subnet) => Err(JailFault::AllowsItself { net, subnet }),
        None => Ok(net),
    }
}

/// An empty list is refused, for it could be read as "no port" as well as "every port".
fn ports(key: &'static str, example: &'static str, raw: &List<String>) -> Found<Vec<Port>> {
    if raw.items.is_empty() {
        return Err((raw.at, JailFault::Empty { key, example }));
    }
    let mut ports = Vec::with_capacity(raw.items.len());
    for (at, port) in each(&raw.items, |text| text.parse::<Port>().map_err(JailFault::Port))? {
        if ports.contains(&port) {
            return Err((at, JailFault::PortTwice(port)));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn dns(raw: &OneOrMany, subnets: &[IpNet]) -> Found<Dns> {
    match raw.items.as_slice() {
        [] => return Err((raw.at, JailFault::Empty { key: "dns", example: DNS_EXAMPLE })),
        [word] if word.get_ref() == "engine" => return Ok(Dns::Engine),
        [word] if word.get_ref() == "block" => return Ok(Dns::Block),
        _ => {}
    }
    let mut servers = Vec::with_capacity(raw.items.len());
    for (at, server) in each(&raw.items, |text| dns_server(text, subnets))? {
        if servers.contains(&server) {
            return Err((at, JailFault::DnsTwice(server)));
        }
        servers.push(server);
    }
    Ok(Dns::Servers(servers))
}

fn dns_server(text: &str, subnets: &[IpNet]) -> Result<IpAddr, JailFault> {
    if matches!(text, "engine" | "block") {
        return Err(JailFault::DnsWordInList(text.to_owned()));
    }
    let server: IpAddr = text.parse().map_err(|_| JailFault::NotADnsServer(shorten(text)))?;
    let host = IpNet::from(server);
    // Link-local ones would need an interface, and are asked past any exit.
    let unsuitable = UNSUITABLE.iter().find(|(special, ..)| special.contains(&host));
    if let Some(&(_, what, _)) = unsuitable {
        return Err(JailFault::DnsUnsuitable { server, what });
    }
    if server == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(JailFault::DnsUnsuitable { server, what: "the broadcast address" });
    }
    match subnets.iter().find(|subnet| subnet.contains(&server)) {
        Some(&subnet) => Err(JailFault::DnsInside { server, subnet }),
        None => Ok(server),
    }
}

fn forwards(raw: List<RawForward>, subnets: &[IpNet]) -> Found<Vec<Forward>> {
    if raw.items.is_empty() {
        return Err((raw.at, JailFault::Empty { key: "forward", example: FORWARD_EXAMPLE }));
    }
    let mut forwards: Vec<Forward> = Vec::with_capacity(raw.items.len());
    for item in raw.items {
        let at = item.span().start;
        let forward = match item.into_inner() {
            TextOr::Text(text) => text.parse().map_err(|error| (at, JailFault::Port(error)))?,
            TextOr::Table(table) => {
                let port = &table.port;
                let forward: Forward =
                    port.get_ref().parse().map_err(|error| (port.span().start, JailFault::Port(error)))?;
                let to = forward_target(table.to.get_ref(), subnets).map_err(|fault| (table.to.span().start, fault))?;
                Forward { to: Some(to), ..forward }
            }
        };
        if forwards.iter().any(|other| other.port == forward.port) {
            return Err((at, JailFault::PortTwice(forward.port)));
        }
        forwards.push(forward);
    }
    Ok(forwards)
}

fn forward_target(text: &str, subnets: &[IpNet]) -> Result<IpAddr, JailFault> {
    let to: IpAddr = text.parse().map_err(|_| JailFault::NotAMember(shorten(text)))?;
    match subnets.iter().any(|subnet| subnet.contains(&to)) {
        true => Ok(to),
        false => Err(JailFault::ForwardOutside(to)),
    }
}

fn foreign_routes_are_somewhere(at: usize, has_table: bool, has_gateway: bool) -> Found<()> {
    match (has_table, has_gateway) {
        (false, _) => Err((at, JailFault::ForeignWithoutTable)),
        (true, true) => Err((at, JailFault::ForeignWithGateway)),
        (true, false) => Ok(()),
    }
}

/// Reads a net, or an address alone, and refuses what would hold or allow more than it seems to.
fn net(role: Role, text: &str) -> Result<IpNet, JailFault> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => text.parse::<IpAddr>().map_err(|_| JailFault::NotANet { role, text: shorten(text) })?.into(),
    };
    if net.addr() != net.network() {
        return Err(JailFault::HostBits { role, net });
    }
    if net.prefix_len() < SHORTEST_PREFIX {
        return Err(JailFault::TooWide { role, net });
    }
    let unsuitable = |(special, _, not_allowed): &&(IpNet, _, bool)| {
        (role == Role::Subnet || *not_allowed) && overlap(special, &net)
    };
    match UNSUITABLE.iter().find(unsuitable) {
        Some(&(_, what, _)) => Err(JailFault::Unsuitable { role, net, what }),
        None => Ok(net),
    }
}

fn each<T>(items: &[Spanned<String>], read: impl Fn(&str) -> Result<T, JailFault>) -> Found<Vec<(usize, T)>> {
    items
        .iter()
        .map(|item| {
            let at = item.span().start;
            read(item.get_ref()).map(|value| (at, value)).map_err(|fault| (at, fault))
        })
        .collect()
}
