//! Whether a pid is still the process it was, whether it still lives, and whether it has begun to run what it is for.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// `CAP_NET_ADMIN` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// What a process executes: a file, and where the kernel put its stack, which is another place at each execve(2). A
/// container's process executes its runtime until the runtime's `start`; its program may be the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executable {
    dev: u64,
    ino: u64,
    stack: u64,
}

/// A process, told apart from a later one with the same pid by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks after boot: field 22 of /proc/PID/stat (proc(5)).
    pub start_time: u64,
}

impl Process {
    /// The process that has `pid` now, if any; a zombie counts as none.
    pub fn living(pid: i32) -> Option<Self> {
        // One read of the whole: the kernel makes the line anew at each, and a file of /proc tells no size beforehand.
        let mut buffer = [0; 1024];
        let length = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut buffer)).ok()?;
        let stat = String::from_utf8_lossy(buffer.get(..length)?);
        // The name in field 2 may hold spaces and brackets; the last bracket ends it.
        let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start_time: fields.nth(18)?.parse().ok()? })
    }

    pub fn is_alive(&self) -> bool {
        Self::living(self.pid) == Some(*self)
    }

    /// What it executes now (/proc/PID/exe, proc(5)).
    pub fn executable(&self) -> io::Result<Executable> {
        let file = fs::metadata(format!("/proc/{}/exe", self.pid))?;
        let stat = fs::read(format!("/proc/{}/stat", self.pid))?;
        let stat = String::from_utf8_lossy(&stat);
        // Field 28, startstack (proc(5)); the first after the name is field 3.
        let stack = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(25)?.parse().ok());
        let stack =
            stack.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no startstack in /proc/PID/stat"))?;
        Ok(Executable { dev: file.dev(), ino: file.ino(), stack })
    }

    /// Whether this process, or anything that it starts, can have CAP_NET_ADMIN: its bounding set (capabilities(7)).
    pub fn may_change_its_network(&self) -> io::Result<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let set = set.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapBnd in /proc/PID/status"))?;
        Ok(set & (1 << CAP_NET_ADMIN) != 0)
    }

    /// A descriptor that becomes readable when the process ends (pidfd_open(2)).
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = Pid::from_raw(self.pid).ok_or_else(gone)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
        // Asked after it was opened: the pid may have been another's by then.
        if self.is_alive() { Ok(descriptor) } else { Err(gone()) }
    }
}

/// Asks the scheduler to run this process before others. A hook is short, a container's start waits for it, and it holds
/// a lock that the other hooks wait for: when a hundred containers start at once, it would otherwise take its turn behind
/// all their processes. Without CAP_SYS_NICE it is as it was.
pub fn hurry() {
    const FIRST: i32 = -20;
    let _ = rustix::process::setpriority_process(None, FIRST);
}

/// Takes back what [`hurry`] asked for, which a child inherits.
pub fn take_its_time() {
    let _ = rustix::process::setpriority_process(None, 0);
}

/// Gives back the memory that this process' code takes, for one that is about to wait. What is needed again is mapped
/// again from the file, which every other tunjail has in the same pages.
pub fn give_back_code() -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let program = fs::read_link("/proc/self/exe")?;
    // start-end perms offset dev inode path (proc_pid_maps(5))
    let code = maps.lines().filter(|line| line.ends_with(&*program.to_string_lossy()) && line.contains(" r-xp "));
    for (start, end) in code.filter_map(|line| line.split(' ').next()?.split_once('-')) {
        let parse = |hex| usize::from_str_radix(hex, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (start, end) = (parse(start)?, parse(end)?);
        // SAFETY: a private mapping of a file that nobody can have written to (it is not writable): what is dropped
        // comes back the same, the instructions that run now included.
        unsafe { rustix::mm::madvise(start as *mut _, end - start, rustix::mm::Advice::LinuxDontNeed)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_is_itself_and_a_dead_one_is_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let me = Process::living(pid).unwrap();
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me }.is_alive());
        assert_eq!(Process::living(0), None);
    }
}
