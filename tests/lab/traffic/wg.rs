//! A host that sends everything of its own through WireGuard: real wg-quick with `AllowedIPs = 0.0.0.0/0, ::/0`, on
//! wireguard-go. Its ports are those that the lab's counters know as a tunnel's transport.

use std::fs;
use std::time::Duration;

use crate::run::{Cmd, Job, wait_until};
use crate::tools;
use crate::vpn::CLIENT_PORTS;
use crate::world::{Lab, SERVICE4, SERVICE6, VPN4, VPN6};

pub const WG: &str = "wg0";
const CONFIG: &str = "/etc/wireguard/wg0.conf";

/// The other end. Ends when dropped.
pub struct WgServer {
    _server: Job,
}

fn key(lab: &Lab, private: &str) -> String {
    lab.sh(&format!("echo {private} | wg pubkey")).trim().to_owned()
}

/// Starts the server and writes the client's configuration; nothing is up.
pub fn full_tunnel(lab: &Lab) -> WgServer {
    tools::require(&["wg", "wg-quick", "wireguard-go"]);
    let [client, server] = [(); 2].map(|()| lab.sh("wg genkey").trim().to_owned());
    let job = Cmd::new("wireguard-go", &["-f", "wgs"]).within(&lab.vpn).spawn();
    wait_until("the WireGuard server", Duration::from_secs(5), || {
        Cmd::new("wg", &["show", "wgs"]).within(&lab.vpn).out().code == 0
    });
    fs::write("/run/lab/wgs.key", &server).expect("a key");
    lab.vpn.sh(&format!(
        "wg set wgs private-key /run/lab/wgs.key listen-port 1194 peer {} allowed-ips 10.7.0.2/32,2001:db8:7::2/128
        ip addr add 10.7.0.1/24 dev wgs; ip addr add 2001:db8:7::1/64 dev wgs nodad; ip link set wgs up",
        key(lab, &client)
    ));
    lab.vpn.nft(&format!(
        "table inet wgs {{ chain out {{ type nat hook postrouting priority 100
            oifname eth0 ip saddr 10.7.0.0/24 snat ip to {VPN4}
            oifname eth0 ip6 saddr 2001:db8:7::/64 snat ip6 to {VPN6}
        }}
        }}"
    ));
    fs::create_dir_all("/etc/wireguard").expect("a directory");
    fs::write(
        CONFIG,
        format!(
            "[Interface]\nPrivateKey = {client}\nAddress = 10.7.0.2/24, 2001:db8:7::2/64\nListenPort = {}\nFwMark = 51820\n\
             [Peer]\nPublicKey = {}\nEndpoint = {VPN4}:1194\nAllowedIPs = 0.0.0.0/0, ::/0\n",
            CLIENT_PORTS + 63,
            key(lab, &server)
        ),
    )
    .expect("wg0.conf");
    WgServer { _server: job }
}

/// `wg-quick up`, and the host itself comes out at the server.
pub fn up(lab: &Lab) {
    quick("up").ok();
    wait_until("the host's tunnel", Duration::from_secs(10), || {
        [(SERVICE4, VPN4), (SERVICE6, VPN6)]
            .iter()
            .all(|(service, caller)| lab.probe(&["http", service]).json()["body"] == **caller)
    });
}

pub fn down() {
    quick("down").ok();
}

fn quick(verb: &str) -> Cmd {
    Cmd::new("wg-quick", &[verb, WG]).env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go")
}

/// When the link went by itself, `wg-quick down` refuses; what it would have taken away is still there.
pub fn down_by_hand(lab: &Lab) {
    lab.sh("for family in -4 -6; do
            ip $family rule del not fwmark 51820 table 51820; ip $family rule del table main suppress_prefixlength 0
        done
        nft delete table ip wg-quick-wg0; nft delete table ip6 wg-quick-wg0");
}
