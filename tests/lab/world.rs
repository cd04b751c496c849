//! The small internet: namespaces, links, addresses and services. See the map in [`crate`].

use std::cell::OnceCell;
use std::fs::{self, File, create_dir_all};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::guest::Guest;
use crate::leaks::Counters;
use crate::resolver::{Answers, Resolver};
use crate::run::{Cmd, Job, Out, wait_until};
use crate::{product, rootfs, tools};

pub const HOST4: &str = "192.168.178.2";
/// What the host's uplink may be given instead.
pub const HOST4_MOVED: &str = "192.168.178.3";
pub const HOST6: &str = "2001:db8:178::2";
pub const LAN4: &str = "192.168.178.50";
pub const LAN6: &str = "2001:db8:178::50";
pub const LAN_NET4: &str = "192.168.178.0/24";
pub const LAN_NET6: &str = "2001:db8:178::/64";
/// Echo on port 7 (TCP, UDP), HTTP on port 80.
pub const SERVICE4: &str = "198.51.100.80";
pub const SERVICE6: &str = "2001:db8:51::80";
pub const DNS4: &str = "198.51.100.53";
pub const DNS6: &str = "2001:db8:51::53";
pub const VPN4: &str = "203.0.113.10";
/// The net that the VPN servers are in.
pub const VPN_NET4: &str = "203.0.113.0/24";
pub const VPN6: &str = "2001:db8:113::10";
/// The router's side of the internet: whom the world sees when the host's own traffic goes out.
pub const ROUTER4: &str = "198.51.100.1";

/// A file system that belongs to this lab alone; everything the lab writes is here, so nothing is left on a disk.
pub const DIR: &str = "/run/lab";

/// A network namespace with a name in the lab's own /run/netns.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub fn add(name: &str) -> Self {
        Cmd::new("ip", &["netns", "add", name]).ok();
        let file = File::open(Path::new("/run/netns").join(name)).expect("the new namespace");
        let netns = Self { name: name.into(), file };
        netns.sh("ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
        netns
    }

    /// One that is there already.
    pub fn open(name: &str) -> Self {
        let file = File::open(Path::new("/run/netns").join(name)).expect("the namespace");
        Self { name: name.into(), file }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub fn file(&self) -> File {
        self.file.try_clone().expect("a file handle")
    }

    /// A shell script in this namespace; any failing line fails the test.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        Cmd::new("/bin/sh", &["-ec", script]).within(self).ok()
    }

    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        Cmd::new("nft", &["-f", "-"]).stdin(ruleset).within(self).ok();
    }

    /// One question by the probe, from this namespace.
    #[track_caller]
    pub fn probe(&self, args: &[&str]) -> Out {
        Cmd::new(rootfs::probe(), args).within(self).out()
    }
}

/// The lab. What is not in a named namespace happens on "the host", the machine under test.
pub struct Lab {
    pub router: Netns,
    pub lan: Netns,
    pub inet: Netns,
    pub vpn: Netns,
    outer_proc: File,
    counters: OnceCell<Counters>,
    tools: OnceCell<Guest>,
    services: Vec<Job>,
    dns: Resolver,
    init: Job,
}

impl Lab {
    /// Takes the calling thread into new namespaces and builds the internet in them.
    ///
    /// # Panics
    /// Without root, without a tool, or when the kernel refuses any of it.
    pub fn new() -> Self {
        tools::require(&["ip", "nft", "busybox", "dnsmasq"]);
        // Built, when it has to be, with the machine's own eyes: before the namespaces change.
        let probe = rootfs::probe();
        let outer_proc = File::open("/proc").expect("/proc");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).expect("new namespaces");
        private_mounts();
        let init = Cmd::new(probe, &["init"]).spawn();
        wait_until("process 1 of the lab", Duration::from_secs(5), || init.stdout().contains("ready"));
        own_sysfs();
        wire_host();
        let [router, lan, inet, vpn] = ["router", "lan", "inet", "vpn"].map(Netns::add);
        wire(&router, &lan, &inet, &vpn);
        for path in cgroups() {
            create_dir_all(path).expect("a control group");
        }
        let (counters, tools) = (OnceCell::new(), OnceCell::new());
        let dns = Resolver::start(Some(&inet), "dns", &[DNS4, DNS6], Answers::Always(SERVICE4));
        let mut lab = Self { router, lan, inet, vpn, outer_proc, counters, tools, services: Vec::new(), dns, init };
        lab.serve();
        lab.counters();
        lab.warm_up();
        lab
    }

    /// A directory of the lab's own for one purpose.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = Path::new(DIR).join(name);
        create_dir_all(&path).expect("a directory in the lab");
        path
    }

    /// The host's own nft and tunjail are those of this release from now on. One machine has one nft: that of Debian 12
    /// dies of what a newer one wrote.
    pub fn is_of(&self, guest: &Guest) {
        assert!(self.tools.set(guest.clone()).is_ok(), "the host has its release");
    }

    /// Whose nft and tunjail the host uses.
    pub fn tools(&self) -> &Guest {
        self.tools.get_or_init(Guest::own)
    }

    /// A shell script on the host; any failing line fails the test.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        Cmd::new("/bin/sh", &["-ec", script]).ok()
    }

    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        Cmd::new("nft", &["-f", "-"]).stdin(ruleset).ok();
    }

    /// One question by the probe, asked by the host itself.
    #[track_caller]
    pub fn probe(&self, args: &[&str]) -> Out {
        Cmd::new(rootfs::probe(), args).out()
    }

    /// The pid that a child of the test has inside the lab, where engines and hooks look for it.
    pub fn pid_inside(&self, job: &Job) -> u32 {
        let path = PathBuf::from(format!("{}/status", job.pid()));
        let status = nix::fcntl::openat(
            self.outer_proc.as_fd(),
            &path,
            nix::fcntl::OFlag::O_RDONLY,
            nix::sys::stat::Mode::empty(),
        )
        .map(File::from)
        .and_then(|file| std::io::read_to_string(file).map_err(|_| nix::Error::EIO))
        .expect("the status of a child");
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid in /proc/PID/status");
        line.split_whitespace().next_back().and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    pub fn counters(&self) -> &Counters {
        self.counters.get_or_init(|| Counters::place(&self.router))
    }

    /// Who asked the internet's resolver for a name, each time.
    pub fn askers(&self, name: &str) -> Vec<String> {
        self.dns.askers(name)
    }

    /// Links take up to a second to carry their first packet (the kernel defers carrier events, net/core/link_watch.c),
    /// and neighbours have to be found: both would be taken for a wall.
    fn warm_up(&self) {
        for addr in [SERVICE4, SERVICE6, LAN4, LAN6, VPN4, VPN6] {
            wait_until("the lab's links", Duration::from_secs(10), || {
                self.probe(&["ping", addr, "1"]).json()["ok"] == true
            });
        }
    }

    fn serve(&mut self) {
        let serve = |netns: &Netns, addresses: &[&str]| {
            let job = Cmd::new(rootfs::probe(), &[&["serve"], addresses].concat()).within(netns).spawn();
            wait_until("the lab's services", Duration::from_secs(5), || job.stdout().contains("ready"));
            job
        };
        self.services.push(serve(&self.inet, &[SERVICE4, SERVICE6]));
        self.services.push(serve(&self.lan, &[LAN4, LAN6]));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The kernel ends everything else in the pid namespace with its first process, which then waits until the test
        // has buried its own children in there.
        self.services.clear();
        self.dns.end();
        self.tools.take();
        self.init.end();
        for path in cgroups() {
            remove_cgroup(&path);
        }
    }
}

/// The name of this lab's control group, below which all engines put theirs: labs run beside each other.
pub fn cgroup() -> String {
    format!("tunjail-lab-{}", std::process::id())
}

fn cgroups() -> impl Iterator<Item = PathBuf> {
    let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    controllers
        .filter(|entry| entry.path().is_dir() && !entry.path().is_symlink())
        .map(|entry| entry.path().join(cgroup()))
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

fn bind(source: Option<&str>, target: &str, kind: Option<&str>, flags: MsFlags, data: Option<&str>) {
    mount(source, target, kind, flags, data).unwrap_or_else(|error| panic!("mount on {target}: {error}"));
}

/// What the lab may write to: nothing of it arrives outside.
pub const OWN_DIRS: [&str; 5] = ["etc", "var", "opt", "root", "usr"];

/// No mount of the lab is seen outside, and no write to one of [`OWN_DIRS`] arrives there.
fn private_mounts() {
    bind(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None);
    bind(Some("lab"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"));
    create_dir_all("/run/netns").expect("/run/netns");
    for dir in OWN_DIRS {
        let (upper, work) = (format!("{DIR}/over/{dir}"), format!("{DIR}/work/{dir}"));
        create_dir_all(&upper).and_then(|()| create_dir_all(&work)).expect("overlay directories");
        let data = format!("lowerdir=/{dir},upperdir={upper},workdir={work}");
        bind(Some("lab"), &format!("/{dir}"), Some("overlay"), MsFlags::empty(), Some(&data));
    }
    // Podman keeps its locks there, by the user's number.
    bind(Some("shm"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("mode=1777"));
    // The machine's resolver is not the lab's.
    fs::write("/etc/resolv.conf", format!("nameserver {DNS4}\n")).expect("/etc/resolv.conf");
    let _ = fs::remove_dir_all("/etc/tunjail");
    product::install();
}

/// /sys shows the links of the namespace it was mounted in, so the lab wants its own; the control groups move over.
fn own_sysfs() {
    create_dir_all("/run/lab/cgroup").expect("a directory");
    // crun takes the machine for a cgroup v2 hybrid when this one is there, and fails.
    let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
    bind(Some("/sys/fs/cgroup"), "/run/lab/cgroup", None, MsFlags::MS_BIND | MsFlags::MS_REC, None);
    bind(Some("lab"), "/sys", Some("sysfs"), MsFlags::empty(), None);
    bind(Some("/run/lab/cgroup"), "/sys/fs/cgroup", None, MsFlags::MS_BIND | MsFlags::MS_REC, None);
    umount2("/run/lab/cgroup", MntFlags::MNT_DETACH).expect("the spare view of the control groups gone");
}

fn wire_host() {
    // As on any host that runs containers; and no waiting for duplicate addresses on links that the lab made itself.
    let script = "ip link set lo up
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad";
    Cmd::new("/bin/sh", &["-ec", script]).ok();
}

fn wire(router: &Netns, lan: &Netns, inet: &Netns, vpn: &Netns) {
    let script = format!(
        "ip link add eth0 type veth peer name uplink netns router
        ip -n lan link add eth0 type veth peer name lan0 netns router
        ip -n router link add wan0 type veth peer name eth0 netns inet
        ip -n vpn link add eth0 type veth peer name vpn0 netns inet
        ip addr add {HOST4}/24 dev eth0; ip addr add {HOST6}/64 dev eth0 nodad; ip link set eth0 up"
    );
    Cmd::new("/bin/sh", &["-ec", &script]).ok();
    router.sh(&format!(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        ip link add lan type bridge
        for port in uplink lan0; do ip link set $port master lan up; done
        ip addr add 192.168.178.1/24 dev lan; ip addr add 2001:db8:178::1/64 dev lan nodad; ip link set lan up
        ip addr add {ROUTER4}/24 dev wan0; ip addr add 2001:db8:51::1/64 dev wan0 nodad; ip link set wan0 up
        ip route add 203.0.113.0/24 via {SERVICE4}; ip route add 2001:db8:113::/64 via {SERVICE6}"
    ));
    // As a home router does: one address for the whole LAN; IPv6 is routed, but nobody calls in.
    router.nft(
        "table inet home {
            chain out { type nat hook postrouting priority 100
                meta nfproto ipv4 oifname wan0 masquerade
            }
            chain in { type filter hook forward priority 0
                iifname wan0 ct state new drop
            }
        }",
    );
    lan.sh(&format!(
        "ip addr add {LAN4}/24 dev eth0; ip addr add {LAN6}/64 dev eth0 nodad; ip link set eth0 up
        ip route add default via 192.168.178.1; ip route add default via 2001:db8:178::1"
    ));
    inet.sh(&format!(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        ip addr add {SERVICE4}/24 dev eth0; ip addr add {SERVICE6}/64 dev eth0 nodad
        ip addr add {DNS4}/24 dev eth0; ip addr add {DNS6}/64 dev eth0 nodad; ip link set eth0 up
        ip addr add 203.0.113.1/24 dev vpn0; ip addr add 2001:db8:113::1/64 dev vpn0 nodad; ip link set vpn0 up
        ip route add 2001:db8:178::/64 via 2001:db8:51::1"
    ));
    vpn.sh(&format!(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        ip addr add {VPN4}/24 dev eth0; ip addr add {VPN6}/64 dev eth0 nodad; ip link set eth0 up
        ip route add default via 203.0.113.1; ip route add default via 2001:db8:113::1"
    ));
    Cmd::new("/bin/sh", &["-ec", "ip route add default via 192.168.178.1; ip route add default via 2001:db8:178::1"])
        .ok();
}
