//! The lock: the table inside a member's namespace. Written by netlink alone, because nothing of the container's may
//! run and no process is spawned on a member's path. `plan::lock_text` says the same in nft's words.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    InetHookNumber, MetaKey, NfTablesMessage, Register, SetAttribute, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};
use nix::libc;

use super::super::KernelError;
use super::super::nfnetlink::{Nfnl, Request};
use super::expression::{
    Base, DESTINATION4, Expression, Message, NETWORK_HEADER, NF_ACCEPT, NF_DROP, Reject, SOURCE4, SOURCE6,
    TRANSPORT_HEADER, accept, equals, goes_to, ipproto, is_in, is_protocol, meta, nfproto, payload, reject,
};
use crate::model::objects::{ENGINES_RESOLVER, Set, TableFamily, TableId};

/// After source NAT (100), so that what is judged is what leaves, forwarded packets included.
const OUT: Base =
    Base { name: "out", kind: "filter", hook: InetHookNumber::PostRouting, priority: 300, policy: NF_DROP };
/// Where a packet arrives at a socket, whichever way it came there.
const IN: Base = Base { name: "in", kind: "filter", hook: InetHookNumber::LocalIn, priority: 0, policy: NF_ACCEPT };

/// nft's type numbers, for those who list the set (nftables, include/datatype.h); the kernel does not look at them.
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_IFINDEX: u32 = 20;
const TYPE_BITS: u32 = 6;

/// Closes the lock in the namespace of `nfnl`: makes the table with empty sets, in one transaction, in the place of one
/// that is there.
///
/// A table is removed only where one is: the kernel frees what was removed after an RCU grace period, and closing an
/// nfnetlink socket of that namespace waits for it, 10 ms or more.
pub fn close(nfnl: &mut Nfnl) -> Result<(), KernelError> {
    let request = "closing the lock in the container's network namespace";
    make(nfnl, request, TableId::lock(), |name| {
        let mut messages = vec![
            set(name, Set::Out4, 1, TYPE_IFINDEX << TYPE_BITS | TYPE_IPADDR, 4 + 4),
            set(name, Set::Out6, 2, TYPE_IFINDEX << TYPE_BITS | TYPE_IP6ADDR, 4 + 16),
            set(name, Set::Resolvers, 3, TYPE_IPADDR, 4),
        ];
        messages.extend(OUT.messages(name, what_leaves()));
        messages.extend(IN.messages(name, the_engines_resolver_answers_only_where_it_may()));
        messages
    })
}

/// Makes a table of the member's namespace, in the place of one that is there.
pub fn make(
    nfnl: &mut Nfnl,
    request: &str,
    table: TableId,
    contents: impl Fn(&str) -> Vec<Message>,
) -> Result<(), KernelError> {
    let message = || TableMessage { attributes: vec![TableAttribute::Name(table.name.clone())] };
    let transaction = |mut messages: Vec<Message>| {
        messages.push((NfTablesMessage::NewTable(message()), NLM_F_CREATE | NLM_F_EXCL));
        messages.extend(contents(&table.name));
        messages
            .into_iter()
            .map(|(message, flags)| Request { family: TableFamily::Inet, message, flags })
            .collect::<Vec<_>>()
    };
    match nfnl.commit(request, transaction(Vec::new())) {
        Err(error) if error.errno() == Some(libc::EEXIST) => {
            nfnl.commit(request, transaction(vec![(NfTablesMessage::DeleteTable(message()), 0)]))
        }
        result => result,
    }
}

fn set(table: &str, set: Set, id: u32, key_type: u32, key_len: u32) -> Message {
    let message = SetMessage {
        attributes: vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(set.name().to_owned()),
            SetAttribute::Flags(SetFlags::empty()),
            SetAttribute::KeyType(key_type),
            SetAttribute::KeyLen(key_len),
            SetAttribute::Id(id),
        ],
    };
    (NfTablesMessage::NewSet(message), NLM_F_CREATE)
}

fn what_leaves() -> Vec<Vec<Expression>> {
    let mut rules = vec![
        loopback_is_free(),
        confirmed_addresses_may_emit(nfproto::IPV4, SOURCE4, Set::Out4),
        confirmed_addresses_may_emit(nfproto::IPV6, SOURCE6, Set::Out6),
    ];
    // Neighbour discovery comes from a hop away at most (RFC 4861, 7.1), MLD never leaves the link (RFC 3810, 5).
    for (kind, hop_limit) in [(135, 255), (136, 255), (131, 1), (132, 1), (143, 1)] {
        rules.push(this_icmpv6_is_free(kind, hop_limit));
    }
    rules
}

fn loopback_is_free() -> Vec<Expression> {
    /// In every namespace (`LOOPBACK_IFINDEX`, net/flow.h).
    const LOOPBACK: u32 = 1;
    vec![meta(MetaKey::Oif), equals(LOOPBACK.to_ne_bytes().to_vec()), accept()]
}

fn confirmed_addresses_may_emit(nfproto: u8, (offset, len): (u32, u32), set: Set) -> Vec<Expression> {
    vec![
        meta(MetaKey::Nfproto),
        equals(vec![nfproto]),
        // The first 4 bytes of the 16 that register 1 has; the address stands right after them.
        meta(MetaKey::Oif),
        payload(NETWORK_HEADER, offset, len, Register::Reg32_01),
        is_in(set.name(), Register::Reg1),
        accept(),
    ]
}

fn this_icmpv6_is_free(kind: u8, hop_limit: u8) -> Vec<Expression> {
    const HOP_LIMIT: u32 = 7;
    let mut rule = vec![meta(MetaKey::Nfproto), equals(vec![nfproto::IPV6])];
    rule.extend(is_protocol(ipproto::ICMPV6));
    rule.extend([
        payload(TRANSPORT_HEADER, 0, 1, Register::Reg1),
        equals(vec![kind]),
        payload(NETWORK_HEADER, HOP_LIMIT, 1, Register::Reg1),
        equals(vec![hop_limit]),
        accept(),
    ]);
    rule
}

/// dockerd listens in the container's namespace, on ports that it draws and any process can find, and asks from the
/// host's. Nothing outside of this namespace sees that.
fn the_engines_resolver_answers_only_where_it_may() -> Vec<Vec<Expression>> {
    let (offset, len) = DESTINATION4;
    let free = vec![
        meta(MetaKey::Nfproto),
        equals(vec![nfproto::IPV4]),
        payload(NETWORK_HEADER, offset, len, Register::Reg1),
        is_in(Set::Resolvers.name(), Register::Reg1),
        accept(),
    ];
    let mut reset = goes_to(ENGINES_RESOLVER);
    reset.extend(is_protocol(ipproto::TCP));
    reset.push(reject(Reject::TcpReset));
    let mut refused = goes_to(ENGINES_RESOLVER);
    refused.push(reject(Reject::PortUnreachable));
    vec![free, reset, refused]
}
