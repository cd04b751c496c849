//! What cannot be done is said where an engine looks for it, and nothing is half done.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rstest::rstest;
use serde_json::Value;

use super::{Bench, WRAPPER};
use crate::engine::docker::Docker;
use crate::product::{JAIL, own_lines};
use crate::world::Lab;

/// Names, contents and inodes of a directory.
fn contents(dir: &Path) -> BTreeMap<String, (u64, Vec<u8>)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let inode = entry.metadata().expect("metadata").ino();
            (entry.file_name().to_string_lossy().into_owned(), (inode, fs::read(entry.path()).unwrap_or_default()))
        })
        .collect()
}

/// A shell script that breaks the bundle in `$B`, and what is said of it.
const FAULTS: [(&str, &str); 9] = [
    ("rm -r $B", ": no such directory"),
    ("rm $B/config.json", "/config.json: no such file"),
    ("rm $B/config.json; mkdir $B/config.json", "/config.json is a directory"),
    ("mv $B/config.json $B/base.json; ln -s base.json $B/config.json", "/config.json is a symbolic link"),
    ("printf '{\"a\":\"\\351\"}' >$B/config.json", "/config.json is not UTF-8 at byte 6"),
    ("echo '{' >$B/config.json", "/config.json: not an OCI configuration"),
    ("truncate -s 65M $B/config.json", "/config.json is larger than 64 MiB"),
    ("echo '{\"hooks\":{},\"Hooks\":{}}' >$B/config.json", "more than once; keep one"),
    ("mount --bind $B $B; mount -o remount,bind,ro $B", "/config.json cannot be replaced: Read-only file system"),
];

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_bad_bundle_is_told_in_the_runtimes_own_log(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    for (n, (fault, expected)) in FAULTS.into_iter().enumerate() {
        let bundle = bench.bundle(&format!("bad{n}"), |bundle| bundle);
        let shown = bundle.to_string_lossy().into_owned();
        bench.lab.sh(&format!("B={shown}\n{fault}"));
        let before = contents(&bundle);
        for format in ["json", "text"] {
            let log = format!("/run/lab/log-{n}-{format}");
            let logged = format!("--log {log} --log-format {format}");
            let out = bench.sh(&format!("{} {logged} create --bundle {shown} c1", bench.wrapped()));
            assert_eq!(out.code, 1, "{fault}: {out:?}");
            let lines = own_lines(&out.stderr);
            assert!(lines.len() == 1 && lines[0].contains(&shown) && lines[0].contains(expected), "{fault}: {out:?}");
            let log = fs::read_to_string(&log).expect("the log");
            assert_eq!(log.lines().count(), 1, "{log}");
            if format == "json" {
                let entry: Value = serde_json::from_str(&log).expect("a JSON line");
                assert_eq!((&entry["level"], entry["msg"].as_str()), (&"error".into(), Some(lines[0])));
            } else {
                assert!(log.contains("tunjail: the container was not started: ") && log.contains(expected), "{log}");
                assert_eq!(log.starts_with("time=\""), runtime == "runc", "{log}");
            }
        }
        assert_eq!(before, contents(&bundle), "{fault}");
        let state = bench.sh(&format!("{} state c1", bench.wrapped()));
        assert_ne!(state.code, 0, "{fault}: there is a container: {state:?}");
    }
}

#[test]
fn a_bundle_that_is_odd_but_good_is_taken() {
    let bench = Bench::new("runc");
    let run = |bundle: &Path| bench.sh(&format!("{} run --bundle {} c1", bench.wrapped(), bundle.display()));
    let make = |name: &str, change: &str| {
        let bundle = bench.bundle(name, |bundle| bundle.process(&["/bin/sh", "-c", "echo ran"]));
        bench.lab.sh(&format!("B={}\n{change}", bundle.display()));
        bundle
    };
    for (name, change) in [
        ("read-only-file", "chmod 400 $B/config.json; chown 1234:5678 $B/config.json"),
        ("link-to-bundle", "mv $B $B.real; ln -s $B.real $B"),
        ("huge", "printf '%*s' 31457280 '' >>$B/config.json"),
        ("no-hooks", "sed -i 's/\"hooks\":{},//' $B/config.json; ! grep -q hooks $B/config.json"),
        ("null-hooks", "sed -i 's/\"hooks\":{}/\"hooks\":null/' $B/config.json; grep -q null $B/config.json"),
    ] {
        let bundle = make(name, change);
        let file = bundle.join("config.json");
        let before = fs::metadata(&file).expect("config.json");
        for _ in 0..2 {
            let out = run(&bundle);
            assert_eq!((out.code, out.stdout.as_str()), (0, "ran\n"), "{name}: {out:?}");
        }
        let after = fs::metadata(&file).expect("config.json");
        assert_eq!((before.mode(), before.uid(), before.gid()), (after.mode(), after.uid(), after.gid()), "{name}");
        let text = fs::read_to_string(&file).expect("config.json");
        assert_eq!(text.matches("create-runtime").count(), 1, "{name}: twice is once");
    }
}

#[test]
fn a_runtime_that_cannot_stand_underneath_is_refused() {
    let bench = Bench::new("runc");
    let bundle = bench.bundle("any", |bundle| bundle);
    let script = bench.lab.dir("scripts").join("docker-wrote-this");
    fs::write(&script, format!("#!/bin/sh\nexec {WRAPPER} --jail vpn \"$@\"\n")).expect("a script");
    bench.lab.sh(&format!("chmod 755 {}; ln -s {WRAPPER} /usr/local/bin/real-runc", script.display()));
    let before = contents(&bundle);
    for (path, expected) in [
        ("/nowhere/runc", "the OCI runtime /nowhere/runc does not exist"),
        ("/etc/passwd", "is not an executable file"),
        (WRAPPER, "is tunjail runtime itself"),
        ("/usr/local/bin/tunjail", "is tunjail runtime itself"),
        ("/usr/local/bin/real-runc", "is tunjail runtime itself"),
        (&script.to_string_lossy(), "is tunjail runtime itself"),
    ] {
        let told = |call: &str, origin: &str| {
            for words in [format!("create --bundle {} c1", bundle.display()), "state c1".to_owned()] {
                let out = bench.sh(&format!("{call} --log /run/lab/log --log-format json {words}"));
                assert_eq!(out.code, 1, "{out:?}");
                let said = own_lines(&out.stderr);
                assert!(said.len() == 1 && said[0].contains(origin) && said[0].contains(expected), "{out:?}");
                let log = fs::read_to_string("/run/lab/log").expect("the log");
                assert!(log.lines().next_back().is_some_and(|line| line.contains(expected)), "{log}");
            }
        };
        told(&format!("{WRAPPER} --runtime {path}"), "--runtime: ");
        bench.lab.configure(&format!("{JAIL}[runtime]\npath = \"{path}\"\n"));
        told(WRAPPER, "/etc/tunjail/tunjail.toml:6: ");
        let check = bench.lab.tunjail(&["check"]);
        let found = check.stdout.lines().find(|line| line.contains(" runtime: ")).unwrap_or_default();
        assert!(check.code == 1 && found.starts_with("error") && found.contains(expected), "{check:?}");
    }
    bench.lab.configure(&format!("{JAIL}[runtime]\npath = \"{}\"\n", bench.runtime));
    assert!(bench.lab.tunjail(&["check"]).stdout.contains(&format!("runtime: {} under", bench.runtime)));
    assert_eq!(before, contents(&bundle));
}

/// dockerd and containerd's shim show what stands in the log.
#[test]
fn docker_shows_why() {
    let lab = Lab::new();
    lab.configure(JAIL);
    let runtime = |args: &[&str]| serde_json::json!({"path": WRAPPER, "runtimeArgs": args});
    let docker = Docker::start(
        &lab,
        &serde_json::json!({"good": runtime(&[]), "bad-path": runtime(&["--runtime", "/nowhere/runc"]),
            "bad-words": runtime(&["--jial", "vpn"]), "bad-jail": runtime(&["--jail", "Office"])}),
    );
    let refused = |runtime: &str, expected: &str| {
        let Err(out) = docker.try_run("m1", &["--runtime", runtime]) else { panic!("{runtime}: it runs") };
        println!("{}", out.stderr);
        let lines = own_lines(&out.stderr);
        assert!(lines.len() == 1 && lines[0].contains(expected), "{runtime}: {out:?}");
        docker.call(&["rm", "--force", "m1"]).ok();
    };
    refused("bad-path", "--runtime: the OCI runtime /nowhere/runc does not exist");
    refused("bad-words", "does not know the flag --jial");
    refused("bad-jail", "invalid value 'Office' for '--jail <NAME>'");
    lab.configure("[jail.vpn]\nsubnets = 7\n");
    refused("good", "the container was not started: /etc/tunjail/tunjail.toml:2: jail.vpn: ");
}
