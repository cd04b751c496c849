//! Whether the kernel now holds what it should. Called after every apply; what it finds is an error, never a warning.

use super::desired::{self, Wall};
use super::facts::{FibAnswer, Tables, WallFacts};
use super::names::IfName;
use super::objects::{Element, RULE_PRIORITY, Route, Rule, Selector, Target};
use super::policy::Routes;

/// What was found wrong after a write. Each text says what differs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("ip rule \"{0}\" is missing after it was added")]
    RuleMissing(Rule),
    #[error("ip rule \"{0}\" is still there after it was removed")]
    RuleSurplus(Rule),
    #[error("no ip rule leads a subnet to table {table}")]
    NoRule { table: u32 },
    #[error("route \"{0}\" is missing after it was added")]
    RouteMissing(Route),
    #[error("route \"{0}\" is in the jail's table and should not be")]
    RouteSurplus(Route),
    #[error("nftables table {0} is not what was loaded; another program changed or removed it")]
    Table(&'static str),
    #[error("nftables element \"{0}\" is missing after it was added")]
    ElementMissing(Element),
    #[error(
        "the kernel would send a packet from {source_address} to {destination} by the interface with index {index}, which is not an exit of the jail; look at `ip rule` for rules before preference {}",
        super::objects::RULE_PRIORITY
    )]
    WrongWay { source_address: std::net::IpAddr, destination: std::net::IpAddr, index: u32 },
}

/// Compares what the kernel holds with what it should hold, contents and all. `loaded` are the fingerprints that the
/// tables had right after they were loaded.
pub fn wall(observed: &WallFacts, desired: &Wall, loaded: Tables) -> Result<(), Mismatch> {
    fn first_missing<'a, T: PartialEq>(wanted: &'a [T], there: &[T]) -> Option<&'a T> {
        wanted.iter().find(|item| !there.contains(item))
    }
    if let Some(rule) = first_missing(&desired.rules, &observed.rules) {
        return Err(Mismatch::RuleMissing(rule.clone()));
    }
    if let Some(rule) = first_missing(&observed.rules, &desired.rules) {
        return Err(Mismatch::RuleSurplus(rule.clone()));
    }
    if let Some(route) = first_missing(&desired.routes, &observed.routes) {
        return Err(Mismatch::RouteMissing(route.clone()));
    }
    let may_be_there = |route: &Route| match route.target {
        Target::Foreign(_) => desired.ways_out == Routes::Foreign,
        _ => desired.routes.contains(route),
    };
    if let Some(route) = observed.routes.iter().find(|route| !may_be_there(route)) {
        return Err(Mismatch::RouteSurplus(route.clone()));
    }
    tables(observed.tables, loaded)
}

fn tables(observed: Tables, loaded: Tables) -> Result<(), Mismatch> {
    if observed.wall.is_none() || observed.wall != loaded.wall {
        return Err(Mismatch::Table("of the wall"));
    }
    if observed.guard.is_none() || observed.guard != loaded.guard {
        return Err(Mismatch::Table("of the guard"));
    }
    Ok(())
}

/// What can be said of a wall that no configuration describes any more: the tables are what was loaded, the parts that
/// every wall has are there, and a rule for some subnet. Which subnets, exits and nets there should be is not known.
pub fn wall_of_nobody(
    observed: &WallFacts,
    table: u32,
    bridge: Option<&IfName>,
    loaded: Tables,
) -> Result<(), Mismatch> {
    if let Some(route) = desired::nothing_else_leaves().into_iter().find(|end| !observed.routes.contains(end)) {
        return Err(Mismatch::RouteMissing(route));
    }
    let priority = observed.rules.first().map_or(RULE_PRIORITY, |rule| rule.priority);
    let by_the_bridge = bridge.into_iter().flat_map(|bridge| desired::by_the_bridge(bridge, table, priority));
    if let Some(rule) = by_the_bridge.into_iter().find(|rule| !observed.rules.contains(rule)) {
        return Err(Mismatch::RuleMissing(rule));
    }
    if !observed.rules.iter().any(|rule| matches!(rule.selector, Selector::From(_))) {
        return Err(Mismatch::NoRule { table });
    }
    tables(observed.tables, loaded)
}

/// The kernel's own answer must be an exit of the jail, or nowhere, or the host itself, whose filter judges it.
pub fn way(
    source_address: std::net::IpAddr,
    destination: std::net::IpAddr,
    answer: &FibAnswer,
    exits: &[u32],
) -> Result<(), Mismatch> {
    match answer {
        FibAnswer::Unreachable | FibAnswer::Local => Ok(()),
        FibAnswer::Out(index) if exits.contains(index) => Ok(()),
        FibAnswer::Out(index) => Err(Mismatch::WrongWay { source_address, destination, index: *index }),
    }
}
