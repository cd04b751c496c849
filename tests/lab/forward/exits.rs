//! Forwarded ports and what exits do: go, come back with another address, and take turns.

use super::{CALLER4, CALLER6, PORTS, SOON, assert_unanswered, call, exit_addresses, member, provide, serve};
use crate::engine::Container;
use crate::rootfs;
use crate::run::{Cmd, Job, answer, wait_until};
use crate::scene::{self, Scene};
use crate::uplink::{NIC, NIC4, NIC6, Uplink};
use crate::vpn::TUN;
use crate::world::{LAN4, Lab, Netns, VPN4, VPN6};

/// Two callers that keep a flow of TCP to the member, one for each family.
struct Calls {
    _jobs: [Job; 2],
}

impl Calls {
    #[track_caller]
    fn start(lab: &Lab) -> Self {
        let mut calls = [VPN4, VPN6]
            .map(|server| Cmd::new(rootfs::probe(), &["tcp-hold", server, "7", "100"]).within(&lab.inet).spawn());
        for call in &mut calls {
            call.wait_figures("a forwarded flow", SOON, |line| line["echoed"].as_u64() > Some(1000));
        }
        Self { _jobs: calls }
    }
}

/// What the member tries to answer, counted as it comes in by the bridge.
fn watch_the_member(lab: &Lab) {
    lab.nft(
        "table inet tries
        delete table inet tries
        table inet tries {
            counter v4 { }
            counter v6 { }
            chain pre { type filter hook prerouting priority -350
                iifname vpn ip protocol tcp counter name v4
                iifname vpn ip6 nexthdr tcp counter name v6
            }
        }",
    );
}

#[track_caller]
fn wait_tries(lab: &Lab) {
    let packets = |name: &str| {
        let text = lab.sh(&format!("nft list counter inet tries {name}"));
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse::<u64>().ok()).expect("a counter")
    };
    wait_until("the member to go on answering", SOON, || packets("v4") > 2 && packets("v6") > 2);
}

/// The same ports led by hand to a container that no hook has seen, by policy routing alone: what it answers when the exit
/// goes leaves by the uplink.
fn control(scene: &mut Scene) -> u64 {
    let mut plain = scene.plain("control", 2);
    scene.client.start_and_wait();
    scene.recipe();
    provide(&scene.lab);
    scene.lab.nft(&format!(
        "table inet byhand {{ chain pre {{ type nat hook prerouting priority -100
            iifname {TUN} tcp dport 7 dnat ip to 172.18.0.2
            iifname {TUN} tcp dport 7 dnat ip6 to fd00:18::2
        }}
        }}"
    ));
    let services = serve(&plain, 2);
    let calls = Calls::start(&scene.lab);
    scene.lab.reset_leaks();
    scene.client.sigkill();
    wait_until("the control to leak", SOON, || {
        let leaks = scene.lab.leaks();
        leaks.v4 > 0 && leaks.v6 > 0
    });
    let seen = scene.lab.leaks().total();
    drop((calls, services));
    plain.remove();
    scene.no_recipe();
    scene.lab.sh("nft delete table inet byhand; ip netns del control; ip link del veth-control");
    scene.lab.reset_leaks();
    seen
}

#[test]
fn answers_of_a_forwarded_flow_go_nowhere_without_the_exit() {
    let mut scene = scene::strict();
    let control = control(&mut scene);

    scene.client.start_and_wait();
    provide(&scene.lab);
    let member = member(&scene, "runc", "m1", 2, PORTS);
    let _services = serve(&member, 2);
    let calls = Calls::start(&scene.lab);
    let before = exit_addresses(&scene.lab);
    scene.lab.reset_leaks();
    watch_the_member(&scene.lab);
    scene.client.sigkill();
    watch_the_member(&scene.lab);
    wait_tries(&scene.lab);
    scene.lab.assert_no_leak("forward", "exit-killed", control);
    drop(calls);

    // Back with other addresses and under another index: the provider tells the world, and nobody tells the member.
    scene.server.gives(&scene.lab, "10.8.0.77", "2001:db8:8::77");
    scene.client.start_and_wait();
    let now = exit_addresses(&scene.lab);
    assert!(now[0] != before[0] && now[1] != before[1], "the same addresses again: {now:?}");
    provide(&scene.lab);
    call(&scene.lab);
    scene.lab.assert_no_leak("forward", "exit-returned", control);
}

/// The NIC first, the tunnel second; the provider of the NIC leads its own address to it, as that of the tunnel does.
struct Two {
    scene: Scene,
    isp: Netns,
    uplink: Uplink,
}

/// Whom the provider of the NIC leads to it, and whom the member then sees.
const BY_NIC: [(&str, &str); 2] = [(crate::uplink::ISP4, "192.0.2.129"), (NIC6, "2001:db8:2:1::1")];

impl Two {
    fn new() -> Self {
        let mut scene = Scene::new(&format!(
            "[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = [\"{NIC}\", \"{TUN}\"]\n\
             gateway = [\"{}\", \"{}\"]\nallow = [\"192.168.178.0/24\"]\n",
            crate::uplink::GATEWAY4,
            crate::uplink::GATEWAY6
        ));
        let uplink = Uplink::new(&scene.lab);
        let isp = Netns::open("isp");
        isp.nft(&format!(
            "table inet provider {{ chain pre {{ type nat hook prerouting priority -100
                iifname wan ip daddr {} meta l4proto {{ tcp, udp }} dnat ip to {NIC4}
            }}
            }}",
            crate::uplink::ISP4
        ));
        scene.client.start_and_wait();
        provide(&scene.lab);
        // As loose as it gets: the wall alone decides.
        scene.lab.sh("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done");
        Self { scene, isp, uplink }
    }

    #[track_caller]
    fn call_by_nic(&self) {
        for (address, caller) in BY_NIC {
            assert_eq!(answer(&self.scene.lab.inet.probe(&["http", address, "8443"])), caller);
            answer(&self.scene.lab.inet.probe(&["udp-echo", address, "7"]));
        }
    }

    fn rejected_in(&self) -> u64 {
        let text = self.scene.lab.sh("nft list counter inet tunjail_vpn rejected_in");
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).expect("a counter")
    }
}

#[test]
fn a_call_is_answered_by_the_exit_that_it_came_by_or_not_at_all() {
    let two = Two::new();
    let lab = &two.scene.lab;
    let member = member(&two.scene, "runc", "m1", 2, PORTS);
    let _services = serve(&member, 2);
    two.call_by_nic();
    assert_eq!(two.uplink.names().1, 0);

    // By the exit that is not in use, and to the member's own address: neither reaches it.
    two.isp.sh(&format!("ip route add 172.18.0.2 via {NIC4}; ip route add fd00:18::2 via {NIC6}"));
    let stray = || {
        for server in [VPN4, VPN6] {
            assert_unanswered(&lab.inet.probe(&["udp-echo", server, "7"]), "the exit that is not in use");
        }
    };
    stray();
    for (question, address, port) in
        [("tcp-echo", "172.18.0.2", "7"), ("udp-echo", "fd00:18::2", "7"), ("http", "fd00:18::2", "80")]
    {
        let before = two.rejected_in();
        assert_unanswered(&two.isp.probe(&[question, address, port]), "the member's own address");
        assert!(two.rejected_in() > before, "{question} {address} {port} did not come as far as the wall");
    }
    // Nor does one in the name of an allowed net, which the member would answer there.
    lab.reset_leaks();
    let lie = || drop(two.isp.probe(&["spoof-udp", LAN4, NIC4, "7", "5"]));
    lie();
    assert_eq!((two.uplink.names().1, lab.leaks().lan4), (0, 0));

    // The positive control: with everything that was led on let in and out, those answers leave in a wrong name, or there.
    lab.sh(
        "nft insert rule inet tunjail_vpn to_members ct status dnat accept; nft flush chain inet tunjail_vpn own_name",
    );
    stray();
    lie();
    wait_until("the control to be counted", SOON, || two.uplink.names().1 > 0 && lab.leaks().lan4 > 0);
    lab.tunjail_ok(&["up"]);
    let wrong = two.uplink.names().1;

    // The other one takes over.
    lab.sh(&format!("ip link set {NIC} down; ip link del {NIC}"));
    lab.tunjail_ok(&["exit", "up", "--dev", TUN]);
    call(lab);
    assert_eq!(two.uplink.names().1, wrong);
}

/// A router behind the exit that has to tell the member that its answers are too large: it speaks of a connection that
/// somebody else began.
#[test]
fn errors_about_a_forwarded_flow_reach_the_member() {
    const BYTES: &str = "1000000";
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    provide(&scene.lab);
    scene.lab.vpn.sh(&format!(
        "ip route add {CALLER4} dev eth0 mtu lock 1300; ip -6 route add {CALLER6} dev eth0 mtu lock 1300"
    ));
    let member = member(&scene, "runc", "m1", 2, "tcp/19");
    let _services = serve(&member, 2);
    let arrives = |server| scene.lab.inet.probe(&["fetch", server, BYTES]).json()["body"] == BYTES;
    // The last of the rules of forwarded ports is the one for errors.
    let errors = scene.lab.sh("nft -a list chain inet tunjail_vpn to_members | grep icmp | grep dnat");
    let handle = errors.trim().rsplit(' ').next().expect("a handle").to_owned();
    scene.lab.sh(&format!("nft delete rule inet tunjail_vpn to_members handle {handle}"));
    for server in [VPN4, VPN6] {
        assert!(!arrives(server), "positive control: {server} is answered without errors too");
    }
    scene.lab.tunjail_ok(&["up"]);
    for server in [VPN4, VPN6] {
        assert!(arrives(server), "{server}");
    }
}
