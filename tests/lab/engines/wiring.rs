//! How each engine is wired: the files in hooks/ as they are, what a member is to it, and what it refuses.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::bridge::{BRIDGE, Bridge};
use crate::engine::Container;
use crate::engine::docker::Docker;
use crate::engine::oci::{Bundle, Oci};
use crate::engine::podman::Podman;
use crate::run::{Cmd, Out};
use crate::world::Lab;

const OCI_CONFIG: &str = include_str!("../../../hooks/oci-config.json");
const DOCKER_DAEMON: &str = include_str!("../../../hooks/docker-daemon.json");
const BY_ANNOTATION: [(&str, &str); 2] = [
    ("tunjail-annotation-create.json", include_str!("../../../hooks/tunjail-annotation-create.json")),
    ("tunjail-annotation-poststop.json", include_str!("../../../hooks/tunjail-annotation-poststop.json")),
];
pub const ALWAYS: [(&str, &str); 2] = [
    ("tunjail-always-create.json", include_str!("../../../hooks/tunjail-always-create.json")),
    ("tunjail-always-poststop.json", include_str!("../../../hooks/tunjail-always-poststop.json")),
];

/// A network that is no jail's.
pub const OTHER: &str = "other";
pub const OTHER4: &str = "172.30.0.0/16";
pub const OTHER6: &str = "fd00:30::/64";

/// How an engine may be wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// The hooks of hooks/oci-config.json, which name the jail.
    RuncConfig,
    /// Hooks without a name; the container's annotation has it.
    CrunAnnotation,
    PodmanCrun,
    PodmanRunc,
    /// The hook runs for every container; its address decides.
    PodmanAlways,
    /// The runtime of hooks/docker-daemon.json.
    Docker,
    /// A runtime without `--jail`: the container's address decides.
    DockerBySubnet,
}

impl Wiring {
    pub fn engine(self, lab: &Lab) -> Box<dyn Engine + '_> {
        let podman = |runtime, files, by_annotation| {
            let wired = hook_files(Podman::new(lab).runtime(runtime), files);
            Box::new(ByPodman { bare: Podman::new(lab).runtime(runtime), wired, by_annotation })
        };
        let by_hand = |runtime, bundle: fn(Bundle, &str) -> Bundle| {
            Box::new(ByHand { lab, bridge: Bridge::new(lab), runtime, bundle, next: Cell::new(2) })
        };
        match self {
            Self::RuncConfig => by_hand("runc", named_in_the_hooks),
            Self::CrunAnnotation => by_hand("crun", named_by_annotation),
            Self::PodmanCrun => podman("crun", BY_ANNOTATION, true),
            Self::PodmanRunc => podman("runc", BY_ANNOTATION, true),
            Self::PodmanAlways => podman("crun", ALWAYS, false),
            Self::Docker => Box::new(ByDocker { docker: docker(lab), by_subnet: false }),
            Self::DockerBySubnet => {
                let docker = docker(lab);
                other_docker_network(&docker);
                // A bridge gets its link-local address with its first port.
                docker.run("first", &["--network", OTHER]).remove();
                Box::new(ByDocker { docker, by_subnet: true })
            }
        }
    }
}

/// An engine that is wired.
pub trait Engine {
    /// A container on the network `vpn` that tunjail does not hear of.
    fn plain(&self, name: &str) -> Box<dyn Container + '_>;
    /// A member of the jail `vpn`.
    fn member(&self, name: &str) -> Box<dyn Container + '_>;
    /// What the engine says when it is asked for a container that cannot be held.
    fn refused(&self, name: &str) -> Refused;
    /// The engine's own command line.
    fn command(&self, args: &[&str]) -> Cmd;
    /// Removes what is left of a container that did not start or was removed.
    fn forget(&self, name: &str) {
        self.command(&["rm", "--force", name]).out();
    }
}

pub struct Refused {
    pub said: Out,
    /// What the reason must say.
    pub because: &'static [&'static str],
}

const UNKNOWN_JAIL: &[&str] = &["jail nope is not in the configuration", "its jails are: vpn"];
const SECOND_NETWORK: &[&str] = &["address 172.30.", "outside jail vpn", "attach the container to the jail's network"];

fn parse(json: &str) -> Value {
    serde_json::from_str(json).expect("a file in hooks/ is JSON")
}

/// runc and crun, with a bridge made by hand.
struct ByHand<'lab> {
    lab: &'lab Lab,
    bridge: Bridge,
    runtime: &'static str,
    bundle: fn(Bundle, &str) -> Bundle,
    next: Cell<u8>,
}

fn named_in_the_hooks(bundle: Bundle, jail: &str) -> Bundle {
    assert_eq!(OCI_CONFIG.matches("\"vpn\"").count(), 2, "the file names the jail once for each hook");
    bundle.hooks(&parse(&OCI_CONFIG.replace("\"vpn\"", &format!("\"{jail}\"")))["hooks"])
}

fn named_by_annotation(bundle: Bundle, jail: &str) -> Bundle {
    // What Podman would make of the two files.
    let [create, poststop] = BY_ANNOTATION.map(|(_, text)| parse(text)["hook"].clone());
    bundle.hooks(&json!({"createRuntime": [create], "poststop": [poststop]})).annotation("io.tunjail.jail", jail)
}

impl ByHand<'_> {
    fn run(&self, name: &str, wire: impl FnOnce(Bundle) -> Bundle) -> Result<Oci, Out> {
        let number = self.next.replace(self.next.get() + 1);
        let netns = self.bridge.plug(name, number);
        Oci::try_run(self.lab, self.runtime, name, &wire(Bundle::new(&netns)))
    }
}

impl Engine for ByHand<'_> {
    fn plain(&self, name: &str) -> Box<dyn Container + '_> {
        Box::new(self.run(name, |bundle| bundle).unwrap_or_else(|out| panic!("{out:?}")))
    }

    fn member(&self, name: &str) -> Box<dyn Container + '_> {
        Box::new(self.run(name, |bundle| (self.bundle)(bundle, "vpn")).unwrap_or_else(|out| panic!("{out:?}")))
    }

    fn refused(&self, name: &str) -> Refused {
        let said = self.run(name, |bundle| (self.bundle)(bundle, "nope")).err().expect("a refusal");
        Refused { said, because: UNKNOWN_JAIL }
    }

    fn command(&self, args: &[&str]) -> Cmd {
        Cmd::new(self.runtime, &[&["--root", &format!("/run/lab/{}", self.runtime)], args].concat())
    }

    fn forget(&self, name: &str) {
        // The namespace is the test's own.
        self.lab.sh(&format!("ip netns del {name}"));
    }
}

struct ByPodman<'lab> {
    bare: Podman<'lab>,
    wired: Podman<'lab>,
    by_annotation: bool,
}

pub fn hook_files<'lab>(podman: Podman<'lab>, files: [(&str, &str); 2]) -> Podman<'lab> {
    files.into_iter().fold(podman, |podman, (name, text)| podman.hook_file(name, text))
}

impl Engine for ByPodman<'_> {
    fn plain(&self, name: &str) -> Box<dyn Container + '_> {
        Box::new(self.bare.run(name, &[]))
    }

    fn member(&self, name: &str) -> Box<dyn Container + '_> {
        let annotation: &[&str] = if self.by_annotation { &["--annotation", "io.tunjail.jail=vpn"] } else { &[] };
        Box::new(self.wired.run(name, annotation))
    }

    fn refused(&self, name: &str) -> Refused {
        let out = self.wired.try_run(name, &["--annotation", "io.tunjail.jail=nope"]);
        Refused { said: out.err().expect("a refusal"), because: UNKNOWN_JAIL }
    }

    fn command(&self, args: &[&str]) -> Cmd {
        self.wired.call(args)
    }
}

struct ByDocker {
    docker: Docker,
    by_subnet: bool,
}

/// Docker with the runtime of the file, one that names no jail, and one that names a jail that does not exist.
pub fn docker(lab: &Lab) -> Docker {
    let mut runtimes = parse(DOCKER_DAEMON)["runtimes"].clone();
    let path = runtimes["tunjail"]["path"].clone();
    runtimes["by-subnet"] = json!({"path": path});
    runtimes["unknown"] = json!({"path": path, "runtimeArgs": ["--jail", "nope"]});
    Docker::start(lab, &runtimes)
}

pub fn other_docker_network(docker: &Docker) {
    let create = ["network", "create", "--subnet", OTHER4, "--ipv6", "--subnet", OTHER6, OTHER];
    docker.call(&create).ok();
}

impl ByDocker {
    fn runtime(&self) -> &'static str {
        if self.by_subnet { "by-subnet" } else { "tunjail" }
    }
}

impl Engine for ByDocker {
    fn plain(&self, name: &str) -> Box<dyn Container + '_> {
        Box::new(self.docker.run(name, &[]))
    }

    fn member(&self, name: &str) -> Box<dyn Container + '_> {
        Box::new(self.docker.run(name, &["--runtime", self.runtime()]))
    }

    fn refused(&self, name: &str) -> Refused {
        if !self.by_subnet {
            let out = self.docker.try_run(name, &["--runtime", "unknown"]);
            return Refused { said: out.err().expect("a refusal"), because: UNKNOWN_JAIL };
        }
        // Nothing names a jail here that could be unknown: a second network it is.
        let create =
            ["create", "--name", name, "--runtime", self.runtime(), "--network", BRIDGE, "lab", "/bin/sleep", "9"];
        self.docker.call(&create).ok();
        self.docker.call(&["network", "connect", OTHER, name]).ok();
        let said = self.docker.call(&["start", name]).out();
        assert_ne!(said.code, 0, "a refusal: {said:?}");
        Refused { said, because: SECOND_NETWORK }
    }

    fn command(&self, args: &[&str]) -> Cmd {
        self.docker.call(args)
    }
}
