//! An environment that nobody should believe: values are addresses and names of interfaces, or nothing.

use crate::product::{STRICT_JAIL, TUNJAIL};
use crate::rootfs;
use crate::run::{Cmd, Out};
use crate::teardown::crash::at_every_call;
use crate::vpn::TUN;
use crate::world::{Lab, VPN4};
use crate::yard::{Yard, assert_one_line, assert_refused};

const HUGE: usize = 100_000;

fn exit(direction: &str, variables: &[(&str, &str)]) -> Out {
    let cmd = Cmd::new(TUNJAIL, &["exit", direction, "1500", "0", "10.8.0.2", "255.255.255.0", "init"]);
    variables.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value)).out()
}

fn added(lab: &Lab) -> String {
    lab.sh("ip -4 route show table main proto 116; ip -6 route show table main proto 116")
}

#[test]
fn hostile_values_are_one_line_or_nothing() {
    let yard = Yard::new(STRICT_JAIL);
    let lab = &yard.lab;
    lab.tunjail_ok(&["up"]);
    // The tunnel covers its server, so that its address and the gateway's are needed.
    lab.sh(&format!("ip route add 0.0.0.0/1 dev {TUN}; ip route add 128.0.0.0/1 dev {TUN}"));
    let before = lab.settled();
    let files = || lab.sh("ls -aR /run/tunjail; ls -a /run /run/lab /etc /etc/iproute2");
    let listed = files();

    let huge = "1".repeat(HUGE);
    let bad =
        ["tun0 tun1", "tun0;touch /run/lab/x", "tun0\nrm", "$(touch /run/lab/x)", "../tun0", "tun0/../x", "*", &huge];
    for value in bad {
        for direction in ["up", "down"] {
            let out = exit(direction, &[("dev", value), ("script_type", direction)]);
            assert_refused(&out, &["\"dev\" in the environment", "must be 1 to 15 characters"]);
            assert!(out.stderr.len() < 400, "{}", out.stderr);
        }
        let out = Cmd::new(TUNJAIL, &["exit", "up", value]).out();
        assert_refused(&out, &["the first argument", "must be 1 to 15 characters"]);
    }

    let good = [("dev", TUN), ("script_type", "route-up"), ("script_context", "init")];
    let addresses = [
        "203.0.113.10;touch /run/lab/x",
        "203.0.113.10 via 192.168.178.1",
        "203.0.113.10\n",
        "203.0.113.10/24",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::",
        "ff02::1",
        "vpn.example.com",
        "-4",
        &huge,
    ];
    for value in addresses {
        for variable in ["trusted_ip", "trusted_ip6"] {
            let out = exit("up", &[&good[..], &[(variable, value)]].concat());
            assert_refused(&out, &[variable, "is no address of one host"]);
            assert!(out.stderr.len() < 300, "{}", out.stderr);
        }
        let server = [&good[..], &[("trusted_ip", VPN4), ("route_net_gateway", value)]].concat();
        assert_refused(&exit("up", &server), &["route_net_gateway", "is no address of one host"]);
        // What is not needed is not looked at.
        let unneeded = [&good[..], &[("net_gateway_ipv6", value), ("local_1", value), ("route_vpn_gateway", value)]];
        let out = exit("up", &unneeded.concat());
        assert!(out.code == 0 && out.stderr.is_empty(), "{value:?}: {out:?}");
        // Whoever calls and is not OpenVPN is asked for nothing but the interface.
        for script in ["", "client-connect", "up;id", value] {
            let out = exit("up", &[("dev", TUN), ("script_type", script), ("trusted_ip", value)]);
            assert!(out.code == 0 && out.stderr.is_empty(), "{script:?} {value:?}: {out:?}");
        }
    }
    let unknown = exit("up", &[("dev", "tun9"), ("script_type", "up"), ("trusted_ip", "nonsense")]);
    assert_eq!(unknown.code, 0, "{unknown:?}");
    assert_one_line(&unknown, &["tun9 is the exit of no jail"]);

    before.assert_same(&lab.snapshot(), "hostile values");
    assert_eq!(files(), listed);

    // The same call with an address: needed, and done; shown first.
    let call = [&good[..], &[("trusted_ip", VPN4), ("route_net_gateway", "192.168.178.1")]].concat();
    let shown = Cmd::new(TUNJAIL, &["exit", "up", "--dry-run", "--dev", TUN]);
    let shown = call.iter().fold(shown, |cmd, (name, value)| cmd.env(name, value)).ok();
    assert_eq!(shown, "ip -4 route add 203.0.113.10/32 via 192.168.178.1 dev eth0 metric 1 protocol 116 table 254\n");
    assert_eq!(added(lab), "");
    assert_eq!(exit("up", &call).code, 0);
    assert_eq!(added(lab), "203.0.113.10 via 192.168.178.1 dev eth0 metric 1 \n");
    // A restart that keeps the device keeps it, the end takes it out.
    exit("down", &[("dev", TUN), ("script_type", "down"), ("script_context", "restart")]);
    assert_ne!(added(lab), "");
    exit("up", &[("dev", TUN), ("script_type", "up"), ("script_context", "restart"), ("trusted_ip", VPN4)]);
    assert_eq!(added(lab), "203.0.113.10 via 192.168.178.1 dev eth0 metric 1 \n");
    exit("down", &[("dev", TUN), ("script_type", "down"), ("script_context", "init")]);
    before.assert_same(&lab.snapshot(), "a route to the server");
}

/// Killed before each of its calls that change something, where no wall stands: the next one mends it, and `tunjail down` takes the rest away.
#[test]
fn a_killed_exit_leaves_no_route_behind() {
    let yard = Yard::new(STRICT_JAIL);
    let lab = &yard.lab;
    lab.sh(&format!("ip route add 0.0.0.0/1 dev {TUN}; ip route add 128.0.0.0/1 dev {TUN}"));
    let before = lab.settled();
    let call = [
        ("dev", TUN),
        ("script_type", "route-up"),
        ("script_context", "init"),
        ("trusted_ip", VPN4),
        ("route_net_gateway", "192.168.178.1"),
    ];
    let killed = |nth: u64, direction: &str| {
        let probe = rootfs::probe().to_string_lossy().into_owned();
        let cmd = Cmd::new(probe, &["kill-at", &nth.to_string(), TUNJAIL, "exit", direction]);
        let line = call.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value)).out().json();
        line["status"] != 0
    };
    for direction in ["up", "down"] {
        at_every_call(&format!("exit {direction}"), |nth| {
            if direction == "down" {
                exit("up", &call);
            }
            let was_killed = killed(nth, direction);
            if nth % 2 == 0 {
                assert_eq!(exit("up", &call).code, 0, "after {direction} was killed at call {nth}");
                assert_eq!(added(lab), "203.0.113.10 via 192.168.178.1 dev eth0 metric 1 \n");
            }
            lab.tunjail_ok(&["down"]);
            before.assert_same(&lab.snapshot(), &format!("exit {direction} killed before call {nth}, and down"));
            was_killed
        });
    }
}
