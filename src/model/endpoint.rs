//! The way to a tunnel's other end, where the tunnel's own routes cover it: the transport would go into the tunnel that it
//! carries, and nothing would come out. The host then needs a route to the other end past the tunnel. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::IfName;
use super::objects::{Family, Route, Target};

/// The host's own table, `main` (`RT_TABLE_MAIN`, linux/rtnetlink.h).
pub const TABLE: u32 = 254;

/// The best that IPv6 has: 0 means 1024 there.
const METRIC: u32 = 1;

/// A next hop of the host that is not the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub interface: IfName,
    /// `None`: the interface needs none.
    pub gateway: Option<IpAddr>,
}

/// One endpoint of a tunnel, reached past it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: IpAddr,
    pub hop: Hop,
}

impl Endpoint {
    /// Its route in the host's own table.
    pub fn route(&self) -> Route {
        Route {
            destination: IpNet::from(self.address),
            target: Target::Dev { name: self.hop.interface.clone(), gateway: self.hop.gateway },
            metric: METRIC,
        }
    }
}

/// A default route of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    pub hop: Hop,
    pub metric: u32,
}

/// The next hop past `tunnel` among the host's own default routes: the one that was told, or else the best.
pub fn hop_past(tunnel: &IfName, family: Family, told: Option<IpAddr>, defaults: &[DefaultRoute]) -> Option<Hop> {
    let is_of_family = |hop: &Hop| hop.gateway.is_none_or(|gateway| Family::of(gateway) == family);
    let mut past: Vec<&DefaultRoute> =
        defaults.iter().filter(|route| route.hop.interface != *tunnel && is_of_family(&route.hop)).collect();
    past.sort_by_key(|route| (told.is_none() || route.hop.gateway != told, route.metric));
    past.first().map(|route| route.hop.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default(interface: &str, gateway: Option<&str>, metric: u32) -> DefaultRoute {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        DefaultRoute { hop: Hop { interface: interface.parse().unwrap(), gateway }, metric }
    }

    #[test]
    fn the_told_gateway_comes_before_the_best_metric_and_the_tunnel_never() {
        let routes = [
            default("tun0", None, 0),
            default("wlan0", Some("192.0.2.1"), 600),
            default("eth0", Some("192.168.178.1"), 100),
        ];
        let hop = |told: Option<&str>, routes: &[DefaultRoute]| {
            let told = told.map(|told| told.parse().unwrap());
            hop_past(&"tun0".parse().unwrap(), Family::V4, told, routes).map(|hop| hop.interface.to_string())
        };
        assert_eq!(hop(None, &routes).as_deref(), Some("eth0"));
        assert_eq!(hop(Some("192.0.2.1"), &routes).as_deref(), Some("wlan0"));
        assert_eq!(hop(Some("198.51.100.1"), &routes).as_deref(), Some("eth0"));
        assert_eq!(hop(None, &routes[..1]), None);
        assert_eq!(hop(None, &[default("ppp0", None, 0)]).as_deref(), Some("ppp0"));
        assert_eq!(hop(None, &[default("eth0", Some("fe80::1"), 0)]), None, "of the other family");
    }

    #[test]
    fn an_endpoint_is_a_host_route_of_tunjails_own() {
        let hop = Hop { interface: "eth0".parse().unwrap(), gateway: Some("192.168.178.1".parse().unwrap()) };
        let endpoint = Endpoint { address: "203.0.113.10".parse().unwrap(), hop };
        let line = "203.0.113.10/32 via 192.168.178.1 dev eth0 metric 1 protocol 116";
        assert_eq!(endpoint.route().to_string(), line);
    }
}
