//! Podman with netavark, its storage and networks inside the lab.

use std::fs;
use std::time::{Duration, Instant};

use super::{Container, Restartable};
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6, SUBNET4, SUBNET6};
use crate::guest::Guest;
use crate::rootfs;
use crate::run::{Cmd, Job, Out};
use crate::world::{Lab, cgroup};

const IMAGE: &str = "lab";

/// The engine with its network `vpn` and an image of busybox and the probe.
#[derive(Clone)]
pub struct Podman<'lab> {
    lab: &'lab Lab,
    guest: Guest,
    hooks_dir: Option<String>,
    runtime: Vec<String>,
}

impl<'lab> Podman<'lab> {
    pub fn new(lab: &'lab Lab) -> Self {
        Self::of(lab, &Guest::own())
    }

    /// That of a release.
    pub fn of(lab: &'lab Lab, guest: &Guest) -> Self {
        // netavark is Podman's own choice on a new system; said outright because a machine may hold old CNI files.
        guest.write(
            "/etc/containers/containers.conf",
            "[network]\nnetwork_backend = \"netavark\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
        );
        write_network(guest, false);
        // `--userns=auto` takes its ids from here. Podman 5.8 asks libsubid, which wants the user to be one.
        let user = "grep -q ^containers: /etc/passwd || echo containers:x:990:990::/:/bin/false >>/etc/passwd";
        guest.cmd("/bin/sh", &["-ec", user]).ok();
        for file in ["/etc/subuid", "/etc/subgid"] {
            guest.write(file, "containers:100000:65536\n");
        }
        let podman = Self { lab, guest: guest.clone(), hooks_dir: None, runtime: Vec::new() }.runtime("crun");
        // An image, because a user namespace wants files of its own owner, and `--rootfs` leaves them as they are.
        let tar = rootfs::tar();
        podman.call(&["import", "--quiet", &tar.to_string_lossy(), IMAGE]).ok();
        podman
    }

    /// The network `vpn` as `podman network create` makes one by default: with aardvark-dns at its gateway.
    pub fn with_dns(self) -> Self {
        write_network(&self.guest, true);
        self
    }

    /// Uses another OCI runtime than crun.
    pub fn runtime(mut self, runtime: &str) -> Self {
        self.runtime = vec!["--runtime".into(), runtime.into()];
        self
    }

    /// Gives the runtime a flag of its own, written without the dashes.
    pub fn runtime_flag(mut self, flag: &str) -> Self {
        self.runtime.extend(["--runtime-flag".into(), flag.into()]);
        self
    }

    /// Gives it a directory with these hooks.d files, name and contents.
    pub fn hooks(mut self, dir: &str, files: &[(&str, &str)]) -> Self {
        let dir = self.lab.dir(&format!("hooks.d/{dir}"));
        for (name, json) in files {
            fs::write(dir.join(name), json).expect("a hooks.d file");
        }
        self.hooks_dir = Some(dir.to_string_lossy().into_owned());
        self
    }

    /// The same as a line for a shell.
    pub fn line(&self) -> String {
        self.guest.line(&format!("{} {}", self.guest.path_of("podman").display(), self.options().join(" ")))
    }

    /// `podman ARGS` with the lab's storage.
    pub fn call(&self, args: &[&str]) -> Cmd {
        let all = [self.options(), args.to_vec()].concat();
        // 5.x warns at every call on a machine with control groups of the first version.
        self.guest.cmd("podman", &all).env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
    }

    fn options(&self) -> Vec<&str> {
        let dirs = "--root /run/lab/podman/root --runroot /run/lab/podman/run --tmpdir /run/lab/podman/tmp";
        let mut all: Vec<&str> = dirs.split(' ').collect();
        all.extend(["--storage-driver", "vfs"]);
        all.extend(self.runtime.iter().map(String::as_str));
        if let Some(dir) = &self.hooks_dir {
            all.extend(["--hooks-dir", dir]);
        }
        all
    }

    /// `podman run -d OPTIONS` of a sleeping container on the network `vpn`, or as `options` say.
    #[track_caller]
    pub fn try_run(&self, name: &str, options: &[&str]) -> Result<PodmanContainer<'lab>, Out> {
        // A machine without CAP_SYS_RESOURCE cannot raise its limits to Podman's own.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        let network: &[&str] =
            if options.iter().any(|option| option.starts_with("--net")) { &[] } else { &["--network", BRIDGE] };
        let has_caps = options.iter().any(|option| option.starts_with("--cap"));
        let caps: &[&str] = if has_caps { &[] } else { &["--cap-add", "NET_RAW,NET_ADMIN"] };
        let parent = format!("/{}", cgroup());
        let start = ["run", "-d", "--name", name, "--cgroup-parent", &parent];
        let command = [IMAGE, "/bin/sleep", "3600"];
        let out = self.call(&[&start, &limits[..], caps, network, options, &command].concat()).out();
        if out.code == 0 { Ok(PodmanContainer { podman: self.clone(), name: name.into() }) } else { Err(out) }
    }

    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn run(&self, name: &str, options: &[&str]) -> PodmanContainer<'lab> {
        self.try_run(name, options).unwrap_or_else(|out| panic!("podman run {name}: {out:?}"))
    }
}

/// The network `vpn`, with the engine's resolver at its gateway or without.
fn write_network(guest: &Guest, with_dns: bool) {
    // As `podman network create` writes it; that command of 4.3 cannot name the bridge.
    let network = serde_json::json!({
        "name": BRIDGE, "id": "7".repeat(64), "driver": "bridge", "network_interface": BRIDGE,
        "created": "2026-01-01T00:00:00Z",
        "subnets": [{"subnet": SUBNET4, "gateway": GATEWAY4}, {"subnet": SUBNET6, "gateway": GATEWAY6}],
        "ipv6_enabled": true, "internal": false, "dns_enabled": with_dns, "ipam_options": {"driver": "host-local"},
    });
    guest.write(&format!("/etc/containers/networks/{BRIDGE}.json"), &network.to_string());
}

pub struct PodmanContainer<'lab> {
    podman: Podman<'lab>,
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
        self.podman.call(&["stop", "-t", "0", &self.name]).ok();
    }

    /// Podman 4.3 and its own clean-up of a container that ended sometimes meet, jailed or not, and one finds the other's
    /// mount still there: then it is asked again, as its users do.
    #[track_caller]
    fn remove(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let out = self.podman.call(&["rm", "--force", "--ignore", "-t", "0", &self.name]).out();
            if out.code == 0 {
                return;
            }
            let busy = out.stderr.contains("device or resource busy");
            assert!(busy && Instant::now() < deadline, "podman rm {}: {out:?}", self.name);
        }
    }
}

impl Restartable for PodmanContainer<'_> {
    #[track_caller]
    fn kill(&mut self) {
        self.podman.call(&["kill", &self.name]).ok();
    }

    #[track_caller]
    fn start(&mut self) {
        self.podman.call(&["start", &self.name]).ok();
    }

    #[track_caller]
    fn restart(&mut self) {
        self.podman.call(&["restart", "-t", "0", &self.name]).ok();
    }
}
