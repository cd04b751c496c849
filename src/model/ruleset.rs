//! The two nftables tables of a jail, as text for `nft -f`. One function per promise.
//!
//! Text, because it is what an administrator reads in `--dry-run` and compares with `nft list table`; and because one
//! `nft -f` run is one transaction, so that the old ruleset holds until the new one does.
//!
//! Kept to what nft 1.0.6 reads and prints, and to what needs no `meta ibrname` (a kernel option,
//! CONFIG_NFT_BRIDGE_META, that not every kernel has).

mod allow;
mod dns;
mod forward;
mod guard;
mod own_name;

use std::fmt::Write;

use ipnet::IpNet;

use self::allow::{an_allowed_net_reaches_members, errors_about_an_allowed_net_reach_members};
use self::guard::{a_port_speaks_as_itself, guard_hook};
use super::names::IfName;
use super::objects::{Element, Family, TableId};
use super::policy::{Dns, Jail, Port};

/// Chains and set declarations of a jail's tables, without any member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    wall: TableId,
    guard: TableId,
    text: String,
}

impl Ruleset {
    pub fn tables(&self) -> [&TableId; 2] {
        [&self.wall, &self.guard]
    }

    /// The script that replaces both tables in one transaction and fills them with `elements`.
    pub fn script(&self, elements: &[Element]) -> String {
        let mut script = String::new();
        for table in self.tables() {
            // `delete` fails on a table that is not there, so it is made first; `destroy` needs nft 1.0.7.
            let _ = writeln!(script, "add table {table}\ndelete table {table}");
        }
        script.push_str(&self.text);
        for element in elements {
            let _ = writeln!(script, "add element {element}");
        }
        script
    }

    /// The declarations alone; what the record keeps a digest of.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The ruleset of `jail`, whose members are ports of `bridge` once that exists.
pub fn of(jail: &Jail, bridge: Option<&IfName>) -> Ruleset {
    let wall = TableId::wall(&jail.name);
    let guard = TableId::guard(&jail.name);
    let scope = Scope { jail, bridge };
    let mut chains =
        vec![reject(), scope.what_leaves_the_jail(), scope.what_enters_the_jail(), scope.what_reaches_the_host()];
    chains.extend(scope.no_way_is_told_at_once());
    chains.extend([
        arrivals(),
        scope.segments_fit_the_exit(),
        scope.forward(),
        scope.input(),
        scope.nat(),
        scope.ports_of_the_exit_lead_to_members(),
        scope.nobody_leaves_from_a_port_of_another(),
        scope.what_begins_is_judged_by_its_port(),
        scope.everything_leaves_in_the_exits_own_name(),
    ]);
    chains.extend(scope.every_question_goes_to_the_servers());
    let mut text = String::new();
    table(
        &mut text,
        &wall,
        &[
            "counter rejected_out { }".to_owned(),
            "counter rejected_in { }".to_owned(),
            "counter rejected_host { }".to_owned(),
            "set ports { type iface_index; }".to_owned(),
            "set members4 { type ether_addr . ipv4_addr; counter; }".to_owned(),
            "set members6 { type ether_addr . ipv6_addr; counter; }".to_owned(),
            "map forward4 { type inet_proto . inet_service : ipv4_addr . inet_service; }".to_owned(),
            "map forward6 { type inet_proto . inet_service : ipv6_addr . inet_service; }".to_owned(),
            "set forwarded4 { type inet_proto . inet_service . ipv4_addr . inet_service; counter; }".to_owned(),
            "set forwarded6 { type inet_proto . inet_service . ipv6_addr . inet_service; counter; }".to_owned(),
            "set taken4 { type inet_proto . inet_service; }".to_owned(),
            "set taken6 { type inet_proto . inet_service; }".to_owned(),
        ],
        &chains,
    );
    table(
        &mut text,
        &guard,
        &[
            "counter forged { }".to_owned(),
            "set ports { type iface_index; }".to_owned(),
            "set own4 { type iface_index . ether_addr . ipv4_addr; counter; }".to_owned(),
            "set own6 { type iface_index . ether_addr . ipv6_addr; counter; }".to_owned(),
            "set target6 { typeof iif . ether saddr . @th,64,128; }".to_owned(),
        ],
        &[a_port_speaks_as_itself(), guard_hook()],
    );
    Ruleset { wall, guard, text }
}

/// A chain: its name, its hook line if it is a base chain, its rules.
struct Chain {
    name: &'static str,
    hook: Option<&'static str>,
    rules: Vec<String>,
}

fn table(text: &mut String, id: &TableId, objects: &[String], chains: &[Chain]) {
    let _ = writeln!(text, "table {id} {{");
    for object in objects {
        let _ = writeln!(text, "\t{object}");
    }
    for chain in chains {
        let _ = writeln!(text, "\tchain {} {{", chain.name);
        for rule in chain.hook.iter().copied().chain(chain.rules.iter().map(String::as_str)) {
            let _ = writeln!(text, "\t\t{rule}");
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
}

/// Tells the application at once, so that it neither hangs nor retries for minutes.
fn reject() -> Chain {
    Chain {
        name: "reject_now",
        hook: None,
        rules: vec![
            "meta l4proto tcp reject with tcp reset".to_owned(),
            "reject with icmpx admin-prohibited".to_owned(),
        ],
    }
}

/// Replies of connections that the other side opened. Never of ones that the sender opened itself: an established
/// flow is no reason to pass.
const REPLY: &str = "ct state established,related ct direction reply";

struct Scope<'a> {
    jail: &'a Jail,
    bridge: Option<&'a IfName>,
}

impl Scope<'_> {
    /// Every forwarded packet from or to the jail is judged, by the bridge it came in or goes out by and by its
    /// addresses: either is enough.
    fn forward(&self) -> Chain {
        let mut rules = vec!["tcp flags & (syn | rst) == syn jump clamp".to_owned()];
        rules.extend(self.most_packets_are_a_members_to_the_exit());
        rules.extend(self.or_replies_from_there());
        rules.extend(self.bridge.map(|bridge| format!("iifname \"{bridge}\" goto from_members")));
        rules.extend(self.by_family("saddr").map(|source| format!("{source} goto from_members")));
        rules.extend(self.bridge.map(|bridge| format!("oifname \"{bridge}\" goto to_members")));
        rules.extend(self.by_family("daddr").map(|destination| format!("{destination} goto to_members")));
        Chain { name: "forward", hook: Some("type filter hook forward priority -10; policy accept;"), rules }
    }

    /// What most packets are comes first: `from_members` would come to the same, later. Speed is all that this is for.
    fn most_packets_are_a_members_to_the_exit(&self) -> Vec<String> {
        if self.jail.enrolled_only {
            return Vec::new();
        }
        let exits = names(&self.jail.exits);
        let no_question = match self.jail.dns {
            Dns::Servers(_) => " th dport != 53",
            Dns::Engine | Dns::Block => "",
        };
        self.by_family("saddr").map(|source| format!("{source} oifname {exits}{no_question} accept")).collect()
    }

    /// As `to_members` has it; for whoever says that he is a member, `from_members` decides.
    fn or_replies_from_there(&self) -> Vec<String> {
        let Some(bridge) = self.bridge else { return Vec::new() };
        let exits = names(&self.jail.exits);
        self.by_family("saddr !=")
            .map(|stranger| format!("{stranger} oifname \"{bridge}\" iifname {exits} {REPLY} accept"))
            .collect()
    }

    /// A packet that the jail's table calls unreachable ends in the routing decision, before any forward hook, and the
    /// kernel's ICMP error for it is rate-limited (icmp_ratelimit, ip-sysctl): under load a new connection would hang.
    /// So its SYN is reset here. Nor is "no route" an error that a UDP socket hears of (icmp_err_convert,
    /// icmpv6_err_convert), so a first datagram is answered by one that it does. Established connections are left alone:
    /// they outlive a restart of the exit.
    fn no_way_is_told_at_once(&self) -> [Chain; 2] {
        let nowhere = "fib daddr type != local fib daddr oif missing counter name rejected_out";
        let no_route =
            "fib daddr type != { local, broadcast, multicast } fib daddr oif missing counter name rejected_out";
        let (mut segment, mut datagram) = (Vec::new(), Vec::new());
        for source in self.by_family("saddr") {
            let source = format!("iifname != \"lo\" {source}");
            if matches!(self.jail.dns, Dns::Servers(_)) {
                // From a bridge that calls iptables, a reset comes from the translated address, and is not believed
                // (nf_send_reset, past the hooks); an ICMP error is translated back.
                segment.push(format!("{source} ct status dnat {nowhere} reject with icmpx no-route"));
            }
            segment.push(format!("{source} {nowhere} reject with tcp reset"));
            datagram.push(format!("{source} {no_route} reject with icmpx admin-prohibited"));
        }
        [
            Chain { name: "first_segment", hook: None, rules: segment },
            Chain { name: "first_datagram", hook: None, rules: datagram },
        ]
    }

    fn what_leaves_the_jail(&self) -> Chain {
        let mut rules = Vec::new();
        if self.jail.enrolled_only {
            rules.extend(only_enrolled_members_speak("rejected_out"));
        }
        rules.extend(self.members_reach_each_other());
        rules.extend(self.no_other_server_is_asked());
        rules.extend(self.members_leave_by_the_exit());
        for allow in &self.jail.allow {
            rules.extend(self.members_reach_an_allowed_net(allow));
        }
        rules.push("counter name rejected_out goto reject_now".to_owned());
        Chain { name: "from_members", hook: None, rules }
    }

    fn what_enters_the_jail(&self) -> Chain {
        let exits = names(&self.jail.exits);
        let mut rules = Vec::new();
        rules.extend(self.what_is_for_members_goes_to_their_bridge());
        rules.push(format!("iifname {exits} {REPLY} accept"));
        rules.push(self.calls_that_another_interface_would_answer_are_refused());
        rules.extend(self.forwarded_ports_reach_members());
        for allow in &self.jail.allow {
            rules.extend(an_allowed_net_reaches_members(allow));
            rules.extend(errors_about_an_allowed_net_reach_members(allow));
        }
        rules.extend(self.callers_are_told_by_the_way_they_came());
        Chain { name: "to_members", hook: None, rules }
    }

    /// What is for a member is routed by the host's own table, and a route there that is narrower than the bridge's (an
    /// exit's server may push one with its client's old gateway as next hop) would lead answers out by the uplink.
    fn what_is_for_members_goes_to_their_bridge(&self) -> Option<String> {
        self.bridge.map(|bridge| format!("oifname != \"{bridge}\" counter name rejected_in drop"))
    }

    /// A reset speaks in the member's name, so it would ask the jail's table and leave by the exit, with the host's own
    /// address on it where a published port was called: only for an allowed net does that table lead back to the caller.
    /// An ICMP error is the host's own word and goes by the host's own route; about what the exit brought nothing is said,
    /// because that route is the uplink.
    fn callers_are_told_by_the_way_they_came(&self) -> Vec<String> {
        let count = "counter name rejected_in";
        let mut rules = vec![format!("iifname {} {count} drop", names(&self.jail.exits))];
        rules.extend(
            self.allowed_nets().iter().map(|net| format!("{} {count} goto reject_now", matches(*net, "saddr"))),
        );
        rules.push(format!("{count} reject with icmpx admin-prohibited"));
        rules
    }

    /// Frames between two ports pass the forward hook when br_netfilter is on. By both interfaces: whoever sends from
    /// elsewhere in a member's name is no member.
    fn members_reach_each_other(&self) -> Option<String> {
        self.bridge.map(|bridge| format!("iifname \"{bridge}\" oifname \"{bridge}\" accept"))
    }

    fn members_leave_by_the_exit(&self) -> Vec<String> {
        let exits = names(&self.jail.exits);
        self.by_family("saddr").map(|source| format!("oifname {exits} {source} accept")).collect()
    }

    /// The host's own services are closed to members: a proxy or a resolver there is a way round the exit.
    fn input(&self) -> Chain {
        let mut rules = Vec::new();
        rules.extend(self.bridge.map(|bridge| format!("iifname \"{bridge}\" goto to_host")));
        rules.extend(self.by_family("saddr").map(|source| format!("iifname != \"lo\" {source} goto to_host")));
        Chain { name: "input", hook: Some("type filter hook input priority -10; policy accept;"), rules }
    }

    fn what_reaches_the_host(&self) -> Chain {
        let mut rules = vec![
            format!("{REPLY} accept"),
            "icmp type echo-request accept".to_owned(),
            "icmpv6 type { echo-request, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report } accept".to_owned(),
        ];
        let open = [self.the_engines_resolver_is_asked(), self.ports_of_the_host_that_are_named()].concat();
        if self.jail.enrolled_only && !open.is_empty() {
            rules.extend(only_enrolled_members_speak("rejected_host"));
        }
        rules.extend(open);
        rules.push("counter name rejected_host goto reject_now".to_owned());
        Chain { name: "to_host", hook: None, rules }
    }

    /// For members' own addresses alone: what answers a made-up one is the host's own packet, and leaves by its uplink.
    fn ports_of_the_host_that_are_named(&self) -> Vec<String> {
        let sources: Vec<String> = self.by_family("saddr").collect();
        let ports = by_port(&self.jail.host, "dport");
        if self.jail.host.is_empty() {
            return Vec::new();
        }
        ports.flat_map(|port| sources.iter().map(move |source| format!("{source}{port} accept"))).collect()
    }

    /// Both directions: the SYN-ACK of a member that answers carries an MSS too.
    fn segments_fit_the_exit(&self) -> Chain {
        let exits = names(&self.jail.exits);
        let clamp = "tcp option maxseg size set rt mtu";
        let out = self.by_family("saddr").map(|source| format!("oifname {exits} {source} {clamp}"));
        let back = self.by_family("daddr").map(|destination| format!("iifname {exits} {destination} {clamp}"));
        Chain { name: "clamp", hook: None, rules: out.chain(back).collect() }
    }

    /// A NAT binding is made once for a connection: where an engine's own masquerade rule came first, this changes
    /// nothing; where no engine did it ("iptables": false, IPv6, bare runc), this does.
    fn nat(&self) -> Chain {
        let exits = names(&self.jail.exits);
        let mut rules: Vec<String> =
            self.by_family("saddr").map(|source| format!("oifname {exits} {source} masquerade")).collect();
        for allow in self.jail.allow.iter().filter(|allow| allow.direction.is_out()) {
            if let Some(source) = self.subnets_of(Family::of_net(&allow.net), "saddr") {
                rules.push(format!("{source} {} masquerade", matches(allow.net, "daddr")));
            }
        }
        Chain { name: "nat", hook: Some("type nat hook postrouting priority 100; policy accept;"), rules }
    }

    /// The match of the jail's subnets, once for each family that it has.
    fn by_family<'b>(&'b self, side: &'b str) -> impl Iterator<Item = String> + 'b {
        Family::BOTH.into_iter().filter_map(move |family| self.subnets_of(family, side))
    }

    fn subnets_of(&self, family: Family, side: &str) -> Option<String> {
        within(self.jail.subnets.iter(), family, side)
    }
}

/// The match of those of `nets` that are of a family.
fn within<'a>(nets: impl Iterator<Item = &'a IpNet>, family: Family, side: &str) -> Option<String> {
    let nets: Vec<String> = nets.filter(|net| Family::of_net(net) == family).map(IpNet::to_string).collect();
    let protocol = protocol(family);
    match nets.as_slice() {
        [] => None,
        [net] => Some(format!("{protocol} {side} {net}")),
        nets => Some(format!("{protocol} {side} {{ {} }}", nets.join(", "))),
    }
}

/// An address of the subnet that no hook enrolled gets nothing.
fn only_enrolled_members_speak(counter: &str) -> [String; 2] {
    [("ipv4", "ip", "members4"), ("ipv6", "ip6", "members6")].map(|(nfproto, protocol, members)| {
        let stranger = format!("meta nfproto {nfproto} ether saddr . {protocol} saddr != @{members}");
        format!("{stranger} counter name {counter} goto reject_now")
    })
}

/// One match per port, with a leading space; one empty match when every port is meant.
fn by_port<'a>(ports: &'a [Port], side: &'a str) -> Box<dyn Iterator<Item = String> + 'a> {
    if ports.is_empty() {
        return Box::new(std::iter::once(String::new()));
    }
    Box::new(ports.iter().map(move |port| format!(" {} {side} {}", port.protocol.as_str(), port.number)))
}

/// Before the routing decision, and the ICMP errors that it makes; after destination NAT (-100), whose target is what is
/// asked for.
fn arrivals() -> Chain {
    Chain {
        name: "arrivals",
        hook: Some("type filter hook prerouting priority -90; policy accept;"),
        rules: vec![
            a_port_speaks_to_the_bridge_alone(),
            // The route is looked up for the first packet of a flow alone: conntrack confirms what passes.
            "tcp flags & (fin | syn | rst | ack) == syn goto first_segment".to_owned(),
            "meta l4proto udp ct status ! confirmed goto first_datagram".to_owned(),
        ],
    }
}

/// Frames for 01:80:c2:00:00:0x (LLDP and the like, IEEE 802.1D table 7-10) are no bridge's to forward: br_handle_frame
/// hands them, and the IP packet that somebody put into one, to the host as if it came from a link of its own, past
/// every hook of the guard. Nothing else arrives so.
///
/// They are multicast; what came to the bridge itself need not be looked up.
fn a_port_speaks_to_the_bridge_alone() -> String {
    "meta pkttype != host iif @ports counter name rejected_host drop".to_owned()
}

fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn matches(net: IpNet, side: &str) -> String {
    format!("{} {side} {net}", protocol(Family::of_net(&net)))
}

/// `"tun0"` or `{ "tun0", "tun1" }`.
fn names(interfaces: &[IfName]) -> String {
    match interfaces {
        [one] => format!("\"{one}\""),
        many => format!("{{ {} }}", many.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")),
    }
}
