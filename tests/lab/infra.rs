//! The lab tested by itself: what the suites lean on holds without tunjail.

use std::time::Duration;

use rstest::rstest;

use crate::bridge::Bridge;
use crate::engine::Container;
use crate::engine::docker::Docker;
use crate::engine::oci::{Bundle, Oci};
use crate::engine::podman::Podman;
use crate::guest::{Guest, Release};
use crate::run::answer;
use crate::vpn::{Vpn, link_exists};
use crate::world::{DNS4, DNS6, HOST6, LAN4, LAN6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

#[test]
fn the_host_reaches_everything_by_its_uplink() {
    let lab = Lab::new();
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), ROUTER4);
    assert_eq!(answer(&lab.probe(&["http", SERVICE6])), HOST6);
    for addr in [SERVICE4, SERVICE6, LAN4, LAN6] {
        answer(&lab.probe(&["tcp-echo", addr, "7"]));
        answer(&lab.probe(&["udp-echo", addr, "7"]));
        assert_eq!(answer(&lab.probe(&["ping", addr, "2"])), "2");
    }
    for server in [DNS4, DNS6] {
        assert_eq!(answer(&lab.probe(&["dns", server, "name.example"])), SERVICE4);
        assert_eq!(answer(&lab.probe(&["dns-tcp", server, "name.example"])), SERVICE4);
    }
    assert_eq!(lab.askers("name.example"), [ROUTER4, ROUTER4, HOST6, HOST6]);
}

#[test]
fn a_quiet_host_counts_nothing_and_every_family_is_counted_apart() {
    let lab = Lab::new();
    lab.reset_leaks();
    let quiet = lab.leaks();
    assert_eq!((quiet.total(), quiet.transport), (0, 0), "{quiet:?}");
    let out = lab.probe(&["udp-from", "192.168.178.2", SERVICE4, "9", "7"]);
    assert_eq!(out.json()["sent"], 7, "{out:?}");
    lab.probe(&["udp-from", HOST6, SERVICE6, "9", "5"]);
    lab.probe(&["udp-from", "192.168.178.2", LAN4, "9", "3"]);
    lab.probe(&["udp-from", HOST6, LAN6, "9", "2"]);
    let seen = lab.leaks();
    assert_eq!((seen.v4, seen.v6, seen.lan4, seen.lan6, seen.other), (7, 5, 3, 2, 0), "{seen:?}");
    lab.probe(&["spoof-udp", "172.18.0.9", SERVICE4, "9", "4"]);
    lab.probe(&["spoof-udp", "fd00:18::9", SERVICE6, "9", "4"]);
    let router = "02:00:00:00:00:01";
    lab.probe(&["frame", "eth0", "02:aa:00:00:00:01", router, "172.18.0.9", SERVICE4, "9", "3"]);
    lab.probe(&["arp", "eth0", "02:aa:00:00:00:01", "172.18.0.9", "192.168.178.1", "2"]);
    let seen = lab.leaks();
    assert_eq!((seen.v4, seen.v6, seen.arp), (14, 9, 2), "forged sources are counted too: {seen:?}");
}

#[test]
fn the_tunnel_carries_both_families_and_its_transport_is_no_leak() {
    let lab = Lab::new();
    let server = Vpn::start_server(&lab);
    let mut client = server.client(None);
    client.start_and_wait();
    lab.reset_leaks();
    lab.sh(&format!("ip route add {SERVICE4} dev tun0; ip route add {SERVICE6} dev tun0"));
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), VPN4);
    assert_eq!(answer(&lab.probe(&["http", SERVICE6])), VPN6);
    let leaks = lab.leaks();
    assert_eq!(leaks.total(), 0, "{leaks:?}");
    assert!(leaks.transport > 0, "{leaks:?}");
    let routes = lab.sh("ip route show default; ip route show 0.0.0.0/1");
    assert!(!routes.contains("tun0"), "the client took the server's redirect-gateway: {routes}");
    client.sigkill();
    assert!(!link_exists("tun0"));
    client.start_and_wait();
    assert!(client.stop().contains("process exiting"));
    assert_eq!(lab.leaks().total(), 0, "the end of the client counts as a leak: {:?}", lab.leaks());
}

/// What every engine must show with the jail off: containers reach the internet by the uplink, and are counted.
fn leaves_by_the_uplink(lab: &Lab, container: &dyn Container, case: &str) {
    let control = lab.assert_probe_is_visible(|| {
        assert_eq!(answer(&container.probe(&["http", SERVICE4])), ROUTER4, "{case}");
        assert_eq!(answer(&container.probe(&["http", SERVICE6])), HOST6, "{case}");
        assert_eq!(answer(&container.probe(&["ping", SERVICE4, "1"])), "1");
        assert_eq!(answer(&container.probe(&["ping", SERVICE6, "1"])), "1");
    });
    let flood = lab.assert_probe_is_visible(|| {
        let out = container.probe(&["udp-flood", SERVICE4, "7", "1000", "0.3"]);
        let line = out.json();
        assert!(line["sent"].as_u64() > Some(250) && line["answered"].as_u64() > Some(250), "{line}");
    });
    println!("control: case={case} {control} packets, flood {flood} packets");
    let hold = lab.assert_probe_is_visible(|| {
        let mut flow = container.probing(&["tcp-hold", SERVICE6, "7", "20"]);
        flow.wait_figures("an established flow", Duration::from_secs(5), |line| line["echoed"].as_u64() > Some(640));
        lab.sh("ip -6 route add unreachable 2001:db8:51::/64");
        flow.wait_figures("the flow to stall", Duration::from_secs(5), |line| line["quiet_ms"].as_u64() > Some(100));
        lab.sh("ip -6 route del unreachable 2001:db8:51::/64");
        let stalled = flow.figure("echoed");
        flow.wait_figures("the flow to go on", Duration::from_secs(5), |line| {
            line["echoed"].as_u64() > Some(stalled + 640)
        });
        container.end(flow);
    });
    println!("control: case={case} flow {hold} packets");
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn oci_runtimes_run_a_plain_container(#[case] runtime: &'static str) {
    let lab = Lab::new();
    let bridge = Bridge::new(&lab);
    let netns = bridge.plug("m1", 2);
    let mut container = Oci::run(&lab, runtime, "plain", &Bundle::new(&netns));
    leaves_by_the_uplink(&lab, &container, runtime);
    container.remove();
}

#[rstest]
#[case::crun(Release::Bookworm, "crun")]
#[case::runc(Release::Bookworm, "runc")]
#[case::trixie(Release::Trixie, "crun")]
#[case::sid(Release::Sid, "crun")]
fn podman_runs_a_plain_container(#[case] release: Release, #[case] runtime: &'static str) {
    let lab = Lab::new();
    let podman = Podman::of(&lab, &Guest::new(&lab, release)).runtime(runtime);
    let mut container = podman.run("plain", &[]);
    leaves_by_the_uplink(&lab, &container, "podman");
    container.remove();
}

#[rstest]
#[case::bookworm(Release::Bookworm)]
#[case::trixie(Release::Trixie)]
#[case::sid(Release::Sid)]
fn docker_runs_a_plain_container(#[case] release: Release) {
    let lab = Lab::new();
    let docker = Docker::start_of(&lab, &Guest::new(&lab, release), &Docker::settings(&lab));
    let mut container = docker.run("plain", &[]);
    leaves_by_the_uplink(&lab, &container, "docker");
    container.remove();
}
