//! `tunjail hook create-runtime|poststop`: what OCI runtimes call.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::{Hook, HookArgs};
use crate::config::Config;
use crate::engine;
use crate::hold::enter::{self, Outcome};
use crate::hold::leave;
use crate::kernel::process::hurry;
use crate::oci;

pub fn run(config: Option<&Path>, hook: Hook) -> Result<ExitCode> {
    hurry();
    match hook {
        Hook::CreateRuntime(args) => match create_runtime(config, &args) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                // Some runtimes show nobody what a hook says on stderr.
                engine::tell_the_user(&super::one_line(&error));
                Err(error)
            }
        },
        Hook::Poststop(args) => {
            // An engine can do nothing about a failed poststop but skip other hooks: say it, and exit 0.
            if let Err(error) = poststop(&args) {
                super::complain(&error);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The hook's own command line, which stands in an engine's configuration, was not understood.
pub fn misspoken(stage: &OsStr, error: &clap::Error) -> ExitCode {
    let said = error.to_string();
    let first = said.lines().next().unwrap_or_default();
    let line = format!(
        "{}; correct the arguments of this hook where its engine is told of it (`tunjail hook --help`)",
        first.strip_prefix("error: ").unwrap_or(first)
    );
    eprintln!("tunjail: {line}");
    if stage == "poststop" {
        return ExitCode::SUCCESS;
    }
    engine::tell_the_user(&line);
    ExitCode::FAILURE
}

fn create_runtime(file: Option<&Path>, args: &HookArgs) -> Result<()> {
    let created = oci::created(io::stdin().lock())?;
    let context = || format!("container {} was not started", created.container.id);
    // Before the configuration, whose owner a user namespace does not show.
    if let Err(error) = engine::demand_host_privileges() {
        // A hook for every container is called for those of rootless engines too; no address of a jail is among theirs.
        let is_named = args.jail.is_some() || created.container.jail.is_some();
        return if is_named { Err(error).with_context(context) } else { Ok(()) };
    }
    let config = Config::load(file).with_context(context)?;
    if args.dry_run {
        let lines = enter::plan_to_enter(&config, &created, args.jail.as_ref()).with_context(context)?;
        return print(lines.as_deref().unwrap_or("# no jail is meant for this container: nothing to do\n"));
    }
    match enter::enter(&config, file, &created, args.jail.as_ref()).with_context(context)? {
        Outcome::NotOurs | Outcome::Held { .. } | Outcome::Late => Ok(()),
    }
}

fn poststop(args: &HookArgs) -> Result<()> {
    let container = oci::stopped(io::stdin().lock())?;
    if args.dry_run {
        return print(&leave::plan_to_leave(&container.id)?);
    }
    leave::leave(&container.id).with_context(|| format!("container {} was not taken out of its jail", container.id))
}

fn print(text: &str) -> Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
