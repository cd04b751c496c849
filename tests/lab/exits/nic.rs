//! A plain NIC as exit, by tunjail's routes or by somebody else's; and what cannot be an exit.

use serde_json::Value;

use super::{BY_NIC, TwoExits, is_seen_as, jail};
use crate::bridge::Bridge;
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::hostile::forged::{self, Sender};
use crate::scene::Traffic;
use crate::uplink::{GATEWAY4, GATEWAY6, NIC, NIC4, NIC6, Uplink};
use crate::world::{Lab, Netns, SERVICE4, SERVICE6};
use crate::yard::assert_refused;

/// Somebody else's table: its owner says where it leads.
const TABLE: u32 = 100;

fn foreign_jail() -> String {
    format!(
        "[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = \"{NIC}\"\nroutes = \"foreign\"\n\
         table = {TABLE}\nallow = [\"192.168.178.0/24\", \"2001:db8:178::/64\"]\n"
    )
}

fn others_lead_out(lab: &Lab, verb: &str) {
    lab.sh(&format!(
        "ip route {verb} default via {GATEWAY4} dev {NIC} table {TABLE}
        ip -6 route {verb} default via {GATEWAY6} dev {NIC} table {TABLE}"
    ));
}

fn routes(lab: &Lab) -> String {
    lab.sh(&format!("ip -4 route show table {TABLE}; ip -6 route show table {TABLE}"))
}

/// TCP without any flag, which is of no connection, so that nobody gives it another source: 3 packets of each family.
fn send_what_is_no_connections(netns: &Netns) {
    let links: Value = serde_json::from_str(&netns.sh("ip -j link show dev eth0")).expect("JSON from ip");
    let mac: Vec<u8> = links[0]["address"]
        .as_str()
        .expect("a MAC")
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))
        .collect();
    let mac = mac.try_into().expect("six bytes");
    let bridge = [2, 0x42, 0xac, 0x12, 0, 1];
    for (own, service) in [("172.18.0.2", SERVICE4), ("fd00:18::2", SERVICE6)] {
        let from = Sender { mac, addr: own.parse().expect("an address") };
        let frame = forged::protocol(bridge, from, service.parse().expect("an address"), 6);
        assert_eq!(netns.probe(&["send", "eth0", "3", &forged::hex(&frame)]).json()["sent"], 3);
    }
}

fn rejected(lab: &Lab) -> u64 {
    let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    status["jails"][0]["rejected"]["out"].as_u64().expect("a counter")
}

/// Without a script and without `watch`: the NIC is there when the wall is raised, and that is enough.
#[test]
fn a_plain_nic_with_a_gateway_carries_both_families_and_nothing_when_it_is_gone() {
    let two = TwoExits::new("\"eth1\"");
    let control = two.control();
    let netns = two.bridge.plug("m1", 2);
    let member = Oci::run(&two.lab, "runc", "m1", &Bundle::new(&netns).jailed(&["--jail", "vpn"]));
    two.lab.reset_leaks();
    is_seen_as(&member, BY_NIC);
    let before = rejected(&two.lab);
    send_what_is_no_connections(&netns);
    assert!(rejected(&two.lab) >= before + 6, "what conntrack cannot place is not seen to be refused");
    two.assert_right_names();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    two.uplink.is_deleted(&two.lab);
    traffic.press();
    two.lab.assert_no_leak("exits", "plain-nic-deleted", control);
    two.uplink.is_made_anew(&two.lab);
    two.lab.tunjail_ok(&["exit", "up", "--dev", NIC]);
    is_seen_as(&member, BY_NIC);
    two.lab.assert_no_leak("exits", "plain-nic-made-anew", control);
    two.assert_right_names();
    traffic.end(&member);
}

/// tunjail ends the table and leaves the rest of it to its owner, from before the wall until after it. What the owner lets
/// it lead to besides the exits is stopped by the filter.
#[test]
fn where_others_route_only_the_end_of_the_table_is_tunjails() {
    let two = TwoExits::new("\"eth1\"");
    let lab = &two.lab;
    lab.configure(&foreign_jail());
    let control = two.control();
    others_lead_out(lab, "add");
    let [first, second] = [("m1", 2), ("m2", 3)].map(|(name, n)| two.bridge.plug(name, n));
    let before = lab.settled();
    let jailed = |netns| Bundle::new(netns).jailed(&["--jail", "vpn"]);
    let mut member = Oci::run(lab, "runc", "m1", &jailed(&first));
    lab.reset_leaks();
    is_seen_as(&member, BY_NIC);
    let ours = routes(lab);
    let ours: Vec<&str> = ours.lines().filter(|line| line.contains("proto 116")).collect();
    let is_own = |line: &&str| {
        ["unreachable default", "172.18.0.0/16 dev vpn", "fd00:18::/64 dev vpn", "throw "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    assert!(ours.len() == 6 && ours.iter().all(is_own), "{ours:?}");

    // The owner changes it: no damage, and nothing is put back.
    others_lead_out(lab, "del");
    assert!(lab.tunjail_ok(&["status"]).contains("wall up"));
    assert_eq!(member.probe(&["http", SERVICE4]).json()["ok"], false);
    lab.assert_no_leak("exits", "foreign-table-empty", control);
    others_lead_out(lab, "add");
    is_seen_as(&member, BY_NIC);

    // It leads elsewhere than to the exits: the filter stops it, whatever the wall was raised by.
    lab.sh(&format!(
        "ip route replace default via 192.168.178.1 dev eth0 table {TABLE}
        ip -6 route replace default via 2001:db8:178::1 dev eth0 table {TABLE}"
    ));
    let answer = lab.sh(&format!("ip route get {SERVICE4} from 172.18.0.2 iif vpn"));
    assert!(answer.contains("dev eth0"), "positive control: the route wall leads to the uplink here: {answer}");
    let mut traffic = Traffic::start(&member);
    traffic.press();
    lab.assert_no_leak("exits", "foreign-table-leads-to-the-uplink", control);
    traffic.end(&member);
    let check = lab.tunjail(&["check"]);
    assert!(check.code == 1 && check.stdout.contains("routing table 100 leads out by eth0"), "{check:?}");
    let refused =
        Oci::try_run(lab, "runc", "m2", &jailed(&second)).err().expect("held, though the way leads elsewhere");
    assert!(refused.stderr.contains("leads out by eth0, which is none of its exits (eth1)"), "{refused:?}");
    lab.sh(&format!(
        "ip route replace default via {GATEWAY4} dev {NIC} table {TABLE}
        ip -6 route replace default via {GATEWAY6} dev {NIC} table {TABLE}"
    ));
    is_seen_as(&member, BY_NIC);
    member.remove();
    before.assert_same(&lab.settled(), "a jail in somebody else's table");

    // `up` asks as well, and takes back what it did.
    lab.sh(&format!("ip route replace default via 192.168.178.1 dev eth0 table {TABLE}"));
    let before = lab.settled();
    assert_refused(&lab.tunjail(&["up"]), &["jail vpn was not raised", "routing table 100 leads out by eth0"]);
    before.assert_same(&lab.settled(), "a refused `tunjail up`");
}

/// Said when the wall is raised for the first time, and by `check`. One that stands goes on, whatever becomes of the
/// host's own uplink.
#[test]
fn what_cannot_be_an_exit_is_said_at_once() {
    let lab = Lab::new();
    let _bridge = Bridge::new(&lab);
    let before = lab.settled();
    let refused = |config: &str, fragments: &[&str]| {
        lab.configure(config);
        assert_refused(&lab.tunjail(&["up"]), fragments);
        let check = lab.tunjail(&["check"]);
        let found =
            |line: &str| line.starts_with("error") && fragments.iter().skip(1).all(|fragment| line.contains(fragment));
        assert!(check.code == 1 && check.stdout.lines().any(found), "{fragments:?} is not in {}", check.stdout);
        before.assert_same(&lab.settled(), "a refused exit");
    };
    let by = |exit: &str, gateway: &str| {
        format!("[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = {exit}\ngateway = {gateway}\n")
    };
    let uplink =
        ["jail vpn was not raised", "exit eth0 is the interface of this host's only default route", "\"exit = \""];
    refused(&by("\"eth0\"", "\"192.168.178.1\""), &uplink);
    refused(&by("[\"tun0\", \"eth0\"]", "\"192.168.178.1\""), &uplink);
    refused(
        &by("\"eth0\"", "[\"192.168.178.1\", \"2001:db8:99::1\"]"),
        &[
            "jail vpn was not raised",
            "gateway 2001:db8:99::1 is in no net of exit eth0 (2001:db8:178::/64)",
            "\"gateway = \"",
        ],
    );

    // Dual-homed, the second uplink is an exit, and stays one when the first is lost and it is all that is left.
    let _uplink = Uplink::new(&lab);
    lab.sh(&format!(
        "ip route add default via {GATEWAY4} metric 200; ip -6 route add default via {GATEWAY6} metric 200"
    ));
    lab.configure(&jail("vpn", 18, "\"eth1\""));
    lab.tunjail_ok(&["up"]);
    lab.sh("ip link set eth0 down");
    lab.sh("nft delete table inet tunjail_vpn");
    lab.tunjail_ok(&["up"]);
    assert!(lab.tunjail_ok(&["status"]).contains("wall up"));
    // Its net changes under it: said, and mended all the same.
    lab.sh(&format!(
        "ip addr del {NIC4}/25 dev {NIC}; ip addr add 198.18.0.9/24 dev {NIC}; nft delete table inet tunjail_vpn"
    ));
    let up = lab.tunjail(&["up"]);
    assert!(
        up.code == 0
            && up.stderr.contains("warning: jail vpn: gateway 192.0.2.1 is in no net of exit eth1 (198.18.0.0/24)"),
        "{up:?}"
    );
    let status = lab.tunjail_ok(&["status"]);
    assert!(status.contains("wall up"), "{status}");
    let table = lab.sh("ip -6 route show table tunjail_vpn");
    assert!(table.contains(&format!("default via {GATEWAY6} dev {NIC}")), "{NIC6} carries still: {table}");
}
