//! Several jails at the same time: each with its own exit, or one exit for both.

use super::{BY_NIC, BY_TUNNEL, TwoExits, Watch, comes_to_be_seen_as, is_seen_as, jail};
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::uplink::SecondBridge;
use crate::world::{SERVICE4, SERVICE6};

fn second_member(two: &TwoExits, bridge: &SecondBridge) -> Oci {
    let netns = bridge.plug("m2", 2);
    Oci::run(&two.lab, "crun", "m2", &Bundle::new(&netns).jailed(&["--jail", "second"]))
}

fn is_closed(member: &dyn Container) {
    for service in [SERVICE4, SERVICE6] {
        let line = member.probe(&["http", service]).json();
        assert_eq!(line["ok"], false, "{line}");
    }
}

/// Two jails with an exit each: when one exit goes, its jail is closed, and the other one is not touched. Then both have
/// the same exit, and it carries both.
#[test]
fn two_jails_have_their_own_exits_or_share_one() {
    let mut two = TwoExits::new("\"tun0\"");
    let second = SecondBridge::new(&two.lab);
    let own = jail("vpn", 18, "\"tun0\"") + &jail("second", 19, "\"eth1\"");
    two.lab.configure(&own);
    let control = two.control();
    let watch = Watch::start(&two.lab);
    two.client.start_and_wait();
    let (first, other) = (two.member("m1", 2), second_member(&two, &second));
    two.lab.reset_leaks();
    comes_to_be_seen_as(&first, BY_TUNNEL);
    is_seen_as(&other, BY_NIC);

    two.client.sigkill();
    is_closed(&first);
    is_seen_as(&other, BY_NIC);
    two.client.start_and_wait();
    comes_to_be_seen_as(&first, BY_TUNNEL);
    two.lab.sh("ip link set eth1 down");
    is_closed(&other);
    is_seen_as(&first, BY_TUNNEL);
    two.uplink.comes(&two.lab);
    comes_to_be_seen_as(&other, BY_NIC);
    two.lab.assert_no_leak("exits", "two-jails-two-exits", control);

    // The same exit for both, from the next look on.
    two.lab.configure(&own.replace("\"eth1\"", "\"tun0\""));
    watch.job.signal(nix::sys::signal::Signal::SIGHUP);
    comes_to_be_seen_as(&other, BY_TUNNEL);
    is_seen_as(&first, BY_TUNNEL);
    two.client.sigkill();
    is_closed(&first);
    is_closed(&other);
    two.client.start_and_wait();
    comes_to_be_seen_as(&first, BY_TUNNEL);
    comes_to_be_seen_as(&other, BY_TUNNEL);
    two.assert_right_names();
    two.lab.assert_no_leak("exits", "two-jails-one-exit", control);
    assert!(watch.told("failed").is_empty(), "{:?}", watch.told("failed"));
    watch.end();
}
