//! An OCI bundle's config.json, with tunjail's hooks in it.
//!
//! Text is inserted and nothing else is touched: every member that tunjail does not own stays as its engine wrote it, byte
//! for byte, in its place.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::libc;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

use crate::model::names::JailName;

/// Seconds that a runtime waits for a hook before it kills it and refuses the container. More than the hook itself
/// waits for anything.
const TIMEOUT: u32 = 10;

/// The largest config.json that is read, in bytes. Engines write some ten KiB; Kubernetes objects end at a few MiB.
pub const MAX_SIZE: u64 = 64 * 1024 * 1024;

const STAGES: [(&str, &str); 2] = [("createRuntime", "create-runtime"), ("poststop", "poststop")];

/// What tunjail's hooks say.
#[derive(Debug, Clone, Copy)]
pub struct Hooks<'a> {
    /// The absolute path of tunjail.
    pub program: &'a Path,
    /// The configuration, absolute, when it is not the usual one.
    pub config: Option<&'a Path>,
    pub jail: Option<&'a JailName>,
}

/// Appends the hooks to a config.json, once, however often it is called. Appended, not prepended: dockerd before 28
/// sets the network up in a hook of its own that has to come first.
///
/// # Errors
/// When the file cannot be read, is no OCI configuration or cannot be replaced; it is then as it was.
pub fn add_hooks(config: &Path, hooks: &Hooks<'_>) -> Result<()> {
    let text = read(config)?;
    let edited = edit(&text, hooks).with_context(|| config.display().to_string())?;
    match edited {
        Some(edited) => replace(config, edited.as_bytes()),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<String> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Non-blocking, or a FIFO in its place would hang the engine.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(
        |error| match error.kind() {
            io::ErrorKind::NotFound if !directory.exists() => anyhow!(
                "{}: no such directory; an engine makes the bundle before it calls the runtime, so look there, or at \
                 --bundle",
                directory.display()
            ),
            io::ErrorKind::NotFound => {
                anyhow!("{}: no such file; a bundle needs one, see `runc spec`, or look at --bundle", path.display())
            }
            _ => anyhow!("{} cannot be opened: {error}; check the path and its permissions", path.display()),
        },
    )?;
    let kind = file.metadata().with_context(|| format!("{} cannot be read", path.display()))?;
    if kind.is_dir() {
        bail!("{} is a directory; a bundle's config.json is a file: remove the directory", path.display());
    }
    if !kind.is_file() {
        bail!("{} is not a regular file; put the bundle's configuration there", path.display());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(kind.len().min(MAX_SIZE)).unwrap_or(0) + 1);
    // What counts is what is read: one byte more than may be is enough to know.
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).with_context(|| format!("{} cannot be read", path.display()))?;
    if bytes.len() as u64 > MAX_SIZE {
        bail!(
            "{} is larger than {} MiB; make it smaller, or write tunjail's hooks into it yourself and use the OCI \
             runtime without tunjail runtime",
            path.display(),
            MAX_SIZE / 1024 / 1024
        );
    }
    String::from_utf8(bytes).map_err(|error| {
        anyhow!(
            "{} is not UTF-8 at byte {}; JSON has to be: correct what wrote it",
            path.display(),
            error.utf8_error().valid_up_to()
        )
    })
}

/// The text with the hooks, or None when they are there.
fn edit(text: &str, ours: &Hooks<'_>) -> Result<Option<String>> {
    let top: Members<'_> = serde_json::from_str(text).map_err(|error| anyhow!("not an OCI configuration: {error}"))?;
    let hooks = top.only("hooks")?.map(|hooks| span(text, hooks)).transpose()?;
    let mut inserts: Vec<(Range<usize>, String)> = Vec::new();
    match hooks {
        Some(at) if &text[at.clone()] != "null" => {
            let lists: Members<'_> = serde_json::from_str(&text[at.clone()])
                .map_err(|error| anyhow!("its \"hooks\" are not what an OCI configuration has: {error}"))?;
            let mut missing = Vec::new();
            for (stage, argument) in STAGES {
                match lists.only(stage)? {
                    None => missing.push(format!("\"{stage}\":[{}]", ours.hook(argument)?)),
                    Some(list) => inserts.extend(append(text, stage, list, argument, ours)?),
                }
            }
            if !missing.is_empty() {
                inserts.push(lists.behind(text, at.start, &missing.join(","))?);
            }
        }
        hooks => {
            let stages = STAGES.map(|(stage, argument)| Ok(format!("\"{stage}\":[{}]", ours.hook(argument)?)));
            let stages = stages.into_iter().collect::<Result<Vec<String>>>()?.join(",");
            inserts.push(match hooks {
                Some(null) => (null, format!("{{{stages}}}")),
                None => {
                    let start = text.find('{').context("it is not a JSON object")?;
                    top.behind(text, start, &format!("\"hooks\":{{{stages}}}"))?
                }
            });
        }
    }
    if inserts.is_empty() {
        return Ok(None);
    }
    inserts.sort_by_key(|(at, _)| at.start);
    let mut edited = String::with_capacity(text.len() + 1024);
    let mut done = 0;
    for (at, insert) in inserts {
        edited.push_str(&text[done..at.start]);
        edited.push_str(&insert);
        done = at.end;
    }
    edited.push_str(&text[done..]);
    Ok(Some(edited))
}

/// What has to be inserted so that the hook stands at the end of its list.
fn append(
    text: &str,
    stage: &str,
    list: &RawValue,
    argument: &str,
    ours: &Hooks<'_>,
) -> Result<Option<(Range<usize>, String)>> {
    let at = span(text, list)?;
    let items: Option<Vec<&RawValue>> =
        serde_json::from_str(list.get()).map_err(|error| anyhow!("its \"hooks.{stage}\" is not a list: {error}"))?;
    let hook = ours.hook(argument)?;
    match items.as_deref() {
        None | Some([]) => Ok(Some((at, format!("[{hook}]")))),
        Some(items) if items.iter().any(|item| ours.is_there(item, argument)) => Ok(None),
        Some([.., last]) => {
            let end = span(text, last)?.end;
            Ok(Some((end..end, format!(",{hook}"))))
        }
    }
}

/// Where a value stands in the text that it was read from.
fn span(text: &str, value: &RawValue) -> Result<Range<usize>> {
    let start = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize);
    let span = start.map(|start| start..start + value.get().len());
    span.filter(|span| text.get(span.clone()) == Some(value.get())).context("its members could not be found again")
}

/// An object's members as they stand in the text, in order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The member of this name. Go's decoder goes by the last of several and takes any case of a name for it, crun's
    /// by the first and exact one: an object that has two is refused.
    fn only(&self, name: &str) -> Result<Option<&'a RawValue>> {
        let mut alike = self.0.iter().filter(|(key, _)| fold(key) == fold(name));
        match (alike.next(), alike.next()) {
            (None, _) => Ok(None),
            (Some((key, value)), None) if key == name => Ok(Some(value)),
            (Some((key, _)), None) => bail!("it has {key:?} where {name:?} is meant; correct the name"),
            (Some(_), Some(_)) => bail!("it has {name:?} more than once; keep one"),
        }
    }

    /// Where a member goes so that it is the last one of the object that begins at `start`.
    fn behind(&self, text: &str, start: usize, member: &str) -> Result<(Range<usize>, String)> {
        let (at, comma) = match self.0.last() {
            Some((_, last)) => (span(text, last)?.end, ","),
            None => (start + 1, ""),
        };
        Ok((at..at, format!("{comma}{member}")))
    }
}

/// As Go's encoding/json compares names: by simple case folding.
fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Object<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object(std::marker::PhantomData))
    }
}

/// A hook that is there already.
#[derive(Deserialize)]
struct Present {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
}

impl Hooks<'_> {
    fn hook(&self, stage: &str) -> Result<String> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).with_context(|| {
                format!("{} is not UTF-8, and JSON can name no other files; move it", path.to_string_lossy())
            })
        };
        let mut args = vec!["tunjail".to_owned()];
        if let Some(config) = self.config {
            args.extend(["--config".to_owned(), text(config)?]);
        }
        args.extend(["hook", stage].map(str::to_owned));
        args.extend(self.jail.iter().flat_map(|jail| ["--jail".to_owned(), jail.to_string()]));
        Ok(json!({ "path": text(self.program)?, "args": args, "timeout": TIMEOUT }).to_string())
    }

    /// Whether a hook, from CDI or a base spec perhaps, says the same: tunjail, this stage, this jail, this configuration.
    fn is_there(&self, hook: &RawValue, stage: &str) -> bool {
        let Ok(present) = serde_json::from_str::<Present>(hook.get()) else { return false };
        let other_config = present.env.iter().flatten().any(|variable| variable.starts_with("TUNJAIL_CONFIG="));
        if other_config || present.path.file_name().is_none_or(|name| name != "tunjail") {
            return false;
        }
        let (mut words, mut config, mut jail) = (Vec::new(), None, None);
        let mut args = present.args.iter().skip(1).map(String::as_str);
        while let Some(word) = args.next() {
            match word.split_once('=') {
                Some(("--config", value)) => config = Some(value),
                Some(("--jail", value)) => jail = Some(value),
                _ if word == "--config" => config = args.next(),
                _ if word == "--jail" => jail = args.next(),
                _ => words.push(word),
            }
        }
        words == ["hook", stage] && config.map(Path::new) == self.config && jail == self.jail.map(JailName::as_str)
    }
}

/// Puts a new file in the place of the old one, in one step, with its mode and owner.
fn replace(path: &Path, text: &[u8]) -> Result<()> {
    if path.symlink_metadata().is_ok_and(|data| data.is_symlink()) {
        bail!(
            "{} is a symbolic link, and what it leads to is not this container's alone; put the file itself into the \
             bundle, or write tunjail's hooks into it",
            path.display()
        );
    }
    let write = || -> io::Result<()> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let old = fs::metadata(path)?;
        let mut draft = tempfile::Builder::new().prefix(".tunjail").tempfile_in(directory)?;
        draft.write_all(text)?;
        give(draft.as_file(), &old)?;
        draft.persist(path)?;
        Ok(())
    };
    write().map_err(|error| {
        anyhow!(
            "{} cannot be replaced: {error}; tunjail runtime adds its hooks there: make the bundle writable, or write \
             the hooks into it yourself",
            path.display()
        )
    })
}

fn give(draft: &File, old: &fs::Metadata) -> io::Result<()> {
    let new = draft.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(draft, Some(old.uid()), Some(old.gid()))?;
    }
    // After the owner: chown(2) takes set-id bits away.
    draft.set_permissions(Permissions::from_mode(old.mode() & 0o7777))
}

#[cfg(test)]
mod tests;
