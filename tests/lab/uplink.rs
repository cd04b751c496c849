//! A second way to the internet: a plain NIC with a gateway at another provider, and a second bridge for a second jail.

use std::time::Duration;

use crate::run::{Cmd, wait_until};
use crate::world::{Lab, Netns, SERVICE4, SERVICE6};

/// The NIC on the host, its addresses, and the provider's router on its net.
pub const NIC: &str = "eth1";
pub const NIC4: &str = "192.0.2.2";
pub const NIC6: &str = "2001:db8:2::2";
pub const NIC_NET4: &str = "192.0.2.0/25";
pub const NIC_NET6: &str = "2001:db8:2::/64";
pub const GATEWAY4: &str = "192.0.2.1";
pub const GATEWAY6: &str = "2001:db8:2::1";
/// Whom the world sees when something leaves by the NIC; IPv6 is routed, so that is the NIC's own address.
pub const ISP4: &str = "192.0.2.130";
pub const ISP6: &str = NIC6;

/// The provider. It counts what comes in another's name than the NIC's.
pub struct Uplink {
    isp: Netns,
}

impl Uplink {
    /// Plugged in, with addresses, and up.
    pub fn new(lab: &Lab) -> Self {
        let isp = Netns::add("isp");
        lab.sh(&format!(
            "ip link add {NIC} type veth peer name customer netns isp
            ip -n isp link add wan type veth peer name isp0 netns inet"
        ));
        isp.sh(&format!(
            "echo 1 > /proc/sys/net/ipv6/conf/all/keep_addr_on_down; echo 1 > /proc/sys/net/ipv6/conf/default/keep_addr_on_down
            echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
            ip addr add {GATEWAY4}/25 dev customer; ip addr add {GATEWAY6}/64 dev customer nodad
            ip addr add {ISP4}/25 dev wan; ip addr add 2001:db8:2:1::2/64 dev wan nodad
            ip link set customer up; ip link set wan up
            ip route add default via 192.0.2.129; ip route add default via 2001:db8:2:1::1"
        ));
        lab.inet.sh(
            "ip addr add 192.0.2.129/25 dev isp0; ip addr add 2001:db8:2:1::1/64 dev isp0 nodad; ip link set isp0 up
            ip route add 2001:db8:2::/64 via 2001:db8:2:1::2",
        );
        isp.nft(
            "table inet isp {
                counter named { }
                counter misnamed { }
                set names4 {
                    typeof ip saddr . ip daddr . meta l4proto . th sport . th dport
                    flags dynamic
                    size 64
                    counter
                }
                set names6 {
                    typeof ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport
                    flags dynamic
                    size 64
                    counter
                }
                chain from_customer { type filter hook prerouting priority -500
                    iifname != customer accept
                    ip6 saddr { fe80::/10, :: } accept
                    ip saddr 192.0.2.0/25 counter name named accept
                    ip6 saddr 2001:db8:2::/64 counter name named accept
                    counter name misnamed
                    update @names4 { ip saddr . ip daddr . meta l4proto . th sport . th dport }
                    update @names6 { ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport }
                }
                chain out { type nat hook postrouting priority 100
                    meta nfproto ipv4 oifname wan masquerade
                }
            }",
        );
        let uplink = Self { isp };
        uplink.comes(lab);
        uplink.wait_ready(lab);
        uplink
    }

    /// Addresses and up, as an administrator does it by hand: no script of tunjail's hears of it.
    pub fn comes(&self, lab: &Lab) {
        // The other end of the cable is the same kernel's here, and answers nothing until it has come to know that it is
        // plugged in. What it was asked meanwhile is asked again soon, and not a second later.
        lab.sh(&format!(
            "for family in ipv4 ipv6; do echo 20 > /proc/sys/net/$family/neigh/{NIC}/retrans_time_ms; done
            ip link set {NIC} up; ip addr replace {NIC4}/25 dev {NIC}; ip addr replace {NIC6}/64 dev {NIC} nodad"
        ));
    }

    /// The interface goes for good, and its other end with it.
    pub fn is_deleted(&self, lab: &Lab) {
        lab.sh(&format!("ip link del {NIC}"));
    }

    /// Another one of the same name, under another index.
    pub fn is_made_anew(&self, lab: &Lab) {
        lab.sh(&format!("ip link add {NIC} type veth peer name customer netns isp"));
        self.isp.sh(&format!(
            "ip addr add {GATEWAY4}/25 dev customer; ip addr add {GATEWAY6}/64 dev customer nodad
            ip link set customer up"
        ));
        self.comes(lab);
    }

    /// The cable at the other end: the host's interface stays up.
    pub fn cable(&self, plugged: bool) {
        self.isp.sh(&format!("ip link set customer {}", if plugged { "up" } else { "down" }));
    }

    /// Packets from the customer in its own name, and in any other.
    pub fn names(&self) -> (u64, u64) {
        let read = |name: &str| {
            let text = self.isp.sh(&format!("nft list counter inet isp {name}"));
            let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
            packets.and_then(|packets| packets.parse().ok()).expect("a counter")
        };
        (read("named"), read("misnamed"))
    }

    /// Who the misnamed ones were: source, destination, protocol, ports (of ICMP: its first four bytes).
    pub fn misnamed(&self) -> String {
        let text = self.isp.sh("nft list set inet isp names4; nft list set inet isp names6");
        text.lines().filter(|line| line.contains(" . ") && !line.contains("typeof")).collect::<Vec<_>>().join("\n")
    }

    pub fn forget_names(&self) {
        self.isp.sh("nft reset counters table inet isp; nft flush set inet isp names4; nft flush set inet isp names6");
    }

    /// The links carry packets, and the world answers.
    fn wait_ready(&self, lab: &Lab) {
        for gateway in [GATEWAY4, GATEWAY6] {
            wait_until("the second uplink", Duration::from_secs(10), || {
                lab.probe(&["ping", gateway, "1"]).json()["ok"] == true
            });
        }
        for service in [SERVICE4, SERVICE6] {
            wait_until("the second provider", Duration::from_secs(10), || {
                self.isp.probe(&["ping", service, "1"]).json()["ok"] == true
            });
        }
    }
}

/// A second network of containers, 172.19.0.0/16 and fd00:19::/64.
pub struct SecondBridge;

pub const SECOND_BRIDGE: &str = "second";

impl SecondBridge {
    pub fn new(lab: &Lab) -> Self {
        lab.sh(&format!(
            "ip link add {SECOND_BRIDGE} address 02:42:ac:13:00:01 type bridge
            ip addr add 172.19.0.1/16 dev {SECOND_BRIDGE}; ip addr add fd00:19::1/64 dev {SECOND_BRIDGE} nodad
            ip link set {SECOND_BRIDGE} up"
        ));
        Self
    }

    /// A namespace with eth0 = 172.19.0.`n` and fd00:19::`n` on it, carrying packets.
    pub fn plug(&self, name: &str, n: u8) -> Netns {
        let netns = Netns::add(name);
        let script = format!(
            "ip link add veth-{name} type veth peer name eth0 netns {name}
            ip link set veth-{name} master {SECOND_BRIDGE} up"
        );
        Cmd::new("/bin/sh", &["-ec", &script]).ok();
        netns.sh(&format!(
            "ip link set eth0 up; ip addr add 172.19.0.{n}/16 dev eth0; ip addr add fd00:19::{n}/64 dev eth0 nodad
            ip route add default via 172.19.0.1; ip route add default via fd00:19::1"
        ));
        for gateway in ["172.19.0.1", "fd00:19::1"] {
            wait_until("a new port of the second bridge", Duration::from_secs(5), || {
                netns.probe(&["ping", gateway, "1"]).json()["ok"] == true
            });
        }
        netns
    }
}
