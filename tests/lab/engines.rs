//! Every engine, wired as its users wire it, by the files in hooks/ word for word: promises P2, P3 and P9, and what a
//! user reads when a container is refused.

use std::cell::Cell;
use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};

use crate::bridge::{BRIDGE, Bridge};
use crate::engine::Container;
use crate::engine::docker::Docker;
use crate::engine::oci::{Bundle, Oci};
use crate::engine::podman::Podman;
use crate::product::{STRICT_JAIL, own_lines};
use crate::run::{Cmd, Out, answer, wait_until};
use crate::scene::Traffic;
use crate::snapshot::Snapshot;
use crate::vpn::{Client, Vpn};
use crate::works::ask_the_internet;
use crate::world::{HOST6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

const OCI_CONFIG: &str = include_str!("../../hooks/oci-config.json");
const DOCKER_DAEMON: &str = include_str!("../../hooks/docker-daemon.json");
const BY_ANNOTATION: [(&str, &str); 2] = [
    ("tunjail-annotation-create.json", include_str!("../../hooks/tunjail-annotation-create.json")),
    ("tunjail-annotation-poststop.json", include_str!("../../hooks/tunjail-annotation-poststop.json")),
];
const ALWAYS: [(&str, &str); 2] = [
    ("tunjail-always-create.json", include_str!("../../hooks/tunjail-always-create.json")),
    ("tunjail-always-poststop.json", include_str!("../../hooks/tunjail-always-poststop.json")),
];

/// A network that is no jail's.
const OTHER: &str = "other";
const OTHER4: &str = "172.30.0.0/16";
const OTHER6: &str = "fd00:30::/64";

/// How an engine may be wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wiring {
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
    fn engine(self, lab: &Lab) -> Box<dyn Engine + '_> {
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
trait Engine {
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

struct Refused {
    said: Out,
    /// What the reason must say.
    because: &'static [&'static str],
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

fn hook_files<'lab>(podman: Podman<'lab>, files: [(&str, &str); 2]) -> Podman<'lab> {
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
fn docker(lab: &Lab) -> Docker {
    let mut runtimes = parse(DOCKER_DAEMON)["runtimes"].clone();
    let path = runtimes["tunjail"]["path"].clone();
    runtimes["by-subnet"] = json!({"path": path});
    runtimes["unknown"] = json!({"path": path, "runtimeArgs": ["--jail", "nope"]});
    Docker::start(lab, &runtimes)
}

fn other_docker_network(docker: &Docker) {
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

fn exit(lab: &Lab) -> (Vpn, Client) {
    let server = Vpn::start_server(lab);
    let client = server.client(Some(&lab.exit_script()));
    lab.configure(STRICT_JAIL);
    (server, client)
}

/// The loss of the exit with policy routing alone: counted.
fn control_of_the_loss(lab: &Lab, client: &mut Client, plain: &dyn Container) -> u64 {
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
    let seen = lab.leaks().total();
    traffic.end(plain);
    lab.no_recipe();
    lab.reset_leaks();
    seen
}

#[rstest]
#[case::runc_config("runc-config", Wiring::RuncConfig)]
#[case::crun_annotation("crun-annotation", Wiring::CrunAnnotation)]
#[case::podman_crun("podman-crun", Wiring::PodmanCrun)]
#[case::podman_runc("podman-runc", Wiring::PodmanRunc)]
#[case::podman_always("podman-always", Wiring::PodmanAlways)]
#[case::docker("docker", Wiring::Docker)]
#[case::docker_by_subnet("docker-by-subnet", Wiring::DockerBySubnet)]
fn a_member_leaves_by_the_exit_or_not_at_all(#[case] case: &str, #[case] wiring: Wiring) {
    let lab = Lab::new();
    let (_server, mut client) = exit(&lab);
    let engine = wiring.engine(&lab);
    let mut plain = engine.plain("control");
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&*plain, ROUTER4, HOST6));
    let control_of_the_loss = control_of_the_loss(&lab, &mut client, &*plain);
    plain.remove();

    client.start_and_wait();
    let mut member = engine.member("m1");
    lab.reset_leaks();
    ask_the_internet(&*member, VPN4, VPN6);
    lab.assert_no_leak("engines", case, control);
    assert!(lab.leaks().transport > 0, "nothing went through the tunnel either");

    let mut traffic = Traffic::start(&*member);
    traffic.wait_flowing();
    client.sigkill();
    traffic.press();
    lab.assert_no_leak("engines", &format!("{case}-exit-killed"), control_of_the_loss);

    // The same container, no restart.
    client.start_and_wait();
    wait_until("the exit open again", Duration::from_secs(10), || {
        member.probe(&["http", SERVICE4]).json()["body"] == VPN4
    });
    assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6);
    traffic.wait_floods_flowing();
    lab.assert_no_leak("engines", &format!("{case}-exit-returned"), control_of_the_loss);
    traffic.end(&*member);
    member.remove();
}

/// An engine takes down its own bridge, addresses and chains some time after it says that it is done.
#[track_caller]
fn comes_to_be(lab: &Lab, before: &Snapshot, what: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while lab.snapshot() != *before && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    before.assert_same(&lab.snapshot(), what);
}

/// What the engine itself leaves after its first container (empty chains, a bridge without a carrier) is not counted:
/// a plain container has been there before.
fn before_any_member(lab: &Lab, engine: &dyn Engine) -> Snapshot {
    engine.plain("control").remove();
    engine.forget("control");
    let mut before = lab.snapshot();
    wait_until("the engine at rest", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(300));
        let now = lab.snapshot();
        std::mem::replace(&mut before, now.clone()) == now
    });
    assert_eq!(before.part("/run/tunjail"), "absent\n", "a plain container was none of tunjail's business");
    before
}

#[rstest]
#[case::runc_config(Wiring::RuncConfig)]
#[case::crun_annotation(Wiring::CrunAnnotation)]
#[case::podman_crun(Wiring::PodmanCrun)]
#[case::podman_runc(Wiring::PodmanRunc)]
#[case::podman_always(Wiring::PodmanAlways)]
#[case::docker(Wiring::Docker)]
#[case::docker_by_subnet(Wiring::DockerBySubnet)]
fn stop_and_remove_leave_the_host_as_it_was(#[case] wiring: Wiring) {
    let lab = Lab::new();
    let (_server, mut client) = exit(&lab);
    client.start_and_wait();
    let engine = wiring.engine(&lab);
    let before = before_any_member(&lab, &*engine);
    for round in ["the first member", "the second member"] {
        let mut member = engine.member("m1");
        assert!(lab.snapshot().part("nft ruleset").contains("table inet tunjail_vpn"), "the wall stands");
        assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4);
        member.stop();
        member.remove();
        engine.forget("m1");
        comes_to_be(&lab, &before, round);
    }
}

/// A restart is a new namespace under the old name, and the old poststop may come when it likes.
#[rstest]
#[case::podman_crun(Wiring::PodmanCrun)]
#[case::docker(Wiring::Docker)]
fn a_restarted_container_is_a_member_again(#[case] wiring: Wiring) {
    let lab = Lab::new();
    let (_server, mut client) = exit(&lab);
    client.start_and_wait();
    let engine = wiring.engine(&lab);
    let before = before_any_member(&lab, &*engine);
    let mut member = engine.member("m1");
    for how in ["restart", "start", "restart"] {
        if how == "start" {
            member.stop();
            comes_to_be(&lab, &before, "a stopped member");
            engine.command(&["start", "m1"]).ok();
        } else {
            engine.command(&["restart", "--time", "0", "m1"]).ok();
        }
        let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
        assert_eq!(status["jails"][0]["members"].as_array().map(Vec::len), Some(1), "{how}: {status:#}");
        assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4, "{how}");
        assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6, "{how}");
    }
    member.remove();
    comes_to_be(&lab, &before, "a member that was restarted");
}

#[rstest]
#[case::runc_config(Wiring::RuncConfig)]
#[case::crun_annotation(Wiring::CrunAnnotation)]
#[case::podman_crun(Wiring::PodmanCrun)]
#[case::podman_runc(Wiring::PodmanRunc)]
#[case::podman_always(Wiring::PodmanAlways)]
#[case::docker(Wiring::Docker)]
#[case::docker_by_subnet(Wiring::DockerBySubnet)]
fn the_user_is_told_why_a_container_was_refused(#[case] wiring: Wiring) {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let engine = wiring.engine(&lab);
    let before = before_any_member(&lab, &*engine);
    let Refused { said, because } = engine.refused("m1");
    println!("refused: {wiring:?}: {}", said.stderr.trim());
    let lines = own_lines(&said.stderr);
    assert_eq!(lines.len(), 1, "one line of tunjail's in:\n{}", said.stderr);
    for reason in because {
        assert!(lines[0].contains(reason), "{reason:?} is not in: {}", lines[0]);
    }
    engine.forget("m1");
    comes_to_be(&lab, &before, "a refused container");
}

/// `always` and a default runtime hook every container: one that is on no jail's network is nobody's.
#[rstest]
#[case::podman("podman")]
#[case::docker("docker")]
fn a_container_on_another_network_is_left_alone(#[case] which: &str) {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let podman;
    let docker_engine;
    let (mut other, pid): (Box<dyn Container + '_>, String) = if which == "podman" {
        podman = hook_files(Podman::new(&lab), ALWAYS);
        let create = ["network", "create", "--disable-dns", "--subnet", OTHER4, "--subnet", OTHER6, "--ipv6", OTHER];
        podman.call(&create).ok();
        let container = podman.run("m1", &["--network", OTHER]);
        (Box::new(container), podman.call(&["inspect", "--format", "{{.State.Pid}}", "m1"]).ok())
    } else {
        docker_engine = docker(&lab);
        other_docker_network(&docker_engine);
        let container = docker_engine.run("m1", &["--runtime", "by-subnet", "--network", OTHER]);
        (Box::new(container), docker_engine.call(&["inspect", "--format", "{{.State.Pid}}", "m1"]).ok())
    };
    ask_the_internet(&*other, ROUTER4, HOST6);
    let inside = lab.sh(&format!("nsenter --net=/proc/{}/ns/net nft list ruleset", pid.trim()));
    assert!(!inside.contains("tunjail"), "{inside}");
    let host = lab.snapshot();
    assert_eq!(host.part("/run/tunjail"), "absent\n");
    assert!(!host.part("nft ruleset").contains("tunjail"), "{}", host.part("nft ruleset"));
    assert!(!host.part("ip rule").contains("700:"), "{}", host.part("ip rule"));
    other.remove();
}
