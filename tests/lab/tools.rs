//! What the lab needs from the machine. A tool that is missing is a failure, never a skipped test.

use std::path::{Path, PathBuf};

/// Where programs are looked for, in the lab and by everything it starts.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program and the Debian package that brings it.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("crun", "crun"),
    ("ctr", "containerd"),
    ("dnsmasq", "dnsmasq-base"),
    ("curl", "curl"),
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("openvpn", "openvpn"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("slirp4netns", "slirp4netns"),
    ("strace", "strace"),
    ("wg", "wireguard-tools"),
    ("wg-quick", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// The program's absolute path.
///
/// # Panics
/// When it is not installed, naming the Debian package to install.
pub fn path_of(program: &str) -> PathBuf {
    let found = PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
        panic!("the lab needs {program}: install the Debian package {package}")
    })
}

/// # Panics
/// When one of them is missing, or the test does not run as root.
pub fn require(programs: &[&str]) {
    assert!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run the tests as root");
    for program in programs {
        path_of(program);
    }
}
