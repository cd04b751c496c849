//! Planning and applying, on directories of the tests' own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rstest::rstest;

use super::hooks_d::When;
use super::{Changes, Edit, Host, Plan, Target, apply, cdi, containerd, crio, docker, hooks_d, podman};
use crate::model::names::JailName;

struct Yard {
    directory: tempfile::TempDir,
    host: Host,
}

impl Yard {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path(), "/usr/local/bin/tunjail");
        let yard = Self { directory, host };
        fs::create_dir_all(yard.at("/var/lib")).unwrap();
        for name in ["tunjail", "tunjail-runtime"] {
            yard.write(&format!("/usr/local/bin/{name}"), "program");
            fs::set_permissions(yard.at(&format!("/usr/local/bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        yard
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    /// Every path with its contents.
    fn listing(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.directory.path()).unwrap().display().to_string();
                if path.is_dir() {
                    found.push((name + "/", String::new()));
                    directories.push(path);
                } else {
                    found.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    #[track_caller]
    fn install(&self, target: Target, plan: Plan) -> Changes {
        let changes = super::install(&self.host, target, plan).unwrap();
        changes.apply(&self.host).unwrap();
        changes
    }

    #[track_caller]
    fn uninstall(&self, target: Target) -> Changes {
        let plan = match target {
            Target::Podman => podman::uninstall(&self.host),
            Target::Crio => crio::uninstall(&self.host),
            Target::Docker => docker::uninstall(&self.host),
            Target::Cdi => cdi::uninstall(&self.host),
            Target::Containerd => containerd::uninstall(&self.host),
        };
        let changes = super::uninstall(&self.host, target, plan.unwrap()).unwrap();
        changes.apply(&self.host).unwrap();
        changes
    }

    fn plan(&self, target: Target) -> anyhow::Result<Plan> {
        match target {
            Target::Podman => podman::install(&self.host, When::Annotation),
            Target::Crio => crio::install(&self.host, When::Annotation),
            Target::Docker => docker::install(&self.host, &jails(&["vpn"]), false),
            Target::Cdi => cdi::install(&self.host, &jails(&["vpn"])),
            Target::Containerd => containerd::install(&self.host),
        }
    }

    #[track_caller]
    fn error(&self, target: Target) -> String {
        format!("{:#}", self.plan(target).unwrap_err())
    }
}

fn jails(names: &[&str]) -> Vec<JailName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

const DAEMON: &str = docker::DAEMON_JSON;

/// As they are found on hosts.
const DAEMON_FILES: [(&str, &str); 11] = [
    ("empty object", "{}"),
    ("empty object, line", "{}\n"),
    ("open object", "{\n}\n"),
    ("two spaces", "{\n  \"log-driver\": \"json-file\",\n  \"log-opts\": {\n    \"max-size\": \"10m\"\n  }\n}\n"),
    ("four spaces, no end", "{\n    \"dns\": [\"1.1.1.1\", \"9.9.9.9\"],\n    \"mtu\": 1450\n}"),
    ("tabs", "{\n\t\"iptables\": true,\n\t\"debug\" : false\n}\n"),
    ("crlf", "{\r\n  \"debug\": true,\r\n  \"hosts\": [\r\n    \"unix:///run/docker.sock\"\r\n  ]\r\n}\r\n"),
    ("one line", r#"{"debug":true,"log-level":"info"}"#),
    (
        "nvidia",
        "{\n    \"default-runtime\": \"nvidia\",\n    \"runtimes\": {\n        \"nvidia\": {\n            \"args\": [],\n            \"path\": \"nvidia-container-runtime\"\n        }\n    }\n}\n",
    ),
    ("empty runtimes", "{ \"runtimes\": {}, \"bip\": \"10.1.0.1/24\" }\n"),
    ("odd spaces", "  {\"a\" :1 ,\n\n\n \"b\":  [ 1,2 ] }\n\n"),
];

#[test]
fn docker_keeps_what_is_not_its_own_and_gives_back_every_byte() {
    for (name, text) in DAEMON_FILES {
        let yard = Yard::new();
        yard.write(DAEMON, text);
        fs::set_permissions(yard.at(DAEMON), fs::Permissions::from_mode(0o600)).unwrap();
        let before = yard.listing();
        yard.install(Target::Docker, yard.plan(Target::Docker).unwrap());
        let after = yard.read(DAEMON).unwrap();
        assert_eq!(after.contains("\r\n"), text.contains("\r\n"), "{name}");
        assert!(!text.contains("\r\n") || after.matches('\n').count() == after.matches("\r\n").count(), "{name}");
        insta::assert_snapshot!(format!("daemon_{}", name.replace([' ', ','], "_")), after);
        assert_eq!(fs::metadata(yard.at(DAEMON)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");

        let again = super::install(&yard.host, Target::Docker, yard.plan(Target::Docker).unwrap()).unwrap();
        assert!(again.is_empty(), "{name}: {}", again.diff());

        yard.uninstall(Target::Docker);
        assert_eq!(yard.listing(), before, "{name}");
        assert!(yard.uninstall(Target::Docker).is_empty(), "{name}");
    }
}

/// What stands in the file is taken out of it by meaning when somebody edited it meanwhile.
#[test]
fn docker_is_taken_out_of_a_file_that_was_edited_since() {
    for (name, text) in DAEMON_FILES {
        let yard = Yard::new();
        yard.write(DAEMON, text);
        yard.install(Target::Docker, yard.plan(Target::Docker).unwrap());
        let edited = yard.read(DAEMON).unwrap().replacen('{', "{\"userland-proxy\": false, ", 1);
        yard.write(DAEMON, &edited);
        yard.uninstall(Target::Docker);
        let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
        expected["userland-proxy"] = false.into();
        if expected["runtimes"].as_object().is_some_and(serde_json::Map::is_empty) {
            expected.as_object_mut().unwrap().remove("runtimes");
        }
        let after = yard.read(DAEMON).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&after).unwrap(), expected, "{name}: {after}");
        assert!(!yard.at(super::STATE).exists(), "{name}");
    }
}

#[test]
fn a_file_and_directories_that_install_made_go_with_it() {
    for target in [Target::Podman, Target::Crio, Target::Docker, Target::Cdi] {
        let yard = Yard::new();
        let before = yard.listing();
        yard.install(target, yard.plan(target).unwrap());
        assert_ne!(yard.listing(), before);
        assert!(super::install(&yard.host, target, yard.plan(target).unwrap()).unwrap().is_empty(), "{target:?} twice");
        yard.uninstall(target);
        assert_eq!(yard.listing(), before, "{target:?}");
    }
}

#[test]
fn what_others_put_into_a_directory_keeps_it() {
    let yard = Yard::new();
    yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    yard.write(&format!("{}/other.json", hooks_d::SHARE), "{}");
    yard.uninstall(Target::Podman);
    assert_eq!(yard.read(&format!("{}/other.json", hooks_d::SHARE)).unwrap(), "{}");
}

#[rstest]
#[case::comment("{\n  // mine\n  \"debug\": true\n}", ":2: comments, trailing commas")]
#[case::trailing_comma("{\n  \"debug\": true,\n}", ":3: comments, trailing commas")]
#[case::broken("{\n  \"debug\": yes\n}", ":2: not valid JSON")]
#[case::missing_comma("{\n  \"a\": 1\n  \"b\": 2\n}", ":3: not valid JSON")]
#[case::empty("", "is empty")]
#[case::list("[]", "not a JSON object")]
#[case::runtimes_list("{\n\"runtimes\": []}", ":2: \"runtimes\" is not an object")]
#[case::twice("{\"runtimes\": {},\n\"runtimes\": {}}", "stands there twice")]
#[case::case("{\n\"Runtimes\": {}}", ":2: the key \"Runtimes\" has to be written \"runtimes\"")]
#[case::foreign(
    "{\"runtimes\": {\n\"tunjail-vpn\": {\"path\": \"/opt/kata\"}}}",
    ":2: runtime \"tunjail-vpn\" is somebody else's"
)]
#[case::other_jail(
    "{\"runtimes\": {\"tunjail-vpn\": {\"path\": \"/x/tunjail-runtime\", \"runtimeArgs\": [\"--jail\", \"office\"]}}}",
    "runtime \"tunjail-vpn\" is not for jail vpn"
)]
fn docker_leaves_a_file_alone_that_it_cannot_edit(#[case] text: &str, #[case] said: &str) {
    let yard = Yard::new();
    yard.write(DAEMON, text);
    let before = yard.listing();
    let error = yard.error(Target::Docker);
    assert!(error.contains(DAEMON) && error.contains(said) && !error.contains('\n'), "{error}");
    assert_eq!(yard.listing(), before);
}

#[test]
fn docker_keeps_a_runtime_of_its_own_that_was_written_by_hand() {
    let yard = Yard::new();
    let by_hand = r#"{"runtimes": {"tunjail": {"path": "/old/tunjail-runtime", "runtimeArgs": ["--jail", "vpn"]}}}"#;
    yard.write(DAEMON, by_hand);
    let plan = docker::install(&yard.host, &jails(&["vpn"]), false).unwrap();
    assert!(plan.notes[0].contains("stays as it is, with --jail vpn"), "{:?}", plan.notes);
    let daemon = docker::Daemon::read(plan.files[0].after.as_deref().unwrap()).unwrap();
    assert_eq!(daemon.runtimes()[0].path, "/usr/local/bin/tunjail-runtime");
    assert_eq!(daemon.runtimes()[0].jail(), Some("vpn"));
    let error = docker::install(&yard.host, &jails(&["vpn"]), true).unwrap_err();
    assert!(format!("{error:#}").contains("would put every container there"), "{error:#}");
    // Not ours to give back: uninstall leaves no runtime that runs tunjail.
    yard.install(Target::Docker, plan);
    yard.uninstall(Target::Docker);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&yard.read(DAEMON).unwrap()).unwrap(), serde_json::json!({}));
}

#[rstest]
#[case::absent(r#"{"debug": true}"#, Ok(()))]
#[case::runc(r#"{"default-runtime": "runc"}"#, Ok(()))]
#[case::other(r#"{"default-runtime": "nvidia"}"#, Err("\"default-runtime\" is \"nvidia\""))]
fn dockers_default_runtime(#[case] text: &str, #[case] expected: Result<(), &str>) {
    let yard = Yard::new();
    yard.write(DAEMON, text);
    match (docker::install(&yard.host, &jails(&["vpn"]), true), expected) {
        (Ok(plan), Ok(())) => {
            yard.install(Target::Docker, plan);
            let after = yard.read(DAEMON).unwrap();
            assert_eq!(docker::Daemon::read(&after).unwrap().default_runtime(), Some("tunjail"));
            // By meaning, too: dockerd would not start with a default runtime that is gone.
            yard.write(DAEMON, &(after + "\n"));
            yard.uninstall(Target::Docker);
            let rest = yard.read(DAEMON).unwrap();
            assert!(!rest.contains("tunjail"), "{rest}");
        }
        (Err(error), Err(said)) => assert!(format!("{error:#}").contains(said), "{error:#}"),
        (got, _) => panic!("{got:?}"),
    }
}

#[test]
fn the_hooks_are_the_files_of_the_hooks_directory() {
    let yard = Yard::new();
    let host = Host::new(yard.directory.path(), "/opt/tun \"jail\"/tunjail");
    let plan = podman::install(&host, When::Always).unwrap();
    for file in &plan.files {
        let hook = hooks_d::read(file.after.as_deref().unwrap()).unwrap().unwrap();
        assert_eq!(hook.program, Path::new("/opt/tun \"jail\"/tunjail"));
    }
    yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    for name in ["tunjail-annotation-create.json", "tunjail-annotation-poststop.json"] {
        let shipped = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks").join(name)).unwrap();
        assert_eq!(yard.read(&format!("{}/{name}", hooks_d::SHARE)).unwrap(), shipped);
    }
    // The other condition takes the pair's place.
    yard.install(Target::Podman, podman::install(&yard.host, When::Always).unwrap());
    let names: Vec<_> = yard.host.list(hooks_d::SHARE, &["json"]);
    assert_eq!(names.len(), 2, "{names:?}");
    yard.uninstall(Target::Podman);
    assert!(!yard.at(hooks_d::SHARE).exists());
}

#[rstest]
#[case::podman_goes_first(Target::Podman, Target::Crio)]
#[case::crio_goes_first(Target::Crio, Target::Podman)]
fn podman_and_crio_share_their_hooks(#[case] first: Target, #[case] second: Target) {
    let yard = Yard::new();
    let before = yard.listing();
    yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    yard.install(Target::Crio, yard.plan(Target::Crio).unwrap());
    assert!(yard.uninstall(first).notes[0].contains("the hooks stay"));
    assert_eq!(yard.host.list(hooks_d::SHARE, &["json"]).len(), 2);
    yard.uninstall(second);
    assert_eq!(yard.listing(), before);
}

/// What was there before is what was there before the first install, as long as nobody else edits the file.
#[test]
fn installing_again_for_another_jail_remembers_the_first_bytes() {
    let yard = Yard::new();
    yard.write(DAEMON, "{}");
    let before = yard.listing();
    for names in [&["vpn"][..], &["vpn", "office"]] {
        yard.install(Target::Docker, docker::install(&yard.host, &jails(names), false).unwrap());
    }
    assert!(yard.read(DAEMON).unwrap().contains("tunjail-office"));
    yard.uninstall(Target::Docker);
    assert_eq!(yard.listing(), before);

    yard.install(Target::Docker, docker::install(&yard.host, &jails(&["vpn"]), false).unwrap());
    let edited = yard.read(DAEMON).unwrap().replacen('{', "{\n  \"debug\": true,", 1);
    yard.write(DAEMON, &edited);
    yard.install(Target::Docker, docker::install(&yard.host, &jails(&["vpn", "office"]), false).unwrap());
    yard.uninstall(Target::Docker);
    assert_eq!(yard.read(DAEMON).unwrap(), "{\n  \"debug\": true\n}");
}

#[rstest]
#[case::foreign("{\"version\": \"1.0.0\", \"hook\": {\"path\": \"/bin/true\"}}", "not tunjail's")]
#[case::broken("{", "not tunjail's")]
#[case::edited(
    "{\"hook\": {\"path\": \"/x\", \"args\": [\"tunjail\", \"--config\", \"/etc/x\", \"hook\", \"create-runtime\"]}}",
    "edited by hand"
)]
fn a_hook_file_of_somebody_else_is_left_alone(#[case] text: &str, #[case] said: &str) {
    let yard = Yard::new();
    yard.write(&format!("{}/tunjail-annotation-create.json", hooks_d::SHARE), text);
    let before = yard.listing();
    let error = yard.error(Target::Podman);
    assert!(error.contains("tunjail-annotation-create.json") && error.contains(said), "{error}");
    assert_eq!(yard.listing(), before);
}

const CONTAINERS_CONF: &str = "/etc/containers/containers.conf";

/// hooks_dir replaces Podman's default, so a directory that is not in it is not read.
#[test]
fn podman_is_told_of_the_directory_when_its_configuration_leaves_it_out() {
    let yard = Yard::new();
    let conf = "# mine\n[network]\nnetwork_backend = \"netavark\" # keep\n\n[engine]\nhooks_dir = [\"/opt/hooks.d\"]   # mine\nevents_logger = \"file\"\n";
    yard.write(CONTAINERS_CONF, conf);
    let before = yard.listing();
    let changes = yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    insta::assert_snapshot!(changes.diff());
    assert!(super::install(&yard.host, Target::Podman, yard.plan(Target::Podman).unwrap()).unwrap().is_empty());
    yard.uninstall(Target::Podman);
    assert_eq!(yard.listing(), before);

    // Edited meanwhile: only what was added is taken out.
    yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    yard.write(CONTAINERS_CONF, &(yard.read(CONTAINERS_CONF).unwrap() + "# later\n"));
    yard.uninstall(Target::Podman);
    assert_eq!(yard.read(CONTAINERS_CONF).unwrap(), conf.to_owned() + "# later\n");
}

#[test]
fn a_broken_containers_conf_is_left_alone() {
    let yard = Yard::new();
    yard.write(CONTAINERS_CONF, "[engine\n");
    let before = yard.listing();
    let error = yard.error(Target::Podman);
    assert!(error.contains(CONTAINERS_CONF) && error.contains("not valid TOML"), "{error}");
    assert_eq!(yard.listing(), before);
}

#[test]
fn crio_needs_a_directory_that_it_reads() {
    let yard = Yard::new();
    yard.write("/etc/crio/crio.conf", "[crio.runtime]\nhooks_dir = [\"/usr/share/containers/oci/hooks.d\"]\n");
    yard.write("/etc/crio/crio.conf.d/10-x.conf", "[crio.runtime]\nhooks_dir = [\"/etc/containers/oci/hooks.d\"]\n");
    let plan = yard.plan(Target::Crio).unwrap();
    assert!(plan.files[0].path.starts_with(hooks_d::ETC), "{:?}", plan.files);
    yard.write("/etc/crio/crio.conf.d/20-y.conf", "[crio.runtime]\nhooks_dir = [\"/opt/hooks\"]\n");
    assert!(yard.error(Target::Crio).contains("/opt/hooks"));
}

#[test]
fn cdi_has_a_device_for_each_jail() {
    let yard = Yard::new();
    let plan = cdi::install(&yard.host, &jails(&["vpn", "office", "odd-"])).unwrap();
    assert!(plan.notes[0].contains("jail odd- gets no device"), "{:?}", plan.notes);
    insta::assert_snapshot!(plan.files[0].after.as_deref().unwrap());
    let spec = cdi::read(plan.files[0].after.as_deref().unwrap()).unwrap();
    assert_eq!(spec.jails, ["office", "vpn"]);
    assert_eq!(cdi::out_of_step(&spec, &jails(&["office", "vpn"])), None);
    let apart = cdi::out_of_step(&spec, &jails(&["vpn", "lab"])).unwrap();
    assert_eq!((apart.missing, apart.stale), (vec!["lab".to_owned()], vec!["office".to_owned()]));
}

#[test]
fn cdi_follows_the_configuration_once_it_is_installed() {
    let yard = Yard::new();
    let before = yard.listing();
    assert!(cdi::follow(&yard.host, &jails(&["vpn"])).unwrap().is_none(), "not installed");
    yard.install(Target::Cdi, yard.plan(Target::Cdi).unwrap());
    assert!(cdi::follow(&yard.host, &jails(&["vpn"])).unwrap().is_none(), "in step");
    cdi::follow(&yard.host, &jails(&["vpn", "office"])).unwrap().unwrap().apply(&yard.host).unwrap();
    assert_eq!(cdi::read(&yard.read(cdi::SPEC).unwrap()).unwrap().jails, ["office", "vpn"]);
    yard.uninstall(Target::Cdi);
    assert_eq!(yard.listing(), before);
}

#[rstest]
#[case::json("/etc/cdi/theirs.json", r#"{"cdiVersion": "0.5.0", "kind": "tunjail.io/jail", "devices": []}"#, true)]
#[case::yaml("/var/run/cdi/theirs.yaml", "cdiVersion: 0.5.0\nkind: \"tunjail.io/jail\" # x\n", true)]
#[case::flow("/var/run/cdi/theirs.yml", "{cdiVersion: 0.5.0, kind: tunjail.io/jail}", true)]
#[case::another("/etc/cdi/theirs.yaml", "kind: nvidia.com/gpu\n# kind: tunjail.io/jail\n", false)]
#[case::ours("/etc/cdi/tunjail.json", r#"{"kind": "tunjail.io/jail", "devices": [{"name": "x"}]}"#, true)]
fn cdi_of_somebody_else(#[case] path: &str, #[case] text: &str, #[case] refused: bool) {
    let yard = Yard::new();
    yard.write(path, text);
    let before = yard.listing();
    match yard.plan(Target::Cdi) {
        Err(error) => assert!(refused && format!("{error:#}").contains(path), "{error:#}"),
        Ok(_) => assert!(!refused, "not refused"),
    }
    assert_eq!(yard.listing(), before);
}

#[rstest]
#[case::debian(
    "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n      conf_dir = \"/etc/cni/net.d\"\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    path = \"/var/lib/containerd/opt\"\n"
)]
#[case::with_runc(
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"\n    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n      SystemdCgroup = true\n[grpc]\n  gid = 0 # root\n"
)]
#[case::v3(
    "version = 3\nroot = '/var/lib/containerd'\n\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n"
)]
#[case::crlf("version = 2\r\n[debug]\r\nlevel = \"info\"\r\n")]
#[case::inline("version = 2\nplugins = { \"io.containerd.grpc.v1.cri\" = { sandbox_image = \"pause\" } }\n")]
fn containerd_keeps_what_is_not_its_own_and_gives_back_every_byte(#[case] text: &str) {
    let yard = Yard::new();
    yard.write(containerd::CONFIG, text);
    let before = yard.listing();
    let changes = yard.install(Target::Containerd, yard.plan(Target::Containerd).unwrap());
    let version = text.split(&['=', '\n', '\r'][..]).nth(1).unwrap().trim();
    let name = std::thread::current().name().unwrap().rsplit("::").next().unwrap().to_owned();
    insta::assert_snapshot!(format!("containerd_v{version}_{name}"), changes.diff());
    let after = yard.read(containerd::CONFIG).unwrap();
    assert_eq!(after.matches("\r\n").count() > 0, text.contains("\r\n"));
    let handlers = containerd::read(&after).unwrap();
    assert_eq!(handlers.ours.len(), 1);
    assert_eq!(handlers.ours[0].pod_annotations, ["io.tunjail.jail"]);
    assert!(super::install(&yard.host, Target::Containerd, yard.plan(Target::Containerd).unwrap()).unwrap().is_empty());
    // Edited meanwhile: the handler goes, whatever else stands there.
    yard.write(containerd::CONFIG, &(after.clone() + "# later\n"));
    yard.uninstall(Target::Containerd);
    assert!(!yard.read(containerd::CONFIG).unwrap().contains("tunjail"));
    yard.write(containerd::CONFIG, text);
    yard.install(Target::Containerd, yard.plan(Target::Containerd).unwrap());
    yard.uninstall(Target::Containerd);
    assert_eq!(yard.listing(), before);
}

#[rstest]
#[case::broken("version = \n", "not valid TOML")]
#[case::no_version("disabled_plugins = [\"cri\"]\n", "version 1 of the format")]
#[case::unknown_version("version = 9\n", "version 9 of the format")]
#[case::no_table("version = 2\nplugins = 1\n", "plugins is not a table")]
#[case::foreign(
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.tunjail]\nruntime_type = \"x\"\n",
    "somebody else's"
)]
fn containerd_leaves_a_file_alone_that_it_cannot_edit(#[case] text: &str, #[case] said: &str) {
    let yard = Yard::new();
    yard.write(containerd::CONFIG, text);
    let before = yard.listing();
    let error = yard.error(Target::Containerd);
    assert!(error.contains(containerd::CONFIG) && error.contains(said), "{error}");
    assert_eq!(yard.listing(), before);
}

#[test]
fn without_its_second_name_next_to_it_nothing_is_written() {
    let yard = Yard::new();
    fs::remove_file(yard.at("/usr/local/bin/tunjail-runtime")).unwrap();
    yard.write(containerd::CONFIG, "version = 2\n");
    for target in [Target::Docker, Target::Containerd] {
        assert!(yard.error(target).contains("/usr/local/bin/tunjail-runtime is not there"), "{}", yard.error(target));
    }
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_changed() {
    let yard = Yard::new();
    yard.write("/srv/dotfiles/daemon.json", "{}");
    yard.write("/etc/docker/key", "");
    symlink(yard.at("/srv/dotfiles/daemon.json"), yard.at(DAEMON)).unwrap();
    yard.install(Target::Docker, yard.plan(Target::Docker).unwrap());
    assert!(yard.at(DAEMON).is_symlink());
    assert!(yard.read("/srv/dotfiles/daemon.json").unwrap().contains("tunjail-runtime"));
    yard.uninstall(Target::Docker);
    assert_eq!(yard.read("/srv/dotfiles/daemon.json").unwrap(), "{}");
    fs::remove_file(yard.at("/srv/dotfiles/daemon.json")).unwrap();
    assert!(yard.error(Target::Docker).contains("a link that leads nowhere"));
}

#[test]
fn a_failure_half_way_takes_back_what_was_done() {
    let yard = Yard::new();
    yard.write("/etc/a", "a");
    fs::set_permissions(yard.at("/etc/a"), fs::Permissions::from_mode(0o640)).unwrap();
    let before = yard.listing();
    let edit = |path: &str, before: Option<&str>, after: Option<&str>| Edit {
        path: path.into(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
    };
    let edits = [
        edit("/etc/a", Some("a"), Some("b")),
        edit("/etc/new/file", None, Some("x")),
        // A directory by the time that it is renamed into place: the next one needs it.
        edit("/etc/dir", None, Some("x")),
        edit("/etc/dir/file", None, Some("x")),
    ];
    edits.iter().for_each(|edit| apply::check(&yard.host, edit).unwrap());
    let error = apply::apply(&yard.host, None, &edits).unwrap_err();
    assert!(
        format!("{error:#}").contains("nothing was changed") && format!("{error:#}").contains("/etc/dir"),
        "{error:#}"
    );
    assert_eq!(yard.listing(), before);
    assert_eq!(fs::metadata(yard.at("/etc/a")).unwrap().permissions().mode() & 0o777, 0o640);
    let error =
        apply::apply(&yard.host, None, &[edit("/etc/new/file", None, Some("x")), edit("/etc/a", Some("z"), None)]);
    assert!(format!("{:#}", error.unwrap_err()).contains("changed by somebody else"));
    assert_eq!(yard.listing(), before);
}

/// The file that says hooks_dir last is the one that counts; one below /usr belongs to the distribution.
#[rstest]
#[case::a_drop_in("/etc/containers/containers.conf.d/50-x.conf", "/etc/containers/containers.conf.d/50-x.conf")]
#[case::the_distributions("/usr/share/containers/containers.conf", CONTAINERS_CONF)]
fn podmans_hooks_dir_is_edited_where_it_counts(#[case] said_in: &str, #[case] edited: &str) {
    let yard = Yard::new();
    yard.write(said_in, "[engine]\nhooks_dir = [\"/opt/hooks.d\"]\n");
    let before = yard.listing();
    yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    assert!(yard.read(edited).unwrap().contains("\"/opt/hooks.d\", \"/usr/share/containers/oci/hooks.d\""));
    let read = podman::hook_directories(&yard.host).unwrap();
    assert_eq!(read.directories, ["/opt/hooks.d", hooks_d::SHARE]);
    yard.uninstall(Target::Podman);
    assert_eq!(yard.listing(), before);
}

mod properties {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{DAEMON, Target, Yard, docker, jails};

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[ -~äß\\u{1F600}]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z\\\\\"/-]{0,6}", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// An object with `runtimes` of others, or none, written in one of several ways.
    fn daemon() -> impl Strategy<Value = (String, Value)> {
        let whole = prop::collection::btree_map("[a-z-]{1,6}", value(), 0..4);
        let runtimes = prop::option::of(prop::collection::btree_map(
            "[a-z]{1,4}",
            "/[a-z]{1,5}".prop_map(|path| serde_json::json!({ "path": path })),
            0..3,
        ));
        (whole, runtimes, 0..4usize).prop_map(|(whole, runtimes, style)| {
            let mut whole = Value::Object(whole.into_iter().collect());
            if let Some(runtimes) = runtimes {
                whole["runtimes"] = Value::Object(runtimes.into_iter().collect());
            }
            let pretty = serde_json::to_string_pretty(&whole).unwrap();
            let text = match style {
                0 => pretty,
                1 => whole.to_string(),
                2 => pretty.replace("\n  ", "\n\t") + "\n",
                _ => pretty.replace('\n', "\r\n") + "\r\n",
            };
            (text, whole)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn docker_adds_what_it_says_and_takes_away_no_more((text, whole) in daemon()) {
            let yard = Yard::new();
            yard.write(DAEMON, &text);
            yard.install(Target::Docker, docker::install(&yard.host, &jails(&["vpn"]), true).unwrap());
            let after: Value = serde_json::from_str(&yard.read(DAEMON).unwrap()).unwrap();
            prop_assert_eq!(&after["runtimes"]["tunjail-vpn"]["runtimeArgs"][1], "vpn");
            prop_assert_eq!(&after["default-runtime"], "tunjail");
            // Byte for byte, and by meaning when somebody touched it.
            let installed = yard.read(DAEMON).unwrap();
            yard.uninstall(Target::Docker);
            prop_assert_eq!(yard.read(DAEMON).unwrap(), text);
            yard.write(DAEMON, &(installed + " "));
            yard.uninstall(Target::Docker);
            let mut rest: Value = serde_json::from_str(&yard.read(DAEMON).unwrap()).unwrap();
            let mut whole = whole;
            for value in [&mut rest, &mut whole] {
                if value["runtimes"].as_object().is_none_or(serde_json::Map::is_empty) {
                    value.as_object_mut().unwrap().remove("runtimes");
                }
            }
            prop_assert_eq!(rest, whole);
        }

        /// Whatever stands there: an edit, or an error that names the file; never a panic, and never a changed file.
        #[test]
        fn docker_survives_any_text(text in prop_oneof!["\\PC{0,60}", "[{}\\[\\]:,\"a-z0-9 \\n\\\\/*]{0,60}", r#"\{ ?"runtimes"[ :]+[{}\[\]":,a-z]{0,30}"#]) {
            let yard = Yard::new();
            yard.write(DAEMON, &text);
            if let Err(error) = docker::install(&yard.host, &jails(&["vpn"]), false) {
                prop_assert!(format!("{error:#}").contains(DAEMON), "{error:#}");
            }
            if let Err(error) = docker::uninstall(&yard.host) {
                prop_assert!(format!("{error:#}").contains(DAEMON), "{error:#}");
            }
            prop_assert_eq!(yard.read(DAEMON).unwrap(), text);
        }
    }
}
