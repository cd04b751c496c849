//! `tunjail check`: everything that a container's start depends on, looked at before one does.

mod dns;
mod filter;
mod firewall;
mod forwards;
mod host;
mod proxies;
mod rulesets;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use self::rulesets::Rulesets;
use super::trouble::{self, Trouble};
use crate::cli::Show;
use crate::config::Config;
use crate::engine::install::Host;
use crate::engine::runtime::underneath;
use crate::engine::wiring::{self, State};
use crate::hold::{Kernel, wall, way};
use crate::kernel::nftables;
use crate::model::conflict;
use crate::model::names::JailName;
use crate::model::policy::Jail;
use crate::store::Store;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Nothing leaks, but something that the user may want does not work.
    Warning,
    /// Containers of a jail will not start, or a promise does not hold.
    Error,
}

#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    what: String,
    /// What was found, and the mend when there is something to mend.
    found: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, verdict: Verdict, what: impl Into<String>, found: impl Into<String>) {
        self.0.push(Finding { verdict, what: what.into(), found: found.into() });
    }

    /// Records a failure as an error and goes on: a check tells everything that it finds.
    fn take<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.add(Verdict::Error, what, super::one_line(&error))).ok()
    }
}

pub fn run(config: Option<&Path>, args: &Show) -> Result<ExitCode> {
    super::demand_root()?;
    let mut findings = Findings::default();
    let nft = findings.take("nft", nftables::find_nft().map_err(Into::into));
    if let Some(path) = &nft {
        findings.add(Verdict::Ok, "nft", path.display().to_string());
    }
    let config = findings.take("configuration", Config::load(config).map_err(Into::into));
    if let Some(config) = &config {
        let verdict = if config.jails.is_empty() { Verdict::Warning } else { Verdict::Ok };
        findings.add(verdict, "configuration", format!("{}: jails {}", config.sources_text(), config.names_text()));
        runtime(&mut findings, config);
        let kernel = findings.take("netlink", Kernel::open().map_err(Into::into));
        if let Some(mut kernel) = kernel {
            host::look(&mut findings, config, &mut kernel);
            let rulesets = rulesets::read(&mut findings);
            for jail in &config.jails {
                check_jail(&mut findings, &mut kernel, jail, &rulesets, nft.is_some());
            }
        }
    }
    ways_in(&mut findings, config.as_ref());
    print(&findings.0, args.json)?;
    let failed = findings.0.iter().any(|finding| finding.verdict == Verdict::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn ways_in(findings: &mut Findings, config: Option<&Config>) {
    let Some(host) = findings.take("hooks", Host::own()) else { return };
    let jails: Option<Vec<JailName>> = config.map(|config| config.jails.iter().map(|jail| jail.name.clone()).collect());
    for found in wiring::look(&host, jails.as_deref()) {
        let verdict = match found.state {
            State::Live | State::Unused => Verdict::Ok,
            State::Doubtful => Verdict::Warning,
            State::Broken => Verdict::Error,
        };
        findings.add(verdict, found.way, found.text);
    }
}

fn runtime(findings: &mut Findings, config: &Config) {
    let Some(runtime) = &config.runtime else { return };
    if let Some(path) = findings.take("runtime", underneath::named(&runtime.path, &runtime.place)) {
        findings.add(Verdict::Ok, "runtime", format!("{} under `tunjail runtime`", path.display()));
    }
}

fn check_jail(findings: &mut Findings, kernel: &mut Kernel, jail: &Jail, rulesets: &Rulesets, has_nft: bool) {
    let what = format!("jail {}", jail.name);
    let Some(survey) = findings.take(&what, wall::survey(kernel, &Store::open(), jail)) else { return };
    match &survey.bridge {
        Some(link) => findings.add(Verdict::Ok, &what, format!("bridge {}", link.name)),
        None => findings.add(
            Verdict::Warning,
            &what,
            match &survey.surroundings.bridge {
                Some(name) => format!("its bridge {name} does not exist now; the engine makes it with the network or its first container"),
                None => "no bridge has an address in its subnets yet; create the containers' network, or name it with \"bridge = \"".to_owned(),
            },
        ),
    }
    if let Some(nets) = findings.take(&what, kernel.rtnl.nets().map_err(Into::into)) {
        findings.take(&what, conflict::with_host(jail, &nets, survey.surroundings.bridge.as_ref()).map_err(Into::into));
    }
    exits(findings, &what, jail, &survey);
    exits_fit_the_host(findings, &what, jail, &survey, kernel);
    host::look_at_jail(findings, &what, jail, &survey, kernel);
    if let Some(bridge) = &survey.surroundings.bridge {
        firewall::look(findings, &what, jail, bridge, rulesets);
        forwards::look(findings, &what, jail, bridge, rulesets);
    }
    proxies::look(findings, &what, jail);
    dns::look(findings, kernel, &what, jail);
    if has_nft
        && findings.take(&what, nftables::check(&survey.desired.ruleset.script(&[])).map_err(Into::into)).is_some()
    {
        findings.add(Verdict::Ok, &what, "the kernel and nft take its ruleset");
    }
    match &survey.record {
        None => findings.add(Verdict::Ok, &what, "its wall is down; `tunjail up` or its first container raises it"),
        Some(_) if survey.stands() => findings.add(Verdict::Ok, &what, "its wall stands as it was written"),
        Some(_) if survey.is_behind() => findings.add(
            Verdict::Warning,
            &what,
            "its wall stands, but an exit or the bridge came since and has no route yet, or an ip rule of others came before its own; `tunjail up`, `tunjail watch` or the next container brings it up to date",
        ),
        Some(_) => findings.add(
            Verdict::Error,
            &what,
            "its wall is not what was written, or the configuration was edited since; `tunjail up` makes it what the configuration says",
        ),
    }
}

fn exits_fit_the_host(findings: &mut Findings, what: &str, jail: &Jail, survey: &wall::Survey, kernel: &mut Kernel) {
    let there = &survey.surroundings.exits;
    findings.take(what, conflict::with_gateways(jail, there).map_err(Into::into));
    if let Some(defaults) = findings.take(what, kernel.rtnl.default_interfaces().map_err(Into::into)) {
        findings.take(what, conflict::with_uplink(jail, there, &defaults).map_err(Into::into));
    }
    if survey.stands() {
        findings.take(what, way::others_lead_to_the_exits(kernel, jail, survey));
    }
}

fn exits(findings: &mut Findings, what: &str, jail: &Jail, survey: &wall::Survey) {
    for name in &jail.exits {
        let facts = survey.surroundings.exits.iter().find(|exit| exit.link.name == name.as_str());
        if let Some(Trouble { is, mend }) = trouble::of(jail, name, facts) {
            findings.add(Verdict::Warning, what, format!("exit {name} {is}; nothing leaves by it: {mend}"));
        } else if let Some(exit) = facts {
            let family = |there: bool| if there { "by it" } else { "unreachable" };
            findings.add(
                Verdict::Ok,
                what,
                format!("exit {name} is up; IPv4 {}, IPv6 {}", family(exit.v4), family(exit.v6)),
            );
        }
    }
}

fn print(findings: &[Finding], json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "version": 1, "findings": findings }))?;
        return Ok(writeln!(out)?);
    }
    for Finding { verdict, what, found } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Error => "error",
        };
        writeln!(out, "{verdict:<8} {what}: {found}")?;
    }
    Ok(())
}
