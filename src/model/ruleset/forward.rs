//! Ports of the exit that lead to members: in by the exit alone, and answered by it in its own name.

use super::super::objects::Family;
use super::{Chain, Scope, names, protocol, within};

/// A connection that came to a port of this host and was led on.
const LED_ON: &str = "ct status dnat";

/// What has ports that can lead to a member.
const TRANSPORT: &str = "meta l4proto { tcp, udp }";

impl Scope<'_> {
    /// Before an engine's own rules (-100): the first one that translates a connection's destination is the one.
    pub(super) fn ports_of_the_exit_lead_to_members(&self) -> Chain {
        let exits = names(&self.jail.exits);
        let lead = |family| {
            let (protocol, digit) = (protocol(family), digit(family));
            format!(
                "iifname {exits} fib daddr type local dnat {protocol} to meta l4proto . th dport map @forward{digit}"
            )
        };
        Chain {
            name: "forwards",
            hook: Some("type nat hook prerouting priority -101; policy accept;"),
            rules: self.families().map(lead).collect(),
        }
    }

    /// Whoever calls by an exit is answered by it: not by another one, in a wrong name, and not in an allowed net, in whose
    /// name he may only pretend to call.
    pub(super) fn calls_that_another_interface_would_answer_are_refused(&self) -> String {
        let exits = names(&self.jail.exits);
        format!("iifname {exits} ct direction original fib saddr . iif oif missing counter name rejected_in drop")
    }

    /// Only what came to the port of the exit that leads to this member and port: a packet that somebody sends to the
    /// member itself is none, nor is one that an engine's published port sent here. ICMP errors about such a connection
    /// (a packet that was too big) belong to it.
    pub(super) fn forwarded_ports_reach_members(&self) -> Vec<String> {
        let asks = format!("iifname {} ct direction original {LED_ON}", names(&self.jail.exits));
        let reach = |family| {
            let (protocol, digit) = (protocol(family), digit(family));
            // nft before 1.1 types the port of `ct original` by the protocols matched before it.
            format!(
                "{asks} {TRANSPORT} meta l4proto . ct original proto-dst . {protocol} daddr . th dport @forwarded{digit} accept"
            )
        };
        let mut rules: Vec<String> = self.families().map(reach).collect();
        rules.push(format!("{asks} ct state related meta l4proto {{ icmp, ipv6-icmp }} accept"));
        rules
    }

    /// With several exits, the one that takes over would carry answers in the name of the one that went: masquerading does
    /// not change the name of a connection that came in. After that (100).
    pub(super) fn members_answer_in_the_exits_own_name(&self) -> Vec<String> {
        let answer =
            |member| format!("ct direction reply {LED_ON} ct reply {member} fib saddr . oif type != local drop");
        self.by_family("saddr").map(answer).collect()
    }

    /// Masquerading keeps the port where it can, so whoever sent from a port that leads to another member would get what
    /// the peer sends there. It gets another port, of so many that chance hardly chooses one that leads somewhere too; the
    /// member itself keeps its own. Before an engine's own rules (100), and for members of all jails that may leave by these
    /// exits: only this table knows which ports lead somewhere.
    pub(super) fn nobody_leaves_from_a_port_of_another(&self) -> Chain {
        let exits = names(&self.jail.exits);
        let elsewhere = |(family, source)| {
            let (protocol, digit) = (protocol(family), digit(family));
            format!(
                "oifname {exits} {source} {TRANSPORT} meta l4proto . th sport @taken{digit} meta l4proto . th sport . {protocol} saddr . th sport != @forwarded{digit} masquerade to :1024-65535 fully-random"
            )
        };
        Chain {
            name: "elsewhere",
            hook: Some("type nat hook postrouting priority 99; policy accept;"),
            rules: self.sharers().map(elsewhere).collect(),
        }
    }

    /// Whatever translated it, and whatever port chance chose. What is sent once more gets another port.
    pub(super) fn nobody_takes_the_callers_of_another(&self) -> Vec<String> {
        let take = |(family, source): (Family, String)| {
            let (protocol, digit) = (protocol(family), digit(family));
            format!(
                "ct original {source} {TRANSPORT} meta l4proto . th sport @taken{digit} meta l4proto . th sport . ct original {protocol} saddr . ct original proto-src != @forwarded{digit} counter name rejected_out drop"
            )
        };
        self.sharers().map(take).collect()
    }

    /// The match of all that may leave by these exits, whatever jail it is in.
    fn sharers(&self) -> impl Iterator<Item = (Family, String)> + '_ {
        let nets = || self.jail.subnets.iter().chain(&self.jail.sharing);
        self.families().filter_map(move |family| Some((family, within(nets(), family, "saddr")?)))
    }

    /// The families that the jail has subnets of.
    fn families(&self) -> impl Iterator<Item = Family> + '_ {
        let has = |family: &Family| self.jail.subnets.iter().any(|net| Family::of_net(net) == *family);
        Family::BOTH.into_iter().filter(has)
    }
}

/// What the names of sets for one family end in.
fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}
