//! Forwarded ports on real engines: Podman by hooks.d, Docker whose addresses come late, a pod of containerd.

use super::firewall::{check_names_what_is_dropped, dropped};
use super::taken::{ALL, Thief, mute_peers, owner_gets};
use super::{PORTS, assert_unanswered, brought, call, leads, provide, serve, serve_at};
use crate::containerd::wiring::{Way, wired};
use crate::engine::containerd::PodConfig;
use crate::engine::podman::Podman;
use crate::engine::{Container, Restartable};
use crate::guest::{Guest, Release};
use crate::matrix::wired::{BY_ANNOTATION, docker};
use crate::product::{STRICT_JAIL, own_lines};
use crate::rootfs;
use crate::vpn::{Client, Vpn};
use crate::world::{Lab, VPN4, VPN6};

/// Without a comma: Podman takes what follows one for another annotation.
const ASKS: [&str; 2] = ["--annotation", "io.tunjail.forward=tcp/7 udp/7 tcp/8443:80"];
pub const FIXED: [&str; 4] = ["--ip", "172.18.0.20", "--ip6", "fd00:18::20"];

/// The exit with its provider, and a release's tools; in the order in which they are made.
pub fn internet(release: Release) -> (Lab, Guest, Vpn, Client) {
    rootfs::kubelet();
    let lab = Lab::new();
    let guest = Guest::new(&lab, release);
    lab.is_of(&guest);
    let server = Vpn::start_server(&lab);
    let mut client = server.client(Some(&lab.exit_script()));
    lab.configure(STRICT_JAIL);
    client.start_and_wait();
    provide(&lab);
    (lab, guest, server, client)
}

#[test]
fn podman_leads_ports_by_annotation_and_through_a_restart() {
    let (lab, guest, _server, _client) = internet(Release::Bookworm);
    let podman = Podman::of(&lab, &guest).hooks("annotation", &BY_ANNOTATION);
    let options =
        [&["--annotation", "io.tunjail.jail=vpn", "--cap-add=NET_BIND_SERVICE,NET_ADMIN"], &ASKS[..], &FIXED].concat();
    let mut member = podman.run("m1", &options);
    let services = serve(&member, 20);
    lab.reset_leaks();
    call(&lab);
    drop(services);
    // Its old poststop comes after the new createRuntime.
    member.restart();
    let _services = serve(&member, 20);
    call(&lab);
    assert_eq!(lab.leaks().escaped(), 0);
    mute_peers(&lab);
    let thief = podman.run("thief", &["--annotation", "io.tunjail.jail=vpn", "--cap-add=NET_BIND_SERVICE"]);
    thief.steals("7", "4001");
    assert_eq!(owner_gets(&lab, "7", "4001"), ALL, "whatever Podman masquerades by");
    let refused = podman.try_run("m2", &[&["--annotation", "io.tunjail.jail=vpn"], &ASKS[..]].concat());
    let said = refused.err().expect("a second owner").stderr;
    assert!(
        own_lines(&said).iter().any(|line| line.contains("port tcp/7 of exit tun0 is forwarded to container")),
        "{said}"
    );
    member.remove();
}

/// Docker drops what comes to ports that were not published, in rules of its own that are final: DOCKER-USER is where its
/// users say otherwise, or they publish the port.
#[test]
fn docker_leads_ports_to_an_address_that_comes_late() {
    let (lab, guest, _server, _client) = internet(Release::Sid);
    let docker = docker(&lab, &guest);
    let options = [&["--runtime", "tunjail-vpn", "--cap-add=NET_BIND_SERVICE"], &ASKS[..], &FIXED].concat();
    let mut member = docker.run("m1", &options);
    let services = serve(&member, 20);
    let user = "iptables -I DOCKER-USER -i tun0 -o vpn -j ACCEPT";
    let mends = check_names_what_is_dropped(&lab, &guest, &["-A DOCKER ! -i vpn -o vpn -j DROP", user]);
    assert_eq!(mends, [user, &user.replace("iptables", "ip6tables")]);
    lab.reset_leaks();
    call(&lab);
    for mend in mends {
        guest.sh(&mend.replace("-I", "-D"));
    }
    // The runtime's start judges last, and says so to the engine.
    let refused = docker.try_run("m2", &[&["--runtime", "tunjail-vpn"], &ASKS[..]].concat());
    let said = refused.err().expect("a second owner").stderr;
    assert!(said.contains("port tcp/7 of exit tun0 is forwarded to container"), "{said}");
    drop(services);
    member.remove();

    let published = ["-p", "8080:80", "-p", "1007:7", "-p", "1007:7/udp"];
    let mut member = docker.run("m3", &[&options[..], &published].concat());
    let _services = serve(&member, 20);
    call(&lab);
    assert_eq!(dropped(&lab), [""; 0], "published ports");
    // The wall is loaded anew by this release's nft, members and all, and its counters are read.
    lab.tools().cmd("nft", &["delete", "table", "inet", "tunjail_vpn"]).ok();
    lab.tunjail_ok(&["up"]);
    call(&lab);
    assert!(brought(&lab, "tcp/7") > 0 && brought(&lab, "udp/7") > 0);
    for server in [VPN4, VPN6] {
        assert_unanswered(&lab.inet.probe(&["http", server, "8080"]), "a published port by the exit");
    }
    mute_peers(&lab);
    let mut thief = docker.run("thief", &["--runtime", "tunjail-vpn", "--cap-add=NET_BIND_SERVICE"]);
    thief.steals("7", "4001");
    assert_eq!(owner_gets(&lab, "7", "4001"), ALL, "whatever Docker masquerades by");
    thief.remove();
    assert_eq!(lab.leaks().escaped(), 0);
    member.remove();
}

/// A pod's annotation is that of each of its containers: they ask for the same, and it goes with the last.
#[test]
fn a_pod_of_containerd_leads_its_ports() {
    let (lab, _guest, _server, _client) = internet(Release::Bookworm);
    let engine = wired(&lab, Release::Bookworm);
    let config = PodConfig::new("web").annotation("io.tunjail.jail", "vpn").annotation("io.tunjail.forward", PORTS);
    let pod = engine.pod("tunjail", &config);
    let mut first = Way::Annotation.container(&pod, "first");
    let mut second = Way::Annotation.container(&pod, "second");
    let address = |map| {
        let elements = leads(&lab, "vpn", map);
        let led = elements.split("tcp . 7 : ").nth(1).and_then(|rest| rest.split(" . ").next());
        led.unwrap_or_else(|| panic!("nothing leads to the pod: {elements}")).to_owned()
    };
    let addresses = ["forward4", "forward6"].map(address);
    let services = serve_at(&second, &[&addresses[0], &addresses[1]]);
    lab.reset_leaks();
    call(&lab);
    first.remove();
    call(&lab);
    assert_eq!(lab.leaks().escaped(), 0);
    drop(services);
    second.remove();
    pod.stop();
    pod.remove();
    assert_eq!(lab.tunjail_ok(&["forward", "list"]), "no port of an exit leads to a member\n");
}
