//! A container enters its jail, before its first instruction.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::late::{MAY_HAVE_LIED, Newcomer};
use super::leave::{forget_late, sweep_if_due, take_off, wall_goes_with_its_last_member};
use super::sight::Sight;
use super::{Kernel, after_taking_back, forward, late, wall, way};
use crate::config::Config;
use crate::kernel::KernelError;
use crate::kernel::nfnetlink::Nfnl;
use crate::kernel::nftables;
use crate::kernel::process::Process;
use crate::model;
use crate::model::admit::{self, Confirmed, Refusal};
use crate::model::desired::{self, Steering};
use crate::model::facts::{Fingerprint, NetnsId};
use crate::model::names::{ContainerId, JailName};
use crate::model::objects::{ENGINES_RESOLVER, Element, TableId};
use crate::model::plan::{self, Change};
use crate::model::policy::Jail;
use crate::model::verify::Mismatch;
use crate::oci::Created;
use crate::store::{ContainerRecord, LateRecord, LockedStore, MemberRecord, MemberState, RaisedBy, Store, Verdict};

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

/// A container that joins the namespace of a member finds there what the member's own processes made of it: with
/// CAP_NET_ADMIN, a neighbour's address.
fn nobody_added_an_address(store: &Store, jail: &Jail, sight: &Sight) -> Result<()> {
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

    close_lock(&mut inside.nfnl, member.lock)?;
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
        Some(steering) => steer(inside, steering, open.is_some()),
        None => Ok(()),
    };
    let opened = steered.and_then(|()| open_lock(&mut inside.nfnl, made, &[desired.lock, resolver].concat()));
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
fn its_last_run_is_over(
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

/// Closes the lock, unless it stands as it was `made` for another container of this namespace.
fn close_lock(inside: &mut Nfnl, made: Option<Fingerprint>) -> Result<(), KernelError> {
    match made {
        Some(made) if nftables::fingerprint(inside, &TableId::lock())? == Some(made) => Ok(()),
        _ => nftables::close_lock(inside),
    }
}

/// Leads questions to the engine's resolver elsewhere. With siblings behind the lock, what leads theirs stays: anew, it
/// would lose those under way.
fn steer(inside: &mut Kernel, steering: Steering, has_siblings: bool) -> Result<()> {
    if has_siblings && nftables::fingerprint(&mut inside.nfnl, &TableId::steering())?.is_some() {
        return Ok(());
    }
    inside.rtnl.loop_back_as(ENGINES_RESOLVER, steering.source)?;
    Ok(nftables::steer(&mut inside.nfnl, steering.server)?)
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
