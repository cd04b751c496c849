//! The recipe that tunjail grew out of, line for line: docs/from-the-recipe.md names these tests in its rows, and the jail
//! is the one that is written there. With Docker 20.10 and OpenVPN.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};

use crate::bridge::BRIDGE;
use crate::engine::Container;
use crate::engine::docker::{Docker, DockerContainer};
use crate::guest::Guest;
use crate::leaks;
use crate::matrix::wired::docker_with;
use crate::resolver::{Answers, Resolver};
use crate::run::{answer, wait_until};
use crate::scene::Traffic;
use crate::vpn::{Client, TUN, Vpn};
use crate::world::{DNS4, HOST4, LAN4, LAN6, Lab, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

const DOCUMENT: &str = "docs/from-the-recipe.md";

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The jail as the document has it, with the lab's own DNS server.
fn jail() -> String {
    let document = text(DOCUMENT);
    let (_, rest) = document.split_once("```toml\n").expect("the jail in the document");
    let (jail, _) = rest.split_once("```").expect("the end of the jail");
    assert!(jail.contains("1.1.1.1"), "{jail}");
    jail.replace("1.1.1.1", DNS4)
}

/// Fields in the order in which they are taken down.
struct Host {
    docker: Docker,
    client: Client,
    server: Vpn,
    lab: Lab,
}

impl Host {
    /// `daemon` goes into daemon.json. OpenVPN's configuration keeps the recipe's `route-nopull`.
    fn new(daemon: &Value) -> Self {
        let lab = Lab::new();
        lab.configure(&jail());
        let server = Vpn::start_server(&lab);
        let client = server.client_as(Some(&lab.exit_script()), with_route_nopull);
        let docker = docker_with(&lab, &Guest::own(), daemon);
        Self { docker, client, server, lab }
    }

    /// A container as the recipe starts it, by tunjail's runtime.
    fn member(&self) -> DockerContainer<'_> {
        self.docker.run("m1", &["--runtime", "tunjail-vpn", "--ip", "172.18.0.2"])
    }
}

fn with_route_nopull(config: String) -> String {
    let changed = config.replace("pull-filter ignore redirect-gateway\n", "route-nopull\n");
    assert_ne!(changed, config, "the client has no such line");
    changed
}

/// The recipe itself: its rules, and a client with its scripts. Fields in the order in which they are taken down.
struct Recipe {
    client: Client,
}

impl Recipe {
    fn follow(lab: &Lab, server: &Vpn) -> Self {
        let script = |name: &str, verb: &str| {
            let path = lab.dir("recipe").join(name);
            let more =
                "ip route VERB 192.168.178.0/24 dev eth0 table 100; ip route VERB 172.18.0.0/16 dev vpn table 100";
            let script = format!(
                "#!/bin/sh\nip route {verb} 0.0.0.0/1 dev {TUN} table 100\nip route {verb} 128.0.0.0/1 dev {TUN} table 100\n\
                 {}\nip rule {verb} from 172.18.0.0/16 lookup 100\nexit 0\n",
                more.replace("VERB", verb)
            );
            fs::write(&path, script).expect("a script");
            lab.sh(&format!("chmod 755 {}", path.display()));
            path
        };
        let (up, down) = (script("up.sh", "add"), script("down.sh", "del"));
        lab.sh(&format!(
            "iptables -I DOCKER-USER -i {BRIDGE} ! -o {TUN} -j REJECT
            iptables -I DOCKER-USER -i {BRIDGE} -d 192.168.178.0/24 -j RETURN
            iptables -I DOCKER-USER -i {BRIDGE} -o {BRIDGE} -j RETURN"
        ));
        let scripts = format!("script-security 2\nup {}\ndown {}\n", up.display(), down.display());
        Self { client: server.client_as(None, |config| with_route_nopull(config) + &scripts) }
    }

    fn take_out(mut self, lab: &Lab) {
        self.client.end();
        lab.sh("iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN
            ip rule del from 172.18.0.0/16 lookup 100 || true; ip route flush table 100 || true");
    }
}

fn iptables_false() -> Value {
    json!({"iptables": false, "ip6tables": false, "dns": [DNS4]})
}

/// As in the recipe, with Docker's own rules, and with `"iptables": false`.
#[rstest]
#[case::dockers_rules("dockers-rules", json!({"dns": [DNS4]}))]
#[case::iptables_false("iptables-false", iptables_false())]
fn a_container_of_fixed_address_leaves_by_the_tunnel(#[case] case: &str, #[case] daemon: Value) {
    let mut host = Host::new(&daemon);
    let lab = &host.lab;
    assert_eq!(lab.sh("iptables -S").contains("DOCKER-USER"), case == "dockers-rules");
    let mut plain = host.docker.run("control", &[]);
    // Docker masquerades or not: what is counted here are packets by the uplink.
    let control = lab.assert_probe_is_visible(|| {
        plain.probe(&["udp-from", "0.0.0.0", SERVICE4, "9", "5"]);
        plain.probe(&["udp-from", "::", SERVICE6, "9", "5"]);
    });
    plain.remove();

    lab.tunjail_ok(&["up"]);
    host.client.start_and_wait();
    // What up.sh did, and what it did not.
    let rules = lab.sh("ip rule; ip -6 rule");
    for rule in ["from 172.18.0.0/16 lookup tunjail_vpn", "from all iif vpn lookup tunjail_vpn", "from fd00:18::/64"] {
        assert!(rules.contains(rule), "{rule}: {rules}");
    }
    for family in ["-4", "-6"] {
        let table = lab.sh(&format!("ip {family} route show table tunjail_vpn"));
        assert!(table.contains("default dev tun0") && table.contains("unreachable default"), "{table}");
    }
    assert!(!lab.sh("ip route show table main").contains("/1 "), "the host keeps its own way");

    let member = host.docker.run("m1", &["--runtime", "tunjail-vpn", "--ip", "172.18.0.2"]);
    assert!(member.exec(&["/bin/ip", "addr"]).stdout.contains("172.18.0.2/16"));
    lab.reset_leaks();
    assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4);
    assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6);
    for question in ["tcp-echo", "udp-echo"] {
        answer(&member.probe(&[question, SERVICE4, "7"]));
    }
    lab.assert_no_leak("recipe", case, control);
    assert!(lab.leaks().transport > 0, "nothing went through the tunnel either");
    assert_eq!(answer(&lab.probe(&["http", SERVICE4])), ROUTER4, "the host keeps its own way");
}

#[rstest]
#[case::dockers_rules("lan-dockers-rules", json!({"dns": [DNS4]}))]
#[case::iptables_false("lan-iptables-false", iptables_false())]
fn the_lan_and_the_bridge_are_reached_and_nothing_else(#[case] case: &str, #[case] daemon: Value) {
    let mut host = Host::new(&daemon);
    host.client.start_and_wait();
    let lab = &host.lab;
    let plain = host.docker.run("control", &[]);
    let past = |container: &dyn Container| {
        // IPv6 of the LAN is not in `allow`; the host's own ports are nobody's.
        container.probe(&["udp-from", "::", LAN6, "9", "5"]);
        container.probe(&["udp-from", "0.0.0.0", SERVICE4, "9", "5"])
    };
    let control = lab.assert_probe_is_visible(|| drop(past(&plain)));
    drop(plain);
    host.docker.call(&["rm", "--force", "control"]).ok();

    let member = host.member();
    let second = host.docker.run("m2", &["--runtime", "tunjail-vpn", "--ip", "172.18.0.3"]);
    lab.reset_leaks();
    answer(&member.probe(&["tcp-echo", LAN4, "7"]));
    answer(&member.probe(&["udp-echo", LAN4, "7"]));
    assert_eq!(answer(&member.probe(&["http", LAN4])), HOST4, "as the host's own, whoever masquerades");
    assert!(lab.leaks().lan4 > 0, "{:?}", lab.leaks());
    assert_eq!(answer(&member.probe(&["ping", "172.18.0.3", "2"])), "2");
    let _service = second.spawn(&[crate::rootfs::PROBE, "serve", "172.18.0.3"]);
    wait_until("the neighbour's service", Duration::from_secs(5), || {
        member.probe(&["tcp-echo", "172.18.0.3", "7"]).json()["ok"] == true
    });

    lab.reset_leaks();
    past(&member);
    assert_eq!(member.probe(&["tcp-echo", LAN6, "7"]).json()["ok"], false);
    let _proxy = crate::run::Cmd::new(crate::rootfs::probe(), &["proxy", "172.18.0.1", "3128"]).spawn();
    assert_eq!(member.probe(&["via-proxy", "172.18.0.1", "3128", SERVICE4, "80"]).json()["ok"], false);
    lab.assert_no_leak("recipe", case, control);
}

#[test]
fn names_are_asked_through_the_tunnel_whoever_is_asked() {
    let mut host = Host::new(&json!({"dns": [DNS4]}));
    let lab = &host.lab;
    // The LAN's router answers names, as most do, and asks by its own uplink.
    let router = Resolver::start(Some(&lab.lan), "router", &[LAN4], Answers::Always(SERVICE4));
    let recipe = {
        let mut recipe = Recipe::follow(lab, &host.server);
        recipe.client.start_and_wait();
        let mut plain = host.docker.run("control", &[]);
        answer(&plain.probe(&["dns", LAN4, "recipe.example"]));
        assert_eq!(router.askers("recipe.example").len(), 1, "positive control: the recipe lets the router be asked");
        plain.remove();
        recipe
    };
    recipe.take_out(lab);

    host.client.start_and_wait();
    let member = host.member();
    for (number, server) in ["127.0.0.11", LAN4, DNS4, "172.18.0.1", "192.0.2.99"].into_iter().enumerate() {
        for transport in ["dns", "dns-tcp"] {
            let name = format!("{transport}-{number}.example");
            assert_eq!(answer(&member.probe(&[transport, server, &name])), SERVICE4, "{transport} {server}");
            assert_eq!(lab.askers(&name), [VPN4], "{transport} {server}");
            assert!(router.askers(&name).is_empty(), "{transport} {server}: the router was asked");
        }
    }
}

#[test]
fn nothing_leaves_when_the_tunnel_goes() {
    let mut host = Host::new(&json!({"dns": [DNS4]}));
    let lab = &host.lab;
    let mut recipe = Recipe::follow(lab, &host.server);
    recipe.client.start_and_wait();
    let mut plain = host.docker.run("control", &["--ip", "172.18.0.9"]);
    assert_eq!(answer(&plain.probe(&["http", SERVICE4])), VPN4, "the recipe works on a good day");
    lab.reset_leaks();
    let mut traffic = Traffic::start(&plain);
    traffic.wait_flowing();
    recipe.client.sigkill();
    wait_until("the recipe to leak by IPv6", Duration::from_secs(10), || lab.leaks().v6 > 100);
    let control = lab.leaks().total();
    traffic.end(&plain);

    // The wall over the recipe, whose container no hook has seen.
    lab.tunjail_ok(&["up"]);
    recipe.client.start_and_wait();
    lab.tunjail_ok(&["up"]);
    lab.reset_leaks();
    let mut traffic = Traffic::start(&plain);
    traffic.wait_flowing();
    recipe.client.sigkill();
    traffic.press();
    lab.assert_no_leak("recipe", "wall-over-recipe", control);
    traffic.end(&plain);
    plain.remove();
    recipe.take_out(lab);

    host.client.start_and_wait();
    let member = host.docker.run("m1", &["--runtime", "tunjail-vpn", "--ip", "172.18.0.2"]);
    lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    host.client.sigkill();
    traffic.press();
    lab.assert_no_leak("recipe", "tunnel-killed", control);
    host.client.start_and_wait();
    traffic.wait_floods_flowing();
    lab.assert_no_leak("recipe", "tunnel-back", control);
    traffic.end(&member);
}

/// The unit's own line, before Docker and before its network; and a container that no hook was called for.
#[test]
fn nothing_leaves_between_boot_and_the_tunnel() {
    let lab = Lab::new();
    lab.configure(&jail());
    let unit = text("hooks/tunjail.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("what the unit starts");
    lab.sh(start);
    let docker = docker_with(&lab, &Guest::own(), &json!({"dns": [DNS4]}));
    let plain = docker.run("started-at-boot", &["--restart", "always"]);
    lab.reset_leaks();
    let mut traffic = Traffic::start(&plain);
    traffic.press();
    let closed = lab.leaks();
    assert_eq!(closed.total(), 0, "{closed:?}\n{}", lab.leaked_flows());
    let server = Vpn::start_server(&lab);
    let mut client = server.client_as(Some(&lab.exit_script()), with_route_nopull);
    client.start_and_wait();
    traffic.wait_floods_flowing();
    let open = lab.leaks();
    assert_eq!(open.total(), 0, "{open:?}\n{}", lab.leaked_flows());
    assert_eq!(answer(&plain.probe(&["http", SERVICE4])), VPN4);
    client.stop();

    // The positive control: the same host in the same state without the wall.
    lab.tunjail_ok(&["down"]);
    wait_until("the control to leak", Duration::from_secs(10), || {
        let leaks = lab.leaks();
        leaks.v4 > 100 && leaks.v6 > 100
    });
    leaks::report("recipe", "boot", lab.leaks().total(), closed.total() + open.total());
    traffic.end(&plain);
}

/// Each test that a document names is one, or a suite.
#[rstest]
#[case::recipe(DOCUMENT, 9)]
#[case::security("docs/security.md", 60)]
fn a_document_names_tests_that_exist(#[case] document: &str, #[case] at_least: usize) {
    let out = Command::new(std::env::current_exe().expect("the tests")).args(["--list", "--format", "terse"]).output();
    let listed = String::from_utf8(out.expect("the list of tests").stdout).expect("text");
    let exists = |name: &&str| listed.lines().any(|line| line.starts_with(&format!("{name}:")));
    let text = text(document);
    let quoted = text.split('`').skip(1).step_by(2);
    let is_name =
        |word: &&str| word.contains("::") && word.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    // With an underscore: a net of IPv6 has the colons too.
    let names: BTreeSet<&str> =
        quoted.filter(is_name).filter(|name| !name.ends_with(':') && name.contains('_')).collect();
    assert!(names.len() >= at_least, "{document} names {} tests: {names:?}", names.len());
    let missing: Vec<&str> = names.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "{document} names tests that do not exist: {missing:?}");
}
