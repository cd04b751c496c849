//! How much of a packet's way through a host is tunjail's.
//!
//! Every figure is a ratio within one run: packets or bits per second of the host with the jail, against those of a host
//! without, measured in turns of a few milliseconds. Nothing here passes or fails by time: the table says `ok` or
//! `under`, and the exit code is 0 unless something could not be measured.
//!
//! The way is as short as it can be: no tunnel, no cipher and no reader stands at its end, only another link. So the share
//! is the largest that there is.
//!
//! `make bench` runs it, as root, in network and mount namespaces of its own.

#[path = "../hook/crowd.rs"]
mod crowd;
mod lab;
mod paired;
mod traffic;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tunjail::model::names::JailName;

use lab::{Host, Kind, Lab, SINKS};
use paired::{First, Ratios, in_turns};
use traffic::{Datagrams, Server, tcp_rate};

const MEMBERS: u16 = 10_000;

/// Of one window of datagrams.
const WINDOW: Duration = Duration::from_millis(10);
const TIME_PER_COMPARISON: Duration = Duration::from_secs(3);
/// Of one TCP transfer.
const BYTES: &str = "512M";

/// A base chain without a rule at each hook where a member's packet is judged: in its own namespace, on its bridge port,
/// before the routing, after it. What this costs is the kernel's, whatever the rules are.
const EMPTY_LOCK: &str =
    "echo 'table inet empty { chain a { type filter hook postrouting priority 300; }; }' | nft -f -";
const EMPTY_WALL: &str = "nft -f - <<END
table bridge empty { chain a { type filter hook prerouting priority -300; }; }
table inet empty { chain a { type filter hook prerouting priority -310; }; }
table inet empty { chain b { type filter hook forward priority -10; }; }
END";

/// What is taken away, and how, one after the other, to see what each costs.
const PARTS: [(&str, &str); 4] = [
    ("own_name", "nft delete chain inet tunjail_vpn own_name"),
    ("arrivals", "nft delete chain inet tunjail_vpn arrivals"),
    ("guard", "nft delete chain bridge tunjail_vpn guard"),
    ("forward", "nft delete chain inet tunjail_vpn forward"),
];

fn main() -> Result<()> {
    // Names of sections: `cargo bench --bench forward -- plain recipe`. None: all of them.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);

    let lab = Lab::build().context("the bench's own namespaces")?;
    let jail = lab.host(Kind::Jail)?;
    let plain = lab.host(Kind::Plain)?;
    let _first = First::of_all()?;
    println!("rates of the first and the second, and the ratio: lower quartile, median, upper quartile");
    if wants("plain") {
        for to in SINKS {
            datagrams(("the jail", &jail), ("without tunjail", &plain), to, Some(0.97))?;
        }
        for to in SINKS {
            tcp(("the jail", &jail), ("without tunjail", &plain), to, Some(0.97))?;
        }
    }
    if wants("recipe") {
        let recipe = lab.host(Kind::Recipe)?;
        datagrams(("the jail", &jail), ("the recipe", &recipe), SINKS[0], Some(1.0))?;
        tcp(("the jail", &jail), ("the recipe", &recipe), SINKS[0], Some(1.0))?;
    }
    if wants("members") {
        // Real ones stay until this is over.
        let _crowd = crowd::enrol(&lab, &jail.member, 1..MEMBERS)?;
        crowd::demand(&"vpn".parse::<JailName>()?, usize::from(MEMBERS))?;
        let name = format!("{MEMBERS} members");
        for to in SINKS {
            datagrams((&name, &jail), ("without tunjail", &plain), to, Some(0.95))?;
        }
        tcp((&name, &jail), ("without tunjail", &plain), SINKS[0], Some(0.95))?;
    }
    if wants("floor") {
        let other = lab.host(Kind::Plain)?;
        datagrams(("another without", &other), ("without tunjail", &plain), SINKS[0], None)?;
        other.sh(EMPTY_WALL)?;
        other.member_sh(EMPTY_LOCK)?;
        datagrams(("four empty chains", &other), ("without tunjail", &plain), SINKS[0], None)?;
    }
    if wants("parts") {
        parts(&jail, &plain)?;
    }
    Ok(())
}

/// Takes the wall down chain by chain: the ratio rises by what the chain costs.
fn parts(jail: &Host, plain: &Host) -> Result<()> {
    jail.member_sh("nft delete table inet tunjail")?;
    let mut gone = "less lock".to_owned();
    datagrams((&gone, jail), ("without tunjail", plain), SINKS[0], None)?;
    for (name, removal) in PARTS {
        jail.sh(removal)?;
        gone = format!("and {name}");
        datagrams((&gone, jail), ("without tunjail", plain), SINKS[0], None)?;
    }
    Ok(())
}

fn datagrams(a: (&str, &Host), b: (&str, &Host), to: IpAddr, bound: Option<f64>) -> Result<()> {
    let sender = |host: &Host| Datagrams::between(&host.member.netns, &host.sink.netns, to);
    let (of_a, of_b) = (sender(a.1)?, sender(b.1)?);
    of_a.wake()?;
    of_b.wake()?;
    let ratios = in_turns((25, 1000), TIME_PER_COMPARISON, &|| of_a.rate(WINDOW), &|| of_b.rate(WINDOW))?;
    show(&format!("64-byte UDP, {}: {} / {}", version(to), a.0, b.0), 1e6, "Mpps", &ratios, bound);
    Ok(())
}

fn tcp(a: (&str, &Host), b: (&str, &Host), to: IpAddr, bound: Option<f64>) -> Result<()> {
    let _servers = [Server::start(&a.1.sink.netns)?, Server::start(&b.1.sink.netns)?];
    let of_a = || tcp_rate(&a.1.member.netns, to, BYTES);
    let of_b = || tcp_rate(&b.1.member.netns, to, BYTES);
    let ratios = in_turns((5, 100), TIME_PER_COMPARISON, &of_a, &of_b)?;
    show(&format!("iperf3 TCP, {}: {} / {}", version(to), a.0, b.0), 1e9, "Gbit/s", &ratios, bound);
    Ok(())
}

fn version(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Two rates, their ratio, and what it is to be at least.
fn show(what: &str, unit: f64, name: &str, ratios: &Ratios, bound: Option<f64>) {
    let [low, median, high] = ratios.quartiles;
    let (a, b) = (ratios.medians.0 / unit, ratios.medians.1 / unit);
    let line = format!("{what:<56} {a:>6.3} {b:>6.3} {name:<6} {low:>6.3} {median:>6.3} {high:>6.3}");
    match bound {
        None => println!("{line}"),
        Some(bound) => {
            let verdict = if median >= bound { "ok" } else { "under" };
            println!("{line}  at least {bound:>4.2}  {verdict}");
        }
    }
}
