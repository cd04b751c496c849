//! Kills a program just before the N-th of its system calls that change something, and lets whatever it had started by
//! then come to its own end, as it would.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc::{self, c_long};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Calls that change files, namespaces or processes, or send. `sendto` and `openat` are looked at more closely.
const CHANGING: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_sendmsg,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_flock,
    libc::SYS_setns,
    libc::SYS_execve,
];
/// The older names of the same, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const CHANGING_TOO: &[c_long] =
    &[libc::SYS_mkdir, libc::SYS_rename, libc::SYS_symlink, libc::SYS_unlink, libc::SYS_rmdir];
#[cfg(not(target_arch = "x86_64"))]
const CHANGING_TOO: &[c_long] = &[];

pub fn run(nth: u64, program: &str, args: &[&str]) -> super::Done {
    let mut command = Command::new(program);
    command.args(args);
    // SAFETY: ptrace(2) is async-signal-safe and touches nothing but the child.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    let root = Pid::from_raw(command.spawn()?.id().try_into()?);
    // Its stop at execve(2).
    waitpid(root, None)?;
    let follow = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    // Without TRACEEXEC, execve(2) ends in a SIGTRAP to the program.
    let quiet = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(root, follow | quiet)?;
    ptrace::syscall(root, None)?;
    let (mut calls, mut status) = (0, -1);
    loop {
        let go_on = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(nix::Error::ECHILD) => break,
            // A task that begins a session of its own is meant to outlive the program.
            Ok(WaitStatus::PtraceSyscall(pid))
                if entered(pid).is_some_and(|call| call.nr == libc::SYS_setsid as u64) =>
            {
                ptrace::detach(pid, None)?;
                None
            }
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                calls += u64::from(is_change(pid));
                if calls == nth && status == -1 {
                    calls += 1;
                    kill(root, Signal::SIGKILL)?;
                }
                Some((pid, None))
            }
            Ok(WaitStatus::PtraceEvent(pid, ..)) => Some((pid, None)),
            // A new task begins with a stop that is no signal to it.
            Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)) => Some((pid, None)),
            Ok(WaitStatus::Stopped(pid, signal)) => Some((pid, Some(signal))),
            Ok(WaitStatus::Exited(pid, code)) if pid == root => {
                status = code;
                None
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == root => {
                status = 128 + signal as i32;
                None
            }
            Ok(_) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some((pid, signal)) = go_on {
            // A task that was killed meanwhile is no longer there to be told.
            let _ = ptrace::syscall(pid, signal);
        }
    }
    println!("{}", serde_json::json!({"calls": calls, "status": status}));
    Ok(())
}

/// The call at whose entry the task stands.
fn entered(pid: Pid) -> Option<libc::__c_anonymous_ptrace_syscall_info_entry> {
    let info = ptrace::syscall_info(pid).ok()?;
    match info.op {
        // SAFETY: `op` says that the union holds an entry.
        libc::PTRACE_SYSCALL_INFO_ENTRY => Some(unsafe { info.u.entry }),
        _ => None,
    }
}

/// Whether the task stands at the entry of a call that changes something.
fn is_change(pid: Pid) -> bool {
    let Some(entry) = entered(pid) else { return false };
    let number = c_long::try_from(entry.nr).unwrap_or(-1);
    match number {
        libc::SYS_openat => entry.args[2] & u64::from(libc::O_CREAT.cast_unsigned()) != 0,
        libc::SYS_sendto => is_netlink_change(pid, entry.args[1]),
        _ => CHANGING.contains(&number) || CHANGING_TOO.contains(&number),
    }
}

/// Whether the netlink message at `address` is none of those that only ask: rtnetlink's and nf_tables' types that ask
/// are `RTM_GET*`, two more than a multiple of four, and all of nf_tables' that stand outside of a batch.
fn is_netlink_change(pid: Pid, address: u64) -> bool {
    let Ok(word) = ptrace::read(pid, address as ptrace::AddressType) else { return true };
    // struct nlmsghdr: the length in 4 bytes, the type in 2.
    let kind = u16::from_ne_bytes([word.to_ne_bytes()[4], word.to_ne_bytes()[5]]);
    kind < 0x100 && kind & 3 != 2
}
