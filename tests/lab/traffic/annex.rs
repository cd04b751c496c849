//! A net behind a gateway in the LAN: 10.9.0.0/24 and fd00:9::/64, which the host reaches by 192.168.178.60.

use std::time::Duration;

use crate::rootfs;
use crate::run::{Cmd, Job, wait_until};
use crate::world::{HOST4, HOST6, Lab, Netns};

pub const ANNEX4: &str = "10.9.0.5";
pub const ANNEX6: &str = "fd00:9::5";
pub const ANNEX_NET4: &str = "10.9.0.0/24";
pub const ANNEX_NET6: &str = "fd00:9::/64";

/// The gateway and a host behind it with the lab's services. The link between the two may be narrow.
pub struct Annex {
    pub gate: Netns,
    pub host: Netns,
    _services: Job,
}

impl Annex {
    pub fn new(lab: &Lab) -> Self {
        let [gate, host] = ["gate", "annex"].map(Netns::add);
        lab.sh("ip -n gate link add lan type veth peer name gate0 netns router
            ip -n router link set gate0 master lan up
            ip -n gate link add inner type veth peer name eth0 netns annex");
        gate.sh(&format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
            ip addr add 192.168.178.60/24 dev lan; ip addr add 2001:db8:178::60/64 dev lan nodad; ip link set lan up
            ip addr add 10.9.0.1/24 dev inner; ip addr add fd00:9::1/64 dev inner nodad; ip link set inner up
            ip route add 172.18.0.0/16 via {HOST4}; ip route add fd00:18::/64 via {HOST6}"
        ));
        host.sh(&format!(
            "ip addr add {ANNEX4}/24 dev eth0; ip addr add {ANNEX6}/64 dev eth0 nodad; ip link set eth0 up
            ip route add default via 10.9.0.1; ip route add default via fd00:9::1"
        ));
        lab.sh(&format!(
            "ip route add {ANNEX_NET4} via 192.168.178.60; ip route add {ANNEX_NET6} via 2001:db8:178::60"
        ));
        for addr in [ANNEX4, ANNEX6] {
            wait_until("the annex", Duration::from_secs(10), || lab.probe(&["ping", addr, "1"]).json()["ok"] == true);
        }
        let services = Cmd::new(rootfs::probe(), &["serve", ANNEX4, ANNEX6]).within(&host).spawn();
        wait_until("the annex' services", Duration::from_secs(5), || services.stdout().contains("ready"));
        Self { gate, host, _services: services }
    }
}
