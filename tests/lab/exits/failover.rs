//! A list of exits is an order of preference: new flows leave by the first that is there, and by nothing else.

use std::cell::RefCell;

use super::{BY_NIC, BY_TUNNEL, NewFlows, TwoExits, Watch, is_seen_as, now_us};
use crate::scene::Traffic;

/// New flows move within this time of the link's event.
const BOUND_MS: f64 = 100.0;
/// The kernel has one lock for the links, addresses and routes of all namespaces, other labs' among them, and an event may
/// have to wait for it.
const ATTEMPTS: usize = 3;

/// Lets an event happen and be undone until new flows moved in time, both ways: `there` and `back` return how long each
/// family's took, in milliseconds; of a way `back` that takes its own time, nothing.
#[track_caller]
fn in_time(case: &str, mut there: impl FnMut() -> [f64; 2], mut back: impl FnMut() -> Option<[f64; 2]>) {
    for _ in 0..ATTEMPTS {
        let took: Vec<_> = [("over", Some(there())), ("back", back())]
            .into_iter()
            .filter_map(|(way, took)| Some((way, took?)))
            .collect();
        for (way, [v4, v6]) in &took {
            println!(
                "failover: case={case} {way}: IPv4 {v4:.1} ms, IPv6 {v6:.1} ms from the event to the first answer"
            );
        }
        if took.iter().all(|(_, took)| took.iter().all(|took| *took < BOUND_MS)) {
            return;
        }
    }
    panic!("{case}: new flows took longer than {BOUND_MS} ms to move, {ATTEMPTS} times");
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
    for case in ["link-down", "carrier-lost", "link-deleted"] {
        let flows = RefCell::new(&mut flows);
        let moved = |callers: [&str; 2], since: u64| {
            let took = flows.borrow_mut().moved(callers, since);
            is_seen_as(&member, callers);
            took
        };
        let there = || {
            let since = now_us();
            match case {
                "link-down" => drop(two.lab.sh("ip link set eth1 down")),
                "carrier-lost" => two.uplink.cable(false),
                _ => two.uplink.is_deleted(&two.lab),
            }
            moved(BY_TUNNEL, since)
        };
        let back = || {
            let since = now_us();
            match case {
                "link-down" => two.uplink.comes(&two.lab),
                "carrier-lost" => two.uplink.cable(true),
                _ => two.uplink.is_made_anew(&two.lab),
            }
            Some(moved(BY_NIC, since))
        };
        in_time(case, there, back);
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
    for case in ["openvpn-sigkill", "tunnel-down", "openvpn-stop"] {
        let (flows, client) = (RefCell::new(&mut flows), RefCell::new(&mut two.client));
        let moved = |callers: [&str; 2], since: u64| {
            let took = flows.borrow_mut().moved(callers, since);
            is_seen_as(&member, callers);
            took
        };
        let there = || {
            let since = now_us();
            match case {
                "openvpn-sigkill" => client.borrow_mut().sigkill(),
                "tunnel-down" => drop(two.lab.sh("ip link set tun0 down")),
                _ => drop(client.borrow_mut().stop()),
            }
            moved(BY_NIC, since)
        };
        let back = || {
            let since = now_us();
            client.borrow_mut().end();
            client.borrow_mut().start_and_wait();
            moved(BY_TUNNEL, since);
            None
        };
        match case {
            // It says goodbye to its server before it lets go of the interface.
            "openvpn-stop" => {
                there();
                back();
            }
            _ => in_time(case, there, back),
        }
        two.assert_right_names();
        two.lab.assert_no_leak("exits", case, control);
    }
    assert!(watch.told("failed").is_empty(), "{:?}", watch.told("failed"));
    flows.end(&member);
    traffic.end(&member);
    watch.end();
}
