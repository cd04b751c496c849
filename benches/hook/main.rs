//! How quick and how small the hook is.
//!
//! Every figure is a ratio within one run, against something that was started in turns with it, so that a slow machine is
//! slow for both. Nothing here passes or fails by time: the table says `ok` or `over`, and the exit code is 0 unless
//! something could not be measured.
//!
//! `make bench` runs it, as root, in network and mount namespaces of its own.

mod crowd;
mod lab;
mod measure;

use std::time::Duration;

use anyhow::{Context, Result};

use lab::{Lab, Member};
use measure::{Start, in_turns, median, processes_spawned};

/// A comparison stops early after this time, but never with fewer runs than [`MIN_RUNS`].
const TIME_PER_COMPARISON: Duration = Duration::from_secs(30);
const RUNS: usize = 300;
const MIN_RUNS: usize = 50;

const MIB: f64 = 1024.0 * 1024.0;

fn main() -> Result<()> {
    let lab = Lab::build().context("the bench's own namespaces")?;
    let first = lab.member("bench-first", 2)?;
    let second = lab.member("bench-second", 3)?;
    lab.tunjail(&["up", "vpn"])?;
    lab.enrol(&first)?;

    println!("{:<58} {:>9} {:>9}", "", "figure", "bound");
    against_an_empty_binary(&lab, &second)?;
    against_the_recipe(&lab, &second)?;
    spawns_nothing(&lab, &second)?;
    with_more_members(&lab, &first, &second)?;
    lab.dismiss(&first)?;
    around_crun(&lab, &second)?;
    Ok(())
}

/// The second member into a standing wall, against the floor: a static binary that does nothing. Memory, too.
fn against_an_empty_binary(lab: &Lab, member: &Member) -> Result<()> {
    let hook = lab.create_runtime(member);
    let (hook, floor) = in_turns(&hook, || lab.fresh(member), &lab.floor(), || Ok(()))?;
    let (a, b) = (median(&hook), median(&floor));
    detail("hook", a);
    detail("empty static binary", b);
    row("hook / empty static binary", a / b, Some(2.5), "x");

    // Linux carries the peak of what was there before execve over to the new program, so neither can be under this
    // bench's own; the empty binary shows how much that is.
    let peak = |samples: &[measure::Sample]| samples.iter().map(|s| s.peak_bytes).max().unwrap_or(0) as f64 / MIB;
    row("peak memory of an empty static binary, MiB", peak(&floor), None, "");
    row("peak memory of the hook, MiB", peak(&hook), Some(8.0), "");
    Ok(())
}

/// The same hook against the scripts that it replaces: five iptables calls and eight ip calls.
fn against_the_recipe(lab: &Lab, member: &Member) -> Result<()> {
    let hook = lab.create_runtime(member);
    let (hook, recipe) = in_turns(&hook, || lab.fresh(member), &lab.recipe(), || lab.undo_recipe())?;
    detail("the recipe's scripts", median(&recipe));
    row("hook / the recipe's scripts", median(&hook) / median(&recipe), Some(0.1), "x");
    Ok(())
}

fn spawns_nothing(lab: &Lab, member: &Member) -> Result<()> {
    lab.fresh(member)?;
    let spawned = processes_spawned(&lab.create_runtime(member), &lab.path("strace"))?;
    row("processes that the hook spawns", spawned as f64, Some(0.0), "");
    Ok(())
}

/// The cost must not grow with the jail. Each size is measured in turns with the empty binary, and the sizes are compared
/// by their ratio to it, because they cannot take turns with each other.
fn with_more_members(lab: &Lab, first: &Member, member: &Member) -> Result<()> {
    let mut smallest = None;
    let mut placed = 1;
    for size in [1, 100, 1_000, 10_000] {
        crowd::place_synthetic_members(lab, first, placed..size)?;
        placed = size;
        let hook = lab.create_runtime(member);
        let (hook, floor) = in_turns(&hook, || lab.fresh(member), &lab.floor(), || Ok(()))?;
        crowd::still_there(first, size)?;
        let ratio = median(&hook) / median(&floor);
        detail(&format!("hook with {size} members in the jail"), median(&hook));
        let smallest = *smallest.get_or_insert(ratio);
        if size > 1 {
            row(&format!("hook with {size} members / with 1"), ratio / smallest, Some(1.3), "x");
        }
    }
    Ok(())
}

/// What a user sees: a whole container that does nothing, with and without the hooks.
fn around_crun(lab: &Lab, member: &Member) -> Result<()> {
    let jailed = lab.crun("jailed", member, true)?;
    let plain = lab.crun("plain", member, false)?;
    let (jailed, plain) = in_turns(&jailed, || lab.fresh(member), &plain, || lab.fresh(member))?;
    detail("crun run, with hooks", median(&jailed));
    detail("crun run, without", median(&plain));
    row("crun run with hooks / without", median(&jailed) / median(&plain), None, "x");
    Ok(())
}

fn detail(what: &str, seconds: f64) {
    println!("  {what:<56} {:>6.2} ms", seconds * 1e3);
}

fn row(what: &str, figure: f64, bound: Option<f64>, unit: &str) {
    match bound {
        None => println!("{what:<58} {figure:>8.2}{unit}"),
        Some(bound) => {
            let verdict = if figure <= bound { "ok" } else { "over" };
            println!("{what:<58} {figure:>8.2}{unit} {bound:>8.2}{unit}  {verdict}");
        }
    }
}

/// What a comparison measures at least, said once for [`measure`].
fn enough(runs: usize, spent: Duration) -> bool {
    runs >= RUNS || (runs >= MIN_RUNS && spent >= TIME_PER_COMPARISON)
}

/// A command of the bench's own making that has to work: `ip`, `nft`, `mount`.
fn run(program: &str, args: &[&str]) -> Result<()> {
    Start::new(program, args).untimed()
}
