//! `tunjail watch` in a flood of the kernel's events.

use std::fmt::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{PATIENCE, TwoExits, Watch};
use crate::closed::Wipe;
use crate::run::{Cmd, Job, wait_until};
use crate::scene::Traffic;
use crate::world::Lab;

/// Links up and down, addresses, and routes of a table that somebody might mean: so many lines, again and again for so
/// long at most.
const LINES: usize = 400;
const LENGTH: &str = "20";

fn noise(lab: &Lab, n: usize) -> Job {
    lab.sh(&format!(
        "ip link add noise{n} type veth peer name nois{n}; ip link set nois{n} up; ip link set noise{n} up"
    ));
    let mut lines = String::new();
    for i in 0..LINES / 6 {
        let (link, addr, table) = (format!("noise{n}"), format!("10.7{n}.{i}.1/32"), 5000 + n);
        let _ = write!(
            lines,
            "addr add {addr} dev {link}\nroute add 198.18.{i}.0/24 dev {link} table {table}\nlink set {link} mtu {}\n\
             route del 198.18.{i}.0/24 dev {link} table {table}\naddr del {addr} dev {link}\nlink set {link} mtu 1500\n",
            1400 + i
        );
    }
    let path = lab.dir("noise").join(format!("{n}"));
    std::fs::write(&path, lines).expect("a batch");
    let batch = format!("ip -force -batch {} >/dev/null 2>&1", path.display());
    let script =
        format!("end=$(($(date +%s) + {LENGTH})); while [ $(date +%s) -lt $end ]; do {batch}; echo again; done");
    Cmd::new("/bin/sh", &["-c", &script]).spawn()
}

/// Processor time so far.
fn worked(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the watch's figures");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 = [11, 12].map(|n: usize| fields[n].parse::<u64>().expect("ticks")).iter().sum();
    Duration::from_millis(ticks * 10)
}

/// Its largest size so far, in KiB.
fn size(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the watch's figures");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a size");
    line.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a number")
}

/// Events that the kernel could not give it.
fn lost(pid: u32) -> u64 {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")).expect("the netlink sockets");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(2) == Some(&pid.to_string().as_str()))
        .filter_map(|row| row.get(8)?.parse::<u64>().ok())
        .sum()
}

#[test]
fn a_flood_of_events_drowns_no_watch() {
    let mut two = TwoExits::new("\"tun0\"");
    let control = two.control();
    two.client.start_and_wait();
    let watch = Watch::start(&two.lab);
    let pid = two.lab.pid_inside(&watch.job);
    let member = two.member("m1", 2);
    two.lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_floods_flowing();

    let before = size(pid);
    let noises: Vec<Job> = (0..2).map(|n| noise(&two.lab, n)).collect();
    let (begun, worked_before) = (Instant::now(), worked(pid));
    let mut slowest = Duration::ZERO;
    for deaf in [false, true] {
        for wipe in [Wipe::Ruleset, Wipe::Rules, Wipe::Table] {
            if deaf {
                // It does not come to read while so much happens that some of it is lost, the wiping too.
                let already = lost(pid);
                watch.job.signal(Signal::SIGSTOP);
                wait_until("events to be lost", PATIENCE, || lost(pid) > already + 100);
            }
            let steps = watch.told("did").len();
            wipe.happen(&two.lab);
            let since = Instant::now();
            watch.job.signal(Signal::SIGCONT);
            wait_until("the wall to be put back", PATIENCE, || {
                watch.told("did").len() > steps && super::watch::stands(&two.lab)
            });
            slowest = slowest.max(since.elapsed());
        }
    }
    let share = (worked(pid) - worked_before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(noises.iter().all(|job| job.stdout().lines().count() > 1), "it was quiet");
    println!(
        "noise: slowest {} ms, {:.0} % of a processor, {} KiB of {before}, {} events lost",
        slowest.as_millis(),
        share * 100.0,
        size(pid),
        lost(pid)
    );
    drop(noises);
    assert!(slowest < Duration::from_secs(1), "the wall came back after {slowest:?}");
    assert!(share < 0.4, "it took {share} of a processor");
    assert!(size(pid) < before + 4096, "it grew from {before} KiB to {}", size(pid));
    traffic.wait_floods_flowing();
    two.lab.assert_no_leak("exits", "watch-in-noise", control);
    traffic.end(&member);
    watch.end();
}
