//! A CDI specification: one device for each jail, `--device tunjail.io/jail=NAME`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Changes, Host, Plan, Target, Wanted};
use crate::model::names::JailName;

pub const SPEC: &str = "/etc/cdi/tunjail.json";
pub const KIND: &str = "tunjail.io/jail";

/// Where engines look for specifications unless they are told otherwise.
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The oldest version of the format that its own library accepts, and one that has hooks: Podman 4.3 knows it.
/// Nothing that is used here came later.
const VERSION: &str = "0.3.0";

/// Seconds, as in hooks.d.
const TIMEOUT: u32 = 10;

/// tunjail's own specification, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub jails: Vec<String>,
    pub program: PathBuf,
}

/// Reads the specification. `None`: it is somebody else's, or broken.
pub fn read(text: &str) -> Option<Spec> {
    let spec: Value = serde_json::from_str(text).ok()?;
    if spec["kind"] != KIND {
        return None;
    }
    let mut program = None;
    let mut jails = Vec::new();
    for device in spec["devices"].as_array()? {
        jails.push(device["name"].as_str()?.to_owned());
        for hook in device["containerEdits"]["hooks"].as_array()? {
            if hook["args"][0] != "tunjail" || hook["args"][1] != "hook" {
                return None;
            }
            program = Some(PathBuf::from(hook["path"].as_str()?));
        }
    }
    Some(Spec { jails, program: program? })
}

/// A jail's name that CDI takes for a device's: the last character has to be a letter or a digit.
fn is_device(jail: &JailName) -> bool {
    jail.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// The names of the devices that these jails get, in order.
pub fn devices(jails: &[JailName]) -> Vec<String> {
    let mut names: Vec<String> = jails.iter().filter(|jail| is_device(jail)).map(ToString::to_string).collect();
    names.sort();
    names
}

fn text(program: &Path, names: &[String]) -> Result<String> {
    let hook = |stage: &str, command: &str, jail: &str| {
        json!({
            "hookName": stage, "path": program, "timeout": TIMEOUT,
            "args": ["tunjail", "hook", command, "--jail", jail],
        })
    };
    let devices: Vec<Value> = names
        .iter()
        .map(|jail| {
            let hooks = [hook("createRuntime", "create-runtime", jail), hook("poststop", "poststop", jail)];
            json!({ "name": jail, "containerEdits": { "hooks": hooks } })
        })
        .collect();
    let spec = json!({ "cdiVersion": VERSION, "kind": KIND, "devices": devices });
    Ok(serde_json::to_string_pretty(&spec)? + "\n")
}

/// # Errors
/// When there is no jail, or somebody else has a specification of this kind.
pub fn install(host: &Host, jails: &[JailName]) -> Result<Plan> {
    plan(host, host.program(), jails)
}

fn plan(host: &Host, program: &Path, jails: &[JailName]) -> Result<Plan> {
    let names = devices(jails);
    let Some(first) = names.first() else {
        bail!("there is no jail that could become a device; add a [jail.NAME] section to the configuration")
    };
    let path = Path::new(SPEC);
    let current = host.read(path)?;
    if current.as_deref().is_some_and(|text| read(text).is_none()) {
        bail!("{SPEC} is there and not tunjail's; move it away");
    }
    if let Some(other) = foreign(host)?.first() {
        bail!("{} has the kind {KIND} too, so that engines refuse both; remove one of them", other.display());
    }
    let after = Some(text(program, &names)?);
    let mut notes: Vec<String> = jails
        .iter()
        .filter(|jail| !is_device(jail))
        .map(|jail| format!("jail {jail} gets no device: its name would have to end in a letter or a digit"))
        .collect();
    notes.push(format!(
        "then: podman run --device {KIND}={first} --network NETWORK ... (or docker run, from Docker 25 on)"
    ));
    Ok(Plan { files: vec![Wanted { path: path.to_owned(), current, after, clean: None }], notes })
}

/// Files of others that say the same kind.
pub fn foreign(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for directory in DIRECTORIES {
        for path in host.list(directory, &["json", "yaml", "yml"]) {
            if path == Path::new(SPEC) {
                continue;
            }
            let Some(text) = host.read(&path)? else { continue };
            let said = match serde_json::from_str::<Value>(&text) {
                Ok(spec) => spec["kind"] == KIND,
                Err(_) => says_kind(&text),
            };
            if said {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Whether a YAML text has the kind, in block or flow style, quoted or not. To be on the safe side it is enough that both
/// words stand in one line, outside of a comment.
fn says_kind(text: &str) -> bool {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| {
        let line = line.split(" #").next().unwrap_or_default();
        line.contains("kind") && line.contains(KIND)
    })
}

/// tunjail's specification, removed.
pub fn uninstall(host: &Host) -> Result<Plan> {
    let path = PathBuf::from(SPEC);
    let current = host.read(&path)?.filter(|text| read(text).is_some());
    let files = current.map(|text| Wanted { path, current: Some(text), after: None, clean: None });
    Ok(Plan { files: files.into_iter().collect(), notes: Vec::new() })
}

/// How a specification differs from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfStep {
    pub missing: Vec<String>,
    pub stale: Vec<String>,
}

/// `None` when the devices are those of `jails`.
pub fn out_of_step(spec: &Spec, jails: &[JailName]) -> Option<OutOfStep> {
    let names = devices(jails);
    let but = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|name| !those.contains(name)).cloned().collect()
    };
    let found = OutOfStep { missing: but(&names, &spec.jails), stale: but(&spec.jails, &names) };
    (found != OutOfStep { missing: Vec::new(), stale: Vec::new() }).then_some(found)
}

/// The changes that bring an installed specification in step with the configuration; none when there is none. It keeps the
/// program that it names as long as that is one.
pub fn follow(host: &Host, jails: &[JailName]) -> Result<Option<Changes>> {
    let Some(spec) = host.read(Path::new(SPEC))?.as_deref().and_then(read) else { return Ok(None) };
    if out_of_step(&spec, jails).is_none() {
        return Ok(None);
    }
    let program = if host.has_program(&spec.program) { spec.program } else { host.program().to_owned() };
    let plan = plan(host, &program, jails).context("the CDI specification")?;
    super::install(host, Target::Cdi, plan).map(Some)
}
