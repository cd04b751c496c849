//! How containerd is told of tunjail: the file in hooks/ as it is, and the other ways that there are.

use serde_json::{Value, json};

use crate::engine::containerd::{Containerd, Pod, PodConfig, PodContainer, network};
use crate::guest::{Guest, Release};
use crate::matrix::Cell;
use crate::product::TUNJAIL;
use crate::world::Lab;

/// The file that users get, word for word.
const HANDLER: &str = include_str!("../../../hooks/containerd.toml");
/// Handlers that hand on pods' annotations: without anything that reads them, with a specification that has tunjail's
/// hooks in it, and with the runtime but on a network that is no jail's.
const OTHERS: &str = r#"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.annotated]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["io.tunjail.jail"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.hooks]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "/etc/containerd/tunjail.json"
  pod_annotations = ["io.tunjail.jail"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.apart]
  runtime_type = "io.containerd.runc.v2"
  cni_conf_dir = "/etc/cni/apart"
  pod_annotations = ["io.tunjail.jail"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.apart.options]
    BinaryName = "/usr/local/bin/tunjail-runtime"
"#;
pub const ANNOTATION: &str = "io.tunjail.jail";
/// The default, `runc`: tunjail does not hear of such a pod.
pub const PLAIN: &str = "";

const NO_CDI: Cell = Cell::CannotBecause("containerd knows CDI since 1.7");
const NO_HOOK: Cell = Cell::CannotBecause("neither containerd nor runc looks for a hook because of an annotation");

/// Which release's containerd has which way in; the last column is an annotation that is handed on, and no more.
pub const TABLE: [(Release, [Cell; 5]); 3] = [
    (Release::Bookworm, [Cell::Works, Cell::Works, Cell::Works, NO_CDI, NO_HOOK]),
    (Release::Trixie, [Cell::Works, Cell::Works, Cell::Works, Cell::Works, NO_HOOK]),
    (Release::Sid, [Cell::Works, Cell::Works, Cell::Works, Cell::Works, NO_HOOK]),
];

/// The ways in that work for a release, by [`TABLE`].
pub fn ways(release: Release) -> Vec<Way> {
    let (_, cells) = TABLE.iter().find(|(row, _)| *row == release).expect("a row of the table");
    Way::ALL.into_iter().zip(cells).filter(|(_, cell)| **cell == Cell::Works).map(|(way, _)| way).collect()
}

/// How a pod gets into its jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The handler of hooks/containerd.toml, and the pod's annotation.
    Annotation,
    /// The same handler without an annotation: the pod's address decides.
    Subnet,
    /// A `base_runtime_spec` with the hooks, and the pod's annotation: the sandbox is made without it.
    Spec,
    /// A CDI device of each container, on the default handler: the sandbox has none.
    Cdi,
}

pub const DEVICE: &str = "tunjail.io/jail=vpn";

impl Way {
    /// In the order of [`TABLE`].
    const ALL: [Self; 4] = [Self::Annotation, Self::Subnet, Self::Spec, Self::Cdi];

    pub fn pod<'e>(self, engine: &'e Containerd, name: &str) -> Pod<'e> {
        let config = PodConfig::new(name);
        match self {
            Self::Annotation => engine.pod("tunjail", &config.annotation(ANNOTATION, "vpn")),
            Self::Subnet => engine.pod("tunjail", &config),
            Self::Spec => engine.pod("hooks", &config.annotation(ANNOTATION, "vpn")),
            Self::Cdi => engine.pod(PLAIN, &config),
        }
    }

    pub fn container<'e>(self, pod: &Pod<'e>, name: &str) -> PodContainer<'e> {
        let devices: &[&str] = if self == Self::Cdi { &[DEVICE] } else { &[] };
        pod.container(name, devices)
    }

    /// The ids of one member.
    pub fn ids(self, pod: &Pod, containers: &[&PodContainer]) -> Vec<String> {
        let sandbox = matches!(self, Self::Annotation | Self::Subnet).then_some(&pod.id);
        let mut ids: Vec<String> =
            sandbox.into_iter().chain(containers.iter().map(|container| &container.id)).cloned().collect();
        ids.sort();
        ids
    }
}

fn hook(stage: &str, jail: &[&str]) -> Value {
    let args = [&["tunjail", "hook", stage], jail].concat();
    json!({"path": TUNJAIL, "args": args, "timeout": 10})
}

/// All ways in at once.
pub fn wired(lab: &Lab, release: Release) -> Containerd {
    let guest = Guest::new(lab, release);
    let mut spec: Value = serde_json::from_str(&guest.cmd("ctr", &["oci", "spec"]).ok()).expect("JSON from ctr");
    spec["hooks"] = json!({"createRuntime": [hook("create-runtime", &[])], "poststop": [hook("poststop", &[])]});
    guest.write("/etc/containerd/tunjail.json", &spec.to_string());
    let hooks: Vec<Value> = [("createRuntime", "create-runtime"), ("poststop", "poststop")]
        .map(|(name, stage)| {
            let mut hook = hook(stage, &["--jail", "vpn"]);
            hook["hookName"] = name.into();
            hook
        })
        .into();
    let devices = json!([{"name": "vpn", "containerEdits": {"hooks": hooks}}]);
    let cdi = json!({"cdiVersion": "0.5.0", "kind": "tunjail.io/jail", "devices": devices});
    guest.write("/etc/cdi/tunjail.json", &cdi.to_string());
    let apart = network("apart", ["172.30.0.0/16", "fd00:30::/64"]);
    guest.write("/etc/cni/apart/10-apart.conflist", &apart.to_string());
    Containerd::start(lab, &guest, &format!("{HANDLER}{OTHERS}"))
}
