//! `dns = ["SERVER", ...]`, on what the host decides: whomever a member asks, the servers answer.

use std::time::Duration;

use super::{EMBEDDED, TRANSPORTS, ask, asks_by_the_exit, is_refused, jail, new_name};
use crate::bridge::{GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::resolver::{Answers, Resolver};
use crate::run::wait_until;
use crate::scene::Scene;
use crate::world::{DNS4, DNS6, LAN_NET4, LAN_NET6, LAN4, LAN6, Netns, SERVICE4};
use crate::yard::{Yard, stopped};

const SECOND4: &str = "198.51.100.54";
/// Addresses that nobody has.
const NOBODY: [&str; 2] = ["192.0.2.8", "2001:db8:77::8"];
/// What the LAN's resolver says of every name.
const LANS_ANSWER: &str = "192.168.178.99";

#[test]
fn every_question_goes_to_the_servers_by_the_exit() {
    let dns = format!("dns = [\"{DNS4}\", \"{SECOND4}\", \"{DNS6}\"]\nallow = [\"{LAN_NET4}\", \"{LAN_NET6}\"]");
    let mut scene = Scene::new(&jail(&dns));
    scene.lab.inet.sh(&format!("ip addr add {SECOND4}/24 dev eth0"));
    let second = Resolver::start(Some(&scene.lab.inet), "second", &[SECOND4], Answers::Always(SERVICE4));
    let lans = Resolver::start(Some(&scene.lab.lan), "lan", &[LAN4, LAN6], Answers::Always(LANS_ANSWER));
    // Stands for an engine's: it asks from the host, by the uplink.
    let hosts = Resolver::start(None, "host", &[GATEWAY4, GATEWAY6], Answers::From(DNS4));
    let others = [GATEWAY4, GATEWAY6, LAN4, LAN6];

    let mut plain = scene.plain("control", 200);
    let control = scene.lab.assert_probe_is_visible(|| {
        for transport in TRANSPORTS {
            for server in others {
                let line = plain.probe(&[transport, server, &new_name()]).json();
                assert_eq!(line["ok"], true, "positive control: {transport} {server}: {line}");
            }
            for server in NOBODY {
                assert_eq!(plain.probe(&[transport, server, &new_name()]).json()["ok"], false, "{server}");
            }
        }
    });
    assert_eq!((hosts.asked().len(), lans.asked().len()), (4, 4));
    plain.remove();

    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    let servers = [EMBEDDED, DNS4, DNS6].into_iter().chain(others).chain(NOBODY);
    let questions: Vec<_> = servers.flat_map(|server| TRANSPORTS.map(|transport| (transport, server))).collect();
    scene.lab.reset_leaks();
    for (transport, server) in &questions {
        let name = ask(&member, transport, server);
        let askers = [scene.lab.askers(&name), second.askers(&name)].concat();
        assert!(askers == [crate::world::VPN4] || askers == [crate::world::VPN6], "{transport} {server}: {askers:?}");
    }
    // In turn: 6 of IPv4 by each transport, the second server every other time.
    let by_second = second.asked().len();
    assert!((3..=9).contains(&by_second), "the second server was asked {by_second} times");
    assert_eq!((hosts.asked().len(), lans.asked().len()), (4, 4), "a member's question came to another server");
    scene.lab.assert_no_leak("dns", "servers", control);

    scene.client.sigkill();
    let mut at_once = 0;
    for (transport, server) in &questions {
        let line = member.probe(&[transport, server, &new_name()]).json();
        assert_eq!(line["ok"], false, "without an exit: {transport} {server}: {line}");
        at_once += u32::from(line["ms"].as_u64() < Some(400));
    }
    // The kernel sends so many ICMP errors at once and no more (icmp_ratelimit).
    assert!(at_once >= 6, "told at once that there is no exit: {at_once} of {}", questions.len());
    scene.lab.wait_quiet();
    scene.lab.assert_no_leak("dns", "servers-exit-killed", control);
    scene.client.start_and_wait();
    wait_until("an answer by the exit that came back", Duration::from_secs(10), || {
        member.probe(&["dns", EMBEDDED, &new_name()]).json()["ok"] == true
    });
    for (transport, server) in [("dns-tcp", GATEWAY4), ("dns", GATEWAY6), ("dns", NOBODY[0])] {
        ask(&member, transport, server);
    }

    // A member that serves names is its siblings' own matter: they ask it over their bridge.
    let sibling = scene.member("crun", "m2", 3);
    let siblings = Resolver::start(Some(&Netns::open("m1")), "sibling", &["172.18.0.2"], Answers::Always(SERVICE4));
    let name = ask(&sibling, "dns", "172.18.0.2");
    assert_eq!(siblings.askers(&name), ["172.18.0.3"]);
    scene.lab.assert_no_leak("dns", "servers-exit-returned", control);
}

#[test]
fn a_family_without_a_server_is_refused_at_once() {
    let mut scene = Scene::new(&jail(&format!("dns = [\"{DNS4}\"]")));
    scene.client.start_and_wait();
    let _hosts = Resolver::start(None, "host", &[GATEWAY4, GATEWAY6], Answers::From(DNS4));
    let member = scene.member("runc", "m1", 2);
    for transport in TRANSPORTS {
        for server in [GATEWAY6, DNS6, NOBODY[1]] {
            is_refused(&scene.lab, &member, &[transport, server]);
        }
        for server in [EMBEDDED, GATEWAY4, NOBODY[0]] {
            asks_by_the_exit(&scene.lab, &member, transport, server);
        }
    }
    member_without_v4_servers(&scene);
}

/// The other way round: 127.0.0.11 is of IPv4, and there is no server that could answer.
fn member_without_v4_servers(scene: &Scene) {
    scene.lab.configure(&jail(&format!("dns = [\"{DNS6}\"]")));
    let member = scene.member("crun", "m2", 3);
    for transport in TRANSPORTS {
        for server in [EMBEDDED, GATEWAY4, DNS4] {
            is_refused(&scene.lab, &member, &[transport, server]);
        }
        asks_by_the_exit(&scene.lab, &member, transport, NOBODY[1]);
    }
}

/// A container that joins another's namespace finds its questions led already, and does not lose those under way.
#[test]
fn siblings_share_what_leads_their_questions() {
    let yard = Yard::new(&jail(&format!("dns = [\"{DNS4}\"]")));
    let stand = yard.stand("m1", 2);
    yard.hold("c1", &stand);
    let led = || stand.netns.sh("nft -a list table inet tunjail_dns");
    let before = led();
    assert!(before.contains(&format!("dnat ip to {DNS4}")), "{before}");
    yard.hold("c2", &stand);
    assert_eq!(led(), before, "made anew under a sibling");
    // Somebody of the pod took it away: then nobody is asked, and the next one has it again.
    stand.netns.sh("nft delete table inet tunjail_dns");
    let line = stand.netns.probe(&["dns", EMBEDDED, &new_name()]).json();
    assert_eq!(line["kind"], "ConnectionRefused", "{line}");
    yard.hold("c3", &stand);
    assert!(led().contains(&format!("dnat ip to {DNS4}")), "{}", led());
    for id in ["c1", "c2", "c3"] {
        assert!(yard.lab.poststop(&stopped(id), &[]).code == 0);
    }
}
