//! `tunjail exit up|down`: an exit came or went; bring the walls that stand up to date.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::{Exit, ExitArgs};
use crate::config::Config;
use crate::exit::openvpn;
use crate::hold::{Kernel, leave, wall};
use crate::model::names::IfName;
use crate::model::plan;
use crate::model::policy::Jail;
use crate::store::{RaisedBy, Store};

/// Longer than an Ethernet exit takes to prove its address, by the kernel's own defaults.
const PATIENCE: Duration = Duration::from_secs(3);

/// Both directions do the same: look at what is there now, and make the wall fit it. `down` differs only in that it is
/// called while the interface may still be there; the kernel drops the route with it, and `unreachable` is left.
pub fn run(config: Option<&Path>, exit: Exit) -> Result<ExitCode> {
    super::demand_root()?;
    let (Exit::Up(args) | Exit::Down(args)) = exit;
    let config = Config::load(config)?;
    let interface = openvpn::interface(args.dev.as_ref(), &args.appended)?;
    let jails: Vec<&Jail> = config.jails.iter().filter(|jail| jail.exits.contains(&interface)).collect();
    if jails.is_empty() {
        eprintln!("tunjail: {interface} is the exit of no jail in {}; nothing to do", config.sources_text());
        return Ok(ExitCode::SUCCESS);
    }
    follow(&interface, &jails, &args)
}

fn follow(interface: &IfName, jails: &[&Jail], args: &ExitArgs) -> Result<ExitCode> {
    let mut host = Kernel::open()?;
    let store = Store::open();
    if args.dry_run {
        for jail in jails {
            if store.wall(&jail.name)?.is_some() {
                let survey = wall::survey(&mut host, &store, jail)?;
                print!("{}", plan::lines(&wall::plan_to_raise(&mut host, &store, jail, &survey)?, ""));
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    wait_for_sources(&mut host, interface)?;
    let store = store.lock()?;
    leave::sweep_all(&mut host, &store)?;
    for jail in jails {
        // A wall that nobody raised is not raised by a tunnel: its first member, or `up`, will.
        if store.wall(&jail.name)?.is_some() {
            wall::ensure(&mut host, &store, jail, RaisedBy::Hook)
                .with_context(|| format!("jail {} does not follow its exit; it stays closed", jail.name))?;
        }
    }
    store.tidy()?;
    Ok(ExitCode::SUCCESS)
}

/// Whoever makes a tunnel calls right after it gave the address, and IPv6 takes a moment until it may be used. Nobody calls
/// again, so this waits; what is not usable then stays without a route.
fn wait_for_sources(host: &mut Kernel, interface: &IfName) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(link) = host.rtnl.link_by_name(interface)?
        && host.rtnl.has_tentative(link.index)?
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
