//! Promises P9 and P10: nothing is left behind, and nothing of others is touched. What the host shows before and
//! after is compared byte for byte: ip rules, all routing tables, the nft ruleset, /run/tunjail, rt_tables.d.

pub mod crash;
mod damage;
mod dry_run;
mod identity;

use std::fs;

use rstest::rstest;

use crate::bridge::SUBNET4;
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product::{JAIL, STRICT_JAIL};
use crate::scene;
use crate::snapshot::Snapshot;
use crate::works;
use crate::world::{Lab, SERVICE4, SERVICE6};
use crate::yard::{Yard, assert_one_line, stopped};

/// The end of the jail's table, as `ip -N` shows it: an unreachable default (type 7) of the worst metric.
const LAST: &str = "7 default table";
const LAST6: &str = "7 default dev lo table";

/// The wall is there, in both layers and on record.
#[track_caller]
fn assert_stands(now: &Snapshot) {
    for (part, text) in [
        ("ip rule", format!("from {SUBNET4} lookup tunjail_vpn")),
        ("ip -6 rule", "from all iif vpn lookup tunjail_vpn".to_owned()),
        ("ip route, all tables", LAST.to_owned()),
        ("ip -6 route, all tables", LAST6.to_owned()),
        ("nft ruleset", "table inet tunjail_vpn".to_owned()),
        ("nft ruleset", "table bridge tunjail_vpn".to_owned()),
        ("/run/tunjail", "wall.json".to_owned()),
        ("rt_tables.d", "tunjail_vpn".to_owned()),
    ] {
        assert!(now.part(part).contains(&text), "{part} does not show {text:?}:\n{}", now.part(part));
    }
}

/// The number of the jail's routing table.
fn table_number(lab: &Lab) -> String {
    let rules = lab.sh("ip -4 -N rule show");
    let line = rules.lines().find(|line| line.starts_with("700:") && line.contains(SUBNET4)).expect("the jail's rule");
    let words: Vec<&str> = line.split_whitespace().collect();
    let place = words.iter().position(|word| *word == "lookup").expect("a table");
    words[place + 1].to_owned()
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_wall_that_a_hook_raised_goes_with_its_last_member(#[case] runtime: &'static str) {
    let yard = Yard::new(JAIL);
    let netns = yard.plug("m1", 2);
    let before = yard.lab.settled();
    let mut member = Oci::run(&yard.lab, runtime, "m1", &Bundle::new(&netns).jailed(&["--jail", "vpn"]));
    assert_stands(&yard.lab.snapshot());
    member.remove();
    before.assert_same(&yard.lab.snapshot(), "the last member's end");
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_wall_that_up_raised_stays_until_down(#[case] runtime: &'static str) {
    let yard = Yard::new(JAIL);
    let netns = [yard.plug("m1", 2), yard.plug("m2", 3)];
    let before = yard.lab.settled();
    yard.lab.tunjail_ok(&["up"]);
    let raised = yard.lab.snapshot();
    assert_stands(&raised);
    let members = netns
        .each_ref()
        .map(|netns| Oci::run(&yard.lab, runtime, netns.name(), &Bundle::new(netns).jailed(&["--jail", "vpn"])));
    assert!(raised != yard.lab.snapshot(), "two members change nothing");
    for mut member in members {
        member.remove();
    }
    raised.assert_same(&yard.lab.snapshot(), "members that came and went");
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "down");
}

#[test]
fn of_two_members_the_second_is_held_until_it_leaves_too() {
    let mut scene = scene::strict();
    let control = works::control(&scene);
    let netns = [scene.bridge.plug("m1", 2), scene.bridge.plug("m2", 3)];
    let before = scene.lab.settled();
    scene.client.start_and_wait();
    let [mut first, mut second] = [("runc", &netns[0]), ("crun", &netns[1])].map(|(runtime, netns)| {
        Oci::run(&scene.lab, runtime, netns.name(), &Bundle::new(netns).jailed(&["--jail", "vpn"]))
    });
    first.remove();
    assert_stands(&scene.lab.snapshot());
    works::comes_out_at_the_server(&scene.lab, &second, "second-of-two", control);
    scene.client.sigkill();
    ask_in_vain(&second);
    scene.lab.assert_no_leak("teardown", "second-of-two-exit-killed", control);
    second.remove();
    before.assert_same(&scene.lab.settled(), "two members and an exit that came and went");
}

/// The same questions that a control asked; none is answered.
fn ask_in_vain(member: &dyn Container) {
    for address in [SERVICE4, SERVICE6] {
        for question in [&["http", address][..], &["udp-echo", address, "7"], &["ping", address, "1"]] {
            let line = member.probe(question).json();
            assert_eq!(line["ok"], false, "{question:?}: {line}");
        }
    }
}

#[test]
fn down_leaves_the_wall_to_its_last_member() {
    let mut scene = scene::strict();
    let control = works::control(&scene);
    let netns = scene.bridge.plug("m1", 2);
    let before = scene.lab.settled();
    scene.client.start_and_wait();
    scene.lab.tunjail_ok(&["up"]);
    let mut member = Oci::run(&scene.lab, "runc", "m1", &Bundle::new(&netns).jailed(&["--jail", "vpn"]));
    let out = scene.lab.tunjail(&["down"]);
    assert_eq!(out.code, 0, "{out:?}");
    assert_one_line(&out, &["jail vpn still holds 1 container(s)", "its wall goes with the last"]);
    assert_stands(&scene.lab.snapshot());
    works::comes_out_at_the_server(&scene.lab, &member, "down-with-a-member", control);
    scene.client.sigkill();
    ask_in_vain(&member);
    scene.lab.assert_no_leak("teardown", "down-with-a-member-exit-killed", control);
    member.remove();
    before.assert_same(&scene.lab.settled(), "up, down and the last member's end");
}

#[test]
fn poststop_twice_is_once_and_for_an_unknown_container_nothing() {
    let yard = Yard::new(JAIL);
    let stands = [yard.stand("m1", 2), yard.stand("m2", 3)];
    let before = yard.lab.settled();
    yard.leave("nobody");
    before.assert_same(&yard.lab.snapshot(), "a poststop before anything else");
    let [mut first, mut second] = stands;
    yard.hold("c1", &first);
    let alone = yard.lab.snapshot();
    yard.hold("c2", &second);
    yard.leave("nobody");
    second.die();
    for what in ["the second member's poststop", "the same poststop again"] {
        yard.leave("c2");
        alone.assert_same(&yard.lab.snapshot(), what);
    }
    first.die();
    for what in ["the last member's poststop", "the same poststop again"] {
        yard.leave("c1");
        before.assert_same(&yard.lab.snapshot(), what);
    }
    // crun's shape of the state.
    let crun = stopped("c1").replace("\"id\"", "\"pid\":0,\"root\":\"/\",\"id\"");
    let out = yard.lab.poststop(&crun, &["--jail", "vpn"]);
    assert!(out.code == 0 && out.stderr.is_empty(), "{out:?}");
    before.assert_same(&yard.lab.snapshot(), "crun's poststop");
}

#[test]
fn the_hook_twice_is_once() {
    let yard = Yard::new(JAIL);
    let mut stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    yard.hold("c1", &stand);
    let (held, lock) = (yard.lab.snapshot(), stand.netns.sh("nft -s list ruleset"));
    yard.hold("c1", &stand);
    held.assert_same(&yard.lab.snapshot(), "the same hook again");
    assert_eq!(stand.netns.sh("nft -s list ruleset"), lock);
    stand.die();
    yard.leave("c1");
    before.assert_same(&yard.lab.snapshot(), "its one poststop");
}

#[test]
fn up_twice_is_once_and_so_is_down() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    yard.lab.tunjail_ok(&["up"]);
    let raised = yard.lab.snapshot();
    assert_stands(&raised);
    yard.lab.tunjail_ok(&["up", "vpn"]);
    yard.lab.tunjail_ok(&["exit", "up", "--dev", "tun0"]);
    raised.assert_same(&yard.lab.snapshot(), "up again");
    for what in ["down", "down again"] {
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), what);
    }
    for verb in ["up", "down"] {
        yard.lab.tunjail_ok(&["exit", verb, "--dev", "tun0"]);
    }
    before.assert_same(&yard.lab.snapshot(), "an exit without a wall");
}

#[test]
fn down_sweeps_a_member_that_was_killed_without_a_poststop() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut stand = yard.stand("m1", 2);
    yard.hold("c1", &stand);
    stand.die();
    // Its port is still on the bridge, so something may still live in its namespace: the wall stays.
    let out = yard.lab.tunjail(&["down"]);
    assert_eq!(out.code, 0, "{out:?}");
    assert_one_line(&out, &["still holds 1 container(s)"]);
    assert_stands(&yard.lab.snapshot());
    stand.vanish();
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.settled(), "a killed member and down");
}

#[test]
fn the_last_poststop_sweeps_members_that_were_killed_without_one() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let [first, second, mut third] = [("m1", 2), ("m2", 3), ("m3", 4)].map(|(name, n)| yard.stand(name, n));
    for (id, stand) in [("c1", &first), ("c2", &second), ("c3", &third)] {
        yard.hold(id, stand);
    }
    first.vanish();
    second.vanish();
    third.die();
    yard.leave("c3");
    third.vanish();
    before.assert_same(&yard.lab.settled(), "two killed members and the last one's poststop");
}

#[test]
fn what_belongs_to_others_is_not_touched() {
    let yard = Yard::new(JAIL);
    let mut stand = yard.stand("m1", 2);
    fs::write("/etc/iproute2/rt_tables.d/others.conf", "# mine\n77\tothers\n").expect("a foreign name");
    yard.lab.sh("ip rule add from 10.77.0.0/16 lookup others pref 700 proto static
        ip -6 rule add from fd77::/64 lookup others pref 700 proto static
        ip rule add from 172.18.0.0/16 lookup others pref 701
        ip route add 10.77.0.0/16 dev eth0 table others; ip -6 route add fd77::/64 dev eth0 table others
        ip route add unreachable default metric 4294967295 table others");
    for table in ["inet others", "bridge others", "inet tunjail", "inet tunjail_other", "ip tunjail_vpn"] {
        yard.lab.nft(&format!(
            "table {table} {{\nset s {{ typeof meta mark; elements = {{ 7 }}; }}\nchain forward {{ }}\n}}"
        ));
    }
    let before = yard.lab.settled();
    yard.lab.tunjail_ok(&["up"]);
    // Others may even use the jail's table.
    let table = table_number(&yard.lab);
    yard.lab.sh(&format!("ip rule add from 10.78.0.0/16 lookup {table} pref 690 proto static"));
    yard.hold("c1", &stand);
    yard.lab.tunjail_ok(&["exit", "up", "--dev", "tun0"]);
    yard.lab.tunjail_ok(&["up"]);
    stand.die();
    yard.leave("c1");
    yard.lab.tunjail_ok(&["down"]);
    yard.lab.sh(&format!("ip rule del from 10.78.0.0/16 lookup {table} pref 690 proto static"));
    before.assert_same(&yard.lab.snapshot(), "up, a member and down among others' objects");

    // A number that somebody else has named meanwhile is theirs.
    fs::write("/etc/iproute2/rt_tables.d/late.conf", format!("{table} late\n")).expect("a foreign name");
    let before = yard.lab.snapshot();
    yard.lab.tunjail_ok(&["up"]);
    assert_ne!(table_number(&yard.lab), table);
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "another number");
}

#[test]
fn a_table_that_the_administrator_named_keeps_its_name() {
    let yard = Yard::new(&format!("{STRICT_JAIL}table = 100\n"));
    fs::write("/etc/iproute2/rt_tables.d/mine.conf", "100 tunnel\n").expect("a name");
    let before = yard.lab.settled();
    yard.lab.tunjail_ok(&["up"]);
    let rules = yard.lab.sh("ip rule show");
    assert!(rules.contains(&format!("from {SUBNET4} lookup tunnel")), "{rules}");
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "a named table");
}

/// Newer iproute2 ships no /etc/iproute2 at all.
#[test]
fn a_directory_that_tunjail_had_to_make_goes_too() {
    let yard = Yard::new(JAIL);
    yard.lab.sh("mv /etc/iproute2 /etc/iproute2.away");
    let before = yard.lab.settled();
    yard.lab.tunjail_ok(&["up"]);
    assert_stands(&yard.lab.snapshot());
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "up and down without /etc/iproute2");
    assert!(!fs::exists("/etc/iproute2").expect("a look"), "/etc/iproute2 is left");
}

#[test]
fn a_jail_that_left_the_configuration_is_taken_down_all_the_same() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    yard.lab.tunjail_ok(&["up"]);
    yard.lab.configure(&JAIL.replace("jail.vpn", "jail.other").replace("18", "19"));
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "down after a rename");
    yard.lab.configure(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    yard.lab.configure("[jail.vpn\n");
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "down with a broken configuration");
}
