//! How quick and how small the hook is.
//!
//! Every figure is a ratio within one run, against something that was started in turns with it, so that a slow machine is
//! slow for both. Nothing here passes or fails by time: the table says `ok` or `over`, and the exit code is 0 unless
//! something could not be measured.
//!
//! `make bench` runs it, as root, in network and mount namespaces of its own.

mod burst;
mod crowd;
mod failover;
mod lab;
mod late;
mod measure;

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tunjail::model::names::JailName;

use lab::{Lab, Member};
use measure::{Sample, Spread, Start, in_turns, trace};

/// A comparison stops early after this time, but never with fewer runs than [`MIN_RUNS`].
const TIME_PER_COMPARISON: Duration = Duration::from_secs(20);
const RUNS: usize = 200;
const MIN_RUNS: usize = 50;

const MIB: f64 = 1024.0 * 1024.0;

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1) {
        Some(word) if word == burst::STOPWATCH => burst::stopwatch(&args[2..]),
        _ => measure(&wanted(args)).map(|()| ExitCode::SUCCESS),
    }
}

/// Names of sections: `cargo bench --bench hook -- burst late`. None: all of them.
fn wanted(args: Vec<String>) -> Vec<String> {
    args.into_iter().skip(1).filter(|word| !word.starts_with('-')).collect()
}

fn measure(wanted: &[String]) -> Result<()> {
    let lab = Lab::build().context("the bench's own namespaces")?;
    let first = lab.member(0)?;
    // Any other number that is no member's of the crowd.
    let second = RefCell::new(lab.member(20_000)?);
    lab.tunjail(&["up", "vpn"])?;
    lab.enrol(&first)?;

    let sections: [(&str, &dyn Fn() -> Result<()>); 8] = [
        ("floor", &|| against_an_empty_binary(&lab, &second)),
        ("recipe", &|| against_the_recipe(&lab, &second)),
        ("outside", &|| looked_at_from_outside(&lab, &second)),
        ("crun", &|| around_crun(&lab, &second)),
        ("burst", &|| burst::at_once(&lab)),
        ("late", &|| late::from_address_to_open_lock(&lab)),
        ("failover", &|| failover::to_the_next_exit(&lab)),
        ("members", &|| with_more_members(&lab, &first, &second)),
    ];
    println!("times in ms: minimum, median, maximum");
    for (_, measure) in sections.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|word| word == name))
    {
        measure()?;
    }
    Ok(())
}

/// The second member into a standing wall, against the floor: a static binary that does nothing. Memory, too.
fn against_an_empty_binary(lab: &Lab, member: &RefCell<Member>) -> Result<()> {
    let hook = lab.create_runtime(&member.borrow());
    let (hook, floor) = in_turns(&hook, || fresh(lab, member), &lab.floor(), || Ok(()))?;
    show("the hook, second member into a standing wall", &hook);
    show("an empty static binary", &floor);
    compare("hook / empty static binary", &hook, &floor, Some(2.5));

    // Linux carries the peak of what was there before execve over to the new program, so neither can be under this
    // bench's own; the empty binary shows how much that is.
    let peak = |samples: &[Sample]| samples.iter().map(|sample| sample.peak_bytes).max().unwrap_or(0) as f64 / MIB;
    row("peak memory of an empty static binary, MiB", peak(&floor), None);
    row("peak memory of the hook, MiB", peak(&hook), Some(8.0));
    Ok(())
}

/// The same hook against the scripts that it replaces: five iptables calls and eight ip calls.
fn against_the_recipe(lab: &Lab, member: &RefCell<Member>) -> Result<()> {
    let hook = lab.create_runtime(&member.borrow());
    let (hook, recipe) = in_turns(&hook, || fresh(lab, member), &lab.recipe(), || lab.undo_recipe())?;
    show("the recipe's scripts", &recipe);
    compare("hook / the recipe's scripts", &hook, &recipe, Some(0.1));
    Ok(())
}

fn looked_at_from_outside(lab: &Lab, member: &RefCell<Member>) -> Result<()> {
    fresh(lab, member)?;
    let seen = trace(&lab.create_runtime(&member.borrow()), &lab.path("strace"))?;
    row("processes that the hook spawns", seen.processes as f64, Some(0.0));
    row("threads", seen.threads as f64, None);
    row("system calls", seen.calls as f64, None);
    row("netlink requests", seen.requests as f64, None);
    Ok(())
}

/// The cost must not grow with the jail. Each size is measured in turns with the empty binary, and the sizes are compared
/// by their ratio to it, because they cannot take turns with each other.
fn with_more_members(lab: &Lab, first: &Member, member: &RefCell<Member>) -> Result<()> {
    let jail: JailName = "vpn".parse()?;
    let mut smallest = None;
    let mut real = Vec::new();
    let mut placed = 1;
    for size in [1, 100, 1_000, 10_000] {
        real.extend(crowd::enrol(lab, first, placed..size)?);
        placed = size;
        let hook = lab.create_runtime(&member.borrow());
        let (hook, floor) = in_turns(&hook, || fresh(lab, member), &lab.floor(), || Ok(()))?;
        crowd::demand(&jail, usize::from(size) + 1)?;
        let kinds = match usize::from(size).checked_sub(1 + real.len()) {
            Some(synthetic) if synthetic > 0 => format!(" ({} real, {synthetic} synthetic)", 1 + real.len()),
            _ => String::new(),
        };
        show(&format!("the hook beside {size} members{kinds}"), &hook);
        let ratio = Spread::of(&hook).median / Spread::of(&floor).median;
        let smallest = *smallest.get_or_insert(ratio);
        if size > 1 {
            row(&format!("hook beside {size} members / beside 1"), ratio / smallest, Some(1.3));
        }
    }
    Ok(())
}

/// What a user sees: a whole container that does nothing, with and without the hooks.
fn around_crun(lab: &Lab, member: &RefCell<Member>) -> Result<()> {
    fresh(lab, member)?;
    let jailed = lab.crun("jailed", &member.borrow(), true)?;
    let plain = lab.crun("plain", &member.borrow(), false)?;
    let (jailed, plain) = in_turns(&jailed, || fresh(lab, member), &plain, || fresh(lab, member))?;
    show("crun run, with hooks", &jailed);
    show("crun run, without", &plain);
    compare("crun run with hooks / without", &jailed, &plain, None);
    Ok(())
}

fn fresh(lab: &Lab, member: &RefCell<Member>) -> Result<()> {
    lab.fresh(&mut member.borrow_mut())
}

fn show(what: &str, samples: &[Sample]) {
    let Spread { min, median, max } = Spread::of(samples);
    println!("  {what:<62} {min:>7.2} {median:>7.2} {max:>7.2}");
}

fn compare(what: &str, a: &[Sample], b: &[Sample], bound: Option<f64>) {
    row(what, Spread::of(a).median / Spread::of(b).median, bound);
}

/// A figure, and what it is to be at most.
fn row(what: &str, figure: f64, bound: Option<f64>) {
    match bound {
        None => println!("{what:<64} {figure:>7.2}"),
        Some(bound) => {
            let verdict = if figure <= bound { "ok" } else { "over" };
            println!("{what:<64} {figure:>7.2}  at most {bound:>5.2}  {verdict}");
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
