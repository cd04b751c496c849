//! What a user reads when a container is refused, and containers that are none of tunjail's business. That each engine
//! holds its members is in [`crate::matrix`].

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use crate::bridge::BRIDGE;
use crate::engine::Container;
use crate::engine::podman::Podman;
use crate::guest::{Guest, Release};
use crate::matrix::wired::{self, ALWAYS, OTHER, OTHER4, OTHER6, docker, other_docker_network};
use crate::matrix::{Engine, Way, at_rest, comes_to_be};
use crate::product::{STRICT_JAIL, own_lines};
use crate::run::{Out, answer, wait_until};
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

/// Where the address decides, no name is wrong: a second network is. Docker 28 connects both after the hook.
#[rstest]
#[case::docker_20_10(Release::Bookworm)]
#[case::docker_28_5(Release::Sid)]
fn the_user_is_told_that_a_second_network_was_refused(#[case] release: Release) {
    let lab = Lab::new();
    let guest = Guest::new(&lab, release);
    lab.is_of(&guest);
    lab.configure(STRICT_JAIL);
    let docker = docker(&lab, &guest);
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

/// What tunjail says of the one container that it knows: its state and why.
fn state(lab: &Lab) -> (String, String) {
    let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    let members = status["jails"][0]["members"].as_array().expect("the members");
    let text = |key: &str| members.first().and_then(|member| member[key].as_str()).unwrap_or_default().to_owned();
    (text("state"), text("why"))
}

/// Docker 28: a network next to the jail's, before the start and after it, is no way out.
#[rstest]
#[case::device(&["--device", "tunjail.io/jail=vpn"])]
#[case::runtime(&["--runtime", "tunjail-vpn"])]
fn a_second_network_of_docker_28_stays_shut(#[case] options: &[&str]) {
    let lab = Lab::new();
    let guest = Guest::new(&lab, Release::Sid);
    lab.is_of(&guest);
    lab.configure(STRICT_JAIL);
    let docker = docker(&lab, &guest);
    other_docker_network(&docker);
    let plain = docker.run("control", &["--network", OTHER]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&plain, ROUTER4, HOST6));
    let ask = |name: &str| {
        for question in
            [&["http", SERVICE4][..], &["http", SERVICE6], &["udp-echo", SERVICE4, "7"], &["ping", SERVICE6, "1"]]
        {
            docker.call(&[&["exec", name, "/bin/probe"], question].concat()).out();
        }
    };

    let mut member = docker.run("m1", options);
    wait_until("a member", Duration::from_secs(5), || state(&lab).0 == "held");
    lab.reset_leaks();
    docker.call(&["network", "connect", OTHER, "m1"]).ok();
    ask("m1");
    lab.assert_no_leak("engines", &format!("docker-28-{}-connected-later", options[0]), control);
    member.remove();

    let create = [&["create", "--name", "m2", "--network", BRIDGE], options, &["lab", "/bin/sleep", "3600"]].concat();
    docker.call(&create).ok();
    docker.call(&["network", "connect", OTHER, "m2"]).ok();
    let out = docker.call(&["start", "m2"]).out();
    if options[0] == "--runtime" {
        assert_told(&out, SECOND_NETWORK);
        return;
    }
    assert_eq!(out.code, 0, "{out:?}");
    wait_until("a refusal", Duration::from_secs(5), || state(&lab).0 == "refused");
    assert!(state(&lab).1.contains("outside jail vpn"), "{:?}", state(&lab));
    ask("m2");
    lab.assert_no_leak("engines", "docker-28-device-connected-before", control);
    docker.call(&["rm", "--force", "m2"]).ok();
}

/// The engine starts a killed container again by itself: another process and namespace under the same id.
#[rstest]
#[case::docker_20_10(Release::Bookworm)]
#[case::docker_28_5(Release::Sid)]
fn a_restart_policy_brings_a_member_back(#[case] release: Release) {
    let lab = Lab::new();
    let guest = Guest::new(&lab, release);
    lab.is_of(&guest);
    lab.configure(STRICT_JAIL);
    let docker = docker(&lab, &guest);
    let mut member = docker.run("m1", &["--runtime", "tunjail-vpn", "--restart", "always"]);
    let pid = || docker.call(&["inspect", "--format", "{{.State.Pid}}", "m1"]).ok().trim().to_owned();
    for _ in 0..3 {
        let before = pid();
        lab.sh(&format!("kill -9 {before}"));
        wait_until("another run", Duration::from_secs(10), || !["0", before.as_str()].contains(&pid().as_str()));
        wait_until("a member again", Duration::from_secs(5), || state(&lab).0 == "held");
    }
    member.remove();
    wait_until("nothing left", Duration::from_secs(5), || lab.snapshot().part("/run/tunjail") == "absent\n");
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
