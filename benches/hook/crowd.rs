//! Thousands of members, without thousands of containers.
//!
//! A bridge takes 1,023 ports, so a crowd cannot be made of real members. A synthetic one is what the hook leaves behind
//! for a real one, with another name and other addresses: the same set elements in the jail's nftables tables and the
//! same record. It is copied from a real member's, so that it follows whatever the hook really does.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{Lab, Member};
use crate::measure::feed;

const RECORDS: &str = "/run/tunjail";

/// Places the members with these numbers (0 is the real one, `like`) as the hook would have placed them.
pub fn place_synthetic_members(lab: &Lab, like: &Member, numbers: Range<usize>) -> Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    place_elements(lab, like, numbers.clone())?;
    place_records(like, numbers)
}

/// The records must still be there after a measurement: a hook that swept them away was measured in an empty jail.
pub fn still_there(like: &Member, members: usize) -> Result<()> {
    // the real first one, the synthetic ones, and the one that was just measured
    let records = files_under(Path::new(RECORDS))?.into_iter().filter(|path| is_record(path, "bench-")).count();
    ensure!(records >= members, "{records} records for {members} members like {}: the hook swept them", like.id);
    let elements = elements_of(like)?.len();
    ensure!(elements > 0, "the set elements of {} are gone", like.id);
    Ok(())
}

/// A real member's words, in the place of which a synthetic one's are put.
fn renamed(text: &str, like: &Member, number: usize) -> String {
    let (high, low) = (16 + number / 250, 2 + number % 250);
    text.replace(&like.id, &format!("bench-synthetic-{number}"))
        .replace(&like.veth, &format!("crowd-{number}"))
        .replace(&like.mac, &format!("02:42:ac:13:{:02x}:{:02x}", number / 256, number % 256))
        .replace(&like.v4, &format!("172.18.{high}.{low}"))
        .replace(&like.v6, &format!("fd00:18::1:{number:x}"))
}

/// A set of one of the jail's tables, and one element of it that is about the member.
struct Element {
    family: String,
    table: String,
    set: String,
    value: Value,
}

fn elements_of(member: &Member) -> Result<Vec<Element>> {
    let listed = Command::new("nft").args(["-j", "list", "ruleset"]).output()?;
    let ruleset: Value = serde_json::from_slice(&listed.stdout).context("nft -j list ruleset")?;
    let objects = ruleset["nftables"].as_array().context("nft listed no objects")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for object in objects {
        let set = if object["set"].is_object() { &object["set"] } else { &object["map"] };
        if !text(&set["table"]).starts_with("tunjail_") {
            continue;
        }
        for value in set["elem"].as_array().into_iter().flatten() {
            let words = value.to_string();
            if [&member.veth, &member.mac, &member.v4, &member.v6]
                .iter()
                .any(|word| words.contains(&format!("\"{word}\"")))
            {
                found.push(Element {
                    family: text(&set["family"]),
                    table: text(&set["table"]),
                    set: text(&set["name"]),
                    value: value.clone(),
                });
            }
        }
    }
    Ok(found)
}

fn place_elements(lab: &Lab, like: &Member, numbers: Range<usize>) -> Result<()> {
    let elements = elements_of(like)?;
    ensure!(!elements.is_empty(), "no set element of {} in any table of tunjail's", like.id);
    let commands: Vec<Value> = elements
        .iter()
        .map(|Element { family, table, set, value }| {
            let text = value.to_string();
            let copies: Vec<Value> = numbers
                .clone()
                .map(|number| serde_json::from_str(&renamed(&text, like, number)))
                .collect::<Result<_, _>>()?;
            Ok(json!({ "add": { "element": { "family": family, "table": table, "name": set, "elem": copies } } }))
        })
        .collect::<Result<_>>()?;
    fs::write(lab.path("crowd.json"), json!({ "nftables": commands }).to_string())?;
    feed("nft", &["-j", "-f", &lab.path("crowd.json").to_string_lossy()], "")
}

fn place_records(like: &Member, numbers: Range<usize>) -> Result<()> {
    let records: Vec<PathBuf> =
        files_under(Path::new(RECORDS))?.into_iter().filter(|path| is_record(path, &like.id)).collect();
    ensure!(!records.is_empty(), "no record of {} under {RECORDS}", like.id);
    for record in records {
        let text = fs::read_to_string(&record)?;
        for number in numbers.clone() {
            fs::write(renamed(&record.to_string_lossy(), like, number), renamed(&text, like, number))?;
        }
    }
    Ok(())
}

/// A record is a file that is named for its member.
fn is_record(path: &Path, id: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains(id))
}

fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_under(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}
