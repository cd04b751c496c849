//! A container enters its jail, before its first instruction.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};

use super::leave::{take_off, wall_goes_with_its_last_member};
use super::{Kernel, wall};
use crate::config::Config;
use crate::kernel::KernelError;
use crate::kernel::netns::Netns;
use crate::kernel::nfnetlink::Nfnl;
use crate::kernel::nftables;
use crate::kernel::process::Process;
use crate::model::admit::{self, Confirmed, Refusal};
use crate::model::desired;
use crate::model::facts::{FibAnswer, Fingerprint, Link, NetnsFacts};
use crate::model::names::{ContainerId, JailName};
use crate::model::objects::{Element, TableId};
use crate::model::plan::{self, Change};
use crate::model::policy::Jail;
use crate::model::verify::{self, Mismatch};
use crate::oci::Created;
use crate::store::{ContainerRecord, LockedStore, MemberRecord, MemberState, RaisedBy, Store};

/// What became of a container.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No jail is meant for it; nothing was touched.
    NotOurs,
    Held {
        jail: JailName,
        addresses: Vec<IpAddr>,
    },
}

/// A container that was looked at: whose it is and what its namespace shows.
struct Candidate<'a> {
    jail: &'a Jail,
    netns: Netns,
    /// Sockets that were opened in its namespace: what is told to them happens there.
    inside: Kernel,
    facts: NetnsFacts,
    process: Process,
}

/// Holds the container, or says why it cannot be held; then nothing of it is left but a closed lock.
pub fn enter(config: &Config, created: &Created, named: Option<&JailName>) -> Result<Outcome> {
    let Some(mut candidate) = look(config, created, named)? else { return Ok(Outcome::NotOurs) };
    let mut host = Kernel::open()?;
    let store = Store::open().lock()?;
    let jail = candidate.jail;
    let id = &created.container.id;
    let held_before = is_held(&store, &candidate, id)?;
    match hold(&mut host, &store, &mut candidate, id) {
        Ok(addresses) => Ok(Outcome::Held { jail: jail.name.clone(), addresses }),
        // A second call for a container that is held already: what the first one did goes on holding it.
        Err(error) if held_before => Err(error),
        Err(error) => {
            let rolled_back = take_back(&mut host, &store, &candidate, id);
            let tidied = store.tidy();
            Err(match rolled_back.and(tidied.map_err(Into::into)) {
                Ok(()) => error,
                Err(second) => error.context(format!("what was done could not be taken back wholly ({second:#})")),
            })
        }
    }
}

/// The steps that `enter` would take, as lines.
pub fn plan_to_enter(config: &Config, created: &Created, named: Option<&JailName>) -> Result<Option<String>> {
    let Some(candidate) = look(config, created, named)? else { return Ok(None) };
    let mut host = Kernel::open()?;
    let store = Store::open();
    let survey = wall::survey(&mut host, &store, candidate.jail)?;
    let mut steps = wall::plan_to_raise(&mut host, &store, candidate.jail, &survey)?;
    let interfaces = confirm(&mut host, &candidate, survey.bridge.as_ref())?;
    let desired = desired::member(&candidate.jail.name, &interfaces);
    steps.push(Change::CloseLock);
    steps.push(Change::AddElements([desired.guard, desired.membership].concat()));
    steps.push(Change::OpenLock(desired.lock));
    Ok(Some(plan::lines(&steps, &candidate.netns.path().to_string_lossy())))
}

/// Finds the jail and reads the namespace. `None`: the container is nobody's.
fn look<'a>(config: &'a Config, created: &Created, named: Option<&JailName>) -> Result<Option<Candidate<'a>>> {
    // The hook's own word stands before the container's.
    let named = named.or(created.container.jail.as_ref());
    let process = Process::living(created.pid).with_context(|| {
        format!("the state's pid {} is no living process; createRuntime needs the container's", created.pid)
    })?;
    let netns = Netns::of_process(created.pid)?;
    let is_host = netns.id == Netns::own()?.id;
    if is_host && named.is_none() {
        return Ok(None);
    }
    let named = named
        .map(|name| {
            config.jail(name).ok_or_else(|| {
                anyhow!(
                    "jail {name} is not in the configuration ({}); its jails are: {}",
                    config.sources_text(),
                    config.names_text()
                )
            })
        })
        .transpose()?;
    if is_host {
        bail!(Refusal::HostNetns);
    }
    let mut inside = netns.run(Kernel::open)?;
    let facts = NetnsFacts { id: netns.id, links: inside.rtnl.links()?, addresses: inside.rtnl.addresses(None)? };
    // A pid that was given to another process meanwhile would show another's namespace.
    if !process.is_alive() {
        bail!("the container's process {} ended while its namespace was looked at", created.pid);
    }
    let jail = match named {
        Some(jail) => Some(jail),
        None => facts.routable().find_map(|address| config.jail_for(address.address)),
    };
    Ok(jail.map(|jail| Candidate { jail, netns, inside, facts, process }))
}

/// wall -> confirm -> lock closed -> guard and membership -> verify -> lock opened -> record
fn hold(host: &mut Kernel, store: &LockedStore, candidate: &mut Candidate, id: &ContainerId) -> Result<Vec<IpAddr>> {
    no_other_jail_holds_it(store, candidate)?;
    its_last_run_is_over(host, store, candidate, id)?;
    let survey = wall::ensure(host, store, candidate.jail, RaisedBy::Hook)?;
    let interfaces = confirm(host, candidate, survey.bridge.as_ref())?;
    let Candidate { jail, netns, inside, process, .. } = candidate;
    let desired = desired::member(&jail.name, &interfaces);

    let before = store.member(&jail.name, netns.id)?;
    let recorded = before.iter().flat_map(|member| &member.containers).cloned();
    let (mut containers, dead): (Vec<_>, Vec<_>) = recorded.partition(|container| container.process.is_alive());
    // A lock that stands as it was made stays: closing it again would cut the traffic of the pod's other containers.
    // With nobody alive behind it, it is closed anew: the record may be of a dead namespace whose number this one got.
    let made = before.as_ref().and_then(|member| member.lock).filter(|_| !containers.is_empty());
    containers.retain(|container| container.id != *id);
    containers.push(ContainerRecord { id: id.clone(), process: *process });
    let mut member = MemberRecord {
        jail: jail.name.clone(),
        netns: netns.id,
        state: MemberState::Entering,
        containers,
        interfaces,
        lock: made,
    };

    close_lock(&mut inside.nfnl, member.lock)?;
    if let Some(before) = &before {
        leave_what_is_no_longer_its(host, &mut inside.nfnl, store, before, &desired)?;
        store.release(before, &dead, &[])?;
    }
    // On record before the first element, so that a crash in between leaves something to sweep.
    store.put_member(&member, &desired.membership)?;
    let on_the_host = [desired.guard, desired.membership].concat();
    nftables::add_elements(&mut host.nfnl, &on_the_host)?;
    if let Some(missing) = nftables::first_missing(&mut host.nfnl, &on_the_host)? {
        bail!(Mismatch::ElementMissing(missing.clone()));
    }
    the_kernel_sends_it_by_the_exit(host, jail, &survey, &member.interfaces)?;

    let opened = open_lock(&mut inside.nfnl, made, &desired.lock).and_then(|lock| {
        member.lock = Some(lock);
        member.state = MemberState::Held;
        Ok(store.update_member(&member)?)
    });
    if let Err(error) = opened {
        // Not surely, so not at all; unless siblings live behind it, for whom it was open before.
        if made.is_none() {
            nftables::close_lock(&mut inside.nfnl)
                .with_context(|| format!("{error:#}; and the lock could not be closed again"))?;
        }
        return Err(error);
    }
    Ok(member.interfaces.into_iter().flat_map(|interface| interface.addresses).collect())
}

fn no_other_jail_holds_it(store: &Store, candidate: &Candidate) -> Result<()> {
    for other in store.jails()?.iter().filter(|other| **other != candidate.jail.name) {
        let Some(member) = store.member(other, candidate.netns.id)? else { continue };
        if member.containers.iter().any(|container| container.process.is_alive()) {
            bail!(
                "the container's network namespace is held by jail {other} already (container {}); name one jail for all containers of a pod",
                member.containers[0].id
            );
        }
    }
    Ok(())
}

/// A container that starts again leaves the namespace of its last run behind. Its poststop may be late, or never come.
fn its_last_run_is_over(host: &mut Kernel, store: &LockedStore, candidate: &Candidate, id: &ContainerId) -> Result<()> {
    let (jail, netns) = (&candidate.jail.name, candidate.netns.id);
    let Some(last) = store.member_of(id)?.filter(|last| last.netns != netns || last.jail != *jail) else {
        return Ok(());
    };
    // Another runtime's container may have the same id.
    if last.containers.iter().any(|container| container.id == *id && container.process.is_alive()) {
        return Ok(());
    }
    take_off(host, store, last, id)
}

/// Asks the host about every veth's other end, and lets the model judge.
fn confirm(host: &mut Kernel, candidate: &Candidate, bridge: Option<&Link>) -> Result<Vec<Confirmed>> {
    let Candidate { jail, netns, facts, .. } = candidate;
    let Some(bridge) = bridge else {
        // Without a bridge the container cannot be on it; its addresses may say better why.
        admit::admit_addresses(jail, facts)?;
        bail!(
            "jail {}: no bridge of this host has an address in {}; create the containers' network first, or set \"bridge = \" in [jail.{}]",
            jail.name,
            admit::list(&jail.subnets),
            jail.name
        );
    };
    let number = host.rtnl.number_of(netns)?;
    let mut ports = HashMap::new();
    for link in facts.links.iter().filter(|link| link.is_kind("veth")) {
        let Some(peer) = link.peer else { continue };
        let Some(port) = host.rtnl.link_by_index(peer)? else { continue };
        // Indexes count from 1 in every namespace: only one that points back here is the peer.
        if port.is_kind("veth")
            && port.peer == Some(link.index)
            && port.peer_netns.is_some()
            && port.peer_netns == number
        {
            ports.insert(link.index, port);
        }
    }
    Ok(admit::admit(jail, facts, &ports, bridge)?)
}

/// Closes the lock, unless it stands as it was `made` for another container of this namespace.
fn close_lock(inside: &mut Nfnl, made: Option<Fingerprint>) -> Result<(), KernelError> {
    match made {
        Some(made) if nftables::fingerprint(inside, &TableId::lock())? == Some(made) => Ok(()),
        _ => nftables::close_lock(inside),
    }
}

/// Lets the confirmed addresses emit, and reads the lock back: its elements and, when it was `made` before, the rest.
fn open_lock(inside: &mut Nfnl, made: Option<Fingerprint>, elements: &[Element]) -> Result<Fingerprint> {
    nftables::add_elements(inside, elements)?;
    if let Some(missing) = nftables::first_missing(inside, elements)? {
        bail!(Mismatch::ElementMissing(missing.clone()));
    }
    match (nftables::fingerprint(inside, &TableId::lock())?, made) {
        (Some(found), None) => Ok(found),
        (Some(found), Some(made)) if found == made => Ok(found),
        _ => bail!(Mismatch::Table("of the lock")),
    }
}

/// What a member had before and has no more: an address that was taken from it, a port that went.
fn leave_what_is_no_longer_its(
    host: &mut Kernel,
    inside: &mut Nfnl,
    store: &LockedStore,
    before: &MemberRecord,
    now: &desired::Member,
) -> Result<()> {
    let mut old = desired::member(&before.jail, &before.interfaces);
    old.guard.retain(|element| !now.guard.contains(element));
    old.membership.retain(|element| !now.membership.contains(element));
    old.lock.retain(|element| !now.lock.contains(element));
    // What another member claims by now is that one's.
    let membership = store.still_claimed(before, &old.membership);
    nftables::delete_elements(&mut host.nfnl, &[old.guard, membership].concat())?;
    nftables::delete_elements(inside, &old.lock)?;
    Ok(store.release(before, &[], &old.membership)?)
}

/// Addresses that no packet is sent to: RFC 5737, RFC 3849. Where a host has one of them itself, the next one is asked.
const SOMEWHERE: [&str; 6] =
    ["198.51.100.1", "203.0.113.1", "192.0.2.1", "2001:db8::1", "2001:db8:ffff::1", "2001:db8:ffff:ffff::1"];

/// Asks the FIB itself, with the member's source and the bridge as the interface it came in by.
fn the_kernel_sends_it_by_the_exit(
    host: &mut Kernel,
    jail: &Jail,
    survey: &wall::Survey,
    interfaces: &[Confirmed],
) -> Result<()> {
    let Some(bridge) = &survey.bridge else { bail!("jail {} has no bridge", jail.name) };
    let exits = survey.exits();
    let somewhere: Vec<IpAddr> = SOMEWHERE
        .iter()
        .filter_map(|address| address.parse().ok())
        .filter(|address| !jail.holds(*address) && !jail.allow.iter().any(|allow| allow.net.contains(address)))
        .collect();
    let mut unasked: Vec<IpAddr> = interfaces.iter().flat_map(|interface| interface.addresses.clone()).collect();
    // Where the first address is the host's own, the next one is asked.
    for attempt in 0..somewhere.len() {
        let pairs: Vec<(IpAddr, IpAddr)> = unasked
            .iter()
            .filter_map(|source| {
                let same_family = |address: &&IpAddr| address.is_ipv4() == source.is_ipv4();
                Some((*source, *somewhere.iter().filter(same_family).nth(attempt)?))
            })
            .collect();
        for ((source, destination), answer) in pairs.iter().zip(host.rtnl.ways(&pairs, bridge.index)?) {
            verify::way(*source, *destination, &answer, &exits)?;
            if answer != FibAnswer::Local {
                unasked.retain(|address| address != source);
            }
        }
        if unasked.is_empty() {
            return Ok(());
        }
    }
    bail!("the way of {} could not be asked: every documentation address is the host's own or allowed", unasked[0]);
}

fn is_held(store: &Store, candidate: &Candidate, id: &ContainerId) -> Result<bool> {
    let member = store.member(&candidate.jail.name, candidate.netns.id)?;
    Ok(member.is_some_and(|member| {
        member.state == MemberState::Held && member.containers.iter().any(|container| container.id == *id)
    }))
}

/// Removes what a failed start left of this container; the lock stays closed.
fn take_back(host: &mut Kernel, store: &LockedStore, candidate: &Candidate, id: &ContainerId) -> Result<()> {
    let jail = &candidate.jail.name;
    match store.member(jail, candidate.netns.id)? {
        Some(member) => take_off(host, store, member, id),
        None => wall_goes_with_its_last_member(host, store, jail),
    }
}
