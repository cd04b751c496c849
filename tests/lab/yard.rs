//! The yard: a host with the bridge `vpn` and an exit that leads nowhere, and processes that stand for containers. The
//! hook is called as a runtime calls it, with any state that a test likes, so that a case takes a fraction of a second.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bridge::{Bridge, GATEWAY4, GATEWAY6};
use crate::product::TUNJAIL;
use crate::run::{Cmd, Job, Out};
use crate::snapshot::Snapshot;
use crate::vpn::TUN;
use crate::world::{Lab, Netns};

/// Fields in the order in which they are taken down.
pub struct Yard {
    pub bridge: Bridge,
    pub lab: Lab,
}

impl Yard {
    /// With the exit.
    pub fn new(config: &str) -> Self {
        let yard = Self::without_exit(config);
        yard.exit_comes();
        yard
    }

    /// A port that is no member's keeps the bridge's carrier up, so that its routes do not change when members go.
    pub fn without_exit(config: &str) -> Self {
        let lab = Lab::new();
        let bridge = Bridge::new(&lab);
        bridge.plug("witness", 250);
        lab.configure(config);
        Self { bridge, lab }
    }

    pub fn exit_comes(&self) {
        self.lab.sh(&format!(
            "ip tuntap add dev {TUN} mode tun
            ip addr add 10.8.0.2/24 dev {TUN}; ip addr add 2001:db8:8::2/64 dev {TUN} nodad; ip link set {TUN} up"
        ));
    }

    /// A process in a namespace with 172.18.0.`n` and fd00:18::`n` on the bridge. The port may not carry packets yet.
    pub fn stand(&self, name: &str, n: u8) -> Stand {
        Stand::new(&self.lab, self.plug(name, n))
    }

    /// The namespace alone.
    pub fn plug(&self, name: &str, n: u8) -> Netns {
        let netns = self.bridge.plug_bare(name);
        address(&netns, n);
        netns
    }

    /// The hook for a container that stands at `stand`, in jail `vpn`.
    #[track_caller]
    pub fn enter(&self, id: &str, stand: &Stand) -> Out {
        self.lab.create_runtime(&created(id, stand.pid), &["--jail", "vpn"])
    }

    /// The same, which must hold it.
    #[track_caller]
    pub fn hold(&self, id: &str, stand: &Stand) {
        let out = self.enter(id, stand);
        assert!(out.code == 0 && out.stderr.is_empty(), "{id} was not held: {out:?}");
    }

    /// Its end, in silence.
    #[track_caller]
    pub fn leave(&self, id: &str) {
        let out = self.lab.poststop(&stopped(id), &[]);
        assert!(out.code == 0 && out.stderr.is_empty(), "{id} did not leave: {out:?}");
    }
}

/// Gives eth0 of a namespace the bridge's addresses and routes.
pub fn address(netns: &Netns, n: u8) {
    netns.sh(&format!(
        "ip addr add 172.18.0.{n}/16 dev eth0; ip addr add fd00:18::{n}/64 dev eth0 nodad
        ip route add default via {GATEWAY4}; ip route add default via {GATEWAY6}"
    ));
}

/// A process that stands for a container's.
pub struct Stand {
    pub netns: Netns,
    /// As the hook sees it.
    pub pid: u32,
    process: Job,
}

impl Stand {
    pub fn new(lab: &Lab, netns: Netns) -> Self {
        let process = Cmd::new("busybox", &["sleep", "3600"]).within(&netns).spawn();
        Self { pid: lab.pid_inside(&process), netns, process }
    }

    /// It dies, and nobody tells tunjail.
    pub fn die(&mut self) {
        self.process.end();
    }

    /// It dies, and its engine takes its network down.
    pub fn vanish(mut self) {
        self.die();
        unplug(&self.netns);
        self.forget();
    }

    /// Lets go of the namespace, whose number the kernel then gives to the next one.
    pub fn forget(self) {
        Cmd::new("ip", &["netns", "del", self.netns.name()]).ok();
    }
}

/// Takes away the bridge port of a namespace, and so its eth0.
pub fn unplug(netns: &Netns) {
    Cmd::new("ip", &["link", "del", &format!("veth-{}", netns.name())]).ok();
}

/// What runc writes to a createRuntime hook.
pub fn created(id: &str, pid: u32) -> String {
    json!({"ociVersion": "1.0.2-dev", "id": id, "status": "creating", "pid": pid, "bundle": "/run/lab"}).to_string()
}

/// The same with an annotation.
pub fn annotated(id: &str, pid: u32, jail: &str) -> String {
    let annotations = json!({"io.tunjail.jail": jail});
    json!({"ociVersion": "1.0", "id": id, "status": "created", "pid": pid, "bundle": "/", "annotations": annotations})
        .to_string()
}

/// The same in no jail by name, asking for ports of the exit.
pub fn asking(id: &str, pid: u32, ports: &str) -> String {
    let annotations = json!({"io.tunjail.forward": ports});
    json!({"ociVersion": "1.0", "id": id, "status": "created", "pid": pid, "bundle": "/", "annotations": annotations})
        .to_string()
}

/// What runc writes to a poststop hook.
pub fn stopped(id: &str) -> String {
    json!({"ociVersion": "1.0.2-dev", "id": id, "status": "stopped", "bundle": "/run/lab"}).to_string()
}

impl Lab {
    #[track_caller]
    pub fn create_runtime(&self, state: &str, extra: &[&str]) -> Out {
        Cmd::new(TUNJAIL, &[&["hook", "create-runtime"], extra].concat()).stdin(state).out()
    }

    #[track_caller]
    pub fn poststop(&self, state: &str, extra: &[&str]) -> Out {
        Cmd::new(TUNJAIL, &[&["hook", "poststop"], extra].concat()).stdin(state).out()
    }

    /// The host as it is once it has come to rest: new links get their link-local addresses and routes a moment later.
    pub fn settled(&self) -> Snapshot {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut last = self.snapshot();
        loop {
            std::thread::sleep(Duration::from_millis(150));
            let now = self.snapshot();
            if now == last {
                return now;
            }
            assert!(Instant::now() < deadline, "the host does not come to rest");
            last = now;
        }
    }

    /// Whether the host holds an element with this text in a set of the jail `vpn`.
    pub fn has_element(&self, family: &str, set: &str, text: &str) -> bool {
        Cmd::new("nft", &["list", "set", family, "tunjail_vpn", set]).out().stdout.contains(text)
    }
}

/// How a namespace's lock stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// There is none.
    Absent,
    /// Nothing may emit.
    Closed,
    /// Some address may emit.
    Open,
}

impl Netns {
    pub fn lock(&self) -> Lock {
        let out = Cmd::new("nft", &["list", "table", "inet", "tunjail"]).within(self).out();
        match (out.code, out.stdout.contains("elements = {")) {
            (0, true) => Lock::Open,
            (0, false) => {
                assert!(out.stdout.contains("policy drop;"), "a lock without its end: {}", out.stdout);
                Lock::Closed
            }
            _ => Lock::Absent,
        }
    }

    /// Packets towards `to` that the namespace let go, of three.
    #[track_caller]
    pub fn lets_go(&self, from: &str, to: &str) -> u64 {
        let line = self.probe(&["udp-from", from, to, "9", "3"]).json();
        line["sent"].as_u64().expect("a number of packets")
    }
}

/// Exactly one line on stderr, tunjail's own, with each of these fragments; nothing on stdout.
#[track_caller]
pub fn assert_one_line(out: &Out, fragments: &[&str]) {
    let lines: Vec<&str> = out.stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("tunjail: "), "one line of tunjail's own was expected: {out:?}");
    assert!(out.stdout.is_empty(), "{out:?}");
    for fragment in fragments {
        assert!(lines[0].contains(fragment), "{fragment:?} is not in {:?}", lines[0]);
    }
}

/// A failure that is said in one such line.
#[track_caller]
pub fn assert_refused(out: &Out, fragments: &[&str]) {
    assert!(out.code != 0, "it was not refused: {out:?}");
    assert_one_line(out, fragments);
}

/// The inode number that names a namespace.
pub fn inode(netns: &Netns) -> u64 {
    use std::os::unix::fs::MetadataExt;
    netns.file().metadata().expect("the namespace's metadata").ino()
}

/// Makes a program's place hold a script instead, in the lab's own mounts.
pub fn replace_program(lab: &Lab, place: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = lab.dir("programs").join(Path::new(place).file_name().expect("a program's name"));
    std::fs::write(&path, script).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    Cmd::new("mount", &["--bind", &path.to_string_lossy(), place]).ok();
}
