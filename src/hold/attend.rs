//! The helper that waits in the background for a late container's address, has it judged, and ends.
//!
//! It ends when the container was started and is a member or nobody's, with the container, or after `LIFE`. Whatever
//! ends it earlier leaves the lock closed.

use std::ffi::OsStr;
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Kernel;
use super::late::{self, MAY_HAVE_LIED, PATIENCE_WITH_A_REFUSAL};
use super::leave::{forget_late, walls_go_with_their_last_members};
use super::sight::Sight;
use crate::config::Config;
use crate::journal;
use crate::kernel::netns::Netns;
use crate::kernel::process::{Process, give_back_code, take_its_time};
use crate::kernel::watch::{Watch, Woken};
use crate::model::facts::NetnsFacts;
use crate::model::names::ContainerId;
use crate::store::{LateRecord, Store, Verdict};

/// How long an address may take. Engines take seconds at the most.
const LIFE: Duration = Duration::from_secs(120);
/// How often to look whether the container was started: nobody tells.
const GLANCE: Duration = Duration::from_millis(25);
/// The same while there is nothing that its process could have changed.
const IDLE_GLANCE: Duration = Duration::from_millis(200);
/// After a refusal that may be work half done: soon, then ever later.
const FIRST_RETRY: Duration = Duration::from_millis(4);

/// Starts the helper, detached: in a session of its own, with no descriptor of the engine's.
pub(super) fn start(file: Option<&Path>, id: &ContainerId, process: Process) -> Result<Process> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tunjail");
    if let Some(file) = file {
        command.arg("--config").arg(std::path::absolute(file).context("the configuration's path")?);
    }
    command.args(["attend", id.as_str(), &process.pid.to_string(), &process.start_time.to_string()].map(OsStr::new));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .context("starting the helper that waits for the container's address")?;
    let pid = i32::try_from(child.id()).context("the helper's pid")?;
    Process::living(pid).context("the helper that waits for the container's address ended at once")
}

/// What the helper does, from its first instruction on.
pub fn attend(file: Option<&Path>, id: &ContainerId, process: Process) -> Result<()> {
    detach();
    take_its_time();
    let (mut id, mut process) = (id.clone(), process);
    while let Some((next, other)) = attend_one(file, &id, process)? {
        (id, process) = (next, other);
    }
    Ok(())
}

/// Leaves the engine's session, and closes what the engine had open: a runtime waits for the end of its hooks' pipes.
fn detach() {
    // Fails only for the leader of a process group, which nobody has made of it.
    let _ = nix::unistd::setsid();
    // It was started as /proc/self/exe, and would be "exe" in every list of processes.
    let _ = rustix::thread::set_name(c"tunjail");
    // SAFETY: this process has opened nothing yet, so no descriptor beyond the standard ones is anybody's here.
    unsafe { nix::libc::close_range(3, nix::libc::c_uint::MAX, 0) };
}

/// Attends one container to its end. Returns another one of its namespace that still waits.
fn attend_one(file: Option<&Path>, id: &ContainerId, process: Process) -> Result<Option<(ContainerId, Process)>> {
    let Ok(died) = process.descriptor() else { return its_end(process) };
    // Listening comes before looking: what changes in between is told.
    let Ok(netns) = Netns::of_process(process.pid) else { return its_end(process) };
    let watch = netns.run(Watch::open)?;
    let Ok(sight) = Sight::of(process) else { return its_end(process) };
    let Some(sight) = sight else { return Ok(None) };
    let mut round = Round {
        file,
        id,
        sight,
        judged: None,
        refused: None,
        reported: String::new(),
        at_rest: true,
        has_started: false,
    };
    let deadline = Instant::now() + LIFE;
    loop {
        let begun = Instant::now();
        let pause = match round.turn(Instant::now() > deadline) {
            Ok(Next::Over) => return Ok(None),
            Ok(Next::Wait(pause)) => pause,
            Err(error) if process.is_alive() && Instant::now() < deadline => {
                round.report(&format!("{error:#}"));
                FIRST_RETRY * 64
            }
            Err(error) if process.is_alive() => return Err(error),
            Err(_) => return its_end(process),
        };
        if mem::take(&mut round.at_rest) {
            // A convenience: it waits as well with its code in memory.
            let _ = give_back_code();
        }
        let worked = begun.elapsed();
        match watch.wait(died.as_fd(), pause)? {
            Woken::Called => return its_end(process),
            // Only a started container can change its network without an end: it gets a tenth of the time.
            Woken::Changed if round.has_started => std::thread::sleep((worked * 9).min(IDLE_GLANCE)),
            Woken::Changed | Woken::Late => {}
        }
    }
}

enum Next {
    Wait(Duration),
    Over,
}

struct Round<'a> {
    file: Option<&'a Path>,
    id: &'a ContainerId,
    sight: Sight,
    /// What the last verdict was about.
    judged: Option<NetnsFacts>,
    /// Since when it has been refused, and when to try again.
    refused: Option<(Instant, Duration)>,
    /// What the journal was told last.
    reported: String,
    /// It has worked, and will now wait.
    at_rest: bool,
    /// It has been started, when it was looked at last.
    has_started: bool,
}

impl Round<'_> {
    fn turn(&mut self, time_is_up: bool) -> Result<Next> {
        self.sight.look()?;
        let store = Store::open();
        // Gone: a hook of a sibling took it over, or poststop was quicker.
        let Some(late) = store.late(self.sight.netns.id)? else { return Ok(Next::Over) };
        let has_started = late::has_started(&late, &self.sight);
        self.has_started = has_started;
        let is_news = self.judged.as_ref() != Some(&self.sight.facts) || self.refused.is_some();
        let has_address = self.sight.facts.routable().next().is_some();
        if is_news && has_address && late::who_may_lie(&late).is_none() {
            return self.judge(has_started || time_is_up);
        }
        match late.verdict {
            Verdict::Admitted | Verdict::Nobodys if has_started || time_is_up => self.conclude(None),
            Verdict::Waiting { .. } if has_started && has_address => self.conclude(Some(MAY_HAVE_LIED)),
            Verdict::Refused { .. } if has_started || time_is_up => self.conclude(None),
            Verdict::Waiting { .. } if time_is_up => {
                self.conclude(Some(&format!("no address came within {} s; its lock stays closed", LIFE.as_secs())))
            }
            _ if has_address => Ok(Next::Wait(GLANCE)),
            _ => Ok(Next::Wait(IDLE_GLANCE)),
        }
    }

    /// `is_final`: there will be no better moment.
    fn judge(&mut self, is_final: bool) -> Result<Next> {
        let config = Config::load(self.file)?;
        let mut host = Kernel::open()?;
        let store = Store::open().lock()?;
        let Some(late) = store.late(self.sight.netns.id)? else { return Ok(Next::Over) };
        let facts = self.sight.facts.clone();
        let late = late::judge(&mut host, &store, &config, &mut self.sight, late)?;
        store.tidy()?;
        self.judged = Some(facts);
        self.at_rest = true;
        self.refused = match (&late.verdict, self.refused) {
            (Verdict::Refused { .. }, None) => Some((Instant::now(), FIRST_RETRY)),
            (Verdict::Refused { .. }, Some((since, pause))) => {
                Some((since, (pause * 2).min(Duration::from_millis(500))))
            }
            _ => None,
        };
        match self.refused {
            Some((since, _)) if is_final && since.elapsed() > PATIENCE_WITH_A_REFUSAL => self.conclude(None),
            Some((_, pause)) => Ok(Next::Wait(pause)),
            None if is_final => self.conclude(None),
            None => Ok(Next::Wait(GLANCE)),
        }
    }

    /// Nothing is left to wait for. `why`: it was not judged, and stays closed.
    fn conclude(&mut self, why: Option<&str>) -> Result<Next> {
        let mut host = Kernel::open()?;
        let store = Store::open().lock()?;
        let Some(mut late) = store.late(self.sight.netns.id)? else { return Ok(Next::Over) };
        late.attendant = None;
        let has_address = self.sight.facts.routable().next().is_some();
        late = match why {
            Some(why) if has_address => late::refuse(&mut host, &store, &mut self.sight, late, why.to_owned())?,
            Some(why) => LateRecord { verdict: Verdict::Waiting { why: Some(why.to_owned()) }, ..late },
            None => late,
        };
        match &late.verdict {
            Verdict::Admitted | Verdict::Nobodys => {
                store.remove_late(&late)?;
                walls_go_with_their_last_members(&mut host, &store)?;
            }
            Verdict::Refused { why } | Verdict::Waiting { why: Some(why) } => {
                store.put_late(&late)?;
                self.report(why);
            }
            Verdict::Waiting { why: None } => store.put_late(&late)?,
        }
        store.tidy()?;
        Ok(Next::Over)
    }

    fn report(&mut self, why: &str) {
        if self.reported != why {
            journal::error(&format!("container {} is locked: {why}", self.id));
            why.clone_into(&mut self.reported);
        }
    }
}

/// The container ended: what waited for its address goes with it. Returns another one of its namespace that still waits.
/// Its poststop may have been quicker, so the record is found by who attends it.
fn its_end(process: Process) -> Result<Option<(ContainerId, Process)>> {
    let me = i32::try_from(std::process::id()).ok().and_then(Process::living);
    let store = Store::open();
    if me.is_none() || !store.is_there() {
        return Ok(None);
    }
    let store = store.lock()?;
    let Some(late) = store.lates()?.into_iter().find(|late| late.attendant == me) else {
        store.tidy()?;
        return Ok(None);
    };
    let next = late.containers.iter().find(|other| other.process.is_alive()).cloned();
    if let Some(own) = late.containers.iter().find(|own| own.process == process).cloned() {
        forget_late(&mut Kernel::open()?, &store, late, &own.id)?;
    }
    store.tidy()?;
    Ok(next.map(|next| (next.id, next.process)))
}
