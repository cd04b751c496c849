//! A port of an exit is one member's: who gets it, who is refused, and when it is free again.

use rstest::rstest;

use super::{SOON, leads};
use crate::product::{JAIL, STRICT_JAIL, TUNJAIL};
use crate::run::{Cmd, Job, Out, wait_until};
use crate::vpn::TUN;
use crate::world::Netns;
use crate::yard::{Lock, Stand, Yard, address, asking, assert_refused, stopped, unplug};

const PORTS: &str = "tcp/51413 udp/51413, tcp/8443:443";

/// A second jail with a bridge of its own behind the same exit, and one behind another.
const THREE_JAILS: &str = r#"[jail.vpn]
subnets = ["172.18.0.0/16", "fd00:18::/64"]
exit = "tun0"

[jail.shares]
subnets = ["172.19.0.0/16"]
exit = ["tun9", "tun0"]

[jail.apart]
subnets = ["172.20.0.0/16"]
exit = "tun9"
"#;

impl Yard {
    /// The hook for a container that asks for ports.
    #[track_caller]
    fn ask(&self, id: &str, stand: &Stand, ports: &str) -> Out {
        self.lab.create_runtime(&asking(id, stand.pid, ports), &[])
    }

    #[track_caller]
    fn hold_asking(&self, id: &str, stand: &Stand, ports: &str) {
        let out = self.ask(id, stand, ports);
        assert!(out.code == 0 && out.stderr.is_empty(), "{id} was not held: {out:?}");
    }
}

/// A process on a bridge `NAME` of its own, 172.N.0.2, IPv4 alone.
fn stand_elsewhere(yard: &Yard, name: &str, n: u8) -> Stand {
    yard.lab.sh(&format!(
        "ip link add {name} address 02:42:ac:{n}:00:01 type bridge; ip addr add 172.{n}.0.1/16 dev {name}; ip link set {name} up"
    ));
    let netns = Netns::add(&format!("in-{name}"));
    Cmd::new(
        "ip",
        &["link", "add", &format!("veth-in-{name}"), "type", "veth", "peer", "name", "eth0", "netns", netns.name()],
    )
    .ok();
    yard.lab.sh(&format!("ip link set veth-in-{name} master {name} up"));
    netns
        .sh(&format!("ip addr add 172.{n}.0.2/16 dev eth0; ip link set eth0 up; ip route add default via 172.{n}.0.1"));
    Stand::new(&yard.lab, netns)
}

#[test]
fn a_port_of_an_exit_is_one_members() {
    let yard = Yard::new(THREE_JAILS);
    let first = yard.stand("m1", 2);
    let second = yard.stand("m2", 3);
    let shares = stand_elsewhere(&yard, "br19", 19);
    let apart = stand_elsewhere(&yard, "br20", 20);
    yard.hold_asking("c1", &first, PORTS);
    for element in
        ["tcp . 51413 : 172.18.0.2 . 51413", "udp . 51413 : 172.18.0.2 . 51413", "tcp . 8443 : 172.18.0.2 . 443"]
    {
        assert!(leads(&yard.lab, "vpn", "forward4").contains(element), "{element}");
    }
    assert!(leads(&yard.lab, "vpn", "forward6").contains("tcp . 8443 : fd00:18::2 . 443"));

    // Once more is nothing new.
    let held = yard.lab.settled();
    yard.hold_asking("c1", &first, PORTS);
    held.assert_same(&yard.lab.snapshot(), "the same hook again");

    // A neighbour, and a member of another jail that shares the exit.
    for (id, stand) in [("c2", &second), ("c3", &shares)] {
        let out = yard.ask(id, stand, "tcp/80 tcp/8443");
        assert_refused(
            &out,
            &["port tcp/8443 of exit tun0", "container c1 of jail vpn", "`tunjail forward remove c1 tcp/8443`"],
        );
        held.assert_same(&yard.lab.settled(), "a refused container");
        assert!(stand.netns.lock() != Lock::Open);
    }
    // The same number of the other protocol, another port, and another exit.
    yard.hold_asking("c2", &second, "udp/8443 tcp/51414");
    yard.hold_asking("c4", &apart, "tcp/51413");
    assert!(leads(&yard.lab, "apart", "forward4").contains("tcp . 51413 : 172.20.0.2 . 51413"));
}

/// Whoever comes first: all of them ask at once.
#[test]
fn of_many_that_ask_at_once_one_gets_the_port() {
    let yard = Yard::new(JAIL);
    let stands: Vec<Stand> = (2..10).map(|n| yard.stand(&format!("m{n}"), n)).collect();
    let hooks: Vec<Job> = stands
        .iter()
        .map(|stand| {
            let state = asking(&format!("c-{}", stand.netns.name()), stand.pid, "tcp/51413");
            Cmd::new(TUNJAIL, &["hook", "create-runtime"]).stdin(state).spawn()
        })
        .collect();
    let outs: Vec<Out> = hooks.into_iter().map(|hook| hook.finish(SOON)).collect();
    let (winners, losers): (Vec<&Out>, Vec<&Out>) = outs.iter().partition(|out| out.code == 0);
    assert_eq!((winners.len(), losers.len()), (1, 7), "{outs:?}");
    losers.iter().for_each(|out| assert_refused(out, &["port tcp/51413 of exit tun0"]));
    assert_eq!(leads(&yard.lab, "vpn", "forward4").matches("tcp . 51413").count(), 1);
}

/// How the first owner goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Poststop,
    Sweep,
    /// Dead, its port still there, and nobody told.
    Dead,
    /// The same, and its poststop comes when the next one has the port.
    LatePoststop,
    Removed,
}

#[rstest]
#[case::poststop(End::Poststop)]
#[case::sweep(End::Sweep)]
#[case::dead(End::Dead)]
#[case::late_poststop(End::LatePoststop)]
#[case::removed(End::Removed)]
fn a_port_is_free_again_when_its_owner_is_gone(#[case] end: End) {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut first = yard.stand("m1", 2);
    let mut second = yard.stand("m2", 3);
    yard.hold_asking("c1", &first, PORTS);
    yard.hold_asking("c0", &second, "tcp/1");
    if end != End::Removed {
        first.die();
    }
    match end {
        End::Poststop => yard.leave("c1"),
        End::Sweep => {
            unplug(&first.netns);
            assert!(yard.lab.tunjail_ok(&["sweep"]).contains("removed 1 record"));
        }
        End::Dead | End::LatePoststop => {}
        End::Removed => drop(yard.lab.tunjail_ok(&["forward", "remove", "c1", "tcp/51413", "udp/51413"])),
    }
    let third = Stand::new(&yard.lab, Netns::open("m2"));
    yard.hold_asking("c2", &third, "udp/51413");
    let leads4 = leads(&yard.lab, "vpn", "forward4");
    assert!(leads4.contains("udp . 51413 : 172.18.0.3 . 51413"), "{leads4}");
    assert!(!leads4.contains("tcp . 51413") || matches!(end, End::Dead | End::LatePoststop), "{leads4}");
    if end == End::LatePoststop {
        yard.leave("c1");
    }
    let leads4 = leads(&yard.lab, "vpn", "forward4");
    assert!(leads4.contains("udp . 51413 : 172.18.0.3 . 51413"), "the late end took what is another's: {leads4}");

    first.die();
    second.die();
    third.vanish();
    if end != End::Sweep {
        unplug(&first.netns);
    }
    yard.lab.tunjail_ok(&["sweep"]);
    before.assert_same(&yard.lab.settled(), "all of them");
}

/// Podman: a new namespace, then the createRuntime of the new run, then the poststop of the old one.
#[test]
fn a_restarted_container_keeps_its_ports() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let old = yard.stand("m1", 2);
    yard.hold_asking("c1", &old, PORTS);
    old.vanish();
    let mut new = yard.stand("m2", 3);
    yard.hold_asking("c1", &new, PORTS);
    let held = yard.lab.settled();
    let late = yard.lab.poststop(&stopped("c1"), &[]);
    assert!(late.stderr.contains("still runs"), "{late:?}");
    held.assert_same(&yard.lab.snapshot(), "the late poststop");
    let leads4 = leads(&yard.lab, "vpn", "forward4");
    assert!(leads4.contains("tcp . 8443 : 172.18.0.3 . 443") && !leads4.contains("172.18.0.2"), "{leads4}");
    new.die();
    yard.leave("c1");
    new.vanish();
    before.assert_same(&yard.lab.settled(), "both runs");
}

/// A pod is one member: its containers' ports lead to its address, and go with the container that asked.
#[test]
fn a_pods_ports_go_with_the_container_that_asked() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut first = yard.stand("m1", 2);
    let mut second = Stand::new(&yard.lab, Netns::open("m1"));
    yard.hold_asking("c1", &first, "tcp/80");
    let alone = yard.lab.settled();
    assert_refused(&yard.ask("c2", &second, "tcp/80:8080"), &["port tcp/80", "container c1 of jail vpn"]);
    alone.assert_same(&yard.lab.snapshot(), "a container that wants its sibling's port elsewhere");
    yard.hold_asking("c2", &second, "tcp/80 tcp/51413");
    assert!(leads(&yard.lab, "vpn", "forward4").contains("tcp . 51413 : 172.18.0.2 . 51413"));
    second.die();
    yard.leave("c2");
    alone.assert_same(&yard.lab.settled(), "the sibling");
    first.die();
    yard.leave("c1");
    first.vanish();
    before.assert_same(&yard.lab.settled(), "the pod");
}

#[test]
fn a_wall_that_is_raised_anew_leads_as_before() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.hold_asking("c1", &stand, PORTS);
    yard.lab.tunjail_ok(&["forward", "add", "c1", "tcp/9:90"]);
    let held = yard.lab.settled();
    assert!(leads(&yard.lab, "vpn", "forward6").contains("tcp . 9 : fd00:18::2 . 90"));
    for mend in [&["up"][..], &["exit", "up", "--dev", TUN]] {
        yard.lab.sh("nft flush ruleset");
        assert_eq!(leads(&yard.lab, "vpn", "forward4"), "");
        yard.lab.tunjail_ok(mend);
        let now = yard.lab.settled();
        for part in ["ip rule", "ip route, all tables"] {
            assert_eq!(held.part(part), now.part(part));
        }
        let own = |text: &str| text[text.find("table inet tunjail_vpn").expect("the wall")..].to_owned();
        assert_eq!(own(held.part("nft ruleset")), own(now.part("nft ruleset")), "{mend:?}");
    }
    // The exit under another index: rules go by its name.
    yard.lab.sh(&format!("ip link del {TUN}"));
    yard.exit_comes();
    yard.lab.tunjail_ok(&["exit", "up", "--dev", TUN]);
    assert!(leads(&yard.lab, "vpn", "forward4").contains("tcp . 8443 : 172.18.0.2 . 443"));
}

/// What was written before there were forwarded ports.
#[test]
fn an_older_record_is_read() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut stand = yard.stand("m1", 2);
    yard.hold("c1", &stand);
    let path = format!("/run/tunjail/jails/vpn/members/{}.json", crate::yard::inode(&stand.netns));
    let text = std::fs::read_to_string(&path).expect("the record");
    let old = text.replace(",\"forwards\":[]", "").replace(",\"configured\":[]", "");
    assert!(!old.contains("forward") && old.len() < text.len(), "{text}");
    std::fs::write(&path, old).expect("an older record");
    yard.lab.tunjail_ok(&["forward", "add", "c1", "tcp/1"]);
    assert!(yard.lab.tunjail_ok(&["status"]).contains("tcp/1 leads to 172.18.0.2:1"));
    stand.die();
    yard.leave("c1");
    stand.vanish();
    before.assert_same(&yard.lab.settled(), "an older member");
}

#[test]
fn the_configuration_asks_for_its_members() {
    let config = format!("{STRICT_JAIL}forward = [{{ port = \"tcp/8443:443\", to = \"172.18.0.3\" }}, \"udp/1\"]\n");
    let yard = Yard::new(&config);
    let first = yard.stand("m1", 2);
    let second = yard.stand("m2", 3);
    yard.hold("c1", &first);
    let leads4 = leads(&yard.lab, "vpn", "forward4");
    assert!(leads4.contains("udp . 1 : 172.18.0.2 . 1") && !leads4.contains("8443"), "{leads4}");
    assert_refused(&yard.enter("c2", &second), &["port udp/1 of exit tun0", "container c1"]);
    yard.lab.configure(&config.replace(", \"udp/1\"", ""));
    yard.hold("c2", &second);
    assert!(leads(&yard.lab, "vpn", "forward4").contains("tcp . 8443 : 172.18.0.3 . 443"));
    assert!(leads(&yard.lab, "vpn", "forward6").contains("tcp . 8443 : fd00:18::3 . 443"));
}

#[test]
fn an_annotation_that_is_no_list_refuses_the_container() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let stand = yard.stand("m1", 2);
    for (ports, why) in [
        ("51413", "\"51413\" is not a forwarded port; write tcp/N"),
        ("tcp/0", "\"tcp/0\" is not a forwarded port"),
        ("tcp/1 tcp/1:2", "port tcp/1 is named twice"),
        ("", "it is empty"),
        ("tcp/1;nft flush ruleset", "is not a forwarded port"),
    ] {
        assert_refused(&yard.ask("c1", &stand, ports), &["annotation io.tunjail.forward: ", why]);
    }
    assert_eq!(stand.netns.lock(), Lock::Absent);
    stand.vanish();
    before.assert_same(&yard.lab.settled(), "a refused container");
}

/// An engine that gives the address after createRuntime: what was asked for is remembered, and judged with the address.
#[test]
fn a_late_container_gets_its_ports_with_its_address() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut late = yard.late("m1");
    let mut loser = yard.late("m2");
    for (id, stand, ports) in [("c1", &late, PORTS), ("c2", &loser, "tcp/1 tcp/51413")] {
        let out = yard.lab.create_runtime(&asking(id, stand.pid, ports), &["--jail", "vpn"]);
        assert!(out.code == 0 && out.stderr.is_empty(), "{id}: {out:?}");
    }
    assert_eq!(leads(&yard.lab, "vpn", "forward4"), "", "a port leads to a container without an address");
    address(&late.netns, 2);
    yard.wait_state("c1", "held");
    assert!(leads(&yard.lab, "vpn", "forward4").contains("tcp . 8443 : 172.18.0.2 . 443"));
    assert!(leads(&yard.lab, "vpn", "forward6").contains("tcp . 8443 : fd00:18::2 . 443"));

    address(&loser.netns, 3);
    let why = yard.wait_state("c2", "refused");
    assert!(why.contains("port tcp/51413 of exit tun0") && why.contains("container c1 of jail vpn"), "{why}");
    assert_eq!(loser.netns.lock(), Lock::Closed);
    assert!(!leads(&yard.lab, "vpn", "forward4").contains("172.18.0.3"));
    // Given up while somebody still looks: then it is held after all.
    yard.lab.tunjail_ok(&["forward", "remove", "c1", "tcp/51413"]);
    yard.wait_state("c2", "held");
    assert!(leads(&yard.lab, "vpn", "forward4").contains("tcp . 51413 : 172.18.0.3 . 51413"));

    // What was changed by hand stays, however often it is judged again.
    yard.lab.tunjail_ok(&["forward", "add", "c1", "udp/2"]);
    late.netns.sh("ip addr add 172.18.0.22/16 dev eth0");
    wait_until("the second address", SOON, || yard.lab.has_element("inet", "members4", "172.18.0.22"));
    let leads4 = leads(&yard.lab, "vpn", "forward4");
    assert!(leads4.contains("udp . 2 : 172.18.0.2 . 2") && !leads4.contains("tcp . 51413 : 172.18.0.2"), "{leads4}");

    for (id, stand) in [("c1", &mut late), ("c2", &mut loser)] {
        stand.begin();
        stand.die();
        yard.leave(id);
        unplug(&stand.netns);
    }
    before.assert_same(&yard.lab.settled(), "late members");
}
