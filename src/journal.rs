//! The system's log, for what happens when nobody reads stderr: journald and every syslogd listen on /dev/log.

use nix::syslog::{Facility, LogFlags, Severity, openlog, syslog};

/// Says that something is wrong. Without a log daemon nobody hears it: whoever calls this has put it on record as well.
pub fn error(text: &str) {
    // Neither can fail but for a NUL in the text.
    let _ = openlog(Some(c"tunjail"), LogFlags::LOG_PID, Facility::LOG_DAEMON);
    let _ = syslog(Severity::LOG_ERR, &text.replace('\0', " "));
}
