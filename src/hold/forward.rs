//! Ports of an exit that lead to a member: taken when it enters, or by hand, and given up with it.
//!
//! A port of an exit leads to one member, whatever jails share the exit. Who has it is on record; a dead member has
//! nothing.

use anyhow::{Result, bail};

use super::{Kernel, after_taking_back, wall};
use crate::config::Config;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::{KernelError, nftables};
use crate::model;
use crate::model::names::{ContainerId, IfName, JailName};
use crate::model::objects::{Element, Part};
use crate::model::plan::Change;
use crate::model::policy::{Forward, Jail, Port, Transport};
use crate::model::verify::Mismatch;
use crate::store::{ContainerRecord, LockedStore, MemberRecord, RaisedBy, Store};

/// A port that is another one's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "port {port} of exit {exit} is forwarded to container {container} of jail {jail} already; give it up there (`tunjail forward remove {container} {port}`, or stop it) or ask for another port"
)]
struct Taken {
    port: Port,
    exit: String,
    container: ContainerId,
    jail: JailName,
}

/// Makes every port of `member` its own, or says who has it. What the dead have of them is taken from them.
pub(super) fn take(host: &mut Kernel, store: &LockedStore, config: &Config, member: &MemberRecord) -> Result<()> {
    for (dead, ports) in takeable(store, config, member)? {
        let mut rest = dead.clone();
        for forwards in
            rest.containers.iter_mut().map(|container| &mut container.forwards).chain([&mut rest.configured])
        {
            forwards.retain(|forward| !ports.contains(&forward.port));
        }
        give_up(host, store, &dead, &rest)?;
        store.update_member(&rest)?;
        store.release_forwards(&dead, &given_up(&dead, &rest))?;
    }
    Ok(())
}

/// Whether `member` could have every port that it asks for, and what dead members have of them.
fn takeable(store: &Store, config: &Config, member: &MemberRecord) -> Result<Vec<(MemberRecord, Vec<Port>)>> {
    its_containers_agree(config, member)?;
    let mut dead: Vec<(MemberRecord, Vec<Port>)> = Vec::new();
    for Forward { port, .. } in member.forwards() {
        for jail in store.jails()?.iter().filter(|jail| shares_an_exit(config, &member.jail, jail)) {
            let Some(holder) = store.holder(jail, port)? else { continue };
            if (&holder.jail, holder.netns) == (&member.jail, member.netns) {
                continue;
            }
            if let Some(living) = who_has(&holder, port) {
                bail!(taken(config, member, port, &living.id, jail));
            }
            match dead.iter_mut().find(|(other, _)| (&other.jail, other.netns) == (&holder.jail, holder.netns)) {
                Some((_, ports)) => ports.push(port),
                None => dead.push((holder, vec![port])),
            }
        }
    }
    Ok(dead)
}

/// The elements that [`take`] would remove.
pub(super) fn taken_from_the_dead(store: &Store, config: &Config, member: &MemberRecord) -> Result<Vec<Element>> {
    let lost = |(dead, ports): &(MemberRecord, Vec<Port>)| {
        let forwards: Vec<Forward> = dead.forwards().into_iter().filter(|own| ports.contains(&own.port)).collect();
        model::forward::elements(&dead.jail, &dead.interfaces, &forwards)
    };
    Ok(takeable(store, config, member)?.iter().flat_map(lost).collect())
}

/// The living container that a port leads to: the one that asked for it, or any where the configuration did.
fn who_has(holder: &MemberRecord, port: Port) -> Option<&ContainerRecord> {
    let living = || holder.containers.iter().filter(|container| container.process.is_alive());
    let asked = |container: &&ContainerRecord| container.forwards.iter().any(|forward| forward.port == port);
    living().find(asked).or_else(|| living().next())
}

/// Two containers of a pod that want one port to lead to two places.
fn its_containers_agree(config: &Config, member: &MemberRecord) -> Result<()> {
    let leads = member.forwards();
    for container in &member.containers {
        for forward in container.forwards.iter().filter(|forward| !leads.contains(forward)) {
            let other = member.containers.iter().find(|other| {
                other.id != container.id && other.forwards.iter().any(|there| there.port == forward.port)
            });
            if let Some(other) = other {
                bail!(taken(config, member, forward.port, &other.id, &member.jail));
            }
        }
    }
    Ok(())
}

fn taken(config: &Config, member: &MemberRecord, port: Port, container: &ContainerId, jail: &JailName) -> Taken {
    let exits = |name: &JailName| config.jail(name).map(|jail| jail.exits.as_slice()).unwrap_or_default();
    let theirs = exits(jail);
    let shared: Vec<&str> = exits(&member.jail)
        .iter()
        .filter(|exit| theirs.is_empty() || theirs.contains(exit))
        .map(IfName::as_str)
        .collect();
    Taken { port, exit: shared.join(", "), container: container.clone(), jail: jail.clone() }
}

/// A jail that is not in the configuration any more has whatever exits it had.
fn shares_an_exit(config: &Config, jail: &JailName, other: &JailName) -> bool {
    match (config.jail(jail), config.jail(other)) {
        (Some(jail), Some(other)) => jail.shares_an_exit(other),
        _ => true,
    }
}

/// What led to `before` and does not lead to `after`.
pub(super) fn given_up(before: &MemberRecord, after: &MemberRecord) -> Vec<Forward> {
    let after = after.forwards();
    before.forwards().into_iter().filter(|old| !after.iter().any(|new| new.port == old.port)).collect()
}

/// Removes the elements that led ports to `before` and would not to `after`.
pub(super) fn give_up(host: &mut Kernel, store: &Store, before: &MemberRecord, after: &MemberRecord) -> Result<()> {
    let after = after.forward_elements();
    let mut old = store.led_to(before);
    old.retain(|element| !after.contains(element));
    Ok(nftables::delete_elements(&mut host.nfnl, &old)?)
}

/// Callers that never pause are sent to where `elements` lead now, not to where those ports led, or did not, when they
/// began; nor to whoever sent from there first. Others need nothing, and those who pause for a minute or two get there
/// anyway: where it fails, that is said and no more.
pub(super) fn callers_begin_anew(host: &mut Kernel, exits: &[u32], elements: &[Element]) {
    let mut ports: Vec<Port> = elements
        .iter()
        .filter_map(|element| match element.key.as_slice() {
            &[Part::Protocol(protocol), Part::Number(number), ..] => Some(Port { protocol, number }),
            _ => None,
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        return;
    }
    if let Err(error) = forget_callers(host, exits, &ports) {
        eprintln!("tunjail: warning: whoever called a forwarded port before may have to pause: {error}");
    }
}

fn forget_callers(host: &mut Kernel, exits: &[u32], ports: &[Port]) -> Result<(), KernelError> {
    let mut conntrack = Conntrack::open()?;
    let udp = ports.iter().filter(|port| port.protocol == Transport::Udp);
    let udp: Vec<u16> = udp.map(|port| port.number).collect();
    for exit in exits {
        for address in host.rtnl.addresses(Some(*exit))? {
            conntrack.forget_translated(address.address, ports)?;
            if !udp.is_empty() {
                conntrack.forget_datagrams(address.address, &udp)?;
            }
        }
    }
    Ok(())
}

/// What `after` has and `before` had not, or elsewhere.
pub(super) fn gained(store: &Store, before: Option<&MemberRecord>, after: &MemberRecord) -> Vec<Element> {
    let before = before.map(|before| store.led_to(before)).unwrap_or_default();
    after.forward_elements().into_iter().filter(|element| !before.contains(element)).collect()
}

/// What is asked for by hand.
#[derive(Debug, Clone, Copy)]
pub enum Wish<'a> {
    Add(&'a [Forward]),
    Remove(&'a [Port]),
}

/// What a wish comes to: the member as it is, and as it will be.
struct Turn<'a> {
    jail: &'a Jail,
    before: MemberRecord,
    after: MemberRecord,
}

/// Gives ports of the exit to a container, or takes them from it.
pub fn turn(host: &mut Kernel, store: &LockedStore, config: &Config, id: &ContainerId, wish: Wish) -> Result<()> {
    let Turn { jail, before, after } = look(store, config, id, wish)?;
    let survey = wall::ensure(host, store, jail, RaisedBy::Hook)?;
    take(host, store, config, &after)?;
    let gained = gained(store, Some(&before), &after);
    let turned = give_up(host, store, &before, &after).and_then(|()| {
        store.update_member(&after)?;
        store.link_forwards(&after)?;
        let elements = after.forward_elements();
        nftables::add_elements(&mut host.nfnl, &elements)?;
        match nftables::first_missing(&mut host.nfnl, &elements)? {
            Some(missing) => bail!(Mismatch::ElementMissing(missing.clone())),
            None => Ok(store.release_forwards(&before, &given_up(&before, &after))?),
        }
    });
    let Err(error) = turned else {
        callers_begin_anew(host, &survey.exits(), &gained);
        return Ok(());
    };
    // Only ever less than there was: what could not be added is taken back, and what was given up stays so.
    let taken_back = give_up(host, store, &after, &before).and_then(|()| {
        store.update_member(&before)?;
        Ok(store.release_forwards(&after, &given_up(&after, &before))?)
    });
    Err(after_taking_back(error, taken_back))
}

/// The steps that `turn` would take.
pub fn plan_to_turn(
    host: &mut Kernel,
    store: &Store,
    config: &Config,
    id: &ContainerId,
    wish: Wish,
) -> Result<Vec<Change>> {
    let Turn { jail, before, after } = look(store, config, id, wish)?;
    let survey = wall::survey(host, store, jail)?;
    let mut steps = wall::plan_to_raise(host, store, jail, &survey)?;
    let (old, new) = (store.led_to(&before), after.forward_elements());
    let mut lost = taken_from_the_dead(store, config, &after)?;
    lost.extend(old.into_iter().filter(|element| !new.contains(element)));
    let gained = gained(store, Some(&before), &after);
    steps.extend((!lost.is_empty()).then_some(Change::DeleteElements(lost)));
    steps.extend((!gained.is_empty()).then_some(Change::AddElements(gained)));
    Ok(steps)
}

fn look<'a>(store: &Store, config: &'a Config, id: &ContainerId, wish: Wish) -> Result<Turn<'a>> {
    let Some(before) = store.member_of(id)? else {
        bail!("container {id} is no member of a jail yet; `tunjail status` says why");
    };
    let Some(jail) = config.jail(&before.jail) else {
        bail!(
            "jail {} of container {id} is not in the configuration any more ({})",
            before.jail,
            config.sources_text()
        );
    };
    let mut after = before.clone();
    let Some(own) = after.containers.iter_mut().find(|own| own.id == *id && own.process.is_alive()) else {
        bail!("container {id} does not run any more; start it first");
    };
    match wish {
        Wish::Add(forwards) => {
            let there = before.forwards();
            for forward in forwards {
                match there.iter().chain(&own.forwards).find(|other| other.port == forward.port) {
                    None => own.forwards.push(*forward),
                    Some(other) if other.to_port == forward.to_port => {}
                    Some(other) => bail!(
                        "port {} leads to port {} of container {id} already; remove it first (`tunjail forward remove {id} {}`)",
                        forward.port,
                        other.to_port,
                        forward.port
                    ),
                }
            }
        }
        Wish::Remove(ports) => {
            let there = before.forwards();
            if let Some(port) = ports.iter().find(|port| !there.iter().any(|forward| forward.port == **port)) {
                let known: Vec<String> = there.iter().map(Forward::to_string).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                bail!("port {port} does not lead to container {id}; the ports that do: {known}");
            }
            // Of whomever of a pod it was asked for: they are one member.
            let lists = after.containers.iter_mut().map(|container| &mut container.forwards);
            for forwards in lists.chain([&mut after.configured]) {
                forwards.retain(|forward| !ports.contains(&forward.port));
            }
        }
    }
    Ok(Turn { jail, before, after })
}
