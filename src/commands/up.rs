//! `tunjail up`: raise walls before any container needs them.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::cli::Jails;
use crate::config::Config;
use crate::hold::{Kernel, leave, wall};
use crate::model::{conflict, plan};
use crate::store::{RaisedBy, Store};

pub fn run(config: Option<&Path>, args: &Jails) -> Result<ExitCode> {
    super::demand_root()?;
    let config = Config::load(config)?;
    let jails = super::chosen(&config, &args.jails)?;
    if jails.is_empty() {
        bail!("{} has no jail; add a [jail.NAME] section", config.sources_text());
    }
    let mut host = Kernel::open()?;
    if args.dry_run {
        let store = Store::open();
        for jail in jails {
            let survey = wall::survey(&mut host, &store, jail)?;
            print!("{}", plan::lines(&wall::plan_to_raise(&mut host, &store, jail, &survey)?, ""));
        }
        print!("{}", super::install::plan_to_follow(&config)?);
        return Ok(ExitCode::SUCCESS);
    }
    let store = Store::open().lock()?;
    let mut result = Ok(ExitCode::SUCCESS);
    leave::sweep_late(&mut host, &store)?;
    for jail in jails {
        // Each jail is raised whatever becomes of the others: a jail without a wall is the worse outcome.
        let raised = leave::sweep(&mut host, &store, &jail.name)
            .and_then(|_| wall::ensure(&mut host, &store, jail, RaisedBy::Admin))
            .with_context(|| format!("jail {} was not raised", jail.name));
        match raised {
            Ok(survey) => {
                if let Err(error) = conflict::with_gateways(jail, &survey.surroundings.exits) {
                    eprintln!("tunjail: warning: {error}; nothing leaves by it");
                }
            }
            Err(error) => {
                super::complain(&error);
                result = Ok(ExitCode::FAILURE);
            }
        }
    }
    store.tidy()?;
    super::install::follow(&config);
    result
}
