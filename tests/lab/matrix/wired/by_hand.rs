//! runc and crun, with a bridge made by hand.

use std::cell::Cell;

use super::podman::BY_ANNOTATION;
use super::{ALWAYS, Proof, Way, Wired, device, offer_devices, offer_hooks, parse};
use crate::bridge::Bridge;
use crate::engine::Restartable;
use crate::engine::oci::{Bundle, Oci, Runtime};
use crate::guest::Guest;
use crate::run::Out;
use crate::world::Lab;

const OCI_CONFIG: &str = include_str!("../../../../hooks/oci-config.json");

pub struct ByHand<'lab> {
    lab: &'lab Lab,
    guest: Guest,
    bridge: Bridge,
    name: &'static str,
    next: Cell<u8>,
}

impl<'lab> ByHand<'lab> {
    pub fn new(lab: &'lab Lab, guest: Guest, name: &'static str) -> Self {
        Self { lab, guest, bridge: Bridge::new(lab), name, next: Cell::new(2) }
    }

    fn runtime(&self) -> Runtime {
        Runtime::of(&self.guest, self.name)
    }

    fn run(&self, runtime: Runtime, name: &str, wire: impl FnOnce(Bundle) -> Bundle) -> Result<Oci, Out> {
        let number = self.next.replace(self.next.get() + 1);
        let netns = self.bridge.plug(name, number);
        Oci::try_run(self.lab, runtime, name, &wire(Bundle::new(&netns)))
    }
}

/// The hooks of hooks/oci-config.json, which name the jail.
fn named_in_the_hooks(bundle: Bundle, jail: &str) -> Bundle {
    assert_eq!(OCI_CONFIG.matches("\"vpn\"").count(), 2, "the file names the jail once for each hook");
    bundle.hooks(&parse(&OCI_CONFIG.replace("\"vpn\"", &format!("\"{jail}\"")))["hooks"])
}

impl Wired for ByHand<'_> {
    fn version(&self) -> String {
        self.guest.cmd(self.name, &["--version"]).ok()
    }

    fn plain(&self, name: &str) -> Box<dyn Restartable + '_> {
        Box::new(self.run(self.runtime(), name, |bundle| bundle).unwrap_or_else(|out| panic!("{out:?}")))
    }

    fn try_member(&self, way: Way, name: &str, jail: &str) -> Result<Box<dyn Restartable + '_>, Out> {
        let runtime = self.runtime();
        let container = match way {
            Way::Config => self.run(runtime, name, |bundle| named_in_the_hooks(bundle, jail)),
            Way::WrapperJail => self.run(runtime.wrapped(&["--jail", jail]), name, |bundle| bundle),
            Way::WrapperAnnotation => {
                self.run(runtime.wrapped(&[]), name, |bundle| bundle.annotation("io.tunjail.jail", jail))
            }
            Way::WrapperSubnet => self.run(runtime.wrapped(&[]), name, |bundle| bundle),
            Way::HooksAnnotation | Way::HooksAlways | Way::Cdi => unreachable!("{}: {way:?}", self.name),
        };
        Ok(Box::new(container?))
    }

    fn proof(&self, way: Way, name: &str) -> Proof<'_> {
        offer_hooks(&self.guest, if way == Way::HooksAlways { &ALWAYS } else { &BY_ANNOTATION });
        offer_devices(self.lab);
        // As containerd asks for devices of CDI.
        let ask = |bundle: Bundle| {
            bundle.annotation("io.tunjail.jail", "vpn").annotation("cdi.k8s.io/tunjail", &device("vpn"))
        };
        Proof::Starts(Box::new(self.run(self.runtime(), name, ask).unwrap_or_else(|out| panic!("{out:?}"))))
    }

    fn forget(&self, name: &str) {
        // The namespace is the test's own. The kernel takes a while to take the link in it along.
        self.lab.sh(&format!("ip link del veth-{name}; ip netns del {name}"));
    }

    fn runs_poststop_at_the_end(&self) -> bool {
        false
    }
}
