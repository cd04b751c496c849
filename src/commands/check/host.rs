//! Settings, rules and firewalls of the host, none of them tunjail's, that would stop a jail's traffic or lead it past the
//! jail's table. Each was seen to do so; a setting that only might is not in here.

use std::fs;
use std::path::PathBuf;

use super::{Findings, Verdict};
use crate::config::Config;
use crate::hold::{Kernel, wall, way};
use crate::model::conflict::{self, Catches};
use crate::model::desired;
use crate::model::facts::{FibAnswer, Link};
use crate::model::objects::{Family, RULE_PRIORITY};
use crate::model::policy::Jail;

/// What concerns the whole host.
pub fn look(findings: &mut Findings, config: &Config, host: &mut Kernel) {
    forwarding(findings, config);
    if let Some(links) = findings.take("host", host.rtnl.links().map_err(Into::into)) {
        router_adverts(findings, config, host, &links);
    }
}

/// What concerns one jail.
pub fn look_at_jail(findings: &mut Findings, what: &str, jail: &Jail, survey: &wall::Survey, host: &mut Kernel) {
    if rules_before_its_own(findings, what, jail, survey, host) == Some(0) && survey.stands() {
        answers_reach_the_bridge(findings, what, jail, survey, host);
    }
    interfaces(findings, what, jail, survey);
}

fn has(config: &Config, family: Family) -> bool {
    config.jails.iter().any(|jail| jail.subnets.iter().any(|net| Family::of_net(net) == family))
}

/// A setting of /proc/sys, by its name for sysctl(8); `None` where the kernel has no such setting. An interface's name may
/// have dots, which sysctl writes as slashes.
fn setting(parts: &[&str]) -> Option<String> {
    let path: PathBuf = ["/proc/sys/net"].iter().chain(parts).collect();
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn sysctl(parts: &[&str], value: &str) -> String {
    let parts: Vec<String> = parts.iter().map(|part| part.replace('.', "/")).collect();
    format!("sysctl -w net.{}={value}", parts.join("."))
}

fn forwarding(findings: &mut Findings, config: &Config) {
    for (family, parts) in
        [(Family::V4, &["ipv4", "ip_forward"][..]), (Family::V6, &["ipv6", "conf", "all", "forwarding"])]
    {
        if has(config, family) && setting(parts).is_none_or(|value| value == "0") {
            let name = format!("net.{}", parts.join("."));
            findings.add(
                Verdict::Warning,
                "forwarding",
                format!(
                    "{name} is off, so nothing of a jail is forwarded; engines turn it on, or: {}",
                    sysctl(parts, "1")
                ),
            );
        }
    }
}

/// A router takes no default route from another one's adverts unless told so (`accept_ra` 2, ip-sysctl): where an engine
/// turned forwarding on, a host that lives by them has lost its own IPv6, and so every tunnel over it.
fn router_adverts(findings: &mut Findings, config: &Config, host: &mut Kernel, links: &[Link]) {
    if !has(config, Family::V6) || setting(&["ipv6", "conf", "all", "forwarding"]).is_none_or(|value| value == "0") {
        return;
    }
    let Some(autoconfigured) = findings.take("host", host.rtnl.autoconfigured().map_err(Into::into)) else { return };
    for link in links.iter().filter(|link| autoconfigured.contains(&link.index)) {
        let name = link.name.as_str();
        let of_this = |key| setting(&["ipv6", "conf", name, key]);
        if of_this("accept_ra").as_deref() == Some("1") && of_this("forwarding").as_deref() == Some("1") {
            findings.add(
                Verdict::Warning,
                "host",
                format!(
                    "{name} has its IPv6 address from router adverts, but with forwarding on accept_ra = 1 hears no more of \
                     them: the host loses address and default route; {}",
                    sysctl(&["ipv6", "conf", name, "accept_ra"], "2")
                ),
            );
        }
    }
}

/// Ip rules of others that are asked first. Returns how many take the jail's packets.
fn rules_before_its_own(
    findings: &mut Findings,
    what: &str,
    jail: &Jail,
    survey: &wall::Survey,
    host: &mut Kernel,
) -> Option<usize> {
    let before = desired::preference(&survey.surroundings);
    let rules = findings.take(what, host.rtnl.other_rules(before).map_err(Into::into))?;
    let mut errors = 0;
    for rule in &rules {
        let verdict = match conflict::with_rule(jail, survey.surroundings.bridge.as_ref(), rule) {
            Catches::Nothing => continue,
            Catches::Marked => Verdict::Warning,
            Catches::Packets => {
                errors += 1;
                Verdict::Error
            }
        };
        let whom =
            if verdict == Verdict::Error { "the jail's packets" } else { "those of its packets that get this mark" };
        let ip = if rule.family == Family::V6 { "ip -6" } else { "ip" };
        findings.add(
            verdict,
            what,
            format!(
                "the ip rule \"{}: {}\" is asked before the jail's ({before}) and takes {whom}: they do not ask the \
                 jail's table, and are rejected where they would not leave by an exit; give it a preference above \
                 {RULE_PRIORITY}: {ip} rule add pref 32765 {}; {ip} rule del pref {}",
                rule.priority, rule.text, rule.text, rule.priority
            ),
        );
    }
    Some(errors)
}

/// What comes in by an exit for a member asks the host's rules, all of them: one that leads everything elsewhere (a VPN of
/// the host's own without exceptions) takes the answers along.
fn answers_reach_the_bridge(
    findings: &mut Findings,
    what: &str,
    jail: &Jail,
    survey: &wall::Survey,
    host: &mut Kernel,
) {
    let Some(bridge) = &survey.bridge else { return };
    for exit in survey.surroundings.exits.iter().filter(|exit| exit.link.up) {
        for subnet in &jail.subnets {
            let family = Family::of_net(subnet);
            let ip = if family == Family::V6 { "ip -6" } else { "ip" };
            let Some(somewhere) = way::somewhere(family).next() else { continue };
            // An address that a member may have, and hardly the host itself.
            let Some(member) = subnet.hosts().nth(251).or_else(|| subnet.hosts().last()) else { continue };
            if !exit.has(family) || !is_forwarded(&exit.link.name, family) {
                continue;
            }
            // An error is a strict reverse path's (fib_validate_source): the question was wrong, not the way.
            let Ok(answers) = host.rtnl.ways(&[(somewhere, member)], exit.link.index) else { continue };
            if answers.iter().all(|answer| [FibAnswer::Out(bridge.index), FibAnswer::Local].contains(answer)) {
                continue;
            }
            let mend = RULE_PRIORITY + 1;
            findings.add(
                Verdict::Warning,
                what,
                format!(
                    "an ip rule of others leads what comes in by {} for {subnet} elsewhere than to bridge {}: members get no \
                     answers; {ip} rule add pref {mend} to {subnet} lookup main",
                    exit.link.name, bridge.name
                ),
            );
        }
    }
}

fn is_forwarded(name: &str, family: Family) -> bool {
    let is_off = |parts: &[&str]| setting(parts).as_deref() == Some("0");
    match family {
        Family::V4 => !is_off(&["ipv4", "ip_forward"]) && !is_off(&["ipv4", "conf", name, "forwarding"]),
        Family::V6 => !is_off(&["ipv6", "conf", "all", "forwarding"]),
    }
}

fn interfaces(findings: &mut Findings, what: &str, jail: &Jail, survey: &wall::Survey) {
    let bridge = survey.bridge.as_ref().map(|link| link.name.as_str());
    let exits = survey.surroundings.exits.iter().map(|exit| exit.link.name.as_str());
    let has = |family| jail.subnets.iter().any(|net| Family::of_net(net) == family);
    if has(Family::V4) && setting(&["ipv4", "ip_forward"]).is_some_and(|value| value != "0") {
        for name in bridge.into_iter().chain(exits) {
            let parts = ["ipv4", "conf", name, "forwarding"];
            if setting(&parts).as_deref() == Some("0") {
                findings.add(
                    Verdict::Warning,
                    what,
                    format!("what comes in by {name} is not forwarded, IPv4; {}", sysctl(&parts, "1")),
                );
            }
        }
    }
    if let (true, Some(name)) = (has(Family::V6), bridge) {
        let parts = ["ipv6", "conf", name, "disable_ipv6"];
        if setting(&parts).as_deref() == Some("1") {
            findings.add(
                Verdict::Warning,
                what,
                format!("bridge {name} has IPv6 turned off, so members have no IPv6; {}", sysctl(&parts, "0")),
            );
        }
    }
}
