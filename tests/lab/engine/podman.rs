//! Podman with netavark, its storage and networks inside the lab.

use std::fs;

use super::Container;
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6, SUBNET4, SUBNET6};
use crate::run::{Cmd, Job, Out};
use crate::world::{Lab, cgroup};
use crate::{rootfs, tools};

/// The engine with its network `vpn`.
pub struct Podman<'lab> {
    lab: &'lab Lab,
    hooks_dir: Option<String>,
    runtime: &'static str,
}

impl<'lab> Podman<'lab> {
    pub fn new(lab: &'lab Lab) -> Self {
        tools::require(&["podman", "crun", "runc", "iptables"]);
        // netavark is Podman's own choice on a new system; said outright because a machine may hold old CNI files.
        fs::write(
            "/etc/containers/containers.conf",
            "[network]\nnetwork_backend = \"netavark\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
        )
        .expect("containers.conf");
        let podman = Self { lab, hooks_dir: None, runtime: "crun" };
        // As `podman network create` writes it; that command of 4.3 cannot name the bridge.
        fs::create_dir_all("/etc/containers/networks").expect("a directory");
        let network = serde_json::json!({
            "name": BRIDGE, "id": "7".repeat(64), "driver": "bridge", "network_interface": BRIDGE,
            "created": "2026-01-01T00:00:00Z",
            "subnets": [{"subnet": SUBNET4, "gateway": GATEWAY4}, {"subnet": SUBNET6, "gateway": GATEWAY6}],
            "ipv6_enabled": true, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
        });
        fs::write(format!("/etc/containers/networks/{BRIDGE}.json"), network.to_string()).expect("the network");
        podman
    }

    /// Uses another OCI runtime than crun.
    pub fn runtime(mut self, runtime: &'static str) -> Self {
        self.runtime = runtime;
        self
    }

    /// Gives it one hooks.d file.
    pub fn hook_file(mut self, name: &str, json: &str) -> Self {
        let dir = self.lab.dir("hooks.d");
        fs::write(dir.join(name), json).expect("a hooks.d file");
        self.hooks_dir = Some(dir.to_string_lossy().into_owned());
        self
    }

    /// `podman ARGS` with the lab's storage.
    pub fn call(&self, args: &[&str]) -> Cmd {
        let mut all = vec![
            "--root",
            "/run/lab/podman/root",
            "--runroot",
            "/run/lab/podman/run",
            "--tmpdir",
            "/run/lab/podman/tmp",
        ];
        all.extend(["--storage-driver", "vfs", "--runtime", self.runtime]);
        if let Some(dir) = &self.hooks_dir {
            all.extend(["--hooks-dir", dir]);
        }
        all.extend(args);
        Cmd::new("podman", &all)
    }

    /// `podman run -d OPTIONS` of a sleeping container on the network `vpn`, or as `options` say.
    #[track_caller]
    pub fn try_run(&'lab self, name: &str, options: &[&str]) -> Result<PodmanContainer<'lab>, Out> {
        let rootfs = rootfs::rootfs().to_string_lossy().into_owned();
        // A machine without CAP_SYS_RESOURCE cannot raise its limits to Podman's own.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        let network: &[&str] =
            if options.iter().any(|option| option.starts_with("--net")) { &[] } else { &["--network", BRIDGE] };
        let caps = ["--cap-add", "NET_RAW,NET_ADMIN"];
        let parent = format!("/{}", cgroup());
        let start = ["run", "-d", "--name", name, "--cgroup-parent", &parent];
        let command = ["--rootfs", &rootfs, "/bin/sleep", "3600"];
        let out = self.call(&[&start, &limits[..], &caps, network, options, &command].concat()).out();
        if out.code == 0 { Ok(PodmanContainer { podman: self, name: name.into() }) } else { Err(out) }
    }

    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn run(&'lab self, name: &str, options: &[&str]) -> PodmanContainer<'lab> {
        self.try_run(name, options).unwrap_or_else(|out| panic!("podman run {name}: {out:?}"))
    }
}

pub struct PodmanContainer<'lab> {
    podman: &'lab Podman<'lab>,
    name: String,
}

impl Container for PodmanContainer<'_> {
    #[track_caller]
    fn exec(&self, args: &[&str]) -> Out {
        self.podman.call(&[&["exec", &self.name], args].concat()).out()
    }

    #[track_caller]
    fn spawn(&self, args: &[&str]) -> Job {
        self.podman.call(&[&["exec", &self.name], args].concat()).spawn()
    }

    #[track_caller]
    fn stop(&mut self) {
        self.podman.call(&["stop", "--time", "0", &self.name]).ok();
    }

    #[track_caller]
    fn remove(&mut self) {
        self.podman.call(&["rm", "--force", "--time", "0", &self.name]).ok();
    }
}
