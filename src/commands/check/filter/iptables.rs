//! What `iptables -S` lists (iptables(8), iptables-extensions(8)).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Act, Call, Met, Rule, Table};
use crate::model::names::IfName;

/// Targets after which the next rule is asked.
const GO_ON: [&str; 13] = [
    "LOG",
    "NFLOG",
    "MARK",
    "CONNMARK",
    "SECMARK",
    "CONNSECMARK",
    "TCPMSS",
    "SET",
    "TOS",
    "DSCP",
    "TTL",
    "HL",
    "AUDIT",
];

/// Matches that say nothing themselves: their options do.
const SILENT: [&str; 6] = ["tcp", "udp", "conntrack", "state", "multiport", "comment"];

/// The table that these lines list, judged for `call`.
pub fn table(lines: &str, call: &Call) -> Table {
    let mut table = Table::default();
    for line in lines.lines() {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["-P", chain, policy] => {
                table.0.entry((*chain).to_owned()).or_default().drops = (*policy != "ACCEPT").then(|| line.to_owned());
            }
            ["-N", chain] => {
                table.0.entry((*chain).to_owned()).or_default();
            }
            ["-A", chain, rule @ ..] => {
                let (met, act) = judged(rule, call);
                table.0.entry((*chain).to_owned()).or_default().rules.push(Rule { met, act, text: line.to_owned() });
            }
            _ => {}
        }
    }
    table
}

fn judged(rule: &[&str], call: &Call) -> (Met, Act) {
    let mut met = Met::Yes;
    let mut negated = false;
    let mut words = rule.iter().copied();
    while let Some(word) = words.next() {
        let one = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-j" => return (met, words.next().map_or(Act::Unknown, act)),
            "-g" => return (met, words.next().map_or(Act::Unknown, |chain| Act::Goto(chain.to_owned()))),
            "--comment" => {
                words.next();
                continue;
            }
            "-m" if words.clone().next().is_some_and(|name| SILENT.contains(&name)) => continue,
            "-i" => words.next().map_or(Met::Maybe, |name| is(name, call.exit)),
            "-o" => words.next().map_or(Met::Maybe, |name| is(name, call.bridge)),
            "-s" => words.next().and_then(net).map_or(Met::Maybe, |net| Call::comes_from(&net)),
            "-d" => words.next().and_then(net).map_or(Met::Maybe, |net| call.goes_to(&net)),
            "-p" => words.next().map_or(Met::Maybe, |name| call.is_of(name)),
            "--dport" | "--dports" => words.next().map_or(Met::Maybe, |list| ports(list, call)),
            "--ctstate" | "--state" => words.next().map_or(Met::Maybe, |list| {
                // Its destination was translated.
                list.split(',').any(|state| state == "NEW" || state == "DNAT").into()
            }),
            option if option.starts_with('-') => Met::Maybe,
            // An option's value.
            _ => continue,
        };
        met = met.and(one.not_if(negated));
        negated = false;
    }
    (met, Act::Continue)
}

fn act(target: &str) -> Act {
    match target {
        "ACCEPT" => Act::Accept,
        "DROP" | "REJECT" => Act::Drop,
        "RETURN" => Act::Return,
        target if GO_ON.contains(&target) => Act::Continue,
        // What is no chain is unknown to the walk.
        chain => Act::Jump(chain.to_owned()),
    }
}

fn is(pattern: &str, name: &IfName) -> Met {
    match pattern.strip_suffix('+') {
        Some(start) => name.as_str().starts_with(start).into(),
        None => (pattern == name.as_str()).into(),
    }
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn ports(list: &str, call: &Call) -> Met {
    let is_in = |range: &str| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&call.port.number).into(),
            _ => Met::Maybe,
        }
    };
    Met::any(list.split(',').map(is_in))
}

/// The words of a line; one in quotes may have spaces, and a backslash before what would end it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if is_quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !is_quoted => words.extend(word.take()),
            character => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::super::Target;
    use super::*;

    fn dropped(lines: &str) -> Option<String> {
        let (exit, bridge) = ("tun0".parse().unwrap(), "vpn".parse().unwrap());
        let to = Target::Member("172.18.0.20".parse().unwrap());
        let call = Call { exit: &exit, bridge: &bridge, to, port: "tcp/80".parse().unwrap() };
        table(lines, &call).dropped_by("FORWARD").map(str::to_owned)
    }

    /// Docker 20.10, and 28.5, as they list their rules; and what their users add.
    const OLD: &str = "-P FORWARD DROP\n-N DOCKER\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER
-A FORWARD -o vpn -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -o vpn -j DOCKER
-A FORWARD -i vpn ! -o vpn -j ACCEPT\n-A FORWARD -i vpn -o vpn -j ACCEPT\n-A DOCKER-USER -j RETURN";
    const NEW: &str =
        "-P FORWARD ACCEPT\n-N DOCKER\n-N DOCKER-USER\n-N DOCKER-CT\n-N DOCKER-FORWARD\n-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD\n-A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER-FORWARD -o vpn -j DOCKER
-A DOCKER-CT -o vpn -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    const END: &str = "-A DOCKER ! -i vpn -o vpn -j DROP";
    const MEND: &str = "-A DOCKER-USER -i tun0 -o vpn -j ACCEPT";

    #[test]
    fn what_docker_does_not_know_is_dropped() {
        assert_eq!(dropped(OLD).as_deref(), Some("-P FORWARD DROP"));
        assert_eq!(dropped(&format!("{NEW}\n{END}")).as_deref(), Some(END));
        assert_eq!(dropped(NEW), None);
        assert_eq!(dropped(&format!("{NEW}\n{MEND}\n{END}")), None);
        assert_eq!(dropped(&OLD.replace("-A DOCKER-USER", &format!("{MEND}\n-A DOCKER-USER"))), None);
    }

    #[test]
    fn a_published_port_passes_and_another_one_does_not() {
        let publish = |what: &str| format!("{NEW}\n-A DOCKER -d {what} -j ACCEPT\n{END}");
        let own = "172.18.0.20/32 ! -i vpn -o vpn -p tcp -m tcp --dport 80";
        assert_eq!(dropped(&publish(own)), None);
        for other in [own.replace("80", "81"), own.replace(".20", ".21"), own.replace("tcp", "udp")] {
            assert_eq!(dropped(&publish(&other)).as_deref(), Some(END), "{other}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_not_said_to_drop() {
        let with = |rule: &str| dropped(&format!("-P FORWARD DROP\n-N other\n-A FORWARD {rule}"));
        for passes in [
            "-m set --match-set friends src -j ACCEPT",
            "-s 192.0.2.0/24 -j ACCEPT",
            "-j NFQUEUE --queue-num 1",
            "-m comment --comment \"a \\\"-j DROP\\\"\" -j ACCEPT",
            "-m conntrack --ctstate DNAT -j ACCEPT",
            "-i tun+ -p tcp -m multiport --dports 22,79:90 -j ACCEPT",
            "! -i eth0 -m state --state NEW -j ACCEPT",
        ] {
            assert_eq!(with(passes), None, "{passes}");
        }
        for dropped in ["-i tun1 -j ACCEPT", "-p udp -j ACCEPT", "-j LOG --log-prefix \"x -j ACCEPT\"", "-j other"] {
            assert_eq!(with(dropped).as_deref(), Some("-P FORWARD DROP"), "{dropped}");
        }
        assert_eq!(
            with("-g other\n-A FORWARD -j ACCEPT\n-A other -s 192.0.2.0/24 -j DROP").as_deref(),
            Some("-P FORWARD DROP")
        );
    }
}
