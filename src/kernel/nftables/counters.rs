//! Counters, for people: read through `nft --json`, because nobody waits for them.

use std::collections::HashMap;
use std::process::Command;

use serde_json::Value;

use super::super::KernelError;
use super::nft;
use crate::model::objects::{Set, TableId};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// The named counters of a table, by name; none when there is no such table.
pub fn counters(table: &TableId) -> Result<HashMap<String, Counter>, KernelError> {
    let listing = list(&["list", "table", &table.family.to_string(), &table.name])?;
    Ok(listing
        .iter()
        .filter_map(|item| item.get("counter"))
        .filter_map(|item| Some((item.get("name")?.as_str()?.to_owned(), counter(item))))
        .collect())
}

/// The elements of a set, each with its key's parts as nft spells them and its counter.
pub fn elements(table: &TableId, set: Set) -> Result<Vec<(Vec<String>, Counter)>, KernelError> {
    let listing = list(&["list", "set", &table.family.to_string(), &table.name, set.name()])?;
    let elements = listing.iter().filter_map(|item| item.get("set")?.get("elem")?.as_array()).flatten();
    Ok(elements
        .filter_map(|element| {
            let element = element.get("elem")?;
            let key = element.get("val")?.get("concat")?.as_array()?;
            let parts = key.iter().map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned)).collect();
            Some((parts, element.get("counter").map(counter).unwrap_or_default()))
        })
        .collect())
}

fn counter(item: &Value) -> Counter {
    let number = |name| item.get(name).and_then(Value::as_u64).unwrap_or(0);
    Counter { packets: number("packets"), bytes: number("bytes") }
}

/// What `nft --json` answers; nothing when what was asked for is not there.
fn list(arguments: &[&str]) -> Result<Vec<Value>, KernelError> {
    let path = nft::find()?;
    let request = || format!("running {} {}", path.display(), arguments.join(" "));
    let output = Command::new(&path)
        .arg("--json")
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| KernelError::io(request(), error))?;
    if !output.status.success() {
        return match String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
            true => Ok(Vec::new()),
            false => Err(nft::complaint(&output)),
        };
    }
    let answer: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| KernelError::answer(request(), error))?;
    Ok(answer.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default())
}
