//! Containers whose address comes after createRuntime: locked, waited for, judged. The engine is played by the test, so
//! that every order of events can be had; the real ones are in the matrix.

mod attacks;
mod start;
mod verdicts;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::product::{JAIL, TUNJAIL};
use crate::rootfs;
use crate::run::{Cmd, Job, Out, wait_until};
use crate::world::{Lab, Netns, SERVICE4, SERVICE6};
use crate::yard::{Lock, Yard, address, created};

const SOON: Duration = Duration::from_secs(5);

/// A process that stands for a container's between `create` and `start`: it executes the "runtime" (busybox) until it is
/// started, then the "container" (the probe).
pub struct Unstarted {
    pub netns: Netns,
    pub pid: u32,
    process: Job,
    go: PathBuf,
    /// The last word of the program's command line.
    last: String,
}

impl Unstarted {
    pub fn new(lab: &Lab, netns: Netns) -> Self {
        Self::with_bounding_set(lab, netns, &[])
    }

    /// One whose program is the file that its runtime was.
    pub fn that_becomes_the_runtime(lab: &Lab, netns: Netns) -> Self {
        let busybox = crate::tools::path_of("busybox").to_string_lossy().into_owned();
        Self::with(lab, netns, &[], &format!("{busybox} sleep 3600"))
    }

    /// One that can never have CAP_NET_ADMIN, like most containers.
    pub fn without_net_admin(lab: &Lab, netns: Netns) -> Self {
        Self::with_bounding_set(lab, netns, &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"])
    }

    fn with_bounding_set(lab: &Lab, netns: Netns, before: &[&str]) -> Self {
        let probe = rootfs::probe().to_string_lossy().into_owned();
        Self::with(lab, netns, before, &format!("{probe} init"))
    }

    fn with(lab: &Lab, netns: Netns, before: &[&str], program: &str) -> Self {
        let go = lab.dir("go").join(netns.name());
        let _ = std::fs::remove_file(&go);
        let busybox = crate::tools::path_of("busybox").to_string_lossy().into_owned();
        let script = format!("while [ ! -e {} ]; do {busybox} usleep 2000; done; exec {program}", go.display());
        let line = [before, &[&busybox, "sh", "-c", &script]].concat();
        let process = Cmd::new(line[0], &line[1..]).within(&netns).spawn();
        let last = program.split(' ').next_back().unwrap_or_default().to_owned();
        let unstarted = Self { pid: lab.pid_inside(&process), netns, process, go, last };
        wait_until("the runtime's part of the process", SOON, || unstarted.executes("busybox"));
        unstarted
    }

    fn executes(&self, name: &str) -> bool {
        std::fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok_and(|exe| exe.ends_with(name))
    }

    /// `runtime start`.
    pub fn begin(&self) {
        std::fs::write(&self.go, "").expect("the start");
        let line = || std::fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        wait_until("the container's own program", SOON, || line().ends_with(&format!("\0{}\0", self.last)));
    }

    pub fn die(&mut self) {
        self.process.end();
    }
}

impl Yard {
    /// A process without an address, not started, on a port of the bridge.
    pub fn late(&self, name: &str) -> Unstarted {
        Unstarted::new(&self.lab, self.bridge.plug_bare(name))
    }

    /// The hook, which must leave it locked.
    #[track_caller]
    pub fn lock_late(&self, id: &str, stand: &Unstarted, args: &[&str]) {
        let out = self.lab.create_runtime(&created(id, stand.pid), args);
        assert!(out.code == 0 && out.stderr.is_empty(), "{id} was refused: {out:?}");
        assert_eq!(stand.netns.lock(), Lock::Closed, "{id}");
    }

    /// What `status` says of a container: its state and why.
    pub fn state_of(&self, id: &str) -> Option<(String, String)> {
        let status: Value = serde_json::from_str(&self.lab.tunjail_ok(&["status", "--json"])).expect("JSON");
        let jails = status["jails"].as_array().expect("a list").iter();
        let members = jails.flat_map(|jail| jail["members"].as_array().into_iter().flatten());
        let undecided = status["undecided"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        members
            .chain(undecided)
            .find(|member| member["containers"].as_array().is_some_and(|ids| ids.contains(&id.into())))
            .map(|member| (text(&member["state"]), text(&member["why"])))
    }

    #[track_caller]
    pub fn wait_state(&self, id: &str, state: &str) -> String {
        let mut last = None;
        wait_until(&format!("{id} to be {state}"), SOON, || {
            last = self.state_of(id);
            last.as_ref().is_some_and(|(now, _)| now == state)
        });
        last.map(|(_, why)| why).unwrap_or_default()
    }
}

/// Helpers that run now, by their pids in the lab.
pub fn attendants() -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let attends = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next() == Some(b"tunjail") && words.any(|word| word == b"attend")
    };
    pids.filter(attends).collect()
}

#[track_caller]
pub fn nobody_attends() {
    wait_until("the helpers to end", SOON, || attendants().is_empty());
}

#[test]
fn a_container_is_a_member_as_soon_as_its_address_is_there() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    assert_eq!(yard.wait_state("c1", "pending"), "");
    assert_eq!(attendants().len(), 1);
    let standing = yard.lab.snapshot();
    assert!(standing.part("nft ruleset").contains("table inet tunjail_vpn"), "the wall stands while it waits");

    address(&late.netns, 2);
    wait_until("the lock to open", SOON, || late.netns.lock() == Lock::Open);
    yard.wait_state("c1", "held");
    assert!(yard.lab.has_element("inet", "members4", "172.18.0.2"));
    assert!(yard.lab.has_element("inet", "members6", "fd00:18::2"), "the second address as well");
    assert_eq!(late.netns.lets_go("172.18.0.2", SERVICE4), 3);
    assert_eq!(late.netns.lets_go("fd00:18::2", SERVICE6), 3);

    assert_eq!(attendants().len(), 1, "until the start somebody looks");
    late.begin();
    nobody_attends();
    assert_eq!(yard.wait_state("c1", "held"), "");

    // What comes after the start is not the engine's word any more.
    late.netns.sh("ip addr add 172.18.0.99/16 dev eth0");
    assert_eq!(late.netns.lets_go("172.18.0.99", SERVICE4), 0);

    late.die();
    yard.leave("c1");
    crate::yard::unplug(&late.netns);
    before.assert_same(&yard.lab.settled(), "a late member");
}

/// What the helper has of the engine's: nothing.
#[test]
fn the_helper_holds_nothing_and_costs_little() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    let [pid] = attendants()[..] else { panic!("one helper: {:?}", attendants()) };
    let descriptors = || -> Vec<String> {
        let list = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
        list.map(|entry| std::fs::read_link(entry.path()).expect("one").to_string_lossy().into_owned()).collect()
    };
    wait_until("the helper to listen", SOON, || descriptors().iter().any(|what| what.contains("pidfd")));
    let others: Vec<String> = descriptors()
        .into_iter()
        .filter(|what| !["/dev/null", "socket:", "pidfd", "net:"].iter().any(|own| what.contains(own)))
        .collect();
    assert!(others.is_empty(), "the helper holds what is not its own: {others:?}");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name")..].split_whitespace().collect();
    assert_eq!(fields[4], pid.to_string(), "a session of its own");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS").trim().to_owned();
    println!("late: the helper's resident memory (debug build): {resident}");
    late.die();
    yard.leave("c1");
    nobody_attends();
}

/// A container that dies while it waits takes its helper and its record along, with and without a poststop.
#[test]
fn a_container_that_dies_early_leaves_nothing() {
    let yard = Yard::new(JAIL);
    for told in [true, false] {
        let before = yard.lab.settled();
        let mut late = yard.late("m1");
        yard.lock_late("c1", &late, &["--jail", "vpn"]);
        late.die();
        if told {
            yard.leave("c1");
        }
        nobody_attends();
        crate::yard::unplug(&late.netns);
        yard.lab.sh("ip netns del m1");
        wait_until("the records to go", SOON, || yard.lab.snapshot().part("/run/tunjail") == "absent\n");
        before.assert_same(&yard.lab.settled(), &format!("its early end, told: {told}"));
    }
}

/// Nobody opens what the helper would have opened; the sweep removes what is left.
#[test]
fn a_killed_helper_leaves_the_lock_closed() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    let [pid] = attendants()[..] else { panic!("one helper") };
    yard.lab.sh(&format!("kill -9 {pid}"));
    nobody_attends();
    address(&late.netns, 2);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(late.netns.lock(), Lock::Closed);
    }
    assert_eq!(late.netns.lets_go("172.18.0.2", SERVICE4), 0);
    yard.wait_state("c1", "pending");
    late.die();
    assert!(yard.lab.tunjail_ok(&["sweep"]).contains("removed 1 record"));
    crate::yard::unplug(&late.netns);
    before.assert_same(&yard.lab.settled(), "a sweep");
    assert_eq!(yard.lab.tunjail_ok(&["sweep"]), "", "a second one finds nothing");
}

/// A pod: the sibling is there before the address, one of them ends early, the other is held.
#[test]
fn siblings_that_wait_together_are_one_member() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut first = yard.late("m1");
    yard.lock_late("c1", &first, &["--jail", "vpn"]);
    let mut second = Unstarted::new(&yard.lab, Netns::open("m1"));
    yard.lock_late("c2", &second, &[]);
    let [helper] = attendants()[..] else { panic!("one helper for the namespace: {:?}", attendants()) };
    // The poststop is quicker than the helper.
    yard.lab.sh(&format!("kill -STOP {helper}"));
    first.die();
    yard.leave("c1");
    assert_eq!(yard.state_of("c1"), None);
    yard.lab.sh(&format!("kill -CONT {helper}"));
    yard.wait_state("c2", "pending");
    wait_until("another helper, or the same for the other", SOON, || attendants().len() == 1);
    address(&second.netns, 2);
    yard.wait_state("c2", "held");
    assert_eq!(second.netns.lock(), Lock::Open);
    second.begin();
    nobody_attends();
    second.die();
    yard.leave("c2");
    crate::yard::unplug(&second.netns);
    before.assert_same(&yard.lab.settled(), "a pod");
}

/// The same id in a new namespace, before the old poststop.
#[test]
fn a_restart_while_it_waits_is_a_new_run() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut old = yard.late("m1");
    yard.lock_late("c1", &old, &["--jail", "vpn"]);
    old.die();
    crate::yard::unplug(&old.netns);
    let mut new = yard.late("m2");
    yard.lock_late("c1", &new, &["--jail", "vpn"]);
    let late = yard.lab.poststop(&crate::yard::stopped("c1"), &[]);
    assert!(late.stderr.contains("still runs"), "{late:?}");
    address(&new.netns, 2);
    yard.wait_state("c1", "held");
    new.die();
    yard.leave("c1");
    nobody_attends();
    crate::yard::unplug(&new.netns);
    before.assert_same(&yard.lab.settled(), "a restart");
}

/// `tunjail hook create-runtime --dry-run` of a late container.
#[test]
fn dry_run_says_that_it_would_wait() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    let before = yard.lab.settled();
    let out: Out = Cmd::new(TUNJAIL, &["hook", "create-runtime", "--jail", "vpn", "--dry-run"])
        .stdin(created("c1", late.pid))
        .out();
    assert!(out.code == 0 && out.stdout.contains("# no address yet: the lock stays closed"), "{out:?}");
    before.assert_same(&yard.lab.snapshot(), "a dry run");
    assert_eq!(late.netns.lock(), Lock::Absent);
    late.die();
}
