//! Promise P4, told: what others took of a wall is damage, and `tunjail up` puts it back.

use serde_json::Value;

use crate::product::JAIL;
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
