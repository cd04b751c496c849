//! Packets that a hostile member would send: written byte by byte, sources as the caller likes.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    self, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage,
};
use serde_json::json;

const PAUSE: Duration = Duration::from_millis(2);
const PAYLOAD: &[u8] = b"forged";

/// The internet checksum (RFC 1071) over the parts, each of even length but the last.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// UDP over IP with a forged source, through a raw socket: the kernel routes it as it stands.
pub fn udp(source: IpAddr, addr: IpAddr, port: u16, count: u32) -> super::Done {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // IPPROTO_RAW means that the header is ours, for both families (raw(7), net/ipv6/raw.c).
    let socket = socket::socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
    let packet = datagram(source, addr, port)?;
    // An IPv6 raw socket wants no port in the address; an IPv4 one does not look at it.
    let to = SockaddrStorage::from(SocketAddr::new(addr, 0));
    burst(count, || socket::sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()))
}

/// The same in a frame with forged MAC addresses, through a packet socket: no routing, no firewall of the sender.
pub fn frame(
    device: &str,
    src: [u8; 6],
    dst: [u8; 6],
    source: IpAddr,
    addr: IpAddr,
    port: u16,
    count: u32,
) -> super::Done {
    let kind: u16 = if addr.is_ipv4() { 0x0800 } else { 0x86dd };
    let packet = [&dst[..], &src, &kind.to_be_bytes(), &datagram(source, addr, port)?].concat();
    send_frames(device, &packet, count)
}

/// An ARP answer that nobody asked for: `sender` is at `src`.
pub fn arp(device: &str, src: [u8; 6], sender: IpAddr, target: IpAddr, count: u32) -> super::Done {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (sender, target) else { return Err("ARP is for IPv4".into()) };
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let packet = [&[0xff; 6][..], &src, &[8, 6], &head, &src, &sender.octets(), &[0xff; 6], &target.octets()].concat();
    send_frames(device, &packet, count)
}

/// Frames as the caller wrote them, in hexadecimal, each `count` times.
pub fn send(device: &str, count: u32, frames: &[&str]) -> super::Done {
    for hex in frames {
        if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
            return Err("a frame is an even number of hexadecimal digits".into());
        }
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
        send_frames(device, &bytes.collect::<Result<Vec<_>, _>>()?, count)?;
    }
    Ok(())
}

fn send_frames(device: &str, packet: &[u8], count: u32) -> super::Done {
    let socket = socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
    let index = nix::net::if_::if_nametoindex(device)?;
    let link = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: the pointer and the length are those of a whole sockaddr_ll.
    let to = unsafe { LinkAddr::from_raw((&raw const link).cast(), Some(length)) }.ok_or("no link address")?;
    burst(count, || socket::sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()))
}

fn burst(count: u32, mut send: impl FnMut() -> nix::Result<usize>) -> super::Done {
    let (mut sent, mut refused, mut error) = (0, 0, String::new());
    for _ in 0..count {
        match send() {
            Ok(_) => sent += 1,
            Err(failure) => {
                refused += 1;
                error = failure.to_string();
            }
        }
        sleep(PAUSE);
    }
    println!("{}", json!({"sent": sent, "refused": refused, "error": error}));
    Ok(())
}

fn datagram(source: IpAddr, addr: IpAddr, port: u16) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let length = u16::try_from(8 + PAYLOAD.len())?;
    let mut udp = [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], PAYLOAD].concat();
    let mut head;
    let pseudo = match (source, addr) {
        (IpAddr::V4(source), IpAddr::V4(addr)) => {
            head = [&[0x45, 0][..], &(20 + length).to_be_bytes(), &[0, 1, 0x40, 0, 64, 17, 0, 0]].concat();
            head.extend_from_slice(&source.octets());
            head.extend_from_slice(&addr.octets());
            let sum = checksum(&[&head]);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            [&head[12..20], &[0, 17], &length.to_be_bytes()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(addr)) => {
            head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[17, 64]].concat();
            head.extend_from_slice(&source.octets());
            head.extend_from_slice(&addr.octets());
            [&head[8..40], &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 17]].concat()
        }
        _ => return Err("source and destination are of different families".into()),
    };
    let sum = checksum(&[&pseudo, &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    Ok([head, udp].concat())
}
