//! `tunjail status`: walls, exits, members and counters, as a table or as JSON.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::forward::{self, Lead};
use super::trouble::{self, Trouble};
use crate::cli::Show;
use crate::config::Config;
use crate::exit::wireguard::{Tunnel, Wg};
use crate::hold::{Kernel, leave, wall};
use crate::kernel::nftables::{self, Counter};
use crate::model::names::JailName;
use crate::model::objects::{Set, TableId};
use crate::model::policy::Jail;
use crate::store::{MemberRecord, MemberState, RaisedBy, Store, Verdict};

/// The JSON's version: raised when a member changes its meaning or goes.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report {
    version: u32,
    jails: Vec<JailReport>,
    /// Locked containers that no jail was named for and that have no address yet which would tell.
    undecided: Vec<MemberReport>,
}

#[derive(Serialize)]
struct JailReport {
    jail: JailName,
    /// "up", "behind" (an exit or the bridge came and has no route yet), "damaged" (something was changed or removed by
    /// others) or "down".
    wall: &'static str,
    raised_by: Option<RaisedBy>,
    table: Option<u32>,
    bridge: Option<String>,
    exits: Vec<ExitReport>,
    /// Packets that were refused: out past the exit, in from elsewhere, to the host, with a forged sender.
    rejected: Rejected,
    members: Vec<MemberReport>,
    /// In /run/tunjail, but in no configuration file.
    configured: bool,
}

#[derive(Serialize)]
struct ExitReport {
    name: String,
    present: bool,
    up: bool,
    carrier: bool,
    v4: bool,
    v6: bool,
    /// Why nothing leaves by it, and what to do: null when something can.
    trouble: Option<String>,
    /// Null for another kind of exit, and where `wg` is not installed or does not answer.
    wireguard: Option<Tunnel>,
}

#[derive(Serialize, Default)]
struct Rejected {
    out: u64,
    r#in: u64,
    host: u64,
    forged: u64,
}

#[derive(Serialize)]
struct MemberReport {
    containers: Vec<String>,
    state: State,
    /// Why a container is locked.
    why: Option<String>,
    alive: bool,
    interfaces: Vec<InterfaceReport>,
    /// Ports of the exit that lead to it.
    forwards: Vec<Lead>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// A hook is at work on it, or died at it; locked.
    Entering,
    Held,
    /// No address yet; locked.
    Pending,
    /// It cannot be held; locked.
    Refused,
}

#[derive(Serialize)]
struct InterfaceReport {
    name: String,
    port: String,
    mac: String,
    addresses: Vec<String>,
    /// Packets and bytes that its own addresses sent.
    packets: u64,
    bytes: u64,
}

pub fn run(config: Option<&Path>, args: &Show) -> Result<ExitCode> {
    super::demand_root()?;
    let config = Config::load(config)?;
    let report = report(&config)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        for jail in &report.jails {
            print(&mut out, jail)?;
        }
        if !report.undecided.is_empty() {
            writeln!(out, "no jail yet")?;
            print_members(&mut out, &report.undecided)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn report(config: &Config) -> Result<Report> {
    let mut host = Kernel::open()?;
    let store = Store::open();
    let wg = Wg::ask();
    let mut jails = Vec::new();
    for jail in &config.jails {
        jails.push(report_jail(&mut host, &store, jail, wg.as_ref())?);
    }
    for name in store.jails()?.iter().filter(|name| config.jail(name).is_none()) {
        jails.push(report_unconfigured(&mut host, &store, name)?);
    }
    let undecided = late_members(&store, None)?;
    Ok(Report { version: VERSION, jails, undecided })
}

fn report_jail(host: &mut Kernel, store: &Store, jail: &Jail, wg: Option<&Wg>) -> Result<JailReport> {
    let survey = wall::survey(host, store, jail)?;
    let exits = jail
        .exits
        .iter()
        .map(|name| {
            let facts = survey.surroundings.exits.iter().find(|exit| exit.link.name == name.as_str());
            ExitReport {
                name: name.to_string(),
                present: facts.is_some(),
                up: facts.is_some_and(|exit| exit.link.up),
                carrier: facts.is_some_and(|exit| exit.link.carrier),
                v4: facts.is_some_and(|exit| exit.v4),
                v6: facts.is_some_and(|exit| exit.v6),
                trouble: trouble::of(jail, name, facts).map(|Trouble { is, mend }| format!("{is}: {mend}")),
                wireguard: wg.and_then(|wg| wg.tunnel(name)),
            }
        })
        .collect();
    Ok(JailReport {
        wall: match &survey.record {
            None => "down",
            Some(_) if survey.stands() => "up",
            Some(_) if survey.is_behind() => "behind",
            Some(_) => "damaged",
        },
        raised_by: survey.record.as_ref().map(|record| record.raised_by),
        table: survey.record.as_ref().map(|record| record.table),
        bridge: survey.surroundings.bridge.as_ref().map(ToString::to_string),
        exits,
        rejected: rejected(&jail.name)?,
        members: members(host, store, &jail.name)?,
        configured: true,
        jail: jail.name.clone(),
    })
}

fn report_unconfigured(host: &mut Kernel, store: &Store, name: &JailName) -> Result<JailReport> {
    let record = store.wall(name)?;
    Ok(JailReport {
        wall: match &record {
            None => "down",
            Some(record) if wall::stands_for_nobody(host, record)? => "up",
            Some(_) => "damaged",
        },
        raised_by: record.as_ref().map(|record| record.raised_by),
        table: record.as_ref().map(|record| record.table),
        bridge: record.and_then(|record| record.bridge).map(Into::into),
        exits: Vec::new(),
        rejected: rejected(name)?,
        members: members(host, store, name)?,
        configured: false,
        jail: name.clone(),
    })
}

fn rejected(jail: &JailName) -> Result<Rejected> {
    let wall = nftables::counters(&TableId::wall(jail))?;
    let guard = nftables::counters(&TableId::guard(jail))?;
    let packets = |counters: &HashMap<String, Counter>, name| counters.get(name).map_or(0, |counter| counter.packets);
    Ok(Rejected {
        out: packets(&wall, "rejected_out"),
        r#in: packets(&wall, "rejected_in"),
        host: packets(&wall, "rejected_host"),
        forged: packets(&guard, "forged"),
    })
}

fn members(host: &mut Kernel, store: &Store, jail: &JailName) -> Result<Vec<MemberReport>> {
    let records = store.members(jail)?;
    let mut sent = Vec::new();
    if !records.is_empty() {
        sent = nftables::elements(&TableId::guard(jail), Set::Own4)?;
        sent.extend(nftables::elements(&TableId::guard(jail), Set::Own6)?);
    }
    let brought = forward::brought(jail, &records)?;
    let mut reports = records
        .iter()
        .map(|record| report_member(host, record, &sent, forward::leads(store, record, &brought)))
        .collect::<Result<Vec<MemberReport>>>()?;
    reports.extend(late_members(store, Some(jail))?);
    Ok(reports)
}

/// Containers of this jail that are no members: their address is not there yet, or they cannot be held.
fn late_members(store: &Store, jail: Option<&JailName>) -> Result<Vec<MemberReport>> {
    let lates = store.lates()?.into_iter().filter(|late| late.jail.as_ref() == jail);
    Ok(lates
        .filter_map(|late| {
            let alive = late.is_alive();
            let (state, why) = match late.verdict {
                Verdict::Waiting { why } => (State::Pending, why),
                Verdict::Refused { why } => (State::Refused, Some(why)),
                Verdict::Admitted | Verdict::Nobodys => return None,
            };
            let containers = late.containers.iter().map(|container| container.id.to_string()).collect();
            Some(MemberReport { containers, state, why, alive, interfaces: Vec::new(), forwards: Vec::new() })
        })
        .collect())
}

fn report_member(
    host: &mut Kernel,
    record: &MemberRecord,
    sent: &[(Vec<String>, Counter)],
    forwards: Vec<Lead>,
) -> Result<MemberReport> {
    let interfaces = record
        .interfaces
        .iter()
        .map(|interface| {
            let mac = interface.mac.to_string();
            let own = |key: &[String]| {
                key.get(1) == Some(&mac)
                    && key
                        .get(2)
                        .is_some_and(|address| interface.addresses.iter().any(|own| own.to_string() == *address))
            };
            let counters = sent.iter().filter(|(key, _)| own(key)).map(|(_, counter)| counter);
            let (packets, bytes) = counters.fold((0, 0), |(p, b), counter| (p + counter.packets, b + counter.bytes));
            InterfaceReport {
                name: interface.name.to_string(),
                port: interface.port_name.to_string(),
                addresses: interface.addresses.iter().map(ToString::to_string).collect(),
                mac,
                packets,
                bytes,
            }
        })
        .collect();
    Ok(MemberReport {
        containers: record.containers.iter().map(|container| container.id.to_string()).collect(),
        state: match record.state {
            MemberState::Entering => State::Entering,
            MemberState::Held => State::Held,
        },
        why: None,
        alive: leave::is_alive(host, record)?,
        interfaces,
        forwards,
    })
}

fn print(out: &mut impl Write, jail: &JailReport) -> Result<()> {
    let by = match jail.raised_by {
        Some(RaisedBy::Admin) => ", raised by tunjail up",
        Some(RaisedBy::Hook) => ", raised by a hook",
        None => "",
    };
    let table = jail.table.map(|table| format!(", table {table}")).unwrap_or_default();
    let bridge = jail.bridge.as_deref().unwrap_or("none yet");
    writeln!(out, "jail {}: wall {}{by}{table}, bridge {bridge}", jail.jail, jail.wall)?;
    if !jail.configured {
        writeln!(
            out,
            "  not in the configuration any more, so what it should be is known in part; `tunjail down {}` removes it",
            jail.jail
        )?;
    }
    for exit in &jail.exits {
        let state = match &exit.trouble {
            Some(trouble) => format!("{trouble}; nothing leaves by it"),
            None => format!("up, IPv4 {}, IPv6 {}", yes(exit.v4), yes(exit.v6)),
        };
        let handshake = match exit.wireguard.as_ref().map(|tunnel| tunnel.last_handshake) {
            None => String::new(),
            Some(None) => ", no handshake yet".to_owned(),
            Some(Some(age)) => format!(", last handshake {age} s ago"),
        };
        let colon = if exit.trouble.is_none() { ":" } else { "" };
        writeln!(out, "  exit {}{colon} {state}{handshake}", exit.name)?;
    }
    let Rejected { out: outward, r#in: inward, host, forged } = jail.rejected;
    writeln!(out, "  rejected packets: {outward} past the exit, {inward} inward, {host} to the host, {forged} forged")?;
    if jail.members.is_empty() {
        return Ok(writeln!(out, "  no members")?);
    }
    print_members(out, &jail.members)
}

fn print_members(out: &mut impl Write, members: &[MemberReport]) -> Result<()> {
    writeln!(
        out,
        "  {:<14} {:<9} {:<10} {:<12} {:>10} {:>12}  addresses",
        "container", "state", "interface", "port", "packets", "bytes"
    )?;
    for member in members {
        let state = match (member.alive, member.state) {
            (false, _) => "dead",
            (true, State::Entering) => "entering",
            (true, State::Held) => "held",
            (true, State::Pending) => "pending",
            (true, State::Refused) => "refused",
        };
        let id: String = member.containers.first().map(|id| id.chars().take(12).collect()).unwrap_or_default();
        let more = match member.containers.len() {
            0 | 1 => String::new(),
            n => format!("+{}", n - 1),
        };
        if member.interfaces.is_empty() {
            let why = member.why.as_deref().unwrap_or("no address yet");
            writeln!(out, "  {:<14} {state:<9} locked: {why}", format!("{id}{more}"))?;
        }
        for interface in &member.interfaces {
            writeln!(
                out,
                "  {:<14} {state:<9} {:<10} {:<12} {:>10} {:>12}  {}",
                format!("{id}{more}"),
                interface.name,
                interface.port,
                interface.packets,
                interface.bytes,
                interface.addresses.join(" ")
            )?;
        }
        for lead in &member.forwards {
            writeln!(out, "  {:<14} {lead}", "")?;
        }
    }
    Ok(())
}

fn yes(there: bool) -> &'static str {
    if there { "yes" } else { "no" }
}
