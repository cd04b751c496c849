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

/// The probe program on the machine: the Cargo example `probe`, built now when it is missing or older than its source.
///
/// # Panics
/// When it cannot be built.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        // target/[TRIPLE/]PROFILE/deps/lab-HASH
        let exe = env::current_exe().expect("the test's own path");
        let profile = exe.ancestors().nth(2).expect("a test lies in deps/");
        let path = profile.join("examples/probe");
        if is_stale(&path) {
            build(profile);
        }
        assert!(!is_stale(&path), "{} is older than its source: run cargo build --example probe", path.display());
        path
    })
}

fn is_stale(program: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let Some(built) = modified(program) else { return true };
    let sources = Path::new(file!()).parent().expect("a folder").join("probe");
    // file!() is relative to the workspace, or absolute when the test lies outside of it.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join(sources);
    let newest: SystemTime = fs::read_dir(&sources)
        .unwrap_or_else(|error| panic!("{}: {error}", sources.display()))
        .filter_map(|entry| modified(&entry.ok()?.path()))
        .max()
        .expect("the probe has sources");
    newest > built
}

fn build(profile: &Path) {
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => unreachable!("a profile's folder has a name"),
    };
    // Several tests may come here at once: Cargo's own lock on the target directory lets one build and the rest wait.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--example", "probe", "--profile", name]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the probe does not build");
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
