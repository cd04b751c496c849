//! Promises P5 and P4: a member with CAP_NET_RAW and CAP_NET_ADMIN that means harm, behind the whole wall and behind
//! half of it.

mod callers;
pub mod forged;
mod headers;
mod links;
mod local;
mod mirrors;
mod neighbours;
mod pushed;
mod routers;
pub mod services;
mod told;
mod tracking;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use self::forged::{Mac, Sender};
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::engine::oci::Oci;
use crate::leaks;
use crate::run::{Cmd, answer, wait_until};
use crate::scene::{self, Scene};
use crate::world::{HOST4, HOST6, Lab, Netns, SERVICE4, SERVICE6, VPN4, VPN6};

/// Packets of each attack.
const COUNT: u8 = 5;

/// A container whose owner is the attacker: 172.18.0.`n` and fd00:18::`n` on the bridge.
struct Attacker {
    container: Oci,
    netns: Netns,
    n: u8,
    mac: Mac,
}

impl Attacker {
    fn new(container: Oci, name: &str, n: u8) -> Self {
        let netns = Netns::open(name);
        let mac = mac_of(&netns.sh("ip -j link show dev eth0"));
        Self { container, netns, n, mac }
    }

    fn addr4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 18, 0, self.n)
    }

    fn addr6(&self) -> Ipv6Addr {
        v6(&format!("fd00:18::{}", self.n))
    }

    fn addrs(&self) -> [IpAddr; 2] {
        [self.addr4().into(), self.addr6().into()]
    }

    /// What CAP_NET_ADMIN is enough for.
    fn deletes_its_lock(&self) {
        self.netns.sh("nft delete table inet tunjail");
    }

    /// # Panics
    /// When the probe itself fails: an attack that was not made proves nothing.
    #[track_caller]
    fn attack(&self, attack: &Attack) {
        for args in &attack.calls {
            self.call(&attack.name, args);
        }
    }

    /// The same for many; all frames by one call, since there are hundreds.
    #[track_caller]
    fn attack_all(&self, attacks: &[Attack]) {
        let each = ["send".to_string(), "eth0".to_string(), COUNT.to_string()];
        let mut frames = each.to_vec();
        for call in attacks.iter().flat_map(|attack| &attack.calls) {
            match call.strip_prefix(&each) {
                Some(frame) => frames.extend_from_slice(frame),
                None => self.call("one of many", call),
            }
        }
        self.call("all frames", &frames);
    }

    #[track_caller]
    fn call(&self, name: &str, args: &[String]) {
        let out = self.container.probe(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(out.code == 0, "{name}: the probe failed: {out:?}");
    }
}

pub fn mac_of(links: &str) -> Mac {
    let links: Value = serde_json::from_str(links).expect("JSON from ip");
    mac(links[0]["address"].as_str().expect("a MAC address"))
}

fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
    bytes.try_into().expect("six bytes")
}

fn gateway_mac() -> Mac {
    mac(std::fs::read_to_string(format!("/sys/class/net/{BRIDGE}/address")).expect("the bridge's MAC").trim())
}

/// One thing that an attacker does: calls of the probe that put [`COUNT`] packets on the wire, if nobody minds.
struct Attack {
    name: String,
    calls: Vec<Vec<String>>,
}

impl Attack {
    fn new(name: impl Into<String>, args: &[&str]) -> Self {
        Self { name: name.into(), calls: vec![args.iter().map(ToString::to_string).collect()] }
    }

    fn frame(name: impl Into<String>, frame: &[u8]) -> Self {
        Self::new(name, &["send", "eth0", &COUNT.to_string(), &forged::hex(frame)])
    }
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

/// Through the attacker's own kernel: the lock sees these.
fn routed_attacks(attacker: &Attacker) -> Vec<Attack> {
    let count = COUNT.to_string();
    let mut attacks = Vec::new();
    for (own, service, family) in [(attacker.addrs()[0], SERVICE4, "IPv4"), (attacker.addrs()[1], SERVICE6, "IPv6")] {
        let own = own.to_string();
        attacks.push(Attack::new(format!("plain {family}"), &["udp-from", &own, service, "9", &count]));
        attacks.push(Attack::new(format!("SO_BINDTODEVICE {family}"), &["udp-dev", "eth0", service, "9", &count]));
        // netavark's, Kubernetes' and wg-quick's marks.
        for mark in ["1", "8192", "16384", "51820"] {
            attacks.push(Attack::new(format!("mark {mark} {family}"), &["udp-mark", mark, service, "9", &count]));
        }
    }
    for (whose, source, service) in FORGED {
        attacks.push(Attack::new(format!("raw socket as {whose}"), &["spoof-udp", source, service, "9", &count]));
    }
    attacks
}

/// Sources that are not the attacker's.
const FORGED: [(&str, &str, &str); 8] = [
    ("another member", "172.18.0.3", SERVICE4),
    ("another member, IPv6", "fd00:18::3", SERVICE6),
    ("a host of the LAN", "192.168.178.77", SERVICE4),
    ("a host of the LAN, IPv6", "2001:db8:178::77", SERVICE6),
    ("anybody", "192.0.2.77", SERVICE4),
    ("anybody, IPv6", "2001:db8:77::77", SERVICE6),
    // As IPv4 the kernel calls these martians, whoever is jailed.
    ("the host, IPv6", HOST6, SERVICE6),
    ("the bridge, IPv6", GATEWAY6, SERVICE6),
];

/// Past the attacker's kernel: neither its lock nor its routes see these.
fn framed_attacks(attacker: &Attacker) -> Vec<Attack> {
    let gateway = gateway_mac();
    let stranger: Mac = [0x02, 0xbb, 0, 0, 0, 0x77];
    let mut attacks = Vec::new();
    let mut add = |name: String, frame: Vec<u8>| attacks.push(Attack::frame(name, &frame));
    for (own, service) in [(attacker.addrs()[0], ip(SERVICE4)), (attacker.addrs()[1], ip(SERVICE6))] {
        let me = Sender { mac: attacker.mac, addr: own };
        let family = if own.is_ipv4() { "IPv4" } else { "IPv6" };
        add(format!("frame {family}"), forged::datagram(gateway, me, service, 9));
        add(format!("foreign MAC {family}"), forged::datagram(gateway, Sender { mac: stranger, ..me }, service, 9));
        for (tags, name) in [(&[forged::VLAN][..], "priority tag"), (&[forged::SERVICE_VLAN], "service tag")] {
            add(format!("{name} {family}"), forged::tagged(gateway, me, service, 9, tags));
        }
        // IPv6 in IPv6 or IPv4, GRE, ESP, SCTP, UDP-Lite, and one that nobody has heard of.
        for number in [4, 41, 47, 50, 132, 136, 253] {
            add(format!("protocol {number} {family}"), forged::protocol(gateway, me, service, number));
        }
        add(format!("echo {family}"), forged::echo(gateway, me, service));
    }
    for (whose, source, service) in FORGED {
        for (mac, how) in [(attacker.mac, "own MAC"), (stranger, "foreign MAC")] {
            let from = Sender { mac, addr: ip(source) };
            add(format!("frame as {whose}, {how}"), forged::datagram(gateway, from, ip(service), 9));
            add(
                format!("priority-tagged frame as {whose}, {how}"),
                forged::tagged(gateway, from, ip(service), 9, &[forged::VLAN]),
            );
        }
    }
    let [me4, me6] = attacker.addrs().map(|addr| Sender { mac: attacker.mac, addr });
    for by in [GATEWAY4, HOST4] {
        add(format!("source route by {by}"), forged::source_routed(gateway, me4, v4(by), v4(SERVICE4), 9));
    }
    add("hop-by-hop".into(), forged::hop_by_hop(gateway, me6, v6(SERVICE6), 9));
    for (me, service) in [(me4, SERVICE4), (me6, SERVICE6)] {
        // The host puts each pair together before it looks at it.
        let pairs = (1..=COUNT).flat_map(|id| forged::fragments(gateway, me, ip(service), 9, id));
        let calls = pairs.map(|frame| ["send", "eth0", "1", &forged::hex(&frame)].map(String::from).to_vec()).collect();
        attacks.push(Attack { name: format!("fragments to {service}"), calls });
    }
    attacks
}

/// The host itself as a mirror: what it answers goes to whom the question names as its sender.
fn reflected_attacks(attacker: &Attacker) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (source, host) in [("192.0.2.77", HOST4), ("2001:db8:77::77", HOST6)] {
        let from = Sender { mac: attacker.mac, addr: ip(source) };
        for (to, how) in [
            (gateway_mac(), ""),
            (forged::NEAREST_BRIDGE, ", in a frame for LLDP"),
            (forged::PORT_ACCESS, ", in a frame for 802.1X"),
        ] {
            let name = format!("echo of {host} for {source}{how}");
            attacks.push(Attack::frame(name, &forged::echo(to, from, ip(host))));
        }
    }
    attacks
}

fn attacks(attacker: &Attacker) -> Vec<Attack> {
    let mut attacks = routed_attacks(attacker);
    attacks.extend(framed_attacks(attacker));
    attacks.extend(reflected_attacks(attacker));
    attacks
}

/// Every attack on its own is counted on the uplink when nobody is jailed. Returns the packets of all.
fn control(scene: &Scene) -> u64 {
    let mut attacker = Attacker::new(scene.plain("control", 200), "control", 200);
    scene.lab.reset_leaks();
    for attack in attacks(&attacker) {
        let before = scene.lab.leaks().total();
        attacker.attack(&attack);
        let what = format!("the control of \"{}\" on the uplink", attack.name);
        // Each packet: a straggler of the attack before cannot stand in for this one.
        wait_until(&what, Duration::from_secs(3), || scene.lab.leaks().total() >= before + u64::from(COUNT));
    }
    let seen = scene.lab.leaks().total();
    attacker.container.remove();
    scene.lab.reset_leaks();
    seen
}

/// Forged packets that got past the guard, and that got past the lock, read before the wall judges them: it would stop
/// them too, so that nobody would see that the guard did nothing.
struct Watch;

impl Watch {
    fn place(lab: &Lab, attacker: &Attacker) {
        let (own4, own6) = (attacker.addr4(), attacker.addr6());
        lab.nft(&format!(
            "table inet watch {{
                counter past_guard {{ }}
                chain pre {{ type filter hook prerouting priority -80
                    iifname != {{ {BRIDGE}, veth-m1 }} accept
                    ip saddr != {{ {own4}, 172.18.0.3 }} counter name past_guard
                    ip6 saddr != {{ {own6}, fd00:18::3, fe80::/10, :: }} counter name past_guard
                }}
            }}
            table bridge watch {{
                counter past_lock {{ }}
                chain pre {{ type filter hook prerouting priority -350
                    iifname != veth-m1 accept
                    ip saddr != {own4} counter name past_lock
                    ip6 saddr != {{ {own6}, fe80::/10, :: }} counter name past_lock
                }}
            }}"
        ));
    }

    fn read(family: &str, counter: &str) -> u64 {
        let text = Cmd::new("nft", &["-j", "list", "counter", family, "watch", counter]).ok();
        let list: Value = serde_json::from_str(&text).expect("JSON from nft");
        let items = list["nftables"].as_array().into_iter().flatten();
        items.filter_map(|item| item["counter"]["packets"].as_u64()).next().expect("a counter")
    }

    fn past_guard() -> u64 {
        Self::read("inet", "past_guard")
    }

    fn past_lock() -> u64 {
        Self::read("bridge", "past_lock")
    }
}

/// What is missing of what holds the attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The attacker deleted its lock.
    Lock,
    /// And somebody flushed nftables on the host: the route wall is alone.
    Ruleset,
    /// ... or the ip rules: the filter wall is alone.
    Rules,
    /// ... or the routes of the jail's table.
    Table,
}

impl Broken {
    fn happen(self, lab: &Lab, attacker: &Attacker) {
        if self != Self::Nothing {
            attacker.deletes_its_lock();
        }
        self.befall(lab);
    }

    /// What of it is the host's.
    fn befall(self, lab: &Lab) {
        match self {
            Self::Nothing | Self::Lock => {}
            Self::Ruleset => drop(lab.sh("nft flush ruleset")),
            Self::Rules => drop(lab.sh("for family in -4 -6; do
                    ip $family rule flush
                    ip $family rule add pref 32766 lookup main
                done")),
            Self::Table => {
                drop(lab.sh("table=$(ip -N rule show | sed -n 's/^700:.*lookup \\([0-9]*\\).*/\\1/p' | sort -u)
                test -n \"$table\"
                ip -4 route flush table $table; ip -6 route flush table $table"))
            }
        }
    }
}

/// Without the guard a forged source comes as far as `unreachable default`, and the kernel tells that source: by the
/// host's own route, in the host's own name, about one packet a second for each address. No packet of a member, but
/// it quotes one. Whatever else leaves is a leak.
fn nothing_but_the_hosts_own_errors_left(lab: &Lab, case: &str, control: u64) {
    let flows = lab.leaked_flows();
    let errors: u64 = flows
        .lines()
        .filter(|flow| flow.contains(&format!("{HOST4} . 192.0.2.77 . icmp")))
        .filter_map(|flow| flow.split_once("packets ")?.1.split(' ').next()?.parse::<u64>().ok())
        .sum();
    let leaks = lab.leaks();
    println!("reflected: case={case} {errors} ICMP errors of the host's own to a forged source");
    leaks::report("hostile", case, control, leaks.total() - errors);
    assert!(leaks.total() == errors && errors < 10, "{case}: packets left past the exit: {leaks:?}\n{flows}");
}

#[rstest]
#[case::behind_everything("forged", Broken::Nothing)]
#[case::without_its_lock("forged-lock-deleted", Broken::Lock)]
#[case::ruleset_flushed("forged-ruleset-flushed", Broken::Ruleset)]
#[case::rules_deleted("forged-rules-deleted", Broken::Rules)]
#[case::table_flushed("forged-table-flushed", Broken::Table)]
fn nothing_that_a_member_makes_up_leaves(#[case] case: &str, #[case] broken: Broken) {
    let mut scene = scene::strict();
    // A host that lets packets say which way they go.
    scene.lab.sh("echo 1 > /proc/sys/net/ipv4/conf/all/accept_source_route");
    let control = control(&scene);

    scene.client.start_and_wait();
    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    let victim = scene.member("runc", "m2", 3);
    scene.lab.reset_leaks();
    broken.happen(&scene.lab, &attacker);
    if broken != Broken::Ruleset {
        Watch::place(&scene.lab, &attacker);
    }

    attacker.attack_all(&routed_attacks(&attacker));
    if broken == Broken::Nothing {
        assert_eq!(Watch::past_lock(), 0, "packets with a foreign source came through the lock");
    }
    let mut attacks = attacks(&attacker);
    if broken == Broken::Ruleset {
        // What the host itself says is no packet of the member's, so no route of the jail's is asked.
        let mirrored: Vec<_> = reflected_attacks(&attacker).into_iter().map(|attack| attack.name).collect();
        attacks.retain(|attack| !mirrored.contains(&attack.name));
    }
    attacker.attack_all(&attacks);
    scene.lab.wait_quiet();
    scene.lab.assert_no_leak("hostile", &format!("{case}-exit-up"), control);

    scene.client.sigkill();
    attacker.attack_all(&attacks);
    scene.lab.wait_quiet();
    let case = format!("{case}-exit-killed");
    if broken == Broken::Ruleset {
        nothing_but_the_hosts_own_errors_left(&scene.lab, &case, control);
    } else {
        scene.lab.assert_no_leak("hostile", &case, control);
    }
    if broken != Broken::Ruleset {
        assert!(Watch::past_lock() > 0, "the attacks were not even seen at the attacker's port");
        assert_eq!(Watch::past_guard(), 0, "packets with a foreign source came through the guard");
    }

    // All that did the other member no harm; the exit's return mends what was broken.
    scene.client.start_and_wait();
    assert_eq!(answer(&victim.probe(&["http", SERVICE4])), VPN4);
    assert_eq!(answer(&victim.probe(&["http", SERVICE6])), VPN6);
}
