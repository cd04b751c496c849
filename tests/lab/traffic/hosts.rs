//! Hosts with more on them than a jail: strict reverse paths, Tailscale's rules, a WireGuard tunnel for everything that the
//! host says itself. The jail's traffic flows by its exit, and with the exit gone not a packet leaves.

use std::time::Duration;

use super::settings::complaints;
use super::wg::{self, WG};
use super::wire::Wire;
use crate::bridge::{Bridge, SUBNET4, SUBNET6};
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::matrix::control_of_the_loss;
use crate::product::{JAIL, STRICT_JAIL, TUNJAIL};
use crate::run::{answer, wait_until};
use crate::scene::{Scene, Traffic};
use crate::works::ask_the_internet;
use crate::world::{HOST4, HOST6, LAN4, LAN6, Lab, SERVICE4, SERVICE6, VPN4, VPN6};

const STRICT: &str = "for conf in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $conf; done";
const ACCEPT_LOCAL: &str = "for conf in /proc/sys/net/ipv4/conf/*/accept_local; do echo 1 > $conf; done";
/// What tailscaled sets up with an exit node and access to the nets that the host is in; and the jail's VPN by the uplink,
/// where the lab counts.
const TAILSCALE: &str = "ip link add tailscale0 type veth peer name tailnet netns vpn
    ip -n vpn link set tailnet up
    ip addr add 100.64.0.1/32 dev tailscale0; ip link set tailscale0 arp off up
    for family in -4 -6; do
        ip $family rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
        ip $family rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
        ip $family rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
        ip $family rule add pref 5270 lookup 52
        ip $family route add default dev tailscale0 table 52
    done
    for net in 192.168.178.0/24 172.18.0.0/16 203.0.113.0/24; do ip route add throw $net table 52; done
    for net in 2001:db8:178::/64 fd00:18::/64; do ip -6 route add throw $net table 52; done";

/// The bridge `vpn` and a jail, and no OpenVPN: its ports are WireGuard's here.
struct Bare {
    bridge: Bridge,
    lab: Lab,
}

impl Bare {
    fn new(config: &str) -> Self {
        let lab = Lab::new();
        let bridge = Bridge::new(&lab);
        lab.configure(config);
        Self { bridge, lab }
    }

    fn plain(&self, name: &str, n: u8) -> Oci {
        Oci::run(&self.lab, "runc", name, &Bundle::new(&self.bridge.plug(name, n)))
    }

    fn member(&self, name: &str, n: u8) -> Oci {
        Oci::run(&self.lab, "runc", name, &Bundle::new(&self.bridge.plug(name, n)).jailed(&["--jail", "vpn"]))
    }
}

/// Packets of the bridge's subnets that leave by an interface that is no exit and not the uplink.
fn watch(lab: &Lab, interface: &str) {
    lab.nft(&format!(
        "table inet elsewhere {{
            counter left {{ }}
            chain forward {{ type filter hook forward priority 350
                oifname {interface} ip saddr {SUBNET4} counter name left
                oifname {interface} ip6 saddr {SUBNET6} counter name left
            }}
        }}"
    ));
}

fn left(lab: &Lab) -> u64 {
    let text = lab.sh("nft list counter inet elsewhere left");
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

fn reaches_the_lan(member: &dyn Container) {
    for (addr, caller) in [(LAN4, HOST4), (LAN6, HOST6)] {
        assert_eq!(answer(&member.probe(&["http", addr])), caller);
    }
}

/// The member's traffic flows, presses against the closed exit, and flows again.
fn holds(scene: &mut Scene, member: &dyn Container, case: &str, control: u64) {
    scene.client.start_and_wait();
    // As the host is, so is a link that came since.
    if case.contains("strict") {
        scene.lab.sh(STRICT);
    }
    ask_the_internet(member, VPN4, VPN6);
    reaches_the_lan(member);
    let mut traffic = Traffic::start(member);
    traffic.wait_flowing();
    scene.lab.reset_leaks();
    scene.client.sigkill();
    traffic.press_floods();
    scene.lab.assert_no_leak("traffic", &format!("{case}-exit-killed"), control);
    reaches_the_lan(member);
    scene.client.start_and_wait();
    traffic.wait_floods_flowing();
    traffic.end(member);
    scene.client.end();
}

#[test]
fn a_strict_host_and_one_with_tailscale_hold() {
    let mut scene = Scene::new(JAIL);
    let mut plain = scene.plain("control", 200);
    let control = control_of_the_loss(&scene.lab, &mut scene.client, &plain);
    scene.lab.sh(TAILSCALE);
    watch(&scene.lab, "tailscale0");
    for addr in [SERVICE4, SERVICE6] {
        let before = left(&scene.lab);
        plain.probe(&["udp-dev", "eth0", addr, "9", "5"]);
        assert!(left(&scene.lab) >= before + 5, "positive control: Tailscale takes no packet to {addr}");
    }
    plain.remove();
    let before = left(&scene.lab);
    let member = scene.member("runc", "m1", 2);
    holds(&mut scene, &member, "tailscale", control);
    scene.lab.sh(ACCEPT_LOCAL);
    holds(&mut scene, &member, "tailscale-accept-local", control);
    scene.lab.sh(STRICT);
    holds(&mut scene, &member, "tailscale-strict", control);
    assert_eq!(left(&scene.lab), before, "packets of a member left by Tailscale");
    assert_eq!(complaints(&scene.lab).iter().filter(|(verdict, _)| verdict == "error").count(), 0);
}

/// `exit = "wg0"`, where wg0 is also what the host itself uses for everything.
#[test]
fn the_hosts_own_full_tunnel_is_the_exit() {
    let scene = Bare::new(&JAIL.replace("tun0", WG));
    let lab = &scene.lab;
    let _server = wg::full_tunnel(lab);
    wg::up(lab);
    lab.sh(STRICT);
    // Without a jail: through the tunnel, and past it when it dies.
    let mut plain = scene.plain("control", 200);
    lab.reset_leaks();
    ask_the_internet(&plain, VPN4, VPN6);
    assert_eq!(lab.leaks().escaped(), 0, "{:?}\n{}", lab.leaks(), lab.leaked_flows());
    let mut traffic = Traffic::start(&plain);
    traffic.wait_floods_flowing();
    lab.sh(&format!("ip link del {WG}"));
    wait_until("the control to leak", Duration::from_secs(5), || lab.leaks().v4 > 100 && lab.leaks().v6 > 100);
    let control = lab.leaks().total();
    traffic.end(&plain);
    plain.remove();
    // What is left of it: rules and the firewall's table.
    wg::down_by_hand(lab);

    wg::up(lab);
    let member = scene.member("m1", 2);
    lab.reset_leaks();
    ask_the_internet(&member, VPN4, VPN6);
    reaches_the_lan(&member);
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    assert_eq!(lab.leaks().escaped(), 0, "{:?}\n{}", lab.leaks(), lab.leaked_flows());
    lab.sh(&format!("ip link del {WG}"));
    traffic.press_floods();
    let leaks = lab.leaks();
    crate::leaks::report("traffic", "full-tunnel-is-the-exit", control, leaks.escaped());
    assert_eq!(leaks.escaped(), 0, "{leaks:?}\n{}", lab.leaked_flows());
    wg::down_by_hand(lab);
    wg::up(lab);
    lab.tunjail_ok(&["exit", "up", "--dev", WG]);
    traffic.wait_floods_flowing();
    assert_eq!(lab.leaks().escaped(), 0, "{:?}\n{}", lab.leaks(), lab.leaked_flows());
    traffic.end(&member);
    // Told of the exit, tunjail has moved its rules before those that wg-quick added.
    assert_eq!(complaints(lab), []);
}

/// Started again, wg-quick adds its rules without a preference, and the kernel puts them before tunjail's: `check` says so,
/// and `tunjail up` moves its own before them.
fn move_before_the_others(lab: &Lab) {
    let found = complaints(lab);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].1.contains("an ip rule of others came before its own"), "{found:#?}");
    lab.tunjail_ok(&["up"]);
    assert_eq!(complaints(lab), []);
}

/// The jail has another tunnel than the host. Which of them came first decides whose ip rules are asked first.
#[test]
fn a_jail_beside_the_hosts_own_full_tunnel_has_its_own_exit() {
    let scene = Bare::new(STRICT_JAIL);
    let lab = &scene.lab;
    let _server = wg::full_tunnel(lab);
    let wire = Wire::new(lab);
    watch(lab, WG);
    wg::up(lab);
    lab.sh(STRICT);
    let mut plain = scene.plain("control", 200);
    ask_the_internet(&plain, VPN4, VPN6);
    let control = left(lab);
    assert!(control > 10, "positive control: the host's tunnel takes what is not jailed");
    plain.remove();

    let member = scene.member("m1", 2);
    let before = left(lab);
    lab.reset_leaks();
    ask_the_internet(&member, VPN4, VPN6);
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    wire.cut(lab);
    traffic.press_floods();
    lab.assert_no_leak("traffic", "beside-a-full-tunnel", control);
    wire.mend(lab);
    lab.tunjail_ok(&["exit", "up", "--dev", "tun0"]);
    traffic.wait_floods_flowing();
    assert_eq!(left(lab), before, "packets of a member left by the host's tunnel");
    assert_eq!(complaints(lab), []);

    // The host's tunnel started again: its rules come first, and nothing passes.
    wg::down();
    wg::up(lab);
    traffic.press_floods();
    for addr in [SERVICE4, SERVICE6] {
        assert_eq!(member.probe(&["tcp-echo", addr, "7"]).json()["ok"], false, "{addr} by the wrong tunnel");
    }
    assert_eq!(left(lab), before, "packets of a member left by the host's tunnel");
    move_before_the_others(lab);
    traffic.wait_floods_flowing();
    assert_eq!(left(lab), before, "packets of a member left by the host's tunnel");
    assert_eq!(lab.probe(&["http", SERVICE4]).json()["body"], VPN4, "the host's own tunnel");

    // `tunjail watch` does the same by itself, and moves back when they are gone.
    let _watch = lab.tools().cmd(TUNJAIL, &["watch"]).spawn();
    // By the kernel's own first rule, `lookup local`.
    let comes_first = |preference: &str| {
        wait_until(&format!("the jail's rules first, {preference}"), Duration::from_secs(5), || {
            ["-4", "-6"].iter().all(|family| {
                let rules = lab.sh(&format!("ip {family} rule show"));
                rules.lines().nth(1).is_some_and(|rule| rule.contains("tunjail_vpn") && rule.starts_with(preference))
            })
        });
    };
    wg::down();
    comes_first("700:");
    wg::up(lab);
    comes_first("69");
    traffic.wait_floods_flowing();
    assert_eq!(left(lab), before, "packets of a member left by the host's tunnel");
    traffic.end(&member);
}
