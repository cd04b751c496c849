//! CDI: the specification, whether it is in step, and whether the engines here know CDI at all.

use std::path::Path;

use super::{State, Way, fault, program};
use crate::engine::ask_version;
use crate::engine::install::Host;
use crate::engine::install::cdi::{self, KIND, SPEC};
use crate::engine::install::docker::{DAEMON_JSON, Daemon};
use crate::model::names::JailName;

const WAY: &str = "cdi";

pub fn look(host: &Host, jails: Option<&[JailName]>) -> Vec<Way> {
    let text = match host.read(Path::new(SPEC)) {
        Ok(Some(text)) => text,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![Way::new(State::Doubtful, WAY, format!("{error:#}"))],
    };
    let Some(spec) = cdi::read(&text) else {
        let text = format!("{SPEC} is not what tunjail wrote; remove it, and run `tunjail install cdi`");
        return vec![Way::new(State::Doubtful, WAY, text)];
    };
    let mut ways = Vec::new();
    for other in cdi::foreign(host).unwrap_or_default() {
        let text =
            format!("{} has the kind {KIND} too: engines refuse devices that are in both; remove it", other.display());
        ways.push(Way::new(State::Doubtful, WAY, text));
    }
    if let Some(fault) = fault(host, &spec.program) {
        let text =
            format!("{SPEC} calls {}, which {fault}; containers with its devices do not start", spec.program.display());
        ways.push(Way::new(State::Doubtful, WAY, text));
    }
    if let Some(apart) = jails.and_then(|jails| cdi::out_of_step(&spec, jails)) {
        let mut parts = Vec::new();
        if !apart.missing.is_empty() {
            parts.push(format!("it has no device for jail {}", apart.missing.join(", ")));
        }
        if !apart.stale.is_empty() {
            parts.push(format!("jail {} is not in the configuration any more", apart.stale.join(", ")));
        }
        let text = format!("{SPEC} is out of step: {}; `tunjail up` mends it", parts.join("; "));
        ways.push(Way::new(State::Doubtful, WAY, text));
    }
    ways.extend(docker_without(host));
    if ways.iter().all(|way| way.text.starts_with("Docker")) {
        let names: Vec<String> = spec.jails.iter().map(|jail| format!("{KIND}={jail}")).collect();
        let text = format!("{SPEC} calls {} for {}", spec.program.display(), names.join(", "));
        ways.insert(0, Way::new(State::Live, WAY, text));
    }
    ways
}

/// A Docker here that refuses `--device tunjail.io/jail=...`, since it knows no CDI or was not told to use it.
fn docker_without(host: &Host) -> Option<Way> {
    let (major, minor) = ask_version(&host.at(&program(host, "dockerd")?))?;
    let told = || {
        let text = host.read(Path::new(DAEMON_JSON)).ok().flatten()?;
        Daemon::read(&text).ok()?.feature("cdi")
    };
    let text = match (major, minor) {
        (..25, _) => {
            format!("Docker {major}.{minor} knows no CDI (25 and newer do): wire it by `tunjail install docker`")
        }
        (25..28, _) | (28, ..2) if told() != Some(true) => {
            format!("Docker {major}.{minor} uses CDI only when told: \"features\": {{\"cdi\": true}} in {DAEMON_JSON}")
        }
        _ if told() == Some(false) => format!("Docker was told not to use CDI: \"features\" in {DAEMON_JSON}"),
        _ => return None,
    };
    Some(Way::new(State::Doubtful, WAY, text))
}
