//! `tunjail install` and `uninstall` on the host's own files, with the engines that read them.

mod refusals;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::engine::Container;
use crate::engine::docker::Docker;
use crate::engine::podman::Podman;
use crate::product::{self, STRICT_JAIL};
use crate::run::Cmd;
use crate::teardown::crash::{at_every_call, killed};
use crate::vpn::{Client, Vpn};
use crate::works::{ask_the_internet, comes_out_at_the_server};
use crate::world::{HOST6, Lab, ROUTER4};

const DAEMON: &str = "/etc/docker/daemon.json";
const CDI: &str = "/etc/cdi/tunjail.json";
const STATE: &str = "/var/lib/tunjail";
const SHARE: &str = "/usr/share/containers/oci/hooks.d";

/// Everything that `install` may touch, with contents, modes and owners. Not what Podman and dockerd themselves keep there.
fn files() -> String {
    let script = r"places='/etc /usr/share/containers /var/lib/tunjail'
        find $places \( -path /etc/containers/networks -o -name key.json \) -prune -o -printf '%p %y %m %u:%g %l\n' 2>/dev/null | sort
        find $places \( -path /etc/containers/networks -o -name key.json \) -prune -o -type f -print0 2>/dev/null | sort -z | xargs -0 sha256sum";
    Cmd::new("/bin/sh", &["-c", script]).ok()
}

#[track_caller]
fn assert_same_files(before: &str, what: &str) {
    let after = files();
    let changed: Vec<&str> = after.lines().filter(|line| !before.contains(line)).collect();
    assert!(after == before, "{what} left something else behind: {changed:?}");
}

/// A host with a jail, its exit, and tunjail as it is installed.
fn host() -> (Lab, Vpn, Client) {
    let lab = Lab::new();
    product::install_copy();
    let server = Vpn::start_server(&lab);
    let client = server.client(Some(&lab.exit_script()));
    lab.configure(STRICT_JAIL);
    (lab, server, client)
}

/// The only member of the jail, as `status` shows it.
#[track_caller]
fn member(lab: &Lab) -> Option<Value> {
    let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    let members = status["jails"][0]["members"].as_array().expect("members");
    assert!(members.len() < 2, "{status}");
    members.first().cloned()
}

#[track_caller]
fn assert_held(lab: &Lab) {
    let member = member(lab).expect("a member");
    assert_eq!(member["state"], "held", "{member}");
    assert!(member["interfaces"][0]["addresses"].to_string().contains("172.18.0."), "{member}");
}

/// What `check` says of one way in.
#[track_caller]
fn found(lab: &Lab, what: &str) -> Vec<(String, String)> {
    let out = lab.tunjail(&["check", "--json"]);
    let report: Value = serde_json::from_str(&out.stdout).expect("JSON");
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
    let findings = report["findings"].as_array().expect("findings");
    let ours = findings.iter().filter(|finding| finding["what"] == what);
    ours.map(|finding| (text(finding, "verdict"), text(finding, "found"))).collect()
}

#[test]
fn podman_holds_a_container_by_the_installed_hooks() {
    let (lab, _server, mut client) = host();
    let podman = Podman::new(&lab);
    let before = files();
    let mut plain = podman.run("control", &[]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&plain, ROUTER4, HOST6));
    plain.remove();
    assert_eq!(found(&lab, "podman")[0].0, "ok");
    assert!(found(&lab, "podman")[0].1.contains("`tunjail install podman`"));
    assert_eq!(found(&lab, "hooks")[0].0, "warning");

    client.start_and_wait();
    let asked = ["--annotation", "io.tunjail.jail=vpn"];
    for (option, annotation, whom) in
        [("--annotation", &asked[..], "ask by annotation"), ("--always", &[], "for every container")]
    {
        let diff = lab.tunjail_ok(&["install", "podman", option, "--dry-run"]);
        assert!(diff.contains("+++ /usr/share/containers/oci/hooks.d/tunjail-"), "{diff}");
        assert!(!Path::new(STATE).exists() || option == "--always", "a dry run writes nothing");
        let said = lab.tunjail_ok(&["install", "podman", option]);
        assert!(said.contains("wrote /usr/share/containers/oci/hooks.d/"), "{said}");
        let installed = files();
        assert!(lab.tunjail_ok(&["install", "podman", option]).contains("nothing to do"));
        assert_same_files(&installed, "installing twice");
        let ways = found(&lab, "podman");
        assert!(ways.len() == 1 && ways[0].0 == "ok" && ways[0].1.contains(whom), "{ways:?}");
        let mut member = podman.run("m1", annotation);
        assert_held(&lab);
        comes_out_at_the_server(&lab, &member, &format!("install-podman{option}"), control);
        member.remove();
    }
    lab.tunjail_ok(&["uninstall", "podman"]);
    assert_same_files(&before, "podman");
    assert!(lab.tunjail_ok(&["uninstall", "podman"]).contains("nothing to do"));
    let mut plain = podman.run("control", &asked);
    assert_eq!(member(&lab), None, "a hook is left");
    plain.remove();
}

/// /usr may be read-only; and Podman reads the other directory only when it is told to.
#[test]
fn podman_is_wired_on_a_host_whose_usr_is_read_only() {
    let (lab, _server, _client) = host();
    let podman = Podman::new(&lab);
    lab.sh("mount --bind /usr/share/containers /usr/share/containers; mount -o remount,bind,ro /usr/share/containers");
    let before = files();
    let said = lab.tunjail_ok(&["install", "podman"]);
    assert!(said.contains("changed /etc/containers/containers.conf"), "{said}");
    assert!(fs::read_to_string("/etc/containers/containers.conf").expect("a file").contains("netavark"));
    let mut member = podman.run("m1", &["--annotation", "io.tunjail.jail=vpn"]);
    assert_held(&lab);
    member.remove();
    lab.tunjail_ok(&["uninstall", "podman"]);
    assert_same_files(&before, "podman");
}

#[test]
fn podman_holds_a_container_by_its_cdi_device_and_up_keeps_the_devices_in_step() {
    let (lab, _server, mut client) = host();
    let podman = Podman::new(&lab);
    let before = files();
    let mut plain = podman.run("control", &[]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&plain, ROUTER4, HOST6));
    plain.remove();
    client.start_and_wait();

    lab.tunjail_ok(&["install", "cdi"]);
    assert!(lab.tunjail_ok(&["install", "cdi"]).contains("nothing to do"));
    let mut member = podman.run("m1", &["--device", "tunjail.io/jail=vpn"]);
    assert_held(&lab);
    comes_out_at_the_server(&lab, &member, "install-cdi", control);
    member.remove();
    assert_eq!(self::member(&lab), None, "poststop was not called");
    let refused = podman.try_run("m2", &["--device", "tunjail.io/jail=office"]).err().expect("a refusal");
    assert!(refused.stderr.contains("tunjail.io/jail=office"), "{refused:?}");

    // Another jail comes, the first one goes.
    lab.configure(&STRICT_JAIL.replace("jail.vpn", "jail.office"));
    let ways = found(&lab, "cdi");
    assert!(
        ways.iter().any(|(verdict, text)| {
            verdict == "warning"
                && text.contains("no device for jail office")
                && text.contains("jail vpn is not in the configuration")
        }),
        "{ways:?}"
    );
    assert!(lab.tunjail_ok(&["up", "--dry-run"]).contains("+      \"name\": \"office\""), "up --dry-run shows it");
    let out = Cmd::new(product::TUNJAIL, &["up"]).out();
    assert!(out.code == 0 && out.stderr.contains("in step with the configuration again"), "{out:?}");
    assert!(!found(&lab, "cdi").iter().any(|(_, text)| text.contains("out of step")));
    let mut member = podman.run("m3", &["--device", "tunjail.io/jail=office"]);
    assert_held(&lab);
    member.remove();
    lab.tunjail_ok(&["down"]);
    lab.tunjail_ok(&["uninstall", "cdi"]);
    lab.configure(STRICT_JAIL);
    assert_same_files(&before, "cdi");
}

/// As an administrator would have it, with a tab and a key that tunjail does not know.
fn daemon_json(lab: &Lab) -> String {
    let mut settings = Docker::settings(lab);
    settings["log-level"] = json!("info");
    serde_json::to_string_pretty(&settings).expect("JSON").replace("  ", "\t")
}

#[test]
fn docker_holds_a_container_by_the_installed_runtimes() {
    let (lab, _server, mut client) = host();
    fs::create_dir_all("/etc/docker").expect("a directory");
    fs::write(DAEMON, daemon_json(&lab)).expect("daemon.json");
    let before = files();
    let diff = lab.tunjail_ok(&["install", "docker", "--dry-run"]);
    assert!(diff.contains("+\t\t\"tunjail-vpn\": {"), "{diff}");
    assert_same_files(&before, "a dry run");
    let said = lab.tunjail_ok(&["install", "docker"]);
    assert!(said.contains("systemctl reload docker"), "{said}");
    let installed = files();
    assert!(lab.tunjail_ok(&["install", "docker"]).contains("nothing to do"));
    assert_same_files(&installed, "installing twice");

    {
        let docker = Docker::start_with(&lab, Path::new(DAEMON));
        let mut plain = docker.run("control", &[]);
        let control = lab.assert_probe_is_visible(|| ask_the_internet(&plain, ROUTER4, HOST6));
        plain.remove();
        client.start_and_wait();
        for runtime in ["tunjail-vpn", "tunjail"] {
            let mut member = docker.run("m1", &["--runtime", runtime]);
            assert_held(&lab);
            comes_out_at_the_server(&lab, &member, &format!("install-docker-{runtime}"), control);
            member.remove();
            assert_eq!(self::member(&lab), None);
        }
    }

    let said = lab.tunjail_ok(&["uninstall", "docker"]);
    assert!(said.contains("systemctl restart docker"), "{said}");
    assert_same_files(&before, "docker");

    // On a host without the file, it comes and goes.
    fs::remove_dir_all("/etc/docker").expect("its directory removed");
    let before = files();
    lab.tunjail_ok(&["install", "docker"]);
    assert!(Path::new(DAEMON).exists());
    lab.tunjail_ok(&["uninstall", "docker"]);
    assert_same_files(&before, "docker without a file");
}

/// As the default runtime, nobody has to name it.
#[test]
fn docker_holds_every_container_by_its_default_runtime() {
    let (lab, _server, _client) = host();
    fs::create_dir_all("/etc/docker").expect("a directory");
    fs::write(DAEMON, daemon_json(&lab)).expect("daemon.json");
    let before = files();
    let said = lab.tunjail_ok(&["install", "docker", "--default", "--jail", "vpn"]);
    assert!(said.contains("systemctl restart docker"), "{said}");
    assert!(found(&lab, "docker").iter().any(|(_, text)| text.contains("every container goes through tunjail")));
    {
        let docker = Docker::start_with(&lab, Path::new(DAEMON));
        let mut member = docker.run("m2", &[]);
        assert_held(&lab);
        member.remove();
    }
    lab.tunjail_ok(&["uninstall", "docker"]);
    assert_same_files(&before, "docker with a default runtime");
}

/// What Debian 12's containerd understands of the edited file, its own default handler included.
#[test]
fn containerd_reads_the_installed_handler() {
    let lab = Lab::new();
    product::install_copy();
    lab.configure(STRICT_JAIL);
    let config = "/etc/containerd/config.toml";
    let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
                  [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n";
    fs::create_dir_all("/etc/containerd").expect("a directory");
    for text in [Some(debian), None] {
        match text {
            Some(text) => fs::write(config, text).expect("config.toml"),
            None => fs::remove_file(config).expect("config.toml removed"),
        }
        let before = files();
        lab.tunjail_ok(&["install", "containerd"]);
        let dump = Cmd::new("containerd", &["--config", config, "config", "dump"]).ok();
        let dump: toml::Table = dump.parse().expect("TOML");
        let cri = &dump["plugins"]["io.containerd.grpc.v1.cri"];
        let runtimes = &cri["containerd"]["runtimes"];
        assert_eq!(runtimes["tunjail"]["options"]["BinaryName"].as_str(), Some(product::RUNTIME));
        assert_eq!(runtimes["tunjail"]["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        for key in ["pod_annotations", "container_annotations"] {
            assert_eq!(runtimes["tunjail"][key].to_string(), "[\"io.tunjail.jail\", \"io.tunjail.forward\"]");
        }
        assert_eq!(cri["containerd"]["default_runtime_name"].as_str(), Some("runc"));
        assert_eq!(runtimes["runc"]["runtime_type"].as_str(), Some("io.containerd.runc.v2"), "the default is gone");
        assert_eq!(cri["cni"]["bin_dir"].as_str(), Some(if text.is_some() { "/usr/lib/cni" } else { "/opt/cni/bin" }));
        let ways = found(&lab, "containerd");
        assert!(ways.len() == 1 && ways[0].0 == "ok" && ways[0].1.contains("by annotation or address"), "{ways:?}");
        lab.tunjail_ok(&["uninstall", "containerd"]);
        assert_same_files(&before, "containerd");
    }
}

/// Killed before each of its calls that change something: no file is ever half written, the next `install` completes the
/// work, and `uninstall` gives back every byte.
#[test]
fn a_killed_install_is_mended_by_the_next_one() {
    let lab = Lab::new();
    product::install_copy();
    lab.configure(STRICT_JAIL);
    let podman = Podman::new(&lab);
    fs::create_dir_all("/etc/docker").expect("a directory");
    let old = daemon_json(&lab);
    fs::write(DAEMON, &old).expect("daemon.json");
    drop(podman);
    let before = files();
    lab.tunjail_ok(&["install", "docker"]);
    let new = fs::read_to_string(DAEMON).expect("daemon.json");
    lab.tunjail_ok(&["uninstall", "docker"]);
    for target in ["docker", "podman"] {
        at_every_call(&format!("install {target}"), |nth| {
            let (_, was_killed) = killed(nth, &["install", target], "");
            let now = fs::read_to_string(DAEMON).expect("daemon.json");
            assert!(now == old || now == new, "half written: {now}");
            for entry in fs::read_dir(SHARE).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|kind| kind == "json") {
                    let text = fs::read_to_string(&path).expect("a hook");
                    serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{path:?}: {error}: {text}"));
                }
            }
            lab.tunjail_ok(&["install", target]);
            lab.tunjail_ok(&["uninstall", target]);
            assert_same_files(&before, &format!("install {target} killed before call {nth}"));
            was_killed
        });
        at_every_call(&format!("uninstall {target}"), |nth| {
            lab.tunjail_ok(&["install", target]);
            let (_, was_killed) = killed(nth, &["uninstall", target], "");
            lab.tunjail_ok(&["uninstall", target]);
            assert_same_files(&before, &format!("uninstall {target} killed before call {nth}"));
            was_killed
        });
    }
}
