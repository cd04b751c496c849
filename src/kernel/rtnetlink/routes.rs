//! Routes, and where the kernel itself would send a packet.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use super::{KernelError, Rtnl, address_family};
use crate::model::facts::FibAnswer;
use crate::model::objects::{Family, PROTOCOL, Route, Target};

impl Rtnl {
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

pub(super) fn way_message(source: Option<IpAddr>, destination: IpAddr, iif: Option<u32>) -> RouteNetlinkMessage {
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

pub(super) fn fib_answer(request: &str, message: &RouteMessage) -> Result<FibAnswer, KernelError> {
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

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

pub(super) fn table_of(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| message.header.table.into())
}
