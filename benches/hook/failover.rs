//! `tunjail watch`: from what happens to an exit, or to the ruleset, until the kernel sends members the right way again.

use std::os::fd::AsFd;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tunjail::kernel::nfnetlink::Nfnl;
use tunjail::kernel::nftables;
use tunjail::kernel::process::Process;
use tunjail::kernel::rtnetlink::Rtnl;
use tunjail::kernel::watch::{Watch, Woken};
use tunjail::model::facts::FibAnswer;
use tunjail::model::names::{IfName, JailName};
use tunjail::model::objects::TableId;

use crate::lab::Lab;
use crate::measure::{Sample, Spread, Start, feed};
use crate::{row, run, show};

const RUNS: usize = 40;
const LIMIT: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(60);

/// A jail with a NIC that is preferred, and a second exit that needs no next hop.
const CONFIG: &str =
    "[jail.duo]\nsubnets = [\"172.20.0.0/16\"]\nexit = [\"eth1\", \"eth2\"]\ngateway = \"192.0.2.1\"\n";
const HOST: &str = "link add duo type bridge
addr add 172.20.0.1/16 dev duo
link add port type veth peer name port-peer
link set port-peer up
link set port master duo up
link set duo up
link add eth1 type veth peer name eth1-peer
addr add 192.0.2.2/24 dev eth1
link set eth1 up
link set eth1-peer up
link add eth2 type veth peer name eth2-peer
addr add 203.0.113.2/24 dev eth2
link set eth2 arp off
link set eth2 up
link set eth2-peer up
";

/// What is asked for the way of: a member to anywhere.
const WAY: (&str, &str) = ("172.20.0.2", "198.51.100.1");

pub fn to_the_next_exit(lab: &Lab) -> Result<()> {
    feed("ip", &["-batch", "-"], HOST)?;
    let config = lab.path("failover.toml");
    std::fs::write(&config, CONFIG)?;
    let tunjail =
        |words: &[&str]| Start::new(lab.program(), &[&["--config", &config.to_string_lossy()], words].concat());
    tunjail(&["up"]).untimed()?;
    let mut service = Service(tunjail(&["watch"]).spawn()?);
    let measured = measure(&mut service);
    drop(service);
    tunjail(&["down"]).untimed()?;
    for link in ["duo", "port", "eth1", "eth2"] {
        run("ip", &["link", "del", link])?;
    }
    measured
}

/// Ended with the section.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(service: &mut Service) -> Result<()> {
    let mut rtnl = Rtnl::open()?;
    let mut index = |name: &str| -> Result<u32> {
        let name: IfName = name.parse()?;
        Ok(rtnl.link_by_name(&name)?.context("an interface of the bench's own")?.index)
    };
    let (bridge, first, second) = (index("duo")?, index("eth1")?, index("eth2")?);
    let mut way = Way { rtnl: Rtnl::open()?, bridge };
    way.wait_for(first)?;

    let (mut over, mut back, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    let table = TableId::wall(&"duo".parse::<JailName>()?);
    let mut nfnl = Nfnl::open()?;
    for _ in 0..RUNS {
        ensure!(service.0.try_wait()?.is_none(), "tunjail watch ended");
        // Between two things that happen it has come to rest, as it has on a host.
        std::thread::sleep(QUIET);
        over.push(after_the_event("eth1", "down", || way.wait_for(second))?);
        std::thread::sleep(QUIET);
        back.push(after_the_event("eth1", "up", || way.wait_for(first))?);
        std::thread::sleep(QUIET);
        run("nft", &["delete", "table", "inet", "tunjail_duo"])?;
        let begin = Instant::now();
        while nftables::fingerprint(&mut nfnl, &table)?.is_none() {
            ensure!(begin.elapsed() < LIMIT, "the table was not put back");
        }
        loaded.push(Sample { wall: begin.elapsed(), peak_bytes: 0 });
    }
    for (what, samples, bound) in [
        ("carrier lost: from the link event to the next exit's route", &over, 100.0),
        ("carrier back: from the link event to the first exit's route", &back, 100.0),
        ("nftables table deleted: until it is back", &loaded, 100.0),
    ] {
        show(what, samples);
        row(
            &format!("{}, ms, median", what.split(':').next().unwrap_or(what)),
            Spread::of(samples).median,
            Some(bound),
        );
    }
    Ok(())
}

/// Pulls or plugs the cable at its other end, and takes the time from when the kernel tells of it.
fn after_the_event(nic: &str, state: &str, mut done: impl FnMut() -> Result<()>) -> Result<Sample> {
    let (watch, mut rtnl) = (Watch::open()?, Rtnl::open()?);
    let me = Process::living(i32::try_from(std::process::id())?).context("this process")?;
    // It has something to say when this process ends.
    let silent = me.descriptor()?;
    let name: IfName = nic.parse()?;
    let change = Start::new("ip", &["link", "set", &format!("{nic}-peer"), state]);
    let running = change.spawn()?;
    let begin = loop {
        ensure!(watch.wait(silent.as_fd(), LIMIT)? == Woken::Changed, "no news of {nic}");
        if rtnl.link_by_name(&name)?.is_some_and(|link| link.carrier == (state == "up")) {
            break Instant::now();
        }
    };
    done()?;
    let wall = begin.elapsed();
    change.finish(running)?;
    Ok(Sample { wall, peak_bytes: 0 })
}

/// Where the kernel sends a member's packets.
struct Way {
    rtnl: Rtnl,
    bridge: u32,
}

impl Way {
    fn wait_for(&mut self, exit: u32) -> Result<()> {
        let begin = Instant::now();
        let pair = (WAY.0.parse()?, WAY.1.parse()?);
        while self.rtnl.ways(&[pair], self.bridge)?.first() != Some(&FibAnswer::Out(exit)) {
            ensure!(begin.elapsed() < LIMIT, "new connections do not leave by the interface with index {exit}");
        }
        Ok(())
    }
}
