//! Where it is measured: hosts in network namespaces, each with a member on a bridge, an exit and a sink behind it.
//!
//! ```text
//! member eth0 ─ veth vpn (bridge) host exit0 ─ veth sink0 sink
//! ```
//! All hosts have what an engine puts there, a rule that masquerades. One has tunjail's wall besides, one the recipe's
//! rules, and the plain ones the one `ip rule` that leads a member's packets to the exit.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;
use tempfile::TempDir;
use tunjail::kernel::netns::Netns;
use tunjail::model::names::ContainerId;
use tunjail::store::Store;

use crate::crowd::Identity;

pub const SINK_LINK: &str = "sink0";
pub const SINKS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1))];

const CONFIG: &str = "[jail.vpn]
subnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]
exit = \"exit0\"
gateway = [\"192.0.2.1\", \"2001:db8:1::1\"]
allow = [\"192.168.178.0/24\"]
bridge = \"vpn\"
";

/// The host's side: the members' bridge (with a MAC of its own, or it would change with its ports), the exit, and a home network with the host's own way out.
const HOST: &str = "link set lo up
link add vpn address 02:42:ac:12:00:01 type bridge
addr add 172.18.0.1/16 dev vpn
addr add fd00:18::1/64 dev vpn nodad
link set vpn up
addr add 192.0.2.2/24 dev exit0
addr add 2001:db8:1::2/64 dev exit0 nodad
link set exit0 up
link add eth0 type veth peer name eth0-peer
addr add 192.168.178.2/24 dev eth0
link set eth0 up
link set eth0-peer up
route add default via 192.168.178.1
";

const SINK: &str = "link set lo up
addr add 192.0.2.1/24 dev sink0
addr add 2001:db8:1::1/64 dev sink0 nodad
addr add 198.51.100.1/32 dev lo
addr add 2001:db8:2::1/128 dev lo nodad
link set sink0 up
";

/// The datagrams have arrived when the sink's link counted them; nobody reads them.
const SINK_RULES: &str =
    "table inet sink { chain in { type filter hook prerouting priority raw; udp dport 9 drop; }; }\n";

const ENGINE: &str = "
iptables -t nat -A POSTROUTING -s 172.18.0.0/16 ! -o vpn -j MASQUERADE
ip6tables -t nat -A POSTROUTING -s fd00:18::/64 ! -o vpn -j MASQUERADE
";

/// Policy routing, with nothing that would hold anybody.
const PLAIN: &str = "
ip rule add from 172.18.0.0/16 lookup 100 priority 700
ip route add 172.18.0.0/16 dev vpn table 100
ip route add default via 192.0.2.1 dev exit0 table 100
ip -6 rule add from fd00:18::/64 lookup 100 priority 700
ip -6 route add fd00:18::/64 dev vpn table 100
ip -6 route add default via 2001:db8:1::1 dev exit0 table 100
";

/// The recipe as its users have it, beside what Docker 20.10 has in the forward hook for its own bridge and for `vpn`.
/// It knows nothing of IPv6.
const RECIPE: &str = "
iptables -P FORWARD DROP
iptables -N DOCKER
iptables -N DOCKER-ISOLATION-STAGE-1
iptables -N DOCKER-ISOLATION-STAGE-2
iptables -N DOCKER-USER
for bridge in docker0 vpn; do
    iptables -I FORWARD -i $bridge -o $bridge -j ACCEPT
    iptables -I FORWARD -i $bridge ! -o $bridge -j ACCEPT
    iptables -I FORWARD -o $bridge -j DOCKER
    iptables -I FORWARD -o $bridge -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables -A DOCKER-ISOLATION-STAGE-1 -i $bridge ! -o $bridge -j DOCKER-ISOLATION-STAGE-2
    iptables -A DOCKER-ISOLATION-STAGE-2 -o $bridge -j DROP
done
iptables -I FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables -I FORWARD -j DOCKER-USER
iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
iptables -A DOCKER-USER -j RETURN
ip rule add from 172.18.0.0/16 lookup 100
ip route add 172.18.0.0/16 dev vpn table 100
ip route add 192.168.178.0/24 dev eth0 table 100
ip route add 192.0.2.0/24 dev exit0 table 100
ip route add 0.0.0.0/1 via 192.0.2.1 dev exit0 table 100
ip route add 128.0.0.0/1 via 192.0.2.1 dev exit0 table 100
iptables -I DOCKER-USER -i vpn ! -o exit0 -j REJECT
iptables -I DOCKER-USER -i vpn -o vpn -j RETURN
iptables -I DOCKER-USER -i vpn -d 192.168.178.0/24 -j RETURN
iptables -I DOCKER-USER -s 192.168.178.0/24 -o vpn -j RETURN
iptables -t nat -A POSTROUTING -s 172.18.0.0/16 -o exit0 -j MASQUERADE
";

/// What a host has besides what every host has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Recipe,
    Jail,
}

pub struct Host {
    netns: Netns,
    pub member: Member,
    pub sink: Member,
}

/// A process with a network namespace of its own; on a bridge when it is a container's.
pub struct Member {
    pub id: ContainerId,
    pub netns: Netns,
    process: Child,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The namespaces, and this process's own as the host that has the jail.
pub struct Lab {
    tunjail: PathBuf,
    work: TempDir,
}

impl Lab {
    pub fn build() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "needs root, to make network namespaces");
        let tunjail = std::env::var_os("TUNJAIL").map_or_else(|| env!("CARGO_BIN_EXE_tunjail").into(), PathBuf::from);
        let lab = Self { tunjail, work: tempfile::tempdir()? };
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        // /run and /etc are this process's own from here on.
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).context("tmpfs on /run")?;
        let etc = lab.path("etc");
        sh(&format!("cp -a /etc {}", etc.display()))?;
        mount(Some(&etc), "/etc", none, MsFlags::MS_BIND, none).context("a copy of /etc on /etc")?;
        fs::write(lab.path("tunjail.toml"), CONFIG)?;
        Ok(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// A host, its first member and its sink. The one with the jail is this process's own namespace, because tunjail's
    /// records are this process's own too.
    pub fn host(&self, kind: Kind) -> Result<Host> {
        let away = match kind {
            Kind::Jail => None,
            _ => Some(alone("host")?),
        };
        let netns = match &away {
            None => Netns::own()?,
            Some(host) => Netns::of_process(host.pid())?,
        };
        let sink = alone("sink")?;
        let member = within(&netns, || {
            let pid = sink.pid();
            ip(&format!("link add exit0 type veth peer name {SINK_LINK} netns {pid}\n{HOST}"))?;
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
            sh(ENGINE)?;
            match kind {
                Kind::Plain => sh(PLAIN)?,
                Kind::Recipe => sh(RECIPE)?,
                Kind::Jail => self.tunjail(&["up", "vpn"], None)?,
            }
            self.member(0)
        })?;
        within(&sink.netns, || {
            ip(SINK)?;
            feed("nft", &["-f", "-"], SINK_RULES)
        })?;
        if kind == Kind::Jail {
            self.enrol(&member)?;
        }
        Ok(Host { netns, member, sink })
    }

    /// The container with this number on the bridge of the namespace that this is called in; not enrolled yet.
    pub fn member(&self, number: u16) -> Result<Member> {
        let Identity { id, veth, mac, v4, v6 } = Identity::of(number);
        let member = alone(&id)?;
        let pid = member.pid();
        ip(&format!(
            "link add {veth} type veth peer name eth0 address {mac} netns {pid}\nlink set {veth} master vpn up\n"
        ))?;
        within(&member.netns, || {
            ip(&format!(
                "link set lo up\naddr add {v4}/16 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via 172.18.0.1\nroute add default via fd00:18::1\n"
            ))
        })?;
        Ok(member)
    }

    /// The hook as an engine calls it.
    pub fn enrol(&self, member: &Member) -> Result<()> {
        let bundle = self.path(&member.id);
        fs::create_dir(&bundle)?;
        let state = json!({
            "ociVersion": "1.0.2", "id": member.id, "status": "creating", "pid": member.pid(), "bundle": bundle,
            "annotations": { "io.tunjail.jail": "vpn" },
        });
        self.tunjail(&["hook", "create-runtime"], Some(&state.to_string()))?;
        ensure!(Store::open().member_of(&member.id)?.is_some(), "the hook left no record of {}", member.id);
        Ok(())
    }

    fn tunjail(&self, args: &[&str], state: Option<&str>) -> Result<()> {
        let mut command = Command::new(&self.tunjail);
        command.args(args).env("TUNJAIL_CONFIG", self.path("tunjail.toml"));
        finish(command, state.unwrap_or_default())
    }
}

impl Member {
    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap_or_default()
    }
}

impl Host {
    /// A script in the host's namespace.
    pub fn sh(&self, script: &str) -> Result<()> {
        within(&self.netns, || sh(script))
    }

    /// A script in the member's namespace.
    pub fn member_sh(&self, script: &str) -> Result<()> {
        within(&self.member.netns, || sh(script))
    }
}

/// A process that does nothing, in a network namespace of its own.
fn alone(id: &str) -> Result<Member> {
    let mut sleep = Command::new("sleep");
    sleep.arg("3600").stdin(Stdio::null());
    // SAFETY: unshare(2) is a plain system call, which is all that may be done between fork and exec.
    unsafe { sleep.pre_exec(|| unshare(CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
    let process = sleep.spawn()?;
    let netns = Netns::of_process(process.id().try_into()?)?;
    Ok(Member { id: id.parse()?, netns, process })
}

/// Does the work in that namespace and comes back, with whatever error it has.
pub fn within<T, E>(netns: &Netns, work: impl FnOnce() -> Result<T, E>) -> Result<T>
where
    anyhow::Error: From<E>,
{
    let home = Netns::own()?;
    setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home.as_fd(), CloneFlags::CLONE_NEWNET)?;
    Ok(result?)
}

fn ip(batch: &str) -> Result<()> {
    feed("ip", &["-batch", "-"], batch)
}

fn sh(script: &str) -> Result<()> {
    feed("sh", &["-e"], script)
}

/// Feeds text to a program that has to work.
fn feed(program: &str, args: &[&str], text: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    finish(command, text)
}

fn finish(mut command: Command, stdin: &str) -> Result<()> {
    use std::io::Write;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let name = Path::new(command.get_program()).display().to_string();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}
