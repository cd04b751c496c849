//! Whether what a jail says fits this host: its subnets are free, its exit leads out, and not by the host's own way.

use std::net::IpAddr;

use ipnet::IpNet;

use super::desired;
use super::facts::{ExitFacts, HostNet, OtherRule};
use super::names::{IfName, JailName};
use super::objects::{FIRST_RULE_PRIORITY, Family, RULE_PRIORITY};
use super::policy::{Jail, overlap};

/// A subnet of a jail that is, in whole or part, something else on this host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "jail {jail}: subnet {subnet} overlaps {net}, a net of this host's interface {interface}; name the subnet of the containers' network alone{hint}"
)]
pub struct Conflict {
    jail: JailName,
    subnet: IpNet,
    net: IpNet,
    interface: String,
    hint: String,
}

/// An exit that turned out to be the bridge which was found for the jail.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "jail {jail}: exit {exit} is the bridge of the jail's own containers; name the interface that leads out of the host, such as tun0"
)]
pub struct ExitIsBridge {
    jail: JailName,
    exit: IfName,
}

/// A default route into the bridge would send what should leave to whoever on it answers ARP for it. A bridge that was
/// named is compared by the configuration already.
pub fn with_bridge(jail: &Jail, bridge: Option<&IfName>) -> Result<(), ExitIsBridge> {
    match jail.exits.iter().find(|exit| bridge == Some(exit)) {
        Some(exit) => Err(ExitIsBridge { jail: jail.name.clone(), exit: exit.clone() }),
        None => Ok(()),
    }
}

/// Holding a net that the host lives in would cut off the host itself.
pub fn with_host(jail: &Jail, nets: &[HostNet], bridge: Option<&IfName>) -> Result<(), Conflict> {
    for subnet in &jail.subnets {
        let other = nets
            .iter()
            .find(|net| Some(net.interface.as_str()) != bridge.map(|name| name.as_str()) && overlap(subnet, &net.net));
        if let Some(other) = other {
            let hint = match bridge {
                Some(bridge) => format!(" (its bridge is {bridge})"),
                None => ", or its bridge with \"bridge = \"".to_owned(),
            };
            return Err(Conflict {
                jail: jail.name.clone(),
                subnet: *subnet,
                net: other.net,
                interface: other.interface.clone(),
                hint,
            });
        }
    }
    Ok(())
}

/// A next hop that is no neighbour of the exit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "jail {jail}: gateway {gateway} is in no net of exit {exit} ({nets}); correct \"gateway = \" in [jail.{jail}], or the address of {exit}"
)]
pub struct GatewayElsewhere {
    jail: JailName,
    gateway: IpAddr,
    exit: String,
    nets: String,
}

/// The kernel takes no route by such a gateway. An exit that has no address yet cannot be judged, nor one that needs none.
pub fn with_gateways(jail: &Jail, exits: &[ExitFacts]) -> Result<(), GatewayElsewhere> {
    for exit in exits.iter().filter(|exit| !exit.link.tunnel) {
        for family in Family::BOTH.into_iter().filter(|family| exit.has(*family)) {
            let wanted = jail.gateways.iter().find(|gateway| Family::of(**gateway) == family);
            if let (Some(gateway), None) = (wanted, desired::next_hop(jail, exit, family)) {
                let nets = exit.nets.iter().filter(|net| Family::of_net(net) == family).map(IpNet::trunc);
                return Err(GatewayElsewhere {
                    jail: jail.name.clone(),
                    gateway: *gateway,
                    exit: exit.link.name.clone(),
                    nets: nets.map(|net| net.to_string()).collect::<Vec<_>>().join(", "),
                });
            }
        }
    }
    Ok(())
}

/// An exit that everything else of the host leaves by, too.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "jail {jail}: exit {exit} is the interface of this host's only default route, so the jail would hold nothing back; name a tunnel or a second uplink with \"exit = \" in [jail.{jail}]"
)]
pub struct ExitIsUplink {
    jail: JailName,
    exit: String,
}

/// `defaults` are the interfaces, by index, that default routes of the host's main table leave by. A tunnel may have
/// made itself the only one (OpenVPN's redirect-gateway).
pub fn with_uplink(jail: &Jail, exits: &[ExitFacts], defaults: &[u32]) -> Result<(), ExitIsUplink> {
    let is_the_only = |index: u32| !defaults.is_empty() && defaults.iter().all(|other| *other == index);
    match exits.iter().find(|exit| !exit.link.tunnel && is_the_only(exit.link.index)) {
        Some(exit) => Err(ExitIsUplink { jail: jail.name.clone(), exit: exit.link.name.clone() }),
        None => Ok(()),
    }
}

/// What a rule of others, asked before the jail's own, takes of the jail's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Catches {
    Nothing,
    /// Those that something on the host marks.
    Marked,
    Packets,
}

/// What `rule` takes of the packets of `jail`, come in by `bridge`. Where that depends on the packet, it takes it.
pub fn with_rule(jail: &Jail, bridge: Option<&IfName>, rule: &OtherRule) -> Catches {
    if !jail.subnets.iter().any(|subnet| Family::of_net(subnet) == rule.family) {
        return Catches::Nothing;
    }
    if rule.inverted {
        return Catches::Packets;
    }
    // Towards members: no way out.
    if rule.destination.is_some_and(|net| jail.subnets.iter().any(|subnet| subnet.contains(&net))) {
        return Catches::Nothing;
    }
    let of_a_member = rule.source.is_none_or(|net| jail.subnets.iter().any(|subnet| overlap(subnet, &net)));
    let by_the_bridge = rule.iif.as_deref().is_none_or(|iif| bridge.is_some_and(|bridge| bridge.as_str() == iif));
    match (of_a_member && by_the_bridge, rule.marked) {
        (false, _) => Catches::Nothing,
        (true, true) => Catches::Marked,
        (true, false) => Catches::Packets,
    }
}

/// The preference of the first of `rules` that takes packets of the jail and that its own rules may move before: one that
/// was given none and got what was next. See [`RULE_PRIORITY`].
pub fn first_to_precede(jail: &Jail, bridge: Option<&IfName>, rules: &[OtherRule]) -> Option<u32> {
    let may = |rule: &&OtherRule| (FIRST_RULE_PRIORITY + 1..RULE_PRIORITY).contains(&rule.priority);
    rules
        .iter()
        .filter(may)
        .filter(|rule| with_rule(jail, bridge, rule) != Catches::Nothing)
        .map(|rule| rule.priority)
        .min()
}
