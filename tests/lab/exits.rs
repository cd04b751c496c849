//! Several exits, a plain NIC among them, and `tunjail watch`, which follows them without any script.

mod change;
mod failover;
mod jails;
mod nic;
mod noise;
mod service;
mod watch;

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use crate::bridge::Bridge;
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product::TUNJAIL;
use crate::run::{Job, answer, wait_until};
use crate::uplink::{GATEWAY4, GATEWAY6, ISP4, ISP6, Uplink};
use crate::vpn::{Client, Vpn};
use crate::world::{Lab, SERVICE4, SERVICE6, VPN4, VPN6};

const PATIENCE: Duration = Duration::from_secs(10);

/// By whom a member is seen when it leaves by this exit.
const BY_TUNNEL: [&str; 2] = [VPN4, VPN6];
const BY_NIC: [&str; 2] = [ISP4, ISP6];

/// Two exits at the same time, OpenVPN without any script and a NIC, and the bridge. Fields in the order in which they
/// are taken down.
struct TwoExits {
    client: Client,
    _server: Vpn,
    uplink: Uplink,
    bridge: Bridge,
    lab: Lab,
}

impl TwoExits {
    fn new(exits: &str) -> Self {
        let lab = Lab::new();
        let server = Vpn::start_server(&lab);
        count_names_in_the_tunnel(&lab);
        let client = server.client(None);
        let uplink = Uplink::new(&lab);
        let right = uplink.names();
        // Zero of what is misnamed means something only when it is seen.
        for (service, gateway, member) in [(SERVICE4, GATEWAY4, "172.18.0.2"), (SERVICE6, GATEWAY6, "fd00:18::2")] {
            lab.sh(&format!("ip route add {service} via {gateway}"));
            lab.probe(&["spoof-udp", member, service, "9", "3"]);
            lab.sh(&format!("ip route del {service} via {gateway}"));
        }
        assert_eq!(uplink.names().1, right.1 + 6, "positive control: forged names by the NIC are not seen");
        uplink.forget_names();
        // Whose masquerading would name them rightly.
        let bridge = Bridge::new(&lab);
        lab.configure(&jail("vpn", 18, exits));
        Self { client, _server: server, uplink, bridge, lab }
    }

    fn member(&self, name: &str, n: u8) -> Oci {
        let netns = self.bridge.plug(name, n);
        Oci::run(&self.lab, "runc", name, &Bundle::new(&netns).jailed(&["--jail", "vpn"]))
    }

    /// A container that no jail holds asks the same questions: what leaves past the exits is counted.
    fn control(&self) -> u64 {
        let netns = self.bridge.plug("control", 200);
        let mut plain = Oci::run(&self.lab, "runc", "control", &Bundle::new(&netns));
        let seen = self.lab.assert_probe_is_visible(|| {
            for service in [SERVICE4, SERVICE6] {
                answer(&plain.probe(&["http", service]));
                plain.probe(&["udp-flood", service, "7", "1000", "0.2"]);
            }
        });
        plain.remove();
        seen
    }

    /// Nothing of the member left by an exit in another's name than the exit's, the other exit's above all.
    fn assert_right_names(&self) {
        let (named, misnamed) = self.uplink.names();
        let (in_tunnel, strange) = names_in_the_tunnel(&self.lab);
        assert_eq!(
            (misnamed, strange),
            (0, 0),
            "packets in a wrong name (rightly named: {named}, {in_tunnel}):\n{}",
            self.uplink.misnamed()
        );
    }
}

/// The two with `tunjail watch` and a member, seen as it should be. Fields in the order in which they are taken down.
struct Followed {
    member: Oci,
    watch: Watch,
    /// What leaves past the exits of a container that no jail holds.
    control: u64,
    two: TwoExits,
}

impl Followed {
    #[track_caller]
    fn new(exits: &str, callers: [&str; 2]) -> Self {
        let mut two = TwoExits::new(exits);
        let control = two.control();
        let watch = Watch::start(&two.lab);
        two.client.start_and_wait();
        let member = two.member("m1", 2);
        two.lab.reset_leaks();
        is_seen_as(&member, callers);
        Self { member, watch, control, two }
    }

    #[track_caller]
    fn assert_no_leak(&self, case: &str) {
        self.two.assert_right_names();
        self.two.lab.assert_no_leak("exits", case, self.control);
    }

    /// In good order, and without a failure.
    #[track_caller]
    fn end(self) {
        assert!(self.watch.told("failed").is_empty(), "{:?}", self.watch.told("failed"));
        self.watch.end();
    }
}

fn jail(name: &str, net: u8, exits: &str) -> String {
    format!(
        "[jail.{name}]\nsubnets = [\"172.{net}.0.0/16\", \"fd00:{net}::/64\"]\nexit = {exits}\n\
         gateway = [\"{GATEWAY4}\", \"{GATEWAY6}\"]\n"
    )
}

/// What comes out of the tunnel at the server in a client's own name, and in any other.
fn count_names_in_the_tunnel(lab: &Lab) {
    lab.vpn.nft(
        "table inet names {
            counter named { }
            counter misnamed { }
            chain from_clients { type filter hook prerouting priority -500
                iifname != tun0 accept
                ip6 saddr { fe80::/10, :: } accept
                ip saddr 10.8.0.0/24 counter name named accept
                ip6 saddr 2001:db8:8::/64 counter name named accept
                counter name misnamed
            }
        }",
    );
}

fn names_in_the_tunnel(lab: &Lab) -> (u64, u64) {
    let read = |name: &str| {
        let text = lab.vpn.sh(&format!("nft list counter inet names {name}"));
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).expect("a counter")
    };
    (read("named"), read("misnamed"))
}

/// `tunjail watch` as a service.
struct Watch {
    job: Job,
}

impl Watch {
    #[track_caller]
    fn start(lab: &Lab) -> Self {
        let watch = Self { job: lab.tools().cmd(TUNJAIL, &["watch", "--json"]).spawn() };
        watch.wait_told("ready");
        watch
    }

    #[track_caller]
    fn wait_told(&self, event: &str) {
        wait_until(&format!("tunjail watch to tell: {event}"), PATIENCE, || !self.told(event).is_empty());
    }

    /// What it told, without the words for what it is.
    fn told(&self, event: &str) -> Vec<serde_json::Value> {
        let lines = self.job.stdout();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["event"] == event).collect()
    }

    /// In good order.
    #[track_caller]
    fn end(self) {
        self.job.signal(Signal::SIGTERM);
        let out = self.job.finish(PATIENCE);
        assert!(out.code == 0 && out.stderr.is_empty(), "{out:?}");
    }
}

/// HTTP says by whom a member is seen, in both families.
fn is_seen_as(member: &dyn Container, callers: [&str; 2]) {
    for (service, caller) in [SERVICE4, SERVICE6].into_iter().zip(callers) {
        assert_eq!(answer(&member.probe(&["http", service])), caller);
    }
}

/// The same as soon as it is so.
#[track_caller]
fn comes_to_be_seen_as(member: &dyn Container, callers: [&str; 2]) {
    for (service, caller) in [SERVICE4, SERVICE6].into_iter().zip(callers) {
        wait_until(&format!("a member to be seen as {caller}"), PATIENCE, || {
            member.probe(&["http", service]).json()["body"] == caller
        });
    }
}

/// New flows of both families, all the time.
struct NewFlows([Job; 2]);

impl NewFlows {
    #[track_caller]
    fn start(member: &dyn Container) -> Self {
        Self([SERVICE4, SERVICE6].map(|service| member.probing(&["udp-new", service, "100"])))
    }

    /// Waits until new flows are seen as these, having been others before, and returns how long after `since` the first
    /// answer to one came, in milliseconds, for each family.
    #[track_caller]
    fn moved(&mut self, callers: [&str; 2], since: u64) -> [f64; 2] {
        let mut took = [0.0; 2];
        for ((job, caller), took) in self.0.iter_mut().zip(callers).zip(&mut took) {
            let line = job.wait_figures(&format!("new flows as {caller}"), PATIENCE, |line| {
                last_caller(line).is_some_and(|(last, when)| last == caller && when > since)
            });
            let (_, when) = last_caller(&line).expect("a caller");
            *took = (when - since) as f64 / 1000.0;
        }
        took
    }

    fn end(self, member: &dyn Container) {
        for job in self.0 {
            member.end(job);
        }
    }
}

fn last_caller(line: &serde_json::Value) -> Option<(&str, u64)> {
    let last = line["callers"].as_array()?.last()?;
    Some((last[0].as_str()?, last[1].as_u64()?))
}

/// Microseconds on the clock that the probe tells the time by.
fn now_us() -> u64 {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock").into();
    u64::try_from(now.as_micros()).expect("a time")
}
