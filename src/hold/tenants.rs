//! Who lives in a network namespace already, and who did: what a container may enter, and what it may believe there.

use std::net::IpAddr;

use anyhow::{Result, bail};

use super::Kernel;
use super::leave::{forget_late, take_off};
use super::sight::Sight;
use crate::model::facts::NetnsId;
use crate::model::names::{ContainerId, JailName};
use crate::model::policy::Jail;
use crate::store::{ContainerRecord, LateRecord, LockedStore, MemberRecord, Store};

/// Refuses a namespace that somebody lives in already: members of a jail other than `joined`, or containers whose address
/// is late and that mean another jail than `jail`.
pub(super) fn nobody_else_holds_it(
    store: &Store,
    netns: NetnsId,
    jail: Option<&JailName>,
    joined: Option<&JailName>,
) -> Result<()> {
    for other in store.jails()?.iter().filter(|other| Some(*other) != joined) {
        let Some(member) = store.member(other, netns)? else { continue };
        if let Some(container) = member.containers.iter().find(|container| container.process.is_alive()) {
            bail!(held_by(other, &container.id));
        }
    }
    let Some(late) = store.late(netns)?.filter(LateRecord::is_alive) else { return Ok(()) };
    match (&late.jail, jail, late.containers.first()) {
        (Some(other), Some(jail), Some(container)) if other != jail => bail!(held_by(other, &container.id)),
        _ => Ok(()),
    }
}

fn held_by(jail: &JailName, container: &ContainerId) -> String {
    format!(
        "the container's network namespace is held by jail {jail} already (container {container}); name one jail for all containers of a pod"
    )
}

/// A container that starts again leaves the namespace of its last run behind. Its poststop may be late, or never come.
pub(super) fn its_last_run_is_over(
    host: &mut Kernel,
    store: &LockedStore,
    sight: &Sight,
    jail: Option<&Jail>,
    id: &ContainerId,
) -> Result<()> {
    // Another runtime's container may have the same id.
    let is_alive = |containers: &[ContainerRecord]| {
        containers.iter().any(|container| container.id == *id && container.process.is_alive())
    };
    let netns = sight.netns.id;
    let elsewhere = |member: &MemberRecord| member.netns != netns || jail.is_some_and(|jail| jail.name != member.jail);
    if let Some(last) = store.late_of(id)?.filter(|last| last.netns != netns && !is_alive(&last.containers)) {
        forget_late(host, store, last, id)?;
    }
    match store.member_of(id)?.filter(|last| elsewhere(last) && !is_alive(&last.containers)) {
        Some(last) => take_off(host, store, last, id),
        None => Ok(()),
    }
}

/// A container that joins the namespace of a member finds there what the member's own processes made of it: with
/// CAP_NET_ADMIN, a neighbour's address.
pub(super) fn nobody_added_an_address(store: &Store, jail: &Jail, sight: &Sight) -> Result<()> {
    let Some(member) = store.member(&jail.name, sight.netns.id)? else { return Ok(()) };
    let may_lie = |container: &&ContainerRecord| {
        container.process != sight.process
            && container.process.is_alive()
            && container.process.may_change_its_network().unwrap_or(true)
    };
    let Some(liar) = member.containers.iter().find(may_lie) else { return Ok(()) };
    let confirmed: Vec<IpAddr> = member.interfaces.iter().flat_map(|own| own.addresses.clone()).collect();
    match sight.facts.routable().find(|address| jail.holds(address.address) && !confirmed.contains(&address.address)) {
        Some(new) => bail!(
            "address {} came into the network namespace after container {} was started, which may have added it itself (CAP_NET_ADMIN); stop all containers of the pod and start them anew",
            new.address,
            liar.id
        ),
        None => Ok(()),
    }
}
