//! One file per command, thin: what was said, handed to those who know.

mod check;
mod down;
mod exit;
mod hook;
mod runtime;
mod status;
mod up;

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::model::names::JailName;
use crate::model::policy::Jail;

/// Does what was said.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let config = cli.config.as_deref();
    match cli.command {
        Command::Hook(hook) => hook::run(config, hook),
        Command::Up(args) => up::run(config, &args),
        Command::Down(args) => down::run(config, &args),
        Command::Exit(args) => exit::run(config, args),
        Command::Status(args) => status::run(config, &args),
        Command::Check(args) => check::run(config, &args),
        Command::Runtime(args) => runtime::run(args),
    }
}

/// Tells an error once, in one line: an engine shows it inside its own error.
pub fn complain(error: &anyhow::Error) {
    eprintln!("tunjail: {}", one_line(error));
}

/// The error with its causes, each said once.
pub fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

/// The jails that were named, or all.
fn chosen<'a>(config: &'a Config, names: &[JailName]) -> Result<Vec<&'a Jail>> {
    if names.is_empty() {
        return Ok(config.jails.iter().collect());
    }
    names.iter().map(|name| config.jail(name).ok_or_else(|| unknown_jail(config, name))).collect()
}

fn unknown_jail(config: &Config, name: &JailName) -> anyhow::Error {
    anyhow!(
        "jail {name} is not in the configuration ({}); its jails are: {}",
        config.sources_text(),
        config.names_text()
    )
}

/// Everything but `hook` has to say at once that it needs root, instead of failing at some socket.
fn demand_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("this needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN in the host's own namespaces); try sudo")
}
