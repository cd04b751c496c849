//! The exit: a real OpenVPN, server in the internet and client on the host. The server pushes redirect-gateway, as VPN
//! providers do; the client does not take it, as tunjail asks.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::run::{Cmd, Job, wait_until};
use crate::world::{DIR, HOST4, Lab, VPN4, VPN6};
use crate::{pki, tools};

pub const TUN: &str = "tun0";
/// The client's own ports, 64 of them from here: what leaves from one of them to the server is the transport, all else
/// is a leak. Each start takes the next, because a server that still knows a killed client's port makes the new one wait.
pub const CLIENT_PORTS: u16 = 51200;
/// OpenVPN's, and WireGuard's two.
pub const SERVER_PORTS: [u16; 3] = [1194, 51820, 51821];
/// The addresses inside the tunnel.
pub const TUNNEL_NET4: &str = "10.8.0.0/24";
pub const TUNNEL_NET6: &str = "2001:db8:8::/64";

const PORTS_OF_A_CLIENT: u16 = 16;
/// What a server may give to its clients.
const TUNNELS4: &str = "10.8.0.0/15";
const TUNNELS6: &str = "2001:db8:8::/47";
/// What the server keeps for each client.
const OF_CLIENTS: &str = "openvpn-clients";

/// The server. Stops when dropped.
pub struct Vpn {
    pki: PathBuf,
    server: Job,
    /// How many clients were set up: each takes its own ports.
    clients: Cell<u16>,
}

impl Vpn {
    pub fn start_server(lab: &Lab) -> Self {
        Self::start_server_as(lab, |config| config)
    }

    /// With another configuration, made of the usual one.
    pub fn start_server_as(lab: &Lab, change: impl FnOnce(String) -> String) -> Self {
        tools::require(&["openvpn", "openssl"]);
        let pki = pki::make(lab);
        let config = format!(
            "dev {TUN}\ndev-type tun\nproto udp4\nlocal {VPN4}\nport 1194\ntopology subnet\nserver 10.8.0.0 255.255.255.0\n\
             server-ipv6 2001:db8:8::/64\nkeepalive 1 60\nexplicit-exit-notify 1\ndh none\ntls-server\ndisable-dco\n\
             push \"redirect-gateway def1 ipv6\"\npush \"dhcp-option DNS 10.8.0.1\"\n\
             client-config-dir {}\n{}",
            lab.dir(OF_CLIENTS).display(),
            identity(&pki, "server")
        );
        lab.vpn.nft(&format!(
            "table inet vpn {{ chain out {{ type nat hook postrouting priority 100
                oifname eth0 ip saddr {TUNNELS4} snat ip to {VPN4}
                oifname eth0 ip6 saddr {TUNNELS6} snat ip6 to {VPN6}
            }}
            }}"
        ));
        let mut server = start("server", &change(config), |cmd| cmd.within(&lab.vpn));
        wait_until("the OpenVPN server", Duration::from_secs(10), || done(&mut server));
        Self { pki, server, clients: Cell::new(0) }
    }

    /// The next time that the client comes it gets these addresses, of [`TUNNEL_NET4`] and [`TUNNEL_NET6`].
    pub fn gives(&self, lab: &Lab, v4: &str, v6: &str) {
        let lines = format!("ifconfig-push {v4} 255.255.255.0\nifconfig-ipv6-push {v6}/64\n");
        std::fs::write(lab.dir(OF_CLIENTS).join("client"), lines).expect("the client's addresses");
    }

    /// The client as an administrator sets it up, `up`, `route-up` and `down` being `SCRIPT up` and `SCRIPT down`; not started.
    pub fn client(&self, script: Option<&str>) -> Client {
        self.client_as(script, |config| config)
    }

    /// With another configuration, made of the usual one.
    pub fn client_as(&self, script: Option<&str>, change: impl FnOnce(String) -> String) -> Client {
        let scripts = script
            .map(|script| {
                format!("script-security 2\nup \"{script} up\"\nroute-up \"{script} up\"\ndown \"{script} down\"\n")
            })
            .unwrap_or_default();
        let config = format!(
            "client\ndev {TUN}\ndev-type tun\nproto udp4\nremote {VPN4} 1194\nlocal {HOST4}\n\
             pull-filter ignore redirect-gateway\npull-filter ignore dhcp-option\nremote-cert-tls server\n\
             connect-retry 1 1\nresolv-retry 1\nexplicit-exit-notify 1\ndisable-dco\n{scripts}{}",
            identity(&self.pki, "client")
        );
        let starts = self.clients.replace(self.clients.get() + 1) * PORTS_OF_A_CLIENT;
        Client { config: change(config), starts, job: None }
    }

    /// In good order: its clients are told.
    pub fn stop(self) {
        self.server.signal(Signal::SIGTERM);
        self.server.finish(Duration::from_secs(10));
    }
}

/// The client on the host.
pub struct Client {
    config: String,
    starts: u16,
    job: Option<Job>,
}

impl Client {
    pub fn start(&mut self) {
        assert!(self.job.is_none(), "the client runs already");
        assert!(self.starts < 64, "clients were started too often");
        let mut config = self.config.clone();
        match config.contains("nobind\n") {
            true => next_ports(),
            false => config += &format!("lport {}\n", CLIENT_PORTS + self.starts),
        }
        self.starts += 1;
        self.job = Some(start("client", &config, |cmd| cmd));
    }

    /// Waits for the tunnel, its `up` script included.
    #[track_caller]
    pub fn wait_up(&mut self) {
        let job = self.job.as_mut().expect("the client was started");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done(job) {
            assert!(Instant::now() < deadline, "the tunnel does not come:\n{}", job.stdout());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn start_and_wait(&mut self) {
        self.start();
        self.wait_up();
    }

    /// A restart that it is told of from outside, until the tunnel is there again.
    #[track_caller]
    pub fn restart(&mut self, signal: Signal) {
        let before = self.completions();
        next_ports();
        self.job.as_ref().expect("the client runs").signal(signal);
        self.wait_reconnected(before);
    }

    /// Waits until it is connected once more than it was when it had been `before` times.
    #[track_caller]
    pub fn wait_reconnected(&mut self, before: usize) {
        let job = self.job.as_ref().expect("the client runs");
        let deadline = Instant::now() + Duration::from_secs(20);
        while completions(job) <= before {
            assert!(Instant::now() < deadline, "the tunnel does not come again:\n{}", job.stdout());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How often it was connected so far.
    pub fn completions(&self) -> usize {
        self.job.as_ref().map_or(0, completions)
    }

    /// The way a VPN dies at night: no `down` script, the interface goes with its owner.
    pub fn sigkill(&mut self) {
        let job = self.job.take().expect("the client runs");
        job.signal(Signal::SIGKILL);
        job.finish(Duration::from_secs(5));
        wait_until("the tunnel gone", Duration::from_secs(5), || !link_exists(TUN));
    }

    /// In good order: the `down` script runs. Returns what the client said.
    pub fn stop(&mut self) -> String {
        let job = self.job.take().expect("the client runs");
        job.signal(Signal::SIGTERM);
        let out = job.finish(Duration::from_secs(10));
        wait_until("the tunnel gone", Duration::from_secs(5), || !link_exists(TUN));
        out.stdout
    }

    /// Ends it however it stands: running, hung on a deleted interface, or ended by itself.
    pub fn end(&mut self) {
        self.job = None;
        wait_until("the tunnel gone", Duration::from_secs(5), || !link_exists(TUN));
    }
}

/// A client without a port of its own, as most are.
pub fn without_a_port(config: &str) -> String {
    config.replace(&format!("local {HOST4}\n"), "nobind\n")
}

/// The host's programs get one of the next few of [`CLIENT_PORTS`] when they ask for any. To be called before each
/// connection of a client that takes any: a server takes one that comes from its old port for the old one for a while.
pub fn next_ports() {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    const FEW: u16 = 4;
    let first = CLIENT_PORTS + FEW * TAKEN.fetch_add(1, Ordering::Relaxed);
    assert!(first + FEW <= CLIENT_PORTS + 64, "clients were started too often");
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{first} {}", first + FEW - 1))
        .expect("the host's range of ports");
}

/// Whether the host has a link of that name.
pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn identity(pki: &Path, name: &str) -> String {
    let dir = pki.display();
    format!("ca {dir}/ca.crt\ncert {dir}/{name}.crt\nkey {dir}/{name}.key\n")
}

fn start(name: &str, config: &str, place: impl FnOnce(Cmd) -> Cmd) -> Job {
    let path = Path::new(DIR).join(format!("{name}.conf"));
    std::fs::write(&path, config).expect("an OpenVPN configuration");
    place(Cmd::new("openvpn", &["--config", &path.to_string_lossy()])).spawn()
}

#[track_caller]
fn done(job: &mut Job) -> bool {
    assert!(!job.ended(), "OpenVPN ended:\n{}", job.stdout());
    completions(job) > 0
}

fn completions(job: &Job) -> usize {
    job.stdout().matches("Initialization Sequence Completed").count()
}
