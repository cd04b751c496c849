//! Who answers members that ask for names, as far as the host decides it: port 53, and which servers it leads to.
//!
//! The engine's resolver in a member's own namespace is the lock's matter: see `desired::resolver`.

use std::net::IpAddr;

use super::super::objects::Family;
use super::super::policy::Dns;
use super::{Chain, Scope, protocol};

/// UDP and TCP: a long answer is asked for again by TCP (RFC 7766).
const ASKS_FOR_A_NAME: &str = "meta l4proto { tcp, udp } th dport 53";

impl Scope<'_> {
    /// Whoever a member asks for a name, the answer comes from the jail's servers: the bridge's gateway, where Podman's
    /// resolver listens, and every other address lead to them. In turn, where there are several.
    ///
    /// Before what engines translate in prerouting (-100): a connection is translated once.
    pub(super) fn every_question_goes_to_the_servers(&self) -> Vec<Chain> {
        let Dns::Servers(servers) = &self.jail.dns else { return Vec::new() };
        let mut hook = Vec::new();
        hook.extend(self.bridge.map(|bridge| format!("iifname \"{bridge}\" goto dns_servers")));
        hook.extend(self.by_family("saddr").map(|source| format!("iifname != \"lo\" {source} goto dns_servers")));
        // A sibling that serves names is asked over the bridge, which the host may not even see; the gateway is none.
        let mut rules: Vec<String> =
            self.by_family("daddr").map(|sibling| format!("{sibling} fib daddr type != local return")).collect();
        for (family, servers) in by_family(servers) {
            let protocol = protocol(family);
            let target = match servers.as_slice() {
                [] => continue,
                [one] => one.to_string(),
                many => format!("numgen inc mod {} map {{ {} }}", many.len(), numbered(many)),
            };
            rules.push(format!("meta nfproto {} {ASKS_FOR_A_NAME} dnat {protocol} to {target}", nfproto(family)));
        }
        vec![
            Chain { name: "dns_servers", hook: None, rules },
            Chain { name: "dns", hook: Some("type nat hook prerouting priority -110; policy accept;"), rules: hook },
        ]
    }

    /// A question that was not translated (a family without a server, a packet that belongs to no connection) goes to no
    /// other server: not to one in an allowed net, and not by the exit.
    pub(super) fn no_other_server_is_asked(&self) -> Vec<String> {
        let Dns::Servers(servers) = &self.jail.dns else { return Vec::new() };
        by_family(servers)
            .map(|(family, servers)| {
                let list = servers.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
                let others = match servers.len() {
                    0 => String::new(),
                    1 => format!(" {} daddr != {list}", protocol(family)),
                    _ => format!(" {} daddr != {{ {list} }}", protocol(family)),
                };
                let question = format!("meta nfproto {} {ASKS_FOR_A_NAME}{others}", nfproto(family));
                format!("{question} counter name rejected_out goto reject_now")
            })
            .into()
    }

    /// The engine's resolver listens on the bridge's own addresses.
    pub(super) fn the_engines_resolver_is_asked(&self) -> Vec<String> {
        if self.jail.dns != Dns::Engine {
            return Vec::new();
        }
        let both = |family| Some((self.subnets_of(family, "saddr")?, self.subnets_of(family, "daddr")?));
        Family::BOTH
            .into_iter()
            .filter_map(both)
            .map(|(source, gateway)| format!("{source} {gateway} {ASKS_FOR_A_NAME} accept"))
            .collect()
    }
}

fn by_family(servers: &[IpAddr]) -> [(Family, Vec<IpAddr>); 2] {
    Family::BOTH
        .map(|family| (family, servers.iter().copied().filter(|server| Family::of(*server) == family).collect()))
}

fn numbered(servers: &[IpAddr]) -> String {
    servers.iter().enumerate().map(|(n, server)| format!("{n} : {server}")).collect::<Vec<_>>().join(", ")
}

fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}
