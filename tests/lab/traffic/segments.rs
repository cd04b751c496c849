//! Exits that carry less than the bridge does, on a path whose routers say nothing: what is too large vanishes, so nobody
//! may send it.

use rstest::rstest;

use super::allowing;
use super::annex::{ANNEX4, ANNEX6, Annex};
use crate::engine::Container;
use crate::scene::{self, Scene};
use crate::vpn::TUN;
use crate::world::{Lab, Netns, SERVICE4, SERVICE6};

const BYTES: &str = "4000000";

/// No router of the path tells anybody that a packet was too large.
fn silence(lab: &Lab) {
    for netns in [&lab.router, &lab.inet, &lab.vpn] {
        netns.nft(
            "table inet silence {
                chain forward { type filter hook forward priority 10
                    icmp type { destination-unreachable, time-exceeded } drop
                    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } drop
                }
                chain output { type filter hook output priority 10
                    icmp type { destination-unreachable, time-exceeded } drop
                    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } drop
                }
            }",
        );
    }
}

/// Whether all of it arrives; prints how long it took.
fn arrives(member: &dyn Container, verb: &str, addr: &str, case: &str) -> bool {
    let line = member.probe(&[verb, addr, BYTES]).json();
    println!("segments: {case} {verb} {addr}: {line}");
    line["ok"] == true && line["body"] == BYTES
}

#[rstest]
#[case::of_wireguard(1420)]
#[case::of_least_size(1280)]
fn large_transfers_pass_a_narrow_exit(#[case] mtu: u16) {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    for netns in [None, Some(&scene.lab.vpn)] {
        let script = format!("ip link set {TUN} mtu {mtu}");
        netns.map_or_else(|| scene.lab.sh(&script), |netns| netns.sh(&script));
    }
    silence(&scene.lab);
    let member = scene.member("runc", "m1", 2);
    let all = |case: &str| {
        let mut arrived = Vec::new();
        for addr in [SERVICE4, SERVICE6] {
            for verb in ["fetch", "push"] {
                arrived.push(arrives(&member, verb, addr, case));
            }
        }
        arrived
    };
    // Before anything else: later the member knows from its own transfers what fits.
    scene.lab.sh("nft flush chain inet tunjail_vpn clamp");
    for addr in [SERVICE4, SERVICE6] {
        assert!(!arrives(&member, "fetch", addr, "control"), "positive control: {addr} arrives without a clamp too");
    }
    scene.lab.tunjail_ok(&["up"]);
    assert_eq!(all("clamped"), [true; 4]);

    // A member that hears nothing either, once.
    if mtu == 1280 {
        let netns = Netns::open("m1");
        netns.nft(
            "table inet deaf { chain input { type filter hook input priority 0
                icmp type destination-unreachable drop
                icmpv6 type packet-too-big drop
            }
            }",
        );
        netns.sh("ip route flush cache; ip -6 route flush cache");
        for addr in [SERVICE4, SERVICE6] {
            assert!(arrives(&member, "fetch", addr, "member deaf"));
            // What it sends is another matter: the host's own word is all that tells it. An engine can tell it before.
            assert!(!arrives(&member, "push", addr, "member deaf"), "it passes: say so in docs/security.md");
        }
        netns.sh(&format!("ip link set eth0 mtu {mtu}"));
        assert_eq!(all("member deaf, with the exit's MTU"), [true; 4]);
    }
}

/// A gateway of the LAN that is not in the allowed net itself, before a link that carries less.
#[test]
fn a_lan_gateways_errors_reach_the_member() {
    let ports = "ports = [\"tcp/9\"], direction = \"out\"";
    let scene = Scene::new(&allowing(&format!("{{ net = \"{ANNEX4}\", {ports} }}, {{ net = \"{ANNEX6}\", {ports} }}")));
    let annex = Annex::new(&scene.lab);
    annex.gate.sh("ip link set inner mtu 1300");
    let member = scene.member("runc", "m1", 2);
    // What a member would send into without them.
    scene.lab.nft(
        "table inet deaf { chain forward { type filter hook forward priority 10
            icmp type destination-unreachable drop
            icmpv6 type packet-too-big drop
        }
        }",
    );
    for addr in [ANNEX4, ANNEX6] {
        assert!(!arrives(&member, "push", addr, "control"), "positive control: {addr} is reached without errors too");
    }
    scene.lab.sh("nft delete table inet deaf");
    for addr in [ANNEX4, ANNEX6] {
        assert!(arrives(&member, "push", addr, "behind a gateway"));
    }
}
