//! A runtime's command line, read as runc and crun both read it, or not at all.
//!
//! The two differ: runc takes `-bundle` for `--bundle` (Go's flags) and moves flags in front of the container's id
//! (urfave/cli); crun takes `--bun` for it and `-b/path` (argp). A line that makes a container and could mean different
//! bundles to them, or holds a flag of which tunjail cannot know whether the next word is its value, is
//! [`Action::Unclear`]: nothing is made then, rather than a container without hooks. Engines write plain lines, which are
//! all clear.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a command line says that concerns tunjail.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub action: Action,
    pub log: Log,
    /// Where the runtime keeps its containers' states.
    pub root: Option<PathBuf>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Create(Bundle),
    Run(Bundle),
    Restore(Bundle),
    Start {
        id: OsString,
    },
    Delete {
        id: OsString,
        force: bool,
    },
    /// Nothing that makes or starts a container.
    Other,
    /// It may make or start a container, and tunjail cannot be sure which bundle or container it is about.
    Unclear {
        why: String,
    },
}

/// The bundle of a container that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundle {
    /// As it was said; `.` when it was not.
    pub directory: PathBuf,
    /// The file that the runtime will read: the bundle's config.json unless another was named.
    pub config: PathBuf,
    pub id: Option<OsString>,
}

/// Where the engine looks for the reason when the runtime fails.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub file: Option<PathBuf>,
    pub json: bool,
}

/// Global flags that take a value: runc's and crun's.
const GLOBAL_VALUES: [&str; 7] = ["root", "log", "log-format", "log-level", "criu", "cgroup-manager", "rootless"];
const GLOBAL_SWITCHES: [&str; 2] = ["debug", "systemd-cgroup"];
/// The runtime shows something and ends.
const ENDING: [&str; 7] = ["help", "h", "?", "usage", "version", "v", "V"];

/// Flags of `create`, `run` and `restore` with a value.
const VALUES: [&str; 13] = [
    "bundle",
    "config",
    "console-socket",
    "pidfd-socket",
    "pid-file",
    "preserve-fds",
    "image-path",
    "work-path",
    "manage-cgroups-mode",
    // crun declares it a switch, and takes the next word all the same.
    "network-lock",
    "empty-ns",
    "lsm-profile",
    "lsm-mount-context",
];
const SWITCHES: [&str; 14] = [
    "detach",
    "keep",
    "no-subreaper",
    "no-pivot",
    "no-new-keyring",
    "no-mount-fallback",
    "tcp-established",
    "tcp-close",
    "ext-unix-sk",
    "shell-job",
    "file-locks",
    "auto-dedup",
    "lazy-pages",
    "force",
];

/// Reads what stands behind the runtime's name.
pub fn read(args: &[OsString]) -> Said {
    let globals = Globals::read(args);
    Said {
        action: globals.action(args),
        log: Log {
            file: globals.log.and_then(log_file),
            json: globals.log_format.is_some_and(|format| format == "json"),
        },
        root: globals.root.map(PathBuf::from),
    }
}

/// The log of a line that begins with words which are no runtime's.
pub fn log_behind(args: &[OsString]) -> Log {
    (0..args.len()).map(|at| read(&args[at..]).log).find(|log| log.file.is_some()).unwrap_or_default()
}

/// The file behind crun's `[file:]PATH`; its journal and syslog, and runc's standard streams, are no files of ours.
fn log_file(log: &OsStr) -> Option<PathBuf> {
    let bytes = log.as_bytes();
    if bytes.is_empty() || bytes.starts_with(b"journald:") || bytes.starts_with(b"syslog:") {
        return None;
    }
    Some(Path::new(OsStr::from_bytes(bytes.strip_prefix(b"file:").unwrap_or(bytes))).to_owned())
}

/// A word that may be a flag.
enum Word<'a> {
    /// `--`: no flags behind it.
    End,
    Flag {
        /// Of `-name`, `--name` or either with `=value`.
        name: &'a OsStr,
        long: bool,
        value: Option<&'a OsStr>,
    },
    Plain,
}

fn word(word: &OsStr) -> Word<'_> {
    let bytes = word.as_bytes();
    let (body, long) = match bytes {
        b"--" => return Word::End,
        [b'-', b'-', body @ ..] => (body, true),
        [b'-', body @ ..] if !body.is_empty() => (body, false),
        _ => return Word::Plain,
    };
    let (name, value) = match body.iter().position(|byte| *byte == b'=') {
        Some(at) => (&body[..at], Some(OsStr::from_bytes(&body[at + 1..]))),
        None => (body, None),
    };
    Word::Flag { name: OsStr::from_bytes(name), long, value }
}

fn is_one(name: &OsStr, of: &[&str]) -> bool {
    of.iter().any(|known| name == *known)
}

/// What stands in front of the command.
#[derive(Default)]
struct Globals<'a> {
    /// Where the command may be: more than one place when there is a flag that tunjail does not know.
    commands: Vec<usize>,
    unknown: Option<&'a OsStr>,
    /// Help or the version is shown, and nothing is done.
    ends: bool,
    log: Option<&'a OsStr>,
    log_format: Option<&'a OsStr>,
    root: Option<&'a OsStr>,
}

impl<'a> Globals<'a> {
    fn read(args: &'a [OsString]) -> Self {
        let mut globals = Self::default();
        let mut ends = Ends::default();
        // Every place that some reading comes to.
        let mut reached = vec![false; args.len() + 3];
        reached[0] = true;
        for at in 0..args.len() {
            if !reached[at] {
                continue;
            }
            match word(&args[at]) {
                Word::Plain => globals.commands.push(at),
                Word::End => globals.commands.extend((at + 1 < args.len()).then_some(at + 1)),
                Word::Flag { name, value, .. } if is_one(name, &GLOBAL_VALUES) => {
                    let next = args.get(at + 1).map(OsString::as_os_str);
                    globals.keep(name, value.or(next));
                    reached[if value.is_some() { at + 1 } else { at + 2 }] = true;
                    if value.is_none() && next.is_some_and(|next| next.as_bytes().starts_with(b"-")) {
                        // A value, as it seems; but not every flag library takes it for one.
                        globals.unknown.get_or_insert(&args[at]);
                        reached[at + 1] = true;
                    }
                }
                Word::Flag { name, value, .. } => {
                    reached[at + 1] = true;
                    let known = is_one(name, &GLOBAL_SWITCHES) || ends.note(name, value);
                    if !known && value.is_none() {
                        globals.unknown.get_or_insert(&args[at]);
                        reached[at + 2] = true;
                    }
                }
            }
        }
        globals.ends = ends.certain();
        globals
    }

    fn keep(&mut self, name: &OsStr, value: Option<&'a OsStr>) {
        match name.as_bytes() {
            b"log" => self.log = value,
            b"log-format" => self.log_format = value,
            b"root" => self.root = value,
            _ => {}
        }
    }

    fn action(&self, args: &[OsString]) -> Action {
        let name = |at: &usize| args[*at].to_str();
        let matters = |at: &usize| matches!(name(at), Some("create" | "run" | "restore" | "start"));
        if let (Some(unknown), true) = (self.unknown, self.commands.iter().any(matters)) {
            return unclear_flag(unknown);
        }
        let Some(command) = self.commands.first().filter(|_| !self.ends) else { return Action::Other };
        let rest = &args[command + 1..];
        let made = |action: fn(Bundle) -> Action| match operands(rest, true).and_then(Operands::bundle) {
            Ok(Some(bundle)) => action(bundle),
            Ok(None) => Action::Other,
            Err(unclear) => unclear,
        };
        match name(command) {
            Some("create") => made(Action::Create),
            Some("run") => made(Action::Run),
            Some("restore") => made(Action::Restore),
            Some("start") => match operands(rest, false).and_then(Operands::alone) {
                Ok(Some(id)) => Action::Start { id },
                Ok(None) => Action::Other,
                Err(unclear) => unclear,
            },
            // A container must always be possible to remove: what is not understood here is the runtime's business.
            Some("delete") => match operands(rest, false).map(Operands::id) {
                Ok(Some((id, force))) => Action::Delete { id, force },
                _ => Action::Other,
            },
            _ => Action::Other,
        }
    }
}

/// Flags that end a runtime, unless Go's `--help=false` takes them back.
#[derive(Default)]
struct Ends {
    said: bool,
    doubtful: bool,
}

impl Ends {
    /// Whether it is such a flag.
    fn note(&mut self, name: &OsStr, value: Option<&OsStr>) -> bool {
        let ending = is_one(name, &ENDING);
        self.said |= ending;
        self.doubtful |= ending && value.is_some();
        ending
    }

    fn certain(&self) -> bool {
        self.said && !self.doubtful
    }
}

/// What stands behind the command.
#[derive(Default)]
struct Operands<'a> {
    words: Vec<&'a OsStr>,
    bundle: Option<&'a OsStr>,
    config: Option<&'a OsStr>,
    force: bool,
    ends: bool,
    /// Any flag.
    flag: Option<&'a OsStr>,
}

/// Reads what stands behind a command. Flags may stand behind the id: runc takes them there, crun refuses.
fn operands(args: &[OsString], makes: bool) -> Result<Operands<'_>, Action> {
    let mut read = Operands::default();
    let mut ends = Ends::default();
    let mut rest = args.iter().map(OsString::as_os_str);
    while let Some(arg) = rest.next() {
        let (name, long, value) = match word(arg) {
            Word::Plain => {
                read.words.push(arg);
                continue;
            }
            Word::End => {
                // runc takes flags that it does not know in front of a `--` for ids: `run --usage --` runs.
                ends.doubtful = true;
                if read.config.is_some() {
                    // runc before 1.5 has no such flag.
                    return Err(unclear("--config stands in front of a --"));
                }
                read.words.extend(rest);
                break;
            }
            Word::Flag { name, long, value } => (name, long, value),
        };
        read.flag.get_or_insert(arg);
        let name = match (name.as_bytes(), long, value) {
            (_, true, _) => name,
            // `-b=X` is X to runc and =X to crun; longer words are one flag to runc and many to crun.
            (b"b", false, None) if makes => OsStr::new("bundle"),
            (b"f", false, None) if makes => OsStr::new("config"),
            (b"f", false, None) => OsStr::new("force"),
            (b"d", false, None) => OsStr::new("detach"),
            (b"h" | b"?", false, None) => name,
            _ => return Err(unclear_flag(arg)),
        };
        if is_one(name, &VALUES) || is_one(name, &GLOBAL_VALUES) {
            let value = match value {
                Some(value) => value,
                // A word with a dash may be sorted away from its flag by runc's flag library.
                None => match rest.next().map(|next| (next, word(next))) {
                    Some((next, Word::Plain)) if next != "-" => next,
                    _ => return Err(unclear(&format!("the value of {} is missing or begins with a dash", show(arg)))),
                },
            };
            read.keep(name, value)?;
        } else if is_one(name, &SWITCHES) || is_one(name, &GLOBAL_SWITCHES) {
            read.force |= name == "force" && value.is_none_or(|value| value != "false");
        } else if !ends.note(name, value) && !is_harmless(name, value) {
            return Err(unclear_flag(arg));
        }
    }
    read.ends = ends.certain();
    Ok(read)
}

/// An unknown flag with its value in the same word is one word, and nothing to tunjail unless crun could take it for
/// short for a flag that tunjail goes by.
fn is_harmless(name: &OsStr, value: Option<&OsStr>) -> bool {
    let short = |flag: &str| flag.as_bytes().starts_with(name.as_bytes());
    value.is_some() && !short("bundle") && !short("config")
}

impl<'a> Operands<'a> {
    fn keep(&mut self, name: &OsStr, value: &'a OsStr) -> Result<(), Action> {
        let slot = match name.as_bytes() {
            b"bundle" => &mut self.bundle,
            b"config" => &mut self.config,
            _ => return Ok(()),
        };
        match slot.replace(value) {
            Some(before) if before != value => Err(unclear(&format!("--{} is said twice", show(name)))),
            _ => Ok(()),
        }
    }

    /// The only word; no flag but those that end it, and neither runtime's `start` has any.
    fn alone(self) -> Result<Option<OsString>, Action> {
        match (self.flag, self.words.first()) {
            _ if self.ends => Ok(None),
            (Some(flag), _) => Err(unclear_flag(flag)),
            (None, id) => Ok(id.map(|id| (*id).to_owned())),
        }
    }

    fn id(self) -> Option<(OsString, bool)> {
        let id = self.words.first().filter(|_| !self.ends)?;
        Some(((*id).to_owned(), self.force))
    }

    fn bundle(self) -> Result<Option<Bundle>, Action> {
        if self.ends {
            return Ok(None);
        }
        let directory = PathBuf::from(self.bundle.filter(|bundle| !bundle.is_empty()).unwrap_or(OsStr::new(".")));
        let config = match self.config.map(Path::new) {
            None => directory.join("config.json"),
            Some(path) if path.is_absolute() => path.to_owned(),
            // `config.json` is the bundle's to crun, and lies where it was called to runc from 1.5 on.
            Some(path) => return Err(unclear(&format!("--config {} is not absolute", show(path.as_os_str())))),
        };
        Ok(Some(Bundle { directory, config, id: self.words.first().map(|id| (*id).to_owned()) }))
    }
}

fn unclear_flag(flag: &OsStr) -> Action {
    unclear(&format!("tunjail does not know the flag {}", show(flag)))
}

fn unclear(what: &str) -> Action {
    let why = format!(
        "{what}, so it is not sure which bundle the OCI runtime would take; leave the flag out or write it as \
         --flag=value, or wire this engine by hooks.d or CDI instead of tunjail runtime"
    );
    Action::Unclear { why }
}

fn show(text: &OsStr) -> String {
    crate::model::names::shorten(&text.to_string_lossy())
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
