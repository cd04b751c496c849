//! A container whose address comes late: from the address to the open lock.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tunjail::kernel::netns::Netns;
use tunjail::kernel::nfnetlink::Nfnl;
use tunjail::kernel::nftables;
use tunjail::kernel::process::Process;
use tunjail::kernel::rtnetlink::Rtnl;
use tunjail::kernel::watch::{Watch, Woken};
use tunjail::model::objects::{Element, Part, Set, TableId};

use crate::crowd::Identity;
use crate::lab::Lab;
use crate::measure::Sample;
use crate::{row, show};

const RUNS: u16 = 50;
/// Numbers that are nobody else's.
const FIRST: u16 = 40_000;
const LIMIT: Duration = Duration::from_secs(5);

pub fn from_address_to_open_lock(lab: &Lab) -> Result<()> {
    let samples = (FIRST..FIRST + RUNS).map(|number| once(lab, number)).collect::<Result<Vec<Sample>>>()?;
    show("a late address: from there to the open lock", &samples);
    row("late address to open lock, ms, median", crate::Spread::of(&samples).median, Some(5.0));
    Ok(())
}

fn once(lab: &Lab, number: u16) -> Result<Sample> {
    let mut member = lab.member_without_address(number)?;
    lab.create_runtime(&member).untimed()?;
    let pid = member.pid();
    let Some(process) = Process::living(pid) else { bail!("the container's process ended") };
    let alive = process.descriptor()?;
    let netns = Netns::of_process(pid)?;
    let (watch, mut inside, mut rtnl) = netns.run(|| Ok((Watch::open()?, Nfnl::open()?, Rtnl::open()?)))?;
    let address = IpAddr::from(Identity::of(number).v4);
    let interface = rtnl.link_by_name(&"eth0".parse()?)?.context("the member has no eth0")?;
    let open = Element {
        table: TableId::lock(),
        set: Set::Out4,
        key: vec![Part::Index(interface.index), Part::Address(address)],
        value: Vec::new(),
    };
    ensure!(nftables::first_missing(&mut inside, std::slice::from_ref(&open))?.is_some(), "open before the address");
    let (giving, given) = lab.give_address(&member, number)?;
    let begin = loop {
        ensure!(watch.wait(std::os::fd::AsFd::as_fd(&alive), LIMIT)? == Woken::Changed, "no news of the address");
        if rtnl.addresses(None)?.iter().any(|there| there.address == address) {
            break Instant::now();
        }
    };
    while nftables::first_missing(&mut inside, std::slice::from_ref(&open))?.is_some() {
        ensure!(begin.elapsed() < LIMIT, "the lock was not opened");
    }
    let wall = begin.elapsed();
    given.finish(giving)?;
    lab.forget(&mut member)?;
    Ok(Sample { wall, peak_bytes: 0 })
}
