//! Processes of Docker's that answer for a published port: what they hand on is the host's own packet, which no wall judges.

use std::fs;
use std::net::IpAddr;

use serde_json::Value;

use super::{Findings, Verdict};
use crate::kernel::nftables;
use crate::model::policy::Jail;

/// Where dockerd leaves IPv6 to a proxy (`ip6tables` is off, as it is before Docker 27, or the member has no IPv6), whoever
/// reaches the port by IPv6 reaches the member. A proxy beside Docker's own rules serves the host alone, and is no finding.
pub fn look(findings: &mut Findings, what: &str, jail: &Jail) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut served: Vec<Served> = processes
        .filter_map(|process| served_by(&fs::read(process.path().join("cmdline")).ok()?))
        .filter(|served| jail.holds(served.member))
        .collect();
    if served.iter().any(|served| served.member.is_ipv6()) && has_rules() {
        served.retain(|served| served.member.is_ipv4());
    }
    served.sort();
    served.dedup();
    for Served { member, port } in served {
        findings.add(
            Verdict::Warning,
            what,
            format!(
                "docker-proxy hands on port {port} from IPv6 to {member}, so whoever reaches that port of the host reaches the \
                 member, allowed or not; in daemon.json set \"ip6tables\": true (up to Docker 26 with \"experimental\": true), \
                 or \"userland-proxy\": false"
            ),
        );
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Served {
    member: IpAddr,
    port: String,
}

/// Whether dockerd translates IPv6 by rules. What cannot be seen is taken for one that does.
fn has_rules() -> bool {
    let older = fs::read_to_string("/proc/self/net/ip6_tables_names").unwrap_or_default();
    let Ok(ruleset) = nftables::ruleset() else { return true };
    let is_dockers = |chain: &Value| {
        chain["family"] == "ip6"
            && (chain["name"] == "DOCKER" && chain["table"] == "nat" || chain["table"] == "docker-bridges")
    };
    older.lines().any(|table| table == "nat")
        || ruleset["nftables"].as_array().into_iter().flatten().any(|item| is_dockers(&item["chain"]))
}

/// What a command line says, if it is that of a docker-proxy that listens by IPv6.
fn served_by(line: &[u8]) -> Option<Served> {
    let words: Vec<&str> = line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    if words.first()?.rsplit('/').next() != Some("docker-proxy") {
        return None;
    }
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    let from: IpAddr = value("-host-ip")?.parse().ok()?;
    let member: IpAddr = value("-container-ip")?.parse().ok()?;
    let port = format!("{}/{}", value("-proto")?, value("-host-port")?.parse::<u16>().ok()?);
    from.is_ipv6().then_some(Served { member, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(host: &str, container: &str) -> Option<Served> {
        words(&format!(
            "/usr/sbin/docker-proxy -proto tcp -host-ip {host} -host-port 8080 -container-ip {container} -container-port 80"
        ))
    }

    fn words(line: &str) -> Option<Served> {
        served_by(line.replace(' ', "\0").as_bytes())
    }

    #[test]
    fn a_proxy_that_listens_by_ipv6_is_seen() {
        for member in ["172.18.0.20", "fd00:18::20"] {
            let served = Served { member: member.parse().unwrap(), port: "tcp/8080".into() };
            assert_eq!(line("::", member), Some(served));
            assert_eq!(line("0.0.0.0", member), None);
        }
        assert_eq!(words(""), None);
        assert_eq!(words("/bin/sleep -proto tcp -host-ip :: -host-port 8080 -container-ip 172.18.0.20"), None);
    }
}
