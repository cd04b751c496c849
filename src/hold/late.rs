//! A container whose address comes late: locked at createRuntime, judged when the address is there.
//!
//! Some engines make the network between the runtime's `create` and `start` (Docker from 28 on, Podman with a user
//! namespace). Their containers are closed and recorded at createRuntime; [`super::attend`] waits for the address, and
//! [`settle`] has the last word before `tunjail runtime start`. Whoever it is, `judge` decides: the same steps as for
//! everybody else, as often as the namespace changes, until the container was started.
//!
//! What a namespace shows is the engine's word only as long as the container's process has not begun to run: with
//! CAP_NET_ADMIN it could give itself a neighbour's address. See `who_may_lie`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::enter::{Entering, hold};
use super::leave::{forget_late, remove, shut_elements, walls_go_with_their_last_members};
use super::sight::Sight;
use super::tenants::nobody_else_holds_it;
use super::{Kernel, after_taking_back, attend, wall};
use crate::config::Config;
use crate::kernel::nftables;
use crate::model::admit::{self, Refusal};
use crate::model::names::ContainerId;
use crate::model::objects::TableId;
use crate::model::policy::{Forward, Jail};
use crate::store::{ContainerRecord, LateRecord, LockedStore, RaisedBy, Store, Verdict};

/// How long `start` waits for an address on an interface that is there. Engines give it before they say `start`.
const PATIENCE_FOR_AN_ADDRESS: Duration = Duration::from_secs(10);
/// How long a refusal may be an engine's work half done, such as a veth that is not in its bridge yet.
pub(super) const PATIENCE_WITH_A_REFUSAL: Duration = Duration::from_secs(1);

/// The jails whose walls have to stand before such a container may run: the named one; without a name, any of them may
/// turn out to be its own.
pub(super) fn walls_for<'a>(config: &'a Config, jail: Option<&'a Jail>) -> Vec<&'a Jail> {
    jail.map_or_else(|| config.jails.iter().collect(), |jail| vec![jail])
}

/// A container whose address comes late, as createRuntime met it.
pub(super) struct Newcomer<'a> {
    pub config: &'a Config,
    /// The configuration's file, for the helper.
    pub file: Option<&'a Path>,
    /// The jail that was named.
    pub jail: Option<&'a Jail>,
    pub id: &'a ContainerId,
    /// The ports of the exit that it asks for.
    pub forwards: Vec<Forward>,
    pub sight: Sight,
}

/// walls -> lock closed -> record -> helper
pub(super) fn wait_for_its_address(host: &mut Kernel, store: LockedStore, mut newcomer: Newcomer) -> Result<()> {
    let Err(error) = close_and_wait(host, &store, &mut newcomer) else { return Ok(store.tidy()?) };
    let taken_back = match store.late_of(newcomer.id) {
        Ok(Some(late)) => forget_late(host, &store, late, newcomer.id),
        Ok(None) => walls_go_with_their_last_members(host, &store),
        Err(error) => Err(error.into()),
    };
    Err(after_taking_back(error, taken_back.and(store.tidy().map_err(Into::into))))
}

fn close_and_wait(host: &mut Kernel, store: &LockedStore, newcomer: &mut Newcomer) -> Result<()> {
    let Newcomer { config, file, jail, id, ref forwards, ref mut sight } = *newcomer;
    nobody_else_holds_it(store, sight.netns.id, jail.map(|jail| &jail.name), None)?;
    for jail in walls_for(config, jail) {
        wall::ensure(host, store, jail, RaisedBy::Hook)?;
    }
    let container = ContainerRecord { id: id.clone(), process: sight.process, forwards: forwards.clone() };
    let executes = sight.process.executable().context("looking at what the container's process executes")?;
    let mut late = match store.late(sight.netns.id)?.filter(LateRecord::is_alive) {
        Some(mut late) => {
            late.containers.retain(|other| other.id != *id);
            late.containers.push(container);
            late.unstarted.retain(|(other, _)| other != id);
            late.unstarted.push((id.clone(), executes));
            late.jail = late.jail.or_else(|| jail.map(|jail| jail.name.clone()));
            late
        }
        None => {
            nftables::close_lock(&mut sight.inside.nfnl)?;
            let lock = nftables::fingerprint(&mut sight.inside.nfnl, &TableId::lock())?;
            LateRecord {
                jail: jail.map(|jail| jail.name.clone()),
                netns: sight.netns.id,
                containers: vec![container],
                attendant: None,
                unstarted: vec![(id.clone(), executes)],
                lock: lock.context("the lock was closed and is not there")?,
                shut: None,
                verdict: Verdict::Waiting { why: None },
            }
        }
    };
    // On record before the helper looks for it.
    store.put_late(&late)?;
    if !late.attendant.is_some_and(|attendant| attendant.is_alive()) {
        late.attendant = Some(attend::start(file, id, sight.process)?);
        store.put_late(&late)?;
    }
    Ok(())
}

/// Why a container is refused whose process may have lied.
pub(super) const MAY_HAVE_LIED: &str = "its process was started before its address was confirmed, and may have changed it (CAP_NET_ADMIN); its lock stays closed; start it by `tunjail runtime`, which waits";

/// The container of the namespace that may have made what it shows. `None`: that is what the engine made. A process that
/// has not begun to run changes nothing, nor does one that cannot. Ask after the namespace was read.
pub(super) fn who_may_lie(late: &LateRecord) -> Option<&ContainerRecord> {
    late.containers
        .iter()
        .filter(|container| container.process.is_alive())
        .find(|container| late.has_started(container) && container.process.may_change_its_network().unwrap_or(true))
}

/// Whether the process that is looked at runs what its container is for.
pub(super) fn has_started(late: &LateRecord, sight: &Sight) -> bool {
    late.containers.iter().find(|own| own.process == sight.process).is_none_or(|own| late.has_started(own))
}

/// Judges a late container by what its namespace showed last, carries the verdict out, and puts it on record.
pub(super) fn judge(
    host: &mut Kernel,
    store: &LockedStore,
    config: &Config,
    sight: &mut Sight,
    mut late: LateRecord,
) -> Result<LateRecord> {
    if sight.facts.routable().next().is_none() {
        return Ok(late);
    }
    let jail = match &late.jail {
        Some(name) => match config.jail(name) {
            Some(jail) => Some(jail),
            None => {
                let why = format!("jail {name} is not in the configuration any more ({})", config.sources_text());
                return refuse(host, store, sight, late, why);
            }
        },
        None => sight.facts.routable().find_map(|address| config.jail_for(address.address)),
    };
    let Some(jail) = jail else {
        nftables::drop_table(&mut sight.inside.nfnl, &TableId::lock())?;
        late.verdict = Verdict::Nobodys;
        store.put_late(&late)?;
        return Ok(late);
    };
    let containers = late.containers.iter().filter(|container| container.process.is_alive()).cloned().collect();
    late.jail = Some(jail.name.clone());
    match hold(host, store, config, jail, sight, Entering { containers, closed: Some(late.lock) }) {
        Ok(_) => {
            open_its_ports(host, store, &mut late, &[])?;
            late.verdict = Verdict::Admitted;
            store.put_late(&late)?;
            Ok(late)
        }
        Err(error) => refuse(host, store, sight, late, format!("{error:#}")),
    }
}

/// Closes the lock, shuts the ports that the container has, and says why.
///
/// The lock does not see raw frames, and a container with CAP_NET_ADMIN can remove it. So the ports are shut on the
/// host too, whatever bridge they are in: a port in the guard's set with no address of its own may say nothing.
pub(super) fn refuse(
    host: &mut Kernel,
    store: &LockedStore,
    sight: &mut Sight,
    mut late: LateRecord,
    why: String,
) -> Result<LateRecord> {
    late.verdict = Verdict::Refused { why: why.clone() };
    // Anew, whatever is on record: who opened it may have ended before that could be written.
    nftables::close_lock(&mut sight.inside.nfnl)?;
    if let Some(jail) = late.jail.clone() {
        // What a failed admission put on the host, or an earlier one.
        if let Some(member) = store.member(&jail, late.netns)? {
            remove(host, store, &member)?;
        }
        let mut ports: Vec<u32> = sight.ports(host)?.values().map(|port| port.index).collect();
        ports.sort_unstable();
        // A port that it has no more may be another's now.
        open_its_ports(host, store, &mut late, &ports)?;
        late.shut = Some((jail, ports));
    }
    // On record before the elements, so that they are removed with it.
    store.put_late(&late)?;
    nftables::add_elements(&mut host.nfnl, &shut_elements(&late))
        .with_context(|| format!("{why}; and its ports could not be shut on the host"))?;
    Ok(late)
}

/// Removes what shut the ports of a container, apart from those to `keep` and from what it has as a member.
fn open_its_ports(host: &mut Kernel, store: &LockedStore, late: &mut LateRecord, keep: &[u32]) -> Result<()> {
    let Some((jail, ports)) = late.shut.take() else { return Ok(()) };
    let own: Vec<u32> =
        store.member(&jail, late.netns)?.iter().flat_map(|member| &member.interfaces).map(|i| i.port).collect();
    let rest = ports.into_iter().filter(|port| !own.contains(port) && !keep.contains(port)).collect();
    let gone = LateRecord { shut: Some((jail, rest)), ..late.clone() };
    Ok(nftables::delete_elements(&mut host.nfnl, &shut_elements(&gone))?)
}

/// Another hook took the whole namespace into its jail: nobody has to wait any more.
pub(super) fn is_a_member_now(host: &mut Kernel, store: &LockedStore, late: &LateRecord) -> Result<()> {
    open_its_ports(host, store, &mut late.clone(), &[])?;
    Ok(store.remove_late(late)?)
}

/// The last word before a container is started: a late one has been admitted, or is nobody's, or has nothing that could
/// be held. Anything else is an error, and it must not be started.
pub fn settle(config: &Config, id: &ContainerId) -> Result<()> {
    let Some(late) = Store::open().late_of(id)? else { return Ok(()) };
    let Some(container) = late.containers.iter().find(|container| container.id == *id) else { return Ok(()) };
    let Some(mut sight) = Sight::of(container.process)? else { bail!(Refusal::HostNetns) };
    let mut host = Kernel::open()?;
    let begun = Instant::now();
    loop {
        sight.look()?;
        if sight.facts.routable().next().is_some() {
            let store = Store::open().lock()?;
            let Some(late) = store.late(sight.netns.id)? else { return Ok(()) };
            if let Some(liar) = who_may_lie(&late) {
                // What was confirmed stays confirmed; nothing is added to it.
                if late.verdict == Verdict::Admitted {
                    return Ok(());
                }
                bail!("container {} is in the same network namespace: {MAY_HAVE_LIED}", liar.id);
            }
            let late = judge(&mut host, &store, config, &mut sight, late)?;
            store.tidy()?;
            match late.verdict {
                Verdict::Admitted | Verdict::Nobodys => return Ok(()),
                Verdict::Refused { why } if begun.elapsed() > PATIENCE_WITH_A_REFUSAL => bail!(why),
                Verdict::Refused { .. } | Verdict::Waiting { .. } => {}
            }
        } else if admit::has_nothing_to_hold(&sight.facts) {
            // `--network none`: nothing to hold. The lock stays closed, should something come.
            return Ok(());
        } else if begun.elapsed() > PATIENCE_FOR_AN_ADDRESS {
            let subnets = late.jail.as_ref().and_then(|name| config.jail(name)).map(|jail| admit::list(&jail.subnets));
            bail!(Refusal::NoAddress { subnets: subnets.unwrap_or_else(|| "a jail's subnets".to_owned()) });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
