//! What CNI does for a container that runc or crun starts by hand: the bridge `vpn` and a veth into a namespace.

use std::time::Duration;

use crate::run::{Cmd, wait_until};
use crate::world::{Lab, Netns};

pub const BRIDGE: &str = "vpn";
pub const GATEWAY4: &str = "172.18.0.1";
pub const GATEWAY6: &str = "fd00:18::1";
pub const SUBNET4: &str = "172.18.0.0/16";
pub const SUBNET6: &str = "fd00:18::/64";

/// The bridge `vpn` on the host, masquerading by whatever interface its packets leave, as engines set it up: with the
/// jail off, members reach the internet by the uplink.
#[derive(Debug)]
pub struct Bridge;

impl Bridge {
    pub fn new(lab: &Lab) -> Self {
        // With an address of its own, as Docker makes it: else it takes that of a port, another one with each new port,
        // and whoever knew the gateway has to find it anew.
        lab.sh(&format!(
            "ip link add {BRIDGE} address 02:42:ac:12:00:01 type bridge
            ip addr add {GATEWAY4}/16 dev {BRIDGE}; ip addr add {GATEWAY6}/64 dev {BRIDGE} nodad
            ip link set {BRIDGE} up"
        ));
        lab.nft(&format!(
            "table inet cni {{ chain postrouting {{ type nat hook postrouting priority 100
                ip saddr {SUBNET4} oifname != {BRIDGE} masquerade
                ip6 saddr {SUBNET6} oifname != {BRIDGE} masquerade
            }}
            }}"
        ));
        Self
    }

    /// A namespace with eth0 = 172.18.0.`n` and fd00:18::`n` on the bridge. Its host side is `veth-NAME`. It carries
    /// packets when this returns; the kernel may take a second to notice a new port.
    pub fn plug(&self, name: &str, n: u8) -> Netns {
        let netns = self.plug_bare(name);
        netns.sh(&format!(
            "ip addr add 172.18.0.{n}/16 dev eth0; ip addr add fd00:18::{n}/64 dev eth0 nodad
            ip route add default via {GATEWAY4}; ip route add default via {GATEWAY6}"
        ));
        for gateway in [GATEWAY4, GATEWAY6] {
            wait_until("a new port of the bridge", Duration::from_secs(5), || {
                netns.probe(&["ping", gateway, "1"]).json()["ok"] == true
            });
        }
        netns
    }

    /// The same without addresses: an engine that hands them out late.
    pub fn plug_bare(&self, name: &str) -> Netns {
        let netns = Netns::add(name);
        self.port(&netns);
        netns
    }

    /// A port of the bridge with its other end, eth0, in the namespace.
    pub fn port(&self, netns: &Netns) {
        let name = netns.name();
        let script = format!(
            "ip link add veth-{name} type veth peer name eth0 netns {name}
            ip link set veth-{name} master {BRIDGE} up"
        );
        Cmd::new("/bin/sh", &["-ec", &script]).ok();
        netns.sh("ip link set eth0 up");
    }
}
