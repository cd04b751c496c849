//! What a chain of others does with one connection: its rules are walked as the kernel walks them. A condition that cannot
//! be judged is taken both ways, so that only what is dropped for certain is said to be.

pub mod iptables;
pub mod nft;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::names::IfName;
use crate::model::objects::Family;
use crate::model::policy::Port;

/// A new connection from anywhere by an exit to a member: one that `forward` leads in, and so one whose destination was
/// translated.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    pub exit: &'a IfName,
    pub bridge: &'a IfName,
    pub to: Target<'a>,
    /// At the member.
    pub port: Port,
}

#[derive(Debug, Clone)]
pub enum Target<'a> {
    Member(IpAddr),
    /// Whoever will ask for the port.
    Somebody(&'a IpNet),
}

impl Call<'_> {
    pub fn family(&self) -> Family {
        match &self.to {
            Target::Member(address) => Family::of(*address),
            Target::Somebody(subnet) => Family::of_net(subnet),
        }
    }

    fn goes_to(&self, net: &IpNet) -> Met {
        match &self.to {
            Target::Member(address) => net.contains(address).into(),
            Target::Somebody(subnet) if net.contains(*subnet) => Met::Yes,
            Target::Somebody(subnet) if subnet.contains(net) => Met::Maybe,
            Target::Somebody(_) => Met::No,
        }
    }

    /// A caller may be anybody.
    fn comes_from(net: &IpNet) -> Met {
        if net.prefix_len() == 0 { Met::Yes } else { Met::Maybe }
    }

    fn is_of(&self, protocol: &str) -> Met {
        let own = self.port.protocol;
        (protocol == own.as_str() || protocol == own.number().to_string()).into()
    }
}

/// Whether a rule's conditions hold for the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Yes,
    No,
    /// It depends, or is not known here.
    Maybe,
}

impl From<bool> for Met {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Met {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
        }
    }

    fn not_if(self, negated: bool) -> Self {
        if negated { self.not() } else { self }
    }

    fn any(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::No, |any, one| any.not().and(one.not()).not())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// To the next rule.
    Continue,
    /// Whatever it does.
    Unknown,
}

#[derive(Debug)]
struct Rule {
    met: Met,
    act: Act,
    /// As a user finds it again.
    text: String,
}

#[derive(Debug, Default)]
struct Chain {
    rules: Vec<Rule>,
    /// The policy that drops, of a base chain.
    drops: Option<String>,
}

/// The chains of a table, judged for one call.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<String, Chain>);

/// What may become of a call in a chain.
#[derive(Debug, Clone, Default)]
struct Fate<'a> {
    accepted: bool,
    /// By what; of several, the last one.
    dropped: Option<&'a str>,
    goes_on: bool,
}

/// The kernel allows no more jumps within jumps (`NFT_JUMP_STACK_SIZE`, and what iptables takes).
const DEEPEST: usize = 16;

impl Table {
    /// What drops the call for certain in a base chain: a rule, or the chain's policy.
    pub fn dropped_by(&self, base: &str) -> Option<&str> {
        let mut walked = BTreeMap::new();
        let fate = self.walk(base, 0, &mut walked);
        let policy = self.0.get(base).and_then(|chain| chain.drops.as_deref());
        match (fate.accepted, fate.goes_on) {
            (false, false) => fate.dropped,
            (false, true) => policy,
            (true, _) => None,
        }
    }

    /// Whether a chain has a rule that leads to `target`.
    pub fn leads_to(&self, chain: &str, target: &str) -> bool {
        let leads = |rule: &Rule| matches!(&rule.act, Act::Jump(to) | Act::Goto(to) if to == target);
        self.0.contains_key(target) && self.0.get(chain).is_some_and(|chain| chain.rules.iter().any(leads))
    }

    fn walk<'a>(&'a self, name: &str, depth: usize, walked: &mut BTreeMap<String, Fate<'a>>) -> Fate<'a> {
        if let Some(fate) = walked.get(name) {
            return fate.clone();
        }
        let Some(chain) = self.0.get(name).filter(|_| depth <= DEEPEST) else {
            return Fate { accepted: true, dropped: None, goes_on: true };
        };
        let mut fate = Fate::default();
        let mut returned = false;
        let mut is_at_its_end = true;
        for rule in &chain.rules {
            let ends = match &rule.act {
                _ if rule.met == Met::No => false,
                Act::Continue => false,
                Act::Accept => {
                    fate.accepted = true;
                    true
                }
                Act::Drop => {
                    fate.dropped = Some(&rule.text);
                    true
                }
                Act::Return => {
                    returned = true;
                    true
                }
                Act::Unknown => {
                    fate.accepted = true;
                    false
                }
                Act::Jump(to) | Act::Goto(to) => {
                    let there = self.walk(to, depth + 1, walked);
                    fate.accepted |= there.accepted;
                    fate.dropped = there.dropped.or(fate.dropped);
                    let is_left = matches!(rule.act, Act::Goto(_));
                    returned |= is_left && there.goes_on;
                    is_left || !there.goes_on
                }
            };
            if ends && rule.met == Met::Yes {
                is_at_its_end = false;
                break;
            }
        }
        fate.goes_on = is_at_its_end || returned;
        walked.insert(name.to_owned(), fate.clone());
        fate
    }
}
