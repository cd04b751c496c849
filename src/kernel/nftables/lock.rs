//! The lock: the table inside a member's namespace. Written by netlink alone, because nothing of the container's may
//! run and no process is spawned on a member's path. `plan::lock_text` says the same in nft's words.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainFlags, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber,
    ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage,
    SetAttribute, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};

use nix::libc;

use super::super::KernelError;
use super::super::nfnetlink::{Nfnl, Request};
use crate::model::objects::{Set, TableFamily, TableId};

const CHAIN: &str = "out";
/// After source NAT (100), so that what is judged is what leaves, forwarded packets included.
const PRIORITY: u32 = 300;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// nft's type numbers, for those who list the set (nftables, include/datatype.h); the kernel does not look at them.
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_IFNAME: u32 = 41;
const TYPE_BITS: u32 = 6;

/// `NFT_PAYLOAD_*_HEADER` (linux/netfilter/nf_tables.h).
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

type Expression = ListAttribute<netlink_packet_netfilter::nftables::ExpressionAttribute>;

/// Closes the lock in the namespace of `nfnl`: makes the table with empty sets, in one transaction, in the place of one
/// that is there.
///
/// A table is removed only where one is: the kernel frees what was removed after an RCU grace period, and closing an
/// nfnetlink socket of that namespace waits for it, 10 ms or more.
pub fn close(nfnl: &mut Nfnl) -> Result<(), KernelError> {
    let request = "closing the lock in the container's network namespace";
    match nfnl.commit(request, closed(Vec::new())) {
        Err(error) if error.errno() == Some(libc::EEXIST) => {
            let table = TableMessage { attributes: vec![TableAttribute::Name(TableId::lock().name)] };
            nfnl.commit(request, closed(vec![(NfTablesMessage::DeleteTable(table), 0)]))
        }
        result => result,
    }
}

/// `first` comes before the table is made, in the same transaction.
fn closed(first: Vec<(NfTablesMessage, u16)>) -> Vec<Request> {
    let name = TableId::lock().name;
    let table = || TableMessage { attributes: vec![TableAttribute::Name(name.clone())] };
    let mut messages = first;
    messages.extend([
        (NfTablesMessage::NewTable(table()), NLM_F_CREATE | NLM_F_EXCL),
        (set(&name, Set::Out4, 1, TYPE_IPADDR, 16 + 4), NLM_F_CREATE),
        (set(&name, Set::Out6, 2, TYPE_IP6ADDR, 16 + 16), NLM_F_CREATE),
        (chain(&name), NLM_F_CREATE),
    ]);
    messages.extend(rules().into_iter().map(|expressions| {
        let attributes = vec![
            RuleAttribute::Table(name.clone()),
            RuleAttribute::Chain(CHAIN.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
    }));
    messages.into_iter().map(|(message, flags)| Request { family: TableFamily::Inet, message, flags }).collect()
}

fn set(table: &str, set: Set, id: u32, address_type: u32, key_len: u32) -> NfTablesMessage {
    NfTablesMessage::NewSet(SetMessage {
        attributes: vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(set.name().to_owned()),
            SetAttribute::Flags(SetFlags::empty()),
            SetAttribute::KeyType(TYPE_IFNAME << TYPE_BITS | address_type),
            SetAttribute::KeyLen(key_len),
            SetAttribute::Id(id),
        ],
    })
}

fn chain(table: &str) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Hook(vec![Hook::Number(InetHookNumber::PostRouting.into()), Hook::Priority(PRIORITY)]),
            ChainAttribute::Policy(NF_DROP),
            ChainAttribute::Type("filter".to_owned()),
            ChainAttribute::Flags(ChainFlags::Base),
        ],
    })
}

fn rules() -> Vec<Vec<Expression>> {
    let mut rules = vec![
        loopback_is_free(),
        confirmed_addresses_may_emit(Family { nfproto: libc_nfproto::IPV4, source: (12, 4), set: Set::Out4 }),
        confirmed_addresses_may_emit(Family { nfproto: libc_nfproto::IPV6, source: (8, 16), set: Set::Out6 }),
    ];
    // Neighbour discovery comes from a hop away at most (RFC 4861, 7.1), MLD never leaves the link (RFC 3810, 5).
    for (kind, hop_limit) in [(135, 255), (136, 255), (131, 1), (132, 1), (143, 1)] {
        rules.push(this_icmpv6_is_free(kind, hop_limit));
    }
    rules
}

fn loopback_is_free() -> Vec<Expression> {
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    vec![meta(MetaKey::Oifname), equals(name.to_vec()), accept()]
}

struct Family {
    nfproto: u8,
    /// Where the source address is in the network header: offset and length in bytes.
    source: (u32, u32),
    set: Set,
}

mod libc_nfproto {
    //! `NFPROTO_*` (linux/netfilter.h).
    pub const IPV4: u8 = 2;
    pub const IPV6: u8 = 10;
}

fn confirmed_addresses_may_emit(family: Family) -> Vec<Expression> {
    let (offset, len) = family.source;
    vec![
        meta(MetaKey::Nfproto),
        equals(vec![family.nfproto]),
        meta(MetaKey::Oifname),
        // The name fills the 16 bytes of register 1; the address stands right after it.
        payload(NETWORK_HEADER, offset, len, Register::Reg2),
        Expressions::Lookup(vec![Lookup::Set(family.set.name().to_owned()), Lookup::SourceRegister(Register::Reg1)])
            .into(),
        accept(),
    ]
}

fn this_icmpv6_is_free(kind: u8, hop_limit: u8) -> Vec<Expression> {
    const IPPROTO_ICMPV6: u8 = 58;
    const HOP_LIMIT: u32 = 7;
    vec![
        meta(MetaKey::Nfproto),
        equals(vec![libc_nfproto::IPV6]),
        meta(MetaKey::L4Proto),
        equals(vec![IPPROTO_ICMPV6]),
        payload(TRANSPORT_HEADER, 0, 1, Register::Reg1),
        equals(vec![kind]),
        payload(NETWORK_HEADER, HOP_LIMIT, 1, Register::Reg1),
        equals(vec![hop_limit]),
        accept(),
    ]
}

fn meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into()
}

fn payload(base: u32, offset: u32, len: u32, register: Register) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
    .into()
}

fn equals(value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

fn accept() -> Expression {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])),
    ])
    .into()
}
