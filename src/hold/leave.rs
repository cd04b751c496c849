//! A container leaves its jail: told by poststop, or found dead by a sweep.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Kernel, forward, wall};
use crate::kernel::nftables;
use crate::model::desired;
use crate::model::names::{ContainerId, JailName};
use crate::model::objects::Element;
use crate::model::plan::{self, Change};
use crate::store::{ContainerRecord, LateRecord, LockedStore, MemberRecord, RaisedBy, Store, Verdict};

/// Takes the container out of its jail. A container that is not known is no error.
pub fn leave(id: &ContainerId) -> Result<()> {
    let store = Store::open();
    if store.member_of(id)?.is_none() && store.late_of(id)?.is_none() {
        return Ok(());
    }
    let store = store.lock()?;
    let (late, member) = (store.late_of(id)?, store.member_of(id)?);
    let containers: Vec<ContainerRecord> = late
        .iter()
        .flat_map(|late| &late.containers)
        .chain(member.iter().flat_map(|m| &m.containers))
        .cloned()
        .collect();
    if still_runs(&containers, id) {
        let jail = member.map(|member| member.jail).or_else(|| late.and_then(|late| late.jail));
        let place = jail.map_or_else(|| "stays locked".to_owned(), |jail| format!("stays in jail {jail}"));
        bail!("container {id} still runs, so this poststop is not its own; it {place}");
    }
    let mut host = Kernel::open()?;
    if let Some(late) = late {
        forget_late(&mut host, &store, late, id)?;
    }
    if let Some(member) = member {
        take_off(&mut host, &store, member, id)?;
    }
    sweep_if_due(&mut host, &store)?;
    Ok(store.tidy()?)
}

/// The steps that `leave` would take, as lines.
pub fn plan_to_leave(id: &ContainerId) -> Result<String> {
    let store = Store::open();
    let Some(member) = store.member_of(id)? else {
        return Ok(match store.late_of(id)? {
            Some(late) => {
                plan::lines(&[Change::DeleteElements(shut_elements(&late))], "")
                    + &format!("# container {id} is forgotten, which waits for its address or was refused\n")
            }
            None => format!("# container {id} is in no jail: nothing to do\n"),
        });
    };
    if member.containers.len() > 1 {
        return Ok(format!("# other containers share the network namespace of {id}: nothing to do but forget it\n"));
    }
    let mut steps = vec![Change::DeleteElements(elements_of(&store, &member))];
    let raised_by_hook = store.wall(&member.jail)?.is_some_and(|wall| wall.raised_by == RaisedBy::Hook);
    if raised_by_hook && store.members(&member.jail)?.len() == 1 {
        steps.extend(wall::plan_to_take_down(&mut Kernel::open()?, &store, &member.jail, None)?);
    }
    Ok(plan::lines(&steps, ""))
}

/// All that the host holds for a member.
fn elements_of(store: &Store, member: &MemberRecord) -> Vec<Element> {
    let desired = desired::member(&member.jail, &member.interfaces);
    [desired.guard, desired.membership, store.led_to(member)].concat()
}

/// A restarted container may have a new process before the poststop of its last one comes. A killed one may take a
/// moment to be gone.
fn still_runs(containers: &[ContainerRecord], id: &ContainerId) -> bool {
    const DYING: Duration = Duration::from_millis(250);
    let deadline = Instant::now() + DYING;
    let alive = || containers.iter().any(|container| container.id == *id && container.process.is_alive());
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
        let before = member.clone();
        member.containers = rest;
        let desired = desired::member(&member.jail, &member.interfaces);
        forward::give_up(host, store, &before, &member)?;
        store.put_member(&member, &desired.membership)?;
        return Ok(store.release_forwards(&before, &forward::given_up(&before, &member))?);
    }
    remove(host, store, &member)?;
    wall_goes_with_its_last_member(host, store, &member.jail)
}

/// Takes one container off those that wait for an address, what shuts their ports with the last of them, and the walls
/// that stood for them.
pub(super) fn forget_late(
    host: &mut Kernel,
    store: &LockedStore,
    mut late: LateRecord,
    id: &ContainerId,
) -> Result<()> {
    let (gone, rest): (Vec<_>, Vec<_>) = late.containers.iter().cloned().partition(|container| container.id == *id);
    if !rest.is_empty() {
        store.release_late(&late, &gone)?;
        late.containers = rest;
        return Ok(store.put_late(&late)?);
    }
    remove_late(host, store, &late)?;
    walls_go_with_their_last_members(host, store)
}

fn remove_late(host: &mut Kernel, store: &LockedStore, late: &LateRecord) -> Result<()> {
    nftables::delete_elements(&mut host.nfnl, &shut_elements(late))?;
    Ok(store.remove_late(late)?)
}

/// What shuts the ports of a container that was refused.
pub(super) fn shut_elements(late: &LateRecord) -> Vec<Element> {
    late.shut.iter().flat_map(|(jail, ports)| desired::shut(jail, ports)).collect()
}

/// Every wall that a hook raised and that holds nobody goes.
pub(super) fn walls_go_with_their_last_members(host: &mut Kernel, store: &LockedStore) -> Result<()> {
    store.jails()?.iter().try_for_each(|jail| wall_goes_with_its_last_member(host, store, jail))
}

/// Removes a member's elements and record. Elements that a later member claims are left to that one.
pub(super) fn remove(host: &mut Kernel, store: &LockedStore, member: &MemberRecord) -> Result<()> {
    let desired = desired::member(&member.jail, &member.interfaces);
    let mut elements = desired.guard;
    elements.extend(store.still_claimed(member, &desired.membership));
    elements.extend(store.led_to(member));
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
    if waiting(store, jail)? > 0 {
        return Ok(false);
    }
    for member in store.each_member(jail)? {
        let member = member?;
        if is_alive(host, &member)? {
            return Ok(false);
        }
        remove(host, store, &member)?;
    }
    Ok(true)
}

/// How many members live, and containers that the wall stands for until their address is there.
pub fn living(host: &mut Kernel, store: &Store, jail: &JailName) -> Result<usize> {
    let mut living = waiting(store, jail)?;
    for member in store.each_member(jail)? {
        living += usize::from(is_alive(host, &member?)?);
    }
    Ok(living)
}

fn waiting(store: &Store, jail: &JailName) -> Result<usize> {
    Ok(store.lates()?.iter().filter(|late| late.needs_wall_of(jail) && late.is_alive()).count())
}

/// What a sweep found in one jail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Members that live, and containers that the wall stands for until their address is there.
    pub living: usize,
    /// Records that were removed.
    pub dead: usize,
}

/// Removes members whose bridge ports are gone and whose processes are dead: nobody told.
pub fn sweep(host: &mut Kernel, store: &LockedStore, jail: &JailName) -> Result<Swept> {
    let mut swept = Swept::default();
    for member in store.members(jail)? {
        if is_alive(host, &member)? {
            swept.living += 1;
        } else {
            remove(host, store, &member)?;
            swept.dead += 1;
        }
    }
    swept.living += waiting(store, jail)?;
    Ok(swept)
}

/// Every jail's members and whoever waits for an address. Walls that a hook raised go with the last. Returns how many
/// records were removed.
pub fn sweep_all(host: &mut Kernel, store: &LockedStore) -> Result<usize> {
    let mut dead = sweep_late(host, store)?;
    for jail in store.jails()? {
        dead += sweep(host, store, &jail)?.dead;
    }
    if dead > 0 {
        walls_go_with_their_last_members(host, store)?;
    }
    Ok(dead)
}

/// What `sweep_all` would remove, as lines.
pub fn plan_to_sweep(host: &mut Kernel, store: &Store) -> Result<String> {
    let mut steps = Vec::new();
    for jail in store.jails()? {
        for member in store.members(&jail)? {
            if !is_alive(host, &member)? {
                steps.push(Change::DeleteElements(elements_of(store, &member)));
            }
        }
    }
    let dead = |late: &LateRecord| !late.is_alive() && late.shut.is_some();
    steps.extend(
        store.lates()?.iter().filter(|late| dead(late)).map(|late| Change::DeleteElements(shut_elements(late))),
    );
    Ok(plan::lines(&steps, ""))
}

/// What a hook does about the dead: everything while there are few members, and otherwise not at every call, so that it
/// costs the same with any number of members.
pub(super) fn sweep_if_due(host: &mut Kernel, store: &LockedStore) -> Result<()> {
    if store.sweep_is_due()? {
        sweep_all(host, store)?;
    }
    Ok(())
}

/// Removes records of containers that died while they waited for an address. Returns how many.
pub fn sweep_late(host: &mut Kernel, store: &LockedStore) -> Result<usize> {
    let mut dead = 0;
    for late in store.lates()? {
        let unattended = !late.attendant.is_some_and(|attendant| attendant.is_alive());
        if !late.is_alive() || (late.verdict == Verdict::Admitted && unattended) {
            remove_late(host, store, &late)?;
            dead += 1;
        }
    }
    Ok(dead)
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
