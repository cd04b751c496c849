//! `tunjail exit up|down`: an exit came or went; bring the walls that stand up to date.

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::Exit;
use crate::config::Config;
use crate::exit::openvpn::{self, Environment};
use crate::hold::{Kernel, endpoint, leave, wall};
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
    let (comes, args) = match &exit {
        Exit::Up(args) => (true, args),
        Exit::Down(args) => (false, args),
    };
    let get = |variable: &str| env::var_os(variable);
    let interface = openvpn::interface(args.dev.as_ref(), &get, &args.appended)?;
    let config = Config::load(config)?;
    let jails: Vec<&Jail> = config.jails.iter().filter(|jail| jail.exits.contains(&interface)).collect();
    if jails.is_empty() {
        eprintln!("tunjail: {interface} is the exit of no jail in {}; nothing to do", config.sources_text());
        return Ok(ExitCode::SUCCESS);
    }
    let openvpn = Environment::of(&get);
    let far = match &openvpn {
        Some(openvpn) if comes => FarEnd::Asked(openvpn),
        // Its routes stay as well, and so does the need for one.
        Some(openvpn) if openvpn.keeps_the_device() => FarEnd::Same,
        None if comes => FarEnd::Same,
        _ => FarEnd::Gone,
    };
    match args.dry_run {
        true => show(&interface, &jails, &far),
        false => follow(&interface, &jails, &far),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// What the call says of the tunnel's other end.
enum FarEnd<'a> {
    /// Whether the host needs a route to it is to be found out.
    Asked(&'a Environment<'a>),
    /// Nothing.
    Same,
    /// No route to it is needed any more.
    Gone,
}

fn show(interface: &IfName, jails: &[&Jail], far: &FarEnd) -> Result<()> {
    let mut host = Kernel::open()?;
    let store = Store::open();
    for jail in jails {
        if store.wall(&jail.name)?.is_some() {
            let survey = wall::survey(&mut host, &store, jail)?;
            print!("{}", plan::lines(&wall::plan_to_raise(&mut host, &store, jail, &survey)?, ""));
        }
    }
    let steps = match far {
        FarEnd::Asked(openvpn) => endpoint::plan_to_follow(&mut host, interface, openvpn)?,
        FarEnd::Same => Vec::new(),
        FarEnd::Gone => endpoint::plan_to_forget(&mut host, &store, interface)?,
    };
    print!("{}", plan::lines(&steps, ""));
    Ok(())
}

fn follow(interface: &IfName, jails: &[&Jail], far: &FarEnd) -> Result<()> {
    let mut host = Kernel::open()?;
    wait_for_sources(&mut host, interface)?;
    let store = Store::open().lock()?;
    leave::sweep_all(&mut host, &store)?;
    for jail in jails {
        // A wall that nobody raised is not raised by a tunnel: its first member, or `up`, will.
        if store.wall(&jail.name)?.is_some() {
            wall::ensure(&mut host, &store, jail, RaisedBy::Hook)
                .with_context(|| format!("jail {} does not follow its exit; it stays closed", jail.name))?;
        }
    }
    // Last: what is told of the other end may be wrong, and the walls do not depend on it.
    endpoint::sweep(&mut host, &store)?;
    match far {
        FarEnd::Asked(openvpn) => endpoint::follow(&mut host, &store, interface, openvpn)?,
        FarEnd::Same => {}
        FarEnd::Gone => endpoint::forget(&mut host, &store, interface)?,
    }
    store.tidy()?;
    Ok(())
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
