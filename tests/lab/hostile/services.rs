//! The host as a way round: its own services, and containers that it publishes on its own addresses.

use std::time::Duration;

use rstest::rstest;

use super::forged::{self, Sender};
use super::{Attack, Attacker, COUNT, gateway_mac, ip, v6};
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::rootfs::{self, PROBE};
use crate::run::{Cmd, Job, answer, wait_until};
use crate::scene::{self, Scene};
use crate::world::{HOST4, HOST6, Lab, Netns, ROUTER4, SERVICE4, SERVICE6};

const PROXY: &str = "3128";
pub const PUBLISHED: &str = "8080";
/// Another container's address, on a bridge of its own.
const OTHER4: &str = "172.30.0.2";
const OTHER6: &str = "fd00:30::2";

/// The host's own addresses: the bridge's, the LAN's, the tunnel's.
fn addresses_of_the_host(lab: &Lab) -> Vec<String> {
    let tunnel = lab.sh("ip -o addr show dev tun0 scope global");
    let tunnel = tunnel.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next().map(Into::into));
    let mut all: Vec<String> = [GATEWAY4, GATEWAY6, HOST4, HOST6].map(String::from).into();
    all.extend(tunnel);
    assert_eq!(all.len(), 6, "{all:?}");
    all
}

fn proxy(cmd: Cmd) -> Job {
    let job = cmd.spawn();
    wait_until("a proxy", Duration::from_secs(5), || job.stdout().contains("ready"));
    job
}

/// A container that nobody jails, with a proxy in it, published on the host as Docker does it.
pub fn publish(scene: &Scene) -> (Oci, Vec<Job>) {
    let lab = &scene.lab;
    let netns = Netns::add("other");
    lab.sh(&format!(
        "ip link add other type bridge; ip addr add 172.30.0.1/16 dev other; ip addr add fd00:30::1/64 dev other nodad
        ip link set other up
        ip link add veth-other type veth peer name eth0 netns other; ip link set veth-other master other up
        ip -n other link set eth0 up
        ip -n other addr add {OTHER4}/16 dev eth0; ip -n other addr add {OTHER6}/64 dev eth0 nodad
        ip -n other route add default via 172.30.0.1; ip -n other route add default via fd00:30::1
        for command in iptables ip6tables; do
            $command -t nat -A PREROUTING -p tcp --dport {PUBLISHED} -m addrtype --dst-type LOCAL -j DNAT \\
                --to-destination $([ $command = iptables ] && echo {OTHER4}:{PROXY} || echo [{OTHER6}]:{PROXY})
            $command -t nat -A POSTROUTING -o eth0 -j MASQUERADE
        done"
    ));
    for gateway in ["172.30.0.1", "fd00:30::1"] {
        wait_until("the other bridge", Duration::from_secs(5), || {
            netns.probe(&["ping", gateway, "1"]).json()["ok"] == true
        });
    }
    let container = Oci::run(lab, "runc", "other", &Bundle::new(&netns));
    let proxies = [OTHER4, OTHER6].map(|addr| {
        let job = container.spawn(&[PROBE, "proxy", addr, PROXY]);
        wait_until("a proxy in a container", Duration::from_secs(5), || job.stdout().contains("ready"));
        job
    });
    (container, proxies.into())
}

/// Calls through every proxy that the host has or publishes.
fn calls(hosts: &[String]) -> Vec<(String, &'static str)> {
    let own = hosts.iter().map(|addr| (addr.clone(), PROXY));
    let published = hosts.iter().map(|addr| (addr.clone(), PUBLISHED));
    let direct = [OTHER4, OTHER6].map(|addr| (addr.to_string(), PROXY));
    own.chain(published).chain(direct).collect()
}

fn target_of(proxy: &str) -> &'static str {
    if proxy.contains(':') { SERVICE6 } else { SERVICE4 }
}

#[rstest]
#[case::locked("host-proxies", false)]
#[case::without_its_lock("host-proxies-lock-deleted", true)]
fn no_proxy_on_the_host_or_behind_it_serves_a_member(#[case] case: &str, #[case] unlocked: bool) {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let hosts = addresses_of_the_host(&scene.lab);
    let _proxies: Vec<Job> =
        hosts.iter().map(|addr| proxy(Cmd::new(rootfs::probe(), &["proxy", addr, PROXY]))).collect();
    let (_other, _published) = publish(&scene);
    let calls = calls(&hosts);

    let mut plain = scene.plain("control", 200);
    let control = scene.lab.assert_probe_is_visible(|| {
        for (proxy, port) in &calls {
            let before = scene.lab.leaks().total();
            let target = target_of(proxy);
            let out = plain.probe(&["via-proxy", proxy, port, target, "80"]);
            // Who calls depends on the proxy's own address; it is not the tunnel.
            assert!(out.json()["ok"] == true, "positive control: {proxy} {port}: {out:?}");
            let caller = answer(&out);
            assert!(target == SERVICE6 || caller == ROUTER4, "{proxy} {port}: {caller}");
            assert!(scene.lab.leaks().total() > before, "positive control: {proxy} {port} did not use the uplink");
        }
    });
    plain.remove();

    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    if unlocked {
        attacker.deletes_its_lock();
    }
    scene.lab.reset_leaks();
    for exit in ["exit-up", "exit-killed"] {
        if exit == "exit-killed" {
            scene.client.sigkill();
        }
        for (proxy, port) in &calls {
            let line = attacker.container.probe(&["via-proxy", proxy, port, target_of(proxy), "80"]).json();
            assert_eq!(line["ok"], false, "{exit}: the proxy at {proxy} port {port} served a member: {line}");
            // What Docker translated is another container's address: while there is an exit, that is asked, and nobody
            // answers; and a reset for it, sent from a bridge that calls iptables, comes from the wrong address.
            let is_the_hosts_own = port == &PROXY && proxy != OTHER4 && proxy != OTHER6;
            assert!(!is_the_hosts_own || line["ms"].as_u64() < Some(1000), "{exit}: {proxy} port {port} hangs: {line}");
        }
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("{case}-{exit}"), control);
    }
}

const ECHO: u16 = 5353;

/// Datagrams and echo requests for the host itself: to each address, to everybody, and by ways past the bridge's rules.
fn datagrams_for_the_host(attacker: &Attacker, hosts: &[String]) -> Vec<Attack> {
    let gateway = gateway_mac();
    let link_local = scene_link_local();
    let [me4, me6] = attacker.addrs().map(|addr| Sender { mac: attacker.mac, addr });
    let mut targets: Vec<_> = hosts.iter().map(|addr| (gateway, ip(addr))).collect();
    targets.push((gateway, link_local.into()));
    targets.extend(["255.255.255.255", "172.18.255.255"].map(|addr| (forged::BROADCAST, ip(addr))));
    targets.extend(["224.0.0.1", "ff02::1"].map(|addr| (forged::group(ip(addr)), ip(addr))));
    let mut attacks = Vec::new();
    for (to, addr) in targets {
        let me = if addr.is_ipv4() { me4 } else { me6 };
        attacks.push(Attack::frame(format!("datagram to {addr}"), &forged::datagram(to, me, addr, ECHO)));
    }
    for (me, addr) in [(me4, ip(GATEWAY4)), (me6, ip(GATEWAY6)), (me4, ip(HOST4)), (me6, ip(HOST6))] {
        let forged = Sender { addr: ip(if addr.is_ipv4() { "192.0.2.77" } else { "2001:db8:77::77" }), ..me };
        let mut add = |name: &str, frame: Vec<u8>| attacks.push(Attack::frame(format!("{name} to {addr}"), &frame));
        add("priority-tagged datagram", forged::tagged(gateway, me, addr, ECHO, &[forged::VLAN]));
        add("datagram of a forged sender", forged::datagram(gateway, forged, addr, ECHO));
        for (to, what) in [(forged::NEAREST_BRIDGE, "for LLDP"), (forged::PORT_ACCESS, "for 802.1X")] {
            add(&format!("datagram {what}"), forged::datagram(to, me, addr, ECHO));
            add(&format!("datagram of a forged sender, {what}"), forged::datagram(to, forged, addr, ECHO));
        }
    }
    attacks
}

fn scene_link_local() -> std::net::Ipv6Addr {
    let text = Cmd::new("ip", &["-6", "-o", "addr", "show", "dev", BRIDGE, "scope", "link"]).ok();
    let addr = text.split_whitespace().nth(3).and_then(|addr| addr.split('/').next()).expect("a link-local address");
    v6(addr)
}

/// What arrives at a service of the host: after every rule that could stop it.
fn listen(lab: &Lab) {
    lab.nft(&format!(
        "table inet service {{
            counter asked {{ }}
            chain in {{ type filter hook input priority 300
                udp dport {ECHO} counter name asked
            }}
        }}"
    ));
}

fn asked(lab: &Lab) -> u64 {
    let text = lab.sh("nft list counter inet service asked");
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

#[test]
fn no_datagram_of_a_member_reaches_a_service_of_the_host() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let hosts = addresses_of_the_host(&scene.lab);
    listen(&scene.lab);
    let mut plain = Attacker::new(scene.plain("control", 200), "control", 200);
    for attack in datagrams_for_the_host(&plain, &hosts) {
        let before = asked(&scene.lab);
        plain.attack(&attack);
        wait_until(&format!("the control of \"{}\"", attack.name), Duration::from_secs(3), || {
            asked(&scene.lab) >= before + u64::from(COUNT)
        });
    }
    let control = asked(&scene.lab);
    plain.container.remove();
    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    let before = asked(&scene.lab);
    let mut heard = Vec::new();
    for attack in datagrams_for_the_host(&attacker, &hosts) {
        let before = asked(&scene.lab);
        attacker.attack(&attack);
        // An answered echo comes after all that was sent before it.
        answer(&attacker.container.probe(&["ping", GATEWAY4, "1"]));
        if asked(&scene.lab) != before {
            heard.push(attack.name);
        }
    }
    let jailed = asked(&scene.lab) - before;
    println!("services: control={control} datagrams, jailed={jailed} datagrams");
    assert!(heard.is_empty(), "services of the host heard a member: {heard:#?}");
}

/// The unspecified address is for whoever has none yet: duplicate address detection, and nothing else of a member's.
#[test]
fn no_member_speaks_as_nobody() {
    let scene = scene::strict();
    // Where a guard has judged and the wall has not.
    scene.lab.nft(&format!(
        "table inet nobody {{
            counter asked {{ }}
            chain pre {{ type filter hook prerouting priority -305
                iifname {BRIDGE} ip saddr 0.0.0.0 counter name asked
                iifname {BRIDGE} ip6 saddr :: udp dport {ECHO} counter name asked
                iifname {BRIDGE} ip6 saddr :: icmpv6 type echo-request counter name asked
            }}
        }}"
    ));
    let asked = || {
        let text = scene.lab.sh("nft list counter inet nobody asked");
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse::<u64>().ok()).expect("a counter")
    };
    let attacks = |attacker: &Attacker| {
        let [nobody4, nobody6] = ["0.0.0.0", "::"].map(|addr| Sender { mac: attacker.mac, addr: ip(addr) });
        let (gateway, all) = (gateway_mac(), ip("255.255.255.255"));
        [
            forged::datagram(forged::BROADCAST, nobody4, all, 67),
            forged::datagram(gateway, nobody6, ip(GATEWAY6), ECHO),
            forged::echo(gateway, nobody6, ip(GATEWAY6)),
        ]
        .map(|frame| Attack::frame("as nobody", &frame))
    };
    let mut plain = Attacker::new(scene.plain("control", 200), "control", 200);
    for attack in attacks(&plain) {
        let before = asked();
        plain.attack(&attack);
        wait_until("the control of nobody", Duration::from_secs(3), || asked() >= before + u64::from(COUNT));
    }
    plain.container.remove();
    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    let before = asked();
    attacker.attack_all(&attacks(&attacker));
    answer(&attacker.container.probe(&["ping", GATEWAY4, "1"]));
    assert_eq!(asked(), before, "a member spoke as nobody");
}
