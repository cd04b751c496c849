//! Whether a container can be held, from what its network namespace shows.
//!
//! The rule is an allow-list: every interface must be one that the wall, the guard and the lock are known to hold.
//! Whatever is not recognised is refused, because a container with CAP_NET_RAW can send raw frames by any interface
//! that it has, whether or not that interface has an address.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::facts::{Address, Link, NetnsFacts};
use super::names::{IfName, JailName, NameError};
use super::objects::Mac;
use super::policy::Jail;

/// An interface of a member that was found to be a port of the jail's bridge, with addresses of the jail alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Its name inside the container.
    pub name: IfName,
    /// Its index inside the container.
    pub index: u32,
    pub mac: Mac,
    /// Its addresses in the jail's subnets; at least one.
    pub addresses: Vec<IpAddr>,
    /// Its link-local addresses.
    pub link_local: Vec<IpAddr>,
    /// The index of its peer, the bridge port, on the host.
    pub port: u32,
    /// The name of its peer on the host.
    pub port_name: IfName,
}

/// Why a container cannot be held. Each text names what was found and the mend.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error(
        "the container uses the host's own network namespace, which no jail can hold; start it on the jail's network instead of the host's (--network host, hostNetwork: true)"
    )]
    HostNetns,
    #[error("the container has no address; attach it to a network in {subnets} before it starts")]
    NoAddress { subnets: String },
    #[error(
        "interface {interface} of the container has address {address}, which is outside jail {jail}'s subnets {subnets}; attach the container to the jail's network alone"
    )]
    ForeignAddress { interface: String, address: IpAddr, jail: JailName, subnets: String },
    #[error(
        "interface {interface} of the container is {kind}, which cannot be held from the host; use a bridge network"
    )]
    Unholdable { interface: String, kind: String },
    #[error(
        "interface {interface} of the container is a veth whose other end is not in the host's network namespace; rootless and nested networks cannot be held"
    )]
    PeerElsewhere { interface: String },
    #[error(
        "interface {interface} of the container is not a port of jail {jail}'s bridge {bridge} but {found}; attach the container to the jail's network alone"
    )]
    OtherBridge { interface: String, jail: JailName, bridge: String, found: String },
    #[error(
        "interface {interface} of the container has no address of jail {jail}; attach the container to the jail's network alone"
    )]
    BareInterface { interface: String, jail: JailName },
    #[error(
        "interface {interface} of the container has no Ethernet address, so its sender cannot be checked; use a bridge network"
    )]
    NoMac { interface: String },
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Tunnel devices that the kernel itself puts into each new namespace (net.core.fb_tunnels_only_for_init_net = 0).
/// Down and without an address they carry nothing; whatever a member sends through one later is encapsulated and
/// leaves by an interface that is held.
const FALLBACK_TUNNELS: [&str; 9] = ["ipip", "sit", "gre", "gretap", "erspan", "ip6tnl", "ip6gre", "ip6gretap", "vti"];

/// Checks every interface of the container. `ports` maps the index of each veth inside to its peer on the host, for
/// those whose peer is there; `bridge` is the jail's bridge.
pub fn admit(
    jail: &Jail,
    netns: &NetnsFacts,
    ports: &HashMap<u32, Link>,
    bridge: &Link,
) -> Result<Vec<Confirmed>, Refusal> {
    admit_addresses(jail, netns)?;
    let mut confirmed = Vec::new();
    for link in netns.links.iter().filter(|link| !link.loopback) {
        if is_idle_fallback_tunnel(link, netns) {
            continue;
        }
        confirmed.push(confirm(jail, netns, link, ports, bridge)?);
    }
    Ok(confirmed)
}

/// Checks the addresses alone: what can be judged without knowing the jail's bridge.
pub fn admit_addresses(jail: &Jail, netns: &NetnsFacts) -> Result<(), Refusal> {
    foreign_addresses_are_refused(jail, netns)?;
    match netns.routable().next() {
        Some(_) => Ok(()),
        None => Err(Refusal::NoAddress { subnets: list(&jail.subnets) }),
    }
}

fn foreign_addresses_are_refused(jail: &Jail, netns: &NetnsFacts) -> Result<(), Refusal> {
    match netns.routable().find(|address| !jail.holds(address.address)) {
        None => Ok(()),
        Some(foreign) => Err(Refusal::ForeignAddress {
            interface: netns
                .links
                .iter()
                .find(|link| link.index == foreign.index)
                .map_or_else(|| format!("{}", foreign.index), |link| link.name.clone()),
            address: foreign.address,
            jail: jail.name.clone(),
            subnets: list(&jail.subnets),
        }),
    }
}

/// Refuses interfaces that can never be held, before any of them has an address.
pub fn admit_links(netns: &NetnsFacts) -> Result<(), Refusal> {
    let links = netns.links.iter().filter(|link| !link.loopback && !is_idle_fallback_tunnel(link, netns));
    links.filter(|link| !link.is_kind("veth")).try_for_each(|link| Err(unholdable(link)))
}

/// Whether there is nothing but loopback: `--network none`, or an engine that has not begun yet.
pub fn has_nothing_to_hold(netns: &NetnsFacts) -> bool {
    netns.links.iter().all(|link| link.loopback || is_idle_fallback_tunnel(link, netns))
}

fn unholdable(link: &Link) -> Refusal {
    let kind = link.kind.clone().unwrap_or_else(|| "a physical interface".to_owned());
    Refusal::Unholdable { interface: link.name.clone(), kind }
}

fn is_idle_fallback_tunnel(link: &Link, netns: &NetnsFacts) -> bool {
    !link.up
        && link.kind.as_deref().is_some_and(|kind| FALLBACK_TUNNELS.contains(&kind))
        && netns.addresses_of(link.index).next().is_none()
}

fn confirm(
    jail: &Jail,
    netns: &NetnsFacts,
    link: &Link,
    ports: &HashMap<u32, Link>,
    bridge: &Link,
) -> Result<Confirmed, Refusal> {
    let interface = link.name.clone();
    if !link.is_kind("veth") {
        return Err(unholdable(link));
    }
    let Some(port) = ports.get(&link.index) else {
        return Err(Refusal::PeerElsewhere { interface });
    };
    if port.master != Some(bridge.index) {
        let found = match port.master {
            Some(_) => format!("a port of another bridge ({} on the host)", port.name),
            None => format!("not in any bridge ({} on the host)", port.name),
        };
        return Err(Refusal::OtherBridge { interface, jail: jail.name.clone(), bridge: bridge.name.clone(), found });
    }
    let (link_local, addresses): (Vec<&Address>, Vec<&Address>) =
        netns.addresses_of(link.index).partition(|address| address.is_link_local());
    if addresses.is_empty() {
        return Err(Refusal::BareInterface { interface, jail: jail.name.clone() });
    }
    Ok(Confirmed {
        name: interface.parse()?,
        index: link.index,
        mac: link.mac.ok_or(Refusal::NoMac { interface })?,
        addresses: addresses.iter().map(|address| address.address).collect(),
        link_local: link_local.iter().map(|address| address.address).collect(),
        port: port.index,
        port_name: port.name.parse()?,
    })
}

/// "172.18.0.0/16, fd00:18::/64"
pub fn list(nets: &[IpNet]) -> String {
    nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}
