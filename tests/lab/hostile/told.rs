//! Promise P2, its unfriendly side: what is refused is refused at once, even while the member floods.

use serde_json::Value;

use crate::engine::Container;
use crate::run::wait_until;
use crate::scene;
use crate::vpn::TUN;
use crate::world::{LAN4, LAN6, Netns, SERVICE4, SERVICE6};

/// Tries of each kind: the kernel's own errors are rate-limited by bucket, so one try alone would say little.
const TRIES: usize = 8;

#[test]
fn a_flooding_member_is_told_at_once_that_there_is_no_exit() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    for (case, loss) in [("killed", true), ("link down", false)] {
        if loss {
            scene.client.sigkill();
        } else {
            scene.client.start_and_wait();
            scene.lab.sh(&format!("ip link set {TUN} down"));
        }
        let mut floods: Vec<_> =
            [SERVICE4, SERVICE6].map(|addr| member.probing(&["udp-flood", addr, "9", "1000", "60"])).into();
        for flood in &mut floods {
            let tries = |line: &Value| line["sent"].as_u64().unwrap_or(0) + line["refused"].as_u64().unwrap_or(0);
            let limit = std::time::Duration::from_secs(5);
            flood.wait_figures("the flood to press", limit, |line| tries(line) > 300);
        }
        for (addr, net) in [(SERVICE4, "internet"), (SERVICE6, "internet"), (LAN4, "LAN"), (LAN6, "LAN")] {
            for port in ["7", "81"] {
                for _ in 0..TRIES / 2 {
                    let line = member.probe(&["tcp-echo", addr, port]).json();
                    assert_eq!(line["ok"], false, "exit {case}, {net}: {line}");
                    assert!(line["ms"].as_u64() < Some(200), "exit {case}, {net} {addr}: the connection hangs: {line}");
                }
            }
        }
        for flood in floods {
            member.end(flood);
        }
        if !loss {
            scene.client.end();
        }
    }
}

/// One packet for each destination is below any rate limit. Counted in the member's namespace: a socket without IP_RECVERR does not
/// hear of every code (icmp_err_convert, net/ipv4/icmp.c).
#[test]
fn a_datagram_that_goes_nowhere_gets_an_icmp_error() {
    let scene = scene::strict();
    let member = scene.member("runc", "m1", 2);
    let netns = Netns::open("m1");
    netns.nft(
        "table inet heard {
            counter heard4 { }
            counter heard6 { }
            chain in { type filter hook input priority 0
                icmp type destination-unreachable counter name heard4
                icmpv6 type destination-unreachable counter name heard6
            }
        }",
    );
    for (addr, counter) in [(SERVICE4, "heard4"), (SERVICE6, "heard6"), (LAN4, "heard4"), (LAN6, "heard6")] {
        netns.sh("nft reset counters table inet heard");
        let out = member.probe(&["udp-dev", "eth0", addr, "7", "1"]);
        assert_eq!(out.json()["answered"], 0, "{addr}: {out:?}");
        wait_until(&format!("an ICMP error about {addr}"), std::time::Duration::from_millis(500), || {
            !netns.sh(&format!("nft list counter inet heard {counter}")).contains("packets 0 ")
        });
    }
}
