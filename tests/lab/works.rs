//! Promise P2, its friendly side: what a jail allows works, and comes out where it should.

use rstest::rstest;

use crate::engine::Container;
use crate::engine::oci::Oci;
use crate::run::answer;
use crate::scene::{self, Scene};
use crate::vpn::TUN;
use crate::world::{DNS4, DNS6, LAN4, LAN6, Lab, SERVICE4, SERVICE6, VPN4, VPN6};

/// Everything that a member may do, and not a packet of it by the uplink. `control` comes from the same questions asked
/// without a jail.
pub fn comes_out_at_the_server(lab: &Lab, member: &dyn Container, case: &str, control: u64) {
    lab.reset_leaks();
    ask_the_internet(member, VPN4, VPN6);
    lab.assert_no_leak("works", case, control);
    assert!(lab.leaks().transport > 0, "nothing went through the tunnel either");
}

/// TCP, UDP, ICMP, HTTP and DNS over both families; HTTP must name the given addresses as the caller.
pub fn ask_the_internet(container: &dyn Container, caller4: &str, caller6: &str) {
    for (service, caller, dns) in [(SERVICE4, caller4, DNS4), (SERVICE6, caller6, DNS6)] {
        assert_eq!(answer(&container.probe(&["http", service])), caller);
        answer(&container.probe(&["tcp-echo", service, "7"]));
        answer(&container.probe(&["udp-echo", service, "7"]));
        assert_eq!(answer(&container.probe(&["ping", service, "3"])), "3");
        assert_eq!(answer(&container.probe(&["dns", dns, "member.example"])), SERVICE4);
    }
}

/// The positive control for one scene: the same questions by a container that is not jailed.
pub fn control(scene: &Scene) -> u64 {
    let mut plain = scene.plain("control", 200);
    let seen = scene.lab.assert_probe_is_visible(|| {
        ask_the_internet(&plain, crate::world::ROUTER4, crate::world::HOST6);
    });
    plain.remove();
    seen
}

fn running(scene: &mut Scene, runtime: &'static str) -> Oci {
    scene.client.start_and_wait();
    scene.member(runtime, "m1", 2)
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_member_comes_out_at_the_vpn_server(#[case] runtime: &'static str) {
    let mut scene = scene::strict();
    let control = control(&scene);
    let member = running(&mut scene, runtime);
    comes_out_at_the_server(&scene.lab, &member, runtime, control);
}

#[test]
fn the_lan_is_reached_where_allowed_and_only_there() {
    let mut scene = scene::with_lan();
    let mut plain = scene.plain("control", 200);
    let control = scene.lab.assert_probe_is_visible(|| ask_the_lan(&plain));
    plain.remove();
    let mut member = running(&mut scene, "runc");
    scene.lab.reset_leaks();
    ask_the_lan(&member);
    let leaks = scene.lab.leaks();
    assert!(leaks.lan4 > 0 && leaks.lan6 > 0, "{leaks:?}");
    assert_eq!(leaks.escaped(), 0, "{leaks:?}");
    member.remove();

    scene.lab.configure(crate::product::STRICT_JAIL);
    let member = scene.member("runc", "m2", 3);
    scene.lab.reset_leaks();
    for addr in [LAN4, LAN6] {
        let line = member.probe(&["tcp-echo", addr, "7"]).json();
        assert_eq!(line["ok"], false, "{line}");
    }
    scene.lab.assert_no_leak("works", "lan-not-allowed", control);
}

fn ask_the_lan(container: &dyn Container) {
    for addr in [LAN4, LAN6] {
        answer(&container.probe(&["tcp-echo", addr, "7"]));
        answer(&container.probe(&["udp-echo", addr, "7"]));
        answer(&container.probe(&["ping", addr, "1"]));
    }
}

#[test]
fn members_reach_each_other() {
    let mut scene = scene::strict();
    let first = running(&mut scene, "runc");
    let second = scene.member("crun", "m2", 3);
    for (from, to) in [(&first, ["172.18.0.3", "fd00:18::3"]), (&second, ["172.18.0.2", "fd00:18::2"])] {
        for addr in to {
            assert_eq!(answer(&from.probe(&["ping", addr, "2"])), "2", "{addr}");
        }
    }
    let _serving = first.spawn(&[crate::rootfs::PROBE, "serve", "172.18.0.2", "fd00:18::2"]);
    crate::run::wait_until("the member's service", std::time::Duration::from_secs(5), || {
        second.probe(&["tcp-echo", "172.18.0.2", "7"]).json()["ok"] == true
    });
    assert_eq!(answer(&second.probe(&["http", "fd00:18::2"])), "fd00:18::3", "members see each other's own address");
}

#[test]
fn what_is_refused_is_said_to_be() {
    let scene = scene::strict();
    let member = scene.member("runc", "m1", 2);
    for addr in [SERVICE4, SERVICE6, LAN4, LAN6] {
        let line = member.probe(&["tcp-echo", addr, "7"]).json();
        assert_eq!(line["ok"], false, "{line}");
        // A second at most and not at once: an ICMP error that arrives while connect() still holds the socket is lost
        // (tcp_v6_err), so the answer to the second SYN counts.
        assert!(line["kind"] != "TimedOut", "the application hangs instead of being told: {line}");
    }
}

/// What the first packets of connections say of their size, read where they come out of the tunnel.
struct Segments;

impl Segments {
    const MTU: u16 = 1280;

    fn place(lab: &Lab) {
        let (fits4, fits6) = (Self::MTU - 40, Self::MTU - 60);
        lab.vpn.nft(&format!(
            "table inet segments {{
                counter fits {{ }}
                counter too_large {{ }}
                chain pre {{ type filter hook prerouting priority -300
                    iifname != {TUN} accept
                    tcp flags & (syn | ack) != syn accept
                    meta nfproto ipv4 tcp option maxseg size > {fits4} counter name too_large accept
                    meta nfproto ipv6 tcp option maxseg size > {fits6} counter name too_large accept
                    counter name fits
                }}
            }}"
        ));
    }

    fn read(lab: &Lab, counter: &str) -> u64 {
        let text = lab.vpn.sh(&format!("nft list counter inet segments {counter}"));
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).expect("a counter")
    }
}

#[test]
fn connections_are_told_what_fits_through_the_exit() {
    let mut scene = scene::strict();
    Segments::place(&scene.lab);
    let narrow = |scene: &mut Scene| {
        scene.client.start_and_wait();
        scene.lab.sh(&format!("ip link set {TUN} mtu {}", Segments::MTU));
    };
    let connect = |container: &dyn Container| {
        for service in [SERVICE4, SERVICE6] {
            answer(&container.probe(&["tcp-echo", service, "7"]));
        }
    };

    narrow(&mut scene);
    scene.lab.recipe();
    let mut plain = scene.plain("control", 200);
    connect(&plain);
    let control = Segments::read(&scene.lab, "too_large");
    assert!(control >= 2, "positive control: without a jail both families' segments are too large, {control} were");
    plain.remove();
    scene.lab.no_recipe();

    let member = scene.member("runc", "m1", 2);
    connect(&member);
    assert_eq!(Segments::read(&scene.lab, "too_large"), control, "a member's segments do not fit");
    assert!(Segments::read(&scene.lab, "fits") >= 2, "a member's connections were not seen");
}
