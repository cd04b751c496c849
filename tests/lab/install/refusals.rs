//! What `install` refuses: with one line that names the file and the mend, and nothing half written.

use std::fs;

use rstest::rstest;

use super::{CDI, DAEMON, SHARE, STATE, assert_same_files, files};
use crate::product::{self, STRICT_JAIL, TUNJAIL};
use crate::run::{Cmd, Out};
use crate::world::Lab;

fn lab() -> Lab {
    let lab = Lab::new();
    product::install_copy();
    lab.configure(STRICT_JAIL);
    lab
}

fn write(path: &str, text: &str) {
    fs::create_dir_all(std::path::Path::new(path).parent().expect("a directory")).expect("a directory");
    fs::write(path, text).expect(path);
}

/// Demands a failure that is one line, with these words.
#[track_caller]
fn assert_refused(out: &Out, words: &[&str]) {
    assert_eq!(out.code, 1, "{out:?}");
    assert_eq!(out.stderr.lines().count(), 1, "{out:?}");
    for word in words {
        assert!(out.stderr.contains(word), "{word:?} is not in {:?}", out.stderr);
    }
    assert_eq!(out.stdout, "", "{out:?}");
}

#[rstest]
#[case::daemon_with_comments("docker", DAEMON, "{\n\t// mine\n\t\"debug\": true\n}\n", &["daemon.json:2: comments"])]
#[case::broken_daemon("docker", DAEMON, "{\n  \"debug\": true,\n", &["daemon.json:", "not valid JSON"])]
#[case::runtimes_no_object("docker", DAEMON, "{\n  \"runtimes\": \"runc\"\n}", &["daemon.json:2: \"runtimes\" is not an object"])]
#[case::name_taken(
    "docker", DAEMON, "{\"runtimes\": {\"tunjail-vpn\": {\"path\": \"/usr/bin/kata\"}}}", &["\"tunjail-vpn\" is somebody else's"]
)]
#[case::same_kind("cdi", "/run/cdi/theirs.yaml", "cdiVersion: 0.5.0\nkind: tunjail.io/jail\n", &["/var/run/cdi/theirs.yaml", "tunjail.io/jail"])]
#[case::other_file("cdi", CDI, "{\"kind\": \"vendor.com/gpu\"}", &[CDI, "not tunjail's"])]
#[case::other_hook(
    "podman", "/usr/share/containers/oci/hooks.d/tunjail-annotation-create.json", "{}", &["tunjail-annotation-create.json", "not tunjail's"]
)]
#[case::broken_containers_conf("podman", "/etc/containers/containers.conf", "[engine", &["containers.conf", "not valid TOML"])]
#[case::broken_containerd("containerd", "/etc/containerd/config.toml", "version =", &["config.toml", "not valid TOML"])]
#[case::old_containerd("containerd", "/etc/containerd/config.toml", "disabled_plugins = [\"cri\"]\n", &["version 1", "containerd config migrate"])]
fn a_file_that_cannot_be_edited_is_left_as_it_is(
    #[case] target: &str,
    #[case] path: &str,
    #[case] text: &str,
    #[case] words: &[&str],
) {
    let lab = lab();
    write(path, text);
    let before = files();
    for options in [&["install", target][..], &["install", target, "--dry-run"]] {
        let mut said = words.to_vec();
        let context = format!("{target} was not installed");
        said.push(&context);
        assert_refused(&lab.tunjail(options), &said);
        assert_same_files(&before, target);
        assert_eq!(fs::read_to_string(path).expect(path), text);
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named_and_nothing_is_half_written() {
    let lab = lab();
    write(DAEMON, "{}\n");
    let before = files();
    lab.sh("for dir in /usr/share/containers /etc; do mount --bind $dir $dir; mount -o remount,bind,ro $dir; done");
    assert_refused(&lab.tunjail(&["install", "docker"]), &[DAEMON, "Read-only file system", "nothing was changed"]);
    assert_refused(&lab.tunjail(&["install", "cdi"]), &[CDI, "Read-only file system", "nothing was changed"]);
    assert_refused(&lab.tunjail(&["install", "podman"]), &[SHARE, "can be written", "tunjail install cdi"]);
    assert_refused(&lab.tunjail(&["install", "crio"]), &[SHARE, "none of these can be written"]);
    lab.sh("umount /etc; umount /usr/share/containers");
    assert_same_files(&before, "refused installs");
    // The control: the same commands work where they may write.
    lab.tunjail_ok(&["install", "docker"]);
    lab.tunjail_ok(&["uninstall", "docker"]);
    // A record that cannot be written is a record that uninstall would lack.
    lab.sh("mount --bind /var/lib /var/lib; mount -o remount,bind,ro /var/lib");
    assert_refused(&lab.tunjail(&["install", "docker"]), &[STATE, "Read-only file system"]);
    lab.sh("umount /var/lib");
    assert_same_files(&before, "an install without a record");
    // Nor is anything taken out whose record could not be removed.
    lab.tunjail_ok(&["install", "docker"]);
    let installed = files();
    lab.sh("mount --bind /var/lib /var/lib; mount -o remount,bind,ro /var/lib");
    assert_refused(
        &lab.tunjail(&["uninstall", "docker"]),
        &["docker was not uninstalled", STATE, "nothing was changed"],
    );
    lab.sh("umount /var/lib");
    assert_same_files(&installed, "an uninstall that was refused");
    lab.tunjail_ok(&["uninstall", "docker"]);
    assert_same_files(&before, "docker");
}

/// The disk fills up while the new text is written aside.
#[test]
fn a_full_disk_leaves_every_file_as_it_was() {
    let lab = lab();
    lab.sh("mkdir -p /etc/docker; mount -t tmpfs -o size=4k lab /etc/docker");
    write(DAEMON, "{\"debug\": true}\n");
    let before = files();
    assert_refused(&lab.tunjail(&["install", "docker"]), &[DAEMON, "No space left on device", "nothing was changed"]);
    assert_same_files(&before, "a full disk");
    lab.sh("mount -o remount,size=64k /etc/docker");
    lab.tunjail_ok(&["install", "docker"]);
    lab.tunjail_ok(&["uninstall", "docker"]);
    assert_same_files(&before, "docker");
}

#[test]
fn who_is_not_root_is_told_so() {
    let lab = lab();
    let before = files();
    for command in ["install", "uninstall"] {
        let out = Cmd::new(
            "setpriv",
            &["--reuid", "65534", "--regid", "65534", "--clear-groups", TUNJAIL, command, "docker"],
        )
        .out();
        assert_refused(&out, &["this needs root"]);
    }
    assert_same_files(&before, "somebody");
    drop(lab);
}

#[test]
fn what_has_to_be_known_is_asked_for() {
    let lab = lab();
    let before = files();
    assert_refused(
        &lab.tunjail(&["install", "docker", "--jail", "office"]),
        &["jail office is not in the configuration"],
    );
    lab.configure("[jail.vpn]\n");
    assert_refused(&lab.tunjail(&["install", "docker"]), &["/etc/tunjail/tunjail.toml:1: "]);
    lab.configure("");
    assert_refused(&lab.tunjail(&["install", "cdi"]), &["there is no jail"]);
    lab.configure(STRICT_JAIL);
    // uninstall has to work when nothing else does, and where nothing is.
    for target in ["podman", "docker", "cdi", "crio", "containerd"] {
        assert!(lab.tunjail_ok(&["uninstall", target]).contains("nothing to do"), "{target}");
    }
    fs::remove_file(product::RUNTIME).expect("the second name removed");
    assert_refused(&lab.tunjail(&["install", "docker"]), &["/usr/local/bin/tunjail-runtime is not there", "ln -s"]);
    std::os::unix::fs::symlink("tunjail", product::RUNTIME).expect("the second name");
    assert_same_files(&before, "refusals");
}
