//! TOML files to a validated [`Config`]: the only place that makes a [`Jail`].
//!
//! The way of a file: `file` opens it and judges who may have written it, `raw` gives it a shape, `jail` checks each
//! jail by itself, and this module checks the jails against each other. Nothing here asks the kernel; whether a jail's
//! subnet collides with a net of the host is judged by the model, which knows the facts.
//!
//! Whatever is wrong becomes one line, `FILE:LINE: what is wrong; how to mend it` ([`ConfigError`]). Only the first
//! fault is told: a hook's error is shown inside an engine's error, where there is room for one line.

mod error;
mod file;
mod jail;
mod raw;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::Spanned;

use self::file::Source;
use crate::model::names::shorten;
use crate::model::policy::{Jail, overlap};

pub use self::error::{ConfigError, Fault, FileFault, JailFault, Role};

/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/tunjail/tunjail.toml";

/// The directory next to the main file whose `*.toml` add jails.
pub const DROP_IN_DIRECTORY: &str = "jails.d";

/// What the administrator wants, checked as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// In the order of the files, and by name within a file. No two share a name, an address, a bridge or a table.
    pub jails: Vec<Jail>,
    /// The OCI runtime under `tunjail runtime`, when one is named.
    pub runtime: Option<Runtime>,
    /// The files that were read: the main file, then those of `jails.d`.
    pub sources: Vec<PathBuf>,
}

/// `[runtime]`. Whether there is such a program is judged where it is used: the hook does not need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Absolute.
    pub path: PathBuf,
    /// FILE:LINE, for a message.
    pub place: String,
}

impl Config {
    /// Reads the main file, which is `explicit` or else [`DEFAULT_PATH`], and the `jails.d/*.toml` next to it.
    ///
    /// A file without jails is valid; a main file that does not exist is not.
    ///
    /// # Errors
    /// When a file cannot be trusted or read, and when its contents, or those of all files together, are no valid
    /// configuration.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        let path = explicit.unwrap_or(Path::new(DEFAULT_PATH));
        let mut sources = vec![file::main_file(path)?];
        if let Some(directory) = path.parent() {
            sources.append(&mut file::drop_ins(&directory.join(DROP_IN_DIRECTORY))?);
        }
        Self::from_sources(sources)
    }

    /// Reads `text` as [`Config::load`] would if it stood in a file at `path`, without touching the file system.
    ///
    /// # Errors
    /// When the text is no valid configuration.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::from_sources(vec![Source { path: path.to_owned(), text: text.to_owned() }])
    }

    /// The main file's `[runtime]` when nothing else may be wanted of the configuration, because it cannot be read as a
    /// whole. The file's own trustworthiness is judged all the same.
    pub fn runtime_alone(explicit: Option<&Path>) -> Option<Runtime> {
        let source = file::main_file(explicit.unwrap_or(Path::new(DEFAULT_PATH))).ok()?;
        runtime(&source, raw::runtime_alone(&source.text)?).ok()
    }

    /// The files that were read, for a message.
    pub fn sources_text(&self) -> String {
        self.sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The jails' names, for a message.
    pub fn names_text(&self) -> String {
        match self.jails.as_slice() {
            [] => "none".to_owned(),
            jails => jails.iter().map(|jail| jail.name.as_str()).collect::<Vec<_>>().join(", "),
        }
    }

    /// The jail of this name.
    pub fn jail(&self, name: &str) -> Option<&Jail> {
        self.jails.iter().find(|jail| jail.name.as_str() == name)
    }

    /// The jail that holds this address; there is at most one. An IPv4-mapped address is taken for the IPv4 one.
    pub fn jail_for(&self, address: IpAddr) -> Option<&Jail> {
        let address = address.to_canonical();
        self.jails.iter().find(|jail| jail.holds(address))
    }

    fn from_sources(sources: Vec<Source>) -> Result<Self, ConfigError> {
        let mut placed = Vec::new();
        let mut named = None;
        for (file, source) in sources.iter().enumerate() {
            let in_file = |at: At| at.in_file(source);
            let raw = raw::file(&source.text).map_err(in_file)?;
            if let Some(path) = raw.runtime {
                if file > 0 {
                    let fault = Fault::RuntimeMisplaced(sources[0].path.clone());
                    return Err(in_file(At { offset: path.span().start, fault }));
                }
                named = Some(runtime(source, path).map_err(in_file)?);
            }
            for (heading, name, raw) in raw.jails {
                placed.push(Placed { file, checked: jail::check(heading, name, raw).map_err(in_file)? });
            }
        }
        compare(&sources, &placed)?;
        let mut jails: Vec<Jail> = placed.into_iter().map(|placed| placed.checked.jail).collect();
        share(&mut jails);
        Ok(Self { jails, runtime: named, sources: sources.into_iter().map(|source| source.path).collect() })
    }
}

/// Tells each jail whom it shares an exit with.
fn share(jails: &mut [Jail]) {
    for index in 0..jails.len() {
        let jail = &jails[index];
        let others = jails.iter().filter(|other| other.name != jail.name);
        let mut sharing: Vec<IpNet> =
            others.filter(|other| other.shares_an_exit(jail)).flat_map(|other| other.subnets.clone()).collect();
        sharing.sort();
        jails[index].sharing = sharing;
    }
}

fn runtime(source: &Source, path: Spanned<String>) -> Result<Runtime, At> {
    let offset = path.span().start;
    let path = PathBuf::from(path.into_inner());
    if !path.is_absolute() {
        return Err(At { offset, fault: Fault::RuntimeNotAbsolute(shorten(&path.to_string_lossy())) });
    }
    Ok(Runtime { path, place: format!("{}:{}", error::show(&source.path), source.line(offset)) })
}

/// A fault and the byte of the text where it was found.
#[derive(Debug)]
struct At {
    offset: usize,
    fault: Fault,
}

impl At {
    fn in_file(self, source: &Source) -> ConfigError {
        ConfigError::Line { path: source.path.clone(), line: source.line(self.offset), fault: self.fault }
    }
}

/// A jail that is right by itself, and the bytes where its parts stand.
#[derive(Debug)]
struct Checked {
    jail: Jail,
    heading: usize,
    /// One for each subnet.
    subnets_at: Vec<usize>,
    /// The heading when there is no such line; so is `table_at`.
    bridge_at: usize,
    table_at: usize,
}

#[derive(Debug)]
struct Placed {
    file: usize,
    checked: Checked,
}

/// A byte in one of the files; ordered as they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: usize,
    offset: usize,
}

/// Something of a jail's that no other jail may have.
struct Claim<'a, T> {
    what: T,
    place: Place,
    jail: &'a Jail,
}

/// Refuses jails that are at odds with each other.
fn compare(sources: &[Source], placed: &[Placed]) -> Result<(), ConfigError> {
    let shown = |place: Place| {
        let source = &sources[place.file];
        format!("{}:{}", error::show(&source.path), source.line(place.offset))
    };
    let refuse = |place: Place, jail: &Jail, fault| {
        let fault = Fault::Jail { jail: jail.name.clone(), fault: Box::new(fault) };
        Err(At { offset: place.offset, fault }.in_file(&sources[place.file]))
    };

    let names = claims(placed, |checked| [(checked.jail.name.as_str(), checked.heading)]);
    if let Some((first, second)) = clash(names, |one, other| one == other) {
        return refuse(second.place, second.jail, JailFault::DefinedTwice(shown(first.place)));
    }
    // Of nets in order, one that overlaps any other overlaps its neighbour: a net is followed by those within it.
    let subnets =
        claims(placed, |checked| checked.jail.subnets.iter().copied().zip(checked.subnets_at.iter().copied()));
    if let Some((first, second)) = clash(subnets, overlap) {
        return refuse(second.place, second.jail, overlap_fault(&first, &second, shown));
    }
    let bridges = claims(placed, |checked| checked.jail.bridge.as_ref().map(|bridge| (bridge, checked.bridge_at)));
    if let Some((first, second)) = clash(bridges, |one, other| one == other) {
        let jail = first.jail.name.clone();
        let fault = JailFault::BridgeTaken { bridge: second.what.clone(), jail, place: shown(first.place) };
        return refuse(second.place, second.jail, fault);
    }
    let tables = claims(placed, |checked| checked.jail.table.map(|table| (table, checked.table_at)));
    if let Some((first, second)) = clash(tables, |one, other| one == other) {
        let jail = first.jail.name.clone();
        let fault = JailFault::TableTaken { number: second.what, jail, place: shown(first.place) };
        return refuse(second.place, second.jail, fault);
    }
    Ok(())
}

fn overlap_fault(first: &Claim<IpNet>, second: &Claim<IpNet>, shown: impl Fn(Place) -> String) -> JailFault {
    let (subnet, other) = (second.what, first.what);
    if first.jail.name == second.jail.name {
        JailFault::OverlapsItself { subnet, other }
    } else {
        JailFault::OverlapsJail { subnet, other, jail: first.jail.name.clone(), place: shown(first.place) }
    }
}

fn claims<'a, T, I: IntoIterator<Item = (T, usize)>>(
    placed: &'a [Placed],
    of: impl Fn(&'a Checked) -> I,
) -> Vec<Claim<'a, T>> {
    placed
        .iter()
        .flat_map(|Placed { file, checked }| {
            of(checked).into_iter().map(|(what, offset)| Claim {
                what,
                place: Place { file: *file, offset },
                jail: &checked.jail,
            })
        })
        .collect()
}

/// The first two neighbours, in the order of what is claimed, that are at odds; the one that was read first leads.
fn clash<T: Ord>(
    mut claims: Vec<Claim<'_, T>>,
    at_odds: impl Fn(&T, &T) -> bool,
) -> Option<(Claim<'_, T>, Claim<'_, T>)> {
    claims.sort_by(|one, other| one.what.cmp(&other.what));
    let index = claims.windows(2).position(|pair| at_odds(&pair[0].what, &pair[1].what))?;
    let other = claims.swap_remove(index + 1);
    let one = claims.swap_remove(index);
    Some(if one.place <= other.place { (one, other) } else { (other, one) })
}
