//! containerd with CNI's bridge, driven through its CRI as a kubelet drives it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Container;
use crate::bridge::{BRIDGE, SUBNET4, SUBNET6};
use crate::guest::{Guest, Release};
use crate::rootfs;
use crate::run::{Cmd, Job, Out};
use crate::world::{Lab, cgroup};

const DIR: &str = "/run/lab/containerd";
const SOCKET: &str = "/run/lab/containerd/sock";
const CONFIG: &str = "/etc/containerd/config.toml";
/// Of the containers, and of the sandboxes too: what it does by itself is to sleep.
const IMAGE: &str = "docker.io/library/lab:latest";
/// The section of the CRI plugin in a configuration of version 2, and what it is called in version 3.
const CRI_V2: &str = "io.containerd.grpc.v1.cri";
const CRI_V3: &str = "io.containerd.cri.v1.runtime";

/// The daemon, with a network on the bridge `vpn` and an image of busybox and the probe.
pub struct Containerd {
    pub guest: Guest,
    daemon: RefCell<Option<Job>>,
    execs: Cell<u32>,
}

impl Containerd {
    /// `runtimes`: what an administrator adds to config.toml, in the words of its version 2.
    pub fn start(lab: &Lab, guest: &Guest, runtimes: &str) -> Self {
        lab.dir("containerd");
        let plugin = guest.release().root().join("usr/lib/cni/bridge");
        assert!(plugin.is_file(), "the lab needs {}: install containernetworking-plugins", plugin.display());
        guest.write(CONFIG, &configuration(guest.release(), runtimes));
        guest.write("/etc/cni/net.d/10-vpn.conflist", &network(BRIDGE, [SUBNET4, SUBNET6]).to_string());
        let containerd = Self { guest: guest.clone(), daemon: RefCell::new(None), execs: Cell::new(0) };
        containerd.launch();
        let tar = image();
        containerd.ctr(&["images", "import", &tar]).ok();
        containerd
    }

    fn launch(&self) {
        let mut daemon = self.daemon.borrow_mut();
        assert!(daemon.is_none(), "containerd runs");
        let daemon = daemon.insert(self.guest.cmd("containerd", &["--config", CONFIG]).spawn());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            assert!(!daemon.ended(), "containerd ended:\n{}", daemon.stderr());
            let status = kubelet("Status", &json!({}));
            if status.as_ref().is_ok_and(is_ready) {
                return;
            }
            assert!(Instant::now() < deadline, "containerd is not ready: {status:?}\n{}", complaints(daemon));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As the kernel ends it when memory is short: shims and containers go on.
    pub fn sigkill(&self) {
        let daemon = self.daemon.take().expect("containerd runs");
        daemon.signal(Signal::SIGKILL);
        daemon.finish(Duration::from_secs(5));
    }

    pub fn start_again(&self) {
        self.launch();
    }

    /// `ctr ARGS` among the kubelet's containers.
    pub fn ctr(&self, args: &[&str]) -> Cmd {
        self.guest.cmd("ctr", &[&["--address", SOCKET, "--namespace", "k8s.io"], args].concat())
    }

    /// What the daemon complained of so far.
    pub fn log(&self) -> String {
        self.daemon.borrow().as_ref().map(complaints).unwrap_or_default()
    }

    /// A pod of the runtime `handler`, without containers yet.
    #[track_caller]
    pub fn try_pod(&self, handler: &str, pod: &PodConfig) -> Result<Pod<'_>, Out> {
        let answer = kubelet("RunPodSandbox", &json!({"config": pod.0, "runtime_handler": handler}))?;
        let id = answer["pod_sandbox_id"].as_str().expect("the sandbox's id").to_owned();
        Ok(Pod { engine: self, id, config: pod.0.clone() })
    }

    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn pod(&self, handler: &str, pod: &PodConfig) -> Pod<'_> {
        self.try_pod(handler, pod).unwrap_or_else(|out| panic!("pod {}: {out:?}\n{}", pod.0, self.log()))
    }
}

/// Both the runtime and its network.
fn is_ready(status: &Value) -> bool {
    let conditions = status["status"]["conditions"].as_array();
    ["RuntimeReady", "NetworkReady"].iter().all(|name| {
        let mut all = conditions.into_iter().flatten();
        all.any(|condition| condition["type"] == *name && condition["status"] == true)
    })
}

/// What it said that was not only for the record.
fn complaints(daemon: &Job) -> String {
    let said = daemon.stderr();
    said.lines().filter(|line| !line.contains("level=info")).map(|line| format!("{line}\n")).collect()
}

/// One call to the CRI.
#[track_caller]
fn kubelet(method: &str, request: &Value) -> Result<Value, Out> {
    let out = Cmd::new(rootfs::kubelet(), &[SOCKET, method, &request.to_string()]).limit(Duration::from_secs(70)).out();
    match out.code {
        0 => Ok(out.json()),
        1 => Err(out),
        _ if method == "Status" => Err(out),
        _ => panic!("{method} {request}: {out:?}"),
    }
}

#[track_caller]
fn must(method: &str, request: &Value) -> Value {
    kubelet(method, request).unwrap_or_else(|out| panic!("{method} {request}: {out:?}"))
}

/// What a machine without CAP_SYS_RESOURCE needs, the lab's own places, and then `runtimes`.
fn configuration(release: Release, runtimes: &str) -> String {
    // With another runtime named, runc is one no longer unless it is named too.
    let runtimes = format!(
        "[plugins.\"{CRI_V2}\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n{runtimes}"
    );
    let bin_dir = "bin_dir = \"/usr/lib/cni\"";
    let (version, cri, image, cdi, bin_dir, runtimes) = match release {
        Release::Sid => {
            let images = "[plugins.\"io.containerd.cri.v1.images\".pinned_images]";
            let image = format!("{images}\n  sandbox = \"{IMAGE}\"");
            (3, CRI_V3, image, "", "bin_dirs = [\"/usr/lib/cni\"]", runtimes.replace(CRI_V2, CRI_V3))
        }
        // 1.6 has no CDI and would not know the word.
        Release::Trixie => {
            (2, CRI_V2, format!("  sandbox_image = \"{IMAGE}\""), "  enable_cdi = true", bin_dir, runtimes)
        }
        Release::Bookworm => (2, CRI_V2, format!("  sandbox_image = \"{IMAGE}\""), "", bin_dir, runtimes),
    };
    format!(
        "version = {version}\nroot = \"{DIR}/root\"\nstate = \"{DIR}/state\"\n[grpc]\n  address = \"{SOCKET}\"\n\
         [plugins.\"{cri}\"]\n  restrict_oom_score_adj = true\n{cdi}\n{image}\n\
         [plugins.\"{cri}\".cni]\n  {bin_dir}\n  conf_dir = \"/etc/cni/net.d\"\n{runtimes}"
    )
}

/// CNI's own bridge, of the network's name.
pub fn network(name: &str, subnets: [&str; 2]) -> Value {
    let ranges = subnets.map(|subnet| json!([{"subnet": subnet}]));
    json!({"cniVersion": "1.0.0", "name": name, "plugins": [{
        "type": "bridge", "bridge": name, "isGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
    }]})
}

/// An image as `docker save` writes it.
fn image() -> String {
    let path = |name: &str| format!("{DIR}/{name}");
    let tar = |name: &str, from: &str, what: &[&str]| {
        Cmd::new("busybox", &[&["tar", "-cf", &path(name), "-C", from], what].concat()).ok();
        path(name)
    };
    let layer = tar("layer.tar", &rootfs::rootfs().to_string_lossy(), &["."]);
    let sum = Cmd::new("busybox", &["sha256sum", &layer]).ok();
    let sum = sum.split_whitespace().next().expect("a sum");
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sleep", "3600"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    for (name, json) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(path(name), json.to_string()).expect("a part of the image");
    }
    tar("image.tar", DIR, &["manifest.json", "config.json", "layer.tar"])
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A chance to close its database; the lab's end would end it anyway.
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !daemon.ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// What a kubelet says of a pod.
#[derive(Debug, Clone)]
pub struct PodConfig(Value);

/// The `NamespaceMode` of a process namespace that each container has for itself, as is usual.
const OWN: u32 = 1;
/// The node's own.
const NODE: u32 = 2;

impl PodConfig {
    pub fn new(name: &str) -> Self {
        Self(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default"},
            "hostname": name,
            "log_directory": format!("{DIR}/logs/{name}"),
            "linux": {
                "cgroup_parent": format!("/{}", cgroup()),
                "security_context": {"namespace_options": {"pid": OWN}},
            },
        }))
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0["annotations"][key] = value.into();
        self
    }

    /// `hostNetwork: true`: a kubelet leaves the name of the host as it is, too.
    pub fn on_host_network(mut self) -> Self {
        self.0["hostname"] = "".into();
        self.0["linux"]["security_context"]["namespace_options"]["network"] = NODE.into();
        self
    }
}

/// A pod's sandbox.
pub struct Pod<'e> {
    engine: &'e Containerd,
    pub id: String,
    config: Value,
}

impl<'e> Pod<'e> {
    /// Creates and starts a container; `devices` are CDI's. One that does not start is removed, as a kubelet does.
    #[track_caller]
    pub fn try_container(&self, name: &str, devices: &[&str]) -> Result<PodContainer<'e>, Out> {
        let devices: Vec<Value> = devices.iter().map(|device| json!({"name": device})).collect();
        let security = json!({
            "capabilities": {"add_capabilities": ["NET_ADMIN"]},
            "namespace_options": self.config["linux"]["security_context"]["namespace_options"],
        });
        let config = json!({
            "metadata": {"name": name}, "image": {"image": IMAGE}, "log_path": format!("{name}.log"),
            "linux": {"security_context": security}, "cdi_devices": devices,
        });
        let request = json!({"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config});
        let answer = kubelet("CreateContainer", &request)?;
        let id = answer["container_id"].as_str().expect("the container's id").to_owned();
        let mut container = PodContainer { engine: self.engine, id };
        if let Err(out) = kubelet("StartContainer", &json!({"container_id": container.id})) {
            container.remove();
            return Err(out);
        }
        Ok(container)
    }

    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn container(&self, name: &str, devices: &[&str]) -> PodContainer<'e> {
        let said = |out| panic!("container {name}: {out:?}\n{}", self.engine.log());
        self.try_container(name, devices).unwrap_or_else(said)
    }

    /// The pid of its sandbox's process, as the lab sees it.
    pub fn pid(&self) -> u32 {
        pid(&must("PodSandboxStatus", &json!({"pod_sandbox_id": self.id, "verbose": true})))
    }

    /// `StopPodSandbox`: its containers are ended, its network is taken down.
    #[track_caller]
    pub fn stop(&self) {
        must("StopPodSandbox", &json!({"pod_sandbox_id": self.id}));
    }

    #[track_caller]
    pub fn remove(&self) {
        must("RemovePodSandbox", &json!({"pod_sandbox_id": self.id}));
    }
}

/// Container or sandbox: the pid is in containerd's own part of the answer.
fn pid(status: &Value) -> u32 {
    let info = status["info"]["info"].as_str().unwrap_or_else(|| panic!("no info in {status}"));
    let info: Value = serde_json::from_str(info).expect("containerd's info is JSON");
    info["pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or_else(|| panic!("no pid in {info}"))
}

/// A container of a pod.
pub struct PodContainer<'e> {
    engine: &'e Containerd,
    pub id: String,
}

impl PodContainer<'_> {
    /// The pid of its process, as the lab sees it.
    pub fn pid(&self) -> u32 {
        pid(&must("ContainerStatus", &json!({"container_id": self.id, "verbose": true})))
    }
}

impl Container for PodContainer<'_> {
    #[track_caller]
    fn exec(&self, args: &[&str]) -> Out {
        let answer = must("ExecSync", &json!({"container_id": self.id, "cmd": args, "timeout": 20}));
        let text = |key: &str| answer[key].as_str().expect("an output").to_owned();
        let code = answer["exit_code"].as_i64().and_then(|code| code.try_into().ok()).expect("an exit code");
        Out { code, stdout: text("stdout"), stderr: text("stderr") }
    }

    /// By `ctr`: what a kubelet's own `Exec` answers is a websocket's address.
    #[track_caller]
    fn spawn(&self, args: &[&str]) -> Job {
        let number = self.engine.execs.get() + 1;
        self.engine.execs.set(number);
        let exec = ["task", "exec", "--exec-id", &format!("exec-{number}"), &self.id];
        self.engine.ctr(&[&exec, args].concat()).spawn()
    }

    #[track_caller]
    fn stop(&mut self) {
        must("StopContainer", &json!({"container_id": self.id, "timeout": 0}));
    }

    #[track_caller]
    fn remove(&mut self) {
        must("RemoveContainer", &json!({"container_id": self.id}));
    }
}
