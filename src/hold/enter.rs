//! A container enters its jail, before its first instruction.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::late::{MAY_HAVE_LIED, Newcomer};
use super::leave::{sweep_if_due, take_off, wall_goes_with_its_last_member};
use super::sight::Sight;
use super::tenants::{its_last_run_is_over, nobody_added_an_address, nobody_else_holds_it};
use super::{Kernel, after_taking_back, forward, late, lock, wall, way};
use crate::config::Config;
use crate::kernel::nfnetlink::Nfnl;
use crate::kernel::nftables;
use crate::kernel::process::Process;
use crate::model;
use crate::model::admit::{self, Confirmed, Refusal};
use crate::model::desired;
use crate::model::facts::{Fingerprint, NetnsId};
use crate::model::names::{ContainerId, JailName};
use crate::model::plan::{self, Change};
use crate::model::policy::Jail;
use crate::model::verify::Mismatch;
use crate::oci::Created;
use crate::store::{ContainerRecord, LockedStore, MemberRecord, MemberState, RaisedBy, Store, Verdict};

/// What became of a container.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No jail is meant for it; nothing was touched.
    NotOurs,
    Held {
        jail: JailName,
        addresses: Vec<IpAddr>,
    },
    /// It has no address yet: its lock is closed, and somebody waits.
    Late,
}

/// A container that was looked at: whose it is and what its namespace shows.
enum Candidate<'a> {
    /// It has an address, or cannot be held.
    Now { jail: &'a Jail, sight: Sight },
    /// Its address is not there yet. Without a jail, none was named.
    Late { jail: Option<&'a Jail>, sight: Sight },
}

/// Holds the container, or says why it cannot be held; then nothing of it is left but a closed lock. `file` is the
/// configuration's, for the helper that waits for an address.
pub fn enter(config: &Config, file: Option<&Path>, created: &Created, named: Option<&JailName>) -> Result<Outcome> {
    let Some(candidate) = look(config, created, named)? else { return Ok(Outcome::NotOurs) };
    let mut host = Kernel::open()?;
    let store = Store::open().lock()?;
    let id = &created.container.id;
    match candidate {
        Candidate::Now { jail, mut sight } => {
            let held_before = is_held(&store, jail, sight.netns.id, id)?;
            let result = hold_this_one(&mut host, &store, config, jail, &mut sight, created);
            match result {
                // A second call for a container that is held already: what the first one did goes on holding it.
                Err(error) if held_before => Err(error),
                Err(error) => Err(taken_back(host, store, jail, sight.netns.id, id, error)),
                Ok(addresses) => {
                    if let Err(error) = sweep_if_due(&mut host, &store) {
                        // What the dead left is in nobody's way, least of all in that of a container that is held.
                        eprintln!("tunjail: warning: looking for members that died: {error:#}");
                    }
                    Ok(Outcome::Held { jail: jail.name.clone(), addresses })
                }
            }
        }
        Candidate::Late { jail, sight } => {
            its_last_run_is_over(&mut host, &store, &sight, jail, id)?;
            let forwards = created.forwards.clone();
            late::wait_for_its_address(&mut host, store, Newcomer { config, file, jail, id, forwards, sight })?;
            Ok(Outcome::Late)
        }
    }
}

/// The steps that `enter` would take, as lines.
pub fn plan_to_enter(config: &Config, created: &Created, named: Option<&JailName>) -> Result<Option<String>> {
    let Some(candidate) = look(config, created, named)? else { return Ok(None) };
    let mut host = Kernel::open()?;
    let store = Store::open();
    let (jails, sight): (Vec<&Jail>, &Sight) = match &candidate {
        Candidate::Now { jail, sight } => (vec![jail], sight),
        Candidate::Late { jail, sight } => (late::walls_for(config, *jail), sight),
    };
    let mut steps = Vec::new();
    let mut surveys = Vec::new();
    for jail in jails {
        let survey = wall::survey(&mut host, &store, jail)?;
        steps.extend(wall::plan_to_raise(&mut host, &store, jail, &survey)?);
        surveys.push(survey);
    }
    steps.push(Change::CloseLock);
    if let (Candidate::Now { jail, .. }, Some(survey)) = (&candidate, surveys.first()) {
        let interfaces = sight.confirm(&mut host, jail, survey.bridge.as_ref())?;
        let desired = desired::member(&jail.name, &interfaces);
        let (resolver, steering) = desired::resolver(&jail.dns, &interfaces);
        let newcomer = newcomer(created, sight);
        let before = store.member(&jail.name, sight.netns.id)?;
        let member = member_with(jail, sight.netns.id, before.as_ref(), interfaces, vec![newcomer]);
        let lost = forward::taken_from_the_dead(&store, config, &member)?;
        steps.extend((!lost.is_empty()).then_some(Change::DeleteElements(lost)));
        steps.push(Change::AddElements([desired.guard, desired.membership, member.forward_elements()].concat()));
        steps.extend(steering.map(Change::Steer));
        steps.push(Change::OpenLock([desired.lock, resolver].concat()));
    }
    let mut text = plan::lines(&steps, &sight.netns.path().to_string_lossy());
    if matches!(candidate, Candidate::Late { .. }) {
        text.push_str("# no address yet: the lock stays closed until one came and was confirmed\n");
    }
    Ok(Some(text))
}

/// Finds the jail and reads the namespace. `None`: the container is nobody's.
fn look<'a>(config: &'a Config, created: &Created, named: Option<&JailName>) -> Result<Option<Candidate<'a>>> {
    // The hook's own word stands before the container's.
    let named = named.or(created.container.jail.as_ref());
    let process = Process::living(created.pid).with_context(|| {
        format!("the state's pid {} is no living process; createRuntime needs the container's", created.pid)
    })?;
    let sight = Sight::of(process)?;
    if sight.is_none() && named.is_none() {
        return Ok(None);
    }
    let named = named.map(|name| named_jail(config, name)).transpose()?;
    let Some(sight) = sight else { bail!(Refusal::HostNetns) };
    if sight.facts.routable().next().is_some() {
        let by_address = || sight.facts.routable().find_map(|address| config.jail_for(address.address));
        return Ok(named.or_else(by_address).map(|jail| Candidate::Now { jail, sight }));
    }
    if config.jails.is_empty() {
        return Ok(None);
    }
    match named {
        // What can never be held is refused at once, not when its address comes.
        Some(jail) => admit::admit_links(&sight.facts).map(|()| Some(Candidate::Late { jail: Some(jail), sight })),
        None => Ok(Some(Candidate::Late { jail: None, sight })),
    }
    .map_err(Into::into)
}

fn named_jail<'a>(config: &'a Config, name: &JailName) -> Result<&'a Jail> {
    config.jail(name).ok_or_else(|| {
        anyhow!(
            "jail {name} is not in the configuration ({}); its jails are: {}",
            config.sources_text(),
            config.names_text()
        )
    })
}

/// Takes the container of the hook, and those that waited in its namespace for an address, into the jail.
fn hold_this_one(
    host: &mut Kernel,
    store: &LockedStore,
    config: &Config,
    jail: &Jail,
    sight: &mut Sight,
    created: &Created,
) -> Result<Vec<IpAddr>> {
    let id = &created.container.id;
    its_last_run_is_over(host, store, sight, Some(jail), id)?;
    let late = store.late(sight.netns.id)?;
    if let Some(late) = late.as_ref().filter(|late| late.verdict != Verdict::Admitted)
        && let Some(liar) = late::who_may_lie(late)
    {
        bail!("container {} is in the same network namespace: {MAY_HAVE_LIED}", liar.id);
    }
    nobody_added_an_address(store, jail, sight)?;
    let mut containers = vec![newcomer(created, sight)];
    let waiting = late.iter().flat_map(|late| &late.containers);
    containers.extend(waiting.filter(|other| other.id != *id && other.process.is_alive()).cloned());
    let addresses = hold(host, store, config, jail, sight, Entering { containers, closed: None })?;
    if let Some(late) = late {
        late::is_a_member_now(host, store, &late)?;
    }
    Ok(addresses)
}

/// The container of the hook, as it will be recorded.
fn newcomer(created: &Created, sight: &Sight) -> ContainerRecord {
    ContainerRecord { id: created.container.id.clone(), process: sight.process, forwards: created.forwards.clone() }
}

/// Containers that enter one namespace together.
pub(super) struct Entering {
    pub containers: Vec<ContainerRecord>,
    /// The fingerprint of a lock that was closed for them before, and stays as it is.
    pub closed: Option<Fingerprint>,
}

/// wall -> confirm -> lock closed -> guard, membership, ports of the exit -> verify -> lock opened -> record
pub(super) fn hold(
    host: &mut Kernel,
    store: &LockedStore,
    config: &Config,
    jail: &Jail,
    sight: &mut Sight,
    entering: Entering,
) -> Result<Vec<IpAddr>> {
    let netns = sight.netns.id;
    nobody_else_holds_it(store, netns, Some(&jail.name), Some(&jail.name))?;
    let survey = wall::ensure(host, store, jail, RaisedBy::Hook)?;
    let interfaces = sight.confirm(host, jail, survey.bridge.as_ref())?;
    let desired = desired::member(&jail.name, &interfaces);
    let inside = &mut sight.inside;

    let before = store.member(&jail.name, netns)?;
    let recorded = before.iter().flat_map(|member| &member.containers);
    let (living, dead): (Vec<_>, Vec<_>) = recorded.cloned().partition(|container| container.process.is_alive());
    let mut member = member_with(jail, netns, before.as_ref(), interfaces, entering.containers);
    // A lock that stands as it was made stays: closing it again would cut the traffic of the pod's other containers.
    // With nobody alive behind it, it is closed anew: the record may be of a dead namespace whose number this one got.
    let open = before.as_ref().and_then(|member| member.lock).filter(|_| !living.is_empty());
    let made = open.or(entering.closed);
    member.lock = made;
    forward::take(host, store, config, &member)?;

    let gained = forward::gained(store, before.as_ref(), &member);

    lock::close(&mut inside.nfnl, member.lock)?;
    if let Some(before) = &before {
        leave_what_is_no_longer_its(host, &mut inside.nfnl, store, before, &desired)?;
        forward::give_up(host, store, before, &member)?;
        store.release(before, &dead, &[])?;
        store.release_forwards(before, &forward::given_up(before, &member))?;
    }
    // On record before the first element, so that a crash in between leaves something to sweep.
    store.put_member(&member, &desired.membership)?;
    let on_the_host = [desired.guard, desired.membership, member.forward_elements()].concat();
    nftables::add_elements(&mut host.nfnl, &on_the_host)?;
    if let Some(missing) = nftables::first_missing(&mut host.nfnl, &on_the_host)? {
        bail!(Mismatch::ElementMissing(missing.clone()));
    }
    let sources = member.interfaces.iter().flat_map(|interface| interface.addresses.clone());
    way::leads_by_the_exits(host, jail, &survey, sources.collect())?;
    forward::callers_begin_anew(host, &survey.exits(), &gained);

    let (resolver, steering) = desired::resolver(&jail.dns, &member.interfaces);
    let steered = match steering {
        Some(steering) => lock::steer(inside, steering, open.is_some()),
        None => Ok(()),
    };
    let opened = steered.and_then(|()| lock::open(&mut inside.nfnl, made, &[desired.lock, resolver].concat()));
    let opened = opened.and_then(|lock| {
        member.lock = Some(lock);
        member.state = MemberState::Held;
        Ok(store.update_member(&member)?)
    });
    if let Err(error) = opened {
        // Not surely, so not at all; unless siblings live behind it, for whom it was open before.
        if open.is_none() {
            nftables::close_lock(&mut inside.nfnl)
                .with_context(|| format!("{error:#}; and the lock could not be closed again"))?;
        }
        return Err(error);
    }
    Ok(member.interfaces.into_iter().flat_map(|interface| interface.addresses).collect())
}

/// The member that a namespace is with `entering` in it, among the containers of `before` that live.
fn member_with(
    jail: &Jail,
    netns: NetnsId,
    before: Option<&MemberRecord>,
    interfaces: Vec<Confirmed>,
    entering: Vec<ContainerRecord>,
) -> MemberRecord {
    let recorded = before.iter().flat_map(|member| &member.containers);
    let (again, mut containers): (Vec<_>, Vec<_>) = recorded
        .filter(|container| container.process.is_alive())
        .cloned()
        .partition(|container| entering.iter().any(|new| new.id == container.id));
    containers.extend(entering);
    for container in &mut containers {
        // The same process as before: what was given to it, or taken from it, since it entered stays so.
        if let Some(known) = again.iter().find(|known| (&known.id, known.process) == (&container.id, container.process))
        {
            container.forwards.clone_from(&known.forwards);
        }
    }
    MemberRecord {
        jail: jail.name.clone(),
        netns,
        state: MemberState::Entering,
        configured: model::forward::configured(jail, &interfaces),
        containers,
        interfaces,
        lock: None,
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

fn is_held(store: &Store, jail: &Jail, netns: NetnsId, id: &ContainerId) -> Result<bool> {
    let member = store.member(&jail.name, netns)?;
    Ok(member.is_some_and(|member| {
        member.state == MemberState::Held && member.containers.iter().any(|container| container.id == *id)
    }))
}

/// Removes what a failed start left of this container; the lock stays closed. Returns why it failed.
fn taken_back(
    mut host: Kernel,
    store: LockedStore,
    jail: &Jail,
    netns: NetnsId,
    id: &ContainerId,
    error: anyhow::Error,
) -> anyhow::Error {
    let taken = match store.member(&jail.name, netns) {
        Ok(Some(member)) => take_off(&mut host, &store, member, id),
        Ok(None) => wall_goes_with_its_last_member(&mut host, &store, &jail.name),
        Err(error) => Err(error.into()),
    };
    after_taking_back(error, taken.and(store.tidy().map_err(Into::into)))
}
