//! Podman: hooks.d, in a directory that it reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::hooks_d::{self, ETC, SHARE, When};
use super::record::Record;
use super::{Host, Plan, Target, Wanted};

/// What an administrator edits.
const CONTAINERS_CONF: &str = "/etc/containers/containers.conf";

/// The directories that Podman reads hooks from, and the file that says so; without one, Podman's own default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookDirectories {
    pub directories: Vec<String>,
    pub said_in: Option<PathBuf>,
}

/// containers.conf(5): each file stands over those before it.
pub fn hook_directories(host: &Host) -> Result<HookDirectories> {
    let mut found = HookDirectories { directories: vec![SHARE.to_owned()], said_in: None };
    let mut files: Vec<PathBuf> = vec!["/usr/share/containers/containers.conf".into(), CONTAINERS_CONF.into()];
    files.extend(host.list("/etc/containers/containers.conf.d", &["conf"]));
    for path in files {
        let Some(text) = host.read(&path)? else { continue };
        let conf: toml::Table = text
            .parse()
            .with_context(|| format!("{} is not valid TOML; Podman does not start with it", path.display()))?;
        let named = conf.get("engine").and_then(|engine| engine.get("hooks_dir")).and_then(toml::Value::as_array);
        let named: Vec<String> =
            named.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect();
        if !named.is_empty() {
            found = HookDirectories { directories: named, said_in: Some(path) };
        }
    }
    Ok(found)
}

/// # Errors
/// When no directory that Podman reads, or could be told to read, can be written.
pub fn install(host: &Host, when: When) -> Result<Plan> {
    let read = hook_directories(host)?;
    let is_read = |directory: &&str| read.directories.iter().any(|named| named == directory);
    let writable = |directory: &&str| host.is_writable(Path::new(directory));
    let mut plan = Plan::default();
    let directory = match [SHARE, ETC].into_iter().filter(writable).find(is_read) {
        Some(directory) => directory,
        None => {
            // hooks_dir replaces the default: what was read before has to be named again.
            let directory = [SHARE, ETC].into_iter().find(writable).with_context(|| {
                format!("neither {SHARE} nor {ETC} can be written; make one writable, or use `tunjail install cdi`")
            })?;
            plan.files.push(naming(host, &read, directory)?);
            directory
        }
    };
    plan.files.extend(hooks_d::wanted(host, directory, when)?);
    plan.notes.push(match when {
        When::Annotation => {
            "Podman reads it at the next container: podman run --annotation io.tunjail.jail=JAIL --network NETWORK ..."
                .to_owned()
        }
        When::Always => "Podman reads it at the next container; from then on every container's address decides \
                         whether it is held"
            .to_owned(),
    });
    Ok(plan)
}

/// containers.conf with `directory` in its hooks_dir.
fn naming(host: &Host, read: &HookDirectories, directory: &str) -> Result<Wanted> {
    let path = match &read.said_in {
        Some(path) if path.starts_with("/etc") => path.clone(),
        _ => PathBuf::from(CONTAINERS_CONF),
    };
    let current = host.read(&path)?;
    let mut directories = read.directories.clone();
    directories.push(directory.to_owned());
    let after = with_hooks_dir(current.as_deref().unwrap_or_default(), &directories)
        .with_context(|| path.display().to_string())?;
    Ok(Wanted { path, clean: current.clone(), current, after: Some(after) })
}

fn with_hooks_dir(text: &str, directories: &[String]) -> Result<String> {
    let mut conf: DocumentMut = text.parse().context("not valid TOML")?;
    let engine = conf.entry("engine").or_insert(Item::Table(Table::new()));
    let Some(engine) = engine.as_table_like_mut() else { bail!("its \"engine\" is not a table; write [engine]") };
    match engine.get_mut("hooks_dir").and_then(Item::as_array_mut) {
        Some(list) => {
            let there: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            for directory in directories.iter().filter(|directory| !there.contains(directory)) {
                list.push(directory.as_str());
            }
        }
        None => {
            let list: Array = directories.iter().map(String::as_str).collect();
            engine.insert("hooks_dir", Item::Value(list.into()));
        }
    }
    Ok(super::containerd::with_line_ends_of(text, conf.to_string()))
}

/// Everything that `install` writes, taken out.
pub fn uninstall(host: &Host) -> Result<Plan> {
    let mut plan = Plan::default();
    let (files, kept) = hooks_d::uninstalled(host, Target::Crio)?;
    plan.files.extend(files);
    if kept {
        plan.notes.push("the hooks stay: CRI-O reads the same files; `tunjail uninstall crio` removes them".to_owned());
        return Ok(plan);
    }
    // A hooks_dir is taken back only where it is known that tunjail wrote it, and then only what it added.
    let Some(record) = Record::read(host, Target::Podman)? else { return Ok(plan) };
    for entry in record.files.iter().filter(|entry| entry.path.extension().is_some_and(|kind| kind == "conf")) {
        let Some(current) = host.read(&entry.path)? else { continue };
        let clean = without_added(&current, entry.before.as_deref(), entry.after.as_deref())
            .with_context(|| entry.path.display().to_string())?;
        let (path, clean) = (entry.path.clone(), Some(clean));
        plan.files.push(Wanted { path, current: Some(current), after: clean.clone(), clean });
    }
    Ok(plan)
}

fn without_added(text: &str, before: Option<&str>, after: Option<&str>) -> Result<String> {
    let named = |text: Option<&str>| -> Option<Vec<String>> {
        let conf: toml::Table = text?.parse().ok()?;
        let list = conf.get("engine")?.get("hooks_dir")?.as_array()?;
        Some(list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect())
    };
    let had = named(before);
    let added: Vec<String> = named(after)
        .unwrap_or_default()
        .into_iter()
        .filter(|name| !had.iter().flatten().any(|old| old == name))
        .collect();
    let mut conf: DocumentMut = text.parse().context("not valid TOML")?;
    let Some(engine) = conf.get_mut("engine").and_then(Item::as_table_like_mut) else { return Ok(text.to_owned()) };
    let Some(list) = engine.get_mut("hooks_dir").and_then(Item::as_array_mut) else { return Ok(text.to_owned()) };
    list.retain(|value| !value.as_str().is_some_and(|name| added.iter().any(|gone| gone == name)));
    if list.is_empty() && had.is_none() {
        engine.remove("hooks_dir");
    }
    Ok(super::containerd::with_line_ends_of(text, conf.to_string()))
}
