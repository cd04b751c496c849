//! Standing in for an OCI runtime: what was said ([`mod@line`]), the hooks put into the bundle ([`bundle`]), the runtime
//! that does the work ([`underneath`]), and errors where the engine looks for a runtime's own ([`log`]).
//!
//! One rule governs it: a container is made with tunjail's hooks in its bundle, or not at all. Everything else is handed
//! on as it came.

pub mod bundle;
pub mod line;
pub mod log;
pub mod underneath;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The program that hooks call: this binary, whatever name it was called by.
pub fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding tunjail's own path")?;
    if path.file_name().is_none_or(|name| name != "tunjail-runtime") {
        return Ok(path);
    }
    // A copy under the second name; as a hook it would be a runtime.
    let sibling = path.parent().unwrap_or(Path::new("/")).join("tunjail");
    ensure!(
        sibling.is_file(),
        "{} is a copy of tunjail and {} is missing; install tunjail there, and tunjail-runtime as a link to it",
        path.display(),
        sibling.display()
    );
    Ok(sibling)
}
