//! A jail with IPv6 and an exit without: nobody waits for a family that leads nowhere.

use serde_json::Value;

use super::{assert_told, rejected};
use crate::engine::Container;
use crate::run::{Cmd, answer};
use crate::scene;
use crate::vpn::TUN;
use crate::world::{Netns, SERVICE4, SERVICE6, VPN4};

/// curl's own patience with IPv6 before it tries IPv4 beside it (CURLOPT_HAPPY_EYEBALLS_TIMEOUT_MS), in seconds.
const HAPPY_EYEBALLS: f64 = 0.2;

/// curl asks a name that has an address of each family, IPv6 first. Returns the seconds until it was connected.
#[track_caller]
fn curl(member: &Netns) -> f64 {
    let addresses = format!("both.example:80:[{SERVICE6}],{SERVICE4}");
    let format = "\n{\"ip\": \"%{remote_ip}\", \"connected\": %{time_connect}}";
    let args = ["--silent", "--resolve", &addresses, "--write-out", format, "http://both.example/"];
    let out = Cmd::new("curl", &args).within(member).ok();
    let (body, figures) = out.split_once('\n').expect("a body and figures");
    let figures: Value = serde_json::from_str(figures).expect("JSON");
    assert_eq!(figures["ip"], SERVICE4);
    assert_eq!(body, VPN4, "who called");
    figures["connected"].as_f64().expect("seconds")
}

#[test]
fn without_ipv6_on_the_exit_ipv4_is_tried_at_once() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    answer(&member.probe(&["http", SERVICE6]));
    scene.lab.sh(&format!("ip -6 addr flush dev {TUN} scope global"));
    scene.lab.tunjail_ok(&["exit", "up", "--dev", TUN]);
    let netns = Netns::open("m1");

    scene.lab.reset_leaks();
    let mut waited: Vec<f64> = (0..5).map(|_| curl(&netns)).collect();
    waited.sort_by(f64::total_cmp);
    println!("families: curl connected by IPv4 after {waited:?} s");
    // The third of five: the machine may be busy for a moment.
    assert!(waited[2] < HAPPY_EYEBALLS / 4.0, "IPv4 after {waited:?} s: curl waited for IPv6");
    let before = rejected(&scene.lab, "rejected_out");
    for (what, question) in [("TCP", ["tcp-echo", SERVICE6, "7"]), ("UDP", ["udp-echo", SERVICE6, "7"])] {
        let out = member.probe(&question);
        assert_told(what, &out);
        assert!(out.json()["ms"].as_u64() < Some(200), "{what}: {out:?}");
        println!("families: {what} by IPv6: {}", out.stdout.trim());
    }
    assert!(rejected(&scene.lab, "rejected_out") >= before + 2);
    assert_eq!(scene.lab.leaks().total(), 0, "{:?}", scene.lab.leaks());

    // Where IPv6 vanishes without a word, curl waits.
    scene.lab.nft(&format!(
        "table inet hole {{ chain pre {{ type filter hook prerouting priority -400
            iifname vpn ip6 daddr {SERVICE6} drop
        }}
        }}"
    ));
    let waited = curl(&netns);
    println!("families: control: {waited} s where IPv6 vanishes");
    assert!(waited >= HAPPY_EYEBALLS, "positive control: curl does not wait for IPv6: {waited} s");
}
