//! A tunnel whose own routes cover its other end: a route to that end past the tunnel, only while the host needs it.
//!
//! Whether it does is asked of the kernel: where the host's own packets to the other end would go. A client that has seen
//! to it itself, or whose server is on another way anyway, gets nothing. Such a route is the host's, not a jail's: it
//! belongs to the tunnel, and lasts until the tunnel goes or `tunjail down`.

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::exit::openvpn::Environment;
use crate::kernel::rtnetlink::Rtnl;
use crate::model::endpoint::{self, Endpoint, Hop};
use crate::model::facts::FibAnswer;
use crate::model::names::IfName;
use crate::model::objects::Family;
use crate::model::plan::Change;
use crate::store::{EndpointRecord, LockedStore, Store};

/// Adds what the host needs now for `tunnel`, and takes out what it needed before.
pub fn follow(host: &mut Kernel, store: &LockedStore, tunnel: &IfName, told: &Environment) -> Result<()> {
    let before = store.endpoints_of(tunnel)?;
    // Without the old route the question has its true answer. OpenVPN waits for its script and sends nothing meanwhile.
    forget(host, store, tunnel)?;
    let endpoints = needed(host, tunnel, told, before.as_ref())?;
    if endpoints.is_empty() {
        return Ok(());
    }
    // On record before the first step, so that a crash in between leaves something to take out.
    store.put_endpoints(&EndpointRecord { tunnel: tunnel.clone(), endpoints: endpoints.clone() })?;
    for endpoint in &endpoints {
        let added = host.apply(&add(endpoint)).and_then(|()| is_past(host, tunnel, endpoint, told));
        if let Err(error) = added {
            forget(host, store, tunnel)?;
            return Err(error);
        }
    }
    Ok(())
}

/// The steps that [`follow`] would take where nothing is on record yet.
pub fn plan_to_follow(host: &mut Kernel, tunnel: &IfName, told: &Environment) -> Result<Vec<Change>> {
    Ok(needed(host, tunnel, told, None)?.iter().map(add).collect())
}

fn needed(
    host: &mut Kernel,
    tunnel: &IfName,
    told: &Environment,
    before: Option<&EndpointRecord>,
) -> Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for address in told.servers()? {
        let family = Family::of(address);
        let Some(link) = host.rtnl.link_by_name(tunnel)? else { break };
        if host.rtnl.own_way(address, told.source(family))? != FibAnswer::Out(link.index) {
            continue;
        }
        // At a restart that keeps the device, OpenVPN does not tell its gateway again.
        let old = before.and_then(|record| record.endpoints.iter().find(|old| Family::of(old.address) == family));
        let gateway = told.gateway(family)?.or_else(|| old.and_then(|old| old.hop.gateway));
        let hop = hop_past(&mut host.rtnl, tunnel, family, gateway)?.with_context(|| {
            format!(
                "the host's own route to the VPN server {address} leads into {tunnel} itself, and it has no default route past it; add a route: ip route add {address} via GATEWAY"
            )
        })?;
        endpoints.push(Endpoint { address, hop });
    }
    Ok(endpoints)
}

fn hop_past(rtnl: &mut Rtnl, tunnel: &IfName, family: Family, told: Option<std::net::IpAddr>) -> Result<Option<Hop>> {
    let found = endpoint::hop_past(tunnel, family, told, &rtnl.default_routes(family)?);
    // OpenVPN may have replaced the default route (redirect-gateway without def1): the gateway's own net is left.
    let Some(gateway) = told.filter(|told| found.as_ref().is_none_or(|hop| hop.gateway != Some(*told))) else {
        return Ok(found);
    };
    let FibAnswer::Out(index) = rtnl.own_way(gateway, None)? else { return Ok(found) };
    let interface = rtnl.link_by_index(index)?.and_then(|link| link.name.parse::<IfName>().ok());
    Ok(match interface.filter(|interface| interface != tunnel) {
        Some(interface) => Some(Hop { interface, gateway: Some(gateway) }),
        None => found,
    })
}

fn is_past(host: &mut Kernel, tunnel: &IfName, endpoint: &Endpoint, told: &Environment) -> Result<()> {
    let Some(link) = host.rtnl.link_by_name(tunnel)? else { return Ok(()) };
    let address = endpoint.address;
    if host.rtnl.own_way(address, told.source(Family::of(address)))? == FibAnswer::Out(link.index) {
        bail!(
            "the host's own route to the VPN server {address} leads into {tunnel} itself, even with a route past it; look at `ip rule` and `ip route get {address}`"
        );
    }
    Ok(())
}

fn add(endpoint: &Endpoint) -> Change {
    Change::AddRoute { table: endpoint::TABLE, route: endpoint.route() }
}

/// Takes out what was added for `tunnel`.
pub fn forget(host: &mut Kernel, store: &LockedStore, tunnel: &IfName) -> Result<()> {
    for step in plan_to_forget(host, store, tunnel)? {
        host.apply(&step)?;
    }
    Ok(store.remove_endpoints(tunnel)?)
}

/// The steps that [`forget`] would take.
pub fn plan_to_forget(host: &mut Kernel, store: &Store, tunnel: &IfName) -> Result<Vec<Change>> {
    let mut steps = Vec::new();
    for endpoint in store.endpoints_of(tunnel)?.into_iter().flat_map(|record| record.endpoints) {
        let route = endpoint.route();
        // It goes with its interface, and then there is nothing by which to name it.
        if host.rtnl.routes(endpoint::TABLE)?.contains(&route) {
            steps.push(Change::DeleteRoute { table: endpoint::TABLE, route });
        }
    }
    Ok(steps)
}

/// Tunnels that are no more and did not say so, as one that was killed.
pub fn orphans(host: &mut Kernel, store: &Store) -> Result<Vec<IfName>> {
    let mut gone = Vec::new();
    for record in store.endpoints()? {
        if host.rtnl.link_by_name(&record.tunnel)?.is_none() {
            gone.push(record.tunnel);
        }
    }
    Ok(gone)
}

/// Takes out what was added for tunnels that are no more.
pub fn sweep(host: &mut Kernel, store: &LockedStore) -> Result<()> {
    orphans(host, store)?.iter().try_for_each(|tunnel| forget(host, store, tunnel))
}
