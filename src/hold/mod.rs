//! The way of the data, walked: facts -> desired -> plan -> apply -> re-read -> verify -> record.
//!
//! Commands say what they want; `model` says what that means; this carries it out against `kernel` and `store`, in
//! the order that keeps every promise at every instruction, and takes it back when a step fails.
//!
//! - [`wall`]: a jail's wall, raised, kept standing, taken down
//! - [`watch`]: keeps all walls standing, event by event
//! - [`way`]: what the kernel itself says of a member's way out
//! - [`enter`]: a container, held from before its first instruction
//! - `tenants`: who lives in its namespace already
//! - `lock`: its own namespace's share of it
//! - [`late`], [`attend`]: one whose address comes later: locked, waited for, judged
//! - [`leave`]: until it is gone
//! - [`endpoint`]: a tunnel's other end, where the tunnel covers it
//! - [`forward`]: which ports of the exit lead to it meanwhile

pub mod attend;
pub mod endpoint;
pub mod enter;
pub mod forward;
pub mod late;
pub mod leave;
mod lock;
mod sight;
mod tenants;
pub mod wall;
pub mod watch;
pub mod way;

use anyhow::Result;

use crate::kernel::KernelError;
use crate::kernel::nfnetlink::Nfnl;
use crate::kernel::nftables;
use crate::kernel::rtnetlink::Rtnl;
use crate::model::plan::Change;

/// The kernel as one network namespace shows it, the host's or a member's: a socket for each of its two tongues.
pub struct Kernel {
    pub rtnl: Rtnl,
    pub nfnl: Nfnl,
}

impl Kernel {
    /// For the namespace that the calling thread is in.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { rtnl: Rtnl::open()?, nfnl: Nfnl::open()? })
    }

    /// Carries out one step on the host. Steps inside a member's namespace are [`enter`]'s.
    fn apply(&mut self, step: &Change) -> Result<()> {
        match step {
            Change::LoadRuleset(script) => nftables::load(script)?,
            Change::DropTable(table) => nftables::drop_table(&mut self.nfnl, table)?,
            Change::AddRoute { table, route } => self.rtnl.add_route(*table, route)?,
            Change::DeleteRoute { table, route } => self.rtnl.delete_route(*table, route)?,
            Change::AddRule(rule) => self.rtnl.add_rule(rule)?,
            Change::DeleteRule(rule) => self.rtnl.delete_rule(rule)?,
            Change::AddElements(elements) => nftables::add_elements(&mut self.nfnl, elements)?,
            Change::DeleteElements(elements) => nftables::delete_elements(&mut self.nfnl, elements)?,
            Change::CloseLock | Change::Steer(_) | Change::OpenLock(_) => {
                anyhow::bail!("a member's namespace is not the host's")
            }
        }
        Ok(())
    }
}

/// Why something failed, when what was done of it was taken back, or was not.
fn after_taking_back(error: anyhow::Error, taken_back: Result<()>) -> anyhow::Error {
    match taken_back {
        Ok(()) => error,
        Err(second) => error.context(format!("what was done could not be taken back wholly ({second:#})")),
    }
}
