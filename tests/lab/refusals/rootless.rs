//! Rootless Podman: its containers' packets come from a process of the user's, not from a bridge of the host.

use std::fs;

use crate::matrix::wired::{ALWAYS, BY_ANNOTATION};
use crate::product::{STRICT_JAIL, own_lines};
use crate::rootfs;
use crate::run::{Cmd, Out};
use crate::tools;
use crate::world::Lab;

const HOME: &str = "/run/lab/home";

/// A user with subordinate ids, a root file system of its own, and a tun device that everybody may use, as distributions
/// have it.
fn user(lab: &Lab) {
    tools::require(&["podman", "slirp4netns", "setpriv", "crun"]);
    let root = rootfs::rootfs();
    lab.sh(&format!(
        "useradd --uid 4242 --create-home --home-dir {HOME} holder
        for file in /etc/subuid /etc/subgid; do echo holder:100000:65536 >$file; done
        cp -a {} {HOME}/rootfs; mkdir {HOME}/run; chown -R holder: {HOME}
        mknod /run/lab/tun c 10 200; chmod 0666 /run/lab/tun; mount --bind /run/lab/tun /dev/net/tun",
        root.display()
    ));
}

fn run(hooks: &[(&str, &str)], network: &str, options: &[&str]) -> Out {
    let dir = format!("{HOME}/hooks.d");
    fs::create_dir_all(&dir).expect("a directory for hooks");
    for (name, text) in hooks {
        fs::write(format!("{dir}/{name}"), text).expect("a hooks.d file");
    }
    let podman = tools::path_of("podman").to_string_lossy().into_owned();
    let user = ["--reuid=holder", "--regid=holder", "--init-groups", &podman];
    let settings = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=crun", "--hooks-dir", &dir];
    // Without CAP_SYS_RESOURCE nobody can raise limits to Podman's own.
    let limits = ["--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];
    let what = ["--rootfs", &format!("{HOME}/rootfs"), "/bin/true"];
    let line = [&user[..], &settings, &["run", "--network", network], &limits, options, &what].concat();
    let run = format!("{HOME}/run");
    Cmd::new("setpriv", &line).env("HOME", HOME).env("XDG_RUNTIME_DIR", &run).env("TMPDIR", &run).out()
}

#[test]
fn a_rootless_container_is_refused_by_name_and_left_alone_without() {
    let lab = Lab::new();
    lab.configure(STRICT_JAIL);
    user(&lab);
    let before = lab.settled();
    for network in ["slirp4netns", "none"] {
        let out = run(&ALWAYS, network, &[]);
        assert_eq!((out.code, own_lines(&out.stderr)), (0, vec![]), "a hook for every container: {out:?}");
        let out = run(&BY_ANNOTATION, network, &["--annotation", "io.tunjail.jail=vpn"]);
        assert_ne!(out.code, 0, "{out:?}");
        let said = own_lines(&out.stderr);
        assert_eq!(said.len(), 1, "{out:?}");
        for words in ["was not started", "rootless", "run the engine as root"] {
            assert!(said[0].contains(words), "{words:?} is not in {}", said[0]);
        }
    }
    before.assert_same(&lab.settled(), "a rootless container");
}
