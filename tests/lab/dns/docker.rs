//! Docker's embedded resolver, on the real thing: it listens in the container's namespace, and asks from the host's. Up
//! to 27 that is so for a server on the host's loopback, from 28 on for every server of the host's resolv.conf.

use std::fs;
use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use super::{EMBEDDED, TRANSPORTS, ask, asks_by_the_exit, is_refused, jail, new_name, warnings};
use crate::engine::docker::{Docker, DockerContainer};
use crate::engine::{Container, Restartable};
use crate::guest::{Guest, Release};
use crate::matrix::wired::docker;
use crate::resolver::{Answers, Resolver};
use crate::run::wait_until;
use crate::vpn::Vpn;
use crate::world::{DNS4, DNS6, Lab, ROUTER4, VPN4};

/// What a host's own resolver listens on.
const LOCAL: &str = "127.0.0.54";
const WAYS: [&[&str]; 2] = [&["--runtime", "by-subnet"], &["--device", "tunjail.io/jail=vpn", "--cap-add=NET_RAW"]];

struct Host {
    docker: Docker,
    _local: Resolver,
    release: Release,
    lab: Lab,
}

impl Host {
    /// With a resolv.conf that makes this Docker ask from the host's namespace.
    fn new(release: Release) -> Self {
        let lab = Lab::new();
        let local = Resolver::start(None, "local", &[LOCAL], Answers::From(DNS4));
        let server = if release == Release::Sid { DNS4 } else { LOCAL };
        fs::write("/etc/resolv.conf", format!("nameserver {server}\n")).expect("/etc/resolv.conf");
        let guest = Guest::new(&lab, release);
        lab.is_of(&guest);
        lab.configure(&jail(""));
        Self { docker: docker(&lab, &guest), _local: local, release, lab }
    }

    /// By each way in that this Docker has; the address is late on 28.
    fn ways(&self) -> &[&'static [&'static str]] {
        if self.release == Release::Sid { &WAYS } else { &WAYS[..1] }
    }

    fn member(&self, options: &[&str]) -> DockerContainer<'_> {
        let member = self.docker.run("m1", options);
        wait_until("a member", Duration::from_secs(5), || {
            let status: Value = serde_json::from_str(&self.lab.tunjail_ok(&["status", "--json"])).expect("JSON");
            status["jails"][0]["members"][0]["state"] == "held"
        });
        member
    }

    /// What a container with CAP_NET_ADMIN can do in its own namespace.
    fn member_deletes_its_lock(&self) {
        let pid = self.docker.call(&["inspect", "--format", "{{.State.Pid}}", "m1"]).ok();
        for table in ["tunjail", "tunjail_dns"] {
            let delete = format!("nsenter --net=/proc/{}/ns/net nft delete table inet {table} || true", pid.trim());
            self.lab.sh(&delete);
        }
    }

    /// What a container's first instruction asks.
    fn first_question(&self, options: &[&str]) -> Vec<String> {
        let name = new_name();
        let run = [&["run", "--rm", "--network", "vpn"], options, &["lab", "/bin/probe", "dns", EMBEDDED, &name]];
        self.docker.call(&run.concat()).ok();
        self.lab.askers(&name)
    }
}

/// The ports that dockerd listens on in there, UDP and TCP, which any process can read.
fn drawn_ports(container: &dyn Container) -> [String; 2] {
    ["/proc/net/udp", "/proc/net/tcp"].map(|table| {
        let text = container.exec(&["/bin/cat", table]).stdout;
        let port = text.split_whitespace().find_map(|word| word.strip_prefix("0B00007F:"));
        u16::from_str_radix(port.expect("dockerd's port"), 16).expect("a number").to_string()
    })
}

#[rstest]
#[case::docker_20_10(Release::Bookworm)]
#[case::docker_28_5(Release::Sid)]
fn dockers_resolver_answers_by_the_exit_or_not_at_all(#[case] release: Release) {
    let host = Host::new(release);
    let lab = &host.lab;
    let server = Vpn::start_server(lab);
    let mut client = server.client(Some(&lab.exit_script()));

    let mut plain = host.docker.run("control", &[]);
    let control = lab.assert_probe_is_visible(|| {
        for (transport, port) in TRANSPORTS.into_iter().zip(drawn_ports(&plain)) {
            let name = ask(&plain, transport, EMBEDDED);
            assert_eq!(lab.askers(&name), [ROUTER4], "positive control: {transport}");
            let name = new_name();
            let line = plain.probe(&[transport, EMBEDDED, &name, &port]).json();
            assert_eq!(line["ok"], true, "positive control: {transport} at the port that dockerd drew: {line}");
        }
    });
    assert_eq!(host.first_question(&[]), [ROUTER4], "positive control");
    plain.remove();
    client.start_and_wait();

    for way in host.ways() {
        lab.configure(&jail("dns = \"block\""));
        let mut member = host.member(way);
        lab.reset_leaks();
        for (transport, port) in TRANSPORTS.into_iter().zip(drawn_ports(&member)) {
            is_refused(lab, &member, &[transport, EMBEDDED]);
            is_refused(lab, &member, &[transport, EMBEDDED, &port]);
            // What it asks by itself is its own affair.
            asks_by_the_exit(lab, &member, transport, DNS4);
            asks_by_the_exit(lab, &member, transport, DNS6);
        }
        member.remove();
        assert_eq!(host.first_question(way), [""; 0], "{way:?}: the first instruction");

        lab.configure(&jail(&format!("dns = [\"{DNS4}\"]")));
        let mut member = host.member(way);
        for (transport, port) in TRANSPORTS.into_iter().zip(drawn_ports(&member)) {
            asks_by_the_exit(lab, &member, transport, EMBEDDED);
            is_refused(lab, &member, &[transport, EMBEDDED, &port]);
        }
        client.sigkill();
        for transport in TRANSPORTS {
            let line = member.probe(&[transport, EMBEDDED, &new_name()]).json();
            assert_eq!(line["ok"], false, "{transport} without an exit: {line}");
        }
        client.start_and_wait();
        wait_until("names by the exit that came back", Duration::from_secs(10), || {
            member.probe(&["dns", EMBEDDED, &new_name()]).json()["ok"] == true
        });
        member.restart();
        wait_until("names after a restart", Duration::from_secs(10), || {
            member.probe(&["dns", EMBEDDED, &new_name()]).json()["ok"] == true
        });
        asks_by_the_exit(lab, &member, "dns-tcp", EMBEDDED);
        member.remove();
        // Refused while its address is not confirmed, and by the exit from then on.
        let askers = host.first_question(way);
        assert!(askers.is_empty() || askers == [VPN4], "{way:?}: the first instruction: {askers:?}");
        lab.wait_quiet();
        lab.assert_no_leak("dns", &format!("{release:?}-{}", way[0]).to_lowercase(), control);
    }
}

/// Where the resolver is left alone, or freed, it leaks, and `check` has said so before.
#[rstest]
#[case::docker_20_10(Release::Bookworm)]
#[case::docker_28_5(Release::Sid)]
fn where_dockers_resolver_leaks_check_says_so(#[case] release: Release) {
    let host = Host::new(release);
    let lab = &host.lab;
    let server = Vpn::start_server(lab);
    let mut client = server.client(Some(&lab.exit_script()));
    client.start_and_wait();
    let way = WAYS[0];
    let warned = |what: &str| warnings(lab).iter().any(|warning| warning.contains(what));
    let (leaves, may_be_freed) =
        ("names leave by the host's uplink", "that has CAP_NET_ADMIN can open Docker's resolver");

    lab.configure(&jail("dns = \"engine\""));
    assert!(warned(leaves) && !warned(may_be_freed), "{:?}", warnings(lab));
    let mut member = host.member(way);
    for transport in TRANSPORTS {
        let name = ask(&member, transport, EMBEDDED);
        assert_eq!(lab.askers(&name), [ROUTER4], "it does not leak after all");
    }
    member.remove();

    for line in ["dns = \"block\"".to_owned(), format!("dns = [\"{DNS4}\"]")] {
        lab.configure(&jail(&line));
        assert!(!warned(leaves) && warned(may_be_freed), "{line}: {:?}", warnings(lab));
        let mut member = host.member(way);
        host.member_deletes_its_lock();
        let name = ask(&member, "dns", EMBEDDED);
        assert_eq!(lab.askers(&name), [ROUTER4], "{line}: it does not leak after all");
        member.remove();
        // The mend, for one container.
        let mut member = host.member(&[way, &["--dns", DNS4]].concat());
        host.member_deletes_its_lock();
        asks_by_the_exit(lab, &member, "dns", EMBEDDED);
        asks_by_the_exit(lab, &member, "dns-tcp", EMBEDDED);
        member.remove();
    }
    fs::create_dir_all("/etc/docker").expect("/etc/docker");
    lab.tools().write("/etc/docker/daemon.json", &format!("{{\"dns\": [\"{DNS4}\"]}}"));
    assert!(!warned(leaves) && !warned(may_be_freed), "the mend for all: {:?}", warnings(lab));
}
