//! Promise P4, told: what others took of a wall is damage, and `tunjail up` puts it back.

use std::time::Duration;

use serde_json::Value;

use crate::product::JAIL;
use crate::run::wait_until;
use crate::yard::Yard;

fn wall(yard: &Yard) -> String {
    let status: Value = serde_json::from_str(&yard.lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    status["jails"][0]["wall"].as_str().expect("the wall's state").to_owned()
}

/// In any order: of rules with one preference, and of routes with one destination, it says nothing.
fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_wall_that_others_changed_is_damaged_and_up_mends_it() {
    let yard = Yard::new(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    let standing = yard.lab.settled();
    assert_eq!(wall(&yard), "up");
    for script in [
        "nft flush ruleset",
        "nft flush chain inet tunjail_vpn forward",
        "nft delete table bridge tunjail_vpn",
        "ip rule del pref 700 from 172.18.0.0/16",
        "ip -6 rule del pref 700 from fd00:18::/64",
        "ip route flush table tunjail_vpn",
        "ip route del unreachable default table tunjail_vpn metric 4294967295",
        "ip -6 route del unreachable default table tunjail_vpn metric 4294967295",
        "ip route del throw 192.168.178.0/24 table tunjail_vpn",
        "ip route add 10.0.0.0/8 dev eth0 table tunjail_vpn proto 116",
    ] {
        yard.lab.sh(script);
        assert_eq!(wall(&yard), "damaged", "{script}");
        let check = yard.lab.tunjail(&["check"]);
        assert!(check.code == 1 && check.stdout.contains("`tunjail up` makes it"), "{script}: {check:?}");
        yard.lab.tunjail_ok(&["up"]);
        assert_eq!(wall(&yard), "up", "{script}");
        // The bridge's own masquerade, which is not tunjail's, goes with a flushed ruleset.
        let now = yard.lab.settled();
        for part in ["ip rule", "ip -6 rule", "ip route, all tables", "ip -6 route, all tables"] {
            assert_eq!(lines(standing.part(part)), lines(now.part(part)), "{script}: {part}");
        }
    }
}

/// An exit that went takes its routes along, and that it is back has to be told: nothing was taken by others.
#[test]
fn an_exit_that_came_back_untold_is_no_damage() {
    let yard = Yard::new(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    yard.lab.sh("ip link del tun0");
    assert_eq!(wall(&yard), "up", "without an exit there is none to route by");
    yard.exit_comes();
    assert_eq!(wall(&yard), "behind");
    yard.lab.tunjail_ok(&["exit", "up", "--dev", "tun0"]);
    assert_eq!(wall(&yard), "up");
}

/// Without its configuration nobody knows all of what it should be; what every wall has is looked at all the same.
#[test]
fn a_wall_that_left_the_configuration_is_looked_at_too() {
    let yard = Yard::new(JAIL);
    let lab = &yard.lab;
    for script in [
        "nft flush chain inet tunjail_vpn forward",
        "nft delete table bridge tunjail_vpn",
        "ip -6 rule del pref 700 iif vpn",
        "ip rule del pref 700 from 172.18.0.0/16; ip -6 rule del pref 700 from fd00:18::/64",
        "ip route flush table tunjail_vpn",
    ] {
        lab.configure(JAIL);
        lab.tunjail_ok(&["up"]);
        lab.configure("");
        assert_eq!(wall(&yard), "up", "before {script}");
        lab.sh(script);
        assert_eq!(wall(&yard), "damaged", "{script}");
    }
    assert!(lab.tunjail_ok(&["status"]).contains("`tunjail down vpn` removes it"));
    lab.tunjail_ok(&["down", "vpn"]);
}

/// `status` and `check` say what to do about it, and that helps.
#[test]
fn an_exit_that_carries_nothing_is_told_with_the_mend() {
    let yard = Yard::without_exit(JAIL);
    let lab = &yard.lab;
    let exit = || {
        let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
        status["jails"][0]["exits"][0].clone()
    };
    let says = |words: &str| {
        assert_eq!(exit()["trouble"], words);
        let (status, check) = (lab.tunjail_ok(&["status"]), lab.tunjail(&["check"]).stdout);
        assert!(status.contains(&format!("exit tun0 {words}; nothing leaves by it\n")), "{status}");
        let (is, mend) = words.split_once(": ").expect("a mend");
        let found = format!("warning  jail vpn: exit tun0 {is}; nothing leaves by it: {mend}\n");
        assert!(check.contains(&found), "{found}: {check}");
    };
    says("is missing: start the VPN that makes it, or correct \"exit = \" in [jail.vpn]");
    std::fs::create_dir_all("/etc/wireguard").expect("a directory");
    std::fs::write("/etc/wireguard/tun0.conf", "[Interface]\n").expect("what wg-quick reads");
    says("is missing: wg-quick up tun0");
    // Without ARP it needs no next hop.
    lab.sh("ip link add tun0 type veth peer name far; ip link set tun0 arp off");
    says("is down: ip link set tun0 up");
    lab.sh("ip link set tun0 up");
    says("has no carrier: start the VPN client that serves it");
    lab.sh("ip link set far up; ip addr flush dev tun0");
    wait_until("the carrier", Duration::from_secs(5), || exit()["carrier"] == true);
    says("has no address: restart its VPN or DHCP client, or ip addr add ADDRESS/PREFIX dev tun0");
    lab.sh("ip addr add 10.8.0.2/24 dev tun0");
    assert_eq!(exit()["trouble"], Value::Null);
    assert!(lab.tunjail_ok(&["status"]).contains("exit tun0: up, IPv4 yes, IPv6 no\n"));
}
