//! Nets that a jail allows, each in its direction and by its ports.

use ipnet::IpNet;

use super::super::objects::Family;
use super::super::policy::Allow;
use super::{REPLY, Scope, by_port, matches};

impl Scope<'_> {
    pub(super) fn allowed_nets(&self) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> = self.jail.allow.iter().map(|allow| allow.net).collect();
        nets.sort();
        nets.dedup();
        nets
    }

    pub(super) fn members_reach_an_allowed_net(&self, allow: &Allow) -> Vec<String> {
        let Some(source) = self.subnets_of(Family::of_net(&allow.net), "saddr") else { return Vec::new() };
        let net = matches(allow.net, "daddr");
        let mut rules = Vec::new();
        if allow.direction.is_out() {
            rules.extend(by_port(&allow.ports, "dport").map(|port| format!("{source} {net}{port} accept")));
        }
        if allow.direction.is_in() {
            rules.extend(by_port(&allow.ports, "sport").map(|port| format!("{REPLY} {source} {net}{port} accept")));
            rules.push(format!("{} {source} {net} accept", icmp_error(allow.net)));
        }
        rules
    }
}

pub(super) fn an_allowed_net_reaches_members(allow: &Allow) -> Vec<String> {
    let net = matches(allow.net, "saddr");
    let mut rules = Vec::new();
    if allow.direction.is_in() {
        rules.extend(by_port(&allow.ports, "dport").map(|port| format!("{net}{port} accept")));
    }
    if allow.direction.is_out() {
        rules.extend(by_port(&allow.ports, "sport").map(|port| format!("{REPLY} {net}{port} accept")));
    }
    rules
}

/// "Too big", "unreachable" and the like: they carry no port of their own, and come from routers that may lie outside the
/// net. The connection that they quote has to be one with the net.
pub(super) fn errors_about_an_allowed_net_reach_members(allow: &Allow) -> Vec<String> {
    let error = icmp_error(allow.net);
    let mut rules = Vec::new();
    if allow.direction.is_out() {
        rules.push(format!("{error} ct direction reply {} accept", matches_connection(allow.net, "daddr")));
    }
    if allow.direction.is_in() {
        rules.push(format!("{error} ct direction original {} accept", matches_connection(allow.net, "saddr")));
    }
    rules
}

/// An ICMP error about a connection that is there. Named by protocol, because a helper's expectations are "related" too.
fn icmp_error(net: IpNet) -> &'static str {
    match Family::of_net(&net) {
        Family::V4 => "meta l4proto icmp ct state related",
        Family::V6 => "meta l4proto ipv6-icmp ct state related",
    }
}

/// By the addresses that the connection began with.
fn matches_connection(net: IpNet, side: &str) -> String {
    format!("ct original {}", matches(net, side))
}
