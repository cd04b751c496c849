//! A member's lock and its steering, made and opened in its own namespace.

use anyhow::{Result, bail};

use super::Kernel;
use crate::kernel::KernelError;
use crate::kernel::nfnetlink::Nfnl;
use crate::kernel::nftables;
use crate::model::desired::Steering;
use crate::model::facts::Fingerprint;
use crate::model::objects::{ENGINES_RESOLVER, Element, TableId};
use crate::model::verify::Mismatch;

/// Closes the lock, unless it stands as it was `made` for another container of this namespace.
pub(super) fn close(inside: &mut Nfnl, made: Option<Fingerprint>) -> Result<(), KernelError> {
    match made {
        Some(made) if nftables::fingerprint(inside, &TableId::lock())? == Some(made) => Ok(()),
        _ => nftables::close_lock(inside),
    }
}

/// Leads questions to the engine's resolver elsewhere. With siblings behind the lock, what leads theirs stays: anew, it
/// would lose those under way.
pub(super) fn steer(inside: &mut Kernel, steering: Steering, has_siblings: bool) -> Result<()> {
    if has_siblings && nftables::fingerprint(&mut inside.nfnl, &TableId::steering())?.is_some() {
        return Ok(());
    }
    inside.rtnl.loop_back_as(ENGINES_RESOLVER, steering.source)?;
    Ok(nftables::steer(&mut inside.nfnl, steering.server)?)
}

/// Lets the confirmed addresses emit, and reads the lock back: its elements and, when it was `made` before, the rest.
pub(super) fn open(inside: &mut Nfnl, made: Option<Fingerprint>, elements: &[Element]) -> Result<Fingerprint> {
    nftables::add_elements(inside, elements)?;
    if let Some(missing) = nftables::first_missing(inside, elements)? {
        bail!(Mismatch::ElementMissing(missing.clone()));
    }
    match (nftables::fingerprint(inside, &TableId::lock())?, made) {
        (Some(found), None) => Ok(found),
        (Some(found), Some(made)) if found == made => Ok(found),
        _ => bail!(Mismatch::Table("of the lock")),
    }
}
