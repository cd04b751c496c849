//! `tunjail down`: take walls down, unless they hold somebody.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::Jails;
use crate::config::Config;
use crate::hold::{Kernel, leave, wall};
use crate::model::names::JailName;
use crate::model::plan;
use crate::store::{LockedStore, RaisedBy, Store, WallRecord};

pub fn run(config: Option<&Path>, args: &Jails) -> Result<ExitCode> {
    super::demand_root()?;
    let config = Config::load(config);
    let mut host = Kernel::open()?;
    let store = Store::open();
    let names = names(&store, config.as_ref().ok(), &args.jails)?;
    let jail = |name: &JailName| config.as_ref().ok().and_then(|config| config.jail(name));
    if names.is_empty() {
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
    store.tidy()?;
    result
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
