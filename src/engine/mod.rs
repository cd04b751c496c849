//! What differs between engines and runtimes.

pub mod install;
pub mod resolvers;
pub mod runtime;
pub mod wiring;

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The program that hooks call: this binary, whatever name it was called by.
pub fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding tunjail's own path")?;
    if path.file_name().is_none_or(|name| name != "tunjail-runtime") {
        return Ok(path);
    }
    // A copy under the second name; as a hook it would be a runtime.
    let sibling = path.parent().unwrap_or(Path::new("/")).join("tunjail");
    ensure!(
        sibling.is_file(),
        "{} is a copy of tunjail and {} is missing; install tunjail there, and tunjail-runtime as a link to it",
        path.display(),
        sibling.display()
    );
    Ok(sibling)
}

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// Major and minor version of the program at `path`; `None` when it does not say.
pub fn ask_version(path: &Path) -> Option<(u32, u32)> {
    let mut asked = tempfile::tempfile().ok()?;
    let out = asked.try_clone().ok()?;
    let mut child = Command::new(path)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + PATIENCE;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = String::new();
    asked.rewind().ok()?;
    asked.take(4096).read_to_string(&mut said).ok()?;
    version(&said)
}

/// The first word that begins with a number and a dot, as in `Docker version 20.10.24+dfsg1, build 5d6db84`.
fn version(said: &str) -> Option<(u32, u32)> {
    said.split([' ', ',', '\n']).find_map(|word| {
        let (major, rest) = word.trim_start_matches('v').split_once('.')?;
        let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// A hook runs as whoever runs the engine. In a user namespace (rootless engines) it has no power over the host's
/// network, whatever its uid says there.
pub fn demand_host_privileges() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a rootless engine's containers cannot be held from the host; run the engine as root");
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    if words != ["0", "0", "4294967295"] {
        bail!(
            "the engine runs in a user namespace (rootless), so its containers cannot be held from the host; run the engine as root"
        );
    }
    Ok(())
}

/// runc puts a hook's stderr into its own error. crun gives hooks /dev/null there and says no more than the exit code,
/// so the line is written where crun itself writes: its stderr, and the file of its `--log`, in front of crun's own
/// entry. Podman shows the one entry of that log when it is a single one, and crun's stderr when it is not.
///
/// Only when stderr is /dev/null: a runc whose log has a foreign line in it could not be read by Docker.
pub fn tell_the_user(line: &str) {
    if !fs::read_link("/proc/self/fd/2").is_ok_and(|target| target.as_os_str() == "/dev/null") {
        return;
    }
    let runtime = parent_id();
    let places = [Some(PathBuf::from(format!("/proc/{runtime}/fd/2"))), log_of(runtime)];
    for place in places.into_iter().flatten() {
        // Nobody is left to be told if this fails; the container is refused all the same.
        if let Ok(mut file) = fs::OpenOptions::new().append(true).open(place) {
            let _ = writeln!(file, "tunjail: {line}");
        }
    }
}

/// The file that a runtime with this pid was told to write its log to.
fn log_of(runtime: u32) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{runtime}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    while let Some(argument) = arguments.next() {
        if argument == "--log" {
            return arguments.next().map(|path| PathBuf::from(path.into_owned()));
        }
        if let Some(path) = argument.strip_prefix("--log=") {
            return Some(PathBuf::from(path));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_read_as_engines_write_them() {
        for (said, expected) in [
            ("Docker version 20.10.24+dfsg1, build 5d6db84\n", Some((20, 10))),
            ("Docker version 28.5.2, build ecc6942\n", Some((28, 5))),
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", Some((1, 6))),
            ("containerd github.com/containerd/containerd/v2 v2.1.0-rc.1 2.1.0\n", Some((2, 1))),
            ("podman version 4.3.1\n", Some((4, 3))),
            ("no version\n", None),
            ("", None),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
    }
}
