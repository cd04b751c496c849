//! The steering: what leads a member's questions to the engine's resolver elsewhere. A table of its own, because the
//! NAT in it has the kernel track every connection of the namespace, which a member without steering need not pay for.
//! When it is missing, the lock refuses the resolver. `plan::steering_text` says the same in nft's words.

use std::net::Ipv4Addr;

use netlink_packet_netfilter::nftables::{InetHookNumber, Register};

use super::super::KernelError;
use super::super::nfnetlink::Nfnl;
use super::expression::{
    Base, NF_ACCEPT, TRANSPORT_HEADER, dnat4, equals, goes_to, ipproto, is_protocol, load, payload,
};
use super::lock;
use crate::model::objects::{ENGINES_RESOLVER, TableId};

/// Before the translation to the ports that dockerd listens on (-100): a connection is translated once.
const CHAIN: Base =
    Base { name: "ask", kind: "nat", hook: InetHookNumber::LocalOut, priority: -120, policy: NF_ACCEPT };

const DOMAIN: u16 = 53;

/// Steers the questions in the namespace of `nfnl` to `server`, whatever steering was there before.
pub fn steer(nfnl: &mut Nfnl, server: Ipv4Addr) -> Result<(), KernelError> {
    let rule = |protocol| {
        let mut rule = goes_to(ENGINES_RESOLVER);
        rule.extend(is_protocol(protocol));
        rule.extend([
            payload(TRANSPORT_HEADER, 2, 2, Register::Reg1),
            equals(DOMAIN.to_be_bytes().to_vec()),
            load(server.octets().to_vec()),
            dnat4(),
        ]);
        rule
    };
    let request = "steering the container's questions for names";
    lock::make(nfnl, request, TableId::steering(), |table| {
        CHAIN.messages(table, vec![rule(ipproto::UDP), rule(ipproto::TCP)])
    })
}
