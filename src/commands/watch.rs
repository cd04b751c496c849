//! `tunjail watch`: keep the walls that stand as they should be, as a service.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use sd_notify::NotifyState;
use serde_json::{Value, json};

use crate::cli::Watch;
use crate::config::Config;
use crate::hold::watch::{self, Audience, Event};
use crate::hold::{Kernel, wall};
use crate::kernel::process;
use crate::model::names::IfName;
use crate::model::plan::{self, Change};
use crate::store::Store;

pub fn run(config: Option<&Path>, args: &Watch) -> Result<ExitCode> {
    super::demand_root()?;
    if args.dry_run {
        return dry_run(config);
    }
    // It does little, and what it does somebody waits for.
    process::hurry();
    watch::watch(config, &mut Service { json: args.json })?;
    Ok(ExitCode::SUCCESS)
}

fn dry_run(config: Option<&Path>) -> Result<ExitCode> {
    let config = Config::load(config)?;
    let (mut host, store) = (Kernel::open()?, Store::open());
    for jail in &config.jails {
        if store.wall(&jail.name)?.is_some() {
            let survey = wall::survey(&mut host, &store, jail)?;
            print!("{}", plan::lines(&wall::plan_to_raise(&mut host, &store, jail, &survey)?, ""));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever started it: systemd, which is told of its state and keeps its words, or somebody at a terminal. That nobody
/// listens is no reason to end.
struct Service {
    json: bool,
}

impl Audience for Service {
    fn hear(&mut self, event: &Event<'_>) {
        let state: &[NotifyState<'_>] = match event {
            Event::Ready => &[NotifyState::Ready],
            Event::Reloading => {
                &[NotifyState::Reloading, NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Reloading)]
            }
            // Of a reload that failed too: it goes on.
            Event::Reloaded { .. } | Event::NotReloaded { .. } => &[NotifyState::Ready],
            Event::Ending => &[NotifyState::Stopping],
            _ => &[],
        };
        if !state.is_empty() {
            let _ = sd_notify::notify(state);
        }
        let _ = match self.json {
            true => writeln!(io::stdout(), "{}", in_json(event)),
            false => match in_words(event) {
                Some(words) => writeln!(io::stderr(), "{words}"),
                None => Ok(()),
            },
        };
    }

    fn state(&mut self, state: &str) {
        let _ = sd_notify::notify(&[NotifyState::Status(state)]);
    }

    fn alive(&mut self) -> Option<Duration> {
        let limit = sd_notify::watchdog_enabled()?;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        Some(limit / 3)
    }
}

fn in_words(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Did { jail, step } => format!("jail {jail}: {}", step_in_words(step)),
        Event::Leaves { jail, by } => format!("jail {jail}: {}", way_in_words(*by)),
        Event::Failed { jail: Some(jail), why } => format!("jail {jail}: error: {why}; it is tried again"),
        Event::Failed { jail: None, why } => format!("error: {why}; it is tried again"),
        Event::Recovered { jail: Some(jail) } => format!("jail {jail}: stands again"),
        Event::Recovered { jail: None } => "it works again".to_owned(),
        Event::Reloaded { sources } => format!("the configuration is now that of {sources}"),
        Event::NotReloaded { why } => format!("error: {why}; the configuration before stays in force"),
        Event::Unconfigured { jail } => {
            format!("jail {jail}: not in the configuration any more; `tunjail down {jail}` takes its wall down")
        }
        Event::Reloading | Event::Ready | Event::Ending => return None,
    })
}

fn step_in_words(step: &Change) -> String {
    match step {
        Change::LoadRuleset(_) => "loaded its nftables tables anew, with its members".to_owned(),
        step => step.lines("").trim_end().to_owned(),
    }
}

fn way_in_words([v4, v6]: [Option<&IfName>; 2]) -> String {
    match (v4, v6) {
        (None, None) => "closed: no exit is there".to_owned(),
        (Some(v4), Some(v6)) if v4 == v6 => format!("leaves by {v4}"),
        (Some(v4), None) => format!("leaves by {v4}; IPv6 is closed"),
        (None, Some(v6)) => format!("leaves by {v6}; IPv4 is closed"),
        (Some(v4), Some(v6)) => format!("leaves by {v4} (IPv4) and {v6} (IPv6)"),
    }
}

fn in_json(event: &Event<'_>) -> Value {
    let of = |event: &str, rest: Value| {
        let mut line = json!({ "version": 1, "event": event });
        if let (Some(line), Value::Object(rest)) = (line.as_object_mut(), rest) {
            line.extend(rest);
        }
        line
    };
    match event {
        Event::Did { jail, step } => of("did", json!({ "jail": jail, "did": step_in_words(step) })),
        Event::Leaves { jail, by: [v4, v6] } => of("leaves", json!({ "jail": jail, "v4": v4, "v6": v6 })),
        Event::Failed { jail, why } => of("failed", json!({ "jail": jail, "why": why })),
        Event::Recovered { jail } => of("recovered", json!({ "jail": jail })),
        Event::Reloading => of("reloading", json!({})),
        Event::Reloaded { sources } => of("reloaded", json!({ "sources": sources })),
        Event::NotReloaded { why } => of("not-reloaded", json!({ "why": why })),
        Event::Unconfigured { jail } => of("unconfigured", json!({ "jail": jail })),
        Event::Ready => of("ready", json!({})),
        Event::Ending => of("ending", json!({})),
    }
}
