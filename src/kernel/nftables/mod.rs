//! nf_tables: fingerprints and set elements by netlink, the lock by netlink, the wall by `nft`.
//!
//! A member's path spawns no process, so what it needs is written here by netlink. The wall is loaded once, at boot or
//! by the first member, from text that an administrator can read.

mod counters;
mod lock;
mod nft;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use netlink_packet_core::{Emitable, NLM_F_CREATE, Nla};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
    SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage, TableAttribute, TableMessage,
};
use nix::libc;

pub use self::counters::{Counter, counters, elements};
pub use self::lock::{close as close_lock, stands as lock_stands};
pub use self::nft::{check, find as find_nft, load};
use super::KernelError;
use super::nfnetlink::{Nfnl, Request};
use crate::model::facts::Fingerprint;
use crate::model::objects::{Element, Set, TableId};

/// The table's fingerprint: every chain, rule and set declaration in their order, without handles and counters, so
/// that it changes when and only when somebody changes what the table does. `None`: there is no such table.
pub fn fingerprint(nfnl: &mut Nfnl, table: &TableId) -> Result<Option<Fingerprint>, KernelError> {
    let request = format!("reading nftables table {table}");
    let mut digest = Digest::default();
    let chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let mut there = false;
    for answer in nfnl.list(&request, table.family, &chains)? {
        let NfTablesMessage::NewChain(chain) = answer else { continue };
        // The kernel lists the chains of every table of a family.
        if !chain.attributes.contains(&ChainAttribute::Table(table.name.clone())) {
            continue;
        }
        there = true;
        digest.message(&chain.attributes, |attribute| {
            !matches!(attribute, ChainAttribute::Handle(_) | ChainAttribute::Counter(_) | ChainAttribute::Use(_))
        });
    }
    if !there {
        return Ok(None);
    }
    let rules = NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(table.name.clone())] });
    for answer in nfnl.list(&request, table.family, &rules)? {
        if let NfTablesMessage::NewRule(rule) = answer {
            digest.message(&rule.attributes, |attribute| {
                !matches!(attribute, RuleAttribute::Handle(_) | RuleAttribute::Position(_))
            });
        }
    }
    let sets = NfTablesMessage::GetSet(SetMessage { attributes: vec![SetAttribute::Table(table.name.clone())] });
    for answer in nfnl.list(&request, table.family, &sets)? {
        if let NfTablesMessage::NewSet(set) = answer {
            // Size, element count, back end: how the kernel stores it, not what it means.
            digest.message(&set.attributes, |attribute| {
                matches!(
                    attribute,
                    SetAttribute::Name(_)
                        | SetAttribute::Flags(_)
                        | SetAttribute::KeyType(_)
                        | SetAttribute::KeyLen(_)
                        | SetAttribute::DataType(_)
                        | SetAttribute::DataLen(_)
                )
            });
        }
    }
    Ok(Some(digest.finish()))
}

#[derive(Default)]
struct Digest(DefaultHasher);

impl Digest {
    fn message<A: Nla + Clone>(&mut self, attributes: &[A], keep: fn(&A) -> bool) {
        let kept: Vec<A> = attributes.iter().filter(|attribute| keep(attribute)).cloned().collect();
        let kept = kept.as_slice();
        let mut bytes = vec![0; kept.buffer_len()];
        kept.emit(&mut bytes);
        self.0.write_usize(bytes.len());
        self.0.write(&bytes);
    }

    fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finish())
    }
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
    by_set(elements)
        .into_iter()
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
        let requests = by_set(elements)
            .into_iter()
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

/// The first of `elements` that the kernel does not hold.
pub fn first_missing<'a>(nfnl: &mut Nfnl, elements: &'a [Element]) -> Result<Option<&'a Element>, KernelError> {
    for ((table, set), message) in by_set(elements) {
        let asked: Vec<&Element> =
            elements.iter().filter(|element| element.table == *table && element.set == set).collect();
        let request = format!("looking for elements of set {} in {table}", set.name());
        match nfnl.get(&request, table.family, NfTablesMessage::GetSetElement(message)) {
            Ok(answers) => {
                let there: Vec<Vec<u8>> = answers.iter().flat_map(keys).collect();
                if let Some(missing) = asked.into_iter().find(|element| !there.contains(&element.key_bytes())) {
                    return Ok(Some(missing));
                }
            }
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(asked.first().copied()),
            Err(error) => return Err(error),
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

/// One message for each set.
fn by_set(elements: &[Element]) -> BTreeMap<(&TableId, Set), SetElementMessage> {
    let mut sets: BTreeMap<(&TableId, Set), Vec<ListAttribute<SetElementAttribute>>> = BTreeMap::new();
    for element in elements {
        let key = SetElementAttribute::Key(DataAttribute::Value(element.key_bytes()));
        sets.entry((&element.table, element.set)).or_default().push(ListAttribute::Element(vec![key]));
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

fn elements_in(answer: &NfTablesMessage) -> Vec<&Vec<SetElementAttribute>> {
    let NfTablesMessage::NewSetElement(message) = answer else { return Vec::new() };
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            SetElementList::Elements(elements) => Some(elements),
            _ => None,
        })
        .flatten()
        .filter_map(|element| match element {
            ListAttribute::Element(attributes) => Some(attributes),
            _ => None,
        })
        .collect()
}

fn keys(answer: &NfTablesMessage) -> Vec<Vec<u8>> {
    elements_in(answer).into_iter().filter_map(|element| element.iter().find_map(key)).collect()
}

fn key(attribute: &SetElementAttribute) -> Option<Vec<u8>> {
    match attribute {
        SetElementAttribute::Key(DataAttribute::Value(bytes)) => Some(bytes.clone()),
        _ => None,
    }
}
