//! The traffic that should pass, on hosts as people have them: allowed nets, published ports, narrow exits, hosts with
//! settings and firewalls of their own.

mod annex;
mod families;
mod hosts;
mod lan;
mod published;
mod segments;
pub mod settings;
mod wg;
mod wire;

use std::time::Duration;

use crate::engine::Container;
use crate::rootfs::PROBE;
use crate::run::{Job, Out, wait_until};
use crate::world::Lab;

/// The jail of [`crate::product::STRICT_JAIL`] with this `allow`.
fn allowing(allow: &str) -> String {
    format!("{}allow = [{allow}]\n", crate::product::STRICT_JAIL)
}

/// Packets that the jail refused so far: `rejected_out`, `rejected_in`.
fn rejected(lab: &Lab, counter: &str) -> u64 {
    let text = lab.tools().cmd("nft", &["list", "counter", "inet", "tunjail_vpn", counter]).ok();
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

/// Echo on port 7, HTTP on port 80, by a container.
fn serve(container: &dyn Container, addresses: &[&str]) -> Job {
    let mut job = container.spawn(&[&[PROBE, "serve"], addresses].concat());
    wait_until("a member's service", Duration::from_secs(5), || {
        assert!(!job.ended(), "the service ended: {}", job.stderr());
        job.stdout().contains("ready")
    });
    job
}

/// It was refused, and whoever asked was told: no question ran into its time-out.
#[track_caller]
fn assert_told(what: &str, out: &Out) {
    let line = out.json();
    assert_eq!(line["ok"], false, "{what} passes: {line}");
    assert!(line["kind"] != "TimedOut" && line["kind"] != "WouldBlock", "{what} hangs: {line}");
}
