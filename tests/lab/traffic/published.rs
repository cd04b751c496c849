//! Published ports: `-p 8080:80` on real engines, reached from where the jail says and answered the way the question came.

use std::time::Duration;

use rstest::rstest;
use serde_json::json;

use super::settings::complaints;
use super::{allowing, assert_told, rejected, serve};
use crate::bridge::GATEWAY6;
use crate::engine::Container;
use crate::engine::docker::Docker;
use crate::engine::podman::Podman;
use crate::guest::{Guest, Release};
use crate::matrix::wired::{BY_ANNOTATION, docker_with};
use crate::product::STRICT_JAIL;
use crate::run::{answer, wait_until};
use crate::vpn::{TUN, Vpn};
use crate::world::{HOST4, HOST6, LAN4, LAN6, Lab, Netns, ROUTER4, SERVICE4};

const PUBLISHED: [&str; 7] =
    ["-p", "8080:80", "--ip", "172.18.0.20", "--ip6", "fd00:18::20", "--cap-add=NET_BIND_SERVICE"];
const MEMBER: [&str; 2] = ["172.18.0.20", "fd00:18::20"];

/// Docker or Podman, one container at a time.
enum Engine<'lab> {
    Docker(Docker),
    Podman(Podman<'lab>),
}

impl Engine<'_> {
    /// By a jail's hook, or unseen by tunjail.
    fn run(&self, name: &str, jailed: bool) -> Box<dyn Container + '_> {
        let how: &[&str] = match (self, jailed) {
            (_, false) => &[],
            (Self::Docker(_), true) => &["--runtime", "tunjail-vpn"],
            (Self::Podman(_), true) => &["--annotation", "io.tunjail.jail=vpn"],
        };
        let options = [&PUBLISHED[..], how].concat();
        match self {
            Self::Docker(docker) => Box::new(docker.run(name, &options)),
            Self::Podman(podman) => Box::new(podman.run(name, &options)),
        }
    }
}

/// The router lets calls in for port 8080, as people tell their routers.
fn let_in(lab: &Lab) {
    lab.router.nft(&format!(
        "insert rule inet home in tcp dport 8080 accept
        table inet forwarded {{ chain pre {{ type nat hook prerouting priority -100
            iifname wan0 ip daddr {ROUTER4} tcp dport 8080 dnat ip to {HOST4}
        }}
        }}"
    ));
}

/// What the host sends by the exit as TCP or as an error, of whomever.
fn watch_the_exit(lab: &Lab) {
    let table = format!(
        "table inet watch {{
            counter by_exit {{ }}
            chain post {{ type filter hook postrouting priority 350
                oifname {TUN} meta l4proto tcp counter name by_exit
                oifname {TUN} icmp type destination-unreachable counter name by_exit
                oifname {TUN} icmpv6 type destination-unreachable counter name by_exit
            }}
        }}"
    );
    lab.tools().cmd("nft", &["-f", "-"]).stdin(table).ok();
}

fn by_exit(lab: &Lab) -> u64 {
    let text = lab.tools().cmd("nft", &["list", "counter", "inet", "watch", "by_exit"]).ok();
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

/// Where callers from the internet have an address; which of its own one takes is its kernel's choice.
const INTERNET6: &str = "2001:db8:51::";

/// From the LAN and from the internet, as each knows the host.
const CALLS: [(&str, &str, &str, &str); 4] = [
    ("lan", HOST4, LAN4, "v4"),
    ("lan", HOST6, LAN6, "v6"),
    ("inet", ROUTER4, SERVICE4, "v4"),
    ("inet", HOST6, INTERNET6, "v6"),
];

#[rstest]
#[case::docker_20_10(Release::Bookworm, "docker", true)]
#[case::docker_20_10_without_its_proxy(Release::Bookworm, "docker", false)]
#[case::docker_28_5(Release::Sid, "docker", true)]
#[case::podman_4_3(Release::Bookworm, "podman", true)]
#[case::podman_5_8(Release::Sid, "podman", true)]
fn a_published_port_answers_the_allowed_net_alone(
    #[case] release: Release,
    #[case] which: &str,
    #[case] userland_proxy: bool,
) {
    let lab = Lab::new();
    let guest = Guest::new(&lab, release);
    lab.is_of(&guest);
    // Strict: a packet that comes in by another way than its answer would go is dropped.
    lab.sh("for conf in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $conf; done");
    let allow = [LAN4, LAN6].map(|addr| format!("{{ net = \"{addr}\", ports = [\"tcp/80\"], direction = \"in\" }}"));
    lab.configure(&allowing(&allow.join(", ")));
    let engine = if which == "docker" {
        Engine::Docker(docker_with(&lab, &guest, &json!({"userland-proxy": userland_proxy})))
    } else {
        Engine::Podman(Podman::of(&lab, &guest).hooks("annotation", &BY_ANNOTATION))
    };
    let server = Vpn::start_server(&lab);
    let mut client = server.client(Some(&lab.exit_script()));
    let_in(&lab);

    let call = |caller: &str, host: &str| Netns::open(caller).probe(&["http", host, "8080"]);
    let mut plain = engine.run("control", false);
    let serving = serve(&*plain, &MEMBER);
    for (caller, host, source, _) in CALLS {
        wait_until(&format!("the control of {caller} by {host}"), Duration::from_secs(5), || {
            call(caller, host).json()["ok"] == true
        });
        let seen = answer(&call(caller, host));
        assert!(seen.starts_with(source), "positive control: who called by {host}: {seen}");
    }
    drop(serving);
    plain.remove();

    let mut member = engine.run("m1", true);
    lab.sh("for conf in /proc/sys/net/ipv4/conf/*/rp_filter; do test $(cat $conf) = 1 || echo 1 > $conf; done");
    let _serving = serve(&*member, &MEMBER);
    for exit in ["up", "killed", "killed, not strict"] {
        match exit {
            "up" => {
                client.start_and_wait();
                lab.sh(&format!("echo 1 > /proc/sys/net/ipv4/conf/{TUN}/rp_filter"));
                watch_the_exit(&lab);
            }
            "killed" => client.sigkill(),
            "killed, not strict" => {
                lab.sh("for conf in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $conf; done");
            }
            _ => unreachable!("{exit}"),
        }
        for (caller, host, source, family) in CALLS {
            if caller == "lan" {
                lab.reset_leaks();
            }
            let (refused, exit_before) = (rejected(&lab, "rejected_in"), if exit == "up" { by_exit(&lab) } else { 0 });
            let out = call(caller, host);
            let what = format!("exit {exit}: {family} from {caller}");
            if caller == "lan" {
                assert_eq!(answer(&out), source, "{what}");
                let leaks = lab.leaks();
                assert!(leaks.lan4 + leaks.lan6 > 0 && leaks.escaped() == 0, "{what}: {leaks:?}");
                assert_eq!(rejected(&lab, "rejected_in"), refused, "{what}");
            } else {
                assert_eq!(out.json()["ok"], false, "{what}");
                // The answer would not go back by the uplink, so a strict host drops the call before any wall sees it.
                if family == "v6" || exit.ends_with("not strict") {
                    assert_told(&what, &out);
                    assert!(rejected(&lab, "rejected_in") > refused, "{what} was not counted");
                }
            }
            if exit == "up" {
                assert_eq!(by_exit(&lab), exit_before, "{what} was answered by the exit");
            }
        }
        assert!(!complaints(&lab).iter().any(|(_, words)| words.contains("docker-proxy")));
        // The member itself may not call the LAN: the port is the LAN's to ask for.
        for addr in [LAN4, LAN6] {
            assert_told(addr, &member.probe(&["tcp-echo", addr, "7"]));
        }
    }
    member.remove();
}

/// Docker without `ip6tables` leaves IPv6 to its proxy, which asks the member as the host: docs/security.md says that no wall
/// judges this, and `check` that it is so.
#[test]
fn check_names_a_proxy_of_dockers_that_lets_everybody_in() {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    let docker = docker_with(&lab, &Guest::own(), &json!({"ip6tables": false}));
    let_in(&lab);
    let mut member = docker.run("m1", &[&PUBLISHED[..], &["--runtime", "tunjail-vpn"]].concat());
    let _serving = serve(&member, &MEMBER);
    let inet = Netns::open("inet");
    assert_eq!(answer(&inet.probe(&["http", HOST6, "8080"])), GATEWAY6, "by the proxy");
    assert_eq!(inet.probe(&["http", ROUTER4, "8080"]).json()["ok"], false, "by Docker's rules");
    let of_the_proxy = || {
        let found = complaints(&lab).into_iter();
        found
            .filter(|(_, words)| words.contains("docker-proxy hands on port tcp/8080 from IPv6 to fd00:18::20"))
            .count()
    };
    assert_eq!(of_the_proxy(), 1);
    member.remove();
    assert_eq!(of_the_proxy(), 0);
}
