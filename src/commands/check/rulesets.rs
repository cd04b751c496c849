//! What is in force on the host, as its own tools list it: nftables, and both kinds of iptables.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::filter::nft;
use super::{Findings, Verdict};
use crate::kernel::nftables;
use crate::model::objects::Family;

/// All that was listed.
#[derive(Debug, Default)]
pub struct Rulesets {
    /// `nft --json list ruleset`.
    pub nft: Option<Value>,
    pub iptables: Vec<Iptables>,
}

/// The filter table of one of the two kinds of iptables, one family of it.
#[derive(Debug)]
pub struct Iptables {
    pub family: Family,
    pub kind: Kind,
    /// `iptables -S`.
    pub rules: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Kept in nf_tables. Of what its matches say, nft lists the names alone.
    Nft,
    /// The older one, which nft does not see.
    Legacy,
}

impl Kind {
    /// The program that lists these and nothing else.
    fn lister(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft",
            (Self::Nft, Family::V6) => "ip6tables-nft",
            (Self::Legacy, Family::V4) => "iptables-legacy",
            (Self::Legacy, Family::V6) => "ip6tables-legacy",
        }
    }

    /// The program that its users know it by.
    pub fn program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables",
            (Self::Nft, Family::V6) => "ip6tables",
            (Self::Legacy, _) => self.lister(family),
        }
    }
}

/// Reads all that is there. What is there and cannot be read is a finding.
pub fn read(findings: &mut Findings) -> Rulesets {
    let nft =
        nftables::find_nft().ok().and_then(|_| findings.take("firewall", nftables::ruleset().map_err(Into::into)));
    let mut rulesets = Rulesets { nft, iptables: Vec::new() };
    for family in Family::BOTH {
        let of_iptables = |base: &nft::Base| base.is_of_iptables() && base.sees(family);
        let ruleset = rulesets.nft.as_ref();
        let base = ruleset.and_then(|ruleset| nft::bases(ruleset).find(of_iptables));
        let hides = ruleset.zip(base).is_some_and(|(ruleset, base)| nft::has_hidden_rules(ruleset, &base));
        let kinds = [(Kind::Nft, hides), (Kind::Legacy, has_legacy(family))];
        for (kind, _) in kinds.into_iter().filter(|(_, is_there)| *is_there) {
            match list(kind.lister(family)) {
                Ok(rules) => rulesets.iptables.push(Iptables { family, kind, rules }),
                Err(why) => findings.add(
                    Verdict::Warning,
                    "firewall",
                    format!(
                        "there are rules of {}, but {why}: whether they drop what a jail forwards is not known",
                        kind.program(family)
                    ),
                ),
            }
        }
    }
    rulesets
}

fn has_legacy(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/self/net/ip_tables_names",
        Family::V6 => "/proc/self/net/ip6_tables_names",
    };
    fs::read_to_string(names).unwrap_or_default().lines().any(|table| table == "filter")
}

fn list(program: &str) -> Result<String, String> {
    let mut places = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(|dir| Path::new(dir).join(program)).into_iter();
    let path = places.find(|path| path.is_file()).ok_or_else(|| format!("no {program} here lists them; install it"))?;
    let out = Command::new(&path)
        .arg("-S")
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} does not start: {error}", path.display()))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => {
            Err(format!("`{program} -S` fails: {}", String::from_utf8_lossy(&out.stderr).trim().replace('\n', " | ")))
        }
    }
}
