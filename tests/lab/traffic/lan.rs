//! `allow`: what a jail says of a net is so, in each direction and family, and everything else is refused at once and
//! counted. One member stays through all of the policies.

use super::annex::{ANNEX_NET4, ANNEX_NET6, ANNEX4, ANNEX6, Annex};
use super::{allowing, assert_told, rejected, serve};
use crate::engine::Container;
use crate::run::{Out, answer};
use crate::scene::{self, Scene};
use crate::world::{HOST4, HOST6, LAN4, LAN6, Netns};

const MEMBER: [&str; 2] = ["172.18.0.2", "fd00:18::2"];

/// Questions that go through, by the way they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A member asks the net.
    Out,
    /// The net asks a member.
    In,
}

/// A question that is to be answered; `*` is each.
type Pass = (Way, &'static str);

const QUESTIONS: [&str; 4] = ["tcp/7", "tcp/80", "udp/7", "ping"];

fn ask(question: &str, addr: &str, by: impl Fn(&[&str]) -> Out) -> Out {
    match question {
        "tcp/7" => by(&["tcp-echo", addr, "7"]),
        "tcp/80" => by(&["http", addr]),
        "udp/7" => by(&["udp-echo", addr, "7"]),
        _ => by(&["ping", addr, "1"]),
    }
}

/// Asks everything in both ways and families. What `passes` gets an answer; the rest is told so, and counted. Where the jail
/// does not name the net at all, a member's own question goes where all others go: by the exit, if there is one.
fn assert_passes(
    scene: &Scene,
    member: &dyn Container,
    peer: &Netns,
    peers: [&str; 2],
    names_it: bool,
    passes: &[Pass],
) {
    for question in QUESTIONS {
        for (way, counter) in [(Way::Out, "rejected_out"), (Way::In, "rejected_in")] {
            let allowed = passes.iter().any(|(passing, what)| *passing == way && [question, "*"].contains(what));
            for (peer_addr, member_addr) in peers.into_iter().zip(MEMBER) {
                // What waits for its time-out is asked once for all.
                let waits = way == Way::Out && !names_it && question != "tcp/7";
                if waits || (question == "ping" && !allowed && !passes.is_empty() && member_addr == MEMBER[0]) {
                    continue;
                }
                let before = rejected(&scene.lab, counter);
                let out = match way {
                    Way::Out => ask(question, peer_addr, |args| member.probe(args)),
                    Way::In => ask(question, member_addr, |args| peer.probe(args)),
                };
                let counted = rejected(&scene.lab, counter) - before;
                let what = format!("{way:?} {question} {peer_addr} {member_addr}");
                if allowed {
                    assert!(out.json()["ok"] == true, "{what} is refused: {out:?}");
                    assert_eq!(counted, 0, "{what} was counted as refused");
                    continue;
                }
                assert_eq!(out.json()["ok"], false, "{what} passes");
                if way == Way::In || names_it {
                    assert!(counted > 0, "{what} was not counted");
                    // A raw socket without IP_RECVERR hears of no error.
                    if question != "ping" {
                        assert_told(&what, &out);
                    }
                }
            }
        }
    }
}

/// Without a jail every question gets its answer.
fn control(scene: &Scene, peer: &Netns, peers: [&str; 2]) {
    let mut plain = scene.plain("p1", 2);
    let serving = serve(&plain, &MEMBER);
    for question in QUESTIONS {
        for (peer_addr, member_addr) in peers.into_iter().zip(MEMBER) {
            answer(&ask(question, peer_addr, |args| plain.probe(args)));
            answer(&ask(question, member_addr, |args| peer.probe(args)));
        }
    }
    drop(serving);
    plain.remove();
    scene.lab.sh("ip netns del p1");
}

const BOTH: &[Pass] = &[(Way::Out, "*"), (Way::In, "*")];

#[test]
fn a_net_is_allowed_as_the_jail_says_and_not_otherwise() {
    let mut scene = scene::strict();
    let lan = Netns::open("lan");
    lan.sh("ip route add 172.18.0.0/16 via 192.168.178.2; ip route add fd00:18::/64 via 2001:db8:178::2");
    control(&scene, &lan, [LAN4, LAN6]);
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    let _serving = serve(&member, &MEMBER);

    let policies: &[(&str, &[Pass])] = &[
        (r#""192.168.178.0/24", "2001:db8:178::/64""#, BOTH),
        (
            r#"{ net = "192.168.178.0/24", direction = "out" }, { net = "2001:db8:178::/64", direction = "out" }"#,
            &[(Way::Out, "*")],
        ),
        (
            r#"{ net = "192.168.178.0/24", direction = "in" }, { net = "2001:db8:178::/64", direction = "in" }"#,
            &[(Way::In, "*")],
        ),
        (
            r#"{ net = "192.168.178.50", ports = ["tcp/80"], direction = "out" },
            { net = "2001:db8:178::50", ports = ["tcp/80"], direction = "out" }"#,
            &[(Way::Out, "tcp/80")],
        ),
        (
            r#"{ net = "192.168.178.50", ports = ["udp/7", "tcp/7"], direction = "in" },
            { net = "2001:db8:178::50", ports = ["udp/7", "tcp/7"], direction = "in" }"#,
            &[(Way::In, "udp/7"), (Way::In, "tcp/7")],
        ),
        (
            r#"{ net = "192.168.178.0/24", ports = ["udp/7"] }, { net = "2001:db8:178::/64", ports = ["udp/7"] }"#,
            &[(Way::In, "udp/7"), (Way::Out, "udp/7")],
        ),
        // A neighbour's address.
        (r#""192.168.178.51", "2001:db8:178::51""#, &[]),
    ];
    for (allow, passes) in policies {
        println!("lan: allow = [{allow}]");
        scene.lab.configure(&allowing(allow));
        scene.lab.tunjail_ok(&["up"]);
        scene.lab.reset_leaks();
        let names_it = allow.contains("192.168.178.50") || allow.contains('/');
        assert_passes(&scene, &member, &lan, [LAN4, LAN6], names_it, passes);
        let leaks = scene.lab.leaks();
        assert_eq!(leaks.escaped(), 0, "{allow}: {leaks:?}\n{}", scene.lab.leaked_flows());
        if !names_it {
            let flows = scene.lab.leaked_flows();
            let of_a_member =
                flows.lines().any(|flow| !flow.contains(" . icmp . ") && !flow.contains(" . ipv6-icmp . "));
            assert!(!of_a_member, "{allow}: more than the host's own errors left by the uplink:\n{flows}");
        }
    }
}

/// The host has a route for it, and follows that; members are seen as the host.
#[test]
fn a_net_behind_a_gateway_of_the_lan_is_allowed_in_both_directions() {
    let mut scene = scene::strict();
    let annex = Annex::new(&scene.lab);
    control(&scene, &annex.host, [ANNEX4, ANNEX6]);
    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    let _serving = serve(&member, &MEMBER);
    assert_passes(&scene, &member, &annex.host, [ANNEX4, ANNEX6], false, &[]);

    scene.lab.configure(&allowing(&format!("\"{ANNEX_NET4}\", \"{ANNEX_NET6}\"")));
    scene.lab.tunjail_ok(&["up"]);
    for exit in ["up", "down"] {
        if exit == "down" {
            scene.client.sigkill();
        }
        scene.lab.reset_leaks();
        assert_passes(&scene, &member, &annex.host, [ANNEX4, ANNEX6], true, BOTH);
        assert_eq!(answer(&member.probe(&["http", ANNEX4])), HOST4);
        assert_eq!(answer(&member.probe(&["http", ANNEX6])), HOST6);
        // The annex is past the LAN for the lab's counters.
        let flows = scene.lab.leaked_flows();
        let elsewhere: Vec<&str> = flows
            .lines()
            .filter(|flow| ![ANNEX4, ANNEX6].iter().any(|annex| flow.contains(&format!(" . {annex} . "))))
            .collect();
        assert!(flows.contains(ANNEX4) && flows.contains(ANNEX6), "exit {exit}: the uplink was not used: {flows}");
        assert!(elsewhere.is_empty(), "exit {exit}: {elsewhere:#?}");
        // The LAN itself is not allowed, and with no exit it is nowhere.
        for addr in [LAN4, LAN6].into_iter().filter(|_| exit == "down") {
            assert_told(addr, &member.probe(&["tcp-echo", addr, "7"]));
        }
    }
}
