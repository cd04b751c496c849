//! nf_tables: fingerprints and set elements by netlink, the lock by netlink, the wall by `nft`.
//!
//! A member's path spawns no process, so what it needs is written here by netlink. The wall is loaded once, at boot or
//! by the first member, from text that an administrator can read.

mod counters;
mod expression;
mod lock;
mod nft;
mod steering;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use netlink_packet_core::{NLM_F_CREATE, NlasIterator};
use netlink_packet_netfilter::nftables::{
    ChainMessage, DataAttribute, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, SetElementAttribute,
    SetElementList, SetElementMessage, TableAttribute, TableMessage,
};
use nix::libc;

pub use self::counters::{Counter, counters, elements};
pub use self::lock::close as close_lock;
pub use self::nft::{check, find as find_nft, load, ruleset};
pub use self::steering::steer;
use super::KernelError;
use super::nfnetlink::{Answer, Nfnl, Request, values};
use crate::model::facts::Fingerprint;
use crate::model::objects::{Element, Set, TableId};

/// The table's fingerprint: every chain and rule in their order, without handles and counters, so that it changes when
/// and only when somebody changes what the table does. Sets are not in it: one that a rule names can neither be removed
/// nor declared anew, and one that no rule names does nothing. `None`: there is no such table.
pub fn fingerprint(nfnl: &mut Nfnl, table: &TableId) -> Result<Option<Fingerprint>, KernelError> {
    let request = format!("reading nftables table {table}");
    let mut digest = Digest::default();
    let chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let mut there = false;
    for chain in nfnl.list(&request, table.family, chains)? {
        // The kernel lists the chains of every table of a family.
        if string_in(chain.attributes(), NFTA_CHAIN_TABLE) == Some(table.name.as_bytes()) {
            there = true;
            digest.message(chain.attributes(), |kind| {
                !matches!(kind, NFTA_CHAIN_HANDLE | NFTA_CHAIN_COUNTERS | NFTA_CHAIN_USE)
            });
        }
    }
    if !there {
        return Ok(None);
    }
    let rules = NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(table.name.clone())] });
    for rule in nfnl.list(&request, table.family, rules)? {
        digest.message(rule.attributes(), |kind| !matches!(kind, NFTA_RULE_HANDLE | NFTA_RULE_POSITION));
    }
    Ok(Some(digest.finish()))
}

// Attributes that are read here (linux/netfilter/nf_tables.h).
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_CHAIN_COUNTERS: u16 = 8;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_POSITION: u16 = 6;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

#[derive(Default)]
struct Digest(DefaultHasher);

impl Digest {
    fn message(&mut self, attributes: &[u8], keep: fn(u16) -> bool) {
        for attribute in NlasIterator::new(attributes).flatten().filter(|attribute| keep(attribute.kind())) {
            self.0.write_u16(attribute.kind());
            self.0.write_usize(attribute.value().len());
            self.0.write(attribute.value());
        }
    }

    fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finish())
    }
}

fn string_in(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    values(attributes, kind).next().map(|value| value.strip_suffix(b"\0").unwrap_or(value))
}

/// Adds all of `elements` or none. One that is there already stays as it is.
pub fn add_elements(nfnl: &mut Nfnl, elements: &[Element]) -> Result<(), KernelError> {
    let requests = additions(elements);
    if requests.is_empty() {
        return Ok(());
    }
    nfnl.commit("adding nftables set elements", requests)
}

fn additions(elements: &[Element]) -> Vec<Request> {
    in_messages(elements, Carry::Whole)
        .map(|((table, _), message)| Request {
            family: table.family,
            message: NfTablesMessage::NewSetElement(message),
            flags: NLM_F_CREATE,
        })
        .collect()
}

/// Removes `elements`; one that is gone already, or whose table is, is no error.
pub fn delete_elements(nfnl: &mut Nfnl, elements: &[Element]) -> Result<(), KernelError> {
    let delete = |nfnl: &mut Nfnl, elements: &[Element]| {
        let requests = in_messages(elements, Carry::Key)
            .map(|((table, _), message)| Request {
                family: table.family,
                message: NfTablesMessage::DeleteSetElement(message),
                flags: 0,
            })
            .collect::<Vec<_>>();
        match requests.is_empty() {
            true => Ok(()),
            false => nfnl.commit("removing nftables set elements", requests),
        }
    };
    match delete(nfnl, elements) {
        // One that is missing aborts the whole transaction: then each goes by itself.
        Err(error) if error.errno() == Some(libc::ENOENT) && elements.len() > 1 => {
            elements.iter().try_for_each(|element| delete_elements(nfnl, std::slice::from_ref(element)))
        }
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// The first of `elements` that the kernel does not hold, or holds with another value.
pub fn first_missing<'a>(nfnl: &mut Nfnl, elements: &'a [Element]) -> Result<Option<&'a Element>, KernelError> {
    for some in elements.chunks(MOST) {
        if let Some(missing) = first_missing_of(nfnl, some)? {
            return Ok(Some(missing));
        }
    }
    Ok(None)
}

fn first_missing_of<'a>(nfnl: &mut Nfnl, elements: &'a [Element]) -> Result<Option<&'a Element>, KernelError> {
    let mut sets = Vec::new();
    let mut messages = Vec::new();
    for ((table, set), message) in in_messages(elements, Carry::Key) {
        sets.push((table, set));
        messages.push((table.family, NfTablesMessage::GetSetElement(message)));
    }
    let answers = nfnl.get_each("looking for nftables set elements", messages)?;
    for ((table, set), answer) in sets.into_iter().zip(answers) {
        let mut asked = elements.iter().filter(|element| element.table == *table && element.set == set);
        let missing = match answer {
            Ok(answers) => {
                let there: Vec<(&[u8], &[u8])> = answers.iter().flat_map(pairs).collect();
                asked.find(|element| {
                    !there.contains(&(element.key_bytes().as_slice(), element.value_bytes().as_slice()))
                })
            }
            Err(error) if error.errno() == Some(libc::ENOENT) => asked.next(),
            Err(error) => return Err(error),
        };
        if missing.is_some() {
            return Ok(missing);
        }
    }
    Ok(None)
}

/// Removes a table with all that is in it; one that is gone already is no error.
pub fn drop_table(nfnl: &mut Nfnl, table: &TableId) -> Result<(), KernelError> {
    let message =
        NfTablesMessage::DeleteTable(TableMessage { attributes: vec![TableAttribute::Name(table.name.clone())] });
    let request = Request { family: table.family, message, flags: 0 };
    match nfnl.commit(&format!("removing nftables table {table}"), vec![request]) {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// What is said of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carry {
    /// Enough to find it.
    Key,
    /// What a map keeps for it too.
    Whole,
}

/// Elements in a message at most: an attribute's length is a 16-bit number (`struct nlattr`, linux/netlink.h).
const MOST: usize = 500;

/// One message for each set, and more for a set of many.
fn in_messages(elements: &[Element], carry: Carry) -> impl Iterator<Item = ((&TableId, Set), SetElementMessage)> {
    elements.chunks(MOST).flat_map(move |some| by_set(some, carry))
}

fn by_set(elements: &[Element], carry: Carry) -> BTreeMap<(&TableId, Set), SetElementMessage> {
    let mut sets: BTreeMap<(&TableId, Set), Vec<ListAttribute<SetElementAttribute>>> = BTreeMap::new();
    for element in elements {
        let mut parts = vec![SetElementAttribute::Key(DataAttribute::Value(element.key_bytes()))];
        if carry == Carry::Whole && !element.value.is_empty() {
            parts.push(SetElementAttribute::Data(DataAttribute::Value(element.value_bytes())));
        }
        sets.entry((&element.table, element.set)).or_default().push(ListAttribute::Element(parts));
    }
    sets.into_iter()
        .map(|((table, set), elements)| {
            let attributes = vec![
                SetElementList::Table(table.name.clone()),
                SetElementList::Set(set.name().to_owned()),
                SetElementList::Elements(elements),
            ];
            ((table, set), SetElementMessage { attributes })
        })
        .collect()
}

/// The keys of the elements in an answer, and their values in a map.
fn pairs(answer: &Answer) -> Vec<(&[u8], &[u8])> {
    let data = |element, kind| values(element, kind).next().and_then(|data| values(data, NFTA_DATA_VALUE).next());
    values(answer.attributes(), NFTA_SET_ELEM_LIST_ELEMENTS)
        .flat_map(|elements| values(elements, NFTA_LIST_ELEM))
        .filter_map(|element| {
            Some((data(element, NFTA_SET_ELEM_KEY)?, data(element, NFTA_SET_ELEM_DATA).unwrap_or_default()))
        })
        .collect()
}
