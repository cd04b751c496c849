//! What holds for any input at all: no panic, errors of one line, and only jails that keep their promises.

use std::io::Write;

use proptest::prelude::*;
use proptest::sample::select;

use super::jail::SHORTEST_PREFIX;
use super::*;
use crate::model::policy::{Dns, Routes};

/// The promises of [`Jail`]'s documentation, said again without the code that checks them.
fn assert_valid(config: &Config) {
    let share = |one: &IpNet, other: &IpNet| one.contains(&other.addr()) || other.contains(&one.addr());
    for (index, jail) in config.jails.iter().enumerate() {
        assert!(!jail.subnets.is_empty() && !jail.exits.is_empty());
        for (index, subnet) in jail.subnets.iter().enumerate() {
            assert!(subnet.prefix_len() >= SHORTEST_PREFIX && subnet.trunc() == *subnet, "{subnet}");
            assert!(!subnet.addr().is_loopback() && !subnet.addr().is_multicast() && !subnet.addr().is_unspecified());
            assert!(jail.subnets[..index].iter().all(|other| !share(subnet, other)), "{jail:?}");
            assert!(jail.gateways.iter().all(|gateway| !subnet.contains(gateway)), "{jail:?}");
            assert!(jail.allow.iter().all(|allow| !share(subnet, &allow.net)), "{jail:?}");
            assert_eq!(config.jail_for(subnet.addr()), Some(jail));
        }
        for (index, exit) in jail.exits.iter().enumerate() {
            assert!(jail.bridge.as_ref() != Some(exit) && !jail.exits[..index].contains(exit), "{jail:?}");
        }
        assert!(jail.gateways.iter().filter(|gateway| gateway.is_ipv4()).count() <= jail.exits.len());
        assert!(jail.gateways.iter().filter(|gateway| gateway.is_ipv6()).count() <= jail.exits.len());
        for allow in &jail.allow {
            assert!(allow.net.prefix_len() >= SHORTEST_PREFIX && allow.net.trunc() == allow.net, "{}", allow.net);
            assert!(allow.ports.iter().all(|port| port.number != 0));
        }
        assert!(!matches!(jail.table, Some(0 | 253..=255)));
        assert!(jail.routes == Routes::Own || (jail.table.is_some() && jail.gateways.is_empty()), "{jail:?}");
        if let Dns::Servers(servers) = &jail.dns {
            assert!(!servers.is_empty() && !servers.iter().any(|server| jail.holds(*server)), "{jail:?}");
        }
        for (index, forward) in jail.forward.iter().enumerate() {
            assert!(forward.port.number != 0 && forward.to_port != 0);
            assert!(jail.forward[..index].iter().all(|other| other.port != forward.port), "{jail:?}");
            assert!(forward.to.is_none_or(|to| jail.holds(to)), "{jail:?}");
        }
        for other in &config.jails[..index] {
            assert_ne!(jail.name, other.name);
            assert!(jail.bridge.is_none() || jail.bridge != other.bridge);
            assert!(jail.table.is_none() || jail.table != other.table);
            assert!(jail.subnets.iter().all(|one| other.subnets.iter().all(|net| !share(one, net))));
        }
    }
}

fn assert_sound(result: &Result<Config, ConfigError>) {
    match result {
        Ok(config) => assert_valid(config),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(line.len() < 4096, "{}", line.len());
        }
    }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("t.toml"), text)
}

/// Lines that are right, wrong, or right only without one another.
fn line() -> impl Strategy<Value = String> {
    let net = prop_oneof![
        3 => (0..8_u8, 0..3_u8, 14..18_u8).prop_map(|(a, b, bits)| format!("10.{a}.{b}.0/{bits}")),
        3 => (0..8_u8).prop_map(|a| format!("10.{a}.0.0/16")),
        2 => (0..8_u16).prop_map(|a| format!("fd00:{a:x}::/48")),
        1 => select(vec!["0.0.0.0/0", "::/0", "127.0.0.0/8", "ff00::/8", "192.0.2.1", "224.0.0.0/3", "x"])
            .prop_map(str::to_owned),
    ];
    let nets = prop::collection::vec(net.clone(), 0..4);
    let interface = select(vec!["tun0", "tun1", "br0", "br1", "lo", "a b", "sixteen-bytes-xx"]);
    let address = select(vec!["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.1.0.1", "0.0.0.0", "x"]);
    prop_oneof![
        nets.clone().prop_map(|nets| format!("subnets = {nets:?}")),
        prop::collection::vec(interface.clone(), 0..3).prop_map(|exits| format!("exit = {exits:?}")),
        interface.clone().prop_map(|exit| format!("exit = {exit:?}")),
        interface.prop_map(|bridge| format!("bridge = {bridge:?}")),
        prop::collection::vec(address, 0..3).prop_map(|gateways| format!("gateway = {gateways:?}")),
        nets.prop_map(|nets| format!("allow = {nets:?}")),
        (net, select(vec!["tcp/443", "udp/53", "tcp/0", "icmp/1"]), select(vec!["in", "out", "up"])).prop_map(
            |(net, port, way)| format!("allow = [{{ net = {net:?}, ports = [{port:?}], direction = {way:?} }}]")
        ),
        (-1..300_i64).prop_map(|table| format!("table = {table}")),
        any::<bool>().prop_map(|only| format!("enrolled_only = {only}")),
        prop::collection::vec(select(vec!["192.0.2.53", "2001:db8::53", "10.0.0.53", "engine", "127.0.0.1"]), 0..3)
            .prop_map(|servers| format!("dns = {servers:?}")),
        prop::collection::vec(select(vec!["tcp/1", "udp/1", "tcp/1:2", "tcp/0"]), 0..3)
            .prop_map(|ports| format!("forward = {ports:?}")),
        select(vec!["own", "foreign"]).prop_map(|whose| format!("routes = {whose:?}")),
    ]
}

/// Up to three jails with at least the required keys, in which mistakes are common but not certain.
fn file() -> impl Strategy<Value = String> {
    let good = (0..8_u8, select(vec!["tun0", "tun1"]))
        .prop_map(|(a, exit)| format!("subnets = [\"10.{a}.0.0/16\"]\nexit = \"{exit}\"\n"));
    let lines = prop::collection::vec(line(), 0..3).prop_map(|lines| lines.join("\n"));
    let body = (good, lines).prop_map(|(good, lines)| {
        // A key that stands twice is a syntax error and would hide everything behind it: the later line replaces.
        let mut body = std::collections::BTreeMap::new();
        for line in good.lines().chain(lines.lines()) {
            body.insert(line.split(' ').next().unwrap_or_default().to_owned(), line.to_owned());
        }
        body.into_values().collect::<Vec<_>>().join("\n")
    });
    prop::collection::vec(body, 1..4).prop_map(|bodies| {
        let jails = bodies.iter().enumerate().map(|(index, body)| format!("[jail.j{index}]\n{body}\n"));
        jails.collect::<String>()
    })
}

proptest! {
    #[test]
    fn any_bytes_in_a_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tunjail.toml");
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        assert_sound(&Config::load(Some(&path)));
    }

    #[test]
    fn any_text(text in "\\PC{0,80}") {
        assert_sound(&parse(&text));
    }

    #[test]
    fn any_string_in_any_place(value in any::<String>(), place in 0..12_usize) {
        let value = toml::Value::String(value).to_string();
        let lists = ["subnets", "allow", "host", "forward"];
        let plain = ["exit", "gateway", "dns", "bridge", "table", "routes", "enrolled_only", "x"];
        let line = *lists.iter().chain(&plain).nth(place).unwrap();
        let list = if lists.contains(&line) { format!("[{value}]") } else { value.clone() };
        assert_sound(&parse(&format!("[jail.vpn]\n{line} = {list}\n")));
        assert_sound(&parse(&format!("[jail.{value}]\n{value} = 1\n")));
    }

    #[test]
    fn any_damage_to_the_example(at in any::<prop::sample::Index>(), length in 0..20_usize, put in "[\\[\\]{}\",=.#\n a-z0-9]{0,8}") {
        let mut text = include_str!("../../examples/tunjail.toml").to_owned();
        let from = at.index(text.len());
        let to = (from + length).min(text.len());
        text.replace_range(from..to, &put);
        assert_sound(&parse(&text));
    }

    #[test]
    fn any_jails(text in file()) {
        assert_sound(&parse(&text));
    }
}

/// The property above says nothing unless both outcomes occur.
#[test]
fn generated_jails_are_both_accepted_and_refused() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let results = (0..256).map(|_| parse(&file().new_tree(&mut runner).unwrap().current()));
    let accepted = results.filter(Result::is_ok).count();
    assert!((16..240).contains(&accepted), "{accepted} of 256 accepted");
}
