//! CRI-O: the same files of hooks.d as Podman's.
//!
//! CRI-O matches a hook's conditions against the container's annotations and those of its pod, and hands the pod's on
//! into the container's OCI state (`server/container_create.go`, `SpecAddAnnotations`): an annotation `io.tunjail.jail`
//! of the pod is enough, and needs no entry in `allowed_annotations`, which is about CRI-O's own ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::hooks_d::{self, SHARE, When};
use super::{Host, Plan, Target};

const CRIO_CONF: &str = "/etc/crio/crio.conf";

/// The directories that CRI-O reads hooks from: crio.conf(5), and its drop-ins, the last one wins.
pub fn hook_directories(host: &Host) -> Result<Vec<String>> {
    let mut directories = vec![SHARE.to_owned()];
    let mut files = vec![PathBuf::from(CRIO_CONF)];
    files.extend(host.list("/etc/crio/crio.conf.d", &["conf"]));
    for path in files {
        let Some(text) = host.read(&path)? else { continue };
        let conf: toml::Table = text.parse().with_context(|| format!("{} is not valid TOML", path.display()))?;
        let runtime = conf.get("crio").and_then(|crio| crio.get("runtime"));
        let named = runtime.and_then(|runtime| runtime.get("hooks_dir")).and_then(toml::Value::as_array);
        if let Some(named) = named {
            directories = named.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect();
        }
    }
    Ok(directories)
}

/// # Errors
/// When CRI-O reads no directory that can be written.
pub fn install(host: &Host, when: When) -> Result<Plan> {
    let directories = hook_directories(host)?;
    let directory = [SHARE, hooks_d::ETC]
        .into_iter()
        .find(|known| directories.iter().any(|named| named == known) && host.is_writable(Path::new(known)))
        .with_context(|| {
            format!(
                "CRI-O reads hooks from {} and none of these can be written; add \"{}\" to hooks_dir of [crio.runtime] in {CRIO_CONF}",
                directories.join(", "),
                hooks_d::ETC
            )
        })?;
    let notes = vec![
        if host.at(Path::new(directory)).is_dir() {
            "CRI-O watches the directory: no restart is needed".to_owned()
        } else {
            "now restart CRI-O: it watches only directories that were there when it started: systemctl restart crio"
                .to_owned()
        },
        "a pod asks for a jail by the annotation io.tunjail.jail".to_owned(),
    ];
    Ok(Plan { files: hooks_d::wanted(host, directory, when)?, notes })
}

/// Everything that `install` writes, taken out.
pub fn uninstall(host: &Host) -> Result<Plan> {
    let (files, kept) = hooks_d::uninstalled(host, Target::Podman)?;
    let mut plan = Plan { files, notes: Vec::new() };
    if kept {
        plan.notes.push("the hooks stay: Podman reads the same files; `tunjail uninstall podman` removes them".into());
    }
    Ok(plan)
}
