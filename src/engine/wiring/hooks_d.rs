//! hooks.d: what Podman and CRI-O read, and what lies where they do not look.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{State, Way, fault, program};
use crate::engine::install::Host;
use crate::engine::install::hooks_d::{self, ETC, Hook, SHARE};
use crate::engine::install::{crio, podman};

/// An engine that reads hooks, and where.
struct Reader {
    way: &'static str,
    name: &'static str,
    directories: Vec<String>,
    mend: String,
}

pub fn look(host: &Host) -> Vec<Way> {
    let mut ways = Vec::new();
    let mut readers = Vec::new();
    if program(host, "podman").is_some() {
        let mend = |directory: &str| {
            format!("name {directory} in hooks_dir of [engine] in containers.conf, or run `tunjail install podman`")
        };
        let found = podman::hook_directories(host).map(|found| found.directories);
        readers.extend(reader("podman", "Podman", found, mend(ETC), &mut ways));
    }
    if program(host, "crio").is_some() {
        let mend = "name it in hooks_dir of [crio.runtime] in crio.conf, or run `tunjail install crio`".to_owned();
        readers.extend(reader("crio", "CRI-O", crio::hook_directories(host), mend, &mut ways));
    }
    for reader in &readers {
        ways.extend(read_by(host, reader));
    }
    ways
}

fn reader(
    way: &'static str,
    name: &'static str,
    directories: Result<Vec<String>>,
    mend: String,
    ways: &mut Vec<Way>,
) -> Option<Reader> {
    match directories {
        Ok(directories) => Some(Reader { way, name, directories, mend }),
        Err(error) => {
            ways.push(Way::new(State::Broken, way, format!("{error:#}")));
            None
        }
    }
}

fn read_by(host: &Host, reader: &Reader) -> Vec<Way> {
    let mut ways = Vec::new();
    let mut said = false;
    let known = [SHARE, ETC].map(str::to_owned);
    let unread = known.iter().filter(|directory| !reader.directories.contains(directory));
    for directory in unread {
        for (path, _) in ours(host, directory, None, &mut Vec::new()) {
            said = true;
            let text = format!("{} is not read by {}: {}", path.display(), reader.name, reader.mend);
            ways.push(Way::new(State::Doubtful, reader.way, text));
        }
    }
    for directory in &reader.directories {
        // Hooks that run under one condition belong together: the one that holds, the one that lets go.
        let mut pairs: BTreeMap<String, Vec<(PathBuf, Hook)>> = BTreeMap::new();
        for (path, hook) in ours(host, directory, Some(reader), &mut ways) {
            pairs.entry(hook.when.to_string()).or_default().push((path, hook));
        }
        for pair in pairs.values() {
            said = true;
            ways.push(judge(host, reader, directory, pair));
        }
    }
    if !said {
        let text = format!("{} is here and calls no hook of tunjail's; `tunjail install {}`", reader.name, reader.way);
        ways.push(Way::new(State::Unused, reader.way, text));
    }
    ways
}

/// tunjail's files of a directory. Broken ones, whoever's they are, are told when somebody reads them.
fn ours(host: &Host, directory: &str, reader: Option<&Reader>, ways: &mut Vec<Way>) -> Vec<(PathBuf, Hook)> {
    let mut found = Vec::new();
    for path in host.list(directory, &["json"]) {
        let text = match host.read(&path) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                ways.extend(reader.map(|reader| Way::new(State::Broken, reader.way, format!("{error:#}"))));
                continue;
            }
        };
        match hooks_d::read(&text) {
            Ok(hook) => found.extend(hook.map(|hook| (path, hook))),
            Err(error) => ways.extend(reader.map(|reader| {
                let (path, name) = (path.display(), reader.name);
                let text = format!(
                    "{path} is not valid JSON ({error}); {name} starts no container until it is mended or removed"
                );
                Way::new(State::Broken, reader.way, text)
            })),
        }
    }
    found
}

fn judge(host: &Host, reader: &Reader, directory: &str, pair: &[(PathBuf, Hook)]) -> Way {
    let doubtful = |text: String| Way::new(State::Doubtful, reader.way, text);
    for (path, hook) in pair {
        let (path, program) = (path.display(), hook.program.display());
        match fault(host, &hook.program) {
            Some(fault @ "does not exist") => {
                return doubtful(format!(
                    "{path} calls {program}, which {fault}; {} skips such a hook silently",
                    reader.name
                ));
            }
            Some(fault) => return doubtful(format!("{path} calls {program}, which {fault}; containers do not start")),
            None => {}
        }
        let stage = if hook.stage == "poststop" { "poststop" } else { "createRuntime" };
        if !hook.stages.iter().any(|named| named == stage) {
            return doubtful(format!("{path} does not call its hook at {stage}: correct its \"stages\""));
        }
    }
    let has = |stage: &str| pair.iter().find(|(_, hook)| hook.stage == stage);
    match (has("create-runtime"), has("poststop")) {
        (Some((path, _)), None) => doubtful(format!(
            "{} has no poststop beside it: members stay recorded after their end; `tunjail install {}` writes both",
            path.display(),
            reader.way
        )),
        (None, Some((path, _))) => doubtful(format!(
            "{} has no create-runtime beside it: no container is held; `tunjail install {}` writes both",
            path.display(),
            reader.way
        )),
        (Some((_, hook)), _) => {
            let whom = if hook.when["always"] == true {
                "for every container"
            } else {
                "for containers that ask by annotation"
            };
            let text = format!("hooks in {} call {} {whom}", Path::new(directory).display(), hook.program.display());
            Way::new(State::Live, reader.way, text)
        }
        (None, None) => doubtful(format!("{directory}: no hook")),
    }
}
