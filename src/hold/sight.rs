//! A container's network namespace, looked at from the host.

use std::collections::HashMap;

use anyhow::{Result, bail};

use super::Kernel;
use crate::kernel::netns::Netns;
use crate::kernel::process::Process;
use crate::model::admit::{self, Confirmed};
use crate::model::facts::{Link, NetnsFacts};
use crate::model::policy::Jail;

/// What a container's namespace shows, and sockets to see more of it.
pub(super) struct Sight {
    pub netns: Netns,
    /// Sockets that were opened in its namespace: what is told to them happens there.
    pub inside: Kernel,
    pub facts: NetnsFacts,
    pub process: Process,
}

impl Sight {
    /// Opens the namespace of `process` and reads it. `None`: it is the host's own.
    pub fn of(process: Process) -> Result<Option<Self>> {
        let netns = Netns::of_process(process.pid)?;
        if netns.id == Netns::own()?.id {
            return Ok(None);
        }
        let inside = netns.run(Kernel::open)?;
        let facts = NetnsFacts { id: netns.id, links: Vec::new(), addresses: Vec::new() };
        let mut sight = Self { netns, inside, facts, process };
        sight.look()?;
        Ok(Some(sight))
    }

    /// Reads the namespace anew.
    pub fn look(&mut self) -> Result<()> {
        self.facts.links = self.inside.rtnl.links()?;
        self.facts.addresses = self.inside.rtnl.addresses(None)?;
        // A pid that was given to another process meanwhile would show another's namespace.
        if !self.process.is_alive() {
            bail!("the container's process {} ended while its namespace was looked at", self.process.pid);
        }
        Ok(())
    }

    /// Asks the host about every veth's other end, and lets the model judge.
    pub fn confirm(&self, host: &mut Kernel, jail: &Jail, bridge: Option<&Link>) -> Result<Vec<Confirmed>> {
        let Some(bridge) = bridge else {
            // Without a bridge the container cannot be on it; its addresses may say better why.
            admit::admit_addresses(jail, &self.facts)?;
            bail!(
                "jail {}: no bridge of this host has an address in {}; create the containers' network first, or set \"bridge = \" in [jail.{}]",
                jail.name,
                admit::list(&jail.subnets),
                jail.name
            );
        };
        Ok(admit::admit(jail, &self.facts, &self.ports(host)?, bridge)?)
    }

    /// The other end of each veth that is on the host, by the veth's index inside.
    pub fn ports(&self, host: &mut Kernel) -> Result<HashMap<u32, Link>> {
        let number = host.rtnl.number_of(&self.netns)?;
        let mut ports = HashMap::new();
        for link in self.facts.links.iter().filter(|link| link.is_kind("veth")) {
            let Some(peer) = link.peer else { continue };
            let Some(port) = host.rtnl.link_by_index(peer)? else { continue };
            // Indexes count from 1 in every namespace: only one that points back here is the peer.
            if port.is_kind("veth")
                && port.peer == Some(link.index)
                && port.peer_netns.is_some()
                && port.peer_netns == number
            {
                ports.insert(link.index, port);
            }
        }
        Ok(ports)
    }
}
