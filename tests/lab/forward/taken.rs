//! A member's callers are its own: nobody gets them by sending from the port of the exit that leads to it.

use super::{CALLER4, CALLER6, member, provide, serve};
use crate::engine::Container;
use crate::product::STRICT_JAIL;
use crate::rootfs::PROBE;
use crate::run::answer;
use crate::scene::Scene;
use crate::uplink::SecondBridge;
use crate::vpn::TUN;
use crate::world::{Lab, Netns, SERVICE4, SERVICE6, VPN4, VPN6};

/// A second jail behind the same exit.
const TWO_JAILS: &str = "\n[jail.second]\nsubnets = [\"172.19.0.0/16\", \"fd00:19::/64\"]\nexit = \"tun0\"\n";

/// The ports that peers on the internet have, and speak to the exit from. One that has spoken to the owner is safe from
/// thieves for a while: so each is used once.
const PEERS: &str = "4001-4099";

/// Where the provider leads callers, and who calls from there.
const WAYS: [(&str, &str); 2] = [(VPN4, CALLER4), (VPN6, CALLER6)];

/// Whoever sends from a port of its choice.
pub trait Thief {
    fn says(&self, args: &[&str]) -> String;

    /// A datagram and a SYN to the peer, by each family.
    fn steals(&self, port: &str, peer: &str) {
        for (_, address) in WAYS {
            self.says(&["udp-port", port, address, peer, "1"]);
            self.says(&["tcp-port", port, address, peer, "100"]);
        }
    }
}

impl<C: Container> Thief for C {
    fn says(&self, args: &[&str]) -> String {
        self.exec(&[&[PROBE], args].concat()).stdout
    }
}

impl Thief for Netns {
    fn says(&self, args: &[&str]) -> String {
        self.probe(args).stdout
    }
}

/// Of ten datagrams that the peer sends to a port of the exit, by each family, how many its owner answers; and whether a
/// connection to it is answered.
pub fn owner_gets(lab: &Lab, port: &str, peer: &str) -> [(u64, bool); 2] {
    WAYS.map(|(server, _)| {
        let datagrams = lab.inet.probe(&["udp-port", peer, server, port, "10"]).json();
        let connection = lab.inet.probe(&["tcp-port", peer, server, port, "1000"]).json();
        (datagrams["answered"].as_u64().expect("a number"), connection["ok"] == true)
    })
}

pub const ALL: [(u64, bool); 2] = [(10, true); 2];
const NOTHING: [(u64, bool); 2] = [(0, false); 2];

/// Nothing answers at the peers' ports, so what is asked stays open; and the provider's own memory of it is none of a test.
pub fn mute_peers(lab: &Lab) {
    lab.vpn.nft(&format!(
        "table inet mute {{ chain mute {{ type filter hook prerouting priority -300
            iifname {TUN} tcp dport {PEERS} tcp flags & (syn | ack) == syn drop
        }}
        }}"
    ));
}

/// What `sends` brings out of the tunnel for peers: packets from port 4008, and from others.
fn left_from(lab: &Lab, sends: impl Fn()) -> (u64, u64) {
    lab.vpn.nft(&format!(
        "table inet seen
        delete table inet seen
        table inet seen {{
            counter own {{ }}
            counter other {{ }}
            chain pre {{ type filter hook prerouting priority -310
                iifname {TUN} meta l4proto {{ tcp, udp }} th dport {PEERS} th sport 4008 counter name own
                iifname {TUN} meta l4proto {{ tcp, udp }} th dport {PEERS} th sport != 4008 counter name other
            }}
        }}"
    ));
    sends();
    let seen = |name| packets(&lab.vpn.sh(&format!("nft list counter inet seen {name}")));
    (seen("own"), seen("other"))
}

fn packets(counter: &str) -> u64 {
    let packets = counter.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

fn rejected_out(lab: &Lab) -> u64 {
    packets(&lab.sh("nft list counter inet tunjail_vpn rejected_out"))
}

/// The wall as it was without what is tested here, which `up` puts back.
fn without(lab: &Lab, chains: &[&str]) {
    for chain in chains {
        lab.sh(&format!("nft flush chain inet tunjail_vpn {chain}"));
    }
}

#[test]
fn nobody_gets_anothers_callers_by_sending_from_its_port() {
    let mut scene = Scene::new(&format!("{STRICT_JAIL}{TWO_JAILS}"));
    scene.client.start_and_wait();
    let second = SecondBridge::new(&scene.lab);
    let stranger = second.plug("stranger", 2);
    provide(&scene.lab);
    scene.lab.tunjail_ok(&["up"]);
    mute_peers(&scene.lab);
    let owner =
        member(&scene, "runc", "m1", 2, "tcp/7 udp/7 tcp/4443:7 udp/4443:7 tcp/4444:7 udp/4444:7 udp/4008 tcp/4008");
    let _services = serve(&owner, 2);
    let thief = scene.member("runc", "m2", 3);
    let lab = &scene.lab;
    assert_eq!(owner_gets(lab, "7", "4001"), ALL, "before anybody steals");

    // The positive control, and what was stolen is given back when the wall is.
    without(lab, &["elsewhere", "begins"]);
    thief.steals("7", "4002");
    assert_eq!(owner_gets(lab, "7", "4002"), NOTHING, "positive control");
    lab.tunjail_ok(&["up"]);
    assert_eq!(owner_gets(lab, "7", "4002"), ALL, "what was stolen before");

    for (port, peers) in [("7", ["4003", "4004"]), ("4443", ["4005", "4006"])] {
        for (thief, peer) in [&thief as &dyn Thief, &stranger].into_iter().zip(peers) {
            thief.steals(port, peer);
            assert_eq!(owner_gets(lab, port, peer), ALL, "{port} {peer}");
        }
    }
    // It is only another port that it gets, and that of the owner is the owner's.
    for service in [SERVICE4, SERVICE6] {
        answer(&thief.exec(&[PROBE, "tcp-port", "7", service, "7", "1500"]));
        // Chance may choose a port that leads somewhere too, and then the first one does not leave.
        let datagrams = thief.exec(&[PROBE, "udp-port", "7", service, "7", "5"]).json();
        assert!(datagrams["answered"].as_u64() >= Some(4), "{service}: {datagrams}");
    }
    assert_eq!(left_from(lab, || owner.steals("4008", "4007")), (4, 0));
    let (kept, changed) = left_from(lab, || thief.steals("4008", "4008"));
    assert!(kept == 0 && changed >= 3, "{kept} {changed}");

    // Sent before anybody had the port, which is kept, and forgotten when somebody gets it.
    for thief in [&thief as &dyn Thief, &stranger] {
        thief.steals("4445", "4010");
    }
    lab.tunjail_ok(&["forward", "add", "m1", "tcp/4445:7", "udp/4445:7"]);
    assert_eq!(owner_gets(lab, "4445", "4010"), ALL, "a port that was added later");

    // By the second rule alone: what kept its port does not leave. A port that it has not had: the kernel goes on with the
    // one that it chose instead.
    without(lab, &["elsewhere"]);
    let before = rejected_out(lab);
    thief.steals("4444", "4009");
    assert!(rejected_out(lab) >= before + 4);
    assert_eq!(owner_gets(lab, "4444", "4009"), ALL, "by the second rule alone");
}
