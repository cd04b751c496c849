//! Docker: runtimes in daemon.json.

use std::path::Path;

use super::{State, Way, fault, program};
use crate::engine::install::Host;
use crate::engine::install::docker::{DAEMON_JSON, Daemon, Runtime};
use crate::model::names::JailName;

pub fn look(host: &Host, jails: Option<&[JailName]>) -> Vec<Way> {
    let daemon = match host.read(Path::new(DAEMON_JSON)).and_then(|text| text.as_deref().map(Daemon::read).transpose())
    {
        Ok(daemon) => daemon,
        Err(error) => return vec![Way::new(State::Broken, "docker", format!("{error:#}"))],
    };
    let mut ways = Vec::new();
    if let Some(daemon) = &daemon {
        let runtimes = daemon.runtimes();
        ways.extend(runtimes.iter().filter(|runtime| runtime.is_ours()).map(|runtime| judge(host, jails, runtime)));
        ways.extend(default_runtime(daemon, &runtimes));
    }
    if ways.is_empty() && program(host, "dockerd").is_some() {
        let text = "Docker is here and has no runtime that runs tunjail; `tunjail install docker`";
        ways.push(Way::new(State::Unused, "docker", text));
    }
    ways
}

fn judge(host: &Host, jails: Option<&[JailName]>, runtime: &Runtime) -> Way {
    let Runtime { name, path, .. } = runtime;
    if let Some(fault) = fault(host, Path::new(path)) {
        let text =
            format!("runtime \"{name}\" in {DAEMON_JSON} is {path}, which {fault}; containers with it do not start");
        return Way::new(State::Doubtful, "docker", text);
    }
    let jail = runtime.jail();
    if let (Some(jail), Some(jails)) = (jail, jails)
        && !jails.iter().any(|known| known.as_str() == jail)
    {
        let text = format!(
            "runtime \"{name}\" in {DAEMON_JSON} is for jail {jail}, which is not in the configuration; containers with it do not start: remove it, or `tunjail uninstall docker` and install again"
        );
        return Way::new(State::Doubtful, "docker", text);
    }
    let whose = jail.map_or("by annotation or address".to_owned(), |jail| format!("for jail {jail}"));
    Way::new(State::Live, "docker", format!("runtime \"{name}\" in {DAEMON_JSON} calls {path}, {whose}"))
}

fn default_runtime(daemon: &Daemon, runtimes: &[Runtime]) -> Option<Way> {
    let name = daemon.default_runtime()?;
    if let Some(runtime) = runtimes.iter().find(|runtime| runtime.name == name) {
        let text = format!("\"{name}\" is the default runtime: every container goes through tunjail");
        return runtime.is_ours().then(|| Way::new(State::Live, "docker", text));
    }
    // Another default runtime that is missing is dockerd's own affair; one that tunjail's uninstalling left is not.
    name.starts_with("tunjail").then(|| {
        let text = format!("\"default-runtime\" in {DAEMON_JSON} is \"{name}\", which is not among its runtimes; dockerd does not start with it");
        Way::new(State::Broken, "docker", text)
    })
}
