//! One file per command, thin: what was said, handed to those who know.

mod attend;
mod check;
mod down;
mod exit;
mod forward;
mod hook;
mod install;
mod runtime;
mod status;
mod sweep;
mod trouble;
mod up;
mod watch;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::model::names::JailName;
use crate::model::policy::Jail;

/// Does what was said.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match dispatch(cli) {
        // Whoever reads the output has read enough (`tunjail status | head`).
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        || error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind)
            == Some(io::ErrorKind::BrokenPipe)
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let config = cli.config.as_deref();
    match cli.command {
        Command::Hook(hook) => hook::run(config, hook),
        Command::Up(args) => up::run(config, &args),
        Command::Down(args) => down::run(config, &args),
        Command::Exit(args) => exit::run(config, args),
        Command::Watch(args) => watch::run(config, &args),
        Command::Forward(args) => forward::run(config, args),
        Command::Status(args) => status::run(config, &args),
        Command::Check(args) => check::run(config, &args),
        Command::Runtime(args) => runtime::run(config, &args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Attend(args) => attend::run(config, &args),
        Command::Install(args) => install::install(config, &args),
        Command::Uninstall(args) => install::uninstall(&args),
    }
}

/// A command line that was not understood. One that an engine's configuration holds is told as every error of a hook.
pub fn misspoken(line: &[OsString], error: &clap::Error) -> ExitCode {
    let from = line.iter().position(|word| word == "hook" || word == "runtime").map_or(&[][..], |at| &line[at..]);
    match from {
        [command, rest @ ..] if command == "runtime" && error.use_stderr() => runtime::misspoken(rest, error),
        [_, stage, ..] if (stage == "create-runtime" || stage == "poststop") && error.use_stderr() => {
            hook::misspoken(stage, error)
        }
        _ => error.exit(),
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
