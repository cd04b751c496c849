//! Docker's daemon.json: runtimes that run tunjail in runc's place.
//!
//! The file is edited as text: what is not tunjail's keeps its order, its spaces and its line ends. It has to be strict
//! JSON, as dockerd demands; one that is not is left as it is.

use std::path::Path;

use anyhow::{Context, Result, bail};
use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};
use serde_json::{Map, Value, json};

use super::{Host, Plan, Wanted};
use crate::model::names::JailName;

pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// The runtime without `--jail`; with one, `tunjail-JAIL`.
pub const RUNTIME: &str = "tunjail";

/// A runtime as daemon.json has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    pub name: String,
    pub path: String,
    pub args: Vec<String>,
}

impl Runtime {
    /// Whether it runs tunjail, whatever it is called: `tunjail-runtime ...`, or `tunjail runtime ...`.
    pub fn is_ours(&self) -> bool {
        match Path::new(&self.path).file_name().and_then(|name| name.to_str()) {
            Some("tunjail-runtime") => true,
            Some("tunjail") => self.args.first().is_some_and(|word| word == "runtime"),
            _ => false,
        }
    }

    /// What stands behind `--jail`.
    pub fn jail(&self) -> Option<&str> {
        let value = self.args.iter().skip_while(|word| *word != "--jail").nth(1).map(String::as_str);
        value.or_else(|| self.args.iter().find_map(|word| word.strip_prefix("--jail=")))
    }

    fn read(name: &str, value: &Value) -> Option<Self> {
        let args = value["runtimeArgs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Some(Self {
            name: name.to_owned(),
            path: value["path"].as_str()?.to_owned(),
            args: args.map(str::to_owned).collect(),
        })
    }
}

/// What daemon.json says, strictly read.
#[derive(Debug)]
pub struct Daemon {
    whole: Map<String, Value>,
}

impl Daemon {
    /// # Errors
    /// When dockerd would refuse the text, or would understand another thing than it seems to say.
    pub fn read(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            bail!("{DAEMON_JSON} is empty, which dockerd refuses; remove it, or write {{}} into it");
        }
        let whole = match serde_json::from_str(text) {
            Ok(Value::Object(whole)) => whole,
            Ok(_) => bail!("{DAEMON_JSON}:1: not a JSON object, which dockerd refuses; write {{ }} around it"),
            Err(error) => return Err(broken(text, &error)),
        };
        let daemon = Self { whole };
        daemon.demand_plain(text)?;
        Ok(daemon)
    }

    /// Go's decoder takes the last of two keys, and does not heed their case.
    fn demand_plain(&self, text: &str) -> Result<()> {
        for key in ["runtimes", "default-runtime"] {
            let strange = self.whole.keys().find(|name| name.eq_ignore_ascii_case(key) && *name != key);
            if let Some(name) = strange {
                bail!("{DAEMON_JSON}:{}: the key \"{name}\" has to be written \"{key}\"", line_of(text, name));
            }
        }
        let tree = parse(text)?;
        let root = &tree.object;
        for object in [Some(root.clone()), root.object_value("runtimes")].into_iter().flatten() {
            let mut names: Vec<String> = object.properties().iter().filter_map(|prop| prop.decoded_name()).collect();
            names.sort();
            if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                let (name, line) = (&pair[0], line_of(text, &pair[0]));
                bail!("{DAEMON_JSON}:{line}: the key \"{name}\" stands there twice; remove one of them");
            }
        }
        match self.whole.get("runtimes") {
            None | Some(Value::Object(_)) => Ok(()),
            Some(_) => bail!(
                "{DAEMON_JSON}:{}: \"runtimes\" is not an object, which dockerd refuses; write \"runtimes\": {{}}",
                line_of(text, "runtimes")
            ),
        }
    }

    pub fn runtimes(&self) -> Vec<Runtime> {
        let runtimes = self.whole.get("runtimes").and_then(Value::as_object);
        runtimes.into_iter().flatten().filter_map(|(name, value)| Runtime::read(name, value)).collect()
    }

    pub fn default_runtime(&self) -> Option<&str> {
        self.whole.get("default-runtime").and_then(Value::as_str)
    }

    fn runtime(&self, name: &str) -> Option<&Value> {
        self.whole.get("runtimes")?.get(name)
    }

    /// Whether it names DNS servers for containers.
    pub fn names_servers(&self) -> bool {
        self.whole.get("dns").and_then(Value::as_array).is_some_and(|servers| !servers.is_empty())
    }

    /// A key of `features`.
    pub fn feature(&self, name: &str) -> Option<bool> {
        self.whole.get("features")?.get(name)?.as_bool()
    }
}

fn broken(text: &str, error: &serde_json::Error) -> anyhow::Error {
    let lenient = ParseOptions { allow_missing_commas: false, ..ParseOptions::default() };
    let what = match CstRootNode::parse(text, &lenient) {
        Ok(_) => "comments, trailing commas and the like are no JSON, and dockerd refuses them; remove them".to_owned(),
        Err(_) => format!("not valid JSON ({error}), so that dockerd does not start with it; mend it first"),
    };
    anyhow::anyhow!("{DAEMON_JSON}:{}: {what}", error.line().max(1))
}

/// The line, counted from 1, where `key` stands first.
fn line_of(text: &str, key: &str) -> usize {
    let offset = text.find(&format!("\"{key}\"")).unwrap_or(0);
    text[..offset].matches('\n').count() + 1
}

/// The text as a tree that keeps every space. The object points up to the whole, which has to be kept for it.
struct Tree {
    whole: CstRootNode,
    object: CstObject,
}

fn parse(text: &str) -> Result<Tree> {
    let whole = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| anyhow::anyhow!("{error}"))?;
    let object = whole.object_value().with_context(|| format!("{DAEMON_JSON} is not a JSON object"))?;
    Ok(Tree { whole, object })
}

/// # Errors
/// When the file is broken, or a name is taken by somebody else's runtime.
pub fn install(host: &Host, jails: &[JailName], default: bool) -> Result<Plan> {
    let path = Path::new(DAEMON_JSON);
    let current = host.read(path)?;
    let program = host.runtime()?.to_string_lossy().into_owned();
    let mut wanted = vec![Runtime { name: RUNTIME.to_owned(), path: program.clone(), args: Vec::new() }];
    wanted.extend(jails.iter().map(|jail| Runtime {
        name: format!("{RUNTIME}-{jail}"),
        path: program.clone(),
        args: vec!["--jail".to_owned(), jail.to_string()],
    }));
    let mut notes = Vec::new();
    let after = with_runtimes(current.as_deref(), &wanted, default, &mut notes)?;
    let clean = current.as_deref().map(without_ours).transpose()?;
    let names: Vec<&str> = wanted.iter().map(|runtime| runtime.name.as_str()).collect();
    notes.push(match default {
        true => "now restart dockerd, so that it takes the default runtime: systemctl restart docker".to_owned(),
        false => "now let dockerd read it: systemctl reload docker".to_owned(),
    });
    notes.push(format!("then: docker run --runtime {} --network NETWORK ...", names.join("|")));
    Ok(Plan { files: vec![Wanted { path: path.to_owned(), current, after: Some(after), clean }], notes })
}

/// Everything that runs tunjail, taken out.
pub fn uninstall(host: &Host) -> Result<Plan> {
    let path = Path::new(DAEMON_JSON);
    let Some(current) = host.read(path)? else { return Ok(Plan::default()) };
    // A broken file that does not speak of tunjail is none of this command's business.
    let clean = if current.contains(RUNTIME) { without_ours(&current)? } else { current.clone() };
    let mut notes = Vec::new();
    if clean != current {
        notes.push(
            "now restart dockerd: systemctl restart docker; containers that were made with one of tunjail's \
                    runtimes do not start any more, make them anew"
                .to_owned(),
        );
    }
    let (path, clean) = (path.to_owned(), Some(clean));
    Ok(Plan { files: vec![Wanted { path, current: Some(current), after: clean.clone(), clean }], notes })
}

fn with_runtimes(text: Option<&str>, wanted: &[Runtime], default: bool, notes: &mut Vec<String>) -> Result<String> {
    let Some(text) = text else { return fresh(wanted, default) };
    let daemon = Daemon::read(text)?;
    let tree = parse(text)?;
    let root = &tree.object;
    let mut expected = daemon.whole.clone();
    for runtime in wanted {
        match daemon.runtime(&runtime.name) {
            None => {
                let list = root.object_value_or_set("runtimes");
                list.append(&runtime.name, input(&entry(runtime)));
                expected.entry("runtimes").or_insert_with(|| json!({}))[&runtime.name] = entry(runtime);
            }
            Some(there) => {
                if let Some(kept) = keep(text, runtime, there)? {
                    notes.push(kept);
                }
                if there["path"] != runtime.path.as_str() {
                    let prop = root.object_value("runtimes").and_then(|list| list.object_value(&runtime.name));
                    let prop = prop.and_then(|there| there.get("path")).context("a runtime without a path")?;
                    prop.set_value(CstInputValue::String(runtime.path.clone()));
                    expected["runtimes"][&runtime.name]["path"] = runtime.path.as_str().into();
                }
            }
        }
    }
    if default {
        set_default(text, &daemon, root)?;
        expected.insert("default-runtime".to_owned(), RUNTIME.into());
    }
    finish(&tree, text, &expected)
}

/// A runtime that is there under a name that is wanted: kept, or refused.
fn keep(text: &str, wanted: &Runtime, there: &Value) -> Result<Option<String>> {
    let name = &wanted.name;
    let line = line_of(text, name);
    let ours = Runtime::read(name, there).filter(Runtime::is_ours);
    let Some(ours) = ours else {
        bail!("{DAEMON_JSON}:{line}: runtime \"{name}\" is somebody else's; rename it there, then run this again");
    };
    if let Some(jail) = wanted.jail().filter(|jail| ours.jail() != Some(*jail)) {
        bail!(
            "{DAEMON_JSON}:{line}: runtime \"{name}\" is not for jail {jail}; rename it there, or correct its --jail"
        );
    }
    // Another jail, or none, for containers that were made with it would be a surprise of the worst kind.
    Ok(ours.jail().filter(|_| wanted.jail().is_none()).map(|jail| {
        format!("runtime \"{name}\" stays as it is, with --jail {jail}: remove that by hand if annotation or address shall decide")
    }))
}

fn set_default(text: &str, daemon: &Daemon, root: &CstObject) -> Result<()> {
    let line = line_of(text, "default-runtime");
    match (daemon.whole.get("default-runtime"), root.get("default-runtime")) {
        (Some(Value::String(name)), Some(_)) if name == RUNTIME => {}
        (Some(Value::String(name)), Some(there)) if name == "runc" => there.set_value(RUNTIME.into()),
        (Some(other), _) => bail!(
            "{DAEMON_JSON}:{line}: \"default-runtime\" is {other}; set it to \"{RUNTIME}\" by hand if tunjail shall stand there instead"
        ),
        (None, _) => {
            root.append("default-runtime", RUNTIME.into());
        }
    }
    let jail = daemon.runtime(RUNTIME).and_then(|there| Runtime::read(RUNTIME, there)?.jail().map(str::to_owned));
    if let Some(jail) = jail {
        bail!(
            "{DAEMON_JSON}:{}: runtime \"{RUNTIME}\" has --jail {jail}, which would put every container there; remove its runtimeArgs first",
            line_of(text, RUNTIME)
        );
    }
    Ok(())
}

fn without_ours(text: &str) -> Result<String> {
    let daemon = Daemon::read(text)?;
    let ours: Vec<String> =
        daemon.runtimes().into_iter().filter(Runtime::is_ours).map(|runtime| runtime.name).collect();
    if ours.is_empty() {
        return Ok(text.to_owned());
    }
    let tree = parse(text)?;
    let root = &tree.object;
    let mut expected = daemon.whole.clone();
    let list = root.object_value("runtimes").context("runtimes")?;
    for name in &ours {
        list.get(name).context("a runtime")?.remove();
        expected["runtimes"].as_object_mut().context("runtimes")?.remove(name);
    }
    if list.properties().is_empty() {
        root.get("runtimes").context("runtimes")?.remove();
        expected.remove("runtimes");
    }
    // dockerd does not start with a default runtime that is not there.
    if daemon.default_runtime().is_some_and(|name| ours.iter().any(|gone| gone == name)) {
        root.get("default-runtime").context("default-runtime")?.remove();
        expected.remove("default-runtime");
    }
    finish(&tree, text, &expected)
}

/// The text, once it says what it is meant to say, and nothing else.
fn finish(tree: &Tree, before: &str, expected: &Map<String, Value>) -> Result<String> {
    let after = tree.whole.to_string();
    let read: Value = serde_json::from_str(&after).context("the edited text")?;
    if read.as_object() != Some(expected) {
        bail!("{DAEMON_JSON} cannot be edited without changing more of it; add the runtimes by hand");
    }
    let unchanged = serde_json::from_str::<Value>(before).is_ok_and(|before| before == read);
    Ok(if unchanged { before.to_owned() } else { after })
}

fn fresh(wanted: &[Runtime], default: bool) -> Result<String> {
    let runtimes: Map<String, Value> = wanted.iter().map(|runtime| (runtime.name.clone(), entry(runtime))).collect();
    let mut whole = json!({ "runtimes": runtimes });
    if default {
        whole["default-runtime"] = RUNTIME.into();
    }
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

fn entry(runtime: &Runtime) -> Value {
    match runtime.args.as_slice() {
        [] => json!({ "path": runtime.path }),
        args => json!({ "path": runtime.path, "runtimeArgs": args }),
    }
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(number) => CstInputValue::Number(number.to_string()),
        Value::String(text) => CstInputValue::String(text.clone()),
        Value::Array(list) => CstInputValue::Array(list.iter().map(input).collect()),
        Value::Object(map) => {
            CstInputValue::Object(map.iter().map(|(key, value)| (key.clone(), input(value))).collect())
        }
    }
}
