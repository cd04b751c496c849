//! Firewalls of others that drop what is forwarded unless a rule lets it through, and have no rule for a jail's bridge.
//! What a rule says about the bridge is its author's business; a firewall that never heard of it lets nothing through.

use ipnet::IpNet;
use serde_json::Value;

use super::filter::nft::{self, Base};
use super::rulesets::{Kind, Rulesets};
use super::{Findings, Verdict};
use crate::model::names::IfName;
use crate::model::objects::Family;
use crate::model::policy::Jail;

/// Chains of others that drop what they do not know. nftables: a drop is final, whoever accepted before.
pub(super) fn look(findings: &mut Findings, what: &str, jail: &Jail, bridge: &IfName, rulesets: &Rulesets) {
    let nft = rulesets.nft.as_ref().map(|ruleset| closed_chains(ruleset, jail, bridge)).unwrap_or_default();
    let legacy = rulesets.iptables.iter().filter(|listed| listed.kind == Kind::Legacy);
    let legacy = legacy.filter_map(|listed| closed_legacy(&listed.rules, listed.family, jail, bridge));
    for chain in nft.into_iter().chain(legacy) {
        findings.add(Verdict::Warning, what, chain.told(bridge, jail));
    }
}

/// A chain on the forward hook that drops what no rule accepts.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed {
    /// As its owner's tool names it.
    name: String,
    /// A line that lets the bridge through.
    mend: String,
}

impl Closed {
    pub fn is(&self, base: &Base) -> bool {
        self.name == name_of(base)
    }

    fn told(&self, bridge: &IfName, jail: &Jail) -> String {
        format!(
            "{} drops what it has no rule for, and has none for bridge {bridge} or the subnets of jail {}: nothing of the \
             jail is forwarded; let the bridge through there: {}",
            self.name, jail.name, self.mend
        )
    }
}

fn name_of(Base { family, table, name }: &Base) -> String {
    format!("nftables chain {family} {table} {name}")
}

/// The closed chains of `ruleset`, `nft --json list ruleset`'s output.
pub fn closed_chains(ruleset: &Value, jail: &Jail, bridge: &IfName) -> Vec<Closed> {
    let items: Vec<&Value> = ruleset["nftables"].as_array().into_iter().flatten().collect();
    let rules_of = |base: &Base, chain: Option<&str>| {
        let is_of = |rule: &&Value| base.has(rule) && chain.is_none_or(|chain| rule["chain"] == chain);
        items.iter().map(|item| &item["rule"]).filter(is_of).collect::<Vec<_>>()
    };
    let mut closed = Vec::new();
    for base in nft::bases(ruleset) {
        let Base { family, table, name } = base;
        let judged = judged_by(&base, jail);
        if judged.is_empty() {
            continue;
        }
        let is_it = |chain: &&Value| base.has(chain) && chain["name"] == name;
        let Some(chain) = items.iter().map(|item| &item["chain"]).find(is_it) else { continue };
        let ends = chain["policy"] == "drop" || rules_of(&base, Some(name)).last().is_some_and(|rule| ends_it(rule));
        if !ends || rules_of(&base, None).iter().any(|rule| names(&rule["expr"], bridge, &judged)) {
            continue;
        }
        let lines = |program: &str| {
            format!("{program} -I {name} -i {bridge} -j ACCEPT; {program} -I {name} -o {bridge} -j ACCEPT")
        };
        closed.push(Closed {
            name: name_of(&base),
            mend: match (family, table, name) {
                ("ip", "filter", "FORWARD") => lines("iptables"),
                ("ip6", "filter", "FORWARD") => lines("ip6tables"),
                _ => ["iifname", "oifname"]
                    .map(|side| format!("nft insert rule {family} {table} {name} {side} {bridge} accept"))
                    .join("; "),
            },
        });
    }
    closed
}

/// The same in the output of `iptables-legacy -S`.
pub fn closed_legacy(rules: &str, family: Family, jail: &Jail, bridge: &IfName) -> Option<Closed> {
    let judged: Vec<&IpNet> = jail.subnets.iter().filter(|net| Family::of_net(net) == family).collect();
    let last = rules.lines().rfind(|line| line.starts_with("-A FORWARD"));
    let ends = rules.lines().any(|line| line == "-P FORWARD DROP")
        || last.is_some_and(|line| line.starts_with("-A FORWARD -j DROP") || line.starts_with("-A FORWARD -j REJECT"));
    let known = rules.split_whitespace().any(|word| {
        word == bridge.as_str()
            || word.strip_suffix('+').is_some_and(|start| bridge.as_str().starts_with(start))
            || word.parse::<IpNet>().is_ok_and(|net| judged.iter().any(|subnet| holds(&net, subnet)))
    });
    let program = match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    };
    (!judged.is_empty() && ends && !known).then(|| Closed {
        name: format!("chain FORWARD of {program}"),
        mend: format!("{program} -I FORWARD -i {bridge} -j ACCEPT; {program} -I FORWARD -o {bridge} -j ACCEPT"),
    })
}

/// The jail's subnets that the chain sees.
fn judged_by<'a>(base: &Base, jail: &'a Jail) -> Vec<&'a IpNet> {
    jail.subnets.iter().filter(|net| base.sees(Family::of_net(net))).collect()
}

/// A last rule that takes everything.
fn ends_it(rule: &Value) -> bool {
    let statements: Vec<&Value> = rule["expr"].as_array().into_iter().flatten().collect();
    let is = |key: &str| statements.iter().any(|statement| statement.get(key).is_some());
    (is("drop") || is("reject")) && !is("match") && !is("xt")
}

/// Whether an expression names the bridge, by a pattern too, or a net that holds one of the subnets.
fn names(expression: &Value, bridge: &IfName, subnets: &[&IpNet]) -> bool {
    match expression {
        Value::String(text) => {
            text == bridge.as_str() || text.strip_suffix('*').is_some_and(|start| bridge.as_str().starts_with(start))
        }
        Value::Array(items) => items.iter().any(|item| names(item, bridge, subnets)),
        Value::Object(fields) => {
            let prefix = fields.get("prefix").and_then(|prefix| {
                let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
                IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
            });
            prefix.is_some_and(|net| subnets.iter().any(|subnet| holds(&net, subnet)))
                || fields.values().any(|value| names(value, bridge, subnets))
        }
        _ => false,
    }
}

/// 0.0.0.0/0 is nobody in particular.
fn holds(net: &IpNet, subnet: &IpNet) -> bool {
    net.prefix_len() > 0 && net.contains(subnet)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn closed(policy: &str, rules: &[Value]) -> usize {
        let text = "[jail.vpn]\nsubnets = [\"172.18.0.0/16\"]\nexit = \"tun0\"\n";
        let jail = Config::parse(std::path::Path::new("test.toml"), text).unwrap().jails.remove(0);
        let of = |key: &str, mut value: Value| {
            (value["family"], value["table"]) = ("ip".into(), "filter".into());
            json!({ key: value })
        };
        let chain = json!({"name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": policy});
        let rules = rules.iter().map(|expr| of("rule", json!({"chain": "FORWARD", "expr": expr})));
        let items: Vec<Value> = std::iter::once(of("chain", chain)).chain(rules).collect();
        closed_chains(&json!({ "nftables": items }), &jail, &"br-vpn".parse().unwrap()).len()
    }

    fn matching(key: &str, right: Value) -> Value {
        json!([{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}, {"accept": null}])
    }

    #[test]
    fn a_chain_is_closed_when_it_drops_and_never_heard_of_the_bridge() {
        assert_eq!(closed("accept", &[]), 0);
        assert_eq!(closed("drop", &[]), 1);
        assert_eq!(closed("accept", &[json!([{"counter": null}, {"reject": {"type": "icmpx"}}])]), 1);
        for known in [
            matching("iifname", json!("br-vpn")),
            matching("oifname", json!("br-*")),
            matching("iifname", json!({"set": ["docker0", "br-vpn"]})),
            matching("saddr", json!({"prefix": {"addr": "172.16.0.0", "len": 12}})),
        ] {
            assert_eq!(closed("drop", std::slice::from_ref(&known)), 0, "{known}");
        }
        for unknown in [
            matching("iifname", json!("br-lan")),
            matching("iifname", json!("docker*")),
            matching("saddr", json!({"prefix": {"addr": "172.17.0.0", "len": 16}})),
            matching("saddr", json!({"prefix": {"addr": "0.0.0.0", "len": 0}})),
        ] {
            assert_eq!(closed("drop", std::slice::from_ref(&unknown)), 1, "{unknown}");
        }
    }
}
