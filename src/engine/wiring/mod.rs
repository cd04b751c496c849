//! Which ways in are live on this host: whether an engine would call tunjail at all, and where it would silently not.

mod cdi;
mod containerd;
mod docker;
mod hooks_d;

use std::path::{Path, PathBuf};

use super::install::Host;
use crate::model::names::JailName;

/// What a way in, or an engine, is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The engine calls tunjail by it.
    Live,
    /// The engine is here, and this way in is not used.
    Unused,
    /// Something of tunjail's is there and does not do what it looks like.
    Doubtful,
    /// The engine itself does not start, or starts no container.
    Broken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub state: State,
    pub way: &'static str,
    pub text: String,
}

impl Way {
    fn new(state: State, way: &'static str, text: impl Into<String>) -> Self {
        Self { state, way, text: text.into() }
    }
}

/// Where programs of engines are.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// The engine's program, when it is installed.
pub(super) fn program(host: &Host, name: &str) -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| host.has_program(path))
}

/// Looks at what engines would read. `jails` are those of the configuration, when it can be read.
pub fn look(host: &Host, jails: Option<&[JailName]>) -> Vec<Way> {
    let mut ways = hooks_d::look(host);
    ways.extend(docker::look(host, jails));
    ways.extend(cdi::look(host, jails));
    ways.extend(containerd::look(host));
    if !ways.iter().any(|way| way.state == State::Live) {
        ways.push(Way::new(
            State::Doubtful,
            "hooks",
            "no engine on this host calls tunjail yet; `tunjail install podman` (or docker, cdi, crio, containerd) wires one; \
             runc and crun are wired bundle by bundle",
        ));
    }
    ways
}

/// What is said of a program that a file names, when it is none.
fn fault(host: &Host, program: &Path) -> Option<&'static str> {
    if host.has_program(program) {
        None
    } else if host.has_file(program) {
        Some("is not executable")
    } else {
        Some("does not exist")
    }
}

#[cfg(test)]
mod tests;
