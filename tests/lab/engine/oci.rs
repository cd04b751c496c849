//! runc and crun by hand: a bundle with a namespace path and hooks in its config.json.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Container, Restartable};
use crate::guest::Guest;
use crate::product::{RUNTIME, TUNJAIL};
use crate::rootfs;
use crate::run::{Cmd, Job, Out, wait_until};
use crate::tools;
use crate::world::{DIR, Lab, Netns, cgroup};

const CAPS: &[&str] = &["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// What is in config.json.
#[derive(Debug, Clone)]
pub struct Bundle {
    spec: Value,
}

impl Bundle {
    /// A container that sleeps in the given namespace, with the capabilities that a hostile one likes to have.
    pub fn new(netns: &Netns) -> Self {
        let mounts = [("/proc", "proc"), ("/dev", "tmpfs"), ("/sys", "sysfs")]
            .map(|(to, kind)| json!({"destination": to, "type": kind, "source": kind}));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["/bin/sleep", "3600"], "env": ["PATH=/bin"],
                "capabilities": {"bounding": CAPS, "effective": CAPS, "permitted": CAPS},
            },
            "root": {"path": rootfs::rootfs(), "readonly": true},
            "hostname": netns.name(),
            "mounts": mounts,
            "annotations": {},
            "hooks": {},
            "linux": {"cgroupsPath": format!("/{}/{}", cgroup(), netns.name()), "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
                {"type": "network", "path": netns.path()},
            ]},
        });
        Self { spec }
    }

    /// Without a namespace path: the host's own network.
    pub fn on_host_network(mut self) -> Self {
        let namespaces = self.spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.spec["annotations"][key] = value.into();
        self
    }

    /// tunjail's two hooks, `extra` behind the stage.
    pub fn jailed(self, extra: &[&str]) -> Self {
        self.hook("createRuntime", TUNJAIL, &[&["hook", "create-runtime"], extra].concat()).hook(
            "poststop",
            TUNJAIL,
            &[&["hook", "poststop"], extra].concat(),
        )
    }

    pub fn hook(mut self, stage: &str, path: &str, args: &[&str]) -> Self {
        let args = [&[path], args].concat();
        let entry = json!({"path": path, "args": args, "env": [format!("PATH={}", tools::PATH)]});
        match self.spec["hooks"][stage].as_array_mut() {
            Some(list) => list.push(entry),
            None => self.spec["hooks"][stage] = json!([entry]),
        }
        self
    }

    /// The `hooks` of a config.json, as they stand in a file.
    pub fn hooks(mut self, hooks: &Value) -> Self {
        self.spec["hooks"] = hooks.clone();
        self
    }

    /// A directory of the host's inside.
    pub fn bind(mut self, source: &std::path::Path, to: &str) -> Self {
        let mount = json!({"destination": to, "type": "bind", "source": source, "options": ["bind", "rw"]});
        self.spec["mounts"].as_array_mut().expect("a list").push(mount);
        self
    }

    /// Its process has a terminal.
    pub fn terminal(mut self) -> Self {
        let options = ["newinstance", "ptmxmode=0666", "mode=0620"];
        let mount = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options});
        self.spec["mounts"].as_array_mut().expect("a list").push(mount);
        self.spec["process"]["terminal"] = true.into();
        self
    }

    /// The text of config.json.
    pub fn text(&self) -> String {
        self.spec.to_string()
    }

    pub fn process(mut self, args: &[&str]) -> Self {
        self.spec["process"]["args"] = json!(args);
        self
    }
}

/// runc, crun or something that stands in for one.
#[derive(Debug, Clone)]
pub struct Runtime {
    guest: Guest,
    program: String,
    /// Before the runtime's own.
    flags: Vec<String>,
    /// Where it keeps its containers.
    root: String,
}

impl Runtime {
    /// `name` of a release.
    pub fn of(guest: &Guest, name: &str) -> Self {
        let root = format!("{DIR}/{name}-{}", guest.release().name());
        Self { guest: guest.clone(), program: name.into(), flags: Vec::new(), root }
    }

    /// The same runtime with tunjail before it.
    pub fn wrapped(mut self, flags: &[&str]) -> Self {
        let real = self.guest.path_of(&self.program).to_string_lossy().into_owned();
        self.flags = ["--runtime", &real].iter().chain(flags).map(|flag| (*flag).to_string()).collect();
        self.program = RUNTIME.into();
        self
    }

    fn call(&self, args: &[&str]) -> Cmd {
        let flags = self.flags.iter().map(String::as_str);
        let all: Vec<&str> = flags.chain(["--root", &self.root]).chain(args.iter().copied()).collect();
        self.guest.cmd(&self.program, &all)
    }
}

impl From<&str> for Runtime {
    fn from(name: &str) -> Self {
        Self::of(&Guest::own(), name)
    }
}

/// A container of runc or crun.
pub struct Oci {
    runtime: Runtime,
    id: String,
    dir: PathBuf,
}

impl Oci {
    /// `RUNTIME run -d`: Ok with the running container, Err with what the runtime said.
    #[track_caller]
    pub fn try_run(lab: &Lab, runtime: impl Into<Runtime>, id: &str, bundle: &Bundle) -> Result<Self, Out> {
        let dir = lab.dir(&format!("bundles/{id}"));
        fs::write(dir.join("config.json"), bundle.spec.to_string()).expect("config.json");
        let container = Self { runtime: runtime.into(), id: id.into(), dir };
        let out = container.launch();
        if out.code == 0 { Ok(container) } else { Err(out) }
    }

    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn run(lab: &Lab, runtime: impl Into<Runtime>, id: &str, bundle: &Bundle) -> Self {
        Self::try_run(lab, runtime, id, bundle).unwrap_or_else(|out| panic!("run {id}: {out:?}"))
    }

    fn launch(&self) -> Out {
        self.call(&["run", "-d", "--bundle", &self.dir.to_string_lossy(), &self.id]).out()
    }

    fn call(&self, args: &[&str]) -> Cmd {
        self.runtime.call(args)
    }
}

impl Container for Oci {
    #[track_caller]
    fn exec(&self, args: &[&str]) -> Out {
        self.call(&[&["exec", &self.id], args].concat()).out()
    }

    #[track_caller]
    fn spawn(&self, args: &[&str]) -> Job {
        self.call(&[&["exec", &self.id], args].concat()).spawn()
    }

    #[track_caller]
    fn stop(&mut self) {
        self.call(&["kill", &self.id, "KILL"]).ok();
        wait_until("the container stopped", Duration::from_secs(5), || {
            self.call(&["state", &self.id]).ok().contains("\"stopped\"")
        });
    }

    #[track_caller]
    fn remove(&mut self) {
        self.call(&["delete", "--force", &self.id]).limit(Duration::from_secs(10)).ok();
    }
}

impl Restartable for Oci {
    #[track_caller]
    fn kill(&mut self) {
        self.stop();
    }

    /// A runtime has no `start` after the end: whoever calls it deletes and creates, in the same namespace.
    #[track_caller]
    fn start(&mut self) {
        self.remove();
        let out = self.launch();
        assert!(out.code == 0, "run {} again: {out:?}", self.id);
    }

    #[track_caller]
    fn restart(&mut self) {
        self.stop();
        self.start();
    }
}
