//! What others on the host do to connection tracking: no tracking, zones, helpers; and a bridge that calls iptables.

use std::time::Duration;

use super::forged::{self, Sender};
use super::{Attack, Attacker, gateway_mac, ip, mac_of};
use crate::engine::Container;
use crate::product::STRICT_JAIL;
use crate::resolver::{Answers, Resolver};
use crate::run::{Cmd, Job, answer, wait_until};
use crate::scene::{Scene, Traffic};
use crate::world::{DNS4, DNS6, LAN4, Lab, Netns, SERVICE4};

const PATIENCE: Duration = Duration::from_secs(5);

/// Rules of somebody else's, before connection tracking looks (priority -300), and what they come to.
const MEDDLING: [(&str, &str); 4] = [
    ("untracked", "notrack"),
    ("untracked-one-way", "iifname vpn notrack"),
    ("zone", "iifname vpn ct zone set 7"),
    ("zone-of-originals", "iifname vpn ct original zone set 7"),
];

fn meddle(lab: &Lab, rule: &str) {
    lab.nft(&format!("table inet meddler {{ chain pre {{ type filter hook prerouting priority -310; {rule}; }}\n}}"));
}

/// Packets that the host sends by the exit in a member's own name; an OpenVPN server would not let them out.
fn own_names(lab: &Lab) -> u64 {
    let text = lab.sh("nft list counter inet own names");
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

#[test]
fn whatever_becomes_of_tracking_nothing_leaves_in_a_members_name() {
    let servers = format!("{STRICT_JAIL}dns = [\"{DNS4}\", \"{DNS6}\"]\n");
    let mut scene = Scene::new(&servers);
    scene.client.start_and_wait();
    scene.lab.nft(
        "table inet own { counter names { }
            chain out { type filter hook postrouting priority 320
                oifname tun0 ip saddr 172.18.0.0/16 counter name names
                oifname tun0 ip6 saddr fd00:18::/64 counter name names
            }
        }",
    );
    // With the jail off, untracked packets leave in their own name: by the uplink, and where the recipe leads by the exit.
    let mut plain = scene.plain("control", 200);
    scene.recipe();
    meddle(&scene.lab, MEDDLING[0].1);
    plain.probe(&["udp-flood", SERVICE4, "7", "500", "0.2"]);
    wait_until("a member's own name by the exit", PATIENCE, || own_names(&scene.lab) > 10);
    scene.no_recipe();
    let control = scene.lab.assert_probe_is_visible(|| {
        plain.probe(&["udp-flood", SERVICE4, "7", "500", "0.2"]);
    });
    scene.lab.sh("nft delete table inet meddler");
    plain.remove();
    scene.lab.sh("nft reset counters table inet own");

    let member = scene.member("runc", "m1", 2);
    let mut traffic = Traffic::start(&member);
    for (case, rule) in MEDDLING {
        scene.lab.reset_leaks();
        traffic.wait_floods_flowing();
        meddle(&scene.lab, rule);
        traffic.press_floods();
        for server in [DNS4, "192.0.2.8", "fd00:18::1"] {
            member.probe(&["dns", server, "meddled.example"]);
        }
        assert_eq!(own_names(&scene.lab), 0, "{case}: packets by the exit in the member's own name");
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("tracking-{case}"), control);
        scene.client.sigkill();
        traffic.press_floods();
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("tracking-{case}-exit-killed"), control);
        scene.lab.sh("nft delete table inet meddler");
        scene.client.start_and_wait();
    }
    traffic.end(&member);
    assert_eq!(own_names(&scene.lab), 0);
}

/// Says by which address and port it wants to be called, as an FTP client in active mode does, and waits. In a segment of
/// its own behind another line: the helper looks at no first one.
fn asks_to_be_called(who: &Netns, server: &str, addr: &str) -> Job {
    let addr = addr.replace('.', ",");
    let script = format!(
        "(printf 'USER me\\r\\n'; sleep 0.2; printf 'PORT {addr},39,16\\r\\n'; sleep 60) | busybox nc {server} 21"
    );
    Cmd::new("busybox", &["sh", "-c", &script]).within(who).spawn()
}

fn ftp_server(place: &Netns) -> Job {
    Cmd::new("busybox", &["sh", "-c", "sleep 60 | busybox nc -l -p 21"]).within(place).spawn()
}

/// Questions to somebody outside, in frames for a sibling, for the host and for everybody.
fn asks_in_frames_for(attacker: &Attacker, sibling: &Netns) {
    let sibling = mac_of(&sibling.sh("ip -j link show dev eth0"));
    for (own, addr) in attacker.addrs().into_iter().zip(["192.0.2.8", "2001:db8:77::8"]) {
        for to in [sibling, gateway_mac(), forged::BROADCAST] {
            let frame = forged::datagram(to, Sender { mac: attacker.mac, addr: own }, ip(addr), 53);
            attacker.attack(&Attack::frame("a question", &frame));
        }
    }
}

/// A helper expects a call, and lets it in where a firewall believes `related`: the exit's other end calls back.
#[test]
fn no_helper_lets_a_caller_in_and_siblings_are_asked_over_the_bridge() {
    let mut scene = Scene::new(&format!("{STRICT_JAIL}dns = [\"{DNS4}\", \"{DNS6}\"]\n"));
    scene.lab.sh("iptables -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp
        for call in iptables ip6tables; do echo 1 > /proc/sys/net/bridge/bridge-nf-call-$call; done");
    let calls = |from: &Netns, to: &str| from.probe(&["tcp-echo", to, "10000"]).json();

    // The LAN's server reaches whoever is not jailed: 39 * 256 + 16.
    let plain = scene.plain("control", 200);
    let netns = Netns::open("control");
    let _open = Cmd::new("busybox", &["nc", "-ll", "-p", "10000", "-e", "cat"]).within(&netns).spawn();
    let server = ftp_server(&scene.lab.lan);
    let client = asks_to_be_called(&netns, LAN4, "172.18.0.200");
    wait_until("the LAN's server to call", PATIENCE, || calls(&scene.lab.lan, crate::world::HOST4)["ok"] == true);
    drop((client, server));
    let other = scene.bridge.plug("other", 201);
    let mut plain = Attacker::new(plain, "control", 200);
    let control = scene.lab.assert_probe_is_visible(|| asks_in_frames_for(&plain, &other));
    plain.container.remove();

    scene.client.start_and_wait();
    let _member = scene.member("runc", "m1", 2);
    let sibling = scene.member("crun", "m2", 3);
    let netns = Netns::open("m1");
    let _open = Cmd::new("busybox", &["nc", "-ll", "-p", "10000", "-e", "cat"]).within(&netns).spawn();
    let _server = ftp_server(&scene.lab.vpn);
    scene.lab.nft(
        "table inet expected { chain pre { type filter hook prerouting priority -150
            iifname tun0 ct state related meta l4proto tcp counter
        }
        }",
    );
    let _client = asks_to_be_called(&netns, "10.8.0.1", "172.18.0.2");
    wait_until("a call that is expected", PATIENCE, || {
        assert_eq!(calls(&scene.lab.vpn, "10.8.0.2")["ok"], false, "the helper let a caller in");
        !scene.lab.sh("nft list chain inet expected pre").contains("packets 0 ")
    });

    // The frames between two ports pass the host's hooks as well, and nobody translates them.
    let names = Resolver::start(Some(&netns), "sibling", &["172.18.0.2", "fd00:18::2"], Answers::Always("192.0.2.99"));
    for transport in ["dns", "dns-tcp"] {
        for server in ["172.18.0.2", "fd00:18::2"] {
            assert_eq!(
                answer(&sibling.probe(&[transport, server, "sibling.example"])),
                "192.0.2.99",
                "{transport} {server}"
            );
        }
    }
    assert_eq!(names.askers("sibling.example"), ["172.18.0.3", "fd00:18::3", "172.18.0.3", "fd00:18::3"]);
    let attacker = Attacker::new(sibling, "m2", 3);
    attacker.deletes_its_lock();
    scene.lab.reset_leaks();
    asks_in_frames_for(&attacker, &netns);
    scene.lab.wait_quiet();
    scene.lab.assert_no_leak("hostile", "bridge-calls-iptables", control);
}
