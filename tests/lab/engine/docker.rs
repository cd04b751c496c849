//! dockerd with its containerd, data and network inside the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Container, Restartable};
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6, SUBNET4, SUBNET6};
use crate::guest::Guest;
use crate::rootfs;
use crate::run::{Cmd, Job, Out, wait_until};
use crate::world::{Lab, cgroup};

const SOCKET: &str = "unix:///run/lab/docker.sock";
const IMAGE: &str = "lab";

/// The daemon with its network `vpn` and an image of busybox and the probe.
pub struct Docker {
    guest: Guest,
    dir: PathBuf,
    daemon: Option<Job>,
}

impl Docker {
    /// `runtimes` goes into daemon.json as it is.
    pub fn start(lab: &Lab, runtimes: &Value) -> Self {
        let mut config = Self::settings(lab);
        config["runtimes"] = runtimes.clone();
        Self::start_of(lab, &Guest::own(), &config)
    }

    /// The daemon of a release, with what [`Docker::settings`] says, and more.
    pub fn start_of(lab: &Lab, guest: &Guest, config: &Value) -> Self {
        let path = lab.dir("docker").join("daemon.json");
        fs::write(&path, config.to_string()).expect("daemon.json");
        Self::launch(lab, guest, &path)
    }

    /// What a daemon.json has to say to a dockerd of the lab.
    pub fn settings(lab: &Lab) -> Value {
        let dir = lab.dir("docker");
        json!({
            "data-root": dir.join("data"), "exec-root": dir.join("exec"), "pidfile": dir.join("pid"), "cgroup-parent": format!("/{}", cgroup()),
            "hosts": [SOCKET], "storage-driver": "vfs",
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 1024}},
            "experimental": true, "ip6tables": true, "bridge": "none",
        })
    }

    /// With a daemon.json that says what [`Docker::settings`] does, and more.
    pub fn start_with(lab: &Lab, path: &Path) -> Self {
        Self::launch(lab, &Guest::own(), path)
    }

    fn launch(lab: &Lab, guest: &Guest, path: &Path) -> Self {
        let dir = lab.dir("docker");
        let mut daemon = guest.cmd("dockerd", &["--config-file", &path.to_string_lossy()]).spawn();
        wait_until("dockerd", Duration::from_secs(60), || {
            assert!(!daemon.ended(), "dockerd ended:\n{}", daemon.stderr());
            daemon.stderr().contains("API listen on")
        });
        let docker = Self { guest: guest.clone(), dir, daemon: Some(daemon) };
        docker.call(&["import", &rootfs::tar().to_string_lossy(), IMAGE]).limit(Duration::from_secs(60)).ok();
        let name = format!("com.docker.network.bridge.name={BRIDGE}");
        let v4 = ["--subnet", SUBNET4, "--gateway", GATEWAY4];
        let v6 = ["--ipv6", "--subnet", SUBNET6, "--gateway", GATEWAY6];
        docker.call(&[&["network", "create", "-o", &name], &v4[..], &v6, &[BRIDGE]].concat()).ok();
        docker
    }

    /// The client as a line for a shell.
    pub fn line(&self) -> String {
        self.guest.line(&format!("{} --host {SOCKET}", self.guest.path_of("docker").display()))
    }

    pub fn call(&self, args: &[&str]) -> Cmd {
        self.guest.cmd("docker", &[&["--host", SOCKET], args].concat())
    }

    /// `docker run -d OPTIONS` of a sleeping container on the network `vpn`, or as `options` say.
    #[track_caller]
    pub fn try_run<'docker>(&'docker self, name: &str, options: &[&str]) -> Result<DockerContainer<'docker>, Out> {
        let network: &[&str] =
            if options.iter().any(|option| option.starts_with("--net")) { &[] } else { &["--network", BRIDGE] };
        let caps: &[&str] =
            if options.iter().any(|option| option.starts_with("--cap")) { &[] } else { &["--cap-add", "NET_ADMIN"] };
        let start = ["run", "-d", "--name", name];
        let out = self.call(&[&start, caps, network, options, &[IMAGE, "/bin/sleep", "3600"]].concat()).out();
        if out.code == 0 { Ok(DockerContainer { docker: self, name: name.into() }) } else { Err(out) }
    }

    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn run<'docker>(&'docker self, name: &str, options: &[&str]) -> DockerContainer<'docker> {
        self.try_run(name, options).unwrap_or_else(|out| panic!("docker run {name}: {out:?}\n{}", self.log()))
    }

    /// Where a running container's config.json lies.
    pub fn config(&self, name: &str) -> PathBuf {
        let id = self.call(&["inspect", "--format", "{{.Id}}", name]).ok();
        let tasks = self.dir.join("exec/containerd/daemon/io.containerd.runtime.v2.task/moby");
        tasks.join(id.trim()).join("config.json")
    }

    /// What the daemon said so far.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Job::stderr).unwrap_or_default()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It would give each container ten seconds to end by itself, and what they run does not.
        if !std::thread::panicking() {
            let running = self.call(&["ps", "--quiet"]).out().stdout;
            let ids: Vec<&str> = running.split_whitespace().collect();
            if !ids.is_empty() {
                self.call(&[&["rm", "--force"], &ids[..]].concat()).out();
            }
        }
        // A chance to unmount and to remove its control groups; the lab's end would end it anyway.
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while !daemon.ended() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

pub struct DockerContainer<'docker> {
    docker: &'docker Docker,
    name: String,
}

impl Container for DockerContainer<'_> {
    #[track_caller]
    fn exec(&self, args: &[&str]) -> Out {
        self.docker.call(&[&["exec", &self.name], args].concat()).out()
    }

    #[track_caller]
    fn spawn(&self, args: &[&str]) -> Job {
        self.docker.call(&[&["exec", &self.name], args].concat()).spawn()
    }

    #[track_caller]
    fn stop(&mut self) {
        self.docker.call(&["stop", "-t", "0", &self.name]).ok();
    }

    #[track_caller]
    fn remove(&mut self) {
        self.docker.call(&["rm", "--force", &self.name]).ok();
    }
}

impl Restartable for DockerContainer<'_> {
    #[track_caller]
    fn kill(&mut self) {
        self.docker.call(&["kill", &self.name]).ok();
    }

    #[track_caller]
    fn start(&mut self) {
        self.docker.call(&["start", &self.name]).ok();
    }

    #[track_caller]
    fn restart(&mut self) {
        self.docker.call(&["restart", "-t", "0", &self.name]).ok();
    }
}
