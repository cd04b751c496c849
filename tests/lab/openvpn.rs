//! OpenVPN as the exit: the example as it is, `redirect-gateway` left on, restarts of every kind, a server that the tunnel
//! itself covers, and an environment that nobody should believe.

mod environment;

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rstest::rstest;

use crate::bridge::Bridge;
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product::STRICT_JAIL;
use crate::run::{Cmd, Job, answer, wait_until};
use crate::scene::Traffic;
use crate::vpn::{Client, TUN, Vpn, link_exists, next_ports, without_a_port};
use crate::works;
use crate::world::{HOST6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

/// What tunjail has added to the host's own table.
fn added(lab: &Lab) -> String {
    lab.sh("ip -4 route show table main proto 116; ip -6 route show table main proto 116")
}

/// The same loss of the tunnel without a jail, by whatever way the container takes then: counted.
fn control(lab: &Lab, bridge: &Bridge, client: &mut Client) -> u64 {
    let netns = bridge.plug("control", 200);
    let mut plain = Oci::run(lab, "runc", "control", &Bundle::new(&netns));
    client.start_and_wait();
    lab.recipe();
    lab.reset_leaks();
    let mut traffic = Traffic::start(&plain);
    traffic.wait_flowing();
    client.sigkill();
    wait_until("the control to leak", Duration::from_secs(5), || {
        let leaks = lab.leaks();
        leaks.v4 > 100 && leaks.v6 > 100
    });
    let seen = lab.leaks().total();
    traffic.end(&plain);
    plain.remove();
    lab.no_recipe();
    lab.reset_leaks();
    seen
}

fn member(lab: &Lab, bridge: &Bridge) -> Oci {
    let netns = bridge.plug("m1", 2);
    Oci::run(lab, "runc", "m1", &Bundle::new(&netns).jailed(&["--jail", "vpn"]))
}

/// Both families by the tunnel.
fn comes_out_at_the_server(asking: impl Fn(&[&str]) -> crate::run::Out) {
    assert_eq!(answer(&asking(&["http", SERVICE4])), VPN4);
    assert_eq!(answer(&asking(&["http", SERVICE6])), VPN6);
}

/// With the capabilities that Debian's openvpn-client@.service leaves it.
fn as_the_unit_starts_it(config: &str) -> Job {
    let capabilities = "-all,+ipc_lock,+net_admin,+net_raw,+setgid,+setuid,+setpcap,+sys_chroot,+dac_override";
    let line = ["--bounding-set", capabilities, "openvpn", "--suppress-timestamps", "--nobind", "--config", config];
    Cmd::new("setpriv", &line).cwd(Path::new("/etc/openvpn/client")).spawn()
}

#[test]
fn the_example_runs_as_it_is() {
    let scene = crate::scene::strict();
    let control = works::control(&scene);
    let lab = &scene.lab;

    // What the file names: the provider's part, and a name for its server.
    let dir = Path::new("/etc/openvpn/client");
    fs::create_dir_all(dir).expect("OpenVPN's directory");
    for file in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(lab.dir("pki").join(file), dir.join(file)).expect("the provider's part");
    }
    fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{VPN4} vpn.example.com\n")).expect("/etc/hosts");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/openvpn/client.conf");
    fs::copy(example, dir.join("vpn.conf")).expect("the example");
    // So that the lab knows the transport by its ports.
    next_ports();

    lab.tunjail_ok(&["up"]);
    let mut client = as_the_unit_starts_it("vpn.conf");
    wait_until("the tunnel", Duration::from_secs(10), || {
        assert!(!client.ended(), "OpenVPN ended:\n{}", client.stdout());
        client.stdout().contains("Initialization Sequence Completed")
    });
    assert!(!client.stdout().contains("WARNING: Failed running command"), "{}", client.stdout());
    let member = scene.member("runc", "m1", 2);
    works::comes_out_at_the_server(lab, &member, "openvpn-example", control);
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), ROUTER4, "the host keeps its own way");
    assert_eq!(answer(&lab.probe(&["http", SERVICE6])), HOST6);
    assert_eq!(added(lab), "", "nothing is needed");

    // Its end in good order, and its return.
    client.signal(Signal::SIGTERM);
    client.finish(Duration::from_secs(10));
    wait_until("the tunnel gone", Duration::from_secs(5), || !link_exists(TUN));
    assert_eq!(member.probe(&["http", SERVICE4]).json()["ok"], false);
    next_ports();
    let client = as_the_unit_starts_it("vpn.conf");
    wait_until("the tunnel", Duration::from_secs(10), || client.stdout().contains("Initialization Sequence Completed"));
    comes_out_at_the_server(|question| member.probe(question));
}

/// What is there to be appended, and what README shows, is what the examples do.
#[rstest]
#[case::openvpn("hooks/openvpn.conf", "examples/openvpn/client.conf")]
#[case::wireguard("hooks/wireguard.conf", "examples/wireguard/wg0.conf")]
fn the_lines_to_append_are_those_of_the_example(#[case] hooks: &str, #[case] example: &str) {
    let text = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path);
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(Into::into).collect()
    };
    let (example, readme) = (lines(&text(example)), text("README.md"));
    for line in lines(&text(hooks)) {
        assert!(example.contains(&line), "{line} is not in the example");
        let of_the_peer = line == "[Peer]" || line.starts_with("AllowedIPs");
        assert!(of_the_peer || readme.contains(&line), "{line} is not in README.md");
    }
}

/// The host goes by the tunnel, as its user wants, and the jail holds.
#[rstest]
#[case::as_the_server_says("def1", "")]
#[case::without_def1("plain", "redirect-gateway ipv6\n")]
fn redirect_gateway_left_on_moves_the_host_and_the_jail_holds(#[case] case: &str, #[case] more: &str) {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let bridge = Bridge::new(&lab);
    let server = Vpn::start_server_as(&lab, |config| match more {
        "" => config,
        _ => config.replace("push \"redirect-gateway def1 ipv6\"\n", ""),
    });
    let mut client = server
        .client_as(Some(&lab.exit_script()), |config| config.replace("pull-filter ignore redirect-gateway\n", more));
    let control = control(&lab, &bridge, &mut server.client(None));

    let before = lab.sh("ip route show table main; ip -6 route show table main | grep -v fe80");
    client.start_and_wait();
    comes_out_at_the_server(|question| lab.probe(question));
    assert_eq!(added(&lab), "", "OpenVPN has made its own route to the server");
    let member = member(&lab, &bridge);
    lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    comes_out_at_the_server(|question| member.probe(question));
    let leaks = lab.leaks();
    assert!(leaks.total() == 0 && leaks.transport > 0, "{leaks:?}\n{}", lab.leaked_flows());
    client.sigkill();
    traffic.press();
    lab.assert_no_leak("openvpn", &format!("redirect-gateway-{case}-killed"), control);
    lab.sh("ip route replace default via 192.168.178.1; ip route flush 203.0.113.10 || true");
    client.start_and_wait();
    traffic.wait_floods_flowing();
    lab.assert_no_leak("openvpn", &format!("redirect-gateway-{case}-return"), control);
    traffic.end(&member);
    client.stop();
    assert_eq!(lab.sh("ip route show table main; ip -6 route show table main | grep -v fe80"), before);
}

/// `SIGUSR1`, `SIGHUP`, and a server that comes back and gives other addresses: the container goes on.
#[rstest]
#[case::the_device_goes("restarts", "")]
#[case::the_device_stays("restarts-persist-tun", "persist-tun\npersist-key\n")]
fn a_member_lives_through_restarts(#[case] case: &str, #[case] more: &str) {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let bridge = Bridge::new(&lab);
    let server = Vpn::start_server(&lab);
    let mut client = server.client_as(Some(&lab.exit_script()), |config| without_a_port(&config) + more);
    let control = control(&lab, &bridge, &mut client);

    client.start_and_wait();
    let member = member(&lab, &bridge);
    lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    for signal in [Signal::SIGUSR1, Signal::SIGHUP] {
        client.restart(signal);
        traffic.wait_floods_flowing();
        comes_out_at_the_server(|question| member.probe(question));
        lab.assert_no_leak("openvpn", &format!("{case}-{signal}"), control);
    }

    // The server goes, says so, and comes back with other addresses for its clients.
    let before = client.completions();
    next_ports();
    server.stop();
    traffic.press_floods();
    let _server = Vpn::start_server_as(&lab, |config| {
        config.replace("10.8.0.0", "10.9.0.0").replace("2001:db8:8::/64", "2001:db8:9::/64")
    });
    client.wait_reconnected(before);
    assert!(lab.sh(&format!("ip -4 addr show {TUN}")).contains("10.9.0."), "the tunnel has its old address");
    traffic.wait_floods_flowing();
    comes_out_at_the_server(|question| member.probe(question));
    lab.assert_no_leak("openvpn", &format!("{case}-another-address"), control);
    traffic.end(&member);
    assert_eq!(added(&lab), "");
}

/// A server whose routes cover the server itself, or a client that was told to leave its own route out.
#[rstest]
#[case::routes("push \"route 0.0.0.0 128.0.0.0\"\npush \"route 128.0.0.0 128.0.0.0\"\n", "")]
#[case::routes_persist_tun(
    "push \"route 0.0.0.0 128.0.0.0\"\npush \"route 128.0.0.0 128.0.0.0\"\n",
    "persist-tun\npersist-key\nup-restart\n"
)]
#[case::without_its_own_route("", "redirect-gateway local\ndown-pre\n")]
fn a_route_to_the_server_is_there_while_the_host_needs_it(#[case] pushed: &str, #[case] more: &str) {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let bridge = Bridge::new(&lab);
    let server = Vpn::start_server_as(&lab, |config| config.replace("push \"redirect-gateway def1 ipv6\"\n", pushed));
    let mend = || lab.sh("ip route replace default via 192.168.178.1");
    let main = || lab.sh("ip route show table main; ip -6 route show table main | grep -v fe80");
    let netns = bridge.plug("m1", 2);
    let before = main();
    let clean = lab.settled();

    // Without tunjail the tunnel swallows its own packets.
    let mut control = server.client_as(None, |config| without_a_port(&config) + more);
    control.start_and_wait();
    assert_eq!(lab.probe(&["http", SERVICE4]).json()["ok"], false, "the tunnel works by itself");
    control.sigkill();
    mend();

    let mut client = server.client_as(Some(&lab.exit_script()), |config| without_a_port(&config) + more);
    client.start_and_wait();
    let by_the_uplink = "203.0.113.10 via 192.168.178.1 dev eth0 metric 1 \n";
    assert_eq!(added(&lab), by_the_uplink);
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), VPN4);
    let mut container = Oci::run(&lab, "runc", "m1", &Bundle::new(&netns).jailed(&["--jail", "vpn"]));
    comes_out_at_the_server(|question| container.probe(question));
    client.restart(Signal::SIGUSR1);
    assert_eq!(added(&lab), by_the_uplink);
    comes_out_at_the_server(|question| container.probe(question));
    container.remove();
    assert_eq!(added(&lab), by_the_uplink, "it is the tunnel's, and not the last member's");
    client.stop();
    assert_eq!(main(), before, "after `down`");

    // Killed: nobody says so, and `down` takes it out.
    client.start_and_wait();
    client.sigkill();
    mend();
    assert_eq!(added(&lab), by_the_uplink);
    assert!(lab.tunjail_ok(&["down", "--dry-run"]).contains("ip -4 route del 203.0.113.10/32"));
    lab.tunjail_ok(&["down"]);
    assert_eq!(main(), before, "after tunjail down");
    clean.assert_same(&lab.snapshot(), "a tunnel that covered its server");

    // Somebody else's route to it will do, and stays.
    lab.sh("ip route add 203.0.113.10 via 192.168.178.1 metric 7");
    client.start_and_wait();
    assert_eq!(added(&lab), "");
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), VPN4);
    client.stop();
    lab.tunjail_ok(&["down"]);
    assert!(main().contains("203.0.113.10 via 192.168.178.1 dev eth0 metric 7"), "{}", main());
}

/// The same over IPv6, where OpenVPN sees to it itself unless the routes are somebody else's.
#[test]
fn a_route_to_a_server_of_ipv6_is_added_too() {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let server = Vpn::start_server_as(&lab, |config| {
        config.replace("proto udp4", "proto udp6").replace(&format!("local {VPN4}"), &format!("local {VPN6}"))
    });
    // As a router's advertisement makes it: by an address that means nothing without its interface.
    lab.router.sh("ip addr add fe80::1/64 dev lan nodad");
    lab.sh("ip -6 route replace default via fe80::1 dev eth0");
    let script = lab.dir("scripts").join("up");
    fs::write(&script, format!("#!/bin/sh\nip -6 route add ::/1 dev {TUN}\nip -6 route add 8000::/1 dev {TUN}\n"))
        .expect("a script");
    lab.sh(&format!("chmod 755 {}", script.display()));
    let over_ipv6 = |config: String| {
        config
            .replace("proto udp4", "proto udp6")
            .replace(&format!("remote {VPN4}"), &format!("remote {VPN6}"))
            .replace("local 192.168.178.2", &format!("local {HOST6}"))
    };
    let mut client = server.client_as(Some(&lab.exit_script()), |config| {
        let up = format!("\nup \"{} up\"\n", lab.exit_script());
        over_ipv6(config).replace(&up, &format!("\nup {}\n", script.display()))
    });
    client.start_and_wait();
    assert_eq!(added(&lab), "2001:db8:113::10 via fe80::1 dev eth0 metric 1 pref medium\n");
    assert_eq!(answer(&lab.probe(&["http", SERVICE6])), VPN6);
    client.stop();
    assert_eq!(added(&lab), "");
}
