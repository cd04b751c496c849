//! Connection tracking's own tongue (ctnetlink): what the kernel remembers of flows is forgotten, or taken less strictly.
//!
//! A translation is chosen with the first packet of a flow and kept as long as the flow goes on. A caller of a UDP port who
//! never pauses would for ever be sent where that port led when it began.
//!
//! Nor does a connection always find its way again after tracking has missed some of it. When the last rule that needs
//! tracking goes, so do its hooks; when they are back, the kernel forgets the window of each connection of TCP
//! (nf_ct_netns_do_get, nf_ct_tcp_fixup) and learns it anew from what comes first. Where that is the retransmission of
//! what was lost meanwhile, answers to what came through before it lie beyond the window for ever, are not translated
//! back, and the connection hangs until it is given up.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::KernelError;
use super::netlink::Connection;
use super::nfnetlink::Answer;
use crate::model::policy::{Port, Transport};

// linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_NEW: u8 = 0;
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_FILTER: u16 = 25;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
/// What lies beyond the window belongs to the connection all the same (linux/netfilter/nf_conntrack_tcp.h).
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 0x08;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_IP_DST` has to be equal (net/netfilter/nf_internals.h).
const BY_DESTINATION: u32 = 1 << 1;
/// `CTA_PROTO_NUM` has to be equal.
const BY_PROTOCOL: u32 = 1 << 3;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Both ends have spoken; of TCP, that it was established (linux/netfilter/nf_conntrack_common.h).
const IPS_ASSURED: u32 = 1 << 2;

/// Changes in a datagram: each is acknowledged with a datagram of its own, and a socket keeps a few hundred.
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
            .filter(|tuple| protocol_of(tuple) == Some(IPPROTO_UDP) && leads_to(tuple, address, ports))
            .collect();
        self.forget(address, tuples)
    }

    /// Forgets every flow that was translated to leave from one of these `ports` of `address`, and whose answers would go
    /// to whoever opened it: those of UDP, and what of TCP was never established. What was takes nothing but its
    /// own packets. Returns how many.
    pub fn forget_translated(&mut self, address: IpAddr, ports: &[Port]) -> Result<usize, KernelError> {
        let [tcp, udp] = [Transport::Tcp, Transport::Udp].map(|protocol| {
            let of = ports.iter().filter(|port| port.protocol == protocol);
            of.map(|port| port.number).collect::<Vec<u16>>()
        });
        let all = message(family_of(address), IPCTNL_MSG_CT_GET, Vec::new());
        let answers: Vec<Answer> = self.0.list("listing tracked connections", &all)?;
        let tuples: Vec<&[u8]> = answers
            .iter()
            .filter_map(|answer| {
                let attributes = answer.attributes();
                let (asks, answers) = (value(attributes, CTA_TUPLE_ORIG)?, value(attributes, CTA_TUPLE_REPLY)?);
                let status = value(attributes, CTA_STATUS)?.try_into().map(u32::from_be_bytes).ok()?;
                let is_meant = match protocol_of(asks)? {
                    IPPROTO_UDP => leads_to(answers, address, &udp),
                    IPPROTO_TCP => status & IPS_ASSURED == 0 && leads_to(answers, address, &tcp),
                    _ => false,
                };
                // What the host itself sends from there was not translated.
                (is_meant && source_of(asks) != Some(address)).then_some(asks)
            })
            .collect();
        self.forget(address, tuples)
    }

    fn forget(&mut self, address: IpAddr, tuples: Vec<&[u8]>) -> Result<usize, KernelError> {
        self.each("forgetting tracked connections", tuples, |tuple| {
            message(family_of(address), IPCTNL_MSG_CT_DELETE, vec![nested(CTA_TUPLE_ORIG, tuple.to_vec())])
        })
    }

    /// Lets every connection of TCP with an address of these `nets` go on, although packets of it were missed. Returns how
    /// many there are.
    pub fn pardon_gaps(&mut self, nets: &[IpNet]) -> Result<usize, KernelError> {
        let mut pardoned = 0;
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            let answers: Vec<Answer> =
                self.0.list("listing tracked connections", &message(family, IPCTNL_MSG_CT_GET, Vec::new()))?;
            // Whoever opened it, and whatever its addresses are translated to.
            let is_theirs = |answer: &&Answer| {
                [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].into_iter().any(|side| {
                    value(answer.attributes(), side).is_some_and(|tuple| {
                        protocol_of(tuple) == Some(IPPROTO_TCP)
                            && source_of(tuple).is_some_and(|source| nets.iter().any(|net| net.contains(&source)))
                    })
                })
            };
            let tuples: Vec<&[u8]> = answers
                .iter()
                .filter(is_theirs)
                .filter_map(|answer| value(answer.attributes(), CTA_TUPLE_ORIG))
                .collect();
            pardoned += self.each("mending tracked connections", tuples, |tuple| {
                let attributes = vec![nested(CTA_TUPLE_ORIG, tuple.to_vec()), nested(CTA_PROTOINFO, liberal())];
                message(family, IPCTNL_MSG_CT_NEW, attributes)
            })?;
        }
        Ok(pardoned)
    }

    /// Forgets every flow that somebody in `sources` began in another name, but those with `others`: its next packet is
    /// taken for the first one, and gets a name that fits. Returns how many.
    pub fn forget_names(&mut self, sources: &[IpNet], others: &[IpNet]) -> Result<usize, KernelError> {
        let is_in = |nets: &[IpNet], address: IpAddr| nets.iter().any(|net| net.contains(&address));
        let mut forgotten = 0;
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            let answers: Vec<Answer> =
                self.0.list("listing tracked connections", &message(family, IPCTNL_MSG_CT_GET, Vec::new()))?;
            let is_meant = |answer: &&Answer| {
                let tuples = |side| value(answer.attributes(), side);
                let (Some(asked), Some(answered)) = (tuples(CTA_TUPLE_ORIG), tuples(CTA_TUPLE_REPLY)) else {
                    return false;
                };
                let (Some(source), Some(name)) = (source_of(asked), destination_of(answered)) else { return false };
                is_in(sources, source)
                    && source != name
                    && !destination_of(asked).is_some_and(|destination| is_in(others, destination))
            };
            let tuples: Vec<&[u8]> = answers
                .iter()
                .filter(is_meant)
                .filter_map(|answer| value(answer.attributes(), CTA_TUPLE_ORIG))
                .collect();
            forgotten += self.each("forgetting tracked connections", tuples, |tuple| {
                message(family, IPCTNL_MSG_CT_DELETE, vec![nested(CTA_TUPLE_ORIG, tuple.to_vec())])
            })?;
        }
        Ok(forgotten)
    }

    /// Sends a change of each connection, by the tuple that it began with. Returns how many there still were.
    fn each(
        &mut self,
        request: &str,
        tuples: Vec<&[u8]>,
        change: impl Fn(&[u8]) -> NetfilterMessage,
    ) -> Result<usize, KernelError> {
        let mut changed = 0;
        for some in tuples.chunks(MANY) {
            for result in self.0.ask_each::<_, Answer>(request, some.iter().map(|tuple| change(tuple)).collect())? {
                match result {
                    Ok(_) => changed += 1,
                    // It ended meanwhile.
                    Err(error) if error.errno() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(changed)
    }
}

/// Both ends' flags of a connection (`CTA_PROTOINFO`).
fn liberal() -> Vec<u8> {
    // `struct nf_ct_tcp_flags`: the flags, and which of them are meant.
    let flags = [IP_CT_TCP_FLAG_BE_LIBERAL; 2];
    let both =
        [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY].map(|side| attribute(side, &flags)).concat();
    attribute(CTA_PROTOINFO_TCP | NLA_F_NESTED, &both)
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
    let attributes = vec![nested(CTA_TUPLE_ORIG, [ip, protocol].concat()), nested(CTA_FILTER, filter)];
    message(family_of(address), IPCTNL_MSG_CT_GET, attributes)
}

fn family_of(address: IpAddr) -> NetfilterProtoFamily {
    match address {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    }
}

fn nested(kind: u16, value: Vec<u8>) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

fn message(family: NetfilterProtoFamily, message_type: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
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

fn leads_to(tuple: &[u8], address: IpAddr, ports: &[u16]) -> bool {
    let Some(protocol) = value(tuple, CTA_TUPLE_PROTO) else { return false };
    let port = value(protocol, CTA_PROTO_DST_PORT).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    destination_of(tuple) == Some(address) && port.is_some_and(|port| ports.contains(&port))
}

fn source_of(tuple: &[u8]) -> Option<IpAddr> {
    address_of(tuple, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])
}

fn destination_of(tuple: &[u8]) -> Option<IpAddr> {
    address_of(tuple, [CTA_IP_V4_DST, CTA_IP_V6_DST])
}

/// The address that a tuple has as an attribute of one of these kinds, IPv4's and IPv6's.
fn address_of(tuple: &[u8], [v4, v6]: [u16; 2]) -> Option<IpAddr> {
    let ip = value(tuple, CTA_TUPLE_IP)?;
    let v4 = value(ip, v4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(IpAddr::from);
    v4.or_else(|| value(ip, v6).and_then(|octets| <[u8; 16]>::try_from(octets).ok()).map(IpAddr::from))
}

fn protocol_of(tuple: &[u8]) -> Option<u8> {
    value(value(tuple, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?.first().copied()
}
