//! What a runtime could write on stdin, and should not.

use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::{Value, json};

use crate::product::{JAIL, TUNJAIL};
use crate::run::Cmd;
use crate::yard::{Lock, Yard, annotated, assert_one_line, assert_refused, created, stopped};

/// A state that is right, for a test to spoil.
fn good(pid: u32) -> Value {
    json!({"ociVersion": "1.0.2", "id": "c1", "status": "created", "pid": pid, "bundle": "/run/lab", "annotations": {}})
}

fn with(pid: u32, key: &str, value: Value) -> String {
    let mut state = good(pid);
    state[key] = value;
    state.to_string()
}

fn without(pid: u32, key: &str) -> String {
    let mut state = good(pid);
    state.as_object_mut().expect("an object").remove(key);
    state.to_string()
}

/// Refused by both hooks alike: what says who the container is.
fn unreadable(pid: u32) -> Vec<(String, &'static str)> {
    let whole = good(pid).to_string();
    vec![
        (String::new(), "stdin is empty"),
        (" \n\t".into(), "stdin is empty"),
        (whole[..whole.len() / 2].into(), "not valid JSON"),
        ("tunjail".into(), "not valid JSON"),
        ("\u{0}".into(), "not valid JSON"),
        ("[".repeat(10_000), "not valid JSON"),
        (format!("{whole}{whole}"), "not valid JSON"),
        ("{}".into(), "no \"id\""),
        ("[]".into(), "not a JSON object"),
        ("null".into(), "not a JSON object"),
        (without(pid, "id"), "no \"id\""),
        (without(pid, "status"), "no \"status\""),
        (with(pid, "status", json!("dancing")), "not an OCI state"),
        (with(pid, "status", json!(7)), "not an OCI state"),
        (with(pid, "id", json!(7)), "not an OCI state"),
        (with(pid, "id", json!("")), "container id \"\""),
        (with(pid, "id", json!("a/b")), "container id \"a/b\""),
        (with(pid, "id", json!("../../etc/passwd")), "container id"),
        (with(pid, "id", json!("..")), "container id \"..\""),
        (with(pid, "id", json!("a\nb\u{1b}[31m")), "container id"),
        (with(pid, "id", json!("a".repeat(300))), "must be 1 to 200 characters"),
        (with(pid, "pid", json!("1")), "not an OCI state"),
        (with(pid, "pid", json!(1e300)), "not an OCI state"),
        (with(pid, "pid", json!(1_u64 << 40)), "not an OCI state"),
        (with(pid, "annotations", json!([])), "not an OCI state"),
        (with(pid, "annotations", json!({"io.tunjail.jail": 7})), "not an OCI state"),
        (with(pid, "annotations", json!({"io.tunjail.jail": ["vpn"]})), "not an OCI state"),
        (with(pid, "annotations", json!({"io.tunjail.jail": ""})), "annotation io.tunjail.jail"),
        (with(pid, "annotations", json!({"io.tunjail.jail": "vpn\nvpn"})), "annotation io.tunjail.jail"),
        (with(pid, "annotations", json!({"x": "y".repeat(10 << 20)})), "larger than"),
        ("x".repeat(10 << 20), "larger than"),
    ]
}

#[test]
fn both_hooks_say_what_is_wrong_with_a_state_and_touch_nothing() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    for (state, expected) in unreadable(stand.pid) {
        let shown: String = state.chars().take(80).collect();
        let out = yard.lab.create_runtime(&state, &["--jail", "vpn"]);
        assert_refused(&out, &[expected]);
        assert!(out.stderr.len() < 500, "a line that nobody reads: {out:?}");
        let out = yard.lab.poststop(&state, &[]);
        assert_eq!(out.code, 0, "poststop of {shown}: {out:?}");
        assert_one_line(&out, &[expected]);
        before.assert_same(&yard.lab.snapshot(), &shown);
    }
    assert_eq!(stand.netns.lock(), Lock::Absent);
    // The state that all of them were made of is good.
    let out = yard.lab.create_runtime(&good(stand.pid).to_string(), &["--jail", "vpn"]);
    assert_eq!(out.code, 0, "{out:?}");
}

#[test]
fn the_hook_that_starts_wants_a_living_process() {
    let yard = Yard::new(JAIL);
    let mut gone = yard.stand("m1", 2);
    gone.die();
    // A zombie: killed, and its parent does not look.
    let zombie = Cmd::new("busybox", &["sh", "-c", "sleep 3600 & echo {\\\"pid\\\": $!}; exec sleep 3600"])
        .within(&gone.netns)
        .spawn();
    crate::run::wait_until("a child", Duration::from_secs(5), || zombie.figures().is_some());
    let child = u32::try_from(zombie.figure("pid")).expect("a pid");
    Cmd::new("busybox", &["kill", "-9", &child.to_string()]).ok();
    let stat = format!("/proc/{child}/stat");
    crate::run::wait_until("a zombie", Duration::from_secs(5), || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    });
    let before = yard.lab.settled();
    for (state, expected) in [
        (with(gone.pid, "pid", json!(0)), "pid 0 is not a process id"),
        (with(gone.pid, "pid", json!(-1)), "pid -1 is not a process id"),
        (without(gone.pid, "pid"), "no \"pid\""),
        (created("c1", gone.pid), "is no living process"),
        (created("c1", child), "is no living process"),
        (created("c1", i32::MAX.cast_unsigned()), "is no living process"),
        (with(gone.pid, "status", json!("running")), "status is \"running\""),
        (with(gone.pid, "status", json!("stopped")), "status is \"stopped\""),
    ] {
        for extra in [&["--jail", "vpn"][..], &[], &["--jail", "vpn", "--dry-run"]] {
            assert_refused(&yard.lab.create_runtime(&state, extra), &[expected]);
        }
        before.assert_same(&yard.lab.snapshot(), &state);
    }
}

/// A pid that is no container's: it lives in the host's own network.
#[test]
fn a_pid_that_is_no_container_is_the_host() {
    let yard = Yard::new(JAIL);
    let process = Cmd::new("busybox", &["sleep", "3600"]).spawn();
    let pid = yard.lab.pid_inside(&process);
    let before = yard.lab.settled();
    for state in [created("c1", pid), created("c1", 1)] {
        let out = yard.lab.create_runtime(&state, &["--jail", "vpn"]);
        assert_refused(
            &out,
            &["container c1 was not started", "host's own network namespace", "instead of the host's (--network host"],
        );
    }
    assert_refused(&yard.lab.create_runtime(&annotated("c1", pid, "vpn"), &[]), &["host's own network namespace"]);
    // A hook that is registered for every container leaves the host's alone.
    let out = yard.lab.create_runtime(&created("c1", pid), &[]);
    assert!(out.code == 0 && out.stderr.is_empty(), "{out:?}");
    before.assert_same(&yard.lab.snapshot(), "the host's own network");
}

/// The process dies after the hook has seen it alive: whatever has its pid by then is not judged by its namespace.
#[test]
fn a_process_that_dies_while_it_is_looked_at_is_refused() {
    let yard = Yard::new(JAIL);
    let mut stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    let hook = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=setns", "-e", "inject=setns:delay_enter=2000000", TUNJAIL];
    let args = [&hook[..], &["hook", "create-runtime", "--jail", "vpn"]].concat();
    let start = Instant::now();
    let mut job = Cmd::new("strace", &args).stdin(created("c1", stand.pid)).spawn();
    let opened = format!("/proc/{}/ns/net", stand.pid);
    crate::run::wait_until("the hook at the door", Duration::from_secs(5), || {
        assert!(!job.ended(), "the hook ended early");
        holds_open(&opened)
    });
    stand.die();
    assert!(start.elapsed() < Duration::from_millis(1900), "the machine is too slow for this test");
    let out = job.finish(Duration::from_secs(10));
    assert_refused(&out, &["container c1 was not started", "ended while its namespace was looked at"]);
    before.assert_same(&yard.lab.snapshot(), "a process that died");
}

/// Whether some tunjail has that namespace open.
fn holds_open(namespace: &str) -> bool {
    let Ok(wanted) = std::fs::read_link(namespace) else { return false };
    std::fs::read_dir("/proc").expect("/proc").flatten().any(|process| {
        let is_hook = std::fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "tunjail");
        let open = || std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        is_hook && open().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == wanted))
    })
}

/// Which jail: what is named has to be known, whoever names it, and a name stands before an address.
#[rstest]
#[case::by_the_hook(&["--jail", "office"], None)]
#[case::by_the_container(&[], Some("office"))]
#[case::by_the_hook_before_the_container(&["--jail", "office"], Some("vpn"))]
fn a_jail_that_is_not_configured_is_refused(#[case] extra: &[&str], #[case] annotation: Option<&str>) {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    let state = annotation.map_or_else(|| created("c1", stand.pid), |jail| annotated("c1", stand.pid, jail));
    let out = yard.lab.create_runtime(&state, extra);
    assert_refused(
        &out,
        &["container c1 was not started", "jail office is not in the configuration", "its jails are: vpn"],
    );
    before.assert_same(&yard.lab.snapshot(), "an unknown jail");
    assert_eq!(stand.netns.lock(), Lock::Absent);
    for args in [&["up", "office"][..], &["down", "office"]] {
        let out = yard.lab.tunjail(args);
        assert_refused(&out, &["jail office is n"]);
        before.assert_same(&yard.lab.snapshot(), "a command for an unknown jail");
    }
}

/// Mistakes on the hook's own command line, which stands in an engine's configuration.
#[test]
fn a_wrong_command_line_is_one_line_and_poststop_is_still_0() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    for extra in [&["--jail", "No Such"][..], &["--jial", "vpn"], &["--jail"], &["extra"]] {
        let out = yard.lab.create_runtime(&created("c1", stand.pid), extra);
        assert_refused(&out, &[]);
        let out = yard.lab.poststop(&stopped("c1"), extra);
        assert_eq!(out.code, 0, "{extra:?}: {out:?}");
        assert_one_line(&out, &[]);
    }
    before.assert_same(&yard.lab.snapshot(), "a wrong command line");
}
