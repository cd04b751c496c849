//! Children of the lab. Every wait has a limit and every output is a file, so that no test hangs and none needs a
//! thread to drain a pipe.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::tools;
use crate::world::Netns;

/// How long a command may take unless it says otherwise: far more than any needs, so only a hang meets it.
const LIMIT: Duration = Duration::from_secs(20);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Out {
    /// The exit status; `128 + signal` when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Out {
    /// The last line of stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        last_json(&self.stdout).unwrap_or_else(|| panic!("no JSON line in {self:?}"))
    }
}

/// A command to be run in the lab.
pub struct Cmd {
    inner: Command,
    line: String,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Cmd {
    pub fn new(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Self {
        let program = program.as_ref();
        let path = if program.to_string_lossy().contains('/') {
            program.into()
        } else {
            tools::path_of(&program.to_string_lossy())
        };
        let mut inner = Command::new(&path);
        inner.args(args).env_clear().env("PATH", tools::PATH).env("HOME", "/run/lab").env("LC_ALL", "C");
        Self { inner, line: format!("{} {}", path.display(), args.join(" ")), stdin: Vec::new(), limit: LIMIT }
    }

    pub fn cwd(mut self, dir: &std::path::Path) -> Self {
        self.inner.current_dir(dir);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs in another network namespace of the lab.
    pub fn within(mut self, netns: &Netns) -> Self {
        let file = netns.file();
        // SAFETY: setns is async-signal-safe and touches nothing but the child.
        unsafe { self.inner.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
        self.line = format!("[{}] {}", netns.name(), self.line);
        self
    }

    /// Runs in another mount namespace of the lab, at its root. The program's path is one there.
    pub fn mounted(mut self, name: &str, mounts: File) -> Self {
        // SAFETY: setns is async-signal-safe and touches nothing but the child, which shares no root with its parent.
        unsafe { self.inner.pre_exec(move || setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(Into::into)) };
        self.line = format!("({name}) {}", self.line);
        self
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Panics
    /// When it cannot be started or does not end in time.
    #[track_caller]
    pub fn out(self) -> Out {
        let limit = self.limit;
        self.spawn().finish(limit)
    }

    /// Runs it and returns its stdout.
    ///
    /// # Panics
    /// When it fails, with all that it said.
    #[track_caller]
    pub fn ok(self) -> String {
        let line = self.line.clone();
        let out = self.out();
        assert!(out.code == 0, "{line}\nexit status {}\nstdout: {}\nstderr: {}", out.code, out.stdout, out.stderr);
        out.stdout
    }

    /// Starts it in the background.
    #[track_caller]
    pub fn spawn(mut self) -> Job {
        let mut input = tempfile::tempfile().expect("a temporary file");
        let [stdout, stderr] = [(); 2].map(|()| appended_file());
        input.write_all(&self.stdin).and_then(|()| input.rewind()).expect("stdin written");
        let share = |file: &File| file.try_clone().expect("a file handle");
        self.inner.stdin(input).stdout(share(&stdout)).stderr(share(&stderr));
        let child = self.inner.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.line));
        Job { child, line: self.line, stdout, stderr }
    }
}

/// A command in the background. Ended when dropped.
pub struct Job {
    child: Child,
    line: String,
    stdout: File,
    stderr: File,
}

impl Job {
    /// What it wrote so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it complained of so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// The last whole JSON line of stdout.
    pub fn figures(&self) -> Option<Value> {
        last_json(&self.stdout())
    }

    /// One figure of the last JSON line, 0 as long as there is none.
    pub fn figure(&self, key: &str) -> u64 {
        self.figures().and_then(|line| line[key].as_u64()).unwrap_or(0)
    }

    /// Waits until a line of figures satisfies the caller.
    ///
    /// # Panics
    /// When none does in time, or the job ends before.
    #[track_caller]
    pub fn wait_figures(&mut self, what: &str, limit: Duration, mut good: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended();
            let line = self.figures();
            if let Some(line) = line.as_ref().filter(|line| good(line)) {
                return line.clone();
            }
            let state = if ended { "it ended" } else { "time is up" };
            assert!(
                !ended && Instant::now() < deadline,
                "{}: waiting for {what}: {state}; last figures {line:?}, stderr: {}",
                self.line,
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Out {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                return Out { code, stdout: self.stdout(), stderr: self.stderr() };
            }
            if Instant::now() > deadline {
                let said = format!("stdout: {}\nstderr: {}", self.stdout(), self.stderr());
                panic!("{}: no end after {limit:?}\n{said}", self.line);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn signal(&self, signal: Signal) {
        // The child has not been waited for (try_wait would have ended the job), so the pid is still its own.
        let _ = kill(self.pid(), signal);
    }

    /// Ends it now and waits until it is gone.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its pid as the test sees it. Inside the lab it has another: see [`crate::world::Lab::pid_inside`].
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the probe was answered.
///
/// # Panics
/// When it was not.
#[track_caller]
pub fn answer(out: &Out) -> String {
    let line = out.json();
    assert!(line["ok"] == true, "no answer: {line}");
    line["body"].as_str().expect("a body").to_string()
}

/// Waits until `good` holds.
///
/// # Panics
/// When it does not within the limit.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut good: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !good() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file without a name that is written at its end only, as a terminal or a pipe is: a hook may open its parent's
/// stderr anew, and neither may write over the other.
fn appended_file() -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).expect("append mode");
    file
}

/// A file that a child is still writing: read by position, since the offset is shared with the child.
fn contents(file: &File) -> String {
    let length = file.metadata().map_or(0, |data| data.len());
    let mut bytes = vec![0; usize::try_from(length).expect("an output fits into memory")];
    file.read_exact_at(&mut bytes, 0).expect("reading a child's output");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_json(text: &str) -> Option<Value> {
    let whole = &text[..=text.rfind('\n')?];
    whole.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}
