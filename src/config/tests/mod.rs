//! What a right configuration means; how syntax, keys, types and names are refused. The rest is in the files below.

mod files;
mod jails;

use super::*;
use crate::model::policy::{Direction, Transport};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("t.toml"), text)
}

/// The message for a whole file.
#[track_caller]
fn refused(text: &str) -> String {
    let message = parse(text).expect_err("must be refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// The message for a jail `vpn` that is right but for `lines`, which begin at line 4.
#[track_caller]
fn refused_with(lines: &str) -> String {
    refused(&format!("[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = \"tun0\"\n{lines}"))
}

/// The jail with these lines after subnets and exit.
#[track_caller]
fn accepted_with(lines: &str) -> Jail {
    let text = format!("[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = \"tun0\"\n{lines}");
    parse(&text).unwrap_or_else(|error| panic!("{error}")).jails.remove(0)
}

/// The message for a jail whose only subnet is `subnet`, which stands in line 3.
#[track_caller]
fn refused_subnet(subnet: &str) -> String {
    refused(&format!("[jail.vpn]\nexit = \"tun0\"\nsubnets = [\"{subnet}\"]"))
}

fn jail_of(lines: &str) -> Jail {
    let text = format!("[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = \"tun0\"\n{lines}");
    parse(&text).unwrap().jails.remove(0)
}

#[test]
fn two_lines_are_enough() {
    let jail = jail_of("");
    assert_eq!(jail.name.as_str(), "vpn");
    assert_eq!(jail.subnets, ["172.18.0.0/16".parse().unwrap(), "fd00:18::/64".parse().unwrap()]);
    assert_eq!(jail.exits, ["tun0".parse().unwrap()]);
    assert_eq!((jail.gateways.len(), jail.allow.len(), jail.bridge, jail.table), (0, 0, None, None));
    assert!(!jail.enrolled_only);
}

#[test]
fn an_empty_file_holds_no_jails() {
    for text in ["", "# nothing\n", "[jail]\n", "jail = {}\n", "\u{feff}"] {
        assert_eq!(parse(text).unwrap().jails, [], "{text:?}");
    }
}

#[test]
fn a_bare_address_is_a_net_of_one() {
    let jail = jail_of("allow = [\"192.0.2.7\", \"2001:db8::7\", \"192.0.2.0/24\"]");
    let nets: Vec<String> = jail.allow.iter().map(|allow| allow.net.to_string()).collect();
    assert_eq!(nets, ["192.0.2.7/32", "2001:db8::7/128", "192.0.2.0/24"]);
    assert!(jail.allow.iter().all(|allow| allow.ports.is_empty() && allow.direction == Direction::Both));
}

#[test]
fn an_allow_table_says_ports_and_direction() {
    let jail = jail_of("allow = [{ net = \"10.9.0.5\", ports = [\"tcp/443\", \"udp/65535\"], direction = \"out\" }]");
    let [allow] = jail.allow.as_slice() else { panic!("{jail:?}") };
    let ports: Vec<_> = allow.ports.iter().map(|port| (port.protocol, port.number)).collect();
    assert_eq!(ports, [(Transport::Tcp, 443), (Transport::Udp, 65535)]);
    assert_eq!(allow.direction, Direction::Out);
    for (word, direction) in [("in", Direction::In), ("both", Direction::Both)] {
        let jail = jail_of(&format!("allow = [{{ net = \"10.9.0.5\", direction = \"{word}\" }}]"));
        assert_eq!(jail.allow[0].direction, direction);
    }
}

#[test]
fn a_gateway_may_be_one_of_each_family() {
    assert_eq!(jail_of("gateway = \"192.0.2.1\"").gateways, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    let both = ["192.0.2.1".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()];
    assert_eq!(jail_of("gateway = [\"192.0.2.1\", \"fe80::1\"]").gateways, both);
    let text = "[jail.vpn]\nsubnets = [\"172.18.0.0/16\"]\nexit = [\"eth1\", \"eth2\"]\ngateway = [\"192.0.2.1\", \"198.51.100.1\"]\n";
    assert_eq!(Config::parse(Path::new("t.toml"), text).unwrap().jails[0].gateways.len(), 2, "one for each exit");
}

#[test]
fn the_widest_nets_that_pass() {
    let jail = jail_of("allow = [\"16.0.0.0/4\", \"2000::/4\", \"169.254.169.254\"]");
    assert_eq!(jail.allow.len(), 3);
    for table in [1, 252, 256, u32::MAX] {
        assert_eq!(jail_of(&format!("table = {table}")).table, Some(table));
    }
}

#[test]
fn jails_are_found_by_name_and_by_address() {
    let text = "jail.a = { subnets = [\"10.1.0.0/16\"], exit = \"tun0\" }\n\
                jail.b = { subnets = [\"10.2.0.0/16\", \"fd00:2::/64\"], exit = \"tun0\" }\n";
    let config = parse(text).unwrap();
    let name = |address: &str| config.jail_for(address.parse().unwrap()).map(|jail| jail.name.as_str());
    assert_eq!(name("10.1.255.255"), Some("a"));
    assert_eq!(name("10.2.0.1"), Some("b"));
    assert_eq!(name("fd00:2::9"), Some("b"));
    assert_eq!(name("::ffff:10.2.0.1"), Some("b"));
    assert_eq!(name("10.3.0.0"), None);
    assert_eq!(config.jail("b").unwrap().subnets.len(), 2);
    assert_eq!(config.jail("c"), None);
}

#[test]
fn the_example_is_valid_and_shows_every_key() {
    let text = include_str!("../../../examples/tunjail.toml");
    let config = parse(text).unwrap();
    assert!(config.jail("vpn").is_some());
    let office = config.jail("office").unwrap();
    assert_eq!((office.exits.len(), office.gateways.len(), office.allow.len()), (2, 2, 4));
    assert!(office.bridge.is_some() && office.table.is_some() && office.enrolled_only);
    assert!(config.runtime.is_some());
}

#[test]
fn the_line_that_a_missing_file_is_mended_with_is_valid() {
    let message = FileFault::Missing.to_string();
    let (_, line) = message.split_once("such as: ").unwrap();
    assert_eq!(parse(line).unwrap().jails.len(), 1);
}

#[test]
fn a_syntax_error_is_one_line_with_its_place() {
    assert_eq!(
        refused("[jail.vpn]\nexit = tun0\n"),
        "t.toml:2: not valid TOML: invalid boolean, expected `true`; write text in quotes, lists in brackets, and each \
         setting on a line of its own"
    );
    assert!(refused("[jail.vpn").starts_with("t.toml:1: "));
    assert!(refused("[jail.vpn]\n\nsubnets = [\"10.0.0.0/8\"").starts_with("t.toml:3: "));
    assert_eq!(refused("[jail.vpn]\n[jail.vpn]\n"), "t.toml:2: not valid TOML: duplicate key; say it once");
    assert!(refused(&"[".repeat(100_000)).starts_with("t.toml:1: "));
    assert!(refused("a = \"\u{7}\n\"").starts_with("t.toml:1: "));
}

#[test]
fn unknown_keys_are_named_with_the_known_ones() {
    assert_eq!(
        refused_with("exits = \"tun1\""),
        "t.toml:4: jail.vpn: unknown key `exits`, expected one of `subnets`, `exit`, `gateway`, `allow`, `dns`, `host`, \
         `forward`, `bridge`, `table`, `routes`, `enrolled_only`"
    );
    assert_eq!(
        refused_with("allow = [\n  { net = \"192.0.2.1\", port = 1 }]"),
        "t.toml:5: jail.vpn: unknown key `port`, expected one of `net`, `ports`, `direction`"
    );
    assert_eq!(
        refused("\n[jails.vpn]\n"),
        "t.toml:2: unknown key \"jails\"; a file holds jails, each under a heading such as [jail.vpn], and at most one \
         [runtime]"
    );
    let hostile = refused_with("\"a\\n\\u2028b\" = 1");
    assert!(hostile.contains("`a\\n\\u{2028}b`"), "{hostile}");
    let long = refused_with(&format!("{} = 1", "x".repeat(100_000)));
    assert!(long.len() < 500, "{}", long.len());
}

#[test]
fn wrong_types_say_what_was_expected() {
    for (lines, expected) in [
        ("allow = \"192.0.2.1\"", "invalid type: string \"192.0.2.1\", expected a list in brackets"),
        ("allow = [7]", "invalid type: integer `7`, expected a net such as \"192.0.2.0/24\" or a table such as"),
        ("gateway = 1", "invalid type: integer `1`, expected a string or a list of strings"),
        ("gateway = [true]", "invalid type: boolean `true`, expected a string"),
        ("bridge = []", "invalid type: sequence, expected a string"),
        ("enrolled_only = \"yes\"", "invalid type: string \"yes\", expected a boolean"),
        ("table = 1.5", "invalid type: floating point `1.5`, expected a routing table's number from 1 to 4294967295"),
        ("table = 99999999999999999999", "expected a routing table's number from 1 to 4294967295"),
        (
            "allow = [{ net = \"192.0.2.1\", direction = \"up\" }]",
            "unknown variant `up`, expected one of `out`, `in`, `both`",
        ),
    ] {
        let message = refused_with(lines);
        assert!(message.starts_with("t.toml:4: jail.vpn: "), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let no_jails = "jail is no value; give each jail a heading such as [jail.vpn]";
    assert_eq!(refused("jail = 1"), format!("t.toml:1: {no_jails}"));
    assert_eq!(refused("\n[[jail]]\n"), format!("t.toml:2: {no_jails}"));
    assert_eq!(
        refused("[jail]\nvpn = 1"),
        "t.toml:2: jail.vpn: invalid type: integer `1`, expected a table of settings, such as under [jail.vpn]"
    );
}

#[test]
fn a_bad_jail_name_is_refused() {
    assert_eq!(
        refused("\n[jail.Vpn]\n"),
        "t.toml:2: jail name \"Vpn\" must be 1 to 24 characters of a-z, 0-9, _ and -, and begin with a letter; rename \
         the jail"
    );
    assert!(refused("[jail.\"a\\nb\"]").starts_with("t.toml:1: jail name \"a\\nb\" must be"));
}

#[test]
fn bad_interface_names_are_refused() {
    let message = refused_with("bridge = \"br-0123456789abc\"");
    assert!(message.starts_with("t.toml:4: jail.vpn: bridge: interface name \"br-0123456789abc\" must be 1 to 15"));
    let message = refused("[jail.vpn]\nsubnets = [\"10.0.0.0/8\"]\nexit = [\n\"tun0\",\n\"tun*\"]");
    assert!(message.starts_with("t.toml:5: jail.vpn: exit: interface name \"tun*\" must be"), "{message}");
    let lo = "cannot be lo; name the interface that leads out of the host, or the containers' bridge";
    assert_eq!(refused_with("bridge = \"lo\""), format!("t.toml:4: jail.vpn: bridge {lo}"));
    let message = refused("[jail.vpn]\nsubnets = [\"10.0.0.0/8\"]\nexit = \"lo\"");
    assert_eq!(message, format!("t.toml:3: jail.vpn: exit {lo}"));
}

#[test]
fn a_bad_runtime_is_refused() {
    for (text, expected) in [
        (
            "runtime = \"/usr/bin/crun\"",
            "t.toml:1: runtime: invalid type: string \"/usr/bin/crun\", expected a table such as: [runtime] and below it \
             path = \"/usr/bin/crun\"",
        ),
        ("[runtime]\n\nname = \"crun\"", "t.toml:3: runtime: unknown key `name`, expected `path`"),
        ("\n[runtime]", "t.toml:2: runtime: missing key `path`"),
        (
            "[runtime]\npath = \"crun\"",
            "t.toml:2: runtime: path \"crun\" is not absolute; name the OCI runtime as in: path = \"/usr/bin/crun\"",
        ),
        ("[runtime]\npath = [\"/a\"]", "t.toml:2: runtime: invalid type: sequence, expected a string"),
    ] {
        assert_eq!(refused(text), expected);
    }
}
