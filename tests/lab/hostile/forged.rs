//! Frames, byte by byte, as no well-meant program would write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

/// Ethertypes.
const IP4: u16 = 0x0800;
const IP6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;

/// Where LLDP's and 802.1X's frames go: a bridge takes such frames in on the port itself, past most of its own rules
/// (br_handle_frame, net/bridge/br_input.c).
pub const NEAREST_BRIDGE: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
pub const PORT_ACCESS: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x03];
pub const BROADCAST: Mac = [0xff; 6];

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// Who sends, as the frame says it.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    pub mac: Mac,
    pub addr: IpAddr,
}

/// The multicast MAC of a group.
pub fn group(addr: IpAddr) -> Mac {
    match addr {
        IpAddr::V4(addr) => {
            let [_, b, c, d] = addr.octets();
            [0x01, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(addr) => {
            let [.., a, b, c, d] = addr.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ethertype(addr: IpAddr) -> u16 {
    if addr.is_ipv4() { IP4 } else { IP6 }
}

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An IP packet in a frame.
pub fn framed(to: Mac, from: Sender, packet: &[u8]) -> Vec<u8> {
    ethernet(to, from.mac, ethertype(from.addr), packet)
}

/// A UDP datagram in a plain frame.
pub fn datagram(to: Mac, from: Sender, addr: IpAddr, port: u16) -> Vec<u8> {
    ethernet(to, from.mac, ethertype(addr), &ip(from.addr, addr, UDP, &udp(from.addr, addr, port)))
}

/// The same with priority tags: VLAN 0, which a host without any VLAN takes for no VLAN at all (IEEE 802.1Q, 6.9).
pub fn tagged(to: Mac, from: Sender, addr: IpAddr, port: u16, tags: &[u16]) -> Vec<u8> {
    let packet = ip(from.addr, addr, UDP, &udp(from.addr, addr, port));
    let mut payload = [&ethertype(addr).to_be_bytes()[..], &packet].concat();
    for inner in tags.iter().skip(1).rev() {
        payload = [&[0, 0][..], &payload].concat();
        payload = [&inner.to_be_bytes()[..], &payload].concat();
    }
    ethernet(to, from.mac, tags[0], &[&[0, 0][..], &payload].concat())
}

/// Any IP protocol, with bytes that mean nothing to it.
pub fn protocol(to: Mac, from: Sender, addr: IpAddr, number: u8) -> Vec<u8> {
    ethernet(to, from.mac, ethertype(addr), &ip(from.addr, addr, number, &[0; 24]))
}

/// ICMP echo.
pub fn echo(to: Mac, from: Sender, addr: IpAddr) -> Vec<u8> {
    let words = b"to be said again";
    let body = match addr {
        IpAddr::V4(_) => {
            let mut body = [&[8, 0, 0, 0, 0, 7, 0, 1][..], words].concat();
            let sum = checksum(&[&body]);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            ip(from.addr, addr, ICMP, &body)
        }
        IpAddr::V6(_) => {
            ip(from.addr, addr, ICMP6, &icmp6(from.addr, addr, &[&[128, 0, 0, 0, 0, 7, 0, 1][..], words].concat()))
        }
    };
    ethernet(to, from.mac, ethertype(addr), &body)
}

/// A datagram to `by` that asks to be handed on to `addr` (loose source routing, RFC 791).
pub fn source_routed(to: Mac, from: Sender, by: Ipv4Addr, addr: Ipv4Addr, port: u16) -> Vec<u8> {
    let IpAddr::V4(source) = from.addr else { panic!("source routing is IPv4's") };
    let option = [&[0x83, 7, 4][..], &addr.octets(), &[0]].concat();
    // The pseudo header has the final destination, which the source route holds.
    let packet = ip4(source, by, UDP, [0x40, 0], &option, &udp(from.addr, addr.into(), port));
    ethernet(to, from.mac, IP4, &packet)
}

/// A datagram in two fragments, which `id` holds together.
pub fn fragments(to: Mac, from: Sender, addr: IpAddr, port: u16, id: u8) -> [Vec<u8>; 2] {
    let body = udp(from.addr, addr, port);
    let (head, tail) = body.split_at(8);
    let make = |offset: u16, more: bool, part: &[u8]| match (from.addr, addr) {
        (IpAddr::V4(source), IpAddr::V4(addr)) => {
            let mut packet = ip4(source, addr, UDP, ((u16::from(more) << 13) | offset).to_be_bytes(), &[], part);
            packet[5] = id;
            packet[10..12].fill(0);
            let sum = checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(addr)) => {
            let field = (offset << 3) | u16::from(more);
            let header = [&[UDP, 0][..], &field.to_be_bytes(), &[0, 0, 0, id]].concat();
            ip6(source, addr, 44, 64, &[&header, part].concat())
        }
        _ => panic!("one family at a time"),
    };
    [make(0, true, head), make(1, false, tail)].map(|packet| ethernet(to, from.mac, ethertype(addr), &packet))
}

/// An IPv6 datagram behind a hop-by-hop header.
pub fn hop_by_hop(to: Mac, from: Sender, addr: Ipv6Addr, port: u16) -> Vec<u8> {
    let IpAddr::V6(source) = from.addr else { panic!("extension headers are IPv6's") };
    let body = [&padding(UDP)[..], &udp(from.addr, addr.into(), port)].concat();
    ethernet(to, from.mac, IP6, &ip6(source, addr, HOP_BY_HOP, 64, &body))
}

/// What a neighbour discovery message says.
#[derive(Debug, Clone, Copy)]
pub enum Discovery {
    /// `target` is at the sender's MAC, whatever you knew (RFC 4861, 4.4).
    Advert { target: Ipv6Addr },
    /// The sender of this, which is not `from`, is at the sender's MAC (RFC 4861, 4.3).
    Solicit { target: Ipv6Addr },
    /// A router with a prefix of its own (RFC 4861, 4.2).
    Router { prefix: Ipv6Addr },
    /// What is for `towards` goes better by `by`, at the sender's MAC (RFC 4861, 4.5).
    Redirect { by: Ipv6Addr, towards: Ipv6Addr },
}

/// A neighbour discovery message; `hidden` behind a hop-by-hop header.
pub fn discovery(to: Mac, from: Sender, addr: Ipv6Addr, what: Discovery, hidden: bool) -> Vec<u8> {
    let IpAddr::V6(source) = from.addr else { panic!("neighbour discovery is IPv6's") };
    let link = |kind: u8| [&[kind, 1][..], &from.mac].concat();
    let message = match what {
        Discovery::Advert { target } => [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &link(2)].concat(),
        Discovery::Solicit { target } => [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &link(1)].concat(),
        Discovery::Redirect { by, towards } => {
            [&[137, 0, 0, 0, 0, 0, 0, 0][..], &by.octets(), &towards.octets(), &link(2)].concat()
        }
        Discovery::Router { prefix } => {
            let hour = 3600u32.to_be_bytes();
            let head = [&[134, 0, 0, 0, 64, 0, 0x0e, 0x10][..], &[0; 8]].concat();
            let option = [&[3, 4, 64, 0xc0][..], &hour, &hour, &[0; 4], &prefix.octets()].concat();
            [&head[..], &link(1), &option].concat()
        }
    };
    let message = icmp6(from.addr, addr.into(), &message);
    let packet = if hidden {
        ip6(source, addr, HOP_BY_HOP, 255, &[&padding(ICMP6)[..], &message].concat())
    } else {
        ip6(source, addr, ICMP6, 255, &message)
    };
    ethernet(to, from.mac, IP6, &packet)
}

/// The same in two fragments, of which the first says what it is, and the second about whom. Hosts are to ignore such
/// messages (RFC 6980).
pub fn cut_discovery(frame: &[u8]) -> [Vec<u8>; 2] {
    let (head, message) = frame.split_at(14 + 40);
    let (first, last) = message.split_at(8);
    [(0u16, 1, first), (1, 0, last)].map(|(offset, more, part)| {
        let [high, low] = ((offset << 3) | more).to_be_bytes();
        let payload = [&[ICMP6, 0, high, low, 0, 0, 0, 5][..], part].concat();
        let mut frame = head.to_vec();
        let length = u16::try_from(payload.len()).expect("a short packet");
        frame[14 + 4..14 + 6].copy_from_slice(&length.to_be_bytes());
        frame[14 + 6] = FRAGMENT;
        [frame, payload].concat()
    })
}

/// ICMP redirect: what `hearer` sends `towards` somebody goes better by `by` (RFC 792).
pub fn redirect(to: Mac, from: Sender, hearer: Ipv4Addr, by: Ipv4Addr, towards: Ipv4Addr) -> Vec<u8> {
    // About an echo's answer: for anything else a socket has to be there that sent it (icmp_err, net/ipv4/icmp.c).
    let quoted = ip4(hearer, towards, ICMP, [0x40, 0], &[], &[0, 0, 0, 0, 0, 7, 0, 1]);
    let mut message = [&[5, 1, 0, 0][..], &by.octets(), &quoted].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ethernet(to, from.mac, IP4, &ip(from.addr, hearer.into(), ICMP, &message))
}

/// ARP: `says` is at `is_at`. An answer, or a question, which hearers learn from just as well (RFC 826).
pub fn arp(to: Mac, from: Mac, question: bool, says: Ipv4Addr, is_at: Mac, hearer: Ipv4Addr) -> Vec<u8> {
    let operation = if question { 1 } else { 2 };
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    ethernet(to, from, ARP, &[&head[..], &is_at, &says.octets(), &to, &hearer.octets()].concat())
}

pub fn udp(source: IpAddr, addr: IpAddr, port: u16) -> Vec<u8> {
    udp_with(source, addr, port, b"by no way")
}

pub fn udp_with(source: IpAddr, addr: IpAddr, port: u16, words: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + words.len()).expect("a short datagram");
    let mut packet =
        [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], words].concat();
    let sum = checksum(&[&pseudo(source, addr, UDP, packet.len()), &packet]);
    packet[6..8].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A segment with these flags and options, the latter of whole words.
pub fn tcp(source: IpAddr, addr: IpAddr, port: u16, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("few options");
    let head = [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    let mut packet = [&head[..], &[words << 4, flags, 0xff, 0xff, 0, 0, 0, 0], options, data].concat();
    let sum = checksum(&[&pseudo(source, addr, TCP, packet.len()), &packet]);
    packet[16..18].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn icmp6(source: IpAddr, addr: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = checksum(&[&pseudo(source, addr, ICMP6, message.len()), &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn padding(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

fn pseudo(source: IpAddr, addr: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a short packet").to_be_bytes();
    let addresses = match (source, addr) {
        (IpAddr::V4(source), IpAddr::V4(addr)) => [source.octets(), addr.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(addr)) => [source.octets(), addr.octets()].concat(),
        _ => panic!("one family at a time"),
    };
    [&addresses[..], &length, &[0, 0, 0, protocol]].concat()
}

pub fn ip(source: IpAddr, addr: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, addr) {
        (IpAddr::V4(source), IpAddr::V4(addr)) => ip4(source, addr, protocol, [0x40, 0], &[], payload),
        (IpAddr::V6(source), IpAddr::V6(addr)) => ip6(source, addr, protocol, 64, payload),
        _ => panic!("one family at a time"),
    }
}

pub fn ip4(
    source: Ipv4Addr,
    addr: Ipv4Addr,
    protocol: u8,
    fragment: [u8; 2],
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("few options");
    let total = u16::try_from(20 + options.len() + payload.len()).expect("a short packet");
    let mut head = [&[0x40 | words, 0][..], &total.to_be_bytes(), &[0, 9], &fragment, &[64, protocol, 0, 0]].concat();
    head.extend([source.octets(), addr.octets()].concat());
    head.extend(options);
    let sum = checksum(&[&head]);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [&head, payload].concat()
}

fn ip6(source: Ipv6Addr, addr: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short packet").to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, hops], &source.octets(), &addr.octets(), payload].concat()
}

/// RFC 1071; every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        pairs.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
