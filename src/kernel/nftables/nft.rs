//! The `nft` program, for the wall: text in, one transaction, its own words when it refuses.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::super::KernelError;

/// Where nft may be. By absolute path: a hook inherits whatever PATH its engine was started with.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

/// The path of nft.
pub fn find() -> Result<PathBuf, KernelError> {
    PLACES
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .map(Path::to_owned)
        .ok_or_else(|| KernelError::NoNft { places: PLACES.join(", ") })
}

/// Loads `script` in one transaction: all of it or nothing.
pub fn load(script: &str) -> Result<(), KernelError> {
    run(&["-f", "-"], script)
}

/// Asks nft and the kernel whether they would take `script`; nothing is changed.
pub fn check(script: &str) -> Result<(), KernelError> {
    run(&["--check", "-f", "-"], script)
}

/// Everything that nft lists, whoever made it.
pub fn ruleset() -> Result<serde_json::Value, KernelError> {
    let path = find()?;
    let output = Command::new(&path)
        .args(["--json", "list", "ruleset"])
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| KernelError::io(format!("running {}", path.display()), error))?;
    if !output.status.success() {
        return Err(complaint(&output));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| KernelError::answer("listing the nftables ruleset", error))
}

fn run(arguments: &[&str], script: &str) -> Result<(), KernelError> {
    let path = find()?;
    let failed = |error| KernelError::io(format!("running {}", path.display()), error);
    let mut child = Command::new(&path)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // nft reads the whole script before it writes anything, so neither side waits for the other.
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(script.as_bytes()) {
            // It ended without reading: its own words say why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(complaint(&output)),
    }
}

/// What nft said when it failed, in one line; it may have died without a word.
pub fn complaint(output: &Output) -> KernelError {
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    KernelError::Nft(match said.is_empty() {
        true => format!("it said nothing ({})", output.status),
        false => format!("{} ({})", said.join(" | "), output.status),
    })
}
