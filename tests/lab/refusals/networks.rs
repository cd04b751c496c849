//! Containers whose network cannot be held.

use crate::product::JAIL;
use crate::world::Netns;
use crate::yard::{Lock, Stand, Yard, address, annotated, assert_refused, created};

/// A second network: another bridge with a veth into the namespace, `address` on eth1.
fn second_network(yard: &Yard, netns: &Netns, address: &str) {
    yard.lab.sh(&format!(
        "ip link add other type bridge; ip addr add 172.30.0.1/16 dev other; ip link set other up
        ip link add veth-second type veth peer name eth1 netns {}; ip link set veth-second master other up",
        netns.name()
    ));
    netns.sh(&format!("{address}\nip link set eth1 up"));
}

/// Refused, the host as it was, and the namespace without a lock, as it had none before.
#[track_caller]
fn assert_not_held(yard: &Yard, stand: &Stand, fragments: &[&str]) {
    let before = yard.lab.settled();
    for state in [created("c1", stand.pid), annotated("c1", stand.pid, "vpn")] {
        let out = yard.lab.create_runtime(&state, &["--jail", "vpn"]);
        assert_refused(&out, &[&["container c1 was not started"], fragments].concat());
        before.assert_same(&yard.lab.snapshot(), "a refusal");
    }
    let out = yard.lab.create_runtime(&annotated("c1", stand.pid, "vpn"), &[]);
    assert_refused(&out, fragments);
    assert_eq!(stand.netns.lock(), Lock::Absent);
    // The same into a wall that stands: neither it nor its members change.
    let mut member = yard.stand("member", 77);
    yard.hold("other", &member);
    let standing = yard.lab.settled();
    assert_refused(&yard.enter("c1", stand), fragments);
    standing.assert_same(&yard.lab.snapshot(), "a refusal beside a member");
    assert_eq!((stand.netns.lock(), member.netns.lock()), (Lock::Absent, Lock::Open));
    member.die();
    yard.leave("other");
    member.vanish();
    before.assert_same(&yard.lab.settled(), "a refusal and a member's end");
}

#[test]
fn a_foreign_address_is_refused() {
    let yard = Yard::new(JAIL);
    for (script, shown) in [
        ("ip addr add 10.99.0.2/24 dev eth0", "interface eth0 of the container has address 10.99.0.2"),
        ("ip addr add 2001:db8:99::2/64 dev eth0 nodad", "has address 2001:db8:99::2"),
        ("ip addr add 192.168.178.77/24 dev eth0", "has address 192.168.178.77"),
        ("ip addr add 172.18.0.2/16 dev eth0; ip addr add 10.99.0.2/24 dev eth0", "has address 10.99.0.2"),
        ("ip addr add 172.18.0.2/16 dev eth0; ip addr add 10.99.0.2/32 dev lo", "interface lo of the container"),
    ] {
        let netns = yard.bridge.plug_bare("m1");
        netns.sh(script);
        let stand = Stand::new(&yard.lab, netns);
        let mend = "attach the container to the jail's network alone";
        assert_not_held(&yard, &stand, &[shown, "outside jail vpn's subnets 172.18.0.0/16, fd00:18::/64", mend]);
        stand.vanish();
    }
}

/// A hook for every container goes by the address: one of the jail's is enough to be meant, and then all are judged.
#[test]
fn always_means_whoever_has_an_address_of_the_jail() {
    let yard = Yard::new(JAIL);
    let stand = Stand::new(&yard.lab, yard.bridge.plug_bare("m1"));
    stand.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    let before = yard.lab.settled();
    let state = created("c1", stand.pid);
    let out = yard.lab.create_runtime(&state, &[]);
    assert!(out.code == 0 && out.stderr.is_empty(), "a container of another network is nobody's: {out:?}");
    before.assert_same(&yard.lab.snapshot(), "a container of another network");
    stand.netns.sh("ip addr add fd00:18::2/64 dev eth0 nodad");
    assert_refused(&yard.lab.create_runtime(&state, &[]), &["10.99.0.2", "outside jail vpn's subnets"]);
    stand.netns.sh("ip addr del 10.99.0.2/24 dev eth0");
    assert_eq!(yard.lab.create_runtime(&state, &[]).code, 0);
    assert_eq!(stand.netns.lock(), Lock::Open);
}

#[test]
fn a_second_network_is_refused() {
    let yard = Yard::new(JAIL);
    let not_a_port: &[&str] =
        &["eth1", "not a port of jail vpn's bridge vpn", "another bridge (veth-second on the host)"];
    for (script, fragments) in [
        ("ip addr add 172.30.0.2/16 dev eth1", &["eth1", "172.30.0.2", "outside jail vpn's subnets"][..]),
        ("ip addr add 172.18.0.3/16 dev eth1", not_a_port),
        ("ip addr add 169.254.7.7/16 dev eth1", not_a_port),
        ("", not_a_port),
    ] {
        let stand = yard.stand("m1", 2);
        second_network(&yard, &stand.netns, script);
        assert_not_held(&yard, &stand, fragments);
        yard.lab.sh("ip link del veth-second; ip link del other");
        stand.vanish();
    }
}

/// What else an interface may be, and how to make one. Each has something that would let packets past the bridge.
const INTERFACES: &[(&str, &[&str])] = &[
    // A bare port of the same bridge.
    (
        "ip link add veth-x type veth peer name x0 netns m1; ip link set veth-x master vpn up",
        &["x0", "no address of jail vpn"],
    ),
    // A veth in no bridge.
    ("ip link add veth-x type veth peer name x0 netns m1; ip link set veth-x up", &["x0", "not in any bridge (veth-x"]),
    // Both ends inside.
    ("ip -n m1 link add x0 type veth peer name x1", &["whose other end is not in the host's network namespace"]),
    // The other end in a third namespace.
    (
        "ip netns add third; ip -n third link add veth-x type veth peer name x0 netns m1",
        &["x0", "whose other end is not in the host's network namespace"],
    ),
    (
        "ip link add link eth0 name x0 type macvlan mode bridge; ip link set x0 netns m1",
        &["x0", "is macvlan", "use a bridge network"],
    ),
    ("ip link add link eth0 name x0 type macvtap; ip link set x0 netns m1", &["x0", "is macvtap"]),
    ("ip -n m1 tuntap add dev x0 mode tap", &["x0", "is tun"]),
    ("ip -n m1 link add x0 type bridge", &["x0", "is bridge"]),
    (
        "ip link add x0 type vxlan id 7 dstport 4789 local 192.168.178.2 dev eth0; ip link set x0 netns m1",
        &["x0", "is vxlan"],
    ),
];

#[test]
fn an_interface_that_is_no_port_of_the_bridge_is_refused() {
    let yard = Yard::new(JAIL);
    for (script, fragments) in INTERFACES {
        let mut stand = yard.stand("m1", 2);
        let before = yard.lab.settled();
        yard.lab.sh(script);
        assert_not_held(&yard, &stand, fragments);
        // Without it the same container is held: it was the interface.
        stand.netns.sh("ip link del x0");
        yard.hold("c1", &stand);
        stand.die();
        yard.leave("c1");
        before.assert_same(&yard.lab.settled(), script);
        stand.vanish();
    }
}

/// Its own address is right, and its own interface is the wrong one.
#[test]
fn a_right_address_on_another_bridge_is_refused() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.lab.sh("ip link add other type bridge; ip link set other up; ip link set veth-m1 master other");
    assert_not_held(&yard, &stand, &["eth0", "not a port of jail vpn's bridge vpn", "another bridge"]);
}

#[test]
fn without_a_bridge_nobody_is_held() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.lab.sh("ip addr flush dev vpn");
    let before = yard.lab.settled();
    let out = yard.enter("c1", &stand);
    assert_refused(
        &out,
        &["no bridge of this host has an address in 172.18.0.0/16", "set \"bridge = \" in [jail.vpn]"],
    );
    before.assert_same(&yard.lab.snapshot(), "no bridge");
    yard.lab.configure(&format!("{JAIL}bridge = \"missing\"\n"));
    assert_refused(&yard.enter("c1", &stand), &["c1 was not started"]);
    yard.lab.configure(&format!("{JAIL}bridge = \"eth0\"\n"));
    assert_refused(&yard.enter("c1", &stand), &["interface eth0 is no bridge", "correct \"bridge = \" in [jail.vpn]"]);
    before.assert_same(&yard.lab.snapshot(), "no bridge");
}

/// A lock that is closed stays so, and one that is open for a living sibling too.
#[test]
fn a_refusal_leaves_a_lock_as_it_stands() {
    let yard = Yard::new(JAIL);
    let mut first = yard.stand("m1", 2);
    let before = yard.lab.settled();
    yard.hold("c1", &first);
    let held = yard.lab.snapshot();
    first.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    let second = Stand::new(&yard.lab, Netns::open("m1"));
    assert_refused(&yard.enter("c2", &second), &["10.99.0.2", "outside jail vpn's subnets"]);
    held.assert_same(&yard.lab.snapshot(), "a sibling's refusal");
    assert_eq!(first.netns.lock(), Lock::Open);
    assert_eq!(first.netns.lets_go("10.99.0.2", crate::world::SERVICE4), 0, "what nobody confirmed may emit");
    assert_eq!(first.netns.lets_go("172.18.0.2", crate::world::SERVICE4), 3);
    first.die();
    yard.leave("c1");
    before.assert_same(&yard.lab.snapshot(), "the first one's end");

    // A closed one, as a hook that was killed leaves it.
    let closed = yard.plug("m2", 3);
    closed.nft(&tunjail::model::plan::lock_text());
    closed.sh("ip addr add 10.99.0.3/24 dev eth0");
    let stand = Stand::new(&yard.lab, closed);
    assert_eq!(stand.netns.lock(), Lock::Closed);
    assert_refused(&yard.enter("c3", &stand), &["10.99.0.3"]);
    assert_eq!(stand.netns.lock(), Lock::Closed);
    assert_eq!(stand.netns.lets_go("172.18.0.3", crate::world::SERVICE4), 0);
    stand.vanish();
}

/// Two jails, one pod.
#[test]
fn a_namespace_has_one_jail() {
    let yard = Yard::new(&format!("{JAIL}\n[jail.office]\nsubnets = [\"172.20.0.0/16\"]\nexit = \"tun0\"\n"));
    let first = yard.stand("m1", 2);
    yard.hold("c1", &first);
    let held = yard.lab.settled();
    let second = Stand::new(&yard.lab, Netns::open("m1"));
    let out = yard.lab.create_runtime(&created("c2", second.pid), &["--jail", "office"]);
    assert_refused(&out, &["held by jail vpn already (container c1)", "name one jail for all containers of a pod"]);
    held.assert_same(&yard.lab.snapshot(), "a second jail");
    assert_eq!(first.netns.lock(), Lock::Open);
}

/// What the wall of another jail holds is no ground for this one.
#[test]
fn an_address_of_another_jail_is_foreign() {
    let yard = Yard::new(&format!("{JAIL}\n[jail.office]\nsubnets = [\"172.20.0.0/16\"]\nexit = \"tun0\"\n"));
    let netns = yard.bridge.plug_bare("m1");
    address(&netns, 2);
    let stand = Stand::new(&yard.lab, netns);
    let before = yard.lab.settled();
    let out = yard.lab.create_runtime(&created("c1", stand.pid), &["--jail", "office"]);
    assert_refused(&out, &["172.18.0.2", "outside jail office's subnets 172.20.0.0/16"]);
    before.assert_same(&yard.lab.snapshot(), "another jail's address");
}
