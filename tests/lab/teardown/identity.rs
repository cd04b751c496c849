//! Promise P7: an address that moves, a late or missing poststop, a restart, a namespace's number given again. Never the
//! wrong rules on the wrong container, and in the end nothing is left.

use std::time::Duration;

use rstest::rstest;

use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product::{JAIL, STRICT_JAIL};
use crate::run::wait_until;
use crate::scene::Scene;
use crate::works;
use crate::world::{Netns, ROUTER4};
use crate::yard::{Lock, Stand, Yard, address, assert_one_line, inode, stopped, unplug};

/// Where the restarted container lives.
#[derive(Debug, Clone, Copy)]
enum Restart {
    /// In a namespace of its own.
    AnotherNumber,
    /// Where the last run did, or in one that got its number: the kernel gives them again at once.
    SameNumber,
}

#[rstest]
#[case::another_number(Restart::AnotherNumber)]
#[case::same_number(Restart::SameNumber)]
fn the_poststop_of_the_last_run_does_not_free_the_next_one(#[case] restart: Restart) {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let old = yard.stand("m1", 2);
    let number = inode(&old.netns);
    yard.hold("c1", &old);
    let mut new = match restart {
        Restart::AnotherNumber => {
            let new = yard.stand("m2", 3);
            old.vanish();
            new
        }
        Restart::SameNumber => again(&yard, old, 3),
    };
    assert_eq!(inode(&new.netns) == number, matches!(restart, Restart::SameNumber), "the case is not what it says");
    yard.hold("c1", &new);
    let held = yard.lab.settled();
    assert!(held.part("nft ruleset").contains("172.18.0.3"));
    assert!(!held.part("nft ruleset").contains("172.18.0.2 "), "the dead run's address is still a member's");

    let late = yard.lab.poststop(&stopped("c1"), &[]);
    assert_eq!(late.code, 0, "{late:?}");
    assert_one_line(&late, &["container c1 still runs", "stays in jail vpn"]);
    held.assert_same(&yard.lab.snapshot(), "the late poststop");
    assert_eq!(new.netns.lock(), Lock::Open);

    new.die();
    yard.leave("c1");
    new.vanish();
    before.assert_same(&yard.lab.settled(), "both runs");
}

/// As Podman does it: stop, network down, new namespace, the old poststop, the new createRuntime.
#[test]
fn a_restart_in_podmans_order_leaves_nothing() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut old = yard.stand("m1", 2);
    yard.hold("c1", &old);
    old.die();
    unplug(&old.netns);
    let mut new = yard.stand("m2", 2);
    yard.leave("c1");
    yard.hold("c1", &new);
    assert!(yard.lab.has_element("inet", "members4", "172.18.0.2"));
    new.die();
    yard.leave("c1");
    old.forget();
    new.vanish();
    before.assert_same(&yard.lab.settled(), "a restart");
}

/// A container dies untold; the next namespace gets its number, another container its MAC and address.
#[test]
fn a_namespace_with_a_dead_members_number_inherits_nothing() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut dead = yard.stand("m1", 2);
    let (number, mac) = (inode(&dead.netns), mac_of(&dead.netns));
    yard.hold("c1", &dead);
    dead.die();
    unplug(&dead.netns);
    let heir = yard.bridge.plug_bare("m2");
    heir.sh(&format!("ip link set eth0 address {mac}"));
    address(&heir, 2);
    let mut heir = Stand::new(&yard.lab, heir);
    yard.hold("c2", &heir);

    let mut namesake = again(&yard, dead, 4);
    assert_eq!(inode(&namesake.netns), number);
    yard.hold("c3", &namesake);
    assert!(yard.lab.has_element("inet", "members4", &format!("{mac} . 172.18.0.2")), "the heir lost its membership");
    assert!(yard.lab.has_element("inet", "members4", "172.18.0.4"));
    let lock = namesake.netns.sh("nft list table inet tunjail");
    assert!(
        lock.contains("172.18.0.4") && !lock.contains("172.18.0.2"),
        "the dead one's address may still emit: {lock}"
    );
    // The dead one's own poststop, late.
    yard.leave("c1");
    assert!(yard.lab.has_element("inet", "members4", &format!("{mac} . 172.18.0.2")));
    assert!(yard.lab.has_element("inet", "members4", "172.18.0.4"));

    namesake.die();
    yard.leave("c3");
    assert!(yard.lab.has_element("inet", "members4", &format!("{mac} . 172.18.0.2")));
    heir.die();
    yard.leave("c2");
    heir.vanish();
    namesake.vanish();
    before.assert_same(&yard.lab.settled(), "a dead member, its heir and its namesake");
}

/// The old namespace, dead and unplugged, with a new port, address and process: another container, as far as anybody
/// can see who knows namespaces by their numbers.
fn again(yard: &Yard, mut old: Stand, n: u8) -> Stand {
    old.die();
    old.netns.sh("ip link del eth0 2>/dev/null || true");
    let netns = Netns::open(old.netns.name());
    yard.bridge.port(&netns);
    address(&netns, n);
    Stand::new(&yard.lab, netns)
}

fn mac_of(netns: &Netns) -> String {
    netns.sh("ip -br link show eth0").split_whitespace().nth(2).expect("a MAC").to_owned()
}

/// Only enrolled members may speak here, so a lost membership is a lost connection.
#[test]
fn an_old_poststop_leaves_the_address_to_its_new_owner() {
    let mut scene = Scene::new(&format!("{STRICT_JAIL}enrolled_only = true\n"));
    let control = works::control(&scene);
    scene.client.start_and_wait();
    let before = scene.lab.settled();
    let old = scene.bridge.plug("m1", 2);
    let mac = mac_of(&old);
    let jailed = |netns: &Netns| Bundle::new(netns).jailed(&["--jail", "vpn"]);
    let mut first = Oci::run(&scene.lab, "runc", "c1", &jailed(&old));
    unplug(&old);
    let new = scene.bridge.plug_bare("m2");
    new.sh(&format!("ip link set eth0 address {mac}"));
    address(&new, 2);
    wait_until("the new port", Duration::from_secs(5), || {
        new.probe(&["ping", crate::bridge::GATEWAY4, "1"]).json()["ok"] == true
            && new.probe(&["ping", crate::bridge::GATEWAY6, "1"]).json()["ok"] == true
    });
    let mut second = Oci::run(&scene.lab, "crun", "c2", &jailed(&new));
    first.remove();
    works::comes_out_at_the_server(&scene.lab, &second, "address-taken-over", control);
    second.remove();
    unplug(&new);
    before.assert_same(&scene.lab.settled(), "one address, two owners");
}

/// A pod: two containers, one namespace. Either may go first; the lock stays open for the other one.
#[test]
fn the_first_of_a_pods_poststops_leaves_its_sibling_alone() {
    let yard = Yard::new(JAIL);
    let mut first = yard.stand("m1", 2);
    let before = yard.lab.settled();
    yard.hold("c1", &first);
    let alone = yard.lab.snapshot();
    let mut sibling = Stand::new(&yard.lab, Netns::open("m1"));
    yard.hold("c2", &sibling);
    assert_eq!(first.netns.lock(), Lock::Open);
    first.die();
    yard.leave("c1");
    assert_eq!(alone.part("nft ruleset"), yard.lab.snapshot().part("nft ruleset"));
    assert_eq!(sibling.netns.lock(), Lock::Open);
    sibling.die();
    yard.leave("c2");
    before.assert_same(&yard.lab.snapshot(), "a pod");
}

/// The control of this file: without the jail, the address goes out by the uplink.
#[test]
fn an_address_that_no_hook_enrolled_gets_nothing_where_only_members_may_speak() {
    let mut scene = Scene::new(&format!("{STRICT_JAIL}enrolled_only = true\n"));
    scene.client.start_and_wait();
    let plain = scene.plain("plain", 9);
    let control = scene.lab.assert_probe_is_visible(|| {
        assert_eq!(crate::run::answer(&plain.probe(&["http", crate::world::SERVICE4])), ROUTER4);
    });
    scene.lab.tunjail_ok(&["up"]);
    let line = plain.probe(&["http", crate::world::SERVICE4]).json();
    assert_eq!(line["ok"], false, "{line}");
    scene.lab.assert_no_leak("teardown", "not-enrolled", control);
}
