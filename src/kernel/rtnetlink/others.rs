//! What others did to the host's addresses and rules: looked at, never changed.

use std::fmt::Write;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{KernelError, Rtnl};
use crate::model::facts::OtherRule;
use crate::model::objects::{Family, PROTOCOL, Rule};

impl Rtnl {
    /// Rules that are not tunjail's and are asked before those of preference `before`; the kernel's own `lookup local`
    /// is not among them.
    pub fn other_rules(&mut self, before: u32) -> Result<Vec<OtherRule>, KernelError> {
        let answers = self.list("listing ip rules", RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
        Ok(others_in(answers.into_iter(), before))
    }

    /// [`Rtnl::rules`] of `table` and [`Rtnl::other_rules`] from one list.
    pub fn all_rules(&mut self, table: u32, before: u32) -> Result<(Vec<Rule>, Vec<OtherRule>), KernelError> {
        let answers = self.list("listing ip rules", RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
        let others = others_in(answers.iter().cloned(), before);
        Ok((super::rules_in(answers, table), others))
    }

    /// Interfaces with an IPv6 address, not link-local, that somebody else's word keeps alive (RFC 4862, 5.5).
    pub fn autoconfigured(&mut self) -> Result<Vec<u32>, KernelError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        let answers = self.list("listing addresses", RouteNetlinkMessage::GetAddress(message))?;
        let mut found: Vec<u32> = answers.into_iter().filter_map(autoconfigured_in).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn others_in(answers: impl Iterator<Item = RouteNetlinkMessage>, before: u32) -> Vec<OtherRule> {
    let mut rules: Vec<OtherRule> = answers.filter_map(other_rule_in).collect();
    rules.retain(|rule| rule.priority < before && !(rule.priority == 0 && rule.text == "from all lookup 255"));
    rules
}

fn autoconfigured_in(answer: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewAddress(message) = &answer else { return None };
    let (index, permanent) = (message.header.index, message.header.flags.contains(AddressHeaderFlags::Permanent));
    let address = super::address_in(answer)?;
    (!permanent && address.address.is_ipv6() && !address.is_link_local()).then_some(index)
}

fn other_rule_in(answer: RouteNetlinkMessage) -> Option<OtherRule> {
    let RouteNetlinkMessage::NewRule(message) = answer else { return None };
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    let (mut source, mut destination, mut iif, mut table) = (None, None, None, u32::from(message.header.table));
    let (mut priority, mut mark, mut mask, mut goto) = (0, 0, u32::MAX, None);
    let mut more = String::new();
    for attribute in &message.attributes {
        // A String takes all that is written to it.
        let _ = match attribute {
            RuleAttribute::Source(address) => {
                source = IpNet::new(*address, message.header.src_len).ok();
                Ok(())
            }
            RuleAttribute::Destination(address) => {
                destination = IpNet::new(*address, message.header.dst_len).ok();
                Ok(())
            }
            RuleAttribute::Iifname(name) => {
                iif = Some(name.clone());
                Ok(())
            }
            RuleAttribute::Table(number) => {
                table = *number;
                Ok(())
            }
            RuleAttribute::Priority(number) => {
                priority = *number;
                Ok(())
            }
            RuleAttribute::FwMark(number) => {
                mark = *number;
                Ok(())
            }
            RuleAttribute::FwMask(number) => {
                mask = *number;
                Ok(())
            }
            RuleAttribute::Goto(number) => {
                goto = Some(*number);
                Ok(())
            }
            // Never a forwarded packet's: it is bound to no interface, and has no l3mdev without a VRF.
            RuleAttribute::Oifname(_) | RuleAttribute::L3MDev(true) => return None,
            RuleAttribute::Protocol(protocol) if *protocol == RouteProtocol::from(PROTOCOL) => return None,
            RuleAttribute::IpProtocol(protocol) => write!(more, " ipproto {}", i32::from(*protocol)),
            RuleAttribute::SourcePortRange(range) => write!(more, " sport {}-{}", range.start, range.end),
            RuleAttribute::DestinationPortRange(range) => write!(more, " dport {}-{}", range.start, range.end),
            RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => {
                write!(more, " suppress_prefixlength {length}")
            }
            _ => Ok(()),
        };
    }
    let marked = mark != 0 || (mask != 0 && mask != u32::MAX);
    let mut text = format!("{}from {}", if inverted { "not " } else { "" }, named(source));
    if destination.is_some() {
        let _ = write!(text, " to {}", named(destination));
    }
    if marked {
        let _ = write!(text, " fwmark {mark:#x}");
        if mask != u32::MAX {
            let _ = write!(text, "/{mask:#x}");
        }
    }
    if let Some(iif) = &iif {
        let _ = write!(text, " iif {iif}");
    }
    let action = match (message.header.action, goto) {
        (RuleAction::ToTable, _) => format!(" lookup {table}"),
        (RuleAction::Goto, Some(target)) => format!(" goto {target}"),
        (RuleAction::Blackhole, _) => " blackhole".into(),
        (RuleAction::Unreachable, _) => " unreachable".into(),
        (RuleAction::Prohibit, _) => " prohibit".into(),
        // It does nothing.
        _ => return None,
    };
    // "lookup T" comes first: what suppresses belongs to it.
    text.push_str(&action);
    text.push_str(&more);
    Some(OtherRule { family, priority, inverted, source, destination, iif, marked, text })
}

fn named(net: Option<IpNet>) -> String {
    net.map_or_else(|| "all".to_owned(), |net| net.to_string())
}
