//! Engines, wired as their users wire them, by the files in hooks/ word for word.

mod by_hand;
mod docker;
mod podman;

pub use self::docker::{OTHER, OTHER4, OTHER6, docker, docker_with, other_docker_network};
pub use self::podman::{ALWAYS, BY_ANNOTATION};

use serde_json::Value;

use super::{Engine, Way};
use crate::engine::Restartable;
use crate::guest::{Guest, Release};
use crate::run::Out;
use crate::world::Lab;

/// An engine that is wired, by every way that it has.
pub trait Wired {
    /// What it says of its own version.
    fn version(&self) -> String;
    /// A container on the network `vpn` that tunjail does not hear of.
    fn plain(&self, name: &str) -> Box<dyn Restartable + '_>;
    /// A container that is to be a member of `jail`, or what the engine says when it is refused.
    fn try_member(&self, way: Way, name: &str, jail: &str) -> Result<Box<dyn Restartable + '_>, Out>;
    /// A container that asks for a way in which this engine does not have.
    fn proof(&self, way: Way, name: &str) -> Proof<'_>;
    /// Removes what is left of a container that did not start or was removed.
    fn forget(&self, name: &str);
    /// Whether the hook of the last stage runs when the container ends, not when it is removed.
    fn runs_poststop_at_the_end(&self) -> bool {
        true
    }

    /// A member of the jail `vpn`.
    #[track_caller]
    fn member(&self, way: Way, name: &str) -> Box<dyn Restartable + '_> {
        self.try_member(way, name, "vpn").unwrap_or_else(|out| panic!("{way:?}: {out:?}"))
    }
}

/// What happens to a container that asks for a way in which there is not.
pub enum Proof<'engine> {
    /// The engine refuses, saying this.
    Refused(Out, &'static str),
    /// It starts, and tunjail does not hear of it.
    Starts(Box<dyn Restartable + 'engine>),
}

pub fn start(lab: &Lab, engine: Engine, release: Release) -> Box<dyn Wired + '_> {
    let guest = Guest::new(lab, release);
    lab.is_of(&guest);
    match engine {
        Engine::Oci(name) => Box::new(by_hand::ByHand::new(lab, guest, name)),
        Engine::Podman { runtime, userns } => Box::new(podman::ByPodman::new(lab, guest, runtime, userns)),
        Engine::Docker => Box::new(docker::ByDocker::new(lab, guest)),
    }
}

fn parse(json: &str) -> Value {
    serde_json::from_str(json).expect("a file in hooks/ is JSON")
}

const HOOK_DIRS: [&str; 2] = ["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"];

/// Puts hooks.d files where engines that have such a thing look by themselves.
fn offer_hooks(guest: &Guest, files: &[(&str, &str)]) {
    for dir in HOOK_DIRS {
        for (name, text) in files {
            guest.write(&format!("{dir}/{name}"), text);
        }
    }
}

/// The CDI file of `tunjail install cdi`.
fn offer_devices(lab: &Lab) {
    lab.tunjail_ok(&["install", "cdi"]);
}

/// Where the address is late and nobody waits for it at `start`, a process with CAP_NET_ADMIN could change what is
/// confirmed meanwhile, and is refused; [`super::Way::waits`] says where it may have it.
const LATE_CAPS: [&str; 1] = ["--cap-add=NET_RAW"];

fn device(jail: &str) -> String {
    format!("tunjail.io/jail={jail}")
}

fn annotation(jail: &str) -> String {
    format!("io.tunjail.jail={jail}")
}
