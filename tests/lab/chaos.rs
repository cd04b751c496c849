//! A thousand containers of mixed engines are started, killed with SIGKILL in one way or another, and removed, several at
//! a time. In the end nothing of tunjail's is left of them: promise P9, and P7 along the way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::docker::Docker;
use crate::engine::oci::Bundle;
use crate::engine::podman::Podman;
use crate::guest::{Guest, Release};
use crate::late::{attendants, nobody_attends};
use crate::product::RUNTIME;
use crate::run::{Cmd, Job, wait_until};
use crate::vpn::Vpn;
use crate::world::{Lab, Netns, cgroup};

const WORKER: &str = include_str!("chaos/worker.sh");

const CONFIG: &str = r#"
[jail.vpn]
subnets = ["172.18.0.0/16", "fd00:18::/64"]
exit = "tun0"

[jail.pods]
subnets = ["172.28.0.0/16"]
exit = "tun0"
bridge = "pods0"

[jail.hand]
subnets = ["172.38.0.0/16"]
exit = "tun0"
"#;

/// How a worker's containers end, in turn.
const BY_HAND: &[&str] = &["init", "port", "create", "none"];
const BY_HAND_LATE: &[&str] = &["init", "helper", "port", "create", "none"];
const BY_DOCKER: &[&str] = &["init", "parent", "kill", "none", "helper", "restart"];
const BY_PODMAN: &[&str] = &["init", "parent", "kill", "none", "restart"];

/// Far more than they take.
const LIMIT: Duration = Duration::from_secs(900);

fn worker(name: &str, kind: &str, network: u8, cycles: usize, kills: &[&str], variables: &[(&str, String)]) -> Job {
    let kills: Vec<&str> = kills.iter().copied().cycle().take(cycles).collect();
    let variables: String = variables.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    let script =
        format!("worker={name} kind={kind} network={network}\nkills='{}'\n{variables}{WORKER}", kills.join(" "));
    Cmd::new("/bin/sh", &["-uc", &script]).spawn()
}

/// The bundle of a worker's containers; the word NETNS stands for the namespace.
fn template(lab: &Lab, name: &str, bundle: impl FnOnce(Bundle) -> Bundle) {
    let netns = Netns::add("NETNS");
    let text = bundle(Bundle::new(&netns)).text();
    Cmd::new("ip", &["netns", "del", "NETNS"]).ok();
    std::fs::write(lab.dir("bundles").join(format!("{name}.json")), text).expect("a bundle's template");
}

/// Podman on a network of its own, next to Docker's.
fn podman<'lab>(lab: &'lab Lab, guest: &Guest) -> (Podman<'lab>, String) {
    let podman = Podman::of(lab, guest).hooks("annotation", &crate::matrix::wired::BY_ANNOTATION);
    let network = json!({
        "name": "pods", "id": "8".repeat(64), "driver": "bridge", "network_interface": "pods0",
        "created": "2026-01-01T00:00:00Z", "subnets": [{"subnet": "172.28.0.0/16", "gateway": "172.28.0.1"}],
        "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
    });
    guest.write("/etc/containers/networks/pods.json", &network.to_string());
    let run = format!(
        "--ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --cap-add NET_RAW,NET_ADMIN --cgroup-parent /{} \
         --network pods --annotation io.tunjail.jail=pods lab",
        cgroup()
    );
    (podman, run)
}

#[test]
fn a_thousand_kills_leave_nothing() {
    let lab = Lab::new();
    let sid = Guest::new(&lab, Release::Sid);
    lab.is_of(&sid);
    let server = Vpn::start_server(&lab);
    let mut client = server.client(Some(&lab.exit_script()));
    lab.configure(CONFIG);
    client.start_and_wait();
    lab.sh("ip link add hand0 type bridge; ip addr add 172.38.0.1/16 dev hand0; ip link set hand0 up");
    lab.tunjail_ok(&["install", "cdi"]);
    let mut settings = Docker::settings(&lab);
    settings["runtimes"] = json!({"tunjail": {"path": RUNTIME, "runtimeArgs": ["--jail", "vpn"]}});
    let docker = Docker::start_of(&lab, &sid, &settings);
    let (podman, podman_run) = podman(&lab, &sid);
    template(&lab, "late", |bundle| bundle);
    template(&lab, "config", |bundle| bundle.jailed(&["--jail", "hand"]));
    template(&lab, "note", |bundle| bundle.jailed(&[]).annotation("io.tunjail.jail", "hand"));
    let before = lab.settled();
    lab.tunjail_ok(&["up"]);
    let standing = lab.settled();

    // One release for all: an older nft cannot read what a newer one wrote.
    let by_hand =
        |runtime: &str, root: &str| sid.line(&format!("{} --root /run/lab/{root}", sid.path_of(runtime).display()));
    let over = |runtime: &str| {
        let path = sid.path_of(runtime);
        sid.line(&format!("{RUNTIME} --jail hand --runtime {} --root /run/lab/late", path.display()))
    };
    let docker_run = |options: &str| format!("--network vpn --cap-add NET_ADMIN {options} lab");
    let (text, no, yes) = (str::to_owned, "no".to_owned(), "yes".to_owned());
    let by_engine = |line: String, run: String, remove| [("engine", line), ("run", run), ("remove", text(remove))];
    let workers = [
        ("late", worker("late", "by_hand", 1, 250, BY_HAND_LATE, &[("runtime", over("runc")), ("late", yes)])),
        (
            "config",
            worker(
                "config",
                "by_hand",
                2,
                200,
                BY_HAND,
                &[("runtime", by_hand("runc", "config")), ("late", no.clone())],
            ),
        ),
        ("note", worker("note", "by_hand", 3, 200, BY_HAND, &[("runtime", by_hand("crun", "note")), ("late", no)])),
        (
            "podman",
            worker("podman", "by_engine", 0, 150, BY_PODMAN, &by_engine(podman.line(), podman_run, "rm -f -t 0")),
        ),
        (
            "docker",
            worker(
                "docker",
                "by_engine",
                0,
                100,
                BY_DOCKER,
                &by_engine(docker.line(), docker_run("--runtime tunjail"), "rm -f"),
            ),
        ),
        (
            "device",
            worker(
                "device",
                "by_engine",
                0,
                100,
                BY_DOCKER,
                &by_engine(docker.line(), docker_run("--device tunjail.io/jail=vpn"), "rm -f"),
            ),
        ),
    ];
    let (mut cycles, mut started) = (0, 0);
    for (name, worker) in workers {
        let out = worker.finish(LIMIT);
        let log = std::fs::read_to_string(format!("/run/lab/{name}.log")).unwrap_or_default();
        let tail = || log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
        let line: Value =
            serde_json::from_str(out.stdout.trim()).unwrap_or_else(|_| panic!("{name}: {out:?}\n{}", tail()));
        println!("chaos: {name}: {line}");
        let [ran, all] = ["started", "cycles"].map(|key| line[key].as_u64().expect("a number"));
        // Those that were killed while they were created do not run; the others do.
        assert!(ran * 4 >= all * 3, "{name}: {line}\n{}", tail());
        (cycles, started) = (cycles + all, started + ran);
    }
    println!("chaos: {started} of {cycles} containers ran");
    assert_eq!(cycles, 1000);

    // What died without a poststop goes with the next call.
    nobody_attends();
    wait_until("the engines at rest", Duration::from_secs(10), || {
        lab.tunjail_ok(&["sweep"]);
        !lab.snapshot().part("/run/tunjail").contains("/members/")
    });
    let after = lab.settled();
    for part in ["ip rule", "ip -6 rule", "/run/tunjail", "rt_tables.d"] {
        assert_eq!(standing.part(part), after.part(part), "{part}");
    }
    let table = |family, jail: &str| sid.cmd("nft", &["list", "table", family, &format!("tunjail_{jail}")]).ok();
    for jail in ["vpn", "pods", "hand"] {
        for family in ["inet", "bridge"] {
            let text = table(family, jail);
            assert!(!text.contains("elements"), "{family} tunjail_{jail} still has elements:\n{text}");
        }
    }
    assert_eq!(attendants(), [0_u32; 0]);
    lab.tunjail_ok(&["down"]);
    let end = lab.settled();
    for part in ["ip rule", "ip -6 rule", "/run/tunjail", "rt_tables.d"] {
        assert_eq!(before.part(part), end.part(part), "{part}");
    }
    assert!(!end.part("nft ruleset").contains("tunjail"), "{}", end.part("nft ruleset"));
}
