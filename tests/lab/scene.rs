//! The scene that most suites play on: OpenVPN as the exit, the bridge `vpn`, a jail, and the same without the jail.

use std::time::Duration;

use serde_json::Value;

use crate::bridge::{BRIDGE, Bridge};
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product;
use crate::run::Job;
use crate::vpn::{Client, TUN, Vpn};
use crate::world::{Lab, SERVICE4, SERVICE6};

/// Fields in the order in which they are taken down.
pub struct Scene {
    pub client: Client,
    /// Runs until the scene is over.
    pub server: Vpn,
    pub bridge: Bridge,
    pub lab: Lab,
}

impl Scene {
    /// Everything in place but nothing started: no exit, no wall, no member.
    pub fn new(config: &str) -> Self {
        let lab = Lab::new();
        let server = Vpn::start_server(&lab);
        let client = server.client(Some(&lab.exit_script()));
        let bridge = Bridge::new(&lab);
        lab.configure(config);
        Self { client, server, bridge, lab }
    }

    /// A member of the jail: 172.18.0.`n`, fd00:18::`n`.
    #[track_caller]
    pub fn member(&self, runtime: &'static str, name: &str, n: u8) -> Oci {
        let netns = self.bridge.plug(name, n);
        Oci::run(&self.lab, runtime, name, &Bundle::new(&netns).jailed(&["--jail", "vpn"]))
    }

    /// A container on the same bridge that no hook has seen.
    #[track_caller]
    pub fn plain(&self, name: &str, n: u8) -> Oci {
        let netns = self.bridge.plug(name, n);
        Oci::run(&self.lab, "runc", name, &Bundle::new(&netns))
    }

    /// See [`Lab::recipe`].
    pub fn recipe(&self) {
        self.lab.recipe();
    }

    /// See [`Lab::no_recipe`].
    pub fn no_recipe(&self) {
        self.lab.no_recipe();
    }
}

impl Lab {
    /// What people had before: policy routing by the exit and nothing behind it. The positive controls use it, so that
    /// what they show is the traffic of a container whose exit goes.
    pub fn recipe(&self) {
        self.recipe_by(TUN);
    }

    /// The same by another exit.
    pub fn recipe_by(&self, exit: &str) {
        self.sh(&recipe("add", exit));
    }

    /// Takes away what [`Lab::recipe`] did, as far as the exit has not taken it along.
    pub fn no_recipe(&self) {
        self.sh(&recipe("del", TUN).replace('\n', " || true\n"));
    }
}

fn recipe(verb: &str, exit: &str) -> String {
    format!(
        "ip rule {verb} from 172.18.0.0/16 lookup 4000 pref 900
        ip -6 rule {verb} from fd00:18::/64 lookup 4000 pref 900
        ip route {verb} 172.18.0.0/16 dev {BRIDGE} table 4000
        ip -6 route {verb} fd00:18::/64 dev {BRIDGE} table 4000
        ip route {verb} default dev {exit} table 4000
        ip -6 route {verb} default dev {exit} table 4000\n"
    )
}

/// 1,000 packets a second of UDP and an established TCP flow, both families.
pub struct Traffic {
    pub udp4: Job,
    pub udp6: Job,
    pub tcp4: Job,
    pub tcp6: Job,
}

const PATIENCE: Duration = Duration::from_secs(10);

impl Traffic {
    pub fn start(container: &dyn Container) -> Self {
        let flood = |addr| container.probing(&["udp-flood", addr, "7", "1000", "100"]);
        let hold = |addr| container.probing(&["tcp-hold", addr, "7", "100"]);
        Self { udp4: flood(SERVICE4), udp6: flood(SERVICE6), tcp4: hold(SERVICE4), tcp6: hold(SERVICE6) }
    }

    fn all(&mut self) -> [(&'static str, &mut Job, &'static str); 4] {
        [
            ("udp4", &mut self.udp4, "answered"),
            ("udp6", &mut self.udp6, "answered"),
            ("tcp4", &mut self.tcp4, "echoed"),
            ("tcp6", &mut self.tcp6, "echoed"),
        ]
    }

    /// Waits until all four get answers, counted from now.
    #[track_caller]
    pub fn wait_flowing(&mut self) {
        for (name, job, key) in self.all() {
            let before = job.figure(key);
            job.wait_figures(&format!("{name} to flow"), PATIENCE, |line| line[key].as_u64() > Some(before + 100));
        }
    }

    /// The same for the floods alone: a flow of TCP may have ended with its exit, or wait long before it tries again.
    #[track_caller]
    pub fn wait_floods_flowing(&mut self) {
        for (name, job, key) in self.all().into_iter().take(2) {
            let before = job.figure(key);
            job.wait_figures(&format!("{name} to flow"), PATIENCE, |line| line[key].as_u64() > Some(before + 100));
        }
    }

    /// Lets the traffic press against a closed door: another half second of floods, and flows that get no answer.
    #[track_caller]
    pub fn press(&mut self) {
        self.press_floods();
        for (name, job) in [("tcp4", &mut self.tcp4), ("tcp6", &mut self.tcp6)] {
            job.wait_figures(&format!("{name} to stall"), PATIENCE, |line| {
                line["up"] == false || line["quiet_ms"].as_u64() > Some(400)
            });
        }
    }

    /// Another half second of floods, answered or not.
    #[track_caller]
    pub fn press_floods(&mut self) {
        let tries = |line: &Value| line["sent"].as_u64().unwrap_or(0) + line["refused"].as_u64().unwrap_or(0);
        for (name, job) in [("udp4", &mut self.udp4), ("udp6", &mut self.udp6)] {
            let before = job.figures().as_ref().map_or(0, tries);
            job.wait_figures(&format!("{name} to press"), PATIENCE, |line| tries(line) > before + 500);
        }
    }

    /// Ends all four.
    pub fn end(self, container: &dyn Container) {
        for job in [self.udp4, self.udp6, self.tcp4, self.tcp6] {
            container.end(job);
        }
    }
}

/// The jail of the recipe, LAN allowed.
pub fn with_lan() -> Scene {
    Scene::new(product::JAIL)
}

/// Nothing but the exit.
pub fn strict() -> Scene {
    Scene::new(product::STRICT_JAIL)
}
