//! Ports of the host itself: those that the jail names are open to members, and nothing else of the host is.

use std::time::Duration;

use rstest::rstest;

use crate::bridge::{GATEWAY4, GATEWAY6};
use crate::dns::jail;
use crate::engine::Container;
use crate::guest::{Guest, Release};
use crate::hostile::services::{PUBLISHED, publish};
use crate::matrix::wired::{OTHER, docker, other_docker_network};
use crate::rootfs::{self, PROBE};
use crate::run::{Cmd, answer, wait_until};
use crate::scene::Scene;
use crate::world::{HOST4, HOST6, Lab, SERVICE4};

const HOSTS: [&str; 4] = [GATEWAY4, GATEWAY6, HOST4, HOST6];

/// The probe's services on the host: echo on 7 by TCP and UDP, HTTP on 80.
fn serve() -> crate::run::Job {
    let job = Cmd::new(rootfs::probe(), &[&["serve"], &HOSTS[..]].concat()).spawn();
    wait_until("the host's services", Duration::from_secs(5), || job.stdout().contains("ready"));
    job
}

#[track_caller]
fn is_closed(container: &dyn Container, question: &[&str]) {
    let line = container.probe(question).json();
    assert_eq!(line["ok"], false, "{question:?}: {line}");
}

#[test]
fn members_reach_the_ports_that_are_named_and_no_other() {
    let mut scene = Scene::new(&jail("host = [\"udp/7\", \"tcp/80\"]\nenrolled_only = true"));
    scene.client.start_and_wait();
    let _services = serve();
    let stranger = scene.plain("control", 200);
    for host in HOSTS {
        for question in [["tcp-echo", host, "7"], ["udp-echo", host, "7"], ["http", host, "80"]] {
            answer(&stranger.probe(&question));
        }
    }
    let member = scene.member("runc", "m1", 2);
    for host in HOSTS {
        answer(&member.probe(&["udp-echo", host, "7"]));
        let own = if host.contains(':') { "fd00:18::2" } else { "172.18.0.2" };
        assert_eq!(answer(&member.probe(&["http", host])), own);
        is_closed(&member, &["tcp-echo", host, "7"]);
        // Members alone: the address that no hook enrolled gets nothing.
        is_closed(&stranger, &["udp-echo", host, "7"]);
        is_closed(&stranger, &["http", host]);
    }
    // Without its exit as well; the host is not behind it.
    scene.client.sigkill();
    answer(&member.probe(&["udp-echo", GATEWAY4, "7"]));

    // A made-up source is none of the jail's: what the host answered it would leave by the uplink.
    scene.lab.configure(&jail("host = [\"udp/7\"]"));
    scene.lab.tunjail_ok(&["up"]);
    scene.lab.nft(
        "table inet service { counter asked { }
            chain in { type filter hook input priority 300
                iifname vpn udp dport 7 counter name asked
            }
        }",
    );
    let asked = || {
        let text = scene.lab.sh("nft list counter inet service asked");
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse::<u64>().ok()).expect("a counter")
    };
    scene.lab.reset_leaks();
    stranger.probe(&["spoof-udp", "172.18.0.200", GATEWAY4, "7", "3"]);
    assert_eq!(asked(), 3, "positive control");
    stranger.probe(&["spoof-udp", "192.0.2.77", GATEWAY4, "7", "3"]);
    stranger.probe(&["spoof-udp", "2001:db8:77::77", GATEWAY6, "7", "3"]);
    answer(&stranger.probe(&["ping", GATEWAY4, "1"]));
    assert_eq!(asked(), 3, "a made-up source reached a port of the host");
    assert_eq!(scene.lab.leaks().escaped(), 0, "{:?}", scene.lab.leaks());
}

/// A port that the jail names is the host's own. Where the host hands it on to another container, it leads out of the jail.
#[test]
fn a_named_port_that_is_another_containers_stays_closed() {
    let mut scene = Scene::new(&jail(&format!("host = [\"tcp/{PUBLISHED}\"]")));
    scene.client.start_and_wait();
    let (_other, _proxies) = publish(&scene);
    let question = |host| ["via-proxy", host, PUBLISHED, SERVICE4, "80"];
    let mut plain = scene.plain("control", 200);
    for host in [GATEWAY4, HOST4] {
        answer(&plain.probe(&question(host)));
    }
    plain.remove();
    let member = scene.member("runc", "m1", 2);
    scene.lab.reset_leaks();
    for host in HOSTS {
        is_closed(&member, &question(host));
    }
    assert_eq!(scene.lab.leaks().total(), 0, "{:?}", scene.lab.leaks());
}

/// For containers on its own bridges Docker leaves a published port out of its NAT, so that docker-proxy answers: a process
/// of the host, which asks the other container by itself.
#[rstest]
#[case::docker_20_10(Release::Bookworm)]
#[case::docker_28_5(Release::Sid)]
fn docker_proxy_serves_no_member(#[case] release: Release) {
    let lab = Lab::new();
    let guest = Guest::new(&lab, release);
    lab.is_of(&guest);
    lab.configure(&jail("host = [\"tcp/22\"]"));
    let docker = docker(&lab, &guest);
    other_docker_network(&docker);
    let mut other = docker.run("other", &["--network", OTHER, "-p", "8080:80"]);
    let addresses = other.exec(&["/bin/busybox", "ip", "-o", "addr", "show", "dev", "eth0"]).stdout;
    let own = addresses.split_whitespace().filter_map(|word| word.strip_suffix("/16").or(word.strip_suffix("/64")));
    let own: Vec<&str> = own.filter(|address| !address.starts_with("fe80")).collect();
    let served = other.spawn(&[&[PROBE, "serve"], &own[..]].concat());
    wait_until("the other container's service", Duration::from_secs(5), || served.stdout().contains("ready"));

    let mut plain = docker.run("control", &[]);
    for host in HOSTS {
        answer(&plain.probe(&["http", host, "8080"]));
    }
    plain.remove();
    let mut member = docker.run("m1", &["--runtime", "tunjail-vpn"]);
    for host in HOSTS {
        is_closed(&member, &["http", host, "8080"]);
    }
    member.remove();
    other.remove();
}
