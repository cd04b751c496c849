//! A hundred containers started at once, as after a boot: crun with the hooks in place.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tunjail::store::{MemberState, Store};

use crate::lab::{Lab, Member};
use crate::measure::{Sample, Spread, Start};
use crate::{row, show};

const CONTAINERS: u16 = 100;
/// Numbers that are nobody else's.
const FIRST: u16 = 30_000;

/// The word that makes this program a [`stopwatch`].
pub const STOPWATCH: &str = "stopwatch";

/// Starts what stands behind its first argument, a file, and appends the milliseconds that it took. It is the hook of
/// the containers here: what it measures is the hook as the runtime sees it, with everything else that runs beside it.
pub fn stopwatch(args: &[String]) -> Result<ExitCode> {
    let [file, program, args @ ..] = args else { anyhow::bail!("usage: {STOPWATCH} FILE PROGRAM ARGS") };
    let mut command = Command::new(program);
    command.args(args);
    // What waits here is to be the hook, not the stopwatch: it goes first, and the hook begins like any process.
    nice(-20)?;
    // SAFETY: setpriority(2) is a plain system call, which is all that may be done between fork and exec.
    unsafe { command.pre_exec(|| nice(0)) };
    let begin = Instant::now();
    let status = command.status()?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    if args.iter().any(|arg| arg == "create-runtime") {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
        // One write, so that a hundred of them do not mix.
        file.write_all(format!("{took}\n").as_bytes())?;
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn nice(value: i32) -> std::io::Result<()> {
    // SAFETY: a plain system call about this process.
    match unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, value) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

pub fn at_once(lab: &Lab) -> Result<()> {
    // Namespaces of their own for each round, as engines make them: no lock is there from before.
    let alone = round(lab, FIRST, false)?;
    let together = round(lab, FIRST + CONTAINERS, true)?;
    show(&format!("the hook by crun, {CONTAINERS} containers one after the other"), &alone);
    show(&format!("the hook by crun, {CONTAINERS} containers at once"), &together);
    row("hook at once / one after the other", Spread::of(&together).median / Spread::of(&alone).median, Some(4.0));
    Ok(())
}

/// Creates them all, demands that each is held, and deletes them.
fn round(lab: &Lab, first: u16, at_once: bool) -> Result<Vec<Sample>> {
    let members: Vec<Member> = (first..first + CONTAINERS).map(|number| lab.member(number)).collect::<Result<_>>()?;
    let times = lab.path(if at_once { "at-once" } else { "alone" });
    let this = std::env::current_exe()?;
    let program = [this.as_os_str(), OsStr::new(STOPWATCH), times.as_os_str(), lab.program().as_os_str()];
    let creation = |(number, member)| {
        let bundle = lab.bundle(&format!("burst-{number}"), member, &program)?;
        Ok(lab.crun_call(&["create", "--bundle", &bundle.to_string_lossy(), &name(number)]))
    };
    let creations = members.iter().enumerate().map(creation).collect::<Result<Vec<Start>>>()?;
    let mut running = Vec::new();
    for creation in creations {
        match at_once {
            true => running.push((creation.spawn()?, creation)),
            false => creation.untimed()?,
        }
    }
    for (child, creation) in running {
        creation.finish(child)?;
    }
    let store = Store::open();
    for number in 0..members.len() {
        let id = name(number).parse()?;
        let member = store.member_of(&id)?.with_context(|| format!("container {id} was lost"))?;
        ensure!(member.state == MemberState::Held, "container {id} is not held");
    }
    for number in 0..members.len() {
        lab.crun_call(&["delete", "--force", &name(number)]).untimed()?;
        fs::remove_file(format!("/run/netns/burst-{number}")).or_else(|_| unmount(number))?;
    }
    let samples = read(&times)?;
    ensure!(samples.len() == members.len(), "{} hooks for {} containers", samples.len(), members.len());
    Ok(samples)
}

fn unmount(number: usize) -> Result<()> {
    let path = format!("/run/netns/burst-{number}");
    nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH)?;
    Ok(fs::remove_file(path)?)
}

fn name(number: usize) -> String {
    format!("bench-burst-{number}")
}

fn read(times: &Path) -> Result<Vec<Sample>> {
    let text = fs::read_to_string(times)?;
    text.lines()
        .map(|line| Ok(Sample { wall: std::time::Duration::from_secs_f64(line.parse::<f64>()? / 1e3), peak_bytes: 0 }))
        .collect()
}
