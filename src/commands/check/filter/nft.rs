//! What `nft --json list ruleset` lists (libnftables-json(5)).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{Act, Call, Met, Rule, Table};
use crate::model::names::IfName;
use crate::model::objects::Family;

/// A base chain on the forward hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base<'a> {
    pub family: &'a str,
    pub table: &'a str,
    pub name: &'a str,
}

impl Base<'_> {
    /// Whether it sees packets of this family.
    pub fn sees(&self, family: Family) -> bool {
        match self.family {
            "inet" => true,
            "ip" => family == Family::V4,
            "ip6" => family == Family::V6,
            _ => false,
        }
    }

    /// Whether it is where iptables keeps its own.
    pub fn is_of_iptables(&self) -> bool {
        matches!(self.family, "ip" | "ip6") && self.table == "filter" && self.name == "FORWARD"
    }

    /// Whether a chain, rule or set is in its table.
    pub fn has(&self, item: &Value) -> bool {
        item["family"] == self.family && item["table"] == self.table
    }
}

fn items<'a>(ruleset: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    ruleset["nftables"].as_array().into_iter().flatten().filter_map(move |item| item.get(kind))
}

/// The base chains of `ruleset` that judge what is forwarded, tunjail's own aside.
pub fn bases(ruleset: &Value) -> impl Iterator<Item = Base<'_>> {
    items(ruleset, "chain").filter(|chain| chain["hook"] == "forward" && chain["type"] == "filter").filter_map(
        |chain| {
            let base = Base {
                family: chain["family"].as_str()?,
                table: chain["table"].as_str()?,
                name: chain["name"].as_str()?,
            };
            (!base.table.starts_with("tunjail_")).then_some(base)
        },
    )
}

/// Whether the chain's table has rules of iptables that nft lists by name alone.
pub fn has_hidden_rules(ruleset: &Value, base: &Base) -> bool {
    let is_hidden = |rule: &Value| rule["expr"].as_array().into_iter().flatten().any(|part| part.get("xt").is_some());
    items(ruleset, "rule").any(|rule| base.has(rule) && is_hidden(rule))
}

/// The chain's table, judged for `call`.
pub fn table(ruleset: &Value, base: &Base, call: &Call) -> Table {
    let mut table = Table::default();
    let name_in = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    for chain in items(ruleset, "chain").filter(|chain| base.has(chain)) {
        let name = name_in(chain, "name");
        let drops = (chain["policy"] == "drop").then(|| format!("policy drop of chain {name}"));
        table.0.entry(name).or_default().drops = drops;
    }
    let judge = Judge { ruleset, base, call };
    for rule in items(ruleset, "rule").filter(|rule| base.has(rule)) {
        let chain = name_in(rule, "chain");
        let text = format!("chain {chain}, rule with handle {}", rule["handle"]);
        let steps = judge.steps(&rule["expr"]);
        let rules = steps.into_iter().map(|(met, act)| Rule { met, act, text: text.clone() });
        table.0.entry(chain).or_default().rules.extend(rules);
    }
    table
}

struct Judge<'a> {
    ruleset: &'a Value,
    base: &'a Base<'a>,
    call: &'a Call<'a>,
}

impl Judge<'_> {
    /// What a rule comes to: one verdict, or as many as its verdict map has.
    fn steps(&self, expression: &Value) -> Vec<(Met, Act)> {
        let mut met = Met::Yes;
        let mut end = Act::Continue;
        for statement in expression.as_array().into_iter().flatten() {
            let Some((key, value)) = statement.as_object().and_then(|fields| fields.iter().next()) else { continue };
            let act = match key.as_str() {
                "match" => {
                    met = met.and(self.is_met(value));
                    continue;
                }
                "vmap" => return self.mapped(met, value),
                "counter" | "log" | "mangle" | "notrack" | "flow" | "continue" => continue,
                _ => match verdict(statement) {
                    Act::Unknown => {
                        // A condition, or an end of its own.
                        (met, end) = (met.and(Met::Maybe), Act::Unknown);
                        continue;
                    }
                    act => act,
                },
            };
            return vec![(met, act)];
        }
        vec![(met, end)]
    }

    fn mapped(&self, met: Met, map: &Value) -> Vec<(Met, Act)> {
        let Some(pairs) = self.elements(&map["data"]) else { return vec![(met, Act::Unknown)] };
        let step = |pair: &Value| (met.and(self.is(&map["key"], &pair[0])), verdict(&pair[1]));
        pairs.iter().map(step).collect()
    }

    fn is_met(&self, condition: &Value) -> Met {
        let header = &condition["left"]["payload"]["protocol"];
        let is_other = match header.as_str() {
            Some("ip") => self.call.family() == Family::V6,
            Some("ip6") => self.call.family() == Family::V4,
            Some(transport @ ("tcp" | "udp")) => self.call.is_of(transport) == Met::No,
            _ => false,
        };
        if is_other {
            // A packet without the header meets no condition on it, negated or not.
            return Met::No;
        }
        let met = self.is(&condition["left"], &condition["right"]);
        match condition["op"].as_str() {
            Some("==" | "in") => met,
            Some("!=") => met.not(),
            _ => Met::Maybe,
        }
    }

    /// The elements of a set or map, named or not; `None` when it is neither.
    fn elements<'a>(&'a self, value: &'a Value) -> Option<&'a Vec<Value>> {
        if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) {
            let mut sets = ["set", "map"].into_iter().flat_map(|kind| items(self.ruleset, kind));
            return sets.find(|set| self.base.has(set) && set["name"] == name)?.get("elem")?.as_array();
        }
        value.get("set").unwrap_or(value).as_array()
    }

    /// Whether what `left` reads of the call is `right`, or one of them.
    fn is(&self, left: &Value, right: &Value) -> Met {
        if right.as_str().is_some_and(|text| text.starts_with('@')) && self.elements(right).is_none() {
            // Empty, or not this table's; another program may fill it any time.
            return Met::Maybe;
        }
        if let Some(elements) = self.elements(right) {
            return Met::any(elements.iter().map(|element| self.is(left, element)));
        }
        if let Some(value) = right.get("elem").and_then(|element| element.get("val")) {
            return self.is(left, value);
        }
        let text = right.as_str().map_or_else(|| right.to_string(), str::to_owned);
        if let Some(key) = left["meta"]["key"].as_str() {
            return match key {
                "iif" | "iifname" => interface(&text, self.call.exit),
                "oif" | "oifname" => interface(&text, self.call.bridge),
                "l4proto" => self.call.is_of(&text),
                "nfproto" => (text == if self.call.family() == Family::V4 { "ipv4" } else { "ipv6" }).into(),
                "protocol" => (text == if self.call.family() == Family::V4 { "ip" } else { "ip6" }).into(),
                _ => Met::Maybe,
            };
        }
        match (left["ct"]["key"].as_str(), text.as_str()) {
            (Some("state"), state) => return (state == "new").into(),
            (Some("status"), "dnat") => return Met::Yes,
            _ => {}
        }
        let (header, field) = (left["payload"]["protocol"].as_str(), left["payload"]["field"].as_str());
        match (header, field) {
            (Some("ip" | "ip6"), Some("saddr")) => net(right).map_or(Met::Maybe, |net| Call::comes_from(&net)),
            (Some("ip" | "ip6"), Some("daddr")) => net(right).map_or(Met::Maybe, |net| self.call.goes_to(&net)),
            (Some("ip" | "ip6"), Some("protocol" | "nexthdr")) => self.call.is_of(&text),
            (Some("tcp" | "udp" | "th"), Some("dport")) => port(right, self.call.port.number),
            _ => Met::Maybe,
        }
    }
}

fn verdict(statement: &Value) -> Act {
    let Some((key, value)) = statement.as_object().and_then(|fields| fields.iter().next()) else { return Act::Unknown };
    let target = || value["target"].as_str().unwrap_or_default().to_owned();
    match key.as_str() {
        "accept" => Act::Accept,
        "drop" | "reject" => Act::Drop,
        "return" => Act::Return,
        "continue" => Act::Continue,
        "jump" => Act::Jump(target()),
        "goto" => Act::Goto(target()),
        _ => Act::Unknown,
    }
}

fn interface(pattern: &str, name: &IfName) -> Met {
    match pattern.strip_suffix('*') {
        Some(start) => name.as_str().starts_with(start).into(),
        None => (pattern == name.as_str()).into(),
    }
}

fn net(value: &Value) -> Option<IpNet> {
    let Some(prefix) = value.get("prefix") else { return value.as_str()?.parse::<IpAddr>().ok().map(IpNet::from) };
    let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
    IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
}

fn port(value: &Value, own: u16) -> Met {
    let own = u64::from(own);
    match (value.as_u64(), value["range"][0].as_u64(), value["range"][1].as_u64()) {
        (Some(port), ..) => (port == own).into(),
        (None, Some(first), Some(last)) => (first..=last).contains(&own).into(),
        _ => Met::Maybe,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Target;
    use super::*;

    /// What a table that stands for all that nft lists does with a call of 172.18.0.20, or of fd00:18::20.
    fn dropped(to: &str, rules: &[Value], more: &[Value]) -> Option<String> {
        let (exit, bridge) = ("tun0".parse().unwrap(), "vpn".parse().unwrap());
        let to = Target::Member(to.parse().unwrap());
        let call = Call { exit: &exit, bridge: &bridge, to, port: "tcp/80".parse().unwrap() };
        let of = |mut item: Value| {
            let fields = item.as_object_mut().unwrap().values_mut().next().unwrap();
            (fields["family"], fields["table"], fields["handle"]) = ("inet".into(), "wall".into(), 7.into());
            item
        };
        let base = json!({"chain": {"name": "f", "hook": "forward", "type": "filter", "policy": "drop"}});
        let rules = rules.iter().map(|expr| json!({"rule": {"chain": "f", "expr": expr}}));
        let items: Vec<Value> = [base].into_iter().chain(more.to_vec()).chain(rules).map(of).collect();
        let ruleset = json!({ "nftables": items });
        let base = bases(&ruleset).next().unwrap();
        table(&ruleset, &base, &call).dropped_by("f").map(str::to_owned)
    }

    fn when(left: Value, op: &str, right: Value) -> Value {
        json!([{"match": {"op": op, "left": left, "right": right}}, {"counter": {"packets": 0}}, {"accept": null}])
    }

    fn meta(key: &str) -> Value {
        json!({"meta": {"key": key}})
    }

    fn field(protocol: &str, field: &str) -> Value {
        json!({"payload": {"protocol": protocol, "field": field}})
    }

    #[test]
    fn a_rule_is_judged_as_the_kernel_judges_it() {
        let state = json!({"ct": {"key": "state"}});
        let prefix = |addr: &str, len: u8| json!({"prefix": {"addr": addr, "len": len}});
        for passes in [
            json!([{"accept": null}]),
            when(meta("iifname"), "==", json!("tun*")),
            when(meta("oifname"), "==", json!({"set": ["docker0", "vpn"]})),
            when(json!({"ct": {"key": "status"}}), "in", json!("dnat")),
            when(state.clone(), "in", json!(["new", "established"])),
            when(field("ip", "daddr"), "==", prefix("172.18.0.0", 16)),
            when(field("th", "dport"), "==", json!({"range": [1, 1024]})),
            when(field("tcp", "dport"), "!=", json!(22)),
            when(meta("l4proto"), "==", json!({"set": ["tcp", 17]})),
            // Nobody knows.
            when(meta("mark"), "==", json!(1)),
            when(meta("iifname"), "==", json!("@unknown")),
            json!([{"limit": {"rate": 5}}, {"accept": null}]),
            json!([{"queue": {"num": 1}}]),
            json!([{"xt": {"type": "target", "name": "REJECT"}}]),
        ] {
            assert_eq!(dropped("172.18.0.20", std::slice::from_ref(&passes), &[]), None, "{passes}");
        }
        for other in [
            when(meta("iifname"), "==", json!("eth0")),
            when(meta("oifname"), "!=", json!("vpn")),
            when(state, "in", json!(["established", "related"])),
            when(field("ip", "daddr"), "==", json!("172.18.0.21")),
            when(field("ip6", "daddr"), "!=", json!("fd00::1")),
            when(field("udp", "dport"), "!=", json!(22)),
            when(field("tcp", "dport"), "==", json!({"set": [443, {"range": [81, 90]}]})),
            json!([{"match": {"op": "==", "left": meta("mark"), "right": 1}}, {"log": null}]),
        ] {
            assert_eq!(
                dropped("172.18.0.20", std::slice::from_ref(&other), &[]).as_deref(),
                Some("policy drop of chain f"),
                "{other}"
            );
        }
    }

    /// As Docker 29 does it with "firewall-backend": "nftables".
    #[test]
    fn a_verdict_map_leads_to_chains() {
        let map = json!({"map": {"name": "out", "type": "ifname", "map": "verdict", "elem": [["vpn", {"jump": {"target": "out_vpn"}}]]}});
        let chain = json!({"chain": {"name": "out_vpn"}});
        let rule = |expr: Value| json!({"rule": {"chain": "out_vpn", "expr": expr}});
        let established = rule(
            json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}], ["related", {"accept": null}]]}}}]),
        );
        let publish = |port: u16| rule(when(field("tcp", "dport"), "==", json!(port)));
        let end = rule(json!([{"drop": null}]));
        let leads = [json!([{"vmap": {"key": meta("oifname"), "data": "@out"}}]), json!([{"accept": null}])];
        for to in ["172.18.0.20", "fd00:18::20"] {
            let with = |port| {
                dropped(to, &leads, &[map.clone(), chain.clone(), established.clone(), publish(port), end.clone()])
            };
            assert_eq!(with(443).as_deref(), Some("chain out_vpn, rule with handle 7"));
            assert_eq!(with(80), None);
        }
    }
}
