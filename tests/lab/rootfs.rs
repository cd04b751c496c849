//! What a container of the lab is made of: busybox and the probe.

use std::env;
use std::fs::{self, create_dir_all};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::run::Cmd;
use crate::tools;
use crate::world::DIR;

/// Where the probe lies inside a container.
pub const PROBE: &str = "/bin/probe";

const APPLETS: &[&str] =
    &["sh", "sleep", "true", "cat", "ls", "ip", "ping", "ping6", "nslookup", "wget", "timeout", "kill"];

/// The probe program on the machine.
///
/// # Panics
/// When it cannot be built.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| example("probe"))
}

/// The kubelet's part: one call of the CRI. Asked for before the lab is made, as the probe is.
///
/// # Panics
/// When it cannot be built.
pub fn kubelet() -> &'static Path {
    static KUBELET: OnceLock<PathBuf> = OnceLock::new();
    KUBELET.get_or_init(|| example("cri"))
}

/// One of the lab's own programs, a Cargo example: built now when it is missing or older than its source.
fn example(name: &str) -> PathBuf {
    // target/[TRIPLE/]PROFILE/deps/lab-HASH
    let exe = env::current_exe().expect("the test's own path");
    let profile = exe.ancestors().nth(2).expect("a test lies in deps/");
    let path = profile.join("examples").join(name);
    if is_stale(&path) {
        build(name, profile);
    }
    assert!(!is_stale(&path), "{} is older than its source: run cargo build --example {name}", path.display());
    path
}

fn is_stale(program: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let Some(built) = modified(program) else { return true };
    // Its sources are in a folder of its name. file!() is relative to the workspace, or absolute when the test lies
    // outside of it.
    let sources = Path::new(file!()).with_file_name(program.file_name().expect("a program has a name"));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join(sources);
    let newest: SystemTime = fs::read_dir(&sources)
        .unwrap_or_else(|error| panic!("{}: {error}", sources.display()))
        .filter_map(|entry| modified(&entry.ok()?.path()))
        .max()
        .expect("a program has sources");
    newest > built
}

fn build(name: &str, profile: &Path) {
    let profile = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => unreachable!("a profile's folder has a name"),
    };
    // Several tests may come here at once: Cargo's own lock on the target directory lets one build and the rest wait.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--example", name, "--profile", profile]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "{name} does not build");
}

/// A root file system of the lab's own; the same for all containers, as nothing in it is written.
pub fn rootfs() -> PathBuf {
    let root = Path::new(DIR).join("rootfs");
    if root.exists() {
        return root;
    }
    for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        create_dir_all(root.join(dir)).expect("a directory of the rootfs");
    }
    fs::copy(tools::path_of("busybox"), root.join("bin/busybox")).expect("busybox copied");
    fs::copy(probe(), root.join("bin/probe")).expect("the probe copied");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("an applet");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("/etc/passwd");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("/etc/group");
    root
}

/// The same as a tar file, which engines make an image of.
pub fn tar() -> PathBuf {
    let tar = Path::new(DIR).join("rootfs.tar");
    if !tar.exists() {
        Cmd::new("busybox", &["tar", "-cf", &tar.to_string_lossy(), "-C", &rootfs().to_string_lossy(), "."]).ok();
    }
    tar
}
