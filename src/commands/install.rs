//! `tunjail install`, `tunjail uninstall`: files of engines, changed and changed back.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::cli::{Docker, Hooks, Install, Into, Uninstall};
use crate::config::Config;
use crate::engine::install::hooks_d::When;
use crate::engine::install::{self, Changes, Host, Target, cdi, containerd, crio, docker, podman};
use crate::model::names::JailName;

pub fn install(config: Option<&Path>, args: &Install) -> Result<ExitCode> {
    super::demand_root()?;
    let host = Host::own()?;
    let (target, plan) = match &args.into {
        Into::Podman(hooks) => (Target::Podman, podman::install(&host, when(hooks))),
        Into::Crio(hooks) => (Target::Crio, crio::install(&host, when(hooks))),
        Into::Docker(options) => {
            (Target::Docker, docker::install(&host, &docker_jails(config, options)?, options.default))
        }
        Into::Cdi => (Target::Cdi, cdi::install(&host, &jails(&Config::load(config)?))),
        Into::Containerd => (Target::Containerd, containerd::install(&host)),
    };
    let changes = plan.and_then(|plan| install::install(&host, target, plan));
    carry_out(&host, changes.with_context(|| failed(target, "installed"))?, args.dry_run, "is installed already")
        .with_context(|| failed(target, "installed"))
}

pub fn uninstall(args: &Uninstall) -> Result<ExitCode> {
    super::demand_root()?;
    let host = Host::own()?;
    let plan = match args.from {
        Target::Podman => podman::uninstall(&host),
        Target::Crio => crio::uninstall(&host),
        Target::Docker => docker::uninstall(&host),
        Target::Cdi => cdi::uninstall(&host),
        Target::Containerd => containerd::uninstall(&host),
    };
    let changes = plan.and_then(|plan| install::uninstall(&host, args.from, plan));
    carry_out(&host, changes.with_context(|| failed(args.from, "uninstalled"))?, args.dry_run, "is not installed")
        .with_context(|| failed(args.from, "uninstalled"))
}

/// Brings an installed CDI specification in step with the configuration. A failure is told and is no more than that:
/// an engine refuses a device that is missing, and a hook one that is no jail any more.
pub fn follow(config: &Config) {
    if !Path::new(cdi::SPEC).exists() {
        return;
    }
    let followed = Host::own().and_then(|host| {
        let Some(changes) = cdi::follow(&host, &jails(config))? else { return Ok(()) };
        changes.apply(&host)?;
        eprintln!("tunjail: {} is in step with the configuration again", cdi::SPEC);
        Ok(())
    });
    if let Err(error) = followed {
        super::complain(&error.context(format!("{} is not kept in step with the configuration", cdi::SPEC)));
    }
}

/// The same, as a diff.
pub fn plan_to_follow(config: &Config) -> Result<String> {
    if !Path::new(cdi::SPEC).exists() {
        return Ok(String::new());
    }
    let host = Host::own()?;
    Ok(cdi::follow(&host, &jails(config))?.map(|changes| changes.diff()).unwrap_or_default())
}

fn failed(target: Target, what: &str) -> String {
    format!("{} was not {what}", target.name())
}

fn when(hooks: &Hooks) -> When {
    if hooks.always { When::Always } else { When::Annotation }
}

fn jails(config: &Config) -> Vec<JailName> {
    config.jails.iter().map(|jail| jail.name.clone()).collect()
}

fn docker_jails(config: Option<&Path>, options: &Docker) -> Result<Vec<JailName>> {
    let config = Config::load(config)?;
    let Some(name) = &options.jail else { return Ok(jails(&config)) };
    if config.jail(name).is_none() {
        bail!(super::unknown_jail(&config, name));
    }
    Ok(vec![name.clone()])
}

fn carry_out(host: &Host, changes: Changes, dry_run: bool, nothing: &str) -> Result<ExitCode> {
    if dry_run {
        print!("{}", changes.diff());
        return Ok(ExitCode::SUCCESS);
    }
    changes.apply(host)?;
    for (path, verb) in changes.paths() {
        println!("{verb} {}", path.display());
    }
    if changes.paths().next().is_none() {
        println!("nothing to do: it {nothing}");
    }
    for note in &changes.notes {
        println!("{note}");
    }
    Ok(ExitCode::SUCCESS)
}
