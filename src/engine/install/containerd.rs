//! containerd's CRI plugin: a runtime handler `tunjail` that runs tunjail in runc's place.
//!
//! `BinaryName` takes no arguments, so there is one handler and not one for each jail: the pod's annotation
//! `io.tunjail.jail` or its address decides. containerd hands on only the annotations that the handler lists.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, value};

use super::{Host, Plan, Wanted};
use crate::oci;

pub const CONFIG: &str = "/etc/containerd/config.toml";
pub const HANDLER: &str = "tunjail";
pub const ANNOTATION: &str = oci::ANNOTATION;
/// What the handler hands on to the hook.
const HANDED_ON: [&str; 2] = [oci::ANNOTATION, oci::FORWARD];

const RUNTIME_TYPE: &str = "io.containerd.runc.v2";
const PROGRAMS: [&str; 4] =
    ["/usr/bin/containerd", "/usr/local/bin/containerd", "/usr/sbin/containerd", "/usr/local/sbin/containerd"];

/// The plugin that has the runtimes, by the version of the configuration's format.
fn plugin(version: i64) -> Option<&'static str> {
    match version {
        // containerd 1.3 and newer; 2.x reads it too.
        2 => Some("io.containerd.grpc.v1.cri"),
        // containerd 2.0 and newer.
        3 => Some("io.containerd.cri.v1.runtime"),
        _ => None,
    }
}

/// A handler as config.toml has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    pub name: String,
    pub program: PathBuf,
    pub pod_annotations: Vec<String>,
}

/// What config.toml says of handlers that run tunjail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handlers {
    pub ours: Vec<Handler>,
    /// The CRI plugin is switched off, so that nobody reads them.
    pub disabled: bool,
}

/// # Errors
/// When the text is no TOML.
pub fn read(text: &str) -> Result<Handlers> {
    let conf: toml::Table = text.parse().with_context(|| format!("{CONFIG} is not valid TOML"))?;
    let version = conf.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
    let runtimes = plugin(version)
        .and_then(|plugin| conf.get("plugins")?.get(plugin)?.get("containerd")?.get("runtimes")?.as_table());
    let ours = runtimes.into_iter().flatten().filter_map(|(name, handler)| {
        let program = handler.get("options")?.get("BinaryName")?.as_str()?;
        let list = handler.get("pod_annotations").and_then(toml::Value::as_array);
        let annotations = list.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect();
        is_ours(program).then(|| Handler { name: name.clone(), program: program.into(), pod_annotations: annotations })
    });
    Ok(Handlers { ours: ours.collect(), disabled: is_disabled(&conf) })
}

fn is_disabled(conf: &toml::Table) -> bool {
    let list = conf.get("disabled_plugins").and_then(toml::Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(toml::Value::as_str)
        .any(|name| ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"].contains(&name))
}

fn is_ours(program: &str) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "tunjail-runtime")
}

/// # Errors
/// When the file is broken or of a version without handlers, or the handler's name is taken.
pub fn install(host: &Host) -> Result<Plan> {
    let path = Path::new(CONFIG);
    let current = host.read(path)?;
    let text = match &current {
        Some(text) => text.clone(),
        None => format!("version = {}\n", version_to_write(host)?),
    };
    let program = host.runtime()?.to_string_lossy().into_owned();
    let after = with_handler(&text, &program)?;
    let clean = current.as_deref().map(without_ours).transpose()?;
    let mut notes = Vec::new();
    if read(&after)?.disabled {
        notes.push(format!(
            "{CONFIG} switches the CRI plugin off (disabled_plugins): nothing reads the handler until it is on"
        ));
    }
    notes.push("now restart containerd: systemctl restart containerd; containers go on running".to_owned());
    notes.push(format!(
        "then: a RuntimeClass with \"handler: {HANDLER}\", and the annotation {ANNOTATION} at the pod (or its address decides)"
    ));
    Ok(Plan { files: vec![Wanted { path: path.to_owned(), current, after: Some(after), clean }], notes })
}

/// Every handler that runs tunjail, taken out.
pub fn uninstall(host: &Host) -> Result<Plan> {
    let path = PathBuf::from(CONFIG);
    let Some(current) = host.read(&path)? else { return Ok(Plan::default()) };
    let clean = if current.contains("tunjail-runtime") { without_ours(&current)? } else { current.clone() };
    let mut notes = Vec::new();
    if clean != current {
        notes.push(
            "now restart containerd: systemctl restart containerd; pods with this handler do not start any more".into(),
        );
    }
    let clean = Some(clean);
    Ok(Plan { files: vec![Wanted { path, current: Some(current), after: clean.clone(), clean }], notes })
}

/// The version of the format that the installed containerd writes itself.
fn version_to_write(host: &Host) -> Result<i64> {
    let program = PROGRAMS.iter().find(|path| host.has_program(Path::new(path))).with_context(|| {
        format!("there is no {CONFIG} and no containerd ({}); install containerd first", PROGRAMS.join(", "))
    })?;
    let version = crate::engine::ask_version(&host.at(Path::new(program)));
    match version.with_context(|| format!("{program} --version says no version"))?.0 {
        0 => bail!("{program} is too old to have runtime handlers; use containerd 1.6 or newer"),
        1 => Ok(2),
        _ => Ok(3),
    }
}

fn table<'a>(parent: &'a mut dyn TableLike, key: &str, way: &str) -> Result<&'a mut dyn TableLike> {
    let made = || {
        let mut table = Table::new();
        // Its heading is written only when it has values of its own.
        table.set_implicit(true);
        Item::Table(table)
    };
    let item = parent.entry(key).or_insert_with(made);
    item.as_table_like_mut().with_context(|| format!("{CONFIG}: {way} is not a table; write it as [{way}]"))
}

fn runtimes(conf: &mut DocumentMut) -> Result<&mut dyn TableLike> {
    let version = match conf.get("version") {
        None => 1,
        Some(item) => {
            item.as_integer().with_context(|| format!("{CONFIG}: version is not a number; write version = 2"))?
        }
    };
    let Some(plugin) = plugin(version) else {
        let mend = "write \"version = 2\" as its first line if it has no other settings, or convert it: containerd config migrate";
        bail!("{CONFIG} has version {version} of the format (1 when it does not say), and 2 or 3 is needed; {mend}");
    };
    let plugins = table(conf.as_table_mut(), "plugins", "plugins")?;
    let cri = table(plugins, plugin, &format!("plugins.\"{plugin}\""))?;
    let containerd = table(cri, "containerd", &format!("plugins.\"{plugin}\".containerd"))?;
    table(containerd, "runtimes", &format!("plugins.\"{plugin}\".containerd.runtimes"))
}

fn default_runtime(conf: &DocumentMut) -> String {
    let plugins = conf.get("plugins").and_then(Item::as_table_like);
    let name = plugins
        .into_iter()
        .flat_map(|plugins| plugins.iter())
        .find_map(|(_, plugin)| Some(plugin.get("containerd")?.get("default_runtime_name")?.as_str()?.to_owned()));
    name.unwrap_or_else(|| "runc".to_owned())
}

fn with_handler(text: &str, program: &str) -> Result<String> {
    let mut conf: DocumentMut = text.parse().with_context(|| format!("{CONFIG} is not valid TOML; mend it first"))?;
    let default = default_runtime(&conf);
    let runtimes = runtimes(&mut conf)?;
    let named = |item: &Item| Some(item.get("options")?.get("BinaryName")?.as_str()?.to_owned());
    if runtimes.get(HANDLER).is_some_and(|there| !named(there).is_some_and(|program| is_ours(&program))) {
        bail!("{CONFIG}: the runtime handler \"{HANDLER}\" is somebody else's; rename it there, then run this again");
    }
    // containerd 1.x takes the file's handlers in place of its own default: without this, runc would be gone.
    if default == "runc" && !runtimes.contains_key("runc") {
        let runc = table(runtimes, "runc", "the handler runc")?;
        runc.insert("runtime_type", value(RUNTIME_TYPE));
    }
    let is_new = !runtimes.contains_key(HANDLER);
    let like = runtimes.get("runc").and_then(|runc| runc.get("options")).and_then(Item::as_table_like);
    let like: Vec<(String, Item)> =
        like.into_iter().flat_map(|options| options.iter()).map(|(key, item)| (key.to_owned(), item.clone())).collect();
    let handler = table(runtimes, HANDLER, "the handler tunjail")?;
    set(handler, "runtime_type", RUNTIME_TYPE);
    for key in ["pod_annotations", "container_annotations"] {
        pass_on(handler, key)?;
    }
    let options = table(handler, "options", "the handler's options")?;
    // SystemdCgroup above all: a node's handlers have to agree on who makes the control groups.
    for (key, item) in like.into_iter().filter(|(key, _)| is_new && key != "BinaryName") {
        options.insert(&key, item);
    }
    set(options, "BinaryName", program);
    let after = conf.to_string();
    Ok(with_line_ends_of(text, after))
}

/// Sets a text, and leaves one that says the same as it is written.
fn set(table: &mut dyn TableLike, key: &str, text: &str) {
    if table.get(key).and_then(Item::as_str) != Some(text) {
        table.insert(key, value(text));
    }
}

fn pass_on(handler: &mut dyn TableLike, key: &str) -> Result<()> {
    match handler.get_mut(key) {
        None => {
            handler.insert(key, value(Array::from_iter(HANDED_ON)));
        }
        Some(item) => {
            let list = item.as_array_mut().with_context(|| format!("{CONFIG}: {key} is not a list"))?;
            for annotation in HANDED_ON {
                if !list.iter().any(|there| there.as_str() == Some(annotation)) {
                    list.push(annotation);
                }
            }
        }
    }
    Ok(())
}

fn without_ours(text: &str) -> Result<String> {
    let names: Vec<String> = read(text)?.ours.into_iter().map(|handler| handler.name).collect();
    if names.is_empty() {
        return Ok(text.to_owned());
    }
    let mut conf: DocumentMut = text.parse().with_context(|| format!("{CONFIG} is not valid TOML; mend it first"))?;
    let runtimes = runtimes(&mut conf)?;
    for name in &names {
        runtimes.remove(name);
    }
    Ok(with_line_ends_of(text, conf.to_string()))
}

/// `edited` with the line ends of `original`: the editor writes its own lines with a line feed alone.
pub(super) fn with_line_ends_of(original: &str, edited: String) -> String {
    let crlf = original.matches("\r\n").count();
    if crlf == 0 || crlf != original.matches('\n').count() {
        return edited;
    }
    edited.replace("\r\n", "\n").replace('\n', "\r\n")
}
