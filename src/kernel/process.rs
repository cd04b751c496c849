//! Whether a pid is still the process it was, and whether it still lives.

use std::fs::File;
use std::io::Read;

use serde::{Deserialize, Serialize};

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
