//! Leaks, counted exactly: every frame that comes out of the host's uplink passes one of these counters on the router,
//! before bridging, routing or any other rule of the router sees it.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::run::Cmd;
use crate::uplink::{NICS4, NICS6};
use crate::vpn::{CLIENT_PORTS, SERVER_PORTS, TUNNEL_NET4, TUNNEL_NET6};
use crate::world::{HOST4, HOST4_MOVED, HOST6, LAN_NET4, LAN_NET6, Lab, Netns, SERVICE4, SERVICE6, VPN_NET4};

/// Packets from the host's uplink since the last reset, by where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaks {
    /// IPv4 to anywhere but the LAN, other than the tunnel's own transport.
    pub v4: u64,
    /// The same for IPv6.
    pub v6: u64,
    /// IPv4 into the LAN: a leak where the jail does not allow the LAN.
    pub lan4: u64,
    pub lan6: u64,
    /// Frames that are neither IP nor ARP.
    pub other: u64,
    /// Resets and ICMP unreachables in the name of an exit's own address: what the *host* answers, by its main table, to
    /// a late packet that came in by the exit for a connection that it no longer knows; and such a packet itself when it
    /// is for an address that the exit has lost: the host, as a router, sends it on. No packet of a member, but
    /// whoever watches the uplink learns whom one of them talked to.
    pub stray: u64,
    /// ARP that does not speak for the host's own address.
    pub arp: u64,
    /// The tunnel's own packets: no leak, but a proof that the counter stands in the way.
    pub transport: u64,
}

impl Leaks {
    /// Everything that left past the exit, the LAN aside.
    pub fn escaped(&self) -> u64 {
        self.v4 + self.v6 + self.other
    }

    /// Everything that left past the exit, the LAN included.
    pub fn total(&self) -> u64 {
        self.escaped() + self.lan4 + self.lan6
    }
}

/// The counters, in place on the router.
pub struct Counters;

impl Counters {
    pub fn place(router: &Netns) -> Self {
        let mac = Cmd::new("busybox", &["cat", "/sys/class/net/eth0/address"]).ok();
        let mac = mac.trim();
        // "own" is what the host says for itself to keep its link alive: ARP, ND, MLD and IGMP from its own addresses.
        // A later fragment of the transport has no ports; whatever else is in fragments is counted by its first.
        // An ICMP port unreachable about the transport (the client is dead, the server still sends) is known by the
        // ports of the packet it quotes: 8 bytes of ICMP and 20 of IP before them.
        router.nft(&format!(
            "table netdev leaks {{
                counter v4 {{ }}
                counter v6 {{ }}
                counter lan4 {{ }}
                counter lan6 {{ }}
                counter other {{ }}
                counter foreign_arp {{ }}
                counter transport {{ }}
                counter own {{ }}
                counter stray {{ }}
                set seen4 {{
                    typeof ip saddr . ip daddr . meta l4proto . th sport . th dport
                    flags dynamic
                    size 256
                    counter
                }}
                set seen6 {{
                    typeof ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport
                    flags dynamic
                    size 256
                    counter
                }}
                chain from_host {{
                    type filter hook ingress device uplink priority -500; policy accept;
                    ether saddr {mac} arp saddr ip {HOST4} counter name own accept
                    ether type arp counter name foreign_arp accept
                    ether saddr {mac} ip saddr {HOST4} ip protocol igmp counter name own accept
                    ether saddr {mac} ip6 saddr {{ ::, fe80::/10, {HOST6} }} icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report }} counter name own accept
                    {transport}
                    ip saddr {{ {HOST4}, {HOST4_MOVED} }} ip daddr {VPN_NET4} ip protocol udp ip frag-off & 0x1fff != 0 counter name transport accept
                    ether type ip update @seen4 {{ ip saddr . ip daddr . meta l4proto . th sport . th dport }}
                    ether type ip6 update @seen6 {{ ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport }}
                    ip saddr {{ {TUNNEL_NET4}, {NICS4} }} tcp flags & rst == rst counter name stray accept
                    ip saddr {{ {TUNNEL_NET4}, {NICS4} }} icmp type destination-unreachable counter name stray accept
                    ip6 saddr {{ {TUNNEL_NET6}, {NICS6} }} tcp flags & rst == rst counter name stray accept
                    ip6 saddr {{ {TUNNEL_NET6}, {NICS6} }} icmpv6 type destination-unreachable counter name stray accept
                    ip saddr {SERVICE4} ip daddr {{ {NICS4} }} counter name stray accept
                    ip6 saddr {SERVICE6} ip6 daddr {{ {NICS6} }} counter name stray accept
                    ip daddr {LAN_NET4} counter name lan4 accept
                    ip6 daddr {LAN_NET6} counter name lan6 accept
                    ether type ip counter name v4 accept
                    ether type ip6 counter name v6 accept
                    counter name other
                }}
            }}",
            transport = SERVER_PORTS.map(transport).join("\n"),
        ));
        Self
    }
}

/// A tunnel's own packets to this port of its server, from any of the host's addresses.
fn transport(port: u16) -> String {
    let last = CLIENT_PORTS + 63;
    let quoted = |client: u16| (u32::from(port) << 16) | u32::from(client);
    let from_to = format!("ip saddr {{ {HOST4}, {HOST4_MOVED} }} ip daddr {VPN_NET4}");
    format!(
        "{from_to} udp sport {CLIENT_PORTS}-{last} udp dport {port} counter name transport accept
        {from_to} icmp type destination-unreachable @th,224,32 {:#x}-{:#x} counter name transport accept",
        quoted(CLIENT_PORTS),
        quoted(last)
    )
}

impl Lab {
    /// What left by the uplink since the last reset.
    pub fn leaks(&self) -> Leaks {
        self.counters();
        let text = Cmd::new("nft", &["-j", "list", "counters", "table", "netdev", "leaks"]).within(&self.router).ok();
        let list: Value = serde_json::from_str(&text).expect("JSON from nft");
        let read = |name: &str| {
            let items = list["nftables"].as_array().into_iter().flatten();
            let counter = items.map(|item| &item["counter"]).find(|counter| counter["name"] == name);
            counter
                .and_then(|counter| counter["packets"].as_u64())
                .unwrap_or_else(|| panic!("no counter {name} in {list}"))
        };
        Leaks {
            v4: read("v4"),
            v6: read("v6"),
            lan4: read("lan4"),
            lan6: read("lan6"),
            other: read("other"),
            stray: read("stray"),
            arp: read("foreign_arp"),
            transport: read("transport"),
        }
    }

    /// Who sent what past the exit since the last reset: source, destination, protocol, ports (of ICMP: its first four
    /// bytes) and packets.
    pub fn leaked_flows(&self) -> String {
        let list = |set| Cmd::new("nft", &["list", "set", "netdev", "leaks", set]).within(&self.router).ok();
        let text = list("seen4") + &list("seen6");
        text.lines()
            .filter(|line| line.contains(" . ") && !line.trim_start().starts_with("type"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Waits until the uplink has been quiet for a while: nothing is under way any more.
    pub fn wait_quiet(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut before = self.leaks().total();
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(300) {
            assert!(Instant::now() < deadline, "the uplink does not come to rest: {:?}", self.leaks());
            std::thread::sleep(Duration::from_millis(20));
            let now = self.leaks().total();
            if now != before {
                (before, since) = (now, Instant::now());
            }
        }
    }

    /// Sets the counters to zero once the wire has been quiet for a while: stragglers of the positive control (a FIN
    /// sent again, an ICMP error) are not to be taken for leaks of the jail.
    pub fn reset_leaks(&self) {
        self.wait_quiet();
        Cmd::new("nft", &["reset", "counters", "table", "netdev", "leaks"]).within(&self.router).ok();
        for set in ["seen4", "seen6"] {
            Cmd::new("nft", &["flush", "set", "netdev", "leaks", set]).within(&self.router).ok();
        }
    }

    /// The positive control: with the jail off, the probe is counted. Returns how many packets were, and leaves the
    /// counters at zero.
    ///
    /// # Panics
    /// When the probe is not seen: a zero with the jail on would then mean nothing.
    #[track_caller]
    pub fn assert_probe_is_visible(&self, probe: impl FnOnce()) -> u64 {
        self.reset_leaks();
        probe();
        let seen = self.leaks();
        assert!(seen.total() > 0, "positive control: the probe is not seen on the uplink with the jail off: {seen:?}");
        self.reset_leaks();
        seen.total()
    }

    /// Demands that nothing left past the exit, LAN included, and says so next to the positive control. A test that
    /// talks to an allowed LAN looks at [`Leaks::escaped`] itself.
    ///
    /// # Panics
    /// When a single packet did.
    #[track_caller]
    pub fn assert_no_leak(&self, suite: &str, case: &str, control: u64) {
        let leaks = self.leaks();
        report(suite, case, control, leaks.total());
        assert!(control > 0, "{suite}/{case}: no positive control");
        let flows = || self.leaked_flows();
        assert!(leaks.total() == 0, "{suite}/{case}: packets left past the exit: {leaks:?}\n{}", flows());
    }
}

/// One line per leak test on stdout, and in the file that `TUNJAIL_LEAK_REPORT` names.
pub fn report(suite: &str, case: &str, control: u64, jailed: u64) {
    let line = format!("leak: suite={suite} case={case} control={control} packets, jailed={jailed} packets");
    println!("{line}");
    if let Some(path) = std::env::var_os("TUNJAIL_LEAK_REPORT") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the leak report");
    }
}
