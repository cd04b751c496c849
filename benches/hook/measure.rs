//! Starting a program as an engine starts a hook, and what the kernel says about it afterwards.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sched::{CloneFlags, setns};

use crate::enough;

/// A program to start, over and over.
#[derive(Clone)]
pub struct Start {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Option<PathBuf>,
    /// The network namespace to start it in, and the one to come back to.
    netns: Option<Rc<(OwnedFd, OwnedFd)>>,
}

#[derive(Clone, Copy)]
pub struct Sample {
    pub wall: Duration,
    pub peak_bytes: u64,
}

impl Start {
    pub fn new(program: impl AsRef<OsStr>, args: &[impl AsRef<OsStr>]) -> Self {
        let argv = [program.as_ref()].into_iter().chain(args.iter().map(AsRef::as_ref)).map(OsString::from).collect();
        Self { argv, env: Vec::new(), stdin: None, netns: None }
    }

    pub fn stdin(mut self, file: &Path) -> Self {
        self.stdin = Some(file.to_owned());
        self
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().into()));
        self
    }

    pub fn netns(mut self, there: OwnedFd, back: OwnedFd) -> Self {
        self.netns = Some(Rc::new((there, back)));
        self
    }

    /// The same, started by another program in front of it.
    fn behind(&self, front: &[&OsStr]) -> Self {
        let argv = front.iter().map(OsString::from).chain(self.argv.iter().cloned()).collect();
        Self { argv, ..self.clone() }
    }

    pub fn untimed(&self) -> Result<()> {
        self.timed().map(drop)
    }

    /// One run: from before the spawn until the kernel has handed over the exit status. Fails when the program does.
    pub fn timed(&self) -> Result<Sample> {
        let stderr = tempfile::tempfile()?;
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).envs(self.env.iter().map(|(k, v)| (k, v)));
        command.stdin(match &self.stdin {
            Some(path) => File::open(path)?.into(),
            None => Stdio::null(),
        });
        command.stdout(Stdio::null()).stderr(stderr.try_clone()?);

        if let Some(netns) = &self.netns {
            setns(&netns.0, CloneFlags::CLONE_NEWNET)?;
        }
        let begin = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", self.shown()))?;
        let (status, peak_bytes) = wait4(child.id())?;
        let wall = begin.elapsed();
        if let Some(netns) = &self.netns {
            setns(&netns.1, CloneFlags::CLONE_NEWNET)?;
        }

        if status != 0 {
            bail!("{} failed: {}", self.shown(), read_from_start(stderr)?.trim_end());
        }
        Ok(Sample { wall, peak_bytes })
    }

    /// Starts it and does not wait.
    pub fn spawn(&self) -> Result<Child> {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).envs(self.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().with_context(|| format!("cannot start {}", self.shown()))
    }

    /// Waits for one that was spawned. Fails when the program did.
    pub fn finish(&self, mut child: Child) -> Result<()> {
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "{} failed: {status}", self.shown());
        Ok(())
    }

    fn shown(&self) -> String {
        self.argv.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

fn read_from_start(mut file: File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Waits for a child and returns its wait status and its peak resident memory, which std's `wait` does not tell.
fn wait4(pid: u32) -> Result<(i32, u64)> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live, properly typed places.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("wait4");
        }
    }
    // getrusage(2): ru_maxrss is in kilobytes.
    Ok((status, u64::try_from(usage.ru_maxrss)? * 1024))
}

/// Times two programs in turns, A B A B. What is done before each start is not part of it.
pub fn in_turns(
    a: &Start,
    before_a: impl Fn() -> Result<()>,
    b: &Start,
    before_b: impl Fn() -> Result<()>,
) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while !enough(of_a.len(), begin.elapsed()) {
        before_a()?;
        of_a.push(a.timed()?);
        before_b()?;
        of_b.push(b.timed()?);
    }
    Ok((of_a, of_b))
}

/// Wall times in milliseconds.
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(samples: &[Sample]) -> Self {
        let mut walls: Vec<f64> = samples.iter().map(|sample| sample.wall.as_secs_f64() * 1e3).collect();
        walls.sort_by(f64::total_cmp);
        Self { min: walls[0], median: walls[walls.len() / 2], max: walls[walls.len() - 1] }
    }
}

/// What strace sees of one run.
pub struct Seen {
    /// Processes, not threads.
    pub processes: usize,
    pub threads: usize,
    pub calls: usize,
    /// Messages to the kernel; the hook has no other sockets.
    pub requests: usize,
}

pub fn trace(start: &Start, log: &Path) -> Result<Seen> {
    let front = ["strace", "-f", "-qq", "-o"].map(OsStr::new);
    start.behind(&[&front[..], &[log.as_os_str()]].concat()).untimed()?;
    let trace = std::fs::read_to_string(log)?;
    let calls = |names: &[&str]| -> Vec<&str> {
        let is_one = |line: &&str| names.iter().any(|name| line.contains(&format!(" {name}(")));
        trace.lines().filter(is_one).collect()
    };
    let executed = calls(&["execve", "execveat"]).len();
    let requests = calls(&["sendto", "sendmsg"]).len();
    if executed == 0 || requests == 0 {
        bail!("strace saw nothing: {trace}");
    }
    let (threads, cloned): (Vec<&str>, Vec<&str>) =
        calls(&["clone", "clone3"]).into_iter().partition(|line| line.contains("CLONE_THREAD"));
    Ok(Seen {
        processes: executed - 1 + cloned.len() + calls(&["fork", "vfork"]).len(),
        threads: threads.len(),
        // A call that another thread interrupted has two lines.
        calls: trace.lines().filter(|line| !line.contains(" resumed>") && line.contains('(')).count(),
        requests,
    })
}

/// Feeds text to a program, for the bench's own preparations.
pub fn feed(program: &str, args: &[&str], text: &str) -> Result<()> {
    let mut input = tempfile::NamedTempFile::new()?;
    input.write_all(text.as_bytes())?;
    Start::new(program, args).stdin(input.path()).untimed()
}
