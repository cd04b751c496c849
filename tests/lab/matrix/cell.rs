//! What a cell is held to.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Way;
use super::wired::{Proof, Wired};
use crate::engine::Container;
use crate::run::{answer, wait_until};
use crate::scene::Traffic;
use crate::snapshot::Snapshot;
use crate::vpn::Client;
use crate::works::ask_the_internet;
use crate::world::{HOST6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

/// Packets that the same probes leave on the uplink without a jail: when they ask, and when their exit is lost.
#[derive(Debug, Clone, Copy)]
pub struct Controls {
    asked: u64,
    lost: u64,
}

/// The positive controls, by a container of the same engine that tunjail does not hear of. The exit is up afterwards.
pub fn controls(lab: &Lab, client: &mut Client, engine: &dyn Wired) -> Controls {
    let mut plain = engine.plain("control");
    let asked = lab.assert_probe_is_visible(|| ask_the_internet(&*plain, ROUTER4, HOST6));
    let lost = control_of_the_loss(lab, client, &*plain);
    plain.remove();
    engine.forget("control");
    client.start_and_wait();
    Controls { asked, lost }
}

/// The loss of the exit with policy routing alone: counted.
pub fn control_of_the_loss(lab: &Lab, client: &mut Client, plain: &dyn Container) -> u64 {
    client.start_and_wait();
    lab.recipe();
    lab.reset_leaks();
    let mut traffic = Traffic::start(plain);
    traffic.wait_flowing();
    client.sigkill();
    wait_until("the control to leak", Duration::from_secs(5), || {
        let leaks = lab.leaks();
        leaks.v4 > 100 && leaks.v6 > 100
    });
    let lost = lab.leaks().total();
    traffic.end(plain);
    lab.no_recipe();
    lab.reset_leaks();
    lost
}

/// One cell that works.
pub struct Case<'a> {
    pub lab: &'a Lab,
    pub engine: &'a dyn Wired,
    pub way: Way,
    pub late: bool,
    pub name: &'a str,
    pub controls: Controls,
}

impl Case<'_> {
    pub fn holds(&self, client: &mut Client) {
        let before = at_rest(self.lab);
        assert_eq!(before.part("/run/tunjail"), "absent\n", "nobody is a member yet");
        let mut member = self.engine.member(self.way, "m1");
        self.is_held("started");
        self.lab.reset_leaks();
        ask_the_internet(&*member, VPN4, VPN6);
        self.no_leak("asking", self.controls.asked);
        assert!(self.lab.leaks().transport > 0, "nothing went through the tunnel either");

        member.restart();
        self.is_a_member_again(&*member, "restarted");
        member.kill();
        self.stopped(&before, "killed");
        member.start();
        self.is_a_member_again(&*member, "started after a kill");
        member.stop();
        self.stopped(&before, "stopped");
        member.start();
        self.is_a_member_again(&*member, "started after a stop");

        let mut traffic = Traffic::start(&*member);
        traffic.wait_flowing();
        self.lab.reset_leaks();
        client.sigkill();
        traffic.press();
        self.no_leak("exit-killed", self.controls.lost);
        // The same container, no restart.
        client.start_and_wait();
        wait_until("the exit open again", Duration::from_secs(10), || {
            member.probe(&["http", SERVICE4]).json()["body"] == VPN4
        });
        assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6);
        traffic.wait_floods_flowing();
        self.no_leak("exit-returned", self.controls.lost);
        drop(traffic);
        member.remove();
        self.engine.forget("m1");
        comes_to_be(self.lab, &before, &format!("{}: a member that was removed", self.name));
    }

    fn no_leak(&self, step: &str, control: u64) {
        self.lab.assert_no_leak("matrix", &format!("{}-{step}", self.name), control);
    }

    /// One member, held. Where the address is late and `start` does not wait for it, this does; else it is so when the
    /// engine returns.
    fn is_held(&self, step: &str) {
        let held =
            |members: &[Value]| members.len() == 1 && members[0]["state"] == "held" && members[0]["alive"] == true;
        if self.late && !self.way.waits() {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !held(&members(self.lab)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let members = members(self.lab);
        assert!(held(&members), "{}: {step}: {members:#?}", self.name);
    }

    fn is_a_member_again(&self, member: &dyn Container, step: &str) {
        self.is_held(step);
        assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4, "{}: {step}", self.name);
        assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6, "{}: {step}", self.name);
    }

    fn stopped(&self, before: &Snapshot, step: &str) {
        // A runtime alone runs poststop when the container is deleted.
        if self.engine.runs_poststop_at_the_end() {
            comes_to_be(self.lab, before, &format!("{}: a member that was {step}", self.name));
        }
    }
}

/// Shows that an engine has no such way in, as far as it can be asked for it.
pub fn cannot(lab: &Lab, engine: &dyn Wired, way: Way) {
    match engine.proof(way, "m1") {
        Proof::Refused(said, because) => {
            assert!(said.code != 0 && said.stderr.contains(because), "{because:?} is not in {said:?}");
        }
        Proof::Starts(mut container) => {
            assert_eq!(members(lab), [] as [Value; 0], "{way:?} works after all");
            container.remove();
        }
    }
    engine.forget("m1");
}

fn members(lab: &Lab) -> Vec<Value> {
    let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    status["jails"][0]["members"].as_array().expect("the members").clone()
}

/// The host once the engine has done what it does after it says that it is done.
pub fn at_rest(lab: &Lab) -> Snapshot {
    let mut before = lab.snapshot();
    wait_until("the engine at rest", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(300));
        let now = lab.snapshot();
        std::mem::replace(&mut before, now.clone()) == now
    });
    before
}

/// An engine takes down its own bridge, addresses and chains some time after it says that it is done.
#[track_caller]
pub fn comes_to_be(lab: &Lab, before: &Snapshot, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while lab.snapshot() != *before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    before.assert_same(&lab.snapshot(), what);
}
