//! Podman: hooks.d, CDI, and `--runtime`.

use std::path::PathBuf;

use serde_json::Value;

use super::{LATE_CAPS, Proof, Way, Wired, annotation, device, offer_devices, parse};
use crate::engine::podman::{Podman, PodmanContainer};
use crate::engine::{Container, Restartable};
use crate::guest::Guest;
use crate::product::{RUNTIME, STRICT_JAIL, TUNJAIL};
use crate::run::Out;
use crate::world::Lab;

const OCI_CONFIG: &str = include_str!("../../../../hooks/oci-config.json");
pub const BY_ANNOTATION: [(&str, &str); 2] = [
    ("tunjail-annotation-create.json", include_str!("../../../../hooks/tunjail-annotation-create.json")),
    ("tunjail-annotation-poststop.json", include_str!("../../../../hooks/tunjail-annotation-poststop.json")),
];
pub const ALWAYS: [(&str, &str); 2] = [
    ("tunjail-always-create.json", include_str!("../../../../hooks/tunjail-always-create.json")),
    ("tunjail-always-poststop.json", include_str!("../../../../hooks/tunjail-always-poststop.json")),
];

pub struct ByPodman<'lab> {
    podman: Podman<'lab>,
    userns: bool,
}

impl<'lab> ByPodman<'lab> {
    pub fn new(lab: &'lab Lab, guest: Guest, runtime: &'static str, userns: bool) -> Self {
        offer_devices(lab);
        let config = format!("{STRICT_JAIL}[runtime]\npath = \"{}\"\n", guest.path_of(runtime).display());
        lab.configure(&config);
        Self { podman: Podman::of(lab, &guest).runtime(runtime), userns }
    }

    /// What is underneath stands in tunjail's configuration: Podman gives `--runtime-flag` to create, and not to its own
    /// clean-up when the container ends.
    fn wrapped(&self) -> Podman<'lab> {
        self.podman.clone().runtime(RUNTIME)
    }

    fn run(&self, podman: &Podman<'lab>, name: &str, options: &[&str]) -> Result<PodmanContainer<'lab>, Out> {
        let userns: &[&str] = if self.userns { &["--userns=auto"] } else { &[] };
        podman.try_run(name, &[userns, options].concat())
    }

    /// Where a container's config.json lies.
    fn config(&self, name: &str) -> PathBuf {
        let path = self.podman.call(&["inspect", "--format", "{{.OCIConfigPath}}", name]).ok();
        path.trim().into()
    }
}

impl Wired for ByPodman<'_> {
    fn version(&self) -> String {
        self.podman.call(&["--version"]).ok()
    }

    fn plain(&self, name: &str) -> Box<dyn Restartable + '_> {
        Box::new(self.run(&self.podman, name, &[]).unwrap_or_else(|out| panic!("{out:?}")))
    }

    fn try_member(&self, way: Way, name: &str, jail: &str) -> Result<Box<dyn Restartable + '_>, Out> {
        let note = annotation(jail);
        let annotated = ["--annotation", note.as_str()];
        let podman = self.podman.clone();
        let caps: &[&str] = if self.userns { &LATE_CAPS } else { &[] };
        let container = match way {
            Way::HooksAnnotation => {
                self.run(&podman.hooks("annotation", &BY_ANNOTATION), name, &[&annotated[..], caps].concat())
            }
            // Nobody writes the annotation here, unless it is to be refused.
            Way::HooksAlways if jail == "vpn" => self.run(&podman.hooks("always", &ALWAYS), name, caps),
            Way::HooksAlways => self.run(&podman.hooks("always", &ALWAYS), name, &annotated),
            Way::Cdi => self.run(&podman, name, &[&["--device", &device(jail)], caps].concat()),
            Way::WrapperJail => self.run(&self.wrapped().runtime_flag(&format!("jail={jail}")), name, &[]),
            Way::WrapperAnnotation => self.run(&self.wrapped(), name, &annotated),
            Way::WrapperSubnet => self.run(&self.wrapped(), name, &[]),
            Way::Config => unreachable!("Podman writes config.json"),
        };
        Ok(Box::new(container?))
    }

    fn proof(&self, way: Way, name: &str) -> Proof<'_> {
        match way {
            Way::Config => {
                let mut container = self.run(&self.podman, name, &[]).unwrap_or_else(|out| panic!("{out:?}"));
                container.stop();
                let path = self.config(name);
                let mut config: Value = parse(&std::fs::read_to_string(&path).expect("config.json"));
                config["hooks"] = parse(OCI_CONFIG)["hooks"].clone();
                std::fs::write(&path, config.to_string()).expect("config.json");
                container.start();
                assert!(!std::fs::read_to_string(&path).expect("config.json").contains(TUNJAIL));
                Proof::Starts(Box::new(container))
            }
            _ => unreachable!("Podman has {way:?}"),
        }
    }

    fn forget(&self, name: &str) {
        self.podman.call(&["rm", "--force", "-t", "0", name]).out();
    }
}
