//! Planning and applying, on directories of the tests' own.

mod daemon_json;
mod hooks;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rstest::rstest;

use super::docker::DAEMON_JSON as DAEMON;
use super::hooks_d::When;
use super::{Changes, Edit, Host, Plan, Target, apply, cdi, containerd, crio, docker, podman};
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
    assert_eq!(handlers.ours[0].pod_annotations, ["io.tunjail.jail", "io.tunjail.forward"]);
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
