//! Firewalls of others that drop what comes in for a forwarded port: shown to do so, named by `tunjail check`, and mended by
//! the commands that it names.

use super::engines::{FIXED, internet};
use super::{PORTS, assert_unanswered, call, member, provide, serve};
use crate::guest::{Guest, Release};
use crate::matrix::wired::docker;
use crate::product::STRICT_JAIL;
use crate::scene;
use crate::traffic::settings::complaints;
use crate::world::{Lab, VPN4, VPN6};
use crate::yard::replace_program;

/// Where Docker turned forwarding on itself, its chain ends in a drop. 20.10 gives IPv6 no `DOCKER-USER`.
#[test]
fn check_names_what_docker_of_old_drops_and_the_mend() {
    let (lab, guest, _server, _client) = internet(Release::Bookworm);
    // It cannot annotate.
    lab.configure(&format!("{STRICT_JAIL}forward = [\"tcp/7\", \"udp/7\", \"tcp/8443:80\"]\n"));
    lab.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let docker = docker(&lab, &guest);
    assert_eq!(dropped(&lab).len(), 2, "before there is a member");
    let options = [&["--runtime", "tunjail-vpn", "--cap-add=NET_BIND_SERVICE"], &FIXED[..]].concat();
    let member = docker.run("m1", &options);
    let _services = serve(&member, 20);
    let mends = check_names_what_is_dropped(&lab, &guest, &["\"iptables -P FORWARD DROP\"", "tcp/7, udp/7, tcp/8443"]);
    let users = "iptables -I DOCKER-USER -i tun0 -o vpn -j ACCEPT";
    assert_eq!(mends, [users, "ip6tables -I FORWARD -i tun0 -o vpn -j ACCEPT"]);
    call(&lab);
}

/// What `check` says of forwarded ports.
pub fn dropped(lab: &Lab) -> Vec<String> {
    let told = |(verdict, found): (String, String)| {
        let is_it = found.contains("what comes in by exit tun0 for its forwarded ports");
        assert!(!is_it || verdict == "warning", "{verdict}: {found}");
        is_it.then_some(found)
    };
    complaints(lab).into_iter().filter_map(told).collect()
}

/// Nothing comes in, `check` says by which rule, the commands that it names mend it, and it says no more of it. Returns
/// those, IPv4's first.
#[track_caller]
pub fn check_names_what_is_dropped(lab: &Lab, guest: &Guest, says: &[&str]) -> Vec<String> {
    for server in [VPN4, VPN6] {
        assert_unanswered(&lab.inet.probe(&["tcp-echo", server, "7"]), "Docker lets it in by itself");
    }
    let found = dropped(lab);
    println!("check: {found:#?}");
    assert!(found.len() == 2 && found[0].contains("IPv4") && found[1].contains("IPv6"), "{found:#?}");
    for words in says {
        assert!(found[0].contains(words), "{words:?} is not in {found:#?}");
    }
    let mend = |found: &String| found.rsplit_once("before: ").expect("a mend").1.to_owned();
    let mends: Vec<String> = found.iter().map(mend).collect();
    for mend in &mends {
        guest.sh(mend);
    }
    assert_eq!(dropped(lab), [""; 0], "{mends:?}");
    mends
}

/// Firewalls that let members out and nobody in.
const ONE_WAY: [(&str, &str, &str); 2] = [
    (
        "nft add table inet wall; nft 'add chain inet wall through { type filter hook forward priority 10; policy drop; }'
        nft add rule inet wall through ct state vmap '{ established : accept, related : accept, invalid : drop }'
        nft add rule inet wall through iifname vpn accept",
        "nftables table inet wall (policy drop of chain through)",
        "nft insert rule inet wall through iifname tun0 oifname vpn accept",
    ),
    (
        "for program in iptables-legacy ip6tables-legacy; do
            $program -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            $program -A FORWARD ! -o vpn -m comment --comment 'out, \"-j DROP\"' -j ACCEPT
            $program -A FORWARD -j REJECT
        done",
        "\"iptables-legacy -A FORWARD -j REJECT --reject-with icmp-port-unreachable\"",
        "iptables-legacy -I FORWARD -i tun0 -o vpn -j ACCEPT",
    ),
];

#[test]
fn check_names_a_firewall_that_lets_nobody_in_and_the_mend() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    provide(&scene.lab);
    let member = member(&scene, "runc", "m1", 2, PORTS);
    let _services = serve(&member, 2);
    call(&scene.lab);
    assert_eq!(dropped(&scene.lab), [""; 0]);
    for (rules, says, mend) in ONE_WAY {
        scene.lab.sh(rules);
        let mends = check_names_what_is_dropped(&scene.lab, &Guest::own(), &[says]);
        assert_eq!(mends[0], mend);
        call(&scene.lab);
    }
    // What cannot be read is said to be there.
    replace_program(&scene.lab, "/usr/sbin/iptables-legacy", "#!/bin/sh\necho not today >&2; exit 4\n");
    let found = complaints(&scene.lab);
    let unknown = "there are rules of iptables-legacy, but `iptables-legacy -S` fails: not today";
    assert!(found.iter().any(|(_, found)| found.starts_with(unknown)), "{found:#?}");
}
