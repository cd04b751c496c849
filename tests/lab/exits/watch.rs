//! `tunjail watch` under traffic: what others wipe is back in a moment, and nothing leaves meanwhile.

use std::time::Instant;

use super::{BY_NIC, BY_TUNNEL, NewFlows, PATIENCE, TwoExits, Watch, comes_to_be_seen_as, is_seen_as};
use crate::closed::Wipe;
use crate::run::wait_until;
use crate::scene::Traffic;
use crate::world::Lab;

pub fn stands(lab: &Lab) -> bool {
    lab.tunjail_ok(&["status"]).contains("jail vpn: wall up")
}

/// One layer gone under traffic: `watch` puts it back, the flows go on, and nothing has left past the exit. In the end the
/// ruleset goes together with the exit.
#[test]
fn what_others_wipe_is_put_back_under_traffic() {
    let mut two = TwoExits::new("\"tun0\"");
    let control = two.control();
    two.client.start_and_wait();
    let watch = Watch::start(&two.lab);
    let member = two.member("m1", 2);
    two.lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    for (case, wipe) in [("nft-flushed", Wipe::Ruleset), ("rules-flushed", Wipe::Rules), ("table-flushed", Wipe::Table)]
    {
        let steps = watch.told("did").len();
        wipe.happen(&two.lab);
        let since = Instant::now();
        wait_until(&format!("the wall after {case}"), PATIENCE, || stands(&two.lab));
        println!("watch: case={case} wall stands within {} ms", since.elapsed().as_millis());
        assert!(watch.told("did").len() > steps, "somebody else mended it");
        traffic.wait_flowing();
        two.lab.assert_no_leak("exits", &format!("watch-{case}"), control);
    }

    drop(two.lab.sh("nft flush ruleset"));
    two.client.sigkill();
    traffic.press();
    wait_until("the wall without its exit", PATIENCE, || stands(&two.lab));
    two.lab.assert_no_leak("exits", "watch-nft-flushed-and-exit-killed", control);
    two.client.start_and_wait();
    comes_to_be_seen_as(&member, BY_TUNNEL);
    traffic.wait_floods_flowing();
    two.lab.assert_no_leak("exits", "watch-exit-came-back", control);
    traffic.end(&member);
    watch.end();
}

/// The NIC's addresses come, change and go: each family is routed by it exactly as long as it has one to speak with.
#[test]
fn an_exits_addresses_are_followed() {
    let mut two = TwoExits::new("[\"eth1\", \"tun0\"]");
    let control = two.control();
    let watch = Watch::start(&two.lab);
    two.client.start_and_wait();
    let member = two.member("m1", 2);
    two.lab.reset_leaks();
    is_seen_as(&member, BY_NIC);
    let flows = NewFlows::start(&member);
    let [by_nic4, by_nic6] = BY_NIC;
    let [by_tunnel4, by_tunnel6] = BY_TUNNEL;
    for (script, callers) in [
        ("ip -4 addr flush dev eth1", [by_tunnel4, by_nic6]),
        ("ip addr add 192.0.2.3/25 dev eth1", [by_nic4, by_nic6]),
        ("ip addr del 2001:db8:2::2/64 dev eth1", [by_nic4, by_tunnel6]),
        ("ip addr add 2001:db8:2::3/64 dev eth1 nodad", [by_nic4, "2001:db8:2::3"]),
        // With an address that has to be proved first, which takes a second or two.
        (
            "echo 1 > /proc/sys/net/ipv6/conf/eth1/accept_dad
            ip addr del 2001:db8:2::3/64 dev eth1; ip addr add 2001:db8:2::4/64 dev eth1",
            [by_nic4, "2001:db8:2::4"],
        ),
    ] {
        two.lab.sh(script);
        comes_to_be_seen_as(&member, callers);
    }
    flows.end(&member);
    two.assert_right_names();
    two.lab.assert_no_leak("exits", "addresses-change", control);
    watch.end();
}
