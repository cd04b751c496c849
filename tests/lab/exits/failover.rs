//! A list of exits is an order of preference: new flows leave by the first that is there, and by nothing else.

use super::{BY_NIC, BY_TUNNEL, Followed, NewFlows, TwoExits, is_seen_as, now_us};
use crate::scene::Traffic;

/// New flows move within this time of the link's event.
const BOUND_MS: f64 = 100.0;
/// The kernel has one lock for the links, addresses and routes of all namespaces, other labs' among them, and an event may
/// have to wait for it.
const ATTEMPTS: usize = 3;

/// A way in which the preferred exit goes, and how it comes back.
struct Case {
    name: &'static str,
    goes: fn(&mut TwoExits),
    comes: fn(&mut TwoExits),
    /// Of the two ways, those whose time is the event's and not that of whoever makes the exit.
    timed: &'static [&'static str],
}

const BOTH: &[&str] = &["over", "back"];

/// Goes through `cases` under traffic: new flows move to the other exit and back, in time and in the right name. Events
/// are repeated until they were followed in time.
fn new_flows_follow(exits: &str, preferred: [&str; 2], other: [&str; 2], cases: &[Case]) {
    let mut followed = Followed::new(exits, preferred);
    let mut flows = NewFlows::start(&followed.member);
    let traffic = Traffic::start(&followed.member);
    flows.moved(preferred, 0);
    for Case { name, goes, comes, timed } in cases {
        let in_time = (0..ATTEMPTS).any(|_| {
            [("over", goes, other), ("back", comes, preferred)].map(|(way, happen, callers)| {
                let since = now_us();
                happen(&mut followed.two);
                let [v4, v6] = flows.moved(callers, since);
                is_seen_as(&followed.member, callers);
                if !timed.contains(&way) {
                    return true;
                }
                println!(
                    "failover: case={name} {way}: IPv4 {v4:.1} ms, IPv6 {v6:.1} ms from the event to the first answer"
                );
                v4 < BOUND_MS && v6 < BOUND_MS
            }) == [true; 2]
        });
        assert!(in_time, "{name}: new flows took longer than {BOUND_MS} ms to move, {ATTEMPTS} times");
        followed.assert_no_leak(name);
    }
    flows.end(&followed.member);
    traffic.end(&followed.member);
    followed.end();
}

/// The NIC is preferred and goes in each of the ways that NICs go, the tunnel takes over, and the NIC takes back.
#[test]
fn new_flows_follow_the_order_of_the_list() {
    let cases = [
        Case {
            name: "link-down",
            goes: |two| drop(two.lab.sh("ip link set eth1 down")),
            comes: |two| two.uplink.comes(&two.lab),
            timed: BOTH,
        },
        Case {
            name: "carrier-lost",
            goes: |two| two.uplink.cable(false),
            comes: |two| two.uplink.cable(true),
            timed: BOTH,
        },
        Case {
            name: "link-deleted",
            goes: |two| two.uplink.is_deleted(&two.lab),
            comes: |two| two.uplink.is_made_anew(&two.lab),
            timed: BOTH,
        },
    ];
    new_flows_follow("[\"eth1\", \"tun0\"]", BY_NIC, BY_TUNNEL, &cases);
}

/// The tunnel is preferred and dies in each of the ways that OpenVPN dies, the NIC stands in, and the tunnel takes back.
/// OpenVPN runs no script.
#[test]
fn a_nic_stands_in_for_a_tunnel_that_dies() {
    let comes: fn(&mut TwoExits) = |two| {
        two.client.end();
        two.client.start_and_wait();
    };
    let cases = [
        Case { name: "openvpn-sigkill", goes: |two| two.client.sigkill(), comes, timed: &["over"] },
        Case { name: "tunnel-down", goes: |two| drop(two.lab.sh("ip link set tun0 down")), comes, timed: &["over"] },
        // It says goodbye to its server before it lets go of the interface.
        Case { name: "openvpn-stop", goes: |two| drop(two.client.stop()), comes, timed: &[] },
    ];
    new_flows_follow("[\"tun0\", \"eth1\"]", BY_TUNNEL, BY_NIC, &cases);
}
