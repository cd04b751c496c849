//! An exit without a transport: a link straight to the VPN server that needs no next hop, as a tunnel needs none.

use crate::vpn::{TUN, TUNNEL_NET4, TUNNEL_NET6};
use crate::world::{Lab, VPN4, VPN6};

/// Both ends have this MAC: a link without ARP sends to its own.
const MAC: &str = "02:00:5e:00:53:08";

/// `tun0` on the host, up.
pub struct Wire;

impl Wire {
    pub fn new(lab: &Lab) -> Self {
        lab.vpn.nft(&format!(
            "table inet wire {{ chain out {{ type nat hook postrouting priority 100
                oifname eth0 ip saddr {TUNNEL_NET4} snat ip to {VPN4}
                oifname eth0 ip6 saddr {TUNNEL_NET6} snat ip6 to {VPN6}
            }}
            }}"
        ));
        Self.mend(lab);
        Self
    }

    /// The link goes, as that of a VPN that dies.
    pub fn cut(&self, lab: &Lab) {
        lab.sh(&format!("ip link del {TUN}"));
    }

    pub fn mend(&self, lab: &Lab) {
        lab.sh(&format!(
            "ip link add {TUN} address {MAC} type veth peer name {TUN} address {MAC} netns vpn
            ip link set {TUN} arp off; ip -n vpn link set {TUN} arp off
            ip addr add 10.8.0.2/24 dev {TUN}; ip addr add 2001:db8:8::2/64 dev {TUN} nodad
            ip -n vpn addr add 10.8.0.1/24 dev {TUN}; ip -n vpn addr add 2001:db8:8::1/64 dev {TUN} nodad
            ip -n vpn link set {TUN} up; ip link set {TUN} up"
        ));
    }
}
