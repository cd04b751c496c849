//! Settings, rules and firewalls of the host that stop a jail's traffic or lead it past its table: each is shown to do
//! so, `tunjail check` names it, and what it says to do mends it.

use std::time::Duration;

use serde_json::Value;

use super::allowing;
use crate::bridge::BRIDGE;
use crate::engine::Container;
use crate::hostile::{forged, mac_of};
use crate::run::{Out, answer, wait_until};
use crate::scene::{self, Scene};

use crate::world::{LAN4, Lab, SERVICE4, SERVICE6};

/// What `check` finds that is not as it should be: verdict, what was looked at, and the words.
pub fn complaints(lab: &Lab) -> Vec<(String, String)> {
    let out = lab.tunjail(&["check", "--json"]);
    let json: Value = serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
    let findings = json["findings"].as_array().expect("findings");
    let complaints = findings.iter().filter(|finding| finding["verdict"] != "ok");
    // Engines that no test here has started are none of its business.
    let here = complaints.filter(|finding| {
        ["host", "forwarding", "firewall"].contains(&text(finding, "what").as_str())
            || text(finding, "what").starts_with("jail")
    });
    here.map(|finding| (text(finding, "verdict"), text(finding, "found"))).collect()
}

/// A setting that hurts.
struct Setting {
    /// How it comes to be so; a shell script.
    bad: &'static str,
    /// The question that has no answer then.
    ask: fn(&dyn Container) -> Out,
    verdict: &'static str,
    says: &'static [&'static str],
    /// The commands that `check` names.
    mend: &'static str,
}

fn ask4(member: &dyn Container) -> Out {
    member.probe(&["http", SERVICE4])
}

fn ask6(member: &dyn Container) -> Out {
    member.probe(&["http", SERVICE6])
}

fn ask_lan(member: &dyn Container) -> Out {
    member.probe(&["http", LAN4])
}

const SETTINGS: &[Setting] = &[
    Setting {
        bad: "echo 0 > /proc/sys/net/ipv4/ip_forward",
        ask: ask4,
        verdict: "warning",
        says: &["net.ipv4.ip_forward is off"],
        mend: "sysctl -w net.ipv4.ip_forward=1",
    },
    Setting {
        bad: "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        ask: ask6,
        verdict: "warning",
        says: &["net.ipv6.conf.all.forwarding is off"],
        mend: "sysctl -w net.ipv6.conf.all.forwarding=1",
    },
    Setting {
        bad: "echo 0 > /proc/sys/net/ipv4/conf/vpn/forwarding",
        ask: ask4,
        verdict: "warning",
        says: &["what comes in by vpn is not forwarded"],
        mend: "sysctl -w net.ipv4.conf.vpn.forwarding=1",
    },
    Setting {
        bad: "echo 0 > /proc/sys/net/ipv4/conf/tun0/forwarding",
        ask: ask4,
        verdict: "warning",
        says: &["what comes in by tun0 is not forwarded"],
        mend: "sysctl -w net.ipv4.conf.tun0.forwarding=1",
    },
    Setting {
        bad: "iptables -P FORWARD DROP",
        ask: ask4,
        verdict: "warning",
        says: &["nftables chain ip filter FORWARD", "none for bridge vpn"],
        mend: "iptables -I FORWARD -i vpn -j ACCEPT; iptables -I FORWARD -o vpn -j ACCEPT",
    },
    Setting {
        bad: "ip6tables -P FORWARD DROP",
        ask: ask6,
        verdict: "warning",
        says: &["nftables chain ip6 filter FORWARD"],
        mend: "ip6tables -I FORWARD -i vpn -j ACCEPT; ip6tables -I FORWARD -o vpn -j ACCEPT",
    },
    Setting {
        bad: "iptables-legacy -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
        ask: ask4,
        verdict: "warning",
        says: &["chain FORWARD of iptables-legacy"],
        mend: "iptables-legacy -I FORWARD -i vpn -j ACCEPT; iptables-legacy -I FORWARD -o vpn -j ACCEPT",
    },
    // As firewalld ends its chain.
    Setting {
        bad: "nft add table inet wall; nft 'add chain inet wall through { type filter hook forward priority 10; }'
            nft add rule inet wall through iifname other accept; nft add rule inet wall through reject with icmpx admin-prohibited",
        ask: ask4,
        verdict: "warning",
        says: &["nftables chain inet wall through"],
        mend: "nft insert rule inet wall through iifname vpn accept; nft insert rule inet wall through oifname vpn accept",
    },
    Setting {
        bad: "ip rule add pref 100 from 172.16.0.0/12 lookup main",
        ask: ask4,
        verdict: "error",
        says: &["the ip rule \"100: from 172.16.0.0/12 lookup 254\" is asked before the jail's (700)"],
        mend: "ip rule add pref 32765 from 172.16.0.0/12 lookup 254; ip rule del pref 100",
    },
    // A VPN of the host's own without exceptions: an exit node of Tailscale's without access to the LAN.
    Setting {
        bad: "ip -6 rule add pref 5270 lookup 52; ip -6 route add default via 2001:db8:178::1 table 52",
        ask: ask6,
        verdict: "warning",
        says: &["leads what comes in by tun0 for fd00:18::/64 elsewhere than to bridge vpn"],
        mend: "ip -6 rule add pref 701 to fd00:18::/64 lookup main",
    },
    Setting {
        bad: "ip rule add pref 50 fwmark 0x77 lookup main
            nft add table inet marks; nft 'add chain inet marks pre { type filter hook prerouting priority -150; }'
            nft add rule inet marks pre iifname vpn meta mark set 0x77",
        ask: ask4,
        verdict: "warning",
        says: &["\"50: from all fwmark 0x77 lookup 254\"", "those of its packets that get this mark"],
        mend: "ip rule add pref 32765 from all fwmark 0x77 lookup 254; ip rule del pref 50",
    },
    // Without a preference, as many programs add theirs; it stays, and so comes last here.
    Setting {
        bad: "ip -6 rule add not fwmark 0xca6c lookup main",
        ask: ask6,
        verdict: "warning",
        says: &["an ip rule of others came before its own"],
        mend: "tunjail up",
    },
];

/// Rules that take none of the jail's packets.
const HARMLESS: &str = "ip rule add pref 90 from 192.0.2.0/24 lookup main
    ip rule add pref 91 iif eth0 lookup main
    ip rule add pref 92 oif eth0 lookup main
    ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main";

#[test]
fn check_names_what_stops_a_jail_and_the_mend() {
    let mut scene = Scene::new(&allowing("\"192.168.178.0/24\""));
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    let lab = &scene.lab;
    let flows = || [ask4, ask6, ask_lan].iter().all(|ask| ask(&member).json()["ok"] == true);
    lab.sh(HARMLESS);
    assert!(flows(), "it does not work before anything is wrong");
    assert_eq!(complaints(lab), []);
    lab.reset_leaks();
    for Setting { bad, ask, verdict, says, mend } in SETTINGS {
        lab.sh(bad);
        let line = ask(&member).json();
        assert_eq!(line["ok"], false, "{bad}: this does no harm");
        let found = complaints(lab);
        println!("check: {bad}: {found:?}");
        assert_eq!(found.len(), 1, "{bad}: {found:#?}");
        assert_eq!(found[0].0, *verdict, "{bad}");
        for words in says.iter().chain([mend]) {
            assert!(found[0].1.contains(words), "{words:?} is not in {found:?}");
        }
        lab.sh(&mend.replace("sysctl", "busybox sysctl"));
        assert_eq!(complaints(lab), [], "{mend}");
        assert!(flows(), "{mend}: this is no mend for {bad}");
    }
    let leaks = lab.leaks();
    assert_eq!(leaks.escaped(), 0, "{leaks:?}\n{}", lab.leaked_flows());
}

/// A bridge without IPv6 has lost its address, which the engine has to give it again.
#[test]
fn check_names_a_bridge_without_ipv6() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    answer(&ask6(&member));
    scene.lab.sh(&format!("echo 1 > /proc/sys/net/ipv6/conf/{BRIDGE}/disable_ipv6"));
    assert_eq!(ask6(&member).json()["ok"], false);
    let found = complaints(&scene.lab);
    let mend = format!("sysctl -w net.ipv6.conf.{BRIDGE}.disable_ipv6=0");
    assert!(found.iter().any(|(_, words)| words.contains(&mend)), "{found:?}");
    scene.lab.sh(&format!("busybox {mend}; ip addr add fd00:18::1/64 dev {BRIDGE} nodad"));
    scene.lab.tunjail_ok(&["up"]);
    assert_eq!(complaints(&scene.lab), []);
    wait_until("IPv6 again", Duration::from_secs(5), || ask6(&member).json()["ok"] == true);
}

/// A host that lives by router adverts, and then becomes a router itself.
#[test]
fn check_names_an_uplink_that_hears_no_router_any_more() {
    let lab = Lab::new();
    lab.configure(crate::product::STRICT_JAIL);
    lab.sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; ip -6 route del default; ip -6 addr flush dev eth0 scope global
        echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra");
    let router = mac_of(&lab.router.sh("ip -j link show dev lan"));
    let from = lab.router.sh("ip -6 -o addr show dev lan scope link");
    let from = from.split_whitespace().nth(3).and_then(|addr| addr.split('/').next()).expect("a link-local address");
    let all: std::net::Ipv6Addr = "ff02::1".parse().expect("an address");
    let prefix = "2001:db8:178::".parse().expect("a prefix");
    let advert = forged::hex(&forged::discovery(
        forged::group(all.into()),
        forged::Sender { mac: router, addr: from.parse().expect("an address") },
        all,
        forged::Discovery::Router { prefix },
        false,
    ));
    let has_default = || !lab.sh("ip -6 route show default").is_empty();
    let advertise = || {
        assert_eq!(lab.router.probe(&["send", "lan", "1", &advert]).code, 0);
    };
    wait_until("the host's way", Duration::from_secs(5), || {
        advertise();
        has_default()
    });
    assert_eq!(complaints(&lab).iter().filter(|(_, words)| words.contains("accept_ra")).count(), 0);

    lab.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    advertise();
    assert!(!has_default(), "a router that takes a default route from another one");
    let found = complaints(&lab);
    let mend = "sysctl -w net.ipv6.conf.eth0.accept_ra=2";
    assert!(found.iter().any(|(verdict, words)| verdict == "warning" && words.contains(mend)), "{found:?}");
    lab.sh(&format!("busybox {mend}"));
    wait_until("the host's way again", Duration::from_secs(5), || {
        advertise();
        has_default()
    });
    assert_eq!(complaints(&lab).iter().filter(|(_, words)| words.contains("accept_ra")).count(), 0);
}
