//! An error where an engine looks for a runtime's own.
//!
//! containerd's shim (go-runc) and dockerd read the last JSON line with `level` "error" and show its `msg`; conmon and
//! Podman read the file when it is one such line. Text is for people: runc writes logrus' form, crun the message alone.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use serde_json::json;

use super::line::Log;
use super::underneath::Family;

/// Appends the error to the log that was named, if one was.
///
/// # Errors
/// When the file cannot be written.
pub fn tell(log: &Log, family: Family, text: &str) -> io::Result<()> {
    let Some(path) = &log.file else { return Ok(()) };
    if is_standard_stream(path) {
        // The line on stderr is enough.
        return Ok(());
    }
    let line = entry(log.json, family, SystemTime::now(), &format!("tunjail: {text}"));
    // In one write: the engine may be reading.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

fn is_standard_stream(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr"].iter().any(|stream| path == Path::new(stream))
}

fn entry(json: bool, family: Family, now: SystemTime, message: &str) -> String {
    let time = humantime::format_rfc3339_seconds(now).to_string();
    match (json, family) {
        (true, _) => format!("{}\n", json!({ "level": "error", "msg": message, "time": time })),
        (false, Family::Crun) => format!("{message}\n"),
        (false, Family::Runc) => format!("time=\"{time}\" level=error msg={}\n", json!(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_looks_as_the_runtimes_own() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_548_421);
        let said = "tunjail: a \"b\"";
        assert_eq!(
            entry(false, Family::Runc, now, said),
            "time=\"2026-11-24T19:27:01Z\" level=error msg=\"tunjail: a \\\"b\\\"\"\n"
        );
        assert_eq!(entry(false, Family::Crun, now, said), "tunjail: a \"b\"\n");
        for family in [Family::Runc, Family::Crun] {
            assert_eq!(
                entry(true, family, now, said),
                "{\"level\":\"error\",\"msg\":\"tunjail: a \\\"b\\\"\",\"time\":\"2026-11-24T19:27:01Z\"}\n"
            );
        }
    }

    #[test]
    fn a_log_is_appended_to_and_a_stream_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.json");
        std::fs::write(&path, "before\n").unwrap();
        let log = Log { file: Some(path.clone()), json: true };
        tell(&log, Family::Runc, "one").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("before\n{") && text.ends_with("}\n") && text.contains("\"tunjail: one\""), "{text}");
        tell(&Log::default(), Family::Runc, "one").unwrap();
        tell(&Log { file: Some("/dev/stderr".into()), json: true }, Family::Runc, "one").unwrap();
        assert!(tell(&Log { file: Some("/nowhere/log".into()), json: true }, Family::Runc, "one").is_err());
    }
}
