//! `tunjail watch` under traffic: what others wipe is back in a moment, and nothing leaves meanwhile.

use std::time::Instant;

use super::{BY_NIC, BY_TUNNEL, Followed, NewFlows, PATIENCE, comes_to_be_seen_as};
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
    let mut followed = Followed::new("\"tun0\"", BY_TUNNEL);
    let Followed { member, watch, control, two } = &mut followed;
    let (member, control) = (&*member, *control);
    let mut traffic = Traffic::start(member);
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
    comes_to_be_seen_as(member, BY_TUNNEL);
    traffic.wait_floods_flowing();
    two.lab.assert_no_leak("exits", "watch-exit-came-back", control);
    traffic.end(member);
    followed.watch.end();
}

/// Tracking learns a connection's window anew after a flush, from what it sees first. That is a segment sent again here,
/// when the service has had many more already: its answers lie beyond such a window.
#[test]
fn connections_outlive_a_flush_that_meets_with_losses() {
    let followed = Followed::new("\"tun0\"", BY_TUNNEL);
    let Followed { member, control, two, .. } = &followed;
    let mut traffic = Traffic::start(member);
    traffic.wait_flowing();
    two.lab.inet.nft("table inet mute { chain said { type filter hook output priority 0; tcp sport 7 drop; }; }");
    traffic.press();
    drop(two.lab.sh("nft flush ruleset"));
    wait_until("the wall after a flush", PATIENCE, || stands(&two.lab));
    two.lab.inet.nft("delete table inet mute");
    traffic.wait_flowing();
    for flow in [&traffic.tcp4, &traffic.tcp6] {
        assert_eq!(flow.figure("connects"), 1, "it was opened anew");
    }
    two.lab.assert_no_leak("exits", "watch-nft-flushed-with-losses", *control);
    traffic.end(member);
    followed.watch.end();
}

/// The NIC's addresses come, change and go: each family is routed by it exactly as long as it has one to speak with.
#[test]
fn an_exits_addresses_are_followed() {
    let followed = Followed::new("[\"eth1\", \"tun0\"]", BY_NIC);
    let flows = NewFlows::start(&followed.member);
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
        followed.two.lab.sh(script);
        comes_to_be_seen_as(&followed.member, callers);
    }
    flows.end(&followed.member);
    followed.assert_no_leak("addresses-change");
    followed.end();
}
