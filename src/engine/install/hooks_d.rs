//! hooks.d, which Podman and CRI-O read: two files, one for each stage.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Host, Target, Wanted};

/// What Podman and CRI-O read by themselves.
pub const SHARE: &str = "/usr/share/containers/oci/hooks.d";
/// What they read when their configuration names it.
pub const ETC: &str = "/etc/containers/oci/hooks.d";

/// Where the files of `hooks/` say that the program is.
const PLACE: &str = "\"/usr/local/bin/tunjail\"";

/// Which containers the hooks run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Those that have the annotation `io.tunjail.jail`.
    Annotation,
    /// All.
    Always,
}

/// A file of hooks.d. poststop stands first: hooks are written in this order and taken away in the other one, so that
/// at no moment a container is held whose end nobody hears of.
pub type File = (&'static str, &'static str);

pub const BY_ANNOTATION: [File; 2] = [
    ("tunjail-annotation-poststop.json", include_str!("../../../hooks/tunjail-annotation-poststop.json")),
    ("tunjail-annotation-create.json", include_str!("../../../hooks/tunjail-annotation-create.json")),
];
pub const ALWAYS: [File; 2] = [
    ("tunjail-always-poststop.json", include_str!("../../../hooks/tunjail-always-poststop.json")),
    ("tunjail-always-create.json", include_str!("../../../hooks/tunjail-always-create.json")),
];

/// The hook of a file that is tunjail's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub program: PathBuf,
    /// `create-runtime` or `poststop`.
    pub stage: String,
    /// The condition as it stands there.
    pub when: Value,
    /// The stages at which engines would call it.
    pub stages: Vec<String>,
    args: Value,
}

/// Reads a file of hooks.d. `None`: it is somebody else's.
///
/// # Errors
/// When it is no JSON, which stops every container of the engine.
pub fn read(text: &str) -> Result<Option<Hook>, serde_json::Error> {
    let file: Value = serde_json::from_str(text)?;
    let args: Vec<&str> = file["hook"]["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let stage = args.iter().skip_while(|word| **word != "hook").nth(1).copied();
    let (Some(&"tunjail"), Some(stage @ ("create-runtime" | "poststop")), Some(program)) =
        (args.first(), stage, file["hook"]["path"].as_str())
    else {
        return Ok(None);
    };
    let stages = file["stages"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    Ok(Some(Hook {
        program: program.into(),
        stage: stage.to_owned(),
        when: file["when"].clone(),
        stages: stages.collect(),
        args: file["hook"]["args"].clone(),
    }))
}

/// What has to be in `directory` so that the hooks run `when`; the pair of the other condition goes.
pub fn wanted(host: &Host, directory: &str, when: When) -> Result<Vec<Wanted>> {
    let (write, remove) = match when {
        When::Annotation => (BY_ANNOTATION, ALWAYS),
        When::Always => (ALWAYS, BY_ANNOTATION),
    };
    let mut files = Vec::new();
    for (name, template) in write {
        let path = Path::new(directory).join(name);
        let current = host.read(&path)?;
        let program = Value::from(host.program().to_string_lossy().into_owned()).to_string();
        let after = template.replace(PLACE, &program);
        if let Some(text) = &current {
            demand_same(&path, text, &after)?;
        }
        files.push(Wanted { path, current, after: Some(after), clean: None });
    }
    files.extend(removed(host, directory, &remove)?);
    Ok(files)
}

/// A file of the same name may differ in the program's path alone.
fn demand_same(path: &Path, there: &str, after: &str) -> Result<()> {
    let (Ok(Some(there)), Ok(Some(after))) = (read(there), read(after)) else {
        bail!("{} is there and not tunjail's; move it away", path.display());
    };
    if there.args != after.args || there.when != after.when || there.stages != after.stages {
        bail!("{} was edited by hand; rename it to keep it, or remove it, then run this again", path.display());
    }
    Ok(())
}

/// Those of `files` in `directory` that are tunjail's, to be removed.
fn removed(host: &Host, directory: &str, files: &[File]) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (name, _) in files.iter().rev() {
        let path = Path::new(directory).join(name);
        let Some(text) = host.read(&path)? else { continue };
        if matches!(read(&text), Ok(Some(_))) {
            wanted.push(Wanted { path, current: Some(text), after: None, clean: None });
        }
    }
    Ok(wanted)
}

/// Everything of tunjail's in both directories, to be removed. Not what `other`, which reads the same directories, was
/// installed with; whether there is any is told.
pub fn uninstalled(host: &Host, other: Target) -> Result<(Vec<Wanted>, bool)> {
    let mut files = Vec::new();
    let mut kept = false;
    for directory in [SHARE, ETC] {
        for file in removed(host, directory, &[BY_ANNOTATION, ALWAYS].concat())? {
            if super::is_recorded(host, other, &file.path)? {
                kept = true;
            } else {
                files.push(file);
            }
        }
    }
    Ok((files, kept))
}
