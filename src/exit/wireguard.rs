//! WireGuard, of the kernel or of wireguard-go: nothing tells that it came, and nothing has to. What `wg` knows of it is
//! for people to look at: a tunnel counts as up by its link, however long ago its last handshake was.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::model::names::IfName;

/// Where wg may be. By absolute path, as nft.
const PLACES: [&str; 4] = ["/usr/bin/wg", "/bin/wg", "/usr/sbin/wg", "/usr/local/bin/wg"];

/// A wireguard-go that hangs must not make who looks at it hang too.
const PATIENCE: Duration = Duration::from_secs(1);

/// More than any `wg` says: 100 bytes for each of some ten thousand peers.
const MOST: u64 = 1 << 20;

/// What `wg` says of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// Seconds since the last handshake with any of its peers; `None` when there was none.
    pub last_handshake: Option<u64>,
}

/// The program `wg`, and the interfaces that it knows. A wireguard-go is a tun device like any other to the kernel.
#[derive(Debug)]
pub struct Wg {
    program: &'static Path,
    interfaces: Vec<String>,
}

impl Wg {
    /// `None` when it is not installed, or does not answer.
    pub fn ask() -> Option<Self> {
        let program = PLACES.iter().map(Path::new).find(|path| path.is_file())?;
        let said = run(program, &["show", "interfaces"]).ok()?;
        Some(Self { program, interfaces: said.split_whitespace().map(ToOwned::to_owned).collect() })
    }

    /// `None` when the interface is no WireGuard's, or nobody answers for it.
    pub fn tunnel(&self, interface: &IfName) -> Option<Tunnel> {
        if !self.interfaces.iter().any(|known| known == interface.as_str()) {
            return None;
        }
        let said = run(self.program, &["show", interface, "latest-handshakes"]).ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        Some(Tunnel { last_handshake: last_handshake(&said).map(|last| now.saturating_sub(last)) })
    }
}

/// Lines of a peer's key and the second after 1970 of its last handshake, 0 for none (wg(8)).
fn last_handshake(said: &str) -> Option<u64> {
    let seconds = said.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok());
    seconds.filter(|second| *second > 0).max()
}

fn run(program: &Path, arguments: &[&str]) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let said = child.stdout.take().map_or(Ok(String::new()), |stdout| read(stdout, Instant::now() + PATIENCE));
    end(&mut child, said)
}

/// Everything up to the end of the output, or an error at the deadline.
fn read(mut stdout: ChildStdout, deadline: Instant) -> io::Result<String> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        if poll(&mut [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)], Some(&left))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stdout.read(&mut buffer)? {
            0 => return String::from_utf8(said).map_err(|_| io::ErrorKind::InvalidData.into()),
            count => said.extend(buffer.get(..count).unwrap_or_default()),
        }
        if said.len() as u64 > MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// One that closed its output is about to end; one that did not is ended.
fn end(child: &mut Child, said: io::Result<String>) -> io::Result<String> {
    if said.is_err() {
        child.kill()?;
    }
    match (child.wait()?.success(), said) {
        (false, Ok(_)) => Err(io::ErrorKind::Other.into()),
        (_, said) => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_handshake_is_that_of_any_peer() {
        assert_eq!(last_handshake(""), None);
        assert_eq!(last_handshake("a=\t0\n"), None);
        assert_eq!(last_handshake("a=\t0\nb=\t1700000005\nc=\t1700000001\n"), Some(1_700_000_005));
        assert_eq!(last_handshake("a=\nb=\tsoon\nc=\t-5\n"), None);
    }

    #[test]
    fn a_program_that_hangs_is_left_alone_in_time() {
        let start = Instant::now();
        assert_eq!(run(Path::new("/bin/sleep"), &["30"]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(run(Path::new("/bin/echo"), &["a", "b"]).unwrap(), "a b\n");
        assert!(run(Path::new("/bin/false"), &[]).is_err());
    }
}
