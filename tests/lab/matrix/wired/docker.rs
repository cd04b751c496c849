//! Docker: CDI, and runtimes in daemon.json.

use serde_json::{Value, json};

use super::podman::{ALWAYS, BY_ANNOTATION};
use super::{LATE_CAPS, Proof, Way, Wired, annotation, device, offer_devices, offer_hooks, parse};
use crate::engine::Restartable;
use crate::engine::docker::Docker;
use crate::guest::{Guest, Release};
use crate::run::Out;
use crate::world::Lab;

const DOCKER_DAEMON: &str = include_str!("../../../../hooks/docker-daemon.json");
const OCI_CONFIG: &str = include_str!("../../../../hooks/oci-config.json");

/// A network that is no jail's.
pub const OTHER: &str = "other";
pub const OTHER4: &str = "172.30.0.0/16";
pub const OTHER6: &str = "fd00:30::/64";

pub struct ByDocker {
    docker: Docker,
    /// Whether the address comes after create: since 28.0.
    late: bool,
}

/// Docker with the runtime of the file, one that names no jail, and one that names a jail that does not exist.
pub fn docker(lab: &Lab, guest: &Guest) -> Docker {
    docker_with(lab, guest, &json!({}))
}

/// The same with more in its daemon.json.
pub fn docker_with(lab: &Lab, guest: &Guest, more: &Value) -> Docker {
    let mut runtimes = parse(DOCKER_DAEMON)["runtimes"].clone();
    let path = runtimes["tunjail-vpn"]["path"].clone();
    runtimes["by-subnet"] = json!({"path": path});
    runtimes["unknown"] = json!({"path": path, "runtimeArgs": ["--jail", "nope"]});
    offer_devices(lab);
    let mut config = Docker::settings(lab);
    config["runtimes"] = runtimes;
    // On by itself since 28.2; 20.10 does not know the word and does not mind.
    config["features"] = json!({"cdi": true});
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    Docker::start_of(lab, guest, &config)
}

pub fn other_docker_network(docker: &Docker) {
    let create = ["network", "create", "--subnet", OTHER4, "--ipv6", "--subnet", OTHER6, OTHER];
    docker.call(&create).ok();
}

impl ByDocker {
    pub fn new(lab: &Lab, guest: Guest) -> Self {
        for files in [&BY_ANNOTATION, &ALWAYS] {
            offer_hooks(&guest, files);
        }
        Self { docker: docker(lab, &guest), late: guest.release() == Release::Sid }
    }
}

impl Wired for ByDocker {
    fn version(&self) -> String {
        self.docker.call(&["version", "--format", "{{.Server.Version}}"]).ok()
    }

    fn plain(&self, name: &str) -> Box<dyn Restartable + '_> {
        Box::new(self.docker.run(name, &[]))
    }

    fn try_member(&self, way: Way, name: &str, jail: &str) -> Result<Box<dyn Restartable + '_>, Out> {
        let note = annotation(jail);
        let caps: &[&str] = if self.late { &LATE_CAPS } else { &[] };
        let container = match way {
            Way::Cdi => self.docker.try_run(name, &[&["--device", &device(jail)], caps].concat()),
            Way::WrapperJail => {
                self.docker.try_run(name, &["--runtime", if jail == "vpn" { "tunjail-vpn" } else { "unknown" }])
            }
            Way::WrapperAnnotation => self.docker.try_run(name, &["--runtime", "by-subnet", "--annotation", &note]),
            Way::WrapperSubnet => self.docker.try_run(name, &["--runtime", "by-subnet"]),
            Way::HooksAnnotation | Way::HooksAlways | Way::Config => unreachable!("Docker: {way:?}"),
        };
        Ok(Box::new(container?))
    }

    fn proof(&self, way: Way, name: &str) -> Proof<'_> {
        let refused = |because| {
            Proof::Refused(self.try_member(way, name, "vpn").err().unwrap_or_else(|| panic!("{way:?} works")), because)
        };
        match way {
            Way::Cdi => refused("could not select device driver \"cdi\""),
            Way::WrapperAnnotation => refused("annotation"),
            // 20.10 cannot annotate; there the hooks for every container are the ones that would see it.
            Way::HooksAnnotation | Way::HooksAlways => Proof::Starts(Box::new(
                self.docker
                    .try_run(name, &["--annotation", &annotation("vpn")])
                    .unwrap_or_else(|_| self.docker.run(name, &[])),
            )),
            Way::Config => {
                let mut container = self.docker.run(name, &[]);
                let path = self.docker.config(name);
                let mut config: Value = parse(&std::fs::read_to_string(&path).expect("config.json"));
                config["hooks"] = parse(OCI_CONFIG)["hooks"].clone();
                std::fs::write(&path, config.to_string()).expect("config.json");
                container.restart();
                Proof::Starts(Box::new(container))
            }
            Way::WrapperJail | Way::WrapperSubnet => unreachable!("Docker has {way:?}"),
        }
    }

    fn forget(&self, name: &str) {
        self.docker.call(&["rm", "--force", name]).out();
    }
}
