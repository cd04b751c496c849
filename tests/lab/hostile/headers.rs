//! Packets that a filter may misread: transports that are neither TCP nor UDP, extension headers, IP options, fragments
//! that hide their ports, data in a SYN. Each goes to an address of its own, so that one burst shows which of them came
//! where: out of the host's uplink, or out of the tunnel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::forged::{self, Sender};
use super::{Attacker, Broken, gateway_mac};
use crate::engine::Container;
use crate::product::STRICT_JAIL;
use crate::run::wait_until;
use crate::scene::Scene;
use crate::world::{DNS4, DNS6, Netns};

/// What a packet is made of: the address that it goes to, and its frames' payloads.
type Make = fn(IpAddr, IpAddr) -> Vec<Vec<u8>>;

/// A kind of packet, and what it is when nobody misreads it.
struct Kind {
    name: &'static str,
    /// A whole question, by UDP or TCP to port 53.
    asks: bool,
    make: Make,
}

const fn question(name: &'static str, make: Make) -> Kind {
    Kind { name, asks: true, make }
}

const fn other(name: &'static str, make: Make) -> Kind {
    Kind { name, asks: false, make }
}

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Of both families.
const COMMON: [Kind; 20] = [
    question("UDP", |s, d| one(s, d, UDP, forged::udp(s, d, 53))),
    question("SYN", |s, d| one(s, d, TCP, forged::tcp(s, d, 53, SYN, &[], b""))),
    question("SYN with data", |s, d| one(s, d, TCP, forged::tcp(s, d, 53, SYN, &[], b"in haste"))),
    question("SYN with data and a cookie", |s, d| one(s, d, TCP, forged::tcp(s, d, 53, SYN, &COOKIE, b"in haste"))),
    question("SYN and FIN", |s, d| one(s, d, TCP, forged::tcp(s, d, 53, SYN | 1, &[], b""))),
    question("ACK of nothing", |s, d| one(s, d, TCP, forged::tcp(s, d, 53, 0x10, &[], b"more"))),
    other("SYN with data, elsewhere", |s, d| one(s, d, TCP, forged::tcp(s, d, 81, SYN, &COOKIE, b"in haste"))),
    other("no flags", |s, d| one(s, d, TCP, forged::tcp(s, d, 81, 0, &[], b""))),
    // Ports stand where UDP's do.
    other("UDP-Lite to 53", |s, d| one(s, d, 136, forged::udp(s, d, 53))),
    other("DCCP to 53", |s, d| one(s, d, 33, ports(53, 16))),
    other("SCTP to 53", |s, d| one(s, d, 132, init(53))),
    other("SCTP", |s, d| one(s, d, 132, init(9))),
    other("IPv4 inside", |s, d| one(s, d, 4, inside4())),
    other("IPv6 inside", |s, d| one(s, d, 41, inside6())),
    other("GRE", |s, d| one(s, d, 47, [&[0, 0, 8, 0][..], &inside4()].concat())),
    other("ESP", |s, d| one(s, d, 50, vec![7; 40])),
    other("AH before UDP", |s, d| one(s, d, 51, [headed(UDP, ah()), forged::udp(s, d, 53)].concat())),
    other("OSPF", |s, d| one(s, d, 89, vec![2; 44])),
    other("raw", |s, d| one(s, d, 255, vec![0; 8])),
    other("nothing at all", |s, d| one(s, d, 253, vec![])),
];

const OF_IPV4: [Kind; 9] = [
    question("record route", |s, d| with_options(s, d, &[7, 7, 4, 0, 0, 0, 0, 0])),
    question("router alert", |s, d| with_options(s, d, &[148, 4, 0, 0])),
    question("time stamps", |s, d| with_options(s, d, &[68, 8, 5, 0, 0, 0, 0, 0])),
    question("an option of nobody's", |s, d| with_options(s, d, &[0x9e, 4, 1, 2])),
    question("fragments", |s, d| pieces4(s, d, UDP, &forged::udp(s, d, 53), &[(0, 8), (8, 17)])),
    question("fragments, last first", |s, d| pieces4(s, d, UDP, &forged::udp(s, d, 53), &[(8, 17), (0, 8)])),
    question("SYN in tiny fragments", |s, d| {
        pieces4(s, d, TCP, &forged::tcp(s, d, 53, SYN, &[], b"more"), &[(0, 8), (8, 16), (16, 24)])
    }),
    // The second says that the port is another one.
    question("overlapping fragments", |s, d| {
        let other = [&ports(9, 8)[..], b"by no way"].concat();
        [
            pieces4(s, d, UDP, &forged::udp(s, d, 53), &[(0, 8)]),
            pieces4(s, d, UDP, &other, &[(0, 8)]),
            pieces4(s, d, UDP, &forged::udp(s, d, 53), &[(8, 17)]),
        ]
        .concat()
    }),
    question("a last fragment alone", |s, d| pieces4(s, d, UDP, &forged::udp(s, d, 53), &[(8, 17)])),
];

const OF_IPV6: [Kind; 18] = [
    question("hop-by-hop", |s, d| behind(s, d, &[(0, pad())])),
    question("destination options", |s, d| behind(s, d, &[(60, pad())])),
    question("many options", |s, d| {
        behind(s, d, &[(0, pad()), (60, pad()), (43, segments(0, 0)), (60, pad()), (60, pad())])
    }),
    question("routing header 0, at its end", |s, d| behind(s, d, &[(43, segments(0, 0))])),
    question("routing header 4, at its end", |s, d| behind(s, d, &[(43, segments(4, 0))])),
    question("routing header 0", |s, d| behind(s, d, &[(43, segments(0, 1))])),
    question("routing header 2", |s, d| behind(s, d, &[(43, segments(2, 1))])),
    question("routing header 4", |s, d| behind(s, d, &[(43, segments(4, 1))])),
    question("an atomic fragment", |s, d| behind(s, d, &[(44, atom(9))])),
    question("an atomic fragment behind options", |s, d| behind(s, d, &[(60, pad()), (44, atom(9))])),
    question("an atomic fragment in another", |s, d| behind(s, d, &[(44, atom(9)), (44, atom(8))])),
    question("fragments", |s, d| pieces6(s, d, UDP, &forged::udp(s, d, 53), &[(0, 8), (8, 17)])),
    question("fragments, last first", |s, d| pieces6(s, d, UDP, &forged::udp(s, d, 53), &[(8, 17), (0, 8)])),
    // The first one ends before any port (RFC 7112 forbids it).
    question("a first fragment of options alone", |s, d| {
        let chain = [headed(UDP, pad()), forged::udp(s, d, 53)].concat();
        pieces6(s, d, 60, &chain, &[(0, 8), (8, 25)])
    }),
    // RFC 5722: none of them is to be put together.
    question("overlapping fragments", |s, d| {
        pieces6(s, d, UDP, &[forged::udp(s, d, 53), vec![0; 7]].concat(), &[(0, 16), (8, 24)])
    }),
    question("a last fragment alone", |s, d| pieces6(s, d, UDP, &forged::udp(s, d, 53), &[(8, 17)])),
    other("mobility", |s, d| one(s, d, 135, vec![59, 0, 0, 0, 0, 0, 0, 0])),
    other("no next header", |s, d| one(s, d, 59, vec![0; 8])),
];

/// What the host's own kernel hands on for nobody, jailed or not.
const DROPPED_BY_THE_KERNEL: [&str; 3] =
    ["IPv4 a last fragment alone", "IPv6 a last fragment alone", "IPv6 overlapping fragments"];
/// What connection tracking makes nothing of: it would leave with the member's own address.
const OF_NO_CONNECTION: [&str; 6] = [
    "IPv4 SYN and FIN",
    "IPv4 no flags",
    "IPv6 SYN and FIN",
    "IPv6 no flags",
    "IPv6 a first fragment of options alone",
    "IPv6 no next header",
];

const PATIENCE: Duration = Duration::from_secs(5);
const SYN: u8 = 2;
/// TCP Fast Open's (RFC 7413, 4.1.1), as one of eight bytes and two of padding.
const COOKIE: [u8; 12] = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];

fn one(source: IpAddr, addr: IpAddr, protocol: u8, payload: Vec<u8>) -> Vec<Vec<u8>> {
    vec![forged::ip(source, addr, protocol, &payload)]
}

/// Ports, and bytes that mean nothing.
fn ports(to: u16, length: usize) -> Vec<u8> {
    let mut bytes = [40_000u16.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.resize(length, 1);
    bytes
}

/// SCTP's first packet (RFC 9260, 3.3.2), with its checksum, without which connection tracking makes nothing of it.
fn init(to: u16) -> Vec<u8> {
    let chunk = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let mut packet = [&ports(to, 4)[..], &[0; 8], &chunk].concat();
    let sum = !packet.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    });
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

fn inside4() -> Vec<u8> {
    let [from, to] = [[192, 0, 2, 201], [192, 0, 2, 202]].map(|addr| IpAddr::from(Ipv4Addr::from(addr)));
    forged::ip(from, to, UDP, &forged::udp(from, to, 53))
}

fn inside6() -> Vec<u8> {
    let [from, to] = ["2001:db8:77::201", "2001:db8:77::202"].map(super::ip);
    forged::ip(from, to, UDP, &forged::udp(from, to, 53))
}

// Extension headers, whose first byte names what follows.

fn headed(next: u8, mut header: Vec<u8>) -> Vec<u8> {
    header[0] = next;
    header
}

/// Options that say nothing.
fn pad() -> Vec<u8> {
    vec![0, 0, 1, 4, 0, 0, 0, 0]
}

/// RFC 8200, 4.4; RFC 6275, 6.4; RFC 8754, 2: so many segments of one are left.
fn segments(kind: u8, left: u8) -> Vec<u8> {
    let next = super::v6("2001:db8:77::203").octets();
    [&[0, 2, kind, left, 0, 0, 0, 0][..], &next].concat()
}

/// RFC 4302, 2.
fn ah() -> Vec<u8> {
    vec![0, 2, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 9, 9, 9, 9]
}

/// The header of a fragment that is the whole.
fn atom(id: u8) -> Vec<u8> {
    vec![0, 0, 0, 0, 0, 0, 0, id]
}

/// A question behind these headers, each with its number.
fn behind(source: IpAddr, addr: IpAddr, headers: &[(u8, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut payload = forged::udp(source, addr, 53);
    let mut next = UDP;
    for (number, header) in headers.iter().rev() {
        payload = [headed(next, header.clone()), payload].concat();
        next = *number;
    }
    one(source, addr, next, payload)
}

fn with_options(source: IpAddr, addr: IpAddr, options: &[u8]) -> Vec<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source, addr) else { panic!("options are IPv4's") };
    vec![forged::ip4(from, to, UDP, [0, 0], options, &forged::udp(source, addr, 53))]
}

/// The parts of a payload from one byte to another, as fragments; what ends where the payload does is the last.
fn pieces(payload: &[u8], parts: &[(usize, usize)], make: impl Fn(u16, bool, &[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let piece = |&(from, to): &(usize, usize)| {
        make(u16::try_from(from / 8).expect("a short packet"), to < payload.len(), &payload[from..to])
    };
    parts.iter().map(piece).collect()
}

fn pieces4(source: IpAddr, addr: IpAddr, protocol: u8, payload: &[u8], parts: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source, addr) else { panic!("one family at a time") };
    pieces(payload, parts, |offset, more, part| {
        forged::ip4(from, to, protocol, ((u16::from(more) << 13) | offset).to_be_bytes(), &[], part)
    })
}

fn pieces6(source: IpAddr, addr: IpAddr, next: u8, payload: &[u8], parts: &[(usize, usize)]) -> Vec<Vec<u8>> {
    pieces(payload, parts, |offset, more, part| {
        let field = ((offset << 3) | u16::from(more)).to_be_bytes();
        forged::ip(source, addr, 44, &[&[next, 0, field[0], field[1], 0, 0, 0, 7], part].concat())
    })
}

/// All kinds of both families with their own destinations, and the names that tell of which they are.
fn kinds() -> Vec<(String, IpAddr, &'static Kind)> {
    let of4 = COMMON
        .iter()
        .chain(&OF_IPV4)
        .zip(1..)
        .map(|(kind, n)| (format!("IPv4 {}", kind.name), Ipv4Addr::new(192, 0, 2, n).into(), kind));
    let of6 = COMMON.iter().chain(&OF_IPV6).zip(1..).map(|(kind, n)| {
        (format!("IPv6 {}", kind.name), Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, n).into(), kind)
    });
    of4.chain(of6).collect()
}

/// All of them, by one call.
fn burst(attacker: &Attacker) {
    let gateway = gateway_mac();
    let mut call: Vec<String> = ["send", "eth0", "2"].map(String::from).into();
    for (_, addr, kind) in kinds() {
        let own = attacker.addrs()[usize::from(addr.is_ipv6())];
        let from = Sender { mac: attacker.mac, addr: own };
        call.extend((kind.make)(own, addr).iter().map(|packet| forged::hex(&forged::framed(gateway, from, packet))));
    }
    attacker.call("all of them", &call);
}

/// The names of the kinds that came by, of which any packet did.
struct Seen<'a> {
    place: &'a Netns,
}

impl<'a> Seen<'a> {
    /// By which interface of which place, before anything else there.
    fn place(place: &'a Netns, interface: &str) -> Self {
        place.nft(&format!(
            "table netdev seen {{
                set by4 {{ type ipv4_addr; flags dynamic; size 256; }}
                set by6 {{ type ipv6_addr; flags dynamic; size 256; }}
                chain pre {{ type filter hook ingress device {interface} priority -400
                    ip daddr 192.0.2.0/24 update @by4 {{ ip daddr }}
                    ip6 daddr 2001:db8:77::/64 update @by6 {{ ip6 daddr }}
                }}
            }}"
        ));
        Self { place }
    }

    fn names(&self) -> BTreeSet<String> {
        let text = self.place.sh("nft list set netdev seen by4; nft list set netdev seen by6");
        let words: BTreeSet<IpAddr> =
            text.split(|c: char| c.is_whitespace() || c == ',').filter_map(|word| word.parse().ok()).collect();
        let came = |(name, addr, _): &(String, IpAddr, &Kind)| words.contains(addr).then(|| name.clone());
        kinds().iter().filter_map(came).collect()
    }

    fn forget(&self) {
        self.place.sh("nft flush set netdev seen by4; nft flush set netdev seen by6");
    }
}

/// Nothing by the uplink, whatever is missing of the wall; with servers for names no question of UDP or TCP comes out of
/// the tunnel for anybody else, and without them the same questions do.
#[test]
fn no_packet_is_misread() {
    let mut scene = Scene::new(&format!("{STRICT_JAIL}dns = \"block\"\n"));
    let all: BTreeSet<String> = kinds().into_iter().map(|(name, ..)| name).collect();
    let but = |left_out: &[&str]| all.iter().filter(|name| !left_out.contains(&name.as_str())).cloned().collect();
    let forwarded: BTreeSet<String> = but(&DROPPED_BY_THE_KERNEL);
    let tracked: BTreeSet<String> = but(&[&DROPPED_BY_THE_KERNEL[..], &OF_NO_CONNECTION].concat());

    let by_uplink = Seen::place(&scene.lab.router, "uplink");
    let by_tunnel = Seen::place(&scene.lab.vpn, "tun0");
    let mut attacker = Attacker::new(scene.plain("control", 200), "control", 200);
    let control = scene.lab.assert_probe_is_visible(|| {
        burst(&attacker);
        wait_until("all of them by the uplink", PATIENCE, || by_uplink.names() == forwarded);
    });
    attacker.container.remove();

    scene.client.start_and_wait();
    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    attacker.deletes_its_lock();
    scene.lab.reset_leaks();
    burst(&attacker);
    wait_until("all of them by the exit", PATIENCE, || by_tunnel.names().is_superset(&tracked));
    assert_eq!(by_tunnel.names(), tracked, "something left by the exit in the member's own name");
    scene.lab.assert_no_leak("hostile", "headers", control);

    scene.lab.configure(&format!("{STRICT_JAIL}dns = [\"{DNS4}\", \"{DNS6}\"]\n"));
    scene.lab.tunjail_ok(&["up"]);
    by_tunnel.forget();
    burst(&attacker);
    let others =
        kinds().into_iter().filter(|(name, _, kind)| tracked.contains(name) && !kind.asks).map(|(name, ..)| name);
    let others: BTreeSet<String> = others.collect();
    wait_until("all that asks for no name by the exit", PATIENCE, || by_tunnel.names().is_superset(&others));
    assert_eq!(by_tunnel.names(), others, "questions came to others than the jail's servers");

    scene.client.sigkill();
    for broken in [Broken::Nothing, Broken::Rules, Broken::Table, Broken::Ruleset] {
        broken.befall(&scene.lab);
        burst(&attacker);
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("headers-exit-killed-{broken:?}").to_lowercase(), control);
        scene.lab.tunjail_ok(&["up"]);
    }
}
