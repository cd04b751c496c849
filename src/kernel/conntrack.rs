//! Connection tracking's own tongue (ctnetlink): what the kernel remembers of where datagrams went is forgotten.
//!
//! A translation is chosen with the first packet of a flow and kept as long as the flow goes on. A caller of a UDP port who
//! never pauses would for ever be sent where that port led when it began.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::KernelError;
use super::netlink::Connection;
use super::nfnetlink::Answer;

// linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_IP_DST` has to be equal (net/netfilter/nf_internals.h).
const BY_DESTINATION: u32 = 1 << 1;
/// `CTA_PROTO_NUM` has to be equal.
const BY_PROTOCOL: u32 = 1 << 3;

const IPPROTO_UDP: u8 = 17;

/// Deletions in a datagram: each is acknowledged with a datagram of its own, and a socket keeps a few hundred.
const MANY: usize = 64;

/// A connection to the namespace of the thread that opened it.
pub struct Conntrack(Connection);

impl Conntrack {
    pub fn open() -> Result<Self, KernelError> {
        Connection::open(NETLINK_NETFILTER)
            .map(Self)
            .map_err(|error| KernelError::io("opening a conntrack socket", error))
    }

    /// Forgets every flow of UDP that somebody opened to one of these `ports` of `address`. The next packet of each is
    /// taken for the first one. Returns how many.
    pub fn forget_datagrams(&mut self, address: IpAddr, ports: &[u16]) -> Result<usize, KernelError> {
        let answers: Vec<Answer> = self.0.list("listing tracked connections", &to(address))?;
        // The kernel lists more than was asked for: one before 5.8 all that it has.
        let tuples: Vec<&[u8]> = answers
            .iter()
            .filter_map(|answer| value(answer.attributes(), CTA_TUPLE_ORIG))
            .filter(|tuple| is_meant(tuple, address, ports))
            .collect();
        let mut forgotten = 0;
        for some in tuples.chunks(MANY) {
            let request = "forgetting tracked connections";
            let messages = some.iter().map(|tuple| {
                let tuple = DefaultNla::new(CTA_TUPLE_ORIG | NLA_F_NESTED, tuple.to_vec());
                message(address, IPCTNL_MSG_CT_DELETE, vec![tuple])
            });
            for result in self.0.ask_each::<_, Answer>(request, messages.collect())? {
                match result {
                    Ok(_) => forgotten += 1,
                    // It ended meanwhile.
                    Err(error) if error.errno() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(forgotten)
    }
}

/// Asks for the flows of UDP to `address`, among others.
fn to(address: IpAddr) -> NetfilterMessage {
    let (kind, octets, by) = match address {
        IpAddr::V4(address) => (CTA_IP_V4_DST, address.octets().to_vec(), BY_DESTINATION | BY_PROTOCOL),
        // Linux 6.18 still takes IPv6 addresses that differ for equal here (ctnetlink_filter_match_tuple).
        IpAddr::V6(address) => (CTA_IP_V6_DST, address.octets().to_vec(), BY_PROTOCOL),
    };
    let ip = attribute(CTA_TUPLE_IP | NLA_F_NESTED, &attribute(kind, &octets));
    let protocol = attribute(CTA_TUPLE_PROTO | NLA_F_NESTED, &attribute(CTA_PROTO_NUM, &[IPPROTO_UDP]));
    let filter = attribute(CTA_FILTER_ORIG_FLAGS, &by.to_ne_bytes());
    let attributes = vec![
        DefaultNla::new(CTA_TUPLE_ORIG | NLA_F_NESTED, [ip, protocol].concat()),
        DefaultNla::new(CTA_FILTER | NLA_F_NESTED, filter),
    ];
    message(address, IPCTNL_MSG_CT_GET, attributes)
}

fn message(address: IpAddr, message_type: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let family = match address {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Other { message_type, attributes })
}

/// An attribute with its header, padded (`struct nlattr`, linux/netlink.h).
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    const HEADER_LEN: usize = 4;
    let length = u16::try_from(HEADER_LEN + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    super::nfnetlink::values(attributes, kind).next()
}

fn is_meant(tuple: &[u8], address: IpAddr, ports: &[u16]) -> bool {
    let destination = value(tuple, CTA_TUPLE_IP).and_then(|ip| match address {
        IpAddr::V4(_) => value(ip, CTA_IP_V4_DST)?.try_into().ok().map(|octets: [u8; 4]| IpAddr::from(octets)),
        IpAddr::V6(_) => value(ip, CTA_IP_V6_DST)?.try_into().ok().map(|octets: [u8; 16]| IpAddr::from(octets)),
    });
    let Some(protocol) = value(tuple, CTA_TUPLE_PROTO) else { return false };
    let port = value(protocol, CTA_PROTO_DST_PORT).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    destination == Some(address)
        && value(protocol, CTA_PROTO_NUM) == Some(&[IPPROTO_UDP])
        && port.is_some_and(|port| ports.contains(&port))
}
