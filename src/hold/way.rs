//! The kernel's own answer: where it would send a member's packets. Rules before tunjail's, and routes of others, are in it.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use super::Kernel;
use super::wall::Survey;
use crate::model::facts::FibAnswer;
use crate::model::objects::Family;
use crate::model::policy::{Jail, Routes};
use crate::model::verify;

/// Addresses that no packet is sent to: RFC 5737, RFC 3849.
const SOMEWHERE: [&str; 6] =
    ["198.51.100.1", "203.0.113.1", "192.0.2.1", "2001:db8::1", "2001:db8:ffff::1", "2001:db8:ffff:ffff::1"];

/// Addresses of nobody, to ask the way to. A host may have one of them itself; then the next one is to be asked.
pub fn somewhere(family: Family) -> impl Iterator<Item = IpAddr> {
    SOMEWHERE.iter().filter_map(|address| address.parse().ok()).filter(move |address| Family::of(*address) == family)
}

/// Asks the FIB itself, with each of these sources and the bridge as the interface it came in by.
pub(super) fn leads_by_the_exits(host: &mut Kernel, jail: &Jail, survey: &Survey, sources: Vec<IpAddr>) -> Result<()> {
    let Some(bridge) = &survey.bridge else { bail!("jail {} has no bridge", jail.name) };
    let exits = survey.exits();
    let is_elsewhere =
        |address: &IpAddr| !jail.holds(*address) && !jail.allow.iter().any(|allow| allow.net.contains(address));
    let mut unasked = sources;
    // Where the first address is the host's own, the next one is asked.
    for attempt in 0..SOMEWHERE.len() {
        let pairs: Vec<(IpAddr, IpAddr)> = unasked
            .iter()
            .filter_map(|source| Some((*source, somewhere(Family::of(*source)).filter(is_elsewhere).nth(attempt)?)))
            .collect();
        for ((source, destination), answer) in pairs.iter().zip(host.rtnl.ways(&pairs, bridge.index)?) {
            verify::way(*source, *destination, &answer, &exits).or_else(|error| match jail.routes {
                Routes::Own => Err(error.into()),
                Routes::Foreign => Err(error).with_context(|| led_astray(host, jail, survey, &answer)),
            })?;
            if answer != FibAnswer::Local {
                unasked.retain(|address| address != source);
            }
        }
        if unasked.is_empty() {
            return Ok(());
        }
    }
    bail!("the way of {} could not be asked: every documentation address is the host's own or allowed", unasked[0]);
}

/// Where the ways out are others', they are asked about when the wall is raised, and not only for each member. Without a
/// bridge there is nothing that a packet could come in by, and so no question.
pub fn others_lead_to_the_exits(host: &mut Kernel, jail: &Jail, survey: &Survey) -> Result<()> {
    if jail.routes == Routes::Own || survey.bridge.is_none() {
        return Ok(());
    }
    let own: Vec<IpAddr> = host.rtnl.addresses(None)?.iter().map(|address| address.address).collect();
    let sources = jail.subnets.iter().filter_map(|net| somebody_of(net, &own)).collect();
    leads_by_the_exits(host, jail, survey, sources)
}

/// An address of the net that is not the host's own: a packet from that would be none of a member's.
fn somebody_of(net: &IpNet, own: &[IpAddr]) -> Option<IpAddr> {
    const ENOUGH: usize = 8;
    net.hosts().take(ENOUGH).find(|address| !own.contains(address))
}

fn led_astray(host: &mut Kernel, jail: &Jail, survey: &Survey, answer: &FibAnswer) -> String {
    let link = match answer {
        FibAnswer::Out(index) => host.rtnl.link_by_index(*index).ok().flatten(),
        FibAnswer::Local | FibAnswer::Unreachable => None,
    };
    let by = link.map_or("another interface".to_owned(), |link| link.name);
    let exits = jail.exits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "jail {}: routes = \"foreign\", but routing table {} leads out by {by}, which is none of its exits ({exits}); correct the routes of that table, or \"exit = \" in [jail.{}]",
        jail.name, survey.desired.table, jail.name
    )
}
