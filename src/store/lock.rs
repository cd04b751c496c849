//! The one lock under which anything is changed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, SigmaskHow, Signal, sigaction};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use super::files::{at, make_dir, remove_dir_if_empty};
use super::{LockedStore, Store, StoreError};

/// How long to wait for another tunjail: less than the 10 s that the hooks are given, so that the reason can be told.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

impl Store {
    /// Waits, within bounds, until nobody else changes anything.
    pub fn lock(self) -> Result<LockedStore, StoreError> {
        let path = self.root.join("lock");
        let deadline = Instant::now() + PATIENCE;
        loop {
            make_dir(&self.root)?;
            let lock = match OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path) {
                // Another one tidied the directory away in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Ok(lock) => lock,
                Err(error) => {
                    // Nothing was written, so the directory that may have been made for it goes too.
                    let _ = remove_dir_if_empty(&self.root);
                    return Err(at(&path)(error));
                }
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => wait_for(&lock, deadline).map_err(|error| match error.kind() {
                    io::ErrorKind::Interrupted => StoreError::Busy { path: path.clone() },
                    _ => at(&path)(error),
                })?,
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
            }
            // Whoever held it may have removed the file: then this lock excludes nobody.
            let mine = lock.metadata().map_err(at(&path))?;
            if fs::metadata(&path).is_ok_and(|there| there.ino() == mine.ino() && there.dev() == mine.dev()) {
                return Ok(LockedStore { store: self, lock });
            }
        }
    }
}

/// Waits in the kernel's own queue: a hundred hooks that tried again and again would keep the one that has it from
/// working. A signal ends the wait at the deadline, as `ErrorKind::Interrupted`.
fn wait_for(lock: &File, deadline: Instant) -> io::Result<()> {
    extern "C" fn wake(_: nix::libc::c_int) {}
    // Without SA_RESTART: the wait is to end, not to begin again.
    let action = SigAction::new(SigHandler::Handler(wake), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, and nothing else here uses the signal.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    // And again every second, should the first one have come before the wait began.
    let mut timer = Timer::new(
        ClockId::CLOCK_MONOTONIC,
        SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 }),
    )?;
    timer.set(Expiration::IntervalDelayed(left.into(), Duration::from_secs(1).into()), TimerSetTimeFlags::empty())?;
    // An engine may start its hooks with the signal blocked. The runtime that comes after gets the mask as it was.
    let mask = SigSet::from(Signal::SIGALRM).thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
    let waited = lock.lock();
    drop(timer);
    mask.thread_set_mask()?;
    waited
}
