//! What a member does to its own links, and what somebody else adds to them after the start.

use std::time::Duration;

use super::{Attack, Attacker, COUNT, forged, gateway_mac, ip};
use crate::engine::Container;
use crate::run::{Cmd, answer, wait_until};
use crate::scene::{self, Scene};
use crate::vpn::TUN;
use crate::world::{Lab, SERVICE4, SERVICE6, VPN4, VPN6};

/// Packets by the exit whose sender is not the member's first address, whatever they look like to the world.
fn watch_the_exit(lab: &Lab) {
    lab.nft(&format!(
        "table inet exit {{
            counter strange {{ }}
            chain out {{ type filter hook postrouting priority 90
                oifname != {TUN} accept
                ip saddr 172.18.0.2 accept
                ip6 saddr fd00:18::2 accept
                ip saddr 172.18.0.0/16 counter name strange
                ip6 saddr fd00:18::/64 counter name strange
                ip saddr 192.168.178.77 counter name strange
            }}
        }}"
    ));
}

fn strange(lab: &Lab) -> u64 {
    let text = lab.sh("nft list counter inet exit strange");
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

/// A change that CAP_NET_ADMIN is enough for, and what is sent afterwards.
struct Change {
    name: &'static str,
    script: &'static str,
    undo: &'static str,
    calls: &'static [[&'static str; 4]],
}

const CHANGES: [Change; 5] = [
    Change {
        name: "another address of the jail",
        script: "ip addr add 172.18.0.99/16 dev eth0; ip addr add fd00:18::99/64 dev eth0 nodad",
        undo: "ip addr del 172.18.0.99/16 dev eth0; ip addr del fd00:18::99/64 dev eth0",
        calls: &[["udp-from", "172.18.0.99", SERVICE4, "9"], ["udp-from", "fd00:18::99", SERVICE6, "9"]],
    },
    Change {
        name: "an address of the LAN",
        script: "ip addr add 192.168.178.77/24 dev eth0; ip route replace 198.51.100.0/24 via 172.18.0.1 src 192.168.178.77",
        undo: "ip addr del 192.168.178.77/24 dev eth0; ip route flush 198.51.100.0/24",
        calls: &[["udp-from", "192.168.178.77", SERVICE4, "9"]],
    },
    Change {
        name: "a macvlan with an address of its own",
        script: "ip link add link eth0 name mv0 type macvlan mode bridge; ip link set mv0 up
            ip addr add 172.18.0.98/16 dev mv0; ip addr add fd00:18::98/64 dev mv0 nodad
            ip route replace 198.51.100.0/24 via 172.18.0.1 dev mv0
            ip route replace 2001:db8:51::/64 via fd00:18::1 dev mv0",
        undo: "ip link del mv0",
        calls: &[["udp-dev", "mv0", SERVICE4, "9"], ["udp-dev", "mv0", SERVICE6, "9"]],
    },
    Change {
        name: "a macvlan with the member's address",
        script: "ip link add link eth0 name mv0 type macvlan mode bridge; ip link set mv0 up
            ip route replace 198.51.100.0/24 via 172.18.0.1 dev mv0 onlink src 172.18.0.2
            ip -6 route replace fd00:18::1 dev mv0; ip -6 route replace 2001:db8:51::/64 via fd00:18::1 dev mv0 src fd00:18::2",
        undo: "ip link del mv0",
        calls: &[["udp-from", "172.18.0.2", SERVICE4, "9"], ["udp-from", "fd00:18::2", SERVICE6, "9"]],
    },
    Change {
        name: "another MAC address",
        script: "ip link set eth0 address 02:bb:00:00:00:42",
        undo: "ip link set eth0 address $MAC",
        calls: &[["udp-from", "172.18.0.2", SERVICE4, "9"], ["udp-from", "fd00:18::2", SERVICE6, "9"]],
    },
];

fn send(container: &dyn Container, change: &Change) {
    for [how, from, addr, port] in change.calls {
        let out = container.probe(&[how, from, addr, port, &COUNT.to_string()]);
        assert!(out.code == 0, "{}: the probe failed: {out:?}", change.name);
    }
}

/// Applied, tried, undone. Returns the packets that came out somewhere.
fn attempt(attacker: &Attacker, change: &Change, seen: impl Fn() -> u64, expected: bool) -> u64 {
    let mac = attacker.mac.map(|byte| format!("{byte:02x}")).join(":");
    let before = seen();
    attacker.netns.sh(change.script);
    if expected {
        let wanted = before + u64::from(COUNT) * change.calls.len() as u64;
        // A new link or address takes a moment: the neighbours have to be asked.
        wait_until(&format!("the control of \"{}\"", change.name), Duration::from_secs(10), || {
            send(&attacker.container, change);
            seen() >= wanted
        });
    } else {
        for _ in 0..3 {
            send(&attacker.container, change);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    attacker.netns.sh(&change.undo.replace("$MAC", &mac));
    attacker.netns.sh(
        "ip route replace default via 172.18.0.1; ip -6 route replace default via fd00:18::1; ip neigh flush dev eth0",
    );
    seen() - before
}

/// A member is who it was at its start: what it makes itself into afterwards gets nowhere, not even to the exit.
#[test]
fn a_member_that_changes_its_links_sends_nothing() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    watch_the_exit(&scene.lab);
    // The control is at the member's own address, so that the same scripts fit both.
    let mut plain = Attacker::new(scene.plain("p1", 2), "p1", 2);
    let mut control = 0;
    for change in &CHANGES {
        control += attempt(&plain, change, || scene.lab.leaks().total(), true);
    }
    plain.container.remove();
    scene.lab.sh("ip netns del p1");

    for (case, unlocked) in [("own-links", false), ("own-links-lock-deleted", true)] {
        let name = if unlocked { "m2" } else { "m1" };
        let mut attacker = Attacker::new(scene.member("runc", name, 2), name, 2);
        if unlocked {
            attacker.deletes_its_lock();
        }
        scene.lab.reset_leaks();
        for change in &CHANGES {
            attempt(&attacker, change, || 0, false);
        }
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", case, control);
        assert_eq!(strange(&scene.lab), 0, "{case}: somebody else came out by the exit");
        wait_until("the member itself again", Duration::from_secs(5), || {
            attacker.container.probe(&["http", SERVICE4]).json()["body"] == VPN4
        });
        assert_eq!(answer(&attacker.container.probe(&["http", SERVICE6])), VPN6);
        attacker.container.remove();
        scene.lab.sh(&format!("ip netns del {name}"));
    }
}

/// What `podman network connect` does: another bridge, another veth, addresses and routes that are preferred.
fn connect_another_network(scene: &Scene, name: &str) {
    scene.lab.sh(&format!(
        "if ! ip link show other >/dev/null 2>&1; then
            ip link add other type bridge; ip addr add 172.30.0.1/16 dev other
            ip addr add fd00:30::1/64 dev other nodad; ip link set other up
            nft 'table inet other {{ chain post {{ type nat hook postrouting priority 100
                ip saddr 172.30.0.0/16 oifname != other masquerade; ip6 saddr fd00:30::/64 oifname != other masquerade; }}
            }}'
        fi
        ip link add veth2-{name} type veth peer name eth1 netns {name}; ip link set veth2-{name} master other up
        ip -n {name} link set eth1 up
        ip -n {name} addr add 172.30.0.2/16 dev eth1; ip -n {name} addr add fd00:30::2/64 dev eth1 nodad
        ip -n {name} route add 198.51.100.0/24 via 172.30.0.1; ip -n {name} route add 2001:db8:51::/64 via fd00:30::1"
    ));
}

fn calls_by_the_other_network() -> Vec<Attack> {
    let count = COUNT.to_string();
    let mut calls = Vec::new();
    for (own, other, service) in [("172.18.0.2", "172.30.0.2", SERVICE4), ("fd00:18::2", "fd00:30::2", SERVICE6)] {
        calls.push(Attack::new(format!("from {other}"), &["udp-from", other, service, "9", &count]));
        calls.push(Attack::new(format!("by eth1 to {service}"), &["udp-dev", "eth1", service, "9", &count]));
        calls.push(Attack::new(format!("as {other}"), &["spoof-udp", other, service, "9", &count]));
        calls.push(Attack::new(format!("by eth1 from {own}"), &["udp-from", own, service, "9", &count]));
    }
    calls
}

#[test]
fn a_network_that_is_connected_after_the_start_stays_shut() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let mut plain = Attacker::new(scene.plain("p1", 2), "p1", 2);
    connect_another_network(&scene, "p1");
    wait_until("the other network", Duration::from_secs(5), || {
        plain.netns.probe(&["http", SERVICE4]).json()["ok"] == true
            && plain.netns.probe(&["http", SERVICE6]).json()["ok"] == true
    });
    scene.lab.reset_leaks();
    for call in calls_by_the_other_network() {
        let before = scene.lab.leaks().total();
        plain.attack(&call);
        wait_until(&format!("the control of \"{}\"", call.name), Duration::from_secs(3), || {
            scene.lab.leaks().total() >= before + u64::from(COUNT)
        });
    }
    let control = scene.lab.leaks().total();
    plain.container.remove();
    scene.lab.sh("ip netns del p1; ip link del veth2-p1 2>/dev/null || true");

    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    connect_another_network(&scene, "m1");
    scene.lab.reset_leaks();
    for exit in ["exit-up", "exit-killed"] {
        if exit == "exit-killed" {
            scene.client.sigkill();
        }
        for call in calls_by_the_other_network() {
            attacker.attack(&call);
        }
        for service in [SERVICE4, SERVICE6] {
            let line = attacker.container.probe(&["tcp-echo", service, "7"]).json();
            assert_eq!(line["ok"], false, "{exit}: the other network carries {service}: {line}");
        }
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("second-network-{exit}"), control);
    }

    // Frames past the lock, with the member's own addresses: the host still knows whose they are.
    let other = super::mac_of(&Cmd::new("ip", &["-j", "link", "show", "dev", "other"]).ok());
    assert_ne!(other, gateway_mac());
    let mac = super::mac_of(&attacker.netns.sh("ip -j link show dev eth1"));
    for (own, service) in attacker.addrs().into_iter().zip([SERVICE4, SERVICE6]) {
        let frame = forged::datagram(other, forged::Sender { mac, addr: own }, ip(service), 9);
        attacker.attack(&Attack::new("frame by eth1", &["send", "eth1", &COUNT.to_string(), &forged::hex(&frame)]));
    }
    scene.lab.wait_quiet();
    scene.lab.assert_no_leak("hostile", "second-network-frames", control);
}
