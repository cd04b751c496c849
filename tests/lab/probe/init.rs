//! Process 1 of the lab's pid namespace.
//!
//! Whatever the engines leave behind (shims, conmon, containers) lives in that namespace, and the kernel ends all of
//! it when this process dies; this process dies with the test, however the test ends.

use std::io::Write;

use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

pub fn run() -> super::Done {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?;
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => {
                std::thread::sleep(std::time::Duration::from_millis(20))
            }
            _ => {}
        }
    }
}
