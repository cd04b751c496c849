//! The host's own ways: its default routes, and where the FIB sends what the host itself sends.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use nix::libc;

use super::routes::{fib_answer, ip, table_of, way_message};
use super::{Rtnl, address_family};
use crate::kernel::KernelError;
use crate::model::endpoint::{self, DefaultRoute, Hop};
use crate::model::facts::FibAnswer;
use crate::model::objects::Family;

impl Rtnl {
    /// The default routes of one family in the host's own table, those over several next hops left out.
    pub fn default_routes(&mut self, family: Family) -> Result<Vec<DefaultRoute>, KernelError> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(family);
        message.attributes.push(RouteAttribute::Table(endpoint::TABLE));
        let answers = match self.list("listing routes", RouteNetlinkMessage::GetRoute(message)) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            answers => answers?,
        };
        let mut found = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            let is_default = message.header.destination_prefix_length == 0 && message.header.kind == RouteType::Unicast;
            if !is_default || table_of(&message) != endpoint::TABLE {
                continue;
            }
            let (mut metric, mut oif, mut gateway) = (0, None, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Priority(value) => metric = *value,
                    RouteAttribute::Oif(index) => oif = Some(*index),
                    RouteAttribute::Gateway(address) => gateway = ip(address),
                    _ => {}
                }
            }
            let Some(index) = oif else { continue };
            if let Some(Ok(interface)) = self.name_of(index)?.map(|name| name.parse()) {
                found.push(DefaultRoute { hop: Hop { interface, gateway }, metric });
            }
        }
        Ok(found)
    }

    /// Asks the FIB where a packet of this host itself would go.
    pub fn own_way(&mut self, destination: IpAddr, source: Option<IpAddr>) -> Result<FibAnswer, KernelError> {
        let request = format!("asking for the host's own way to {destination}");
        match self.ask(&request, way_message(source, destination, None)) {
            Ok(answers) => match answers.into_iter().next() {
                Some(RouteNetlinkMessage::NewRoute(message)) => fib_answer(&request, &message),
                _ => Err(KernelError::answer(request, "no route in it")),
            },
            Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
                Ok(FibAnswer::Unreachable)
            }
            Err(error) => Err(error),
        }
    }
}
