//! Every engine, wired as its users wire it, by the files in hooks/ word for word: promises P2, P3 and P9, and what a
//! user reads when a container is refused.

mod wiring;

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use self::wiring::{ALWAYS, Engine, OTHER, OTHER4, OTHER6, Refused, Wiring, docker, hook_files, other_docker_network};
use crate::engine::Container;
use crate::engine::podman::Podman;
use crate::product::{STRICT_JAIL, own_lines};
use crate::run::{answer, wait_until};
use crate::scene::Traffic;
use crate::snapshot::Snapshot;
use crate::vpn::{Client, Vpn};
use crate::works::ask_the_internet;
use crate::world::{HOST6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

pub fn exit(lab: &Lab) -> (Vpn, Client) {
    let server = Vpn::start_server(lab);
    let client = server.client(Some(&lab.exit_script()));
    lab.configure(STRICT_JAIL);
    (server, client)
}

/// The loss of the exit with policy routing alone: counted.
pub fn control_of_the_loss(lab: &Lab, client: &mut Client, plain: &dyn Container) -> u64 {
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
pub fn comes_to_be(lab: &Lab, before: &Snapshot, what: &str) {
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
