//! Where it is measured: a host with a jail, in network and mount namespaces of this process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;
use tunjail::kernel::netns::Netns;
use tunjail::kernel::nfnetlink::Nfnl;
use tunjail::kernel::nftables;
use tunjail::model::names::ContainerId;
use tunjail::model::objects::TableId;
use tunjail::store::Store;

use crate::crowd::Identity;
use crate::measure::{Start, feed};
use crate::run;

const CONFIG: &str = "[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = \"tun0\"\nbridge = \"vpn\"\n";

/// The recipe as its users have it: five iptables calls and eight ip calls, in one script.
const RECIPE: &str = "#!/bin/sh
set -e
ip rule add from 172.18.0.0/16 lookup 100
ip route add 172.18.0.0/16 dev vpn table 100
ip route add 192.168.178.0/24 dev eth0 table 100
ip route add 10.8.0.0/24 dev tun0 table 100
ip route add 0.0.0.0/1 via 10.8.0.1 dev tun0 table 100
ip route add 128.0.0.0/1 via 10.8.0.1 dev tun0 table 100
ip route add 203.0.113.77 via 192.168.178.1 dev eth0 table 100
ip route flush cache
iptables -I DOCKER-USER -i vpn ! -o tun0 -j REJECT
iptables -I DOCKER-USER -i vpn -o vpn -j ACCEPT
iptables -I DOCKER-USER -i vpn -d 192.168.178.0/24 -j ACCEPT
iptables -I DOCKER-USER -s 192.168.178.0/24 -o vpn -j ACCEPT
iptables -t nat -A POSTROUTING -s 172.18.0.0/16 -o tun0 -j MASQUERADE
";

/// A bridge `vpn`, an exit `tun0` and a home network on `eth0`.
const HOST: &str = "link set lo up
link add vpn type bridge
addr add 172.18.0.1/16 dev vpn
addr add fd00:18::1/64 dev vpn nodad
link set vpn up
tuntap add dev tun0 mode tun
addr add 10.8.0.2/24 dev tun0
addr add fd00:8::2/64 dev tun0 nodad
link set tun0 up
link add eth0 type veth peer name eth0-peer
addr add 192.168.178.2/24 dev eth0
link set eth0 up
link set eth0-peer up
route add default via 192.168.178.1
";

pub struct Lab {
    tunjail: PathBuf,
    work: TempDir,
}

/// A container as the hook sees it: a process in a network namespace with an address, and a veth on the bridge.
pub struct Member {
    pub id: ContainerId,
    netns: Netns,
    process: Child,
    state: PathBuf,
}

impl Member {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap_or_default()
    }

    /// The container's process ends; its network namespace stays.
    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

impl Lab {
    pub fn build() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "needs root, to make network namespaces");
        ensure!(Path::new("/dev/net/tun").exists(), "no /dev/net/tun: load the kernel's tun module");
        let tunjail = std::env::var_os("TUNJAIL").map_or_else(|| env!("CARGO_BIN_EXE_tunjail").into(), PathBuf::from);
        let work = tempfile::tempdir()?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        let lab = Self { tunjail, work };
        lab.cover_what_is_written()?;

        feed("ip", &["-batch", "-"], HOST)?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        fs::write(lab.path("tunjail.toml"), CONFIG)?;
        lab.build_floor()?;
        lab.build_recipe_host()?;
        Ok(lab)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// /run and /etc are this process's own from here on.
    fn cover_what_is_written(&self) -> Result<()> {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).context("tmpfs on /run")?;
        fs::create_dir("/run/netns")?;
        let etc = self.path("etc");
        run("cp", &["-a", "/etc", &etc.to_string_lossy()])?;
        mount(Some(&etc), "/etc", none, MsFlags::MS_BIND, none).context("a copy of /etc on /etc")?;
        // crun refuses cgroup v1 with an extra v2 mount; where there is none, there is nothing to take away.
        let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
        Ok(())
    }

    /// What a process costs that does nothing: built like tunjail, with the same compiler.
    fn build_floor(&self) -> Result<()> {
        let source = self.path("floor.rs");
        fs::write(&source, "fn main() {}\n")?;
        let flags = "--edition=2024 -C opt-level=3 -C codegen-units=1 -C lto=fat -C strip=symbols -C target-feature=+crt-static";
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut args: Vec<_> = flags.split(' ').map(Into::into).collect();
        args.extend(["-o".into(), self.path("floor").into_os_string(), source.into_os_string()]);
        Start::new(rustc, &args).untimed()
    }

    /// The recipe works on a host of its own, so that it cannot meet the jail.
    fn build_recipe_host(&self) -> Result<()> {
        run("ip", &["netns", "add", "recipe"])?;
        feed("ip", &["-n", "recipe", "-batch", "-"], HOST)?;
        for rule in ["-N DOCKER-USER", "-I FORWARD -j DOCKER-USER"] {
            let words: Vec<_> = "netns exec recipe iptables".split(' ').chain(rule.split(' ')).collect();
            run("ip", &words)?;
        }
        fs::write(self.path("recipe"), RECIPE)?;
        fs::write(
            self.path("undo-recipe"),
            "set -e
            iptables -F DOCKER-USER
            iptables -t nat -F POSTROUTING
            ip rule del from 172.18.0.0/16
            ip route flush table 100\n",
        )?;
        Start::new("ip", &["netns", "exec", "recipe", "sh", &self.path("recipe").to_string_lossy()]).untimed()
    }

    pub fn floor(&self) -> Start {
        Start::new(self.path("floor"), &[] as &[&str]).stdin(Path::new("/dev/null"))
    }

    pub fn recipe(&self) -> Start {
        self.on_recipe_host("recipe")
    }

    pub fn undo_recipe(&self) -> Result<()> {
        self.on_recipe_host("undo-recipe").untimed()
    }

    fn on_recipe_host(&self, script: &str) -> Start {
        let open = |path: &str| OwnedFd::from(File::open(path).unwrap_or_else(|error| panic!("{path}: {error}")));
        Start::new("sh", &[self.path(script)]).netns(open("/run/netns/recipe"), open("/proc/thread-self/ns/net"))
    }

    pub fn tunjail(&self, args: &[&str]) -> Result<()> {
        self.start(args).untimed()
    }

    fn start(&self, args: &[&str]) -> Start {
        Start::new(&self.tunjail, args).env("TUNJAIL_CONFIG", self.path("tunjail.toml"))
    }

    /// The container with this number: its process, its network namespace and its veth; not enrolled yet.
    pub fn member(&self, number: u16) -> Result<Member> {
        self.make(number, true)
    }

    /// The same, on the bridge but without an address.
    pub fn member_without_address(&self, number: u16) -> Result<Member> {
        self.make(number, false)
    }

    fn make(&self, number: u16, with_address: bool) -> Result<Member> {
        let Identity { id, veth, mac, v4, v6 } = Identity::of(number);
        let mut sleep = idle();
        // SAFETY: unshare(2) is a plain system call, which is all that may be done between fork and exec.
        unsafe { sleep.pre_exec(|| unshare(CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
        let process = sleep.spawn()?;
        let netns = Netns::of_process(process.id().try_into()?)?;
        let member = Member { state: self.path(&format!("{id}.json")), id, netns, process };
        let pid = member.process.id();
        if !with_address {
            feed("nsenter", &[&format!("--net=/proc/{pid}/ns/net"), "ip", "-batch", "-"], "link set lo up\n")?;
        }
        feed(
            "ip",
            &["-batch", "-"],
            &format!(
                "link add {veth} type veth peer name eth0 address {mac} netns {pid}\nlink set {veth} master vpn up\n"
            ),
        )?;
        if with_address {
            feed(
                "nsenter",
                &[&format!("--net=/proc/{pid}/ns/net"), "ip", "-batch", "-"],
                &format!(
                    "link set lo up\naddr add {v4}/16 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
                     route add default via 172.18.0.1\nroute add default via fd00:18::1\n"
                ),
            )?;
        }
        fs::create_dir(self.path(&member.id))?;
        self.write_state(&member)?;
        Ok(member)
    }

    /// Begins to give a member its IPv4 address, as an engine does it late.
    pub fn give_address(&self, member: &Member, number: u16) -> Result<(Child, Start)> {
        let netns = format!("--net=/proc/{}/ns/net", member.process.id());
        let address = format!("{}/16", Identity::of(number).v4);
        let given = Start::new("nsenter", &[&netns, "ip", "addr", "add", &address, "dev", "eth0"]);
        Ok((given.spawn()?, given))
    }

    /// The container ends, and the engine says so.
    pub fn forget(&self, member: &mut Member) -> Result<()> {
        member.end();
        let stopped = self.path("stopped.json");
        let state = json!({ "ociVersion": "1.0.2", "id": member.id, "status": "stopped", "bundle": "/" });
        fs::write(&stopped, state.to_string())?;
        self.start(&["hook", "poststop"]).stdin(&stopped).untimed()
    }

    fn write_state(&self, member: &Member) -> Result<()> {
        let state = json!({
            "ociVersion": "1.0.2", "id": member.id, "status": "creating", "pid": member.process.id(),
            "bundle": self.path(&member.id), "annotations": { "io.tunjail.jail": "vpn" },
        });
        Ok(fs::write(&member.state, state.to_string())?)
    }

    /// The hook as an engine calls it.
    pub fn create_runtime(&self, member: &Member) -> Start {
        self.start(&["hook", "create-runtime"]).stdin(&member.state)
    }

    pub fn enrol(&self, member: &Member) -> Result<()> {
        self.create_runtime(member).untimed()?;
        ensure!(Store::open().member_of(&member.id)?.is_some(), "the hook left no record of {}", member.id);
        Ok(())
    }

    /// The container ends, the engine calls the hook, and what is left is as before the member's first hook: not
    /// enrolled, no lock in its network namespace. Then the container has a process again.
    pub fn fresh(&self, member: &mut Member) -> Result<()> {
        member.end();
        let mut state: Value = serde_json::from_slice(&fs::read(&member.state)?)?;
        // crun's shape: a stopped container has no process
        state["status"] = "stopped".into();
        state["pid"] = 0.into();
        let stopped = self.path("stopped.json");
        fs::write(&stopped, state.to_string())?;
        self.start(&["hook", "poststop"]).stdin(&stopped).untimed()?;
        // poststop never fails, whatever happened.
        ensure!(Store::open().member_of(&member.id)?.is_none(), "poststop left {} in its jail", member.id);
        member.netns.run(|| nftables::drop_table(&mut Nfnl::open()?, &TableId::lock()))?;

        let mut sleep = idle();
        let netns = member.netns.as_fd().try_clone_to_owned()?;
        // SAFETY: setns(2) is a plain system call, which is all that may be done between fork and exec.
        unsafe { sleep.pre_exec(move || setns(&netns, CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
        member.process = sleep.spawn()?;
        self.write_state(member)
    }

    /// `crun run` of a container that is over at once, in the member's network namespace.
    pub fn crun(&self, name: &str, member: &Member, hooks: bool) -> Result<Start> {
        let tunjail = [self.tunjail.as_os_str()];
        let bundle = self.bundle(name, member, if hooks { &tunjail } else { &[] })?;
        Ok(self.crun_call(&["run", "--bundle", &bundle.to_string_lossy(), &format!("bench-{name}")]))
    }

    pub fn crun_call(&self, args: &[&str]) -> Start {
        let args = [&["--cgroup-manager=disabled"], args].concat();
        Start::new("crun", &args).env("TUNJAIL_CONFIG", self.path("tunjail.toml"))
    }

    /// The program that is measured.
    pub fn program(&self) -> &Path {
        &self.tunjail
    }

    /// A bundle whose hooks are tunjail's, started by the command line `program`; none when that is empty.
    pub fn bundle(&self, name: &str, member: &Member, program: &[&OsStr]) -> Result<PathBuf> {
        let bundle = self.path(name);
        fs::create_dir_all(bundle.join("rootfs/bin"))?;
        fs::create_dir_all(bundle.join("rootfs/proc"))?;
        fs::create_dir_all(bundle.join("rootfs/dev"))?;
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/true"))?;
        let netns = format!("/run/netns/{name}");
        File::create(&netns)?;
        let there = format!("/proc/{}/ns/net", member.process.id());
        mount(Some(there.as_str()), netns.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let hooks = match program {
            [] => json!({}),
            [path, ..] => {
                let hook = |stage: &str| -> Result<Value> {
                    let mut args = Vec::new();
                    for word in program.iter().copied().chain(["hook", stage].map(OsStr::new)) {
                        args.push(word.to_str().context("a path that is no text")?);
                    }
                    Ok(json!([{ "path": path.to_str(), "args": args, "timeout": 60 }]))
                };
                json!({ "createRuntime": hook("create-runtime")?, "poststop": hook("poststop")? })
            }
        };
        let config = json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/" },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            ],
            "annotations": { "io.tunjail.jail": "vpn" },
            "hooks": hooks,
            "linux": { "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network", "path": netns },
            ] },
        });
        fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(bundle)
    }
}

/// A container's process that does nothing.
fn idle() -> Command {
    let mut sleep = Command::new("sleep");
    sleep.arg("3600").stdin(Stdio::null());
    sleep
}
