//! What a user reads when a container is refused, and containers that are none of tunjail's business. That each engine
//! holds its members is in [`crate::matrix`].

use rstest::rstest;

use crate::bridge::BRIDGE;
use crate::engine::Container;
use crate::engine::podman::Podman;
use crate::guest::{Guest, Release};
use crate::matrix::wired::{self, ALWAYS, OTHER, OTHER4, OTHER6, docker, other_docker_network};
use crate::matrix::{Engine, Way, at_rest, comes_to_be};
use crate::product::{STRICT_JAIL, own_lines};
use crate::run::{Out, answer};
use crate::works::ask_the_internet;
use crate::world::{HOST6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

const UNKNOWN_JAIL: &[&str] = &["jail nope is not in the configuration", "its jails are: vpn"];
const SECOND_NETWORK: &[&str] = &["address 172.30.", "outside jail vpn", "attach the container to the jail's network"];

/// Tunjail says one line, with all of the reason in it.
#[track_caller]
fn assert_told(said: &Out, because: &[&str]) {
    assert_ne!(said.code, 0, "a refusal: {said:?}");
    println!("refused: {}", said.stderr.trim());
    let lines = own_lines(&said.stderr);
    assert_eq!(lines.len(), 1, "one line of tunjail's in:\n{}", said.stderr);
    for reason in because {
        assert!(lines[0].contains(reason), "{reason:?} is not in: {}", lines[0]);
    }
}

const PODMAN: Engine = Engine::Podman { runtime: "crun", userns: false };
const PODMAN_RUNC: Engine = Engine::Podman { runtime: "runc", userns: false };

#[rstest]
#[case::runc_config(Engine::Oci("runc"), Way::Config)]
#[case::crun_wrapper(Engine::Oci("crun"), Way::WrapperAnnotation)]
#[case::podman_crun(PODMAN, Way::HooksAnnotation)]
#[case::podman_runc(PODMAN_RUNC, Way::HooksAnnotation)]
#[case::podman_always(PODMAN, Way::HooksAlways)]
#[case::docker(Engine::Docker, Way::WrapperJail)]
fn the_user_is_told_why_a_container_was_refused(#[case] engine: Engine, #[case] way: Way) {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let engine = wired::start(&lab, engine, Release::Bookworm);
    // What the engine itself leaves after its first container (empty chains, a bridge without a carrier) is not counted.
    engine.plain("control").remove();
    engine.forget("control");
    let before = at_rest(&lab);
    let said = engine.try_member(way, "m1", "nope").err().expect("a refusal");
    assert_told(&said, UNKNOWN_JAIL);
    engine.forget("m1");
    comes_to_be(&lab, &before, "a refused container");
}

/// Where the address decides, no name is wrong: a second network is.
#[test]
fn the_user_is_told_that_a_second_network_was_refused() {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let docker = docker(&lab, &Guest::own());
    other_docker_network(&docker);
    // A bridge gets its link-local address with its first port.
    for network in [BRIDGE, OTHER] {
        docker.run("first", &["--network", network]).remove();
    }
    let before = at_rest(&lab);
    let options = ["--runtime", "by-subnet", "--network", BRIDGE];
    docker.call(&[&["create", "--name", "m1"], &options[..], &["lab", "/bin/sleep", "9"]].concat()).ok();
    docker.call(&["network", "connect", OTHER, "m1"]).ok();
    assert_told(&docker.call(&["start", "m1"]).out(), SECOND_NETWORK);
    docker.call(&["rm", "--force", "m1"]).ok();
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
        podman = Podman::new(&lab).hooks("always", &ALWAYS);
        let create = ["network", "create", "--disable-dns", "--subnet", OTHER4, "--subnet", OTHER6, "--ipv6", OTHER];
        podman.call(&create).ok();
        let container = podman.run("m1", &["--network", OTHER]);
        (Box::new(container), podman.call(&["inspect", "--format", "{{.State.Pid}}", "m1"]).ok())
    } else {
        docker_engine = docker(&lab, &Guest::own());
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

/// Docker with `"iptables": false`, or a bridge that an administrator made: the jail masquerades by itself.
#[test]
fn a_member_comes_out_where_no_engine_masquerades() {
    let mut scene = crate::scene::strict();
    scene.lab.sh("nft delete table inet cni");
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4);
    assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6);
}
