//! Keeps the walls that somebody raised standing, for as long as it runs: it follows the exits as they come and go, and
//! puts back what others wipe.
//!
//! It looks whenever the kernel tells of a change, and sometimes without. Looking changes nothing and takes no lock, so
//! the changes that it makes itself cost one more look. Nothing depends on it: walls hold without it, and it leaves them
//! as they are when it ends.

mod memory;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use self::memory::Memory;
use super::Kernel;
use super::wall::{self, Survey};
use crate::config::Config;
use crate::kernel::signals::{Signals, Told};
use crate::kernel::watch::{Watch, Woken};
use crate::model::names::{IfName, JailName};
use crate::model::plan::Change;
use crate::model::policy::Jail;
use crate::store::Store;

/// How long it waits at most before it looks, should a change not have been told.
const IDLE: Duration = Duration::from_secs(30);
/// How often it tries again what failed while nothing changes.
const RETRY: Duration = Duration::from_secs(3);
/// It looks for a fifth of the time at most, however much happens, and after this time at the latest: a new flow has to
/// find the next exit within 100 ms.
const REST: Duration = Duration::from_millis(40);
/// How often it tries at once.
const TRIES: usize = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step was taken to make a jail's wall stand.
    Did {
        jail: &'a JailName,
        step: &'a Change,
    },
    /// New connections of a jail leave another way now, or not at all: IPv4's, IPv6's.
    Leaves {
        jail: &'a JailName,
        by: [Option<&'a IfName>; 2],
    },
    /// A jail's wall does not stand and could not be made to.
    Failed {
        jail: Option<&'a JailName>,
        why: &'a str,
    },
    /// It stands again.
    Recovered {
        jail: Option<&'a JailName>,
    },
    /// SIGHUP: the configuration is being read.
    Reloading,
    /// Another configuration is in force.
    Reloaded {
        sources: &'a str,
    },
    /// It is no configuration; the one before stays in force.
    NotReloaded {
        why: &'a str,
    },
    /// A wall that is in no configuration file any more is left as it is.
    Unconfigured {
        jail: &'a JailName,
    },
    /// All walls that stand were looked at for the first time.
    Ready,
    Ending,
}

/// Who is told.
pub trait Audience {
    fn hear(&mut self, event: &Event<'_>);
    /// The state of all walls in a few words, whenever it has changed.
    fn state(&mut self, state: &str);
    /// It is alive. To be called at least so often.
    fn alive(&mut self) -> Option<Duration>;
}

/// Runs until a signal ends it.
pub fn watch(file: Option<&Path>, audience: &mut dyn Audience) -> Result<()> {
    let signals = Signals::catch()?;
    // Listening comes before looking: what changes in between is told.
    let watch = Watch::walls()?;
    let config = Config::load(file)?;
    let mut keeper = Keeper {
        file: file.map(Path::to_owned),
        config,
        audience,
        jails: BTreeMap::new(),
        bad_config: String::new(),
        trouble: String::new(),
        state: None,
    };
    keeper.look();
    keeper.audience.hear(&Event::Ready);
    loop {
        match watch.wait(signals.as_fd(), keeper.pause())? {
            Woken::Called => match signals.next()? {
                Some(Told::End) => {
                    keeper.audience.hear(&Event::Ending);
                    return Ok(());
                }
                Some(Told::Reload) => keeper.reload(),
                None => {}
            },
            Woken::Changed | Woken::Late => {}
        }
        let begun = Instant::now();
        keeper.look();
        std::thread::sleep((begun.elapsed() * 4).min(REST));
    }
}

struct Keeper<'a> {
    file: Option<PathBuf>,
    config: Config,
    audience: &'a mut dyn Audience,
    /// Of each jail whose wall stands or should.
    jails: BTreeMap<JailName, Memory>,
    /// What was said of a configuration that cannot be read.
    bad_config: String,
    /// What was said of a failure that is no jail's.
    trouble: String,
    state: Option<String>,
}

impl Keeper<'_> {
    /// How long to wait for the next change.
    fn pause(&mut self) -> Duration {
        let is_troubled = !self.trouble.is_empty() || self.jails.values().any(|jail| jail.trouble.is_some());
        let pause = if is_troubled { RETRY } else { IDLE };
        self.audience.alive().map_or(pause, |often| pause.min(often))
    }

    /// Looks at every wall, and mends those that do not stand.
    fn look(&mut self) {
        match self.look_at_all() {
            Ok(()) if self.trouble.is_empty() => {}
            Ok(()) => {
                self.trouble.clear();
                self.audience.hear(&Event::Recovered { jail: None });
            }
            Err(error) => {
                let why = one_line(&error);
                if self.trouble != why {
                    self.audience.hear(&Event::Failed { jail: None, why: &why });
                    self.trouble = why;
                }
            }
        }
        let state = self.describe();
        if self.state.as_ref() != Some(&state) {
            self.audience.state(&state);
            self.state = Some(state);
        }
    }

    fn look_at_all(&mut self) -> Result<()> {
        // Anew each time: what a connection remembers of names and indexes is for one look.
        let mut host = Kernel::open()?;
        let store = Store::open();
        let standing = store.jails()?;
        self.jails.retain(|name, _| standing.contains(name));
        let mut fallen = self.fallen(&mut host, &store, &standing);
        if !fallen.is_empty() && self.adopt() {
            // What the file says now was perhaps made to stand by somebody else already.
            fallen = self.fallen(&mut host, &store, &standing);
        }
        for name in fallen {
            self.mend(&mut host, &name);
        }
        Ok(())
    }

    /// The jails whose walls somebody raised and that do not stand.
    fn fallen(&mut self, host: &mut Kernel, store: &Store, standing: &[JailName]) -> Vec<JailName> {
        let mut fallen = Vec::new();
        for name in standing {
            let memory = self.jails.entry(name.clone()).or_default();
            let Some(jail) = self.config.jail(name) else {
                // The file may have it again.
                if store.wall(name).is_ok_and(|wall| wall.is_some()) {
                    fallen.push(name.clone());
                }
                continue;
            };
            match look_at(host, store, jail) {
                Ok(Some(survey)) if survey.stands() => {
                    if !memory.is_in_a_quarrel() {
                        memory.rests(name, self.audience);
                    }
                    memory.leaves(name, &survey, self.audience);
                }
                // What could not be mended is not tried again as long as it is the same.
                Ok(Some(survey)) if memory.is_hopeless(&survey) => {}
                Ok(Some(_)) => fallen.push(name.clone()),
                Ok(None) => memory.rests(name, self.audience),
                Err(error) => memory.fails(name, &error, None, self.audience),
            }
        }
        fallen
    }

    /// Makes one wall stand.
    fn mend(&mut self, host: &mut Kernel, name: &JailName) {
        let memory = self.jails.entry(name.clone()).or_default();
        let Some(jail) = self.config.jail(name) else {
            if !std::mem::replace(&mut memory.said_unconfigured, true) {
                self.audience.hear(&Event::Unconfigured { jail: name });
            }
            return;
        };
        memory.said_unconfigured = false;
        if memory.is_to_wait() {
            return;
        }
        let mended = mend(host, jail);
        // Read without the lock: another tunjail may have been quicker with the next change, which is told then.
        let left = look_at(host, &Store::open(), jail).ok().flatten();
        match mended {
            Ok(steps) => {
                for step in &steps {
                    self.audience.hear(&Event::Did { jail: name, step });
                }
                memory.was_mended(name, &steps, self.audience);
                if let Some(survey) = left.filter(Survey::stands) {
                    memory.leaves(name, &survey, self.audience);
                }
            }
            Err(error) => memory.fails(name, &error, left, self.audience),
        }
    }

    /// SIGHUP: the file is read, and everything looked at.
    fn reload(&mut self) {
        self.audience.hear(&Event::Reloading);
        match Config::load(self.file.as_deref()) {
            Ok(config) => {
                self.config = config;
                self.bad_config.clear();
                for memory in self.jails.values_mut() {
                    memory.said_unconfigured = false;
                }
                self.audience.hear(&Event::Reloaded { sources: &self.config.sources_text() });
            }
            Err(error) => {
                self.bad_config = one_line(&error.into());
                self.audience.hear(&Event::NotReloaded { why: &self.bad_config });
            }
        }
    }

    /// Before anything is mended: `up` and the hooks read the file each time, and a wall that they raised by an edited
    /// one is not to be turned back. Returns whether it says anything new.
    fn adopt(&mut self) -> bool {
        match Config::load(self.file.as_deref()) {
            Ok(config) => {
                self.bad_config.clear();
                if config == self.config {
                    return false;
                }
                self.config = config;
                self.audience.hear(&Event::Reloaded { sources: &self.config.sources_text() });
                true
            }
            Err(error) => {
                let why = one_line(&error.into());
                if self.bad_config != why {
                    self.audience.hear(&Event::NotReloaded { why: &why });
                    self.bad_config = why;
                }
                false
            }
        }
    }

    fn describe(&self) -> String {
        let jails: Vec<String> = self.jails.iter().filter_map(|(name, memory)| memory.describe(name)).collect();
        if jails.is_empty() { "no wall stands".to_owned() } else { jails.join("; ") }
    }
}

/// Whoever wipes one thing may be about to wipe the next, and what was just put back is gone when it is read again.
fn mend(host: &mut Kernel, jail: &Jail) -> Result<Vec<Change>> {
    let mut tries = 0;
    loop {
        tries += 1;
        let store = Store::open().lock()?;
        let steps = wall::follow(host, &store, jail);
        store.tidy()?;
        if steps.is_ok() || tries == TRIES {
            return steps;
        }
        std::thread::sleep(BETWEEN_TRIES);
    }
}

/// `None`: nobody raised it.
fn look_at(host: &mut Kernel, store: &Store, jail: &Jail) -> Result<Option<Survey>> {
    if store.wall(&jail.name)?.is_none() {
        return Ok(None);
    }
    let survey = wall::survey(host, store, jail)?;
    Ok(survey.record.is_some().then_some(survey))
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}
