//! `tunjail down`: take walls down, unless they hold somebody.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::Jails;
use crate::config::Config;
use crate::hold::{Kernel, endpoint, leave, wall};
use crate::model::names::{IfName, JailName};
use crate::model::plan;
use crate::store::{EndpointRecord, LockedStore, RaisedBy, Store, WallRecord};

pub fn run(config: Option<&Path>, args: &Jails) -> Result<ExitCode> {
    super::demand_root()?;
    let config = Config::load(config);
    let mut host = Kernel::open()?;
    let store = Store::open();
    let names = names(&store, config.as_ref().ok(), &args.jails)?;
    let jail = |name: &JailName| config.as_ref().ok().and_then(|config| config.jail(name));
    if names.is_empty() && store.endpoints()?.is_empty() {
        // Nothing to take down is success; a configuration that cannot be read may hide something.
        config?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        for name in &names {
            match leave::living(&mut host, &store, name)? {
                0 => print!("{}", plan::lines(&wall::plan_to_take_down(&mut host, &store, name, jail(name))?, "")),
                living => {
                    println!("# jail {name} still holds {living} container(s): its wall goes with the last of them")
                }
            }
        }
        for tunnel in idle_tunnels(&store, config.as_ref().ok(), &names, |name| {
            Ok(store.wall(name)?.is_some() && (!names.contains(name) || leave::living(&mut host, &store, name)? > 0))
        })? {
            print!("{}", plan::lines(&endpoint::plan_to_forget(&mut host, &store, &tunnel)?, ""));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let store = store.lock()?;
    let mut result = Ok(ExitCode::SUCCESS);
    leave::sweep_late(&mut host, &store)?;
    for name in &names {
        let taken =
            take_down(&mut host, &store, name, jail(name)).with_context(|| format!("jail {name} was not taken down"));
        if let Err(error) = taken {
            super::complain(&error);
            result = Ok(ExitCode::FAILURE);
        }
    }
    for tunnel in idle_tunnels(&store, config.as_ref().ok(), &names, |name| Ok(store.wall(name)?.is_some()))? {
        let gone = endpoint::forget(&mut host, &store, &tunnel)
            .with_context(|| format!("the route to the other end of {tunnel} was not removed"));
        if let Err(error) = gone {
            super::complain(&error);
            result = Ok(ExitCode::FAILURE);
        }
    }
    store.tidy()?;
    result
}

/// Tunnels with routes to their other ends whose jails are all taken down; those of jails that were not named stay.
fn idle_tunnels(
    store: &Store,
    config: Option<&Config>,
    names: &[JailName],
    mut stands: impl FnMut(&JailName) -> Result<bool>,
) -> Result<Vec<IfName>> {
    let mut idle = Vec::new();
    for EndpointRecord { tunnel, .. } in store.endpoints()? {
        let jails: Vec<&JailName> = config
            .iter()
            .flat_map(|config| &config.jails)
            .filter(|jail| jail.exits.contains(&tunnel))
            .map(|jail| &jail.name)
            .collect();
        // A configuration that cannot be read does not say whose a tunnel is: then it may be any wall's.
        let walls = if config.is_none() { store.jails()? } else { Vec::new() };
        let mut busy = !jails.is_empty() && !jails.iter().any(|name| names.contains(name));
        for name in jails.into_iter().chain(&walls) {
            busy |= stands(name)?;
        }
        if !busy {
            idle.push(tunnel);
        }
    }
    Ok(idle)
}

/// What was named; otherwise all that is recorded or configured: a jail that left the configuration goes too.
fn names(store: &Store, config: Option<&Config>, named: &[JailName]) -> Result<Vec<JailName>> {
    let mut known = store.jails()?;
    known.extend(config.iter().flat_map(|config| &config.jails).map(|jail| jail.name.clone()));
    known.sort();
    known.dedup();
    if named.is_empty() {
        return Ok(known);
    }
    for name in named {
        anyhow::ensure!(known.contains(name), "jail {name} is neither in the configuration nor standing");
    }
    Ok(named.to_vec())
}

fn take_down(
    host: &mut Kernel,
    store: &LockedStore,
    name: &JailName,
    jail: Option<&crate::model::policy::Jail>,
) -> Result<()> {
    let living = leave::sweep(host, store, name)?.living;
    if living == 0 {
        wall::take_down(host, store, name, jail)?;
        return Ok(());
    }
    if let Some(record) = store.wall(name)? {
        store.put_wall(&WallRecord { raised_by: RaisedBy::Hook, ..record })?;
    }
    eprintln!("tunjail: jail {name} still holds {living} container(s); its wall goes with the last of them");
    Ok(())
}
