//! Which ways in are wired on this host: whether an engine would call tunjail at all.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A way in that was found, or that an installed engine lacks.
#[derive(Debug, PartialEq, Eq)]
pub struct Way {
    pub live: bool,
    pub way: String,
    pub text: String,
}

/// Where Podman and CRI-O read hooks: the first by itself, the second when `hooks_dir` names it.
const HOOK_DIRECTORIES: [&str; 2] = ["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"];
const CONTAINERS_CONF: [&str; 2] = ["/etc/containers/containers.conf", "/usr/share/containers/containers.conf"];
const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// Looks at what engines would read. Nothing found is no fault: runc and crun are wired bundle by bundle.
pub fn look() -> Vec<Way> {
    let mut ways = Vec::new();
    for directory in HOOK_DIRECTORIES {
        for path in json_files(Path::new(directory)) {
            ways.extend(hooks_d(&path, directory));
        }
    }
    ways.extend(docker());
    if ways.is_empty() {
        ways.push(Way {
            live: false,
            way: "hooks".to_owned(),
            text: "no engine on this host calls tunjail yet; README shows how to wire each".to_owned(),
        });
    }
    ways
}

fn hooks_d(path: &Path, directory: &str) -> Option<Way> {
    let config: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let hook = config.get("hook")?;
    let ours = hook.get("args")?.as_array()?.first()?.as_str()? == "tunjail";
    if !ours {
        return None;
    }
    let program = Path::new(hook.get("path")?.as_str()?);
    let (live, text) = if !program.is_file() {
        (
            false,
            format!(
                "{} calls {}, which does not exist; Podman skips such a hook silently",
                path.display(),
                program.display()
            ),
        )
    } else if directory == HOOK_DIRECTORIES[1] && !is_named_in_containers_conf(directory) {
        (
            false,
            format!(
                "{} is not read: add hooks_dir = [\"{directory}\"] to [engine] in {}",
                path.display(),
                CONTAINERS_CONF[0]
            ),
        )
    } else {
        (true, format!("{} calls {}", path.display(), program.display()))
    };
    Some(Way { live, way: "podman".to_owned(), text })
}

fn is_named_in_containers_conf(directory: &str) -> bool {
    CONTAINERS_CONF.iter().filter_map(|path| fs::read_to_string(path).ok()).any(|text| {
        text.parse::<toml::Table>().ok().is_some_and(|conf| {
            let named = conf.get("engine").and_then(|engine| engine.get("hooks_dir")).and_then(toml::Value::as_array);
            named.is_some_and(|list| list.iter().any(|item| item.as_str() == Some(directory)))
        })
    })
}

fn docker() -> Vec<Way> {
    let Ok(text) = fs::read_to_string(DAEMON_JSON) else { return Vec::new() };
    let Ok(config) = serde_json::from_str::<Value>(&text) else {
        return vec![Way {
            live: false,
            way: "docker".to_owned(),
            text: format!("{DAEMON_JSON} is not valid JSON; dockerd does not start with it"),
        }];
    };
    let runtimes = config.get("runtimes").and_then(Value::as_object);
    runtimes
        .into_iter()
        .flatten()
        .filter_map(|(name, runtime)| {
            let program = Path::new(runtime.get("path")?.as_str()?);
            if program.file_name()? != "tunjail-runtime" {
                return None;
            }
            let live = program.is_file();
            let state = if live { "calls" } else { "names a missing" };
            let text = format!("runtime \"{name}\" in {DAEMON_JSON} {state} {}", program.display());
            Some(Way { live, way: "docker".to_owned(), text })
        })
        .collect()
}

fn json_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
}
