//! Refusals as users meet them: in the error of the runtime that they started, and with a process that never ran.

use std::fs;

use rstest::rstest;

use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product::{JAIL, own_lines};
use crate::world::Netns;
use crate::yard::{Lock, Yard};

/// Why a container is refused.
#[derive(Debug, Clone, Copy)]
enum Reason {
    HostNetwork,
    HostNetworkByAnnotation,
    ForeignAddress,
    SecondNetwork,
    UnknownJail,
    UnknownJailByAnnotation,
    BrokenConfiguration,
    NoConfiguration,
    TakenTable,
}

const REASONS: [Reason; 9] = [
    Reason::HostNetwork,
    Reason::HostNetworkByAnnotation,
    Reason::ForeignAddress,
    Reason::SecondNetwork,
    Reason::UnknownJail,
    Reason::UnknownJailByAnnotation,
    Reason::BrokenConfiguration,
    Reason::NoConfiguration,
    Reason::TakenTable,
];

impl Reason {
    /// Makes it so, and says what the user has to read.
    fn prepare(self, yard: &Yard, netns: &Netns, bundle: Bundle) -> (Bundle, &'static [&'static str]) {
        let jailed = |bundle: Bundle| bundle.jailed(&["--jail", "vpn"]);
        let annotated = |bundle: Bundle, jail| bundle.jailed(&[]).annotation("io.tunjail.jail", jail);
        match self {
            Self::HostNetwork => (jailed(bundle.on_host_network()), &["host's own network namespace"]),
            Self::HostNetworkByAnnotation => {
                (annotated(bundle.on_host_network(), "vpn"), &["host's own network namespace"])
            }
            Self::ForeignAddress => {
                netns.sh("ip addr add 10.99.0.2/24 dev eth0");
                (jailed(bundle), &["10.99.0.2", "outside jail vpn's subnets"])
            }
            Self::SecondNetwork => {
                yard.lab.sh(&format!(
                    "ip link add other type bridge; ip link set other up
                    ip link add veth-second type veth peer name eth1 netns {}; ip link set veth-second master other up",
                    netns.name()
                ));
                (jailed(bundle), &["eth1", "not a port of jail vpn's bridge"])
            }
            Self::UnknownJail => (bundle.jailed(&["--jail", "office"]), &["jail office is not in the configuration"]),
            Self::UnknownJailByAnnotation => {
                (annotated(bundle, "office"), &["jail office is not in the configuration", "its jails are: vpn"])
            }
            Self::BrokenConfiguration => {
                yard.lab.configure("[jail.vpn]\nsubnets = [\"172.18.0.1/16\"]\n");
                (jailed(bundle), &["/etc/tunjail/tunjail.toml:2: ", "host bits set"])
            }
            Self::NoConfiguration => {
                fs::remove_file(crate::product::CONFIG).expect("the configuration removed");
                (jailed(bundle), &["/etc/tunjail/tunjail.toml: no such file"])
            }
            Self::TakenTable => {
                yard.lab.configure(&format!("{JAIL}table = 100\n"));
                yard.lab.sh("ip route add 10.99.0.0/16 dev eth0 table 100");
                (jailed(bundle), &["routing table 100 of jail vpn holds a route of others"])
            }
        }
    }
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_refused_container_does_not_run_and_its_runtime_says_why(#[case] runtime: &'static str) {
    let yard = Yard::new(JAIL);
    let shared = yard.lab.dir("shared");
    let trace = shared.join("ran");
    let bundle = |netns: &Netns| {
        Bundle::new(netns).bind(&shared, "/tmp").process(&["/bin/sh", "-c", "echo ran > /tmp/ran; exec sleep 3600"])
    };
    for (n, reason) in (2..).zip(REASONS) {
        let name = format!("m{n}");
        let netns = yard.plug(&name, n);
        yard.lab.configure(JAIL);
        // The control: without a hook the same process runs, and leaves its trace.
        let mut plain = Oci::run(&yard.lab, runtime, "plain", &bundle(&netns));
        crate::run::wait_until("the process's trace", std::time::Duration::from_secs(5), || trace.exists());
        plain.remove();
        fs::remove_file(&trace).expect("its trace removed");

        let (bundle, fragments) = reason.prepare(&yard, &netns, bundle(&netns));
        let before = yard.lab.settled();
        let Err(out) = Oci::try_run(&yard.lab, runtime, &name, &bundle) else { panic!("{reason:?}: it runs") };
        let said = own_lines(&out.stderr);
        let refusal = format!("container {name} was not started");
        assert!(said.len() == 1 && said[0].contains(&refusal), "{reason:?}: {out:?}");
        for fragment in fragments {
            assert!(said[0].contains(fragment), "{fragment:?} is not in {:?}", said[0]);
        }
        before.assert_same(&yard.lab.snapshot(), &format!("{reason:?}"));
        assert!(!trace.exists(), "{reason:?}: its process ran");
        assert_eq!(netns.lock(), Lock::Absent, "{reason:?}");
        assert_eq!(processes_in(&netns), "", "{reason:?}: somebody lives in its namespace");
    }
}

/// Names of the processes in a namespace.
fn processes_in(netns: &Netns) -> String {
    let out = crate::run::Cmd::new("ip", &["netns", "pids", netns.name()]).ok();
    out.split_whitespace().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok()).collect()
}

/// A hook for every container leaves those alone that are nobody's.
#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn always_lets_the_hosts_own_containers_run(#[case] runtime: &'static str) {
    let yard = Yard::new(JAIL);
    let netns = yard.plug("m1", 2);
    let before = yard.lab.settled();
    let bundle = Bundle::new(&netns).on_host_network().jailed(&[]);
    let mut container = Oci::run(&yard.lab, runtime, "m1", &bundle);
    before.assert_same(&yard.lab.snapshot(), "a container on the host's network");
    container.remove();
    before.assert_same(&yard.lab.snapshot(), "its end");
}

/// What was closed before the refusal stays closed after it, so that nothing that finds its way in can speak.
#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_late_refusal_leaves_the_namespace_closed(#[case] runtime: &'static str) {
    let yard = Yard::new(JAIL);
    let netns = yard.plug("m1", 2);
    yard.lab.sh("ip rule add from 172.18.0.0/16 lookup main pref 100");
    let before = yard.lab.settled();
    assert_eq!(netns.lets_go("172.18.0.2", crate::world::SERVICE4), 3, "without a lock it goes out");
    let bundle = Bundle::new(&netns).jailed(&["--jail", "vpn"]);
    let Err(out) = Oci::try_run(&yard.lab, runtime, "m1", &bundle) else { panic!("it runs") };
    assert!(own_lines(&out.stderr)[0].contains("not an exit of the jail"), "{out:?}");
    before.assert_same(&yard.lab.snapshot(), "a late refusal");
    assert_eq!(netns.lock(), Lock::Closed);
    assert_eq!(netns.lets_go("172.18.0.2", crate::world::SERVICE4), 0);
}
