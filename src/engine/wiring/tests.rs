//! Findings, from files in directories of the tests' own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rstest::rstest;

use super::{State, Way, look};
use crate::engine::install::hooks_d::{ETC, SHARE, When};
use crate::engine::install::{self, Host, Target, cdi, containerd, docker, podman};
use crate::model::names::JailName;

struct Yard {
    directory: tempfile::TempDir,
    host: Host,
}

const DAEMON: &str = docker::DAEMON_JSON;

impl Yard {
    fn new(programs: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path(), "/usr/local/bin/tunjail");
        let yard = Self { directory, host };
        for name in ["tunjail", "tunjail-runtime"] {
            yard.program(&format!("/usr/local/bin/{name}"), "");
        }
        for (name, version) in programs {
            yard.program(&format!("/usr/bin/{name}"), &format!("#!/bin/sh\necho {version}\n"));
        }
        yard
    }

    fn program(&self, path: &str, text: &str) {
        self.write(path, text);
        fs::set_permissions(self.host.at(path.as_ref()), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn write(&self, path: &str, text: &str) {
        let place = self.host.at(path.as_ref());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.host.at(path.as_ref())).unwrap();
    }

    fn edit(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.host.at(path.as_ref())).unwrap();
        assert!(text.contains(from), "{text}");
        self.write(path, &text.replace(from, to));
    }

    fn install(&self, target: Target) {
        let plan = match target {
            Target::Podman => podman::install(&self.host, When::Annotation),
            Target::Docker => docker::install(&self.host, &jails(&["vpn"]), false),
            Target::Cdi => cdi::install(&self.host, &jails(&["vpn"])),
            Target::Containerd => containerd::install(&self.host),
            Target::Crio => install::crio::install(&self.host, When::Annotation),
        };
        install::install(&self.host, target, plan.unwrap()).unwrap().apply(&self.host).unwrap();
    }

    /// What is found; `""` for the jails that the configuration has.
    fn find(&self, configured: &[&str]) -> Vec<Way> {
        assert!(self.directory.path().exists());
        look(&self.host, Some(&jails(configured)))
    }

    /// Demands one finding of this state, with these words.
    #[track_caller]
    fn assert_found(&self, state: State, way: &str, words: &[&str]) {
        let ways = self.find(&["vpn"]);
        let good = |found: &&Way| {
            found.state == state && found.way == way && words.iter().all(|word| found.text.contains(word))
        };
        assert_eq!(ways.iter().filter(good).count(), 1, "{state:?} {words:?} in {ways:#?}");
    }
}

fn jails(names: &[&str]) -> Vec<JailName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

const PODMAN: (&str, &str) = ("podman", "podman version 4.3.1");
const CRIO: (&str, &str) = ("crio", "crio version 1.30.0");
const DOCKER_20: (&str, &str) = ("dockerd", "Docker version 20.10.24+dfsg1, build 5d6db84");
const DOCKER_27: (&str, &str) = ("dockerd", "Docker version 27.5.1, build x");
const DOCKER_28: (&str, &str) = ("dockerd", "Docker version 28.5.2, build x");
const CONTAINERD: (&str, &str) = ("containerd", "containerd github.com/containerd/containerd 1.6.20 x");

#[test]
fn a_host_without_engines_and_one_with_engines_that_are_not_wired() {
    let ways = Yard::new(&[]).find(&["vpn"]);
    assert_eq!(ways.len(), 1, "{ways:?}");
    assert!(ways[0].text.contains("no engine on this host calls tunjail yet"), "{ways:?}");

    let yard = Yard::new(&[PODMAN, CRIO, DOCKER_28, CONTAINERD]);
    for (way, words) in [
        ("podman", "`tunjail install podman`"),
        ("crio", "`tunjail install crio`"),
        ("docker", "`tunjail install docker`"),
        ("containerd", "`tunjail install containerd`"),
    ] {
        yard.assert_found(State::Unused, way, &[words]);
    }
    yard.assert_found(State::Doubtful, "hooks", &["no engine on this host calls tunjail yet"]);
}

#[test]
fn what_install_writes_is_found_live_and_nothing_is_doubted() {
    let yard = Yard::new(&[PODMAN, CRIO, DOCKER_28, CONTAINERD]);
    for target in [Target::Podman, Target::Crio, Target::Docker, Target::Cdi, Target::Containerd] {
        yard.install(target);
    }
    let ways = yard.find(&["vpn"]);
    assert!(ways.iter().all(|way| way.state == State::Live), "{ways:#?}");
    yard.assert_found(State::Live, "podman", &[SHARE, "ask by annotation"]);
    yard.assert_found(State::Live, "crio", &[SHARE]);
    yard.assert_found(State::Live, "docker", &["\"tunjail-vpn\"", "for jail vpn"]);
    yard.assert_found(State::Live, "docker", &["\"tunjail\"", "by annotation or address"]);
    yard.assert_found(State::Live, "cdi", &["tunjail.io/jail=vpn"]);
    yard.assert_found(State::Live, "containerd", &["runtime handler \"tunjail\""]);
}

#[test]
fn a_program_that_is_gone_is_found_in_every_way_in() {
    let yard = Yard::new(&[PODMAN, DOCKER_28, CONTAINERD]);
    for target in [Target::Podman, Target::Docker, Target::Cdi, Target::Containerd] {
        yard.install(target);
    }
    yard.remove("/usr/local/bin/tunjail");
    yard.remove("/usr/local/bin/tunjail-runtime");
    yard.assert_found(State::Doubtful, "podman", &["does not exist", "skips such a hook silently"]);
    yard.assert_found(State::Doubtful, "docker", &["\"tunjail-vpn\"", "does not exist", "do not start"]);
    yard.assert_found(State::Doubtful, "cdi", &["does not exist", "do not start"]);
    yard.assert_found(State::Doubtful, "containerd", &["does not exist", "do not start"]);
    yard.write("/usr/local/bin/tunjail", "");
    yard.assert_found(State::Doubtful, "podman", &["is not executable"]);
}

#[test]
fn half_a_pair_is_found() {
    for (gone, words) in [("create", "no container is held"), ("poststop", "has no poststop beside it")] {
        let yard = Yard::new(&[PODMAN]);
        yard.install(Target::Podman);
        yard.remove(&format!("{SHARE}/tunjail-annotation-{gone}.json"));
        yard.assert_found(State::Doubtful, "podman", &[words]);
    }
    let yard = Yard::new(&[PODMAN]);
    yard.install(Target::Podman);
    yard.edit(&format!("{SHARE}/tunjail-annotation-create.json"), "\"createRuntime\"", "\"poststart\"");
    yard.assert_found(State::Doubtful, "podman", &["does not call its hook at createRuntime"]);
}

#[test]
fn a_directory_that_is_not_read_is_found() {
    let yard = Yard::new(&[PODMAN]);
    yard.install(Target::Podman);
    yard.write("/etc/containers/containers.conf", &format!("[engine]\nhooks_dir = [\"{ETC}\"]\n"));
    let ways = yard.find(&["vpn"]);
    let unread = ways.iter().filter(|way| way.text.contains("is not read by Podman")).count();
    assert_eq!(unread, 2, "{ways:#?}");
    assert!(ways.iter().all(|way| way.state == State::Doubtful), "{ways:#?}");
}

#[test]
fn a_hook_file_of_anybody_that_is_no_json_stops_every_container() {
    let yard = Yard::new(&[PODMAN]);
    yard.install(Target::Podman);
    yard.write(&format!("{SHARE}/theirs.json"), "{");
    yard.assert_found(State::Broken, "podman", &["theirs.json is not valid JSON", "starts no container"]);
    yard.assert_found(State::Live, "podman", &[SHARE]);
    // Nobody reads the other directory.
    yard.remove(&format!("{SHARE}/theirs.json"));
    yard.write(&format!("{ETC}/theirs.json"), "{");
    assert!(yard.find(&["vpn"]).iter().all(|way| way.state == State::Live));
}

#[test]
fn runtimes_of_docker() {
    let yard = Yard::new(&[DOCKER_28]);
    yard.install(Target::Docker);
    let ways = yard.find(&["office"]);
    assert!(
        ways.iter().any(|way| way.text.contains("is for jail vpn, which is not in the configuration")),
        "{ways:#?}"
    );
    yard.edit(DAEMON, "\"runtimes\"", "\"default-runtime\": \"tunjail\", \"runtimes\"");
    yard.assert_found(State::Live, "docker", &["every container goes through tunjail"]);
    yard.write(DAEMON, "{\"default-runtime\": \"tunjail\"}");
    yard.assert_found(State::Broken, "docker", &["which is not among its runtimes"]);
    yard.write(DAEMON, "{ // mine\n}");
    yard.assert_found(State::Broken, "docker", &["daemon.json:1: comments"]);
}

#[test]
fn a_specification_that_is_out_of_step_names_the_jails() {
    let yard = Yard::new(&[PODMAN]);
    yard.install(Target::Cdi);
    let ways = yard.find(&["office", "lab"]);
    let found = ways.iter().find(|way| way.way == "cdi").unwrap();
    assert_eq!(found.state, State::Doubtful);
    for words in
        ["no device for jail lab, office", "jail vpn is not in the configuration any more", "`tunjail up` mends it"]
    {
        assert!(found.text.contains(words), "{}", found.text);
    }
    yard.write("/etc/cdi/other.yaml", "kind: tunjail.io/jail\n");
    yard.assert_found(State::Doubtful, "cdi", &["/etc/cdi/other.yaml"]);
}

#[rstest]
#[case::without(DOCKER_20, "{}", Some("Docker 20.10 knows no CDI"))]
#[case::untold(DOCKER_27, "{}", Some("uses CDI only when told"))]
#[case::told(DOCKER_27, "{\"features\": {\"cdi\": true}}", None)]
#[case::by_itself(DOCKER_28, "{}", None)]
#[case::told_not_to(DOCKER_28, "{\"features\": {\"cdi\": false}}", Some("was told not to"))]
fn dockers_that_refuse_cdi(#[case] docker: (&str, &str), #[case] daemon: &str, #[case] said: Option<&str>) {
    let yard = Yard::new(&[docker]);
    yard.write(DAEMON, daemon);
    yard.install(Target::Cdi);
    yard.assert_found(State::Live, "cdi", &["tunjail.io/jail=vpn"]);
    match said {
        Some(said) => yard.assert_found(State::Doubtful, "cdi", &[said]),
        None => assert!(!yard.find(&["vpn"]).iter().any(|way| way.state == State::Doubtful)),
    }
}

#[test]
fn handlers_of_containerd() {
    let yard = Yard::new(&[CONTAINERD]);
    yard.install(Target::Containerd);
    let config = containerd::CONFIG;
    yard.edit(
        config,
        "pod_annotations = [\"io.tunjail.jail\", \"io.tunjail.forward\"]",
        "pod_annotations = [\"io.tunjail.*\"]",
    );
    yard.assert_found(State::Live, "containerd", &["by annotation or address"]);
    yard.edit(config, "pod_annotations = [\"io.tunjail.*\"]", "pod_annotations = []");
    yard.assert_found(State::Doubtful, "containerd", &["only the address decides"]);
    yard.edit(config, "version = 2", "version = 2\ndisabled_plugins = [\"cri\"]");
    yard.assert_found(State::Doubtful, "containerd", &["switches the CRI plugin off"]);
    yard.write(config, "version");
    yard.assert_found(State::Broken, "containerd", &["not valid TOML"]);
}
