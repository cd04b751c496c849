//! Ports of the exit that lead to a member: whoever calls behind the VPN server reaches it, its answers go back by the
//! exit, and nothing else comes in.

mod command;
mod engines;
mod exits;
mod firewall;
mod owners;
mod taken;

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use crate::engine::oci::{Bundle, Oci};
use crate::engine::{Container, Restartable};
use crate::rootfs::{self, PROBE};
use crate::run::{Cmd, Job, Out, answer, wait_until};
use crate::scene::{self, Scene};
use crate::vpn::{TUN, TUNNEL_NET4};
use crate::works;
use crate::world::{HOST4, HOST6, Lab, VPN4, VPN6};

const SOON: Duration = Duration::from_secs(10);

/// Whom a member sees when somebody on the internet calls the VPN server.
pub const CALLER4: &str = "203.0.113.1";
pub const CALLER6: &str = "2001:db8:113::1";

/// What the probe serves: echo on one port of the same number, HTTP behind another.
pub const PORTS: &str = "tcp/7 udp/7, tcp/8443:80";

/// The addresses that the exit has now.
fn exit_addresses(lab: &Lab) -> [String; 2] {
    ["-4", "-6"].map(|family| {
        let text = lab.sh(&format!("ip {family} -o addr show dev {TUN} scope global"));
        let address = text.split_whitespace().nth(3).and_then(|net| net.split('/').next());
        address.unwrap_or_else(|| panic!("no address of the exit: {text}")).to_owned()
    })
}

/// What a VPN provider does for a customer: what comes to its own address goes to the customer's.
pub fn provide(lab: &Lab) {
    let [v4, v6] = exit_addresses(lab);
    lab.vpn.nft(&format!(
        "table inet provider
        delete table inet provider
        table inet provider {{ chain pre {{ type nat hook prerouting priority -100
            iifname eth0 meta l4proto {{ tcp, udp }} th dport != 1194 ip daddr {VPN4} dnat ip to {v4}
            iifname eth0 meta l4proto {{ tcp, udp }} th dport != 1194 ip6 daddr {VPN6} dnat ip6 to {v6}
        }}
        }}"
    ));
}

/// The services of a member, on its own addresses.
#[track_caller]
pub fn serve(container: &dyn Container, n: u8) -> Job {
    serve_at(container, &[&format!("172.18.0.{n}"), &format!("fd00:18::{n}")])
}

#[track_caller]
pub fn serve_at(container: &dyn Container, addresses: &[&str]) -> Job {
    let mut job = container.spawn(&[&[PROBE, "serve"], addresses].concat());
    wait_until("the member's services", Duration::from_secs(10), || {
        assert!(!job.ended(), "the member does not serve: {}", job.stderr());
        job.stdout().contains("ready")
    });
    job
}

/// All of [`PORTS`], called from the internet, both families; the member sees the caller itself.
#[track_caller]
pub fn call(lab: &Lab) {
    for (server, caller) in [(VPN4, CALLER4), (VPN6, CALLER6)] {
        assert_eq!(answer(&lab.inet.probe(&["http", server, "8443"])), caller, "the member sees the caller");
        answer(&lab.inet.probe(&["tcp-echo", server, "7"]));
        answer(&lab.inet.probe(&["udp-echo", server, "7"]));
    }
}

/// The elements of a map of a jail; empty when it is not there.
pub fn leads(lab: &Lab, jail: &str, map: &str) -> String {
    let out = lab.tools().cmd("nft", &["list", "map", "inet", &format!("tunjail_{jail}"), map]).out();
    out.stdout.split_once("elements = {").map(|(_, elements)| elements.to_owned()).unwrap_or_default()
}

/// How many packets a port brought, as `tunjail forward list` says.
#[track_caller]
pub fn brought(lab: &Lab, port: &str) -> u64 {
    let list: Value = serde_json::from_str(&lab.tunjail_ok(&["forward", "list", "--json"])).expect("JSON");
    let leads = list["forwards"].as_array().expect("a list");
    leads.iter().filter(|lead| lead["port"] == port).filter_map(|lead| lead["packets"].as_u64()).sum()
}

#[track_caller]
fn assert_unanswered(out: &Out, what: &str) {
    let line = out.json();
    assert!(line["ok"] == false, "{what}: {line}");
}

/// And the caller is told so.
#[track_caller]
fn assert_refused(out: &Out, what: &str) {
    assert_unanswered(out, what);
    let line = out.json();
    assert!(line["kind"] != "TimedOut" && line["kind"] != "WouldBlock", "{what}: the caller hangs: {line}");
}

/// A container that asks for these ports.
#[track_caller]
pub fn member(scene: &Scene, runtime: &'static str, name: &str, n: u8, ports: &str) -> Oci {
    let bundle = Bundle::new(&scene.bridge.plug(name, n)).annotation("io.tunjail.forward", ports);
    Oci::run(&scene.lab, runtime, name, &bundle.jailed(&["--jail", "vpn"]))
}

/// As hardened hosts have it.
fn strict_rp_filter(lab: &Lab) {
    lab.sh("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $file; done");
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_forwarded_port_is_reached_from_behind_the_exit_alone(#[case] runtime: &'static str) {
    let mut scene = scene::strict();
    let control = works::control(&scene);
    scene.client.start_and_wait();
    strict_rp_filter(&scene.lab);
    provide(&scene.lab);
    // Nobody is at the member's port 1.
    let mut member = member(&scene, runtime, "m1", 2, &format!("{PORTS} tcp/19:1"));
    let services = serve(&member, 2);

    scene.lab.reset_leaks();
    call(&scene.lab);
    assert!(["tcp/7", "udp/7", "tcp/8443"].iter().all(|port| brought(&scene.lab, port) > 0));
    assert_eq!(brought(&scene.lab, "tcp/19"), 0);
    scene.lab.assert_no_leak("forward", runtime, control);
    assert!(scene.lab.leaks().transport > 0, "nothing went through the tunnel either");

    // What was not asked for, though the member listens there. The host has nobody there, and its own answers to
    // strangers do not go by the exit, so the caller hears nothing.
    for (server, question, port) in [(VPN4, "tcp-echo", "80"), (VPN6, "tcp-echo", "80"), (VPN4, "udp-echo", "8443")] {
        assert_unanswered(&scene.lab.inet.probe(&[question, server, port]), "a port that nobody asked for");
    }
    // The same ports from elsewhere: the host's own address, and the exit's by the host's uplink.
    let [exit4, exit6] = exit_addresses(&scene.lab);
    scene.lab.lan.sh(&format!("ip route add {TUNNEL_NET4} via {HOST4}; ip route add {exit6} via {HOST6}"));
    for address in [HOST4, HOST6, &exit4, &exit6] {
        for port in ["7", "8443"] {
            assert_refused(&scene.lab.lan.probe(&["tcp-echo", address, port]), "a port of the exit from the LAN");
        }
    }
    // A port where the host listens too: by the exit it is the member's, by every other interface the host's.
    let own = Cmd::new(rootfs::probe(), &["serve", &exit4, &exit6]).spawn();
    wait_until("the host's own services", SOON, || own.stdout().contains("ready"));
    for (server, exit) in [(VPN4, &exit4), (VPN6, &exit6)] {
        assert_eq!(answer(&scene.lab.lan.probe(&["fetch", exit, "10"])), "10", "the host's own port from the LAN");
        let line = scene.lab.inet.probe(&["fetch", server, "10"]).json();
        assert_eq!(line["kind"], "ConnectionRefused", "the member, where nobody is: {line}");
    }
    drop(own);
    // The member itself comes out where it should.
    works::comes_out_at_the_server(&scene.lab, &member, runtime, control);
    scene.lab.assert_no_leak("forward", &format!("{runtime}-elsewhere"), control);

    // Once more in the same namespace.
    drop(services);
    member.restart();
    let _services = serve(&member, 2);
    call(&scene.lab);
    member.remove();
    for server in [VPN4, VPN6] {
        assert_unanswered(&scene.lab.inet.probe(&["tcp-echo", server, "7"]), "a port after its member");
    }
    let left = scene.lab.snapshot();
    assert!(left.part("/run/tunjail") == "absent\n", "{}", left.part("/run/tunjail"));
}

/// Peers that go on sending while nobody has the port keep the kernel's memory of where their packets went. Whoever gets
/// the port then gets them too, and whoever gave it up does not.
#[test]
fn callers_that_never_pause_reach_the_ports_new_owner() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    provide(&scene.lab);
    let mut flows: Vec<Job> = [VPN4, VPN6]
        .iter()
        .map(|server| {
            let args = ["udp-flood", server, "7", "50", "60"];
            Cmd::new(rootfs::probe(), &args).within(&scene.lab.inet).spawn()
        })
        .collect();
    for flow in &mut flows {
        flow.wait_figures("the callers to call", SOON, |line| line["sent"].as_u64() > Some(20));
    }
    let mut first = member(&scene, "runc", "m1", 2, "udp/7");
    let services = serve(&first, 2);
    let answered = |flows: &mut Vec<Job>, whom: &str| {
        for flow in flows {
            let before = flow.figure("answered");
            flow.wait_figures(whom, SOON, |line| line["answered"].as_u64() > Some(before + 10));
        }
    };
    answered(&mut flows, "the first owner to be reached");
    // Taken from one, given to another, by hand.
    let second = member(&scene, "runc", "m2", 3, "tcp/1");
    let _others = serve(&second, 3);
    scene.lab.tunjail_ok(&["forward", "remove", "m1", "udp/7"]);
    scene.lab.tunjail_ok(&["forward", "add", "m2", "udp/7"]);
    answered(&mut flows, "the second owner to be reached");
    drop(services);
    first.remove();
}
