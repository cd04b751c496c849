//! A container leaves its jail: told by poststop, or found dead by a sweep.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Kernel, wall};
use crate::kernel::nftables;
use crate::model::desired;
use crate::model::names::{ContainerId, JailName};
use crate::model::plan::{self, Change};
use crate::store::{LockedStore, MemberRecord, RaisedBy, Store};

/// Takes the container out of its jail. A container that is not known is no error.
pub fn leave(id: &ContainerId) -> Result<()> {
    let store = Store::open();
    if store.member_of(id)?.is_none() {
        return Ok(());
    }
    let store = store.lock()?;
    let Some(member) = store.member_of(id)? else { return Ok(()) };
    if still_runs(&member, id) {
        bail!("container {id} still runs, so this poststop is not its own; it stays in jail {}", member.jail);
    }
    let mut host = Kernel::open()?;
    take_off(&mut host, &store, member, id)?;
    Ok(store.tidy()?)
}

/// The steps that `leave` would take, as lines.
pub fn plan_to_leave(id: &ContainerId) -> Result<String> {
    let store = Store::open();
    let Some(member) = store.member_of(id)? else {
        return Ok(format!("# container {id} is in no jail: nothing to do\n"));
    };
    if member.containers.len() > 1 {
        return Ok(format!("# other containers share the network namespace of {id}: nothing to do but forget it\n"));
    }
    let desired = desired::member(&member.jail, &member.interfaces);
    let mut steps = vec![Change::DeleteElements([desired.guard, desired.membership].concat())];
    let raised_by_hook = store.wall(&member.jail)?.is_some_and(|wall| wall.raised_by == RaisedBy::Hook);
    if raised_by_hook && store.members(&member.jail)?.len() == 1 {
        steps.extend(wall::plan_to_take_down(&mut Kernel::open()?, &store, &member.jail, None)?);
    }
    Ok(plan::lines(&steps, ""))
}

/// A restarted container may have a new process before the poststop of its last one comes. A killed one may take a
/// moment to be gone.
fn still_runs(member: &MemberRecord, id: &ContainerId) -> bool {
    const DYING: Duration = Duration::from_millis(250);
    let deadline = Instant::now() + DYING;
    let alive = || member.containers.iter().any(|container| container.id == *id && container.process.is_alive());
    while alive() {
        if Instant::now() > deadline {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Takes one container off a member, the member off its jail with its last container, the wall with its last member.
pub(super) fn take_off(
    host: &mut Kernel,
    store: &LockedStore,
    mut member: MemberRecord,
    id: &ContainerId,
) -> Result<()> {
    let (gone, rest): (Vec<_>, Vec<_>) = member.containers.iter().cloned().partition(|container| container.id == *id);
    if !rest.is_empty() {
        store.release(&member, &gone, &[])?;
        member.containers = rest;
        let desired = desired::member(&member.jail, &member.interfaces);
        return Ok(store.put_member(&member, &desired.membership)?);
    }
    remove(host, store, &member)?;
    wall_goes_with_its_last_member(host, store, &member.jail)
}

/// Removes a member's elements and record. Elements that a later member claims are left to that one.
fn remove(host: &mut Kernel, store: &LockedStore, member: &MemberRecord) -> Result<()> {
    let desired = desired::member(&member.jail, &member.interfaces);
    let mut elements = desired.guard;
    elements.extend(store.still_claimed(member, &desired.membership));
    nftables::delete_elements(&mut host.nfnl, &elements)?;
    Ok(store.remove_member(member, &desired.membership)?)
}

pub(super) fn wall_goes_with_its_last_member(host: &mut Kernel, store: &LockedStore, jail: &JailName) -> Result<()> {
    let raised_by_hook = store.wall(jail)?.is_some_and(|wall| wall.raised_by == RaisedBy::Hook);
    if raised_by_hook && nobody_is_left(host, store, jail)? {
        wall::take_down(host, store, jail, None)?;
    }
    Ok(())
}

/// Looks for one living member and removes the dead that stand before it: a member whose poststop never came must not
/// keep the wall for ever.
fn nobody_is_left(host: &mut Kernel, store: &LockedStore, jail: &JailName) -> Result<bool> {
    for member in store.each_member(jail)? {
        let member = member?;
        if is_alive(host, &member)? {
            return Ok(false);
        }
        remove(host, store, &member)?;
    }
    Ok(true)
}

/// Removes members whose bridge ports are gone and whose processes are dead: nobody told. Returns how many live.
pub fn sweep(host: &mut Kernel, store: &LockedStore, jail: &JailName) -> Result<usize> {
    let mut living = 0;
    for member in store.members(jail)? {
        if is_alive(host, &member)? {
            living += 1;
        } else {
            remove(host, store, &member)?;
        }
    }
    Ok(living)
}

/// Whether anything of the member lives: a process of its containers, or a bridge port.
pub fn is_alive(host: &mut Kernel, member: &MemberRecord) -> Result<bool> {
    if member.containers.iter().any(|container| container.process.is_alive()) {
        return Ok(true);
    }
    for interface in &member.interfaces {
        let port = host.rtnl.link_by_index(interface.port)?;
        if port.is_some_and(|port| port.name == interface.port_name.as_str()) {
            return Ok(true);
        }
    }
    Ok(false)
}
