//! Promise P6: names are asked where the jail says, by the exit, or not at all. Who asked is what the internet's
//! resolver wrote down.

mod docker;
mod podman;
mod servers;

use serde_json::Value;

use crate::engine::Container;
use crate::product::STRICT_JAIL;
use crate::run::answer;
use crate::world::{Lab, SERVICE4, VPN4, VPN6};

/// Docker's, in a container's own namespace.
const EMBEDDED: &str = "127.0.0.11";
const TRANSPORTS: [&str; 2] = ["dns", "dns-tcp"];

/// The jail with this line more.
pub fn jail(line: &str) -> String {
    format!("{STRICT_JAIL}{line}\n")
}

/// A name that nobody has asked for yet.
fn new_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("n{}.example", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Asks a server, which must answer. Returns the name that it was asked for.
#[track_caller]
fn ask(container: &dyn Container, transport: &str, server: &str) -> String {
    let name = new_name();
    assert_eq!(answer(&container.probe(&[transport, server, &name])), SERVICE4, "{transport} {server}");
    name
}

/// Asks a server, which must answer what was asked of the internet's resolver at the exit's other end.
#[track_caller]
fn asks_by_the_exit(lab: &Lab, container: &dyn Container, transport: &str, server: &str) {
    let name = ask(container, transport, server);
    let askers = lab.askers(&name);
    assert!(askers == [VPN4] || askers == [VPN6], "{transport} {server}: {askers:?} asked");
}

/// Asks a server, by transport, address and perhaps port, which must refuse at once, and have asked nobody.
#[track_caller]
fn is_refused(lab: &Lab, container: &dyn Container, question: &[&str]) {
    let name = new_name();
    let (whom, port) = question.split_at(2);
    let line = container.probe(&[whom, &[&name], port].concat()).json();
    assert_eq!(line["ok"], false, "{question:?}: {line}");
    assert!(line["ms"].as_u64() < Some(1200) && line["kind"] != "TimedOut", "{question:?} hangs: {line}");
    assert_eq!(lab.askers(&name), [] as [&str; 0], "{question:?}");
}

/// The warnings of `check`.
fn warnings(lab: &Lab) -> Vec<String> {
    let out = lab.tunjail(&["check", "--json"]);
    let check: Value = serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    let findings = check["findings"].as_array().expect("findings").iter();
    let warnings = findings.filter(|finding| finding["verdict"] == "warning");
    warnings.map(|finding| finding["found"].as_str().unwrap_or_default().to_owned()).collect()
}
