//! What tunjail writes by netlink, held against what `nft` and `ip` show of it. Each test in a network namespace of its
//! own; needs root.
#![allow(clippy::unwrap_used, reason = "a test that fails to set up has failed")]

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use tunjail::kernel::nfnetlink::Nfnl;
use tunjail::kernel::nftables;
use tunjail::kernel::rtnetlink::Rtnl;
use tunjail::model::objects::{
    ENGINES_RESOLVER, Element, Part, RULE_PRIORITY, Route, Rule, Selector, Set, TableId, Target,
};
use tunjail::model::plan;

fn fresh_namespace() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: it makes a network namespace of its own");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn out4(address: &str) -> Element {
    let key = vec![Part::Index(7), Part::Address(address.parse().unwrap())];
    Element { table: TableId::lock(), set: Set::Out4, key, value: Vec::new() }
}

#[test]
fn the_lock_is_what_its_text_says() {
    fresh_namespace();
    let mut nfnl = Nfnl::open().unwrap();
    nftables::close_lock(&mut nfnl).unwrap();
    assert_eq!(run("nft", "list ruleset"), plan::lock_text());

    // nft makes the very same of the text.
    run("nft", "flush ruleset");
    nftables::load(&plan::lock_text()).unwrap();
    assert_eq!(run("nft", "list ruleset"), plan::lock_text());

    // Closing replaces whatever is there, elements included.
    nftables::add_elements(&mut nfnl, &[out4("172.18.0.2")]).unwrap();
    nftables::close_lock(&mut nfnl).unwrap();
    assert_eq!(run("nft", "list ruleset"), plan::lock_text());
}

#[test]
fn the_steering_is_what_its_text_says() {
    fresh_namespace();
    run("ip", "link set lo up");
    run("ip", "addr add 172.18.0.2/16 dev lo");
    let server = "192.0.2.53".parse().unwrap();
    let text = plan::steering_text(server);
    let mut nfnl = Nfnl::open().unwrap();
    // The second time in the place of the first.
    for other in ["192.0.2.54".parse().unwrap(), server] {
        nftables::steer(&mut nfnl, other).unwrap();
    }
    assert_eq!(run("nft", "list ruleset"), text);
    run("nft", "flush ruleset");
    nftables::load(&text).unwrap();
    assert_eq!(run("nft", "list ruleset"), text);

    let mut rtnl = Rtnl::open().unwrap();
    for _ in 0..2 {
        rtnl.loop_back_as(ENGINES_RESOLVER, "172.18.0.2".parse().unwrap()).unwrap();
    }
    let route = run("ip", "route get 127.0.0.11");
    assert!(route.contains("local 127.0.0.11 dev lo") && route.contains("src 172.18.0.2"), "{route}");
    assert!(rtnl.loop_back_as(ENGINES_RESOLVER, "192.0.2.1".parse().unwrap()).is_err(), "no address of this host");
}

#[test]
fn elements_are_added_found_and_removed() {
    fresh_namespace();
    let mut nfnl = Nfnl::open().unwrap();
    nftables::close_lock(&mut nfnl).unwrap();
    let elements = [out4("172.18.0.2"), out4("172.18.0.3")];
    assert_eq!(nftables::first_missing(&mut nfnl, &elements).unwrap(), Some(&elements[0]));
    for _ in 0..2 {
        nftables::add_elements(&mut nfnl, &elements).unwrap();
    }
    assert_eq!(nftables::first_missing(&mut nfnl, &elements).unwrap(), None);
    let listed = run("nft", "list set inet tunjail out4");
    assert!(listed.contains("7 . 172.18.0.2") && listed.contains("7 . 172.18.0.3"), "{listed}");

    let absent = out4("172.18.0.4");
    let mixed = [elements[0].clone(), absent];
    nftables::delete_elements(&mut nfnl, &mixed).unwrap();
    let listed = run("nft", "list set inet tunjail out4");
    assert!(!listed.contains("172.18.0.2") && listed.contains("172.18.0.3"), "{listed}");

    nftables::drop_table(&mut nfnl, &TableId::lock()).unwrap();
    nftables::drop_table(&mut nfnl, &TableId::lock()).unwrap();
    nftables::delete_elements(&mut nfnl, &elements).unwrap();
    assert!(nftables::add_elements(&mut nfnl, &elements).is_err(), "there is no table to add to");
}

#[test]
fn a_fingerprint_changes_with_meaning_and_with_nothing_else() {
    fresh_namespace();
    let mut nfnl = Nfnl::open().unwrap();
    let table = TableId::lock();
    assert_eq!(nftables::fingerprint(&mut nfnl, &table).unwrap(), None);
    nftables::close_lock(&mut nfnl).unwrap();
    let made = nftables::fingerprint(&mut nfnl, &table).unwrap();
    let same = |nfnl: &mut Nfnl| nftables::fingerprint(nfnl, &table).unwrap() == made;

    nftables::add_elements(&mut nfnl, &[out4("172.18.0.2")]).unwrap();
    run("nft", "add table inet other");
    run("nft", "add chain inet other out { type filter hook output priority 0; }");
    run("nft", "add set inet tunjail idle { type ipv4_addr; }");
    assert!(same(&mut nfnl), "members, idle sets and other tables are not its meaning");
    let in_use = Command::new("nft").args(["delete", "set", "inet", "tunjail", "out4"]).output().unwrap();
    assert!(!in_use.status.success(), "a set that a rule names cannot go");

    let changes = [
        "add rule inet tunjail out accept",
        "insert rule inet tunjail out ip daddr 192.0.2.1 accept",
        "add chain inet tunjail other",
        "add chain inet tunjail out { policy accept; }",
        "flush chain inet tunjail out",
        "delete table inet tunjail",
    ];
    for change in changes {
        nftables::close_lock(&mut nfnl).unwrap();
        assert!(same(&mut nfnl), "the same again before: {change}");
        run("nft", change);
        assert!(!same(&mut nfnl), "not noticed: {change}");
    }
}

#[test]
fn an_error_carries_the_kernels_own_words() {
    fresh_namespace();
    let mut rtnl = Rtnl::open().unwrap();
    let route = Route {
        destination: "0.0.0.0/0".parse().unwrap(),
        target: Target::Dev { name: "lo".parse().unwrap(), gateway: Some("192.0.2.1".parse().unwrap()) },
        metric: 100,
    };
    let error = rtnl.add_route(7400, &route).unwrap_err().to_string();
    assert!(error.contains("dev lo") && error.contains("7400") && error.len() > 60, "{error}");
}

#[test]
fn rules_and_routes_are_read_back_as_they_were_written() {
    fresh_namespace();
    run("ip", "link set lo up");
    run("ip", "link add vpn type bridge");
    run("ip", "address add 172.18.0.1/16 dev vpn");
    run("ip", "link set vpn up");
    let mut rtnl = Rtnl::open().unwrap();
    let before = (run("ip", "rule"), run("ip", "-6 rule"), run("ip", "route show table all"));
    for table in [200, 7400, 70_000] {
        let family = |text: &str| tunjail::model::objects::Family::of_net(&text.parse().unwrap());
        let rules = {
            let mut rules = vec![
                Rule { selector: Selector::From("172.18.0.0/16".parse().unwrap()), table, priority: RULE_PRIORITY },
                Rule { selector: Selector::From("fd00:18::/64".parse().unwrap()), table, priority: RULE_PRIORITY },
                Rule {
                    selector: Selector::Iif(family("0.0.0.0/0"), "vpn".parse().unwrap()),
                    table,
                    priority: RULE_PRIORITY,
                },
                Rule {
                    selector: Selector::Iif(family("::/0"), "not-there".parse().unwrap()),
                    table,
                    priority: RULE_PRIORITY,
                },
            ];
            rules.sort();
            rules
        };
        let routes = {
            let route = |net: &str, target, metric| Route { destination: net.parse().unwrap(), target, metric };
            let vpn = || Target::Dev { name: "vpn".parse().unwrap(), gateway: None };
            let via = Target::Dev { name: "vpn".parse().unwrap(), gateway: Some("172.18.0.9".parse().unwrap()) };
            let mut routes = vec![
                route("172.18.0.0/16", vpn(), 100),
                route("fd00:18::/64", vpn(), 100),
                route("192.0.2.0/24", Target::Throw, 100),
                route("2001:db8::/32", Target::Throw, 100),
                route("0.0.0.0/0", via, 100),
                route("0.0.0.0/0", Target::Unreachable, u32::MAX),
                route("::/0", Target::Unreachable, u32::MAX),
            ];
            routes.sort();
            routes
        };
        for rule in &rules {
            rtnl.add_rule(rule).unwrap();
        }
        for route in &routes {
            rtnl.add_route(table, route).unwrap();
        }
        assert_eq!(rtnl.rules(table).unwrap(), rules);
        assert_eq!(rtnl.routes(table).unwrap(), routes);
        run("ip", &format!("route add 198.51.100.0/24 dev vpn table {table}"));
        let foreign = rtnl.routes(table).unwrap();
        assert_eq!(foreign.iter().filter(|route| matches!(route.target, Target::Foreign(_))).count(), 1);
        run("ip", &format!("route del 198.51.100.0/24 dev vpn table {table}"));
        for rule in &rules {
            rtnl.delete_rule(rule).unwrap();
        }
        for route in &routes {
            rtnl.delete_route(table, route).unwrap();
        }
    }
    assert_eq!(before, (run("ip", "rule"), run("ip", "-6 rule"), run("ip", "route show table all")));
}

#[test]
fn datagrams_to_a_port_are_forgotten_and_no_others() {
    use std::net::{IpAddr, UdpSocket};
    use tunjail::kernel::conntrack::Conntrack;

    fresh_namespace();
    run("ip", "link set lo up");
    nftables::load("table inet t { chain c { type filter hook output priority 0; ct state new counter\n }\n }")
        .unwrap();
    let addresses: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    let mut conntrack = Conntrack::open().unwrap();
    for address in addresses {
        let (others, meant): (Vec<u16>, Vec<u16>) = (vec![7, 9, 10], vec![8, 11]);
        let sockets: Vec<UdpSocket> = (0..200).map(|_| UdpSocket::bind((address, 0)).unwrap()).collect();
        for (socket, port) in sockets.iter().zip(others.iter().chain(&meant).cycle()) {
            socket.send_to(b"x", (address, *port)).unwrap();
        }
        assert_eq!(conntrack.forget_datagrams(address, &meant).unwrap(), 80, "{address}");
        assert_eq!(conntrack.forget_datagrams(address, &meant).unwrap(), 0, "{address}");
        assert_eq!(conntrack.forget_datagrams(address, &others).unwrap(), 120, "{address}");
    }
}

#[test]
fn flows_that_leave_from_a_port_are_forgotten_and_no_others() {
    use std::net::{IpAddr, UdpSocket};
    use tunjail::kernel::conntrack::Conntrack;
    use tunjail::model::policy::Port;

    fresh_namespace();
    run("ip", "link set lo up");
    run("ip", "addr add fd00::1/128 dev lo nodad");
    run("ip", "addr add fd00::2/128 dev lo nodad");
    nftables::load(
        "table inet t {
            chain c { type nat hook postrouting priority 100
                ip saddr 127.0.0.2 snat ip to 127.0.0.1
                ip6 saddr fd00::2 snat ip6 to fd00::1
            }
        }",
    )
    .unwrap();
    let ports = |text: &[&str]| text.iter().map(|port| port.parse().unwrap()).collect::<Vec<Port>>();
    let mut conntrack = Conntrack::open().unwrap();
    for [own, other] in [["127.0.0.1", "127.0.0.2"], ["fd00::1", "fd00::2"]] {
        let [own, other]: [IpAddr; 2] = [own, other].map(|address| address.parse().unwrap());
        let send = |from: IpAddr, port: u16| UdpSocket::bind((from, port)).unwrap().send_to(b"x", (own, 9)).unwrap();
        // Its own, one that is translated, and another port that is.
        send(own, 1007);
        send(other, 1008);
        send(other, 1009);
        assert_eq!(conntrack.forget_translated(own, &ports(&["udp/1007", "tcp/1008"])).unwrap(), 0, "{own}");
        assert_eq!(conntrack.forget_translated(other, &ports(&["udp/1008"])).unwrap(), 0, "{own}");
        assert_eq!(conntrack.forget_translated(own, &ports(&["udp/1008", "tcp/1"])).unwrap(), 1, "{own}");
        assert_eq!(conntrack.forget_translated(own, &ports(&["udp/1008", "udp/1009"])).unwrap(), 1, "{own}");
    }
}

#[test]
fn connections_of_the_nets_that_are_named_are_pardoned_what_was_missed() {
    use std::net::{IpAddr, TcpListener, TcpStream};
    use tunjail::kernel::conntrack::Conntrack;

    fresh_namespace();
    run("ip", "link set lo up");
    nftables::load("table inet t { chain c { type filter hook output priority 0; ct state new counter\n }\n }")
        .unwrap();
    let mut conntrack = Conntrack::open().unwrap();
    for (address, net) in [("127.0.0.1", "127.0.0.0/8"), ("::1", "::1/128")] {
        let listener = TcpListener::bind((address.parse::<IpAddr>().unwrap(), 0)).unwrap();
        let _connections: Vec<TcpStream> =
            (0..100).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        assert_eq!(conntrack.pardon_gaps(&["192.0.2.0/24".parse().unwrap()]).unwrap(), 0, "{address}");
        assert_eq!(conntrack.pardon_gaps(&[net.parse().unwrap()]).unwrap(), 100, "{address}");
    }
}
