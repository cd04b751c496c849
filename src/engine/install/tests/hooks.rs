//! hooks.d, for Podman and CRI-O.

use std::fs;
use std::path::Path;

use rstest::rstest;

use super::super::hooks_d::{self, When};
use super::super::{Host, Target, install, podman};
use super::Yard;

#[test]
fn what_others_put_into_a_directory_keeps_it() {
    let yard = Yard::new();
    yard.install(Target::Podman, yard.plan(Target::Podman).unwrap());
    yard.write(&format!("{}/other.json", hooks_d::SHARE), "{}");
    yard.uninstall(Target::Podman);
    assert_eq!(yard.read(&format!("{}/other.json", hooks_d::SHARE)).unwrap(), "{}");
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
    assert!(install(&yard.host, Target::Podman, yard.plan(Target::Podman).unwrap()).unwrap().is_empty());
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
