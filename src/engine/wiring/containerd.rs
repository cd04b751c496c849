//! containerd: the runtime handler in config.toml.

use std::path::Path;

use super::{State, Way, fault, program};
use crate::engine::install::Host;
use crate::engine::install::containerd::{self, ANNOTATION, CONFIG, Handler};

const WAY: &str = "containerd";

pub fn look(host: &Host) -> Vec<Way> {
    let found = match host.read(Path::new(CONFIG)).and_then(|text| text.as_deref().map(containerd::read).transpose()) {
        Ok(found) => found,
        Err(error) => return vec![Way::new(State::Broken, WAY, format!("{error:#}"))],
    };
    let (ours, disabled) = found.map(|found| (found.ours, found.disabled)).unwrap_or_default();
    if ours.is_empty() {
        let text = "containerd is here and has no runtime handler that runs tunjail; for a kubelet's pods: `tunjail install containerd`";
        return program(host, "containerd").map(|_| Way::new(State::Unused, WAY, text)).into_iter().collect();
    }
    if disabled {
        let text =
            format!("{CONFIG} switches the CRI plugin off (disabled_plugins): nothing reads its runtime handlers");
        return vec![Way::new(State::Doubtful, WAY, text)];
    }
    ours.iter().map(|handler| judge(host, handler)).collect()
}

fn judge(host: &Host, handler: &Handler) -> Way {
    let Handler { name, program, pod_annotations } = handler;
    if let Some(fault) = fault(host, program) {
        let text = format!(
            "runtime handler \"{name}\" in {CONFIG} is {}, which {fault}; pods with it do not start",
            program.display()
        );
        return Way::new(State::Doubtful, WAY, text);
    }
    if !pod_annotations.iter().any(|pattern| matches(pattern)) {
        let text = format!(
            "runtime handler \"{name}\" in {CONFIG} does not hand on pods' annotations: without \"{ANNOTATION}\" in its pod_annotations only the address decides"
        );
        return Way::new(State::Doubtful, WAY, text);
    }
    let text = format!("runtime handler \"{name}\" in {CONFIG} calls {}, by annotation or address", program.display());
    Way::new(State::Live, WAY, text)
}

/// containerd takes a shell pattern there; one star is all that is read here.
fn matches(pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == ANNOTATION,
        Some((head, tail)) => ANNOTATION.strip_prefix(head).is_some_and(|rest| rest.ends_with(tail)),
    }
}
