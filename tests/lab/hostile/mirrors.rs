//! The host as a mirror and as the far end of a tunnel: packets in the names of the host itself, of loopback, of groups and
//! of nobody, and packets that hold others for the host to unpack.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::forged::{self, Mac, Sender};
use super::{Attacker, Broken, gateway_mac, ip, mac_of, v6};
use crate::bridge::{GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::run::wait_until;
use crate::scene::{self, Scene};
use crate::world::{HOST4, HOST6, Lab, SERVICE4, SERVICE6};

const PATIENCE: Duration = Duration::from_secs(5);
/// The tunnel's addresses, as its server gives them.
const EXIT4: &str = "10.8.0.2";
const EXIT6: &str = "2001:db8:8::1000";

/// Whose names no member may speak in.
const SOURCES: [&str; 17] = [
    EXIT4,
    EXIT6,
    HOST4,
    HOST6,
    GATEWAY4,
    GATEWAY6,
    "127.0.0.1",
    "127.0.0.53",
    "::1",
    "224.0.0.5",
    "ff02::5",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "240.0.0.1",
    "169.254.1.1",
    "::ffff:192.0.2.1",
];

fn destinations(v4: bool) -> [&'static str; 4] {
    if v4 { [SERVICE4, GATEWAY4, HOST4, EXIT4] } else { [SERVICE6, GATEWAY6, HOST6, EXIT6] }
}

/// In each of these names to each of these addresses, in frames for the host and in such as bridges take for themselves.
fn misnamed(attacker: &Attacker) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for source in SOURCES.map(ip) {
        let from = Sender { mac: attacker.mac, addr: source };
        for addr in destinations(source.is_ipv4()).map(ip) {
            for to in [gateway_mac(), forged::NEAREST_BRIDGE] {
                frames.push(forged::datagram(to, from, addr, 9));
                frames.push(forged::echo(to, from, addr));
            }
        }
    }
    frames
}

/// An open end of a tunnel, and a host that follows segment routes.
fn unpacks(lab: &Lab) -> Mac {
    lab.sh("ip link add vx0 type vxlan id 5 dstport 4789; ip link set vx0 up
        ip addr add 192.168.77.1/24 dev vx0; ip addr add fd00:77::1/64 dev vx0 nodad
        for conf in /proc/sys/net/ipv6/conf/*; do echo 1 > $conf/seg6_enabled; done
        for conf in /proc/sys/net/ipv4/conf/*; do
            echo 0 > $conf/rp_filter; echo 1 > $conf/accept_local; echo 1 > $conf/route_localnet
        done");
    mac_of(&lab.sh("ip -j link show dev vx0"))
}

/// Each kind with packets that the host would unpack and hand on to the internet.
fn packed(attacker: &Attacker, vxlan: Mac) -> Vec<(String, Vec<Vec<u8>>)> {
    let gateway = gateway_mac();
    let [me4, me6] = attacker.addrs();
    let mut kinds = Vec::new();
    for (inner, service) in
        [(me4, SERVICE4), (me6, SERVICE6), (ip("192.0.2.77"), SERVICE4), (ip("fd00:77::7"), SERVICE6)]
    {
        let sender = Sender { mac: attacker.mac, addr: inner };
        let frame = forged::datagram(vxlan, sender, ip(service), 9);
        for host in [GATEWAY4, HOST4] {
            let payload = [&[8, 0, 0, 0, 0, 0, 5, 0][..], &frame].concat();
            let datagram = forged::udp_with(me4, ip(host), 4789, &payload);
            let packet = forged::ip(me4, ip(host), 17, &datagram);
            let outer = Sender { mac: attacker.mac, addr: me4 };
            kinds.push((format!("VXLAN to {host}, {inner} inside"), vec![forged::framed(gateway, outer, &packet)]));
        }
    }
    let from = Sender { mac: attacker.mac, addr: me6 };
    let segment = |left: u8, next: u8, payload: &[u8]| {
        let [last, first] = [SERVICE6, GATEWAY6].map(|addr| v6(addr).octets());
        let header = [&[next, 4, 4, left, 1, 0, 0, 0][..], &last, &first].concat();
        forged::framed(gateway, from, &forged::ip(me6, ip(GATEWAY6), 43, &[&header, payload].concat()))
    };
    let echo = forged::echo(gateway, from, ip(SERVICE6)).split_off(14 + 40);
    kinds.push(("a segment route by the host".into(), vec![segment(1, 58, &echo)]));
    let stranger = ip("fd00:77::7");
    let inner = forged::ip(stranger, ip(SERVICE6), 17, &forged::udp(stranger, ip(SERVICE6), 9));
    kinds.push(("a packet at the end of a segment route".into(), vec![segment(0, 41, &inner)]));
    kinds
}

/// What came past the guard, by its two ways, and what came to the host's own programs.
struct Past;

impl Past {
    fn count(lab: &Lab, port: &str, own: [IpAddr; 2]) -> Self {
        let [own4, own6] = own;
        lab.nft(&format!(
            "table bridge past {{
                set from {{ type ipv4_addr; flags dynamic; size 64; }}
                set from6 {{ type ipv6_addr; flags dynamic; size 64; }}
                chain pre {{ type filter hook prerouting priority -290
                    iifname != {port} accept
                    ether type ip ip saddr != {own4} update @from {{ ip saddr }}
                    ip6 saddr != {{ {own6}, fe80::/10 }} icmpv6 type echo-request update @from6 {{ ip6 saddr }}
                    ip6 saddr != {{ {own6}, fe80::/10 }} meta l4proto udp update @from6 {{ ip6 saddr }}
                }}
            }}
            table inet past {{
                counter aside {{ }}
                counter heard {{ }}
                chain pre {{ type filter hook prerouting priority -305; iifname {port} counter name aside; }}
                chain in {{ type filter hook input priority 10
                    iifname != {{ vpn, {port} }} accept
                    icmpv6 type {{ 133, 134, 135, 136, 143 }} accept
                    ip saddr {own4} icmp type echo-request accept
                    ip6 saddr {own6} icmpv6 type echo-request accept
                    counter name heard
                }}
            }}"
        ));
        Self
    }

    fn sources(&self, lab: &Lab) -> BTreeSet<IpAddr> {
        let text = lab.sh("nft list set bridge past from; nft list set bridge past from6");
        text.split(|c: char| c.is_whitespace() || c == ',').filter_map(|word| word.parse().ok()).collect()
    }

    fn counted(&self, lab: &Lab, counter: &str) -> u64 {
        let text = lab.sh(&format!("nft list counter inet past {counter}"));
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).expect("a counter")
    }

    fn end(self, lab: &Lab) {
        lab.sh("nft delete table bridge past; nft delete table inet past");
    }
}

fn send(attacker: &Attacker, frames: &[Vec<u8>]) {
    let mut call: Vec<String> = ["send", "eth0", "1"].map(String::from).into();
    call.extend(frames.iter().map(|frame| forged::hex(frame)));
    attacker.call("all of them", &call);
}

fn control(scene: &Scene, vxlan: Mac) -> u64 {
    let mut attacker = Attacker::new(scene.plain("control", 200), "control", 200);
    let past = Past::count(&scene.lab, "veth-control", attacker.addrs());
    send(&attacker, &misnamed(&attacker));
    let sources = SOURCES.map(ip).into();
    wait_until("every name past the guard that is not there", PATIENCE, || past.sources(&scene.lab) == sources);
    wait_until("frames aside", PATIENCE, || past.counted(&scene.lab, "aside") > 10);
    wait_until("packets for the host", PATIENCE, || past.counted(&scene.lab, "heard") > 10);
    past.end(&scene.lab);
    scene.lab.reset_leaks();
    for (name, frames) in packed(&attacker, vxlan) {
        let before = scene.lab.leaks().total();
        send(&attacker, &frames);
        wait_until(&format!("the control of {name}"), PATIENCE, || scene.lab.leaks().total() > before);
    }
    let seen = scene.lab.leaks().total();
    attacker.container.remove();
    scene.lab.reset_leaks();
    seen
}

#[test]
fn the_host_is_no_mirror_and_unpacks_nothing() {
    let mut scene = scene::strict();
    let vxlan = unpacks(&scene.lab);
    let control = control(&scene, vxlan);

    scene.client.start_and_wait();
    let [tun4, tun6] = [EXIT4, EXIT6].map(|addr| scene.lab.sh("ip addr show dev tun0").contains(&format!("{addr}/")));
    assert!(tun4 && tun6, "the tunnel has other addresses");
    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    attacker.deletes_its_lock();
    scene.lab.sh("for conf in accept_local route_localnet; do echo 1 > /proc/sys/net/ipv4/conf/vpn/$conf; done");
    let past = Past::count(&scene.lab, "veth-m1", attacker.addrs());
    scene.lab.reset_leaks();
    let frames =
        [misnamed(&attacker), packed(&attacker, vxlan).into_iter().flat_map(|(_, frames)| frames).collect()].concat();
    for case in ["exit-up", "exit-killed", "rules"] {
        match case {
            "exit-killed" => scene.client.sigkill(),
            "rules" => Broken::Rules.befall(&scene.lab),
            _ => {}
        }
        send(&attacker, &frames);
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("mirrors-{case}"), control);
        assert_eq!(past.sources(&scene.lab), BTreeSet::new(), "{case}: names that came past the guard");
        assert_eq!(past.counted(&scene.lab, "heard"), 0, "{case}: packets that the host heard");
    }
}
