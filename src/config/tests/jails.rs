//! What a jail must not say, one test for each promise of `Jail`.

use super::*;
use crate::model::policy::{Dns, Routes};

#[test]
fn subnets_and_exit_are_required() {
    assert_eq!(
        refused("\n[jail.vpn]\nexit = \"tun0\""),
        "t.toml:2: jail.vpn: subnets is missing; add a line such as: subnets = [\"172.18.0.0/16\"]"
    );
    assert_eq!(
        refused("[jail.vpn]\nexit = \"tun0\"\nsubnets = []"),
        "t.toml:3: jail.vpn: subnets is empty; write for example: subnets = [\"172.18.0.0/16\"]"
    );
    assert_eq!(
        refused("[jail.vpn]\nsubnets = [\"10.0.0.0/8\"]"),
        "t.toml:1: jail.vpn: exit is missing; add a line such as: exit = \"tun0\""
    );
    assert_eq!(
        refused("[jail.vpn]\nsubnets = [\"10.0.0.0/8\"]\nexit = []"),
        "t.toml:3: jail.vpn: exit is empty; write for example: exit = \"tun0\""
    );
}

#[test]
fn what_is_no_net_is_refused() {
    for bad in ["", "x", "172.18.0.0/33", "172.18.0.0/-1", "172.18/16", "fd00::/129", "172.18.0.0/16 ", "fe80::1%eth0"]
    {
        assert_eq!(
            refused_subnet(bad),
            format!("t.toml:3: jail.vpn: subnet \"{bad}\" is not a net; write it as 172.18.0.0/16 or fd00:18::/64")
        );
        let message = refused_with(&format!("allow = [\"{bad}\"]"));
        assert!(message.starts_with(&format!("t.toml:4: jail.vpn: allow \"{bad}\" is not a net; ")), "{message}");
    }
    assert_eq!(
        refused_subnet("172.18.0.5"),
        "t.toml:3: jail.vpn: subnet \"172.18.0.5\" has no prefix length; write the whole net, or 172.18.0.5/32 for this \
         address alone"
    );
}

#[test]
fn host_bits_are_refused_with_the_right_net() {
    assert_eq!(
        refused_subnet("172.18.0.1/16"),
        "t.toml:3: jail.vpn: subnet \"172.18.0.1/16\" has host bits set; write 172.18.0.0/16"
    );
    assert_eq!(
        refused_with("allow = [\n\"192.0.2.0/24\",\n{ net = \"2001:db8::1/64\" }]"),
        "t.toml:6: jail.vpn: allow \"2001:db8::1/64\" has host bits set; write 2001:db8::/64"
    );
}

#[test]
fn nets_like_a_default_route_are_refused() {
    for net in ["0.0.0.0/0", "::/0", "128.0.0.0/1", "32.0.0.0/3", "2000::/3"] {
        assert_eq!(
            refused_subnet(net),
            format!(
                "t.toml:3: jail.vpn: subnet {net} would hold the host's own addresses too; name the net of the \
                 containers' bridge"
            )
        );
        assert_eq!(
            refused_with(&format!("allow = [\"{net}\"]")),
            format!(
                "t.toml:4: jail.vpn: allow {net} would end the jail; list the nets that members need, such as \
                 \"192.168.178.0/24\"; to everywhere else they go by the exit"
            )
        );
    }
}

#[test]
fn nets_that_no_container_lies_in_are_refused() {
    for (net, what) in [
        ("0.0.0.0/8", "the unspecified address"),
        ("127.0.0.0/8", "loopback"),
        ("127.0.0.1/32", "loopback"),
        ("112.0.0.0/4", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("239.1.0.0/16", "multicast"),
        ("::/128", "the unspecified address"),
        ("::1/128", "loopback"),
        ("::ffff:10.0.0.0/104", "IPv4-mapped addresses, which are written as IPv4"),
        ("fe80::/64", "link-local"),
        ("ff02::/16", "multicast"),
    ] {
        let expected =
            format!("t.toml:3: jail.vpn: subnet {net} is or holds {what}; name the net of the containers' bridge");
        // Nets are shown as the standard library writes addresses.
        assert_eq!(refused_subnet(net), expected);
    }
    assert_eq!(
        refused_with("allow = [\"224.0.0.0/4\"]"),
        "t.toml:4: jail.vpn: allow 224.0.0.0/4 is or holds multicast; remove it: packets to such addresses are never \
         routed"
    );
}

#[test]
fn subnets_of_a_jail_must_not_overlap() {
    let message =
        refused("[jail.vpn]\nexit = \"tun0\"\nsubnets = [\n\"10.1.0.0/16\",\n\"10.2.0.0/16\",\n\"10.0.0.0/8\"]");
    assert_eq!(
        message,
        "t.toml:6: jail.vpn: subnet 10.0.0.0/8 overlaps 10.1.0.0/16 of the same jail; keep the wider one"
    );
    let message = refused("[jail.vpn]\nexit = \"tun0\"\nsubnets = [\"fd00::/64\",\n\"fd00::/64\"]");
    assert_eq!(message, "t.toml:4: jail.vpn: subnet fd00::/64 overlaps fd00::/64 of the same jail; keep the wider one");
}

#[test]
fn an_exit_is_named_once_and_is_not_the_bridge() {
    let text = "[jail.vpn]\nsubnets = [\"10.0.0.0/8\"]\n";
    assert_eq!(
        refused(&format!("{text}exit = [\"tun0\", \"tun1\",\n\"tun0\"]")),
        "t.toml:4: jail.vpn: exit tun0 is named twice; name it once"
    );
    assert_eq!(
        refused(&format!("{text}bridge = \"vpn\"\nexit = \"vpn\"")),
        "t.toml:4: jail.vpn: exit vpn is the jail's own bridge; name the interface that leads out of the host, such as \
         tun0"
    );
}

#[test]
fn bad_gateways_are_refused() {
    for (gateway, expected) in [
        (
            "\"192.0.2.0/24\"",
            "gateway \"192.0.2.0/24\" is not an address; write it as 192.0.2.1 or 2001:db8::1, without a prefix length",
        ),
        (
            "\"172.18.0.1\"",
            "gateway 172.18.0.1 lies in the jail's own subnet 172.18.0.0/16; name the next hop on the exit's side",
        ),
        (
            "[\"192.0.2.1\", \"192.0.2.2\"]",
            "gateways 192.0.2.1 and 192.0.2.2 are of one family; name at most one IPv4 and one IPv6 gateway for each exit",
        ),
        (
            "\"127.0.0.1\"",
            "gateway 127.0.0.1 is no router's own address; name the next hop that the exit's network gives",
        ),
    ] {
        assert_eq!(refused_with(&format!("gateway = {gateway}")), format!("t.toml:4: jail.vpn: {expected}"));
    }
    for bad in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "::1", "ff02::2", "::ffff:192.0.2.1"] {
        let message = refused_with(&format!("gateway = [\"{bad}\"]"));
        assert!(message.contains(" is no router's own address; "), "{message}");
    }
}

#[test]
fn allowing_the_own_subnet_is_refused() {
    for net in ["172.18.5.0/24", "172.0.0.0/8", "172.18.0.9"] {
        let message = refused_with(&format!("allow = [\"{net}\"]"));
        assert!(message.starts_with(&format!("t.toml:4: jail.vpn: allow {net}")), "{message}");
        assert!(
            message
                .ends_with(" overlaps the jail's own subnet 172.18.0.0/16; remove it: members reach each other anyway"),
            "{message}"
        );
    }
}

#[test]
fn bad_ports_are_refused() {
    for bad in ["tcp/0", "tcp/65536", "udp/+53", "sctp/1", "TCP/1", "tcp", "443", "tcp/", "/1", "tcp/1-9", "tcp/1/2"] {
        assert_eq!(
            refused_with(&format!("allow = [{{ net = \"192.0.2.1\",\nports = [\"{bad}\"] }}]")),
            format!("t.toml:5: jail.vpn: port \"{bad}\" is not a port; write tcp/N or udp/N with N from 1 to 65535")
        );
    }
    assert_eq!(
        refused_with("allow = [{ net = \"192.0.2.1\", ports = [\"tcp/443\", \"tcp/443\"] }]"),
        "t.toml:4: jail.vpn: port tcp/443 is named twice; name it once"
    );
    assert_eq!(
        refused_with("allow = [{ net = \"192.0.2.1\", ports = [] }]"),
        "t.toml:4: jail.vpn: ports is empty; write for example: ports = [\"tcp/443\"], or leave it out to allow every \
         port"
    );
    assert_eq!(
        refused_with("allow = [\"192.0.2.9\",\n{ ports = [\"tcp/1\"] }]"),
        "t.toml:5: jail.vpn: net of an allow table is missing; add a line such as: { net = \"192.0.2.5\", ports = \
         [\"tcp/443\"] }"
    );
}

#[test]
fn the_kernels_own_tables_are_refused() {
    for number in [0, 253, 254, 255, -1, 4_294_967_296_i64] {
        assert_eq!(
            refused_with(&format!("table = {number}")),
            format!(
                "t.toml:4: jail.vpn: invalid value: integer `{number}`, expected a routing table's number from 1 to \
                 4294967295, but not 253, 254 or 255, which are the kernel's"
            )
        );
    }
}

#[test]
fn two_jails_share_nothing() {
    let two = |a: &str, b: &str| refused(&format!("[jail.a]\nexit = \"tun0\"\n{a}\n[jail.b]\nexit = \"tun0\"\n{b}"));
    assert_eq!(
        two("subnets = [\"10.0.0.0/8\"]", "subnets = [\"192.0.2.0/24\",\n\"10.4.0.0/16\"]"),
        "t.toml:7: jail.b: subnet 10.4.0.0/16 overlaps 10.0.0.0/8 of jail.a (t.toml:3); give each address to one jail"
    );
    assert_eq!(
        two("subnets = [\"10.4.0.0/16\"]", "subnets = [\"10.0.0.0/8\"]"),
        "t.toml:6: jail.b: subnet 10.0.0.0/8 overlaps 10.4.0.0/16 of jail.a (t.toml:3); give each address to one jail"
    );
    let (a, b) = ("subnets = [\"10.1.0.0/16\"]", "subnets = [\"10.2.0.0/16\"]");
    assert_eq!(
        two(&format!("{a}\ntable = 100"), &format!("{b}\ntable = 100")),
        "t.toml:8: jail.b: table 100 belongs to jail.a (t.toml:4); choose another, or leave both out"
    );
    assert_eq!(
        two(&format!("{a}\nbridge = \"br0\""), &format!("{b}\nbridge = \"br0\"")),
        "t.toml:8: jail.b: bridge br0 belongs to jail.a (t.toml:4); put the subnets of one bridge into one jail"
    );
}

#[test]
fn who_answers_names_is_a_word_or_a_list_of_servers() {
    let dns = |line: &str| accepted_with(line).dns;
    assert_eq!(accepted_with("").dns, Dns::Block);
    assert_eq!(dns("dns = \"engine\""), Dns::Engine);
    assert_eq!(dns("dns = \"block\""), Dns::Block);
    let servers = |texts: &[&str]| Dns::Servers(texts.iter().map(|text| text.parse().unwrap()).collect());
    assert_eq!(dns("dns = \"192.0.2.53\""), servers(&["192.0.2.53"]));
    assert_eq!(dns("dns = [\"2001:db8::53\", \"192.0.2.53\"]"), servers(&["2001:db8::53", "192.0.2.53"]));
    for (value, expected) in [
        ("[]", "dns is empty; write for example: dns = [\"192.0.2.53\"]"),
        (
            "[\"dns.example\"]",
            "dns \"dns.example\" is not an address; list servers as in dns = [\"192.0.2.53\"], or write \"engine\" or \"block\"",
        ),
        (
            "[\"192.0.2.53\", \"engine\"]",
            "dns \"engine\" stands alone, not in a list; write dns = \"engine\", or list servers only",
        ),
        (
            "[\"172.18.0.53\"]",
            "dns server 172.18.0.53 lies in the jail's own subnet 172.18.0.0/16; name one that is reached by the exit, or leave dns out and let members ask it themselves",
        ),
        ("[\"127.0.0.53\"]", "dns server 127.0.0.53 is loopback; name one that is reached by the exit"),
        ("[\"fe80::1\"]", "dns server fe80::1 is link-local; name one that is reached by the exit"),
        (
            "[\"255.255.255.255\"]",
            "dns server 255.255.255.255 is the broadcast address; name one that is reached by the exit",
        ),
        ("[\"192.0.2.53\", \"192.0.2.53\"]", "dns server 192.0.2.53 is named twice; name it once"),
    ] {
        assert_eq!(refused_with(&format!("dns = {value}")), format!("t.toml:4: jail.vpn: {expected}"));
    }
}

#[test]
fn ports_of_the_host_are_listed() {
    assert!(accepted_with("").host.is_empty());
    let host = accepted_with("host = [\"udp/123\", \"tcp/53\"]").host;
    assert_eq!(host, ["udp/123".parse().unwrap(), "tcp/53".parse().unwrap()]);
    for (value, expected) in [
        (
            "[]",
            "host is empty; write for example: host = [\"udp/123\"], or leave it out to keep every port of the host closed",
        ),
        ("[\"udp/0\"]", "port \"udp/0\" is not a port; write tcp/N or udp/N with N from 1 to 65535"),
        ("[\"udp/65536\"]", "port \"udp/65536\" is not a port; write tcp/N or udp/N with N from 1 to 65535"),
        ("[\"udp/1\", \"udp/1\"]", "port udp/1 is named twice; name it once"),
    ] {
        assert_eq!(refused_with(&format!("host = {value}")), format!("t.toml:4: jail.vpn: {expected}"));
    }
}

#[test]
fn forwarded_ports_lead_to_whoever_asks_or_to_one_address() {
    let forward = accepted_with("forward = [\"tcp/8443:443\", { port = \"udp/51413\", to = \"172.18.0.2\" }]").forward;
    assert_eq!((forward[0].to_string().as_str(), forward[0].to), ("tcp/8443:443", None));
    assert_eq!((forward[1].to_string().as_str(), forward[1].to), ("udp/51413", Some("172.18.0.2".parse().unwrap())));
    let not_a_forward = "is not a forwarded port; write tcp/N or udp/N, or tcp/N:M when the member listens on M, with N and M from 1 to 65535";
    for (value, expected) in [
        ("[]", "forward is empty; write for example: forward = [\"tcp/51413\"], or leave it out to forward none"),
        ("[\"tcp/0\"]", &format!("\"tcp/0\" {not_a_forward}")),
        ("[\"tcp/1:65536\"]", &format!("\"tcp/1:65536\" {not_a_forward}")),
        ("[\"tcp/1:2\", \"tcp/1:3\"]", "port tcp/1 is named twice; name it once"),
        (
            "[{ port = \"tcp/1\", to = \"x\" }]",
            "forward to \"x\" is not an address; name a member's, such as to = \"172.18.0.2\"",
        ),
        (
            "[{ port = \"tcp/1\", to = \"192.0.2.1\" }]",
            "forward to 192.0.2.1 leads out of the jail; name an address of its subnets",
        ),
    ] {
        assert_eq!(refused_with(&format!("forward = {value}")), format!("t.toml:4: jail.vpn: {expected}"));
    }
    let message = refused_with("forward = [{ port = \"tcp/1\" }]");
    assert!(message.contains("missing key `to`"), "{message}");
    let message = refused_with("forward = [1]");
    assert!(message.contains("expected a port such as \"tcp/8443:443\" or a table such as"), "{message}");
}

#[test]
fn foreign_routes_need_their_table_and_no_gateway() {
    assert_eq!(accepted_with("").routes, Routes::Own);
    assert_eq!(accepted_with("routes = \"own\"").routes, Routes::Own);
    assert_eq!(accepted_with("table = 100\nroutes = \"foreign\"").routes, Routes::Foreign);
    assert_eq!(
        refused_with("routes = \"foreign\""),
        "t.toml:4: jail.vpn: routes = \"foreign\" needs the table that they stand in; add a line such as: table = 100"
    );
    assert_eq!(
        refused_with("table = 100\ngateway = \"192.0.2.1\"\nroutes = \"foreign\""),
        "t.toml:6: jail.vpn: gateway has no meaning with routes = \"foreign\"; remove one of the two lines"
    );
    let message = refused_with("routes = \"x\"");
    assert!(message.contains("unknown variant `x`, expected `own` or `foreign`"), "{message}");
}

#[test]
fn a_jail_knows_the_subnets_that_share_an_exit_with_it() {
    let text = "[jail.a]\nsubnets = [\"172.18.0.0/16\"]\nexit = [\"tun0\", \"tun1\"]\n\
                [jail.b]\nsubnets = [\"172.20.0.0/16\", \"fd00:20::/64\"]\nexit = \"tun1\"\n\
                [jail.c]\nsubnets = [\"172.19.0.0/16\"]\nexit = [\"tun2\", \"tun0\"]\n";
    let config = Config::parse(Path::new("t.toml"), text).unwrap();
    let sharing = |jail: &str| {
        let nets = &config.jail(jail).unwrap().sharing;
        nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(sharing("a"), "172.19.0.0/16 172.20.0.0/16 fd00:20::/64");
    assert_eq!((sharing("b"), sharing("c")), ("172.18.0.0/16".to_owned(), "172.18.0.0/16".to_owned()));
}
