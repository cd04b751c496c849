//! WireGuard as the exit: wireguard-go (this kernel may have none of its own) with wg and wg-quick, and two peers.
//!
//! The first peer, `wgs0` in the namespace `vpn`, is the provider and masquerades; the second, `wgs1`, is an office with
//! a net of its own behind it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rstest::rstest;
use serde_json::Value;

use crate::bridge::Bridge;
use crate::engine::Container;
use crate::engine::oci::{Bundle, Oci};
use crate::product::TUNJAIL;
use crate::run::{Cmd, Job, answer, wait_until};
use crate::scene::Traffic;
use crate::tools;
use crate::vpn::{link_exists, next_ports};
use crate::world::{HOST4, HOST4_MOVED, HOST6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

const WG: &str = "wg0";
const CONF: &str = "/etc/wireguard/wg0.conf";
/// What the second peer alone has.
const OFFICE4: &str = "10.77.0.1";
const JAIL: &str = r#"[jail.vpn]
subnets = ["172.18.0.0/16", "fd00:18::/64"]
exit = "wg0"
"#;

struct Keys {
    private: String,
    public: String,
}

impl Keys {
    fn new() -> Self {
        let private = Cmd::new("wg", &["genkey"]).ok();
        let public = Cmd::new("wg", &["pubkey"]).stdin(private.clone()).ok();
        Self { private: private.trim().into(), public: public.trim().into() }
    }
}

/// Both peers, and a client's configuration that names both. Fields in the order in which they are taken down.
struct Scene {
    peers: Vec<Job>,
    bridge: Bridge,
    lab: Lab,
}

impl Scene {
    /// The client's configuration is the example with keys, ports and the second peer put in.
    fn new() -> Self {
        tools::require(&["wg", "wg-quick", "wireguard-go"]);
        let lab = Lab::new();
        lab.configure(JAIL);
        let client = Keys::new();
        let mut example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/wireguard/wg0.conf"))
            .expect("the example");
        let mut peers = Vec::new();
        for (name, port, own) in [("wgs0", 51820, "10.8.0.1/24"), ("wgs1", 51821, "10.77.0.1/24")] {
            let server = Keys::new();
            peers.push(peer(&lab, name, port, own, &server, &client));
            if name == "wgs0" {
                example = example.replace("YOUR-PRIVATE-KEY", &client.private);
                example = example.replace("THE-SERVERS-PUBLIC-KEY", &server.public);
            } else {
                example += &format!(
                    "\n[Peer]\nPublicKey = {}\nEndpoint = {VPN4}:{port}\nAllowedIPs = 10.77.0.0/24\n",
                    server.public
                );
            }
        }
        lab.vpn.nft(&format!(
            "table inet wg {{ chain out {{ type nat hook postrouting priority 100
                oifname eth0 ip saddr 10.8.0.0/24 snat ip to {VPN4}
                oifname eth0 ip6 saddr 2001:db8:8::/64 snat ip6 to {VPN6}
            }}
            }}"
        ));
        fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{VPN4} vpn.example.com\n")).expect("/etc/hosts");
        fs::create_dir_all("/etc/wireguard").expect("/etc/wireguard");
        fs::write(CONF, example).expect("the client's configuration");
        lab.sh(&format!("chmod 600 {CONF}"));
        let bridge = Bridge::new(&lab);
        Self { peers, bridge, lab }
    }

    fn up(&self) {
        next_ports();
        Cmd::new("wg-quick", &["up", WG]).ok();
    }

    fn down(&self) {
        Cmd::new("wg-quick", &["down", WG]).ok();
        wait_until("the tunnel gone", Duration::from_secs(5), || !link_exists(WG));
    }

    /// wireguard-go's process, by its number inside the lab.
    fn client(&self) -> String {
        let line = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let own = pids.find(|pid| line(pid).split(|byte| *byte == 0).any(|word| word == WG.as_bytes()));
        own.expect("wireguard-go runs")
    }

    fn member(&self, name: &str, n: u8) -> Oci {
        let netns = self.bridge.plug(name, n);
        Oci::run(&self.lab, "runc", name, &Bundle::new(&netns).jailed(&["--jail", "vpn"]))
    }

    fn status(&self) -> Value {
        let text = self.lab.tunjail_ok(&["status", "--json"]);
        let report: Value = serde_json::from_str(&text).expect("JSON from status");
        report["jails"][0]["exits"][0].clone()
    }

    /// What becomes of a container without a jail when the exit goes: counted.
    fn control(&self, loss: Loss) -> u64 {
        let netns = self.bridge.plug("control", 200);
        let mut plain = Oci::run(&self.lab, "runc", "control", &Bundle::new(&netns));
        self.up();
        self.lab.recipe_by(WG);
        self.lab.sh(&format!(
            "nft add table ip wg; nft add chain ip wg out '{{ type nat hook postrouting priority 90; }}'
            nft add rule ip wg out oifname {WG} masquerade"
        ));
        self.lab.reset_leaks();
        let mut traffic = Traffic::start(&plain);
        traffic.wait_flowing();
        loss.happen(self);
        wait_until("the control to leak", Duration::from_secs(5), || {
            let leaks = self.lab.leaks();
            leaks.v4 > 100 && leaks.v6 > 100
        });
        let seen = self.lab.leaks().total();
        traffic.end(&plain);
        plain.remove();
        loss.mend(self);
        self.down();
        self.lab.no_recipe();
        self.lab.sh("nft delete table ip wg");
        self.lab.reset_leaks();
        seen
    }
}

/// A peer in the namespace `vpn`, which takes whatever the client sends.
fn peer(lab: &Lab, name: &str, port: u16, own: &str, keys: &Keys, client: &Keys) -> Job {
    let mut job = Cmd::new("wireguard-go", &["-f", name]).within(&lab.vpn).spawn();
    wait_until("wireguard-go", Duration::from_secs(5), || {
        assert!(!job.ended(), "wireguard-go ended: {}", job.stderr());
        Path::new(&format!("/var/run/wireguard/{name}.sock")).exists()
    });
    let config = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {port}\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.8.0.2/32, 2001:db8:8::2/128\n",
        keys.private, client.public
    );
    Cmd::new("wg", &["setconf", name, "/dev/stdin"]).stdin(config).within(&lab.vpn).ok();
    let more = match name {
        "wgs0" => "ip addr add 2001:db8:8::1/64 dev wgs0",
        _ => "ip route add 10.8.0.2 dev wgs1 table 77; ip rule add from 10.77.0.1 lookup 77",
    };
    lab.vpn.sh(&format!("ip addr add {own} dev {name}; ip link set {name} up; {more}"));
    job
}

/// How the exit goes.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Killed,
    Quick,
    LinkDown,
    LinkDeleted,
}

impl Loss {
    fn happen(self, scene: &Scene) {
        match self {
            Self::Killed => {
                scene.lab.sh(&format!("kill -9 {}", scene.client()));
                wait_until("the tunnel gone", Duration::from_secs(5), || !link_exists(WG));
            }
            Self::Quick => scene.down(),
            Self::LinkDown => drop(scene.lab.sh(&format!("ip link set {WG} down"))),
            Self::LinkDeleted => drop(scene.lab.sh(&format!("ip link del {WG}"))),
        }
    }

    fn mend(self, scene: &Scene) {
        if matches!(self, Self::LinkDown) {
            scene.down();
        }
        scene.up();
    }
}

fn index() -> String {
    fs::read_to_string(format!("/sys/class/net/{WG}/ifindex")).expect("the exit's index")
}

fn comes_out_at_the_server(member: &dyn Container) {
    assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4);
    assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6);
}

#[rstest]
#[case::killed("wireguard-go-sigkill", Loss::Killed)]
#[case::wg_quick_down("wg-quick-down", Loss::Quick)]
#[case::link_down("wg-link-down", Loss::LinkDown)]
#[case::link_deleted("wg-link-deleted", Loss::LinkDeleted)]
fn nothing_leaves_when_the_tunnel_goes_and_traffic_returns_with_it(#[case] case: &str, #[case] loss: Loss) {
    let scene = Scene::new();
    let control = scene.control(loss);
    scene.up();
    let member = scene.member("m1", 2);
    scene.lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    let before = index();
    loss.happen(&scene);
    traffic.press();
    scene.lab.assert_no_leak("wireguard", case, control);
    loss.mend(&scene);
    assert_ne!(index(), before, "the exit was re-created");
    traffic.wait_floods_flowing();
    comes_out_at_the_server(&member);
    scene.lab.assert_no_leak("wireguard", &format!("{case}-return"), control);
    traffic.end(&member);
}

/// The example with wg-quick; two peers; and what `status` says of the handshake.
#[test]
fn the_example_carries_the_jail_alone_to_both_peers() {
    let scene = Scene::new();
    let lab = &scene.lab;
    let before = lab.sh("ip rule; ip -6 rule; ip route show table main; nft list ruleset");
    assert!(scene.status()["wireguard"].is_null() && scene.status()["present"] == false);
    scene.up();
    let changed = lab.sh("ip rule; ip -6 rule; ip route show table main; nft list ruleset");
    assert_eq!(changed, before, "wg-quick leaves the host's ways alone");
    let link = lab.sh(&format!("ip -d link show {WG}"));
    assert!(link.contains("POINTOPOINT") && link.contains("NOARP") && link.contains("tun type tun"), "{link}");
    let exit = scene.status();
    assert_eq!((&exit["up"], &exit["v4"], &exit["v6"]), (&true.into(), &true.into(), &true.into()), "{exit}");
    assert!(exit["wireguard"].is_object(), "{exit}");

    let member = scene.member("m1", 2);
    lab.reset_leaks();
    comes_out_at_the_server(&member);
    assert_eq!(answer(&member.probe(&["ping", OFFICE4, "3"])), "3");
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), ROUTER4, "the host keeps its own way");
    assert_eq!(answer(&lab.probe(&["http", SERVICE6])), HOST6);
    let transfers = Cmd::new("wg", &["show", WG, "transfer"]).ok();
    let counts = transfers.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    assert_eq!(counts.filter(|bytes| *bytes > 200).count(), 4, "both peers, both ways: {transfers}");
    let age = scene.status()["wireguard"]["last_handshake"].as_u64();
    assert!(age.is_some_and(|age| age < 60), "{age:?}");
    let told = lab.tunjail_ok(&["status"]);
    assert!(told.contains("exit wg0: up, IPv4 yes, IPv6 yes, last handshake "), "{told}");

    // It counts as up by its link, whoever answers at the other end; and a wireguard-go that hangs hangs nobody else.
    lab.sh(&format!("kill -STOP {}", scene.client()));
    let start = Instant::now();
    let exit = scene.status();
    assert!(exit["up"] == true && exit["wireguard"].is_null(), "{exit}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    lab.sh(&format!("kill -CONT {}", scene.client()));
    scene.down();
    assert!(scene.status()["wireguard"].is_null());
    scene.up();

    // Without wg there is no figure, and no failure.
    lab.sh("rm /usr/bin/wg");
    let exit = scene.status();
    assert!(exit["up"] == true && exit["wireguard"].is_null(), "{exit}");
}

/// No PostUp, no tunjail exit: the interface is there before the wall, or before the container.
#[test]
fn an_interface_that_is_there_needs_no_wiring() {
    let scene = Scene::new();
    let lab = &scene.lab;
    lab.sh(&format!("sed -i '/tunjail/d' {CONF}"));
    scene.up();
    lab.tunjail_ok(&["up"]);
    let mut member = scene.member("m1", 2);
    comes_out_at_the_server(&member);
    member.remove();
    lab.tunjail_ok(&["down"]);

    // Made by hand, after the wall; and as long as nobody answers there is no handshake.
    scene.down();
    lab.tunjail_ok(&["up"]);
    scene.peers.iter().for_each(|peer| peer.signal(Signal::SIGSTOP));
    next_ports();
    lab.sh(&format!(
        "wireguard-go {WG}
        wg-quick strip {WG} > /run/lab/wg0.stripped; wg setconf {WG} /run/lab/wg0.stripped
        ip addr add 10.8.0.2/32 dev {WG}; ip addr add 2001:db8:8::2/128 dev {WG}; ip link set {WG} up"
    ));
    let exit = scene.status();
    assert!(exit["up"] == true && exit["wireguard"]["last_handshake"].is_null(), "{exit}");
    assert!(lab.tunjail_ok(&["status"]).contains("exit wg0: up, IPv4 yes, IPv6 yes, no handshake yet"));
    scene.peers.iter().for_each(|peer| peer.signal(Signal::SIGCONT));
    let member = scene.member("m2", 3);
    comes_out_at_the_server(&member);

    // Where `tunjail watch` runs, one that comes back meanwhile needs none either.
    let mut watch = Cmd::new(TUNJAIL, &["watch"]).spawn();
    scene.down();
    assert_eq!(member.probe(&["http", SERVICE4]).json()["ok"], false);
    scene.up();
    wait_until("the exit open again", Duration::from_secs(5), || {
        assert!(!watch.ended(), "{}", watch.stderr());
        member.probe(&["http", SERVICE4]).json()["body"] == VPN4
    });
    comes_out_at_the_server(&member);
}

/// The client's uplink gets another address, then the server does; each follows the other by what it sends.
#[test]
fn the_tunnel_roams_and_the_member_stays_in_it() {
    let scene = Scene::new();
    let lab = &scene.lab;
    // No NAT and no firewall in between: a server behind its own address change could not call in otherwise.
    lab.router.sh("nft insert rule inet home out ip daddr 203.0.113.0/24 accept; nft flush chain inet home in");
    lab.inet.sh(&format!("ip route add 192.168.178.0/24 via {ROUTER4}"));
    let control = scene.control(Loss::Killed);
    scene.up();
    let member = scene.member("m1", 2);
    lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    let seen = || lab.vpn.sh("wg show wgs0 endpoints");
    assert!(seen().contains(HOST4), "{}", seen());

    lab.sh(&format!(
        "ip addr del {HOST4}/24 dev eth0; ip addr add {HOST4_MOVED}/24 dev eth0
        ip route replace default via 192.168.178.1"
    ));
    // wireguard-go sends from the address that it had until 15 s without an answer make it look for another
    // (device/timers.go, expiredNewHandshake); nothing of the jail waits for more than that.
    wait_until("the server to follow", Duration::from_secs(30), || seen().contains(HOST4_MOVED));
    traffic.wait_floods_flowing();
    lab.assert_no_leak("wireguard", "client-roams", control);

    let moved = "203.0.113.11";
    lab.vpn.sh(&format!(
        "ip addr del {VPN4}/24 dev eth0; ip addr add {moved}/24 dev eth0
        nft flush chain inet wg out; nft add rule inet wg out oifname eth0 ip saddr 10.8.0.0/24 snat ip to {moved}
        nft add rule inet wg out oifname eth0 ip6 saddr 2001:db8:8::/64 snat ip6 to {VPN6}
        ip route replace default via 203.0.113.1"
    ));
    // A new mark makes this wireguard-go look for its own address at once (device/device.go, BindSetMark), and it has
    // something to say.
    lab.vpn.sh("wg set wgs0 fwmark 7");
    lab.vpn.probe(&["udp-from", "10.8.0.1", "10.8.0.2", "9", "3"]);
    let known = || Cmd::new("wg", &["show", WG, "endpoints"]).ok();
    wait_until("the client to follow", Duration::from_secs(10), || known().contains(moved));
    traffic.wait_floods_flowing();
    assert_eq!(answer(&member.probe(&["http", SERVICE4])), moved);
    lab.assert_no_leak("wireguard", "server-roams", control);

    // One that does not come back at all: the exit is still up, and nothing leaves past it.
    scene.peers.iter().for_each(|peer| peer.signal(Signal::SIGSTOP));
    traffic.press();
    assert_eq!(scene.status()["up"], true);
    lab.assert_no_leak("wireguard", "server-silent", control);
    traffic.end(&member);
}
