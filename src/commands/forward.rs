//! `tunjail forward`: lead ports of the exit to a member while it runs, and show which ones lead where.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cli::{Forward, Show};
use crate::config::Config;
use crate::hold::Kernel;
use crate::hold::forward::{Wish, plan_to_turn, turn};
use crate::kernel::nftables::{self, Counter};
use crate::model::names::{ContainerId, JailName, shorten};
use crate::model::objects::{Element, Part, Set, TableId};
use crate::model::{plan, policy};
use crate::store::{MemberRecord, Store};

pub fn run(config: Option<&Path>, forward: Forward) -> Result<ExitCode> {
    super::demand_root()?;
    match forward {
        Forward::Add(args) => change(config, &args.container, Wish::Add(&args.ports), args.dry_run),
        Forward::Remove(args) => change(config, &args.container, Wish::Remove(&args.ports), args.dry_run),
        Forward::List(args) => list(&args),
    }
}

fn change(config: Option<&Path>, container: &str, wish: Wish, dry_run: bool) -> Result<ExitCode> {
    let config = Config::load(config)?;
    let store = Store::open();
    let id = find(&store, container)?;
    let mut host = Kernel::open()?;
    if dry_run {
        let steps = plan_to_turn(&mut host, &store, &config, &id, wish)?;
        print!("{}", plan::lines(&steps, ""));
        return Ok(ExitCode::SUCCESS);
    }
    let store = store.lock()?;
    turn(&mut host, &store, &config, &id, wish).context("no port was changed")?;
    store.tidy()?;
    Ok(ExitCode::SUCCESS)
}

fn find(store: &Store, text: &str) -> Result<ContainerId> {
    match store.containers_like(text)?.as_slice() {
        [id] => Ok(id.clone()),
        [] => bail!(
            "no container whose id begins with \"{}\" is in a jail; `tunjail status` shows those that are",
            shorten(text)
        ),
        [first, second, ..] => bail!(
            "\"{text}\" is the beginning of several containers' ids ({first}, {second}); write more of the one that is meant"
        ),
    }
}

/// The JSON's version: raised when a member changes its meaning or goes.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report {
    version: u32,
    forwards: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    jail: JailName,
    /// Of the member: a pod's may be several.
    containers: Vec<ContainerId>,
    #[serde(flatten)]
    lead: Lead,
}

/// A port of the exit and where it leads.
#[derive(Serialize)]
pub(super) struct Lead {
    /// At the exit, such as "tcp/8443".
    port: String,
    /// The member's address and port, one for each family that it has.
    to: Vec<SocketAddr>,
    /// Packets from outside that it brought.
    packets: u64,
}

fn list(args: &Show) -> Result<ExitCode> {
    let store = Store::open();
    let mut forwards = Vec::new();
    for jail in store.jails()? {
        let members = store.members(&jail)?;
        let brought = brought(&jail, &members)?;
        for member in &members {
            let containers: Vec<ContainerId> = member.containers.iter().map(|own| own.id.clone()).collect();
            let row = |lead| Row { jail: jail.clone(), containers: containers.clone(), lead };
            forwards.extend(leads(&store, member, &brought).into_iter().map(row));
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &Report { version: VERSION, forwards })?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if forwards.is_empty() {
        writeln!(out, "no port of an exit leads to a member")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{:<12} {:<14} {:<10} {:>10}  leads to", "jail", "container", "port", "packets")?;
    for Row { jail, containers, lead } in &forwards {
        let id: String = containers.first().map(|id| id.chars().take(12).collect()).unwrap_or_default();
        writeln!(out, "{:<12} {id:<14} {:<10} {:>10}  {}", jail.as_str(), lead.port, lead.packets, lead.to_text())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Lead {
    fn to_text(&self) -> String {
        self.to.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leads to {}, {} packets", self.port, self.to_text(), self.packets)
    }
}

/// What the counters of the wall say, by the keys of its elements as nft spells them.
pub(super) fn brought(jail: &JailName, members: &[MemberRecord]) -> Result<Vec<(Vec<String>, Counter)>> {
    let mut brought = Vec::new();
    if members.iter().any(|member| !member.forwards().is_empty()) {
        for set in [Set::Forwarded4, Set::Forwarded6] {
            brought.extend(nftables::elements(&TableId::wall(jail), set)?);
        }
    }
    Ok(brought)
}

/// The ports that lead to a member.
pub(super) fn leads(store: &Store, member: &MemberRecord, brought: &[(Vec<String>, Counter)]) -> Vec<Lead> {
    let elements = store.led_to(member);
    let lead = |forward: &policy::Forward| {
        let at_exit = [Part::Protocol(forward.port.protocol), Part::Number(forward.port.number)];
        let own: Vec<&Element> =
            elements.iter().filter(|element| element.value.is_empty() && element.key.starts_with(&at_exit)).collect();
        Lead {
            port: forward.port.to_string(),
            to: own.iter().filter_map(|element| target(element)).collect(),
            packets: brought
                .iter()
                .filter(|(key, _)| own.iter().any(|own| spells(key, own)))
                .map(|(_, c)| c.packets)
                .sum(),
        }
    };
    member.forwards().iter().map(lead).filter(|lead| !lead.to.is_empty()).collect()
}

fn target(element: &Element) -> Option<SocketAddr> {
    match element.key.as_slice() {
        [.., Part::Address(address), Part::Number(port)] => Some(SocketAddr::new(*address, *port)),
        _ => None,
    }
}

/// Whether nft's words are this element's key. A protocol may be its number, where the system has no list of them.
fn spells(words: &[String], element: &Element) -> bool {
    words.len() == element.key.len()
        && words.iter().zip(&element.key).all(|(word, part)| match part {
            Part::Protocol(protocol) => word == protocol.as_str() || *word == protocol.number().to_string(),
            Part::Number(number) => *word == number.to_string(),
            Part::Address(address) => word.parse::<IpAddr>() == Ok(*address),
            _ => false,
        })
}
