//! `tunjail runtime start`: the process never runs unconfirmed.

use std::path::PathBuf;
use std::time::Duration;

use rstest::rstest;

use super::{attendants, nobody_attends};
use crate::engine::oci::Bundle;
use crate::product::{JAIL, own_lines};
use crate::run::{Cmd, Job, wait_until};
use crate::world::Netns;
use crate::yard::{Lock, Yard, address};

const SOON: Duration = Duration::from_secs(5);
const WRAPPER: &str = "/usr/local/bin/tunjail-runtime";

/// A container created by the wrapper over `runtime`, whose process leaves a trace when it runs.
struct Created {
    runtime: &'static str,
    trace: PathBuf,
}

impl Created {
    fn new(yard: &Yard, runtime: &'static str, netns: &Netns) -> Self {
        let shared = yard.lab.dir("shared");
        let trace = shared.join("ran");
        let script = "echo ran > /tmp/ran; exec sleep 3600";
        let bundle = Bundle::new(netns).bind(&shared, "/tmp").process(&["/bin/sh", "-c", script]);
        let dir = yard.lab.dir("bundles/c1");
        std::fs::write(dir.join("config.json"), bundle.text()).expect("config.json");
        let created = Self { runtime, trace };
        created.call(&["create", "--bundle", &dir.to_string_lossy(), "c1"]).ok();
        assert_eq!(netns.lock(), Lock::Closed);
        created
    }

    fn call(&self, args: &[&str]) -> Cmd {
        let path = crate::tools::path_of(self.runtime).to_string_lossy().into_owned();
        let root = format!("/run/lab/{}", self.runtime);
        Cmd::new(WRAPPER, &[&["--jail", "vpn", "--runtime", &path, "--root", &root], args].concat())
    }

    fn starts(&self) -> Job {
        self.call(&["start", "c1"]).spawn()
    }

    fn delete(&self) {
        self.call(&["delete", "--force", "c1"]).ok();
        nobody_attends();
    }
}

#[rstest]
#[case::runc("runc", true)]
#[case::crun("crun", true)]
#[case::without_the_helper("runc", false)]
fn it_waits_for_the_address(#[case] runtime: &'static str, #[case] helper: bool) {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let netns = yard.bridge.plug_bare("m1");
    let created = Created::new(&yard, runtime, &netns);
    if !helper {
        let [pid] = attendants()[..] else { panic!("one helper") };
        yard.lab.sh(&format!("kill -9 {pid}"));
        nobody_attends();
    }
    let mut start = created.starts();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!start.ended() && !created.trace.exists(), "it did not wait");
    address(&netns, 2);
    let out = start.finish(SOON);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    wait_until("the process to run", SOON, || created.trace.exists());
    assert_eq!(netns.lock(), Lock::Open, "it ran before its lock was open");
    yard.wait_state("c1", "held");
    created.delete();
    crate::yard::unplug(&netns);
    before.assert_same(&yard.lab.settled(), "a container that waited");
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn what_cannot_be_held_is_not_started(#[case] runtime: &'static str) {
    let yard = Yard::new(JAIL);
    let netns = yard.bridge.plug_bare("m1");
    let created = Created::new(&yard, runtime, &netns);
    netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    let out = created.starts().finish(SOON);
    assert_eq!(out.code, 1, "{out:?}");
    let said = own_lines(&out.stderr);
    assert!(said.len() == 1 && said[0].contains("the container was not started"), "{out:?}");
    assert!(said[0].contains("10.99.0.2") && said[0].contains("outside jail vpn's subnets"), "{out:?}");
    assert_eq!(netns.lock(), Lock::Closed);
    assert!(!created.trace.exists(), "it ran");
    created.delete();
}

#[test]
fn a_container_without_a_network_starts_and_stays_locked() {
    let yard = Yard::new(JAIL);
    let netns = Netns::add("m1");
    let created = Created::new(&yard, "runc", &netns);
    let out = created.starts().finish(SOON);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    wait_until("the process to run", SOON, || created.trace.exists());
    assert_eq!(netns.lock(), Lock::Closed);
    created.delete();
}

/// With a configuration that broke meanwhile nobody knows what would be right.
#[test]
fn a_broken_configuration_starts_nobody_who_waits() {
    let yard = Yard::new(JAIL);
    let netns = yard.bridge.plug_bare("m1");
    let created = Created::new(&yard, "runc", &netns);
    address(&netns, 2);
    yard.wait_state("c1", "held");
    yard.lab.configure("[jail.vpn]\nsubnets = 7\n");
    let out = created.starts().finish(SOON);
    assert!(out.code == 1 && out.stderr.contains("/etc/tunjail/tunjail.toml:2"), "{out:?}");
    assert!(!created.trace.exists(), "it ran");
    yard.lab.configure(JAIL);
    created.delete();
}
