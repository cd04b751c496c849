//! The model's cases: every rendered ruleset, route and plan is a snapshot, every refusal a line.
#![allow(clippy::unwrap_used, reason = "a test that cannot parse its own input has failed")]

use std::collections::HashMap;
use std::path::Path;

use insta::assert_snapshot;

use super::admit::{self, Confirmed, Refusal};
use super::conflict::{self, Catches};
use super::desired::{self, Steering};
use super::facts::{
    Address, ExitFacts, FibAnswer, Fingerprint, HostNet, Link, NetnsFacts, NetnsId, OtherRule, Surroundings, Tables,
    WallFacts,
};
use super::objects::{Family, Mac, Route, Target};
use super::plan::{self, PlanError};
use super::policy::Jail;
use super::verify::{self, Mismatch};
use crate::config::Config;

mod exits;

fn jail(body: &str) -> Jail {
    let text = format!("[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\n{body}\n");
    Config::parse(Path::new("test.toml"), &text).unwrap().jails.remove(0)
}

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: Some(kind.to_owned()),
        mac: Some(Mac([2, 0x42, 0xac, 0x12, 0, 2])),
        up: true,
        carrier: true,
        loopback: false,
        tunnel: kind == "tun",
        peer: None,
        peer_netns: None,
        master: None,
    }
}

fn exit(index: u32, name: &str, v4: bool, v6: bool) -> ExitFacts {
    ExitFacts { link: link(index, name, "tun"), v4, v6, nets: Vec::new() }
}

/// eth1, whose neighbours are in these nets.
fn nic(nets: &[&str]) -> ExitFacts {
    let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
    ExitFacts { link: link(6, "eth1", "physical"), v4: true, v6: true, nets }
}

fn surroundings(exits: Vec<ExitFacts>) -> Surroundings {
    Surroundings { exits, bridge: Some("vpn".parse().unwrap()), first_of_others: None }
}

fn member() -> Confirmed {
    Confirmed {
        name: "eth0".parse().unwrap(),
        index: 2,
        mac: Mac([2, 0x42, 0xac, 0x12, 0, 2]),
        addresses: vec!["172.18.0.2".parse().unwrap(), "fd00:18::2".parse().unwrap()],
        link_local: vec![],
        port: 7,
        port_name: "veth7".parse().unwrap(),
    }
}

/// Everything that `up` would do on a bare host, as lines.
fn raised(jail: &Jail, surroundings: &Surroundings) -> String {
    let wall = desired::wall(jail, 7400, surroundings);
    let script = wall.ruleset.script(&[]);
    plan::lines(&plan::raise(&jail.name, &WallFacts::default(), &wall, Some(script)).unwrap(), "")
}

#[test]
fn a_plain_jail() {
    assert_snapshot!(raised(&jail("exit = \"tun0\""), &surroundings(vec![exit(5, "tun0", true, true)])));
}

#[test]
fn a_jail_with_everything() {
    let jail = jail(
        "exit = [\"tun0\", \"eth1\"]\ngateway = [\"192.0.2.1\", \"2001:db8::1\"]\nenrolled_only = true\nallow = [
            \"192.168.178.0/24\",
            { net = \"10.9.0.5\", ports = [\"tcp/443\", \"udp/53\"], direction = \"out\" },
            { net = \"2001:db8:7::/64\", ports = [\"tcp/22\"], direction = \"in\" },
        ]",
    );
    let nic = nic(&["192.0.2.9/24", "2001:db8::9/64"]);
    assert_snapshot!(raised(&jail, &surroundings(vec![exit(5, "tun0", true, false), nic])));
}

#[test]
fn a_jail_before_its_bridge_and_exit_exist() {
    assert_snapshot!(raised(&jail("exit = \"tun0\""), &Surroundings::default()));
}

#[test]
fn a_member() {
    let desired = desired::member(&"vpn".parse().unwrap(), &[member()]);
    let text: String = [desired.guard, desired.membership, desired.lock]
        .concat()
        .iter()
        .map(|element| format!("{element}\n"))
        .collect();
    assert_snapshot!(text);
}

/// The part of the wall's table that says who answers names and which ports of the host are open.
fn rules_with(body: &str, words: &[&str]) -> String {
    let wall = desired::wall(&jail(body), 7400, &surroundings(vec![exit(5, "tun0", true, true)]));
    let is_of = |line: &&str| words.iter().any(|word| line.contains(word));
    wall.ruleset.text().lines().filter(is_of).map(|line| format!("{}\n", line.trim())).collect()
}

#[test]
fn servers_answer_every_question() {
    let one = rules_with("exit = \"tun0\"\ndns = [\"192.0.2.53\"]", &["dns", "dport 53", "fib daddr type"]);
    let more = "exit = \"tun0\"\ndns = [\"192.0.2.53\", \"2001:db8::53\", \"192.0.2.54\"]";
    assert_snapshot!(format!("{one}\n{}", rules_with(more, &["dnat", "reject_now"])));
}

#[test]
fn the_host_is_closed_but_for_what_is_named() {
    let named = "exit = \"tun0\"\nhost = [\"udp/123\", \"tcp/8000\"]";
    let engine = "exit = \"tun0\"\ndns = \"engine\"\nenrolled_only = true";
    let words = ["123", "8000", "dport 53", "rejected_host goto"];
    assert_snapshot!(format!("{}\n{}", rules_with(named, &words), rules_with(engine, &words)));
}

#[test]
fn the_engines_resolver_is_refused_or_steered_or_free() {
    let resolver = |body: &str, interfaces: &[Confirmed]| {
        let (elements, steering) = desired::resolver(&jail(&format!("exit = \"tun0\"\n{body}")).dns, interfaces);
        let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
        (elements, steering)
    };
    let nothing = (vec![], None);
    assert_eq!(resolver("", &[member()]), nothing);
    assert_eq!(
        resolver("dns = \"engine\"", &[member()]),
        (vec!["inet tunjail resolvers { 127.0.0.11 }".to_owned()], None)
    );
    let servers = "dns = [\"2001:db8::53\", \"192.0.2.53\", \"192.0.2.54\"]";
    let steering = Steering { server: "192.0.2.53".parse().unwrap(), source: "172.18.0.2".parse().unwrap() };
    assert_eq!(resolver(servers, &[member()]), (vec![], Some(steering)));
    // Nothing of IPv4 to ask, or to ask as.
    assert_eq!(resolver("dns = [\"2001:db8::53\"]", &[member()]), nothing);
    let v6_only = Confirmed { addresses: vec!["fd00:18::2".parse().unwrap()], ..member() };
    assert_eq!(resolver(servers, &[v6_only]), nothing);
    assert_snapshot!(plan::Change::Steer(steering).lines("/proc/7/ns/net"));
}

#[test]
fn an_exit_without_ipv6_leaves_ipv6_unreachable() {
    let wall = desired::wall(&jail("exit = \"tun0\""), 7400, &surroundings(vec![exit(5, "tun0", true, false)]));
    let v6: Vec<String> =
        wall.routes.iter().filter(|route| route.destination.addr().is_ipv6()).map(Route::to_string).collect();
    assert_eq!(
        v6,
        ["unreachable default metric 4294967295 protocol 116", "fd00:18::/64 dev vpn metric 100 protocol 116"]
    );
}

#[test]
fn an_ethernet_exit_without_a_next_hop_carries_nothing() {
    let wall = desired::wall(&jail("exit = \"eth1\""), 7400, &surroundings(vec![nic(&["192.0.2.9/24"])]));
    assert!(
        !wall.routes.iter().any(|route| matches!(&route.target, Target::Dev { name, .. } if name.as_str() == "eth1"))
    );
}

#[test]
fn an_exit_that_is_down_carries_nothing() {
    let mut down = exit(5, "tun0", true, true);
    down.link.up = false;
    let wall = desired::wall(&jail("exit = \"tun0\""), 7400, &surroundings(vec![down]));
    assert!(
        !wall.routes.iter().any(|route| matches!(&route.target, Target::Dev { name, .. } if name.as_str() == "tun0"))
    );
}

fn standing(wall: &desired::Wall) -> WallFacts {
    let tables = Tables { wall: Some(Fingerprint(1)), guard: Some(Fingerprint(2)) };
    WallFacts { rules: wall.rules.clone(), routes: wall.routes.clone(), tables }
}

#[test]
fn a_wall_that_stands_needs_nothing_and_a_lost_part_is_put_back_alone() {
    let jail = jail("exit = \"tun0\"");
    let wall = desired::wall(&jail, 7400, &surroundings(vec![exit(5, "tun0", true, true)]));
    let whole = standing(&wall);
    assert_eq!(plan::raise(&jail.name, &whole, &wall, None).unwrap(), []);
    for place in 0..whole.routes.len() {
        let mut observed = whole.clone();
        let route = observed.routes.remove(place);
        assert_eq!(
            plan::raise(&jail.name, &observed, &wall, None).unwrap(),
            [plan::Change::AddRoute { table: 7400, route }]
        );
    }
    for place in 0..whole.rules.len() {
        let mut observed = whole.clone();
        let rule = observed.rules.remove(place);
        assert_eq!(plan::raise(&jail.name, &observed, &wall, None).unwrap(), [plan::Change::AddRule(rule)]);
    }
}

#[test]
fn the_end_of_the_table_stands_before_any_way_out_of_it() {
    let jail = jail("exit = \"tun0\"");
    let wall = desired::wall(&jail, 7400, &surroundings(vec![exit(5, "tun0", true, true)]));
    let steps = plan::raise(&jail.name, &WallFacts::default(), &wall, Some("table".to_owned())).unwrap();
    let place = |wanted: fn(&plan::Change) -> bool| steps.iter().position(wanted).unwrap();
    let ruleset = place(|step| matches!(step, plan::Change::LoadRuleset(_)));
    let end = place(|step| matches!(step, plan::Change::AddRoute { route, .. } if route.target == Target::Unreachable));
    let way = place(|step| matches!(step, plan::Change::AddRoute { route, .. } if route.target != Target::Unreachable));
    let rule = place(|step| matches!(step, plan::Change::AddRule(_)));
    assert!(ruleset < end && end < way && way < rule, "{steps:?}");
}

#[test]
fn a_route_of_others_in_the_jails_table_is_an_error() {
    let jail = jail("exit = \"tun0\"");
    let wall = desired::wall(&jail, 7400, &surroundings(vec![]));
    let foreign = Route {
        destination: "0.0.0.0/0".parse().unwrap(),
        target: Target::Foreign("dev eth0 proto 4".to_owned()),
        metric: 0,
    };
    let observed = WallFacts { routes: vec![foreign], ..WallFacts::default() };
    let error = plan::raise(&jail.name, &observed, &wall, None).unwrap_err();
    assert!(matches!(error, PlanError::ForeignRoute { table: 7400, .. }));
    assert!(plan::take_down(7400, wall.ruleset.tables().map(Clone::clone), &observed).is_empty(), "not ours to remove");
}

#[test]
fn what_was_raised_is_what_is_taken_down() {
    let jail = jail("exit = \"tun0\"\nallow = [\"192.168.178.0/24\"]");
    let wall = desired::wall(&jail, 7400, &surroundings(vec![exit(5, "tun0", true, true)]));
    let steps = plan::take_down(7400, wall.ruleset.tables().map(Clone::clone), &standing(&wall));
    assert_snapshot!(plan::lines(&steps, ""));
}

#[test]
fn verification_finds_every_difference() {
    let jail = jail("exit = \"tun0\"");
    let wall = desired::wall(&jail, 7400, &surroundings(vec![exit(5, "tun0", true, true)]));
    let whole = standing(&wall);
    let loaded = whole.tables;
    assert_eq!(verify::wall(&whole, &wall, loaded), Ok(()));
    for place in 0..whole.rules.len() {
        let mut less = whole.clone();
        less.rules.remove(place);
        assert!(matches!(verify::wall(&less, &wall, loaded), Err(Mismatch::RuleMissing(_))));
    }
    for place in 0..whole.routes.len() {
        let mut less = whole.clone();
        less.routes.remove(place);
        assert!(matches!(verify::wall(&less, &wall, loaded), Err(Mismatch::RouteMissing(_))));
    }
    let mut more = whole.clone();
    more.routes.push(Route {
        destination: "198.51.100.0/24".parse().unwrap(),
        target: Target::Foreign("dev eth0".to_owned()),
        metric: 0,
    });
    assert!(matches!(verify::wall(&more, &wall, loaded), Err(Mismatch::RouteSurplus(_))));
    for tables in [
        Tables { wall: None, ..loaded },
        Tables { guard: None, ..loaded },
        Tables { wall: Some(Fingerprint(9)), ..loaded },
        Tables { guard: Some(Fingerprint(9)), ..loaded },
    ] {
        let changed = WallFacts { tables, ..whole.clone() };
        assert!(matches!(verify::wall(&changed, &wall, loaded), Err(Mismatch::Table(_))));
    }
    let gone = Tables { wall: None, guard: None };
    let nothing = WallFacts { tables: gone, ..whole };
    assert!(verify::wall(&nothing, &wall, gone).is_err(), "two missing tables are not alike");
}

#[test]
fn the_fib_may_answer_an_exit_or_nowhere() {
    let (source, destination) = ("172.18.0.2".parse().unwrap(), "198.51.100.1".parse().unwrap());
    assert_eq!(verify::way(source, destination, &FibAnswer::Out(5), &[5]), Ok(()));
    assert_eq!(verify::way(source, destination, &FibAnswer::Unreachable, &[]), Ok(()));
    assert!(verify::way(source, destination, &FibAnswer::Out(2), &[5]).is_err());
}

#[test]
fn a_subnet_that_the_host_lives_in_is_refused() {
    let jail = jail("exit = \"tun0\"");
    let net = |net: &str, interface: &str| HostNet { net: net.parse().unwrap(), interface: interface.to_owned() };
    let bridge = "vpn".parse().unwrap();
    assert_eq!(
        conflict::with_host(&jail, &[net("172.18.0.0/16", "vpn"), net("10.0.0.0/8", "eth0")], Some(&bridge)),
        Ok(())
    );
    for other in [net("172.18.4.0/24", "eth0"), net("172.16.0.0/12", "docker0"), net("fd00:18::/64", "eth0")] {
        assert!(conflict::with_host(&jail, &[other], Some(&bridge)).is_err());
    }
}

fn netns(links: Vec<Link>, addresses: &[(u32, &str)]) -> NetnsFacts {
    let address = |(index, text): &(u32, &str)| {
        let address = text.parse().unwrap();
        Address { index: *index, address, peer: address, prefix_len: 16 }
    };
    let mut all = vec![Link { loopback: true, kind: None, mac: None, ..link(1, "lo", "") }];
    all.extend(links);
    NetnsFacts { id: NetnsId { dev: 4, ino: 1 }, links: all, addresses: addresses.iter().map(address).collect() }
}

fn eth(index: u32, name: &str) -> Link {
    Link { peer: Some(index + 5), peer_netns: Some(0), ..link(index, name, "veth") }
}

fn port(index: u32, master: u32) -> Link {
    Link { master: Some(master), ..link(index, "veth7", "veth") }
}

#[test]
fn who_is_admitted_and_who_is_not() {
    let jail = jail("exit = \"tun0\"");
    let bridge = link(3, "vpn", "bridge");
    let ports = HashMap::from([(2, port(7, 3)), (4, port(9, 8))]);
    let judge = |facts: &NetnsFacts| admit::admit(&jail, facts, &ports, &bridge);

    let good = netns(vec![eth(2, "eth0")], &[(1, "127.0.0.1"), (2, "172.18.0.2"), (2, "fd00:18::2"), (2, "fe80::1")]);
    let confirmed = judge(&good).unwrap();
    assert_eq!(confirmed[0].addresses.len(), 2);
    assert_eq!(confirmed[0].link_local.len(), 1);
    assert_eq!((confirmed[0].port, confirmed[0].port_name.as_str()), (7, "veth7"));

    let mut idle = link(5, "tunl0", "ipip");
    idle.up = false;
    assert!(judge(&netns(vec![eth(2, "eth0"), idle.clone()], &[(2, "172.18.0.2")])).is_ok());

    let refused = |links: Vec<Link>, addresses: &[(u32, &str)]| judge(&netns(links, addresses)).unwrap_err();
    assert!(matches!(refused(vec![], &[(1, "127.0.0.1")]), Refusal::NoAddress { .. }));
    assert!(matches!(refused(vec![eth(2, "eth0")], &[(2, "fe80::1")]), Refusal::NoAddress { .. }));
    assert!(matches!(refused(vec![eth(2, "eth0")], &[(2, "10.0.0.2")]), Refusal::ForeignAddress { .. }));
    assert!(matches!(
        refused(vec![eth(2, "eth0")], &[(2, "172.18.0.2"), (2, "10.0.0.2")]),
        Refusal::ForeignAddress { .. }
    ));
    let two = || vec![eth(2, "eth0"), eth(4, "eth1")];
    assert!(matches!(refused(two(), &[(2, "172.18.0.2"), (4, "10.1.0.2")]), Refusal::ForeignAddress { .. }));
    assert!(matches!(refused(two(), &[(2, "172.18.0.2"), (4, "172.18.0.3")]), Refusal::OtherBridge { .. }));
    assert!(matches!(refused(two(), &[(2, "172.18.0.2")]), Refusal::OtherBridge { .. }));
    for kind in ["macvlan", "ipvlan", "dummy", "wireguard", "tun"] {
        let other = vec![eth(2, "eth0"), link(6, "x0", kind)];
        assert!(matches!(refused(other, &[(2, "172.18.0.2")]), Refusal::Unholdable { .. }), "{kind}");
    }
    let mut physical = link(6, "eth9", "");
    physical.kind = None;
    assert!(matches!(refused(vec![eth(2, "eth0"), physical], &[(2, "172.18.0.2")]), Refusal::Unholdable { .. }));
    let mut active = idle;
    active.up = true;
    assert!(matches!(refused(vec![eth(2, "eth0"), active], &[(2, "172.18.0.2")]), Refusal::Unholdable { .. }));
    assert!(matches!(refused(vec![eth(6, "eth0")], &[(6, "172.18.0.2")]), Refusal::PeerElsewhere { .. }));
    let bare = netns(vec![eth(2, "eth0"), eth(4, "eth1")], &[(2, "172.18.0.2")]);
    let both_here = HashMap::from([(2, port(7, 3)), (4, port(9, 3))]);
    assert!(matches!(admit::admit(&jail, &bare, &both_here, &bridge), Err(Refusal::BareInterface { .. })));
}

#[test]
fn a_rule_of_others_takes_what_it_matches() {
    let jail = jail("exit = \"tun0\"\n");
    let bridge = "vpn".parse().unwrap();
    let rule = |priority, source: Option<&str>, destination: Option<&str>, iif: Option<&str>| OtherRule {
        family: Family::V4,
        priority,
        inverted: false,
        source: source.map(|net| net.parse().unwrap()),
        destination: destination.map(|net| net.parse().unwrap()),
        iif: iif.map(str::to_owned),
        marked: false,
        text: String::new(),
    };
    let of = |rule: &OtherRule| conflict::with_rule(&jail, Some(&bridge), rule);
    let everything = rule(699, None, None, None);
    assert_eq!(of(&everything), Catches::Packets);
    assert_eq!(of(&OtherRule { marked: true, ..everything.clone() }), Catches::Marked);
    assert_eq!(of(&OtherRule { marked: true, inverted: true, ..everything.clone() }), Catches::Packets);
    for (source, destination, iif, expected) in [
        (Some("172.18.5.0/24"), None, None, Catches::Packets),
        (Some("172.16.0.0/12"), None, Some("vpn"), Catches::Packets),
        (None, Some("192.168.0.0/16"), None, Catches::Packets),
        (Some("192.0.2.0/24"), None, None, Catches::Nothing),
        (None, None, Some("eth0"), Catches::Nothing),
        (None, Some("172.18.0.0/16"), None, Catches::Nothing),
    ] {
        assert_eq!(of(&rule(100, source, destination, iif)), expected, "{source:?} {destination:?} {iif:?}");
    }
    // Only those that were given no preference are preceded.
    let first = |rules: &[OtherRule]| conflict::first_to_precede(&jail, Some(&bridge), rules);
    let harmless = rule(650, Some("192.0.2.0/24"), None, None);
    assert_eq!(first(&[everything.clone(), rule(698, None, None, None), harmless]), Some(698));
    assert_eq!(first(&[rule(600, None, None, None), rule(100, None, None, None), rule(700, None, None, None)]), None);
    let moved = Surroundings { first_of_others: Some(698), ..surroundings(Vec::new()) };
    assert!(desired::wall(&jail, 7400, &moved).rules.iter().all(|rule| rule.priority == 697));
}
