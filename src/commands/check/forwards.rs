//! Forwarded ports that the host's firewall drops. A drop is final, whoever else accepts: Docker's own rules drop what
//! comes from outside to a port that was not published.

use std::collections::BTreeMap;

use serde_json::Value;

use super::filter::nft::Base;
use super::filter::{Call, Target, iptables, nft};
use super::firewall;
use super::rulesets::{Iptables, Kind, Rulesets};
use super::{Findings, Verdict};
use crate::model::names::IfName;
use crate::model::objects::{Element, Family, Part};
use crate::model::policy::{Forward, Jail, Port};
use crate::store::Store;

pub(super) fn look(findings: &mut Findings, what: &str, jail: &Jail, bridge: &IfName, rulesets: &Rulesets) {
    let Some(leads) = findings.take(what, leads(&Store::open(), jail)) else { return };
    for exit in &jail.exits {
        let mut stopped: BTreeMap<(Family, Stop), Vec<String>> = BTreeMap::new();
        for Lead { at_exit, to, port } in &leads {
            let call = Call { exit, bridge, to: to.clone(), port: *port };
            for stop in stops(rulesets, jail, &call) {
                let ports = stopped.entry((call.family(), stop)).or_default();
                ports.extend((!ports.contains(&at_exit.to_string())).then(|| at_exit.to_string()));
            }
        }
        for ((family, Stop { by, mend }), ports) in stopped {
            let version = if family == Family::V4 { "IPv4" } else { "IPv6" };
            findings.add(
                Verdict::Warning,
                what,
                format!(
                    "what comes in by exit {exit} for its forwarded ports ({}) is dropped, {version}, by {by}, and a drop is \
                     final; {mend}",
                    ports.join(", ")
                ),
            );
        }
    }
}

/// A port of the exit, and where it leads.
struct Lead<'a> {
    at_exit: Port,
    to: Target<'a>,
    port: Port,
}

/// What leads to members now, and what the configuration will lead to one.
fn leads<'a>(store: &Store, jail: &'a Jail) -> anyhow::Result<Vec<Lead<'a>>> {
    let members = store.members(&jail.name)?;
    let mut leads: Vec<Lead> =
        members.iter().flat_map(|member| store.led_to(member)).filter_map(|led| to_member(&led)).collect();
    let led: Vec<Port> = leads.iter().map(|lead| lead.at_exit).collect();
    for Forward { port, to_port, to } in jail.forward.iter().filter(|forward| !led.contains(&forward.port)) {
        let at_member = Port { number: *to_port, ..*port };
        let subnets = jail.subnets.iter().map(|subnet| match to {
            Some(address) if subnet.contains(address) => Target::Member(*address),
            _ => Target::Somebody(subnet),
        });
        leads.extend(subnets.map(|to| Lead { at_exit: *port, to, port: at_member }));
    }
    Ok(leads)
}

fn to_member(element: &Element) -> Option<Lead<'static>> {
    match element.key.as_slice() {
        [Part::Protocol(protocol), Part::Number(number), Part::Address(address), Part::Number(to_port)] => Some(Lead {
            at_exit: Port { protocol: *protocol, number: *number },
            to: Target::Member(*address),
            port: Port { protocol: *protocol, number: *to_port },
        }),
        _ => None,
    }
}

/// Who drops a call, and what lets it through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Stop {
    by: String,
    mend: String,
}

/// Docker's, for rules of its users that come before its own.
const USERS_CHAIN: &str = "DOCKER-USER";

/// Every chain that drops the call: each has to let it through. One that never heard of the jail has a line of its own.
fn stops(rulesets: &Rulesets, jail: &Jail, call: &Call) -> Vec<Stop> {
    let family = call.family();
    let listed = |kind| rulesets.iptables.iter().find(|listed| listed.family == family && listed.kind == kind);
    let mut stops = Vec::new();
    if let Some(ruleset) = &rulesets.nft {
        let told = firewall::closed_chains(ruleset, jail, call.bridge);
        let untold = |base: &Base| base.sees(family) && !told.iter().any(|closed| closed.is(base));
        for base in nft::bases(ruleset).filter(untold) {
            stops.extend(match listed(Kind::Nft).filter(|_| base.is_of_iptables()) {
                Some(listed) => stop_of_iptables(listed, call),
                None => stop_of_nft(ruleset, &base, call),
            });
        }
    }
    let legacy = listed(Kind::Legacy)
        .filter(|listed| firewall::closed_legacy(&listed.rules, family, jail, call.bridge).is_none());
    stops.extend(legacy.and_then(|listed| stop_of_iptables(listed, call)));
    stops
}

fn stop_of_iptables(listed: &Iptables, call: &Call) -> Option<Stop> {
    let table = iptables::table(&listed.rules, call);
    let rule = table.dropped_by("FORWARD")?;
    let program = listed.kind.program(listed.family);
    let chain = if table.leads_to("FORWARD", USERS_CHAIN) { USERS_CHAIN } else { "FORWARD" };
    Some(Stop {
        by: format!("\"{program} {rule}\""),
        mend: format!("let it through before: {program} -I {chain} -i {} -o {} -j ACCEPT", call.exit, call.bridge),
    })
}

fn stop_of_nft(ruleset: &Value, base: &Base, call: &Call) -> Option<Stop> {
    let Base { family, table, name } = *base;
    let judged = nft::table(ruleset, base, call);
    let rule = judged.dropped_by(name)?;
    let mend = match table {
        // Docker 29 makes this one anew with each change.
        "docker-bridges" => {
            "publish the member's port (-p), as Docker has no place there for rules of its users".to_owned()
        }
        _ => format!(
            "let it through before: nft insert rule {family} {table} {name} iifname {} oifname {} accept",
            call.exit, call.bridge
        ),
    };
    Some(Stop { by: format!("nftables table {family} {table} ({rule})"), mend })
}
