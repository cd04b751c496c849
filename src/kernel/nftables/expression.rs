//! Chains, rules and expressions as nf_tables takes them, for what is written inside a member's namespace.

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainFlags, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, Immediate,
    InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, Verdict, VerdictAttribute,
};

pub type Expression = ListAttribute<ExpressionAttribute>;
pub type Message = (NfTablesMessage, u16);

pub const NF_DROP: u32 = 0;
pub const NF_ACCEPT: u32 = 1;

/// `NFT_PAYLOAD_*_HEADER` (linux/netfilter/nf_tables.h).
pub const NETWORK_HEADER: u32 = 1;
pub const TRANSPORT_HEADER: u32 = 2;

pub mod nfproto {
    //! `NFPROTO_*` (linux/netfilter.h).
    pub const IPV4: u8 = 2;
    pub const IPV6: u8 = 10;
}

pub mod ipproto {
    //! `IPPROTO_*` (linux/in.h).
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

/// Where an address is in the network header: offset and length in bytes.
pub const SOURCE4: (u32, u32) = (12, 4);
pub const SOURCE6: (u32, u32) = (8, 16);
pub const DESTINATION4: (u32, u32) = (16, 4);

/// A base chain.
pub struct Base {
    pub name: &'static str,
    /// "filter" or "nat".
    pub kind: &'static str,
    pub hook: InetHookNumber,
    pub priority: i32,
    pub policy: u32,
}

impl Base {
    /// The chain and its rules, in an `inet` table.
    pub fn messages(&self, table: &str, rules: Vec<Vec<Expression>>) -> Vec<Message> {
        let chain = ChainMessage {
            attributes: vec![
                ChainAttribute::Table(table.to_owned()),
                ChainAttribute::Name(self.name.to_owned()),
                // Big-endian two's complement, as the kernel reads it.
                ChainAttribute::Hook(vec![
                    Hook::Number(self.hook.into()),
                    Hook::Priority(self.priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(self.policy),
                ChainAttribute::Type(self.kind.to_owned()),
                ChainAttribute::Flags(ChainFlags::Base),
            ],
        };
        let mut messages = vec![(NfTablesMessage::NewChain(chain), NLM_F_CREATE)];
        messages.extend(rules.into_iter().map(|expressions| {
            let attributes = vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(self.name.to_owned()),
                RuleAttribute::Expressions(expressions),
            ];
            (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
        }));
        messages
    }
}

pub fn meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into()
}

pub fn payload(base: u32, offset: u32, len: u32, register: Register) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
    .into()
}

pub fn equals(value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

pub fn accept() -> Expression {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])),
    ])
    .into()
}

/// The register's value is in the set.
pub fn is_in(set: &str, register: Register) -> Expression {
    Expressions::Lookup(vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(register)]).into()
}

/// Puts a value into the first register.
pub fn load(value: Vec<u8>) -> Expression {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(value)),
    ])
    .into()
}

/// The IPv4 destination is `address`; leaves nothing in a register that later expressions need.
pub fn goes_to(address: std::net::Ipv4Addr) -> Vec<Expression> {
    vec![
        meta(MetaKey::Nfproto),
        equals(vec![nfproto::IPV4]),
        payload(NETWORK_HEADER, DESTINATION4.0, DESTINATION4.1, Register::Reg1),
        equals(address.octets().to_vec()),
    ]
}

pub fn is_protocol(protocol: u8) -> [Expression; 2] {
    [meta(MetaKey::L4Proto), equals(vec![protocol])]
}

/// `NFT_REJECT_*` and what goes with it (linux/netfilter/nf_tables.h).
#[derive(Clone, Copy)]
pub enum Reject {
    PortUnreachable,
    TcpReset,
}

pub fn reject(with: Reject) -> Expression {
    const NFTA_REJECT_TYPE: u16 = 1;
    const NFTA_REJECT_ICMP_CODE: u16 = 2;
    let (kind, code): (u32, u8) = match with {
        Reject::PortUnreachable => (0, 3),
        Reject::TcpReset => (1, 0),
    };
    other(
        "reject",
        vec![
            DefaultNla::new(NFTA_REJECT_TYPE, kind.to_be_bytes().to_vec()),
            DefaultNla::new(NFTA_REJECT_ICMP_CODE, vec![code]),
        ],
    )
}

/// Sends a new connection to the IPv4 address in the first register instead.
pub fn dnat4() -> Expression {
    const NFTA_NAT_TYPE: u16 = 1;
    const NFTA_NAT_FAMILY: u16 = 2;
    const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
    const NFT_NAT_DNAT: u32 = 1;
    const NFT_REG_1: u32 = 1;
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    other(
        "nat",
        vec![
            number(NFTA_NAT_TYPE, NFT_NAT_DNAT),
            number(NFTA_NAT_FAMILY, nfproto::IPV4.into()),
            number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1),
        ],
    )
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expression {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}
