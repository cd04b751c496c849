//! A host with `accept_local`: the kernel no longer calls a packet a martian that comes in with the host's own address.

use std::time::Duration;

use super::forged::{self, Sender};
use super::{Attack, Attacker, COUNT, gateway_mac, ip};
use crate::bridge::GATEWAY4;
use crate::engine::Container;
use crate::run::wait_until;
use crate::scene;
use crate::world::{HOST4, SERVICE4};

fn attacks(attacker: &Attacker) -> Vec<Attack> {
    [("the host", HOST4), ("the bridge", GATEWAY4)]
        .map(|(whose, source)| {
            let from = Sender { mac: attacker.mac, addr: ip(source) };
            Attack::frame(format!("frame as {whose}"), &forged::datagram(gateway_mac(), from, ip(SERVICE4), 9))
        })
        .into()
}

#[test]
fn no_member_speaks_as_the_host_where_the_host_would_let_it() {
    let mut scene = scene::strict();
    scene
        .lab
        .sh("for conf in /proc/sys/net/ipv4/conf/*; do echo 1 > $conf/accept_local; echo 0 > $conf/rp_filter; done");
    let mut attacker = Attacker::new(scene.plain("control", 200), "control", 200);
    scene.lab.reset_leaks();
    for attack in attacks(&attacker) {
        let before = scene.lab.leaks().total();
        attacker.attack(&attack);
        wait_until(&format!("the control of \"{}\"", attack.name), Duration::from_secs(3), || {
            scene.lab.leaks().total() >= before + u64::from(COUNT)
        });
    }
    let control = scene.lab.leaks().total();
    attacker.container.remove();

    scene.client.start_and_wait();
    let attacker = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    attacker.deletes_its_lock();
    scene.lab.sh("echo 1 > /proc/sys/net/ipv4/conf/vpn/accept_local");
    for case in ["behind-the-guard", "ruleset-flushed", "ruleset-flushed-exit-killed"] {
        scene.lab.reset_leaks();
        match case {
            "ruleset-flushed" => drop(scene.lab.sh("nft flush ruleset")),
            "ruleset-flushed-exit-killed" => scene.client.sigkill(),
            _ => {}
        }
        attacker.attack_all(&attacks(&attacker));
        scene.lab.wait_quiet();
        scene.lab.assert_no_leak("hostile", &format!("accept-local-{case}"), control);
    }
}
