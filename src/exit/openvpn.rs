//! OpenVPN's scripts: `up` and `down` are called with the interface in the environment's `dev` and once more as the
//! first of the appended arguments (openvpn(8), "Scripting and Environmental Variables").

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::model::names::IfName;

/// The interface that the script is about: named, in the environment (clap reads it), or appended.
pub fn interface(named: Option<&IfName>, appended: &[OsString]) -> Result<IfName> {
    if let Some(name) = named {
        return Ok(name.clone());
    }
    let first = appended
        .first()
        .context("no interface was named: give --dev INTERFACE, or let OpenVPN call this as its up or down script")?;
    Ok(first.to_string_lossy().parse::<IfName>()?)
}
