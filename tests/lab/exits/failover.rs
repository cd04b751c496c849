//! A list of exits is an order of preference: new flows leave by the first that is there, and by nothing else.

use super::{BY_NIC, BY_TUNNEL, NewFlows, TwoExits, Watch, comes_to_be_seen_as, is_seen_as, now_us};
use crate::scene::Traffic;

/// New flows move within this time of the link's event.
const BOUND_MS: f64 = 100.0;

#[track_caller]
fn within_bound(case: &str, took: [f64; 2]) {
    println!("failover: case={case} IPv4 {:.1} ms, IPv6 {:.1} ms from the event to the first answer", took[0], took[1]);
    assert!(took.iter().all(|took| *took < BOUND_MS), "{case}: new flows took {took:?} ms to move");
}

/// The NIC is preferred and goes in each of the ways that NICs go, the tunnel takes over, and the NIC takes back.
#[test]
fn new_flows_follow_the_order_of_the_list() {
    let mut two = TwoExits::new("[\"eth1\", \"tun0\"]");
    let control = two.control();
    let watch = Watch::start(&two.lab);
    two.client.start_and_wait();
    let member = two.member("m1", 2);
    two.lab.reset_leaks();
    is_seen_as(&member, BY_NIC);

    let mut flows = NewFlows::start(&member);
    let traffic = Traffic::start(&member);
    flows.moved(BY_NIC, 0);
    for (case, go, come) in [
        ("link-down", "ip link set eth1 down", "up"),
        ("carrier-lost", "carrier", "carrier"),
        ("link-deleted", "delete", "new"),
    ] {
        let since = now_us();
        match go {
            "carrier" => two.uplink.cable(false),
            "delete" => two.uplink.is_deleted(&two.lab),
            script => drop(two.lab.sh(script)),
        }
        within_bound(case, flows.moved(BY_TUNNEL, since));
        is_seen_as(&member, BY_TUNNEL);
        match come {
            "carrier" => two.uplink.cable(true),
            "new" => two.uplink.is_made_anew(&two.lab),
            _ => two.uplink.comes(&two.lab),
        }
        comes_to_be_seen_as(&member, BY_NIC);
        flows.moved(BY_NIC, since);
        two.assert_right_names();
        two.lab.assert_no_leak("exits", case, control);
    }
    assert!(watch.told("failed").is_empty(), "{:?}", watch.told("failed"));
    flows.end(&member);
    traffic.end(&member);
    watch.end();
}

/// The tunnel is preferred and dies in each of the ways that OpenVPN dies, the NIC stands in, and the tunnel takes back.
/// OpenVPN runs no script.
#[test]
fn a_nic_stands_in_for_a_tunnel_that_dies() {
    let mut two = TwoExits::new("[\"tun0\", \"eth1\"]");
    let control = two.control();
    let watch = Watch::start(&two.lab);
    two.client.start_and_wait();
    let member = two.member("m1", 2);
    two.lab.reset_leaks();
    is_seen_as(&member, BY_TUNNEL);
    let mut flows = NewFlows::start(&member);
    let traffic = Traffic::start(&member);
    flows.moved(BY_TUNNEL, 0);
    for case in ["openvpn-sigkill", "openvpn-stop", "tunnel-down"] {
        let since = now_us();
        match case {
            "openvpn-sigkill" => two.client.sigkill(),
            "openvpn-stop" => {
                // It says goodbye to the server first and takes its time: the event is the interface's end.
                two.client.stop();
            }
            _ => drop(two.lab.sh("ip link set tun0 down")),
        }
        let took = flows.moved(BY_NIC, since);
        if case == "openvpn-stop" {
            println!("failover: case={case} {took:?} ms from the signal, OpenVPN's own goodbye among it");
        } else {
            within_bound(case, took);
        }
        is_seen_as(&member, BY_NIC);
        two.client.end();
        two.client.start_and_wait();
        comes_to_be_seen_as(&member, BY_TUNNEL);
        flows.moved(BY_TUNNEL, since);
        two.assert_right_names();
        two.lab.assert_no_leak("exits", case, control);
    }
    assert!(watch.told("failed").is_empty(), "{:?}", watch.told("failed"));
    flows.end(&member);
    traffic.end(&member);
    watch.end();
}
