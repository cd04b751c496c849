//! The way in: what nobody allowed to call a member gets nowhere either.

use std::time::Duration;

use super::COUNT;
use crate::bridge::GATEWAY4;
use crate::engine::Container;
use crate::run::{answer, wait_until};
use crate::scene;
use crate::world::{HOST4, LAN4, LAN6, Lab, Netns};

/// Datagrams that arrive in a container's namespace from the LAN or from another bridge of the host.
fn listen(netns: &Netns) {
    netns.nft(
        "table inet callers {
            counter heard { }
            chain in { type filter hook input priority 0
                udp dport 9 counter name heard
            }
        }",
    );
}

fn heard(netns: &Netns) -> u64 {
    let text = netns.sh("nft list counter inet callers heard");
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

/// The host's own bridge for another container.
fn another_container(lab: &Lab) -> Netns {
    let other = Netns::add("other");
    lab.sh(
        "ip link add other type bridge; ip addr add 172.30.0.1/16 dev other; ip addr add fd00:30::1/64 dev other nodad
        ip link set other up
        ip link add veth-other type veth peer name eth0 netns other; ip link set veth-other master other up
        ip -n other link set eth0 up
        ip -n other addr add 172.30.0.2/16 dev eth0; ip -n other addr add fd00:30::2/64 dev eth0 nodad
        ip -n other route add default via 172.30.0.1; ip -n other route add default via fd00:30::1",
    );
    for gateway in ["172.30.0.1", "fd00:30::1"] {
        wait_until("the other bridge", Duration::from_secs(5), || {
            other.probe(&["ping", gateway, "1"]).json()["ok"] == true
        });
    }
    other
}

/// Calls 172.18.0.2 and fd00:18::2; the caller's own kernel must have taken every packet.
fn call(caller: &Netns, source4: &str, source6: &str) {
    for (source, addr) in [(source4, "172.18.0.2"), (source6, "fd00:18::2")] {
        let line = caller.probe(&["spoof-udp", source, addr, "9", &COUNT.to_string()]).json();
        assert_eq!(line["sent"], COUNT, "{line}");
    }
}

#[test]
fn nobody_who_is_not_allowed_calls_a_member() {
    let mut scene = scene::strict();
    let lab = &scene.lab;
    // A neighbour that knows the way.
    lab.lan.sh("ip route add 172.18.0.0/16 via 192.168.178.2; ip route add fd00:18::/64 via 2001:db8:178::2");
    let other = another_container(lab);
    scene.client.start_and_wait();
    let callers = [
        ("the LAN", &lab.lan, LAN4, LAN6),
        ("another bridge", &other, "172.30.0.2", "fd00:30::2"),
        // Who takes a member's own address is still not on its bridge.
        ("the LAN as a member", &lab.lan, "172.18.0.3", "fd00:18::3"),
    ];

    let mut plain = scene.plain("p1", 2);
    let netns = Netns::open("p1");
    listen(&netns);
    for (who, caller, source4, source6) in callers {
        let before = heard(&netns);
        call(caller, source4, source6);
        wait_until(&format!("the control of {who}"), Duration::from_secs(3), || {
            heard(&netns) >= before + 2 * u64::from(COUNT)
        });
    }
    plain.remove();
    lab.sh("ip netns del p1");

    let member = scene.member("runc", "m1", 2);
    let netns = Netns::open("m1");
    listen(&netns);
    for (who, caller, source4, source6) in callers {
        call(caller, source4, source6);
        // What the host has taken in before it answers this has been judged.
        answer(&caller.probe(&["ping", HOST4, "1"]));
        answer(&member.probe(&["ping", GATEWAY4, "1"]));
        assert_eq!(heard(&netns), 0, "{who} called a member");
    }
}
