//! A jail's wall: raised by `up` or by its first member, kept standing by every later call, taken down with the last.

use std::hash::{DefaultHasher, Hasher};

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;

use super::leave::shut_elements;
use super::{Kernel, after_taking_back, forward, way};
use crate::kernel::conntrack::Conntrack;
use crate::kernel::nftables;
use crate::model::conflict;
use crate::model::desired::{self, Wall};
use crate::model::facts::{Address, ExitFacts, Fingerprint, Link, Surroundings, Tables, WallFacts};
use crate::model::names::{IfName, JailName};
use crate::model::objects::{Element, Family, RULE_PRIORITY, Route, Rule, TableId, Target};
use crate::model::plan::{self, Change};
use crate::model::policy::{Jail, Routes};
use crate::model::verify;
use crate::rt_tables;
use crate::store::{LockedStore, RaisedBy, Store, WallRecord};

/// What is known of a jail before anything is changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Survey {
    pub record: Option<WallRecord>,
    pub surroundings: Surroundings,
    pub bridge: Option<Link>,
    pub observed: WallFacts,
    pub desired: Wall,
    /// The tables hold what was loaded, and what was loaded is what is wanted now.
    tables_intact: bool,
}

impl Survey {
    /// Everything is there, and nothing else.
    pub fn stands(&self) -> bool {
        self.tables_intact
            && self
                .record
                .as_ref()
                .is_some_and(|record| verify::wall(&self.observed, &self.desired, record.loaded).is_ok())
    }

    /// Nothing was taken from it by others, but its surroundings changed since it was written: an exit or the bridge
    /// came and has no route yet, or lost its carrier and has one still; or a rule of others came before the jail's own.
    /// Nothing leaks; something does not pass.
    pub fn is_behind(&self) -> bool {
        // A route by a device goes with the device; the others go only when somebody takes them.
        let follows = |route: &Route| match &route.target {
            Target::Dev { name, .. } => self.is_of_the_jail(name),
            Target::Throw | Target::Unreachable => false,
            Target::Foreign(_) => self.desired.ways_out == Routes::Foreign,
        };
        let (observed, desired) = (&self.observed, &self.desired);
        self.tables_intact
            && has_the_rules_elsewhere(&observed.rules, &desired.rules)
            && observed.routes.iter().all(|route| desired.routes.contains(route) || follows(route))
            && desired.routes.iter().all(|route| observed.routes.contains(route) || follows(route))
    }

    fn is_of_the_jail(&self, interface: &IfName) -> bool {
        let is_exit = |exit: &ExitFacts| exit.link.name == interface.as_str();
        self.surroundings.bridge.as_ref() == Some(interface) || self.surroundings.exits.iter().any(is_exit)
    }

    /// Interfaces that new connections of each family leave by now, IPv4's first. `None`: nothing of tunjail's leads out.
    pub fn ways_out(&self) -> [Option<&IfName>; 2] {
        Family::BOTH.map(|family| {
            let defaults = self.observed.routes.iter().filter(|route| route.destination == family.everything());
            match defaults.min_by_key(|route| route.metric).map(|route| &route.target) {
                Some(Target::Dev { name, .. }) => Some(name),
                _ => None,
            }
        })
    }

    /// Interface indexes that a packet of the jail may leave by.
    pub fn exits(&self) -> Vec<u32> {
        self.surroundings.exits.iter().map(|exit| exit.link.index).collect()
    }
}

/// The same rules, by whatever preference.
fn has_the_rules_elsewhere(observed: &[Rule], desired: &[Rule]) -> bool {
    let is = |a: &Rule, b: &Rule| a.selector == b.selector && a.table == b.table;
    observed.len() == desired.len() && desired.iter().all(|rule| observed.iter().any(|there| is(there, rule)))
}

/// Looks at everything that the wall depends on and everything that it is. Changes nothing.
pub fn survey(host: &mut Kernel, store: &Store, jail: &Jail) -> Result<Survey> {
    let record = store.wall(&jail.name)?;
    let table = table_number(host, store, jail, record.as_ref())?;
    let bridge = find_bridge(host, jail, record.as_ref().and_then(|record| record.bridge.as_ref()))?;
    let name_of_bridge = match (&jail.bridge, &bridge) {
        (Some(named), _) => Some(named.clone()),
        (None, Some(link)) => Some(link.name.parse()?),
        // Podman removes a bridge with its last container and makes it anew: the wall goes on waiting by name.
        (None, None) => record.as_ref().and_then(|record| record.bridge.clone()),
    };
    let (rules, others) = host.rtnl.all_rules(table, RULE_PRIORITY)?;
    let surroundings = Surroundings {
        exits: look_at_exits(host, jail)?,
        first_of_others: conflict::first_to_precede(jail, name_of_bridge.as_ref(), &others),
        bridge: name_of_bridge,
    };
    let observed = look_beside(host, &jail.name, table, rules)?;
    let mut desired = desired::wall(jail, table, &surroundings);
    if bridge.is_none() {
        // A bridge that is known by name but not there: rules wait for it by name, routes cannot.
        let named = Surroundings { bridge: None, ..surroundings.clone() };
        desired.routes = desired::wall(jail, table, &named).routes;
    }
    let tables_intact = record.as_ref().is_some_and(|record| {
        record.ruleset == digest(desired.ruleset.text())
            && record.loaded == observed.tables
            && observed.tables.wall.is_some()
            && observed.tables.guard.is_some()
    });
    Ok(Survey { record, surroundings, bridge, observed, desired, tables_intact })
}

/// Whether a wall that no configuration describes any more stands, as far as that can be told.
pub fn stands_for_nobody(host: &mut Kernel, record: &WallRecord) -> Result<bool> {
    let observed = look(host, &record.jail, record.table)?;
    Ok(verify::wall_of_nobody(&observed, record.table, record.bridge.as_ref(), record.loaded).is_ok())
}

/// The steps that would make the wall stand; none when it does.
pub fn plan_to_raise(host: &mut Kernel, store: &Store, jail: &Jail, survey: &Survey) -> Result<Vec<Change>> {
    if survey.stands() {
        return Ok(Vec::new());
    }
    conflict::with_bridge(jail, survey.surroundings.bridge.as_ref())?;
    conflict::with_host(jail, &host.rtnl.nets()?, survey.surroundings.bridge.as_ref())?;
    if survey.record.is_none() {
        // One that stands goes on, whatever its surroundings come to be like.
        let exits = &survey.surroundings.exits;
        conflict::with_gateways(jail, exits)?;
        conflict::with_uplink(jail, exits, &host.rtnl.default_interfaces()?)?;
    }
    let script = match survey.tables_intact {
        true => None,
        false => Some(survey.desired.ruleset.script(&elements_of_members(store, jail)?)),
    };
    Ok(plan::raise(&jail.name, &survey.observed, &survey.desired, script)?)
}

/// Makes the wall stand, verified, and recorded as raised by `by`. One that stands already is left as it is.
pub fn ensure(host: &mut Kernel, store: &LockedStore, jail: &Jail, by: RaisedBy) -> Result<Survey> {
    let survey = survey(host, store, jail)?;
    let raised_by = match (&survey.record, by) {
        (Some(record), RaisedBy::Hook) => record.raised_by,
        _ => by,
    };
    if survey.stands() {
        if let Some(record) = survey.record.as_ref().filter(|record| record.raised_by != raised_by) {
            store.put_wall(&WallRecord { raised_by, ..record.clone() })?;
        }
        return Ok(survey);
    }
    let is_new = survey.record.is_none() && !store.has_members(&jail.name)?;
    raise(host, store, jail, survey, raised_by).map(|(survey, _)| survey).map_err(|error| match is_new {
        // Half a wall that nobody is behind is nobody's gain; half a wall with members stays and holds what it holds.
        true => after_taking_back(error, take_down(host, store, &jail.name, Some(jail)).map(drop)),
        false => error,
    })
}

/// Brings a wall that somebody raised up to date; one that nobody raised stays down. Returns the steps that it took.
pub fn follow(host: &mut Kernel, store: &LockedStore, jail: &Jail) -> Result<Vec<Change>> {
    let survey = survey(host, store, jail)?;
    let Some(raised_by) = survey.record.as_ref().map(|record| record.raised_by) else { return Ok(Vec::new()) };
    if survey.stands() {
        return Ok(Vec::new());
    }
    raise(host, store, jail, survey, raised_by).map(|(_, steps)| steps)
}

fn raise(
    host: &mut Kernel,
    store: &LockedStore,
    jail: &Jail,
    survey: Survey,
    raised_by: RaisedBy,
) -> Result<(Survey, Vec<Change>)> {
    let table = survey.desired.table;
    let steps = plan_to_raise(host, store, jail, &survey)?;
    // On record before the first step, so that a crash in between leaves something to take down.
    let mut record = WallRecord {
        jail: jail.name.clone(),
        table,
        bridge: survey.surroundings.bridge.clone(),
        raised_by,
        exits: survey.record.as_ref().map(|record| record.exits.clone()).unwrap_or_default(),
        ruleset: digest(survey.desired.ruleset.text()),
        loaded: survey.observed.tables,
    };
    store.put_wall(&record)?;
    // Before the first step too: a wall that stands is not touched again, so a name that a crash prevented would stay out.
    if let Err(error) = rt_tables::name(&jail.name, table) {
        // A name is a convenience; the wall stands without it.
        eprintln!("tunjail: warning: routing table {table} has no name: /etc/iproute2/rt_tables.d: {error}");
    }
    let renames = jail.exits.len() == 1 && survey.record.as_ref().is_some_and(|record| record.exits != jail.exits);
    for step in &steps {
        host.apply(step)?;
        if renames && matches!(step, Change::LoadRuleset(_)) {
            no_connection_takes_another_exits_name_along(jail)?;
        }
    }
    record.exits.clone_from(&jail.exits);
    if !survey.tables_intact {
        forward::callers_begin_anew(host, &survey.exits(), &elements_of_members(store, jail)?);
    }
    if survey.record.is_some() && survey.observed.tables.wall.is_none() {
        connections_go_on(jail);
    }
    let observed = look(host, &jail.name, table)?;
    record.loaded = match survey.tables_intact {
        true => record.loaded,
        false => observed.tables,
    };
    verify::wall(&observed, &survey.desired, record.loaded)
        .with_context(|| format!("the wall of jail {} does not hold what was written", jail.name))?;
    way::others_lead_to_the_exits(host, jail, &survey)?;
    store.put_wall(&record)?;
    Ok((Survey { record: Some(record), observed, tables_intact: true, ..survey }, steps))
}

/// With the new ruleset and the old routes nothing passes, so nothing is tracked anew until the routes change. The kernel
/// itself ends only connections that were masqueraded, and the ruleset judges only those of a jail with several exits
/// packet by packet.
fn no_connection_takes_another_exits_name_along(jail: &Jail) -> Result<()> {
    let allowed: Vec<IpNet> = jail.allow.iter().map(|allow| allow.net).collect();
    Conntrack::open()?.forget_names(&jail.subnets, &allowed)?;
    Ok(())
}

/// Where somebody took the tables away, connection tracking may have gone with them, and would hold against established
/// connections what it missed. Those would hang, nothing more: where it fails, that is said.
fn connections_go_on(jail: &Jail) {
    let pardoned = Conntrack::open().and_then(|mut conntrack| conntrack.pardon_gaps(&jail.subnets));
    if let Err(error) = pardoned {
        eprintln!("tunjail: warning: connections of jail {} may hang until they are opened anew: {error}", jail.name);
    }
}

/// What `take_down` would do.
pub fn plan_to_take_down(
    host: &mut Kernel,
    store: &Store,
    name: &JailName,
    jail: Option<&Jail>,
) -> Result<Vec<Change>> {
    let record = store.wall(name)?;
    let table = record
        .map(|record| record.table)
        .or_else(|| rt_tables::recorded(name))
        .or_else(|| jail.and_then(|jail| jail.table));
    let tables = [TableId::wall(name), TableId::guard(name)];
    Ok(match table {
        Some(table) => plan::take_down(table, tables, &look(host, name, table)?),
        None => plan::take_down(0, tables, &WallFacts { tables: look_at_tables(host, name)?, ..WallFacts::default() }),
    })
}

/// Removes everything of the wall: every step is tried, and every failure told.
pub fn take_down(host: &mut Kernel, store: &LockedStore, name: &JailName, jail: Option<&Jail>) -> Result<bool> {
    let steps = plan_to_take_down(host, store, name, jail)?;
    let mut failures: Vec<String> = Vec::new();
    for step in &steps {
        if let Err(error) = host.apply(step) {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() {
        let left = plan_to_take_down(host, store, name, jail)?;
        failures.extend((!left.is_empty()).then(|| format!("still there: {}", plan::lines(&left, "").trim())));
    }
    if !failures.is_empty() {
        bail!("taking down the wall of jail {name}: {}", failures.join("; "));
    }
    let was_there = !steps.is_empty() || store.wall(name)?.is_some();
    if let Err(error) = rt_tables::unname(name) {
        eprintln!("tunjail: warning: /etc/iproute2/rt_tables.d: {error}");
    }
    store.remove_wall(name)?;
    Ok(was_there)
}

fn elements_of_members(store: &Store, jail: &Jail) -> Result<Vec<Element>> {
    let mut elements = Vec::new();
    for member in store.members(&jail.name)? {
        let desired = desired::member(&jail.name, &member.interfaces);
        elements.extend(desired.guard);
        elements.extend(desired.membership);
        elements.extend(store.led_to(&member));
    }
    for late in store.lates()? {
        elements.extend(shut_elements(&late).into_iter().filter(|element| is_of(element, &jail.name)));
    }
    // Two records may claim one address; a set holds it once.
    elements.sort();
    elements.dedup_by(|a, b| (&a.table, a.set, &a.key) == (&b.table, b.set, &b.key));
    Ok(elements)
}

fn is_of(element: &Element, jail: &JailName) -> bool {
    [TableId::wall(jail), TableId::guard(jail)].contains(&element.table)
}

fn look(host: &mut Kernel, jail: &JailName, table: u32) -> Result<WallFacts> {
    let rules = host.rtnl.rules(table)?;
    look_beside(host, jail, table, rules)
}

fn look_beside(host: &mut Kernel, jail: &JailName, table: u32, rules: Vec<Rule>) -> Result<WallFacts> {
    Ok(WallFacts { rules, routes: host.rtnl.routes(table)?, tables: look_at_tables(host, jail)? })
}

fn look_at_tables(host: &mut Kernel, jail: &JailName) -> Result<Tables> {
    Ok(Tables {
        wall: nftables::fingerprint(&mut host.nfnl, &TableId::wall(jail))?,
        guard: nftables::fingerprint(&mut host.nfnl, &TableId::guard(jail))?,
    })
}

fn look_at_exits(host: &mut Kernel, jail: &Jail) -> Result<Vec<ExitFacts>> {
    let mut exits = Vec::new();
    for name in &jail.exits {
        let Some(link) = host.rtnl.link_by_name(name)? else { continue };
        let addresses = host.rtnl.sources(link.index)?;
        let net = |address: &Address| IpNet::new(address.peer, address.prefix_len).ok();
        exits.push(ExitFacts {
            nets: addresses.iter().filter(|address| !address.is_link_local()).filter_map(net).collect(),
            v4: addresses.iter().any(|address| address.address.is_ipv4()),
            v6: addresses.iter().any(|address| address.address.is_ipv6() && !address.is_link_local()),
            link,
        });
    }
    Ok(exits)
}

/// The bridge that was named, or that was found before and is still one, or that has an address of the jail.
fn find_bridge(host: &mut Kernel, jail: &Jail, recorded: Option<&IfName>) -> Result<Option<Link>> {
    if let Some(name) = &jail.bridge {
        let Some(link) = host.rtnl.link_by_name(name)? else { return Ok(None) };
        if !link.is_kind("bridge") {
            bail!("jail {}: interface {name} is no bridge; correct \"bridge = \" in [jail.{}]", jail.name, jail.name);
        }
        return Ok(Some(link));
    }
    if let Some(name) = recorded
        && let Some(link) = host.rtnl.link_by_name(name)?.filter(|link| link.is_kind("bridge"))
    {
        return Ok(Some(link));
    }
    let mut holders: Vec<u32> = host
        .rtnl
        .addresses(None)?
        .iter()
        .filter(|address| jail.holds(address.address))
        .map(|address| address.index)
        .collect();
    holders.sort_unstable();
    holders.dedup();
    for index in holders {
        if let Some(link) = host.rtnl.link_by_index(index)?.filter(|link| link.is_kind("bridge")) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// The number that the administrator chose, or that the wall has, or that its name file keeps, or a free one.
fn table_number(host: &mut Kernel, store: &Store, jail: &Jail, record: Option<&WallRecord>) -> Result<u32> {
    if let (Some(record), Some(table)) = (record, jail.table)
        && record.table != table
    {
        bail!(
            "jail {}: its wall stands with routing table {}, but the configuration says {table}; run `tunjail down {}` first",
            jail.name,
            record.table,
            jail.name
        );
    }
    if let Some(table) = record.map(|record| record.table).or(jail.table).or_else(|| rt_tables::recorded(&jail.name)) {
        return Ok(table);
    }
    let mut taken = Vec::new();
    for other in store.jails()? {
        taken.extend(store.wall(&other)?.map(|wall| wall.table));
    }
    let candidate = |taken: &[u32]| rt_tables::choose(&jail.name, |number| taken.contains(&number));
    while let Some(table) = candidate(&taken) {
        if host.rtnl.routes(table)?.is_empty() {
            return Ok(table);
        }
        taken.push(table);
    }
    Err(anyhow!("jail {}: no free routing table was found; set \"table = \" in [jail.{}]", jail.name, jail.name))
}

fn digest(text: &str) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    Fingerprint(hasher.finish())
}
