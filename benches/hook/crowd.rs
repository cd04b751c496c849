//! Thousands of members, without thousands of containers.
//!
//! A bridge takes 1,023 ports, so a crowd cannot be made of real members alone. A synthetic one is what the hook leaves
//! behind for a real one, with another name and other addresses: the same elements in the sets of the wall and of the
//! guard, and the same record. It is made from a real member's record by the functions that the hook itself uses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use tunjail::kernel::nfnetlink::Nfnl;
use tunjail::kernel::nftables;
use tunjail::model::admit::Confirmed;
use tunjail::model::desired;
use tunjail::model::facts::NetnsId;
use tunjail::model::names::{ContainerId, JailName};
use tunjail::model::objects::{Mac, Set, TableId};
use tunjail::store::{ContainerRecord, MemberRecord, Store};

use crate::lab::{Lab, Member};

/// So many are real, with a network namespace and a bridge port each: as many as are made in a few seconds.
pub const REAL: u16 = 100;

/// An attribute of netlink holds 64 KiB, and with it a list of elements.
const AT_ONCE: usize = 100;

/// A member's names and addresses. No two numbers share any.
pub struct Identity {
    pub id: ContainerId,
    pub veth: String,
    pub mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Identity {
    pub fn of(number: u16) -> Self {
        // .0 is the net's, .1 the bridge's
        let host = number + 2;
        let [high, low] = host.to_be_bytes();
        Self {
            id: format!("bench-{number}").parse().expect("a valid id"),
            veth: format!("veth-{number}"),
            mac: Mac([0x02, 0x42, 0xac, 0x12, high, low]),
            v4: Ipv4Addr::new(172, 18, high, low),
            v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, host),
        }
    }
}

/// Enrols the members with these numbers, the first [`REAL`] by the hook. Returns the real ones.
pub fn enrol(lab: &Lab, like: &Member, numbers: Range<u16>) -> Result<Vec<Member>> {
    let real = numbers.start..numbers.end.min(REAL);
    let synthetic = numbers.start.max(REAL)..numbers.end;
    let members: Vec<Member> = real.map(|number| lab.member(number)).collect::<Result<_>>()?;
    members.iter().try_for_each(|member| lab.enrol(member))?;
    place(like, synthetic)?;
    Ok(members)
}

/// A hook that swept the crowd away was measured in an empty jail.
pub fn demand(jail: &JailName, members: usize) -> Result<()> {
    let records = Store::open().members(jail)?.len();
    ensure!(records == members, "{records} records for {members} members");
    let table = TableId::wall(jail);
    let elements = nftables::elements(&table, Set::Members4)?.len();
    ensure!(elements == members, "{elements} elements in {table} members4 for {members} members");
    Ok(())
}

fn place(like: &Member, numbers: Range<u16>) -> Result<()> {
    let like = Store::open().member_of(&like.id)?.with_context(|| format!("no record of {}", like.id))?;
    let store = Store::open().lock()?;
    let mut nfnl = Nfnl::open()?;
    let members: Vec<MemberRecord> = numbers.map(|number| synthetic(&like, number)).collect::<Result<_>>()?;
    for members in members.chunks(AT_ONCE) {
        let mut elements = Vec::new();
        for member in members {
            let desired = desired::member(&member.jail, &member.interfaces);
            store.put_member(member, &desired.membership)?;
            elements.extend(desired.guard);
            elements.extend(desired.membership);
        }
        nftables::add_elements(&mut nfnl, &elements)?;
    }
    Ok(())
}

/// A real member's record under another identity. Its process is the real one's, so that it lives.
fn synthetic(like: &MemberRecord, number: u16) -> Result<MemberRecord> {
    /// Above every index that the kernel gives here.
    const PORTS: u32 = 1_000_000;
    /// Above every inode that the kernel gives here: it counts up from `PROC_DYNAMIC_FIRST` (fs/proc/generic.c).
    const INODES: u64 = 0xff00_0000;
    let Identity { id, veth, mac, v4, v6 } = Identity::of(number);
    let [interface] = like.interfaces.as_slice() else { anyhow::bail!("a member of the bench has one interface") };
    let interface = Confirmed {
        mac,
        addresses: vec![IpAddr::from(v4), v6.into()],
        link_local: vec![mac.link_local().into()],
        port: PORTS + u32::from(number),
        port_name: veth.parse()?,
        ..interface.clone()
    };
    let process = like.containers.first().context("a member has a container")?.process;
    Ok(MemberRecord {
        netns: NetnsId { ino: INODES + u64::from(number), ..like.netns },
        containers: vec![ContainerRecord { id, process, forwards: Vec::new() }],
        interfaces: vec![interface],
        ..like.clone()
    })
}
