//! A member that says it is a router, to a host that would believe it, and a better one, to another member.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::forged::{self, Discovery, Sender};
use super::{Attack, Attacker, v4, v6};
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::run::{Cmd, answer, wait_until};
use crate::scene;
use crate::world::{Lab, Netns, SERVICE4, SERVICE6};

fn link_local(text: &str) -> Ipv6Addr {
    v6(text.split_whitespace().nth(3).and_then(|addr| addr.split('/').next()).expect("a link-local address"))
}

/// A lie and how it shows that it is believed.
struct Lie {
    name: &'static str,
    attack: Attack,
    is_believed: Box<dyn Fn(&Lab) -> bool>,
}

fn lies(lab: &Lab, liar: &Attacker, victim: &Attacker) -> Vec<Lie> {
    let of_gateway = link_local(&lab.sh(&format!("ip -6 -o addr show dev {BRIDGE} scope link")));
    let of_liar = link_local(&liar.netns.sh("ip -6 -o addr show dev eth0 scope link"));
    let of_victim = link_local(&victim.netns.sh("ip -6 -o addr show dev eth0 scope link"));
    // A redirect is believed of the router that is in use alone, and of its link-local address.
    victim.netns.sh(&format!("ip -6 route replace default via {of_gateway} dev eth0"));
    let as_gateway = |addr| Sender { mac: liar.mac, addr };
    let by4 = liar.addr4();
    let all = v6("ff02::1");
    let advert = Discovery::Router { prefix: v6("2001:db8:bad::") };
    let better = Discovery::Redirect { by: of_liar, towards: v6(SERVICE6) };
    let victim_name = victim.netns.name().to_owned();
    let goes_by = move |addr: &'static str, by: String| {
        let netns = Netns::open(&victim_name);
        move |_: &Lab| netns.sh(&format!("ip route get {addr}")).contains(&format!("via {by} "))
    };
    vec![
        Lie {
            name: "router advert to the host",
            attack: Attack::frame(
                "router advert",
                &forged::discovery(forged::group(all.into()), as_gateway(of_liar.into()), all, advert, false),
            ),
            is_believed: Box::new(|lab| lab.sh("ip -6 route show default").contains(BRIDGE)),
        },
        Lie {
            name: "redirect to the other member, IPv4",
            attack: Attack::frame(
                "redirect",
                &forged::redirect(victim.mac, as_gateway(v4(GATEWAY4).into()), victim.addr4(), by4, v4(SERVICE4)),
            ),
            is_believed: Box::new(goes_by(SERVICE4, by4.to_string())),
        },
        Lie {
            name: "redirect to the other member, IPv6",
            attack: Attack::frame(
                "redirect",
                &forged::discovery(victim.mac, as_gateway(of_gateway.into()), of_victim, better, false),
            ),
            is_believed: Box::new(goes_by(SERVICE6, of_liar.to_string())),
        },
    ]
}

#[test]
fn no_member_is_taken_for_a_router() {
    let mut scene = scene::strict();
    // A router that listens to others all the same.
    scene.lab.sh(&format!("echo 2 > /proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra"));
    let mut liar = Attacker::new(scene.plain("p1", 200), "p1", 200);
    let mut victim = Attacker::new(scene.plain("p2", 201), "p2", 201);
    for Lie { name, attack, is_believed } in lies(&scene.lab, &liar, &victim) {
        wait_until(&format!("the control of \"{name}\""), Duration::from_secs(5), || {
            // The victim has to know where the better router would be.
            answer(&victim.container.probe(&["ping", &liar.addr4().to_string(), "1"]));
            liar.attack(&attack);
            is_believed(&scene.lab)
        });
    }
    Cmd::new("ip", &["-6", "route", "del", "default", "dev", BRIDGE]).ok();
    liar.container.remove();
    victim.container.remove();

    scene.client.start_and_wait();
    let liar = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    let victim = Attacker::new(scene.member("runc", "m2", 3), "m2", 3);
    liar.deletes_its_lock();
    let lies = lies(&scene.lab, &liar, &victim);
    for _ in 0..5 {
        for lie in &lies {
            answer(&victim.container.probe(&["ping", &liar.addr4().to_string(), "1"]));
            liar.attack(&lie.attack);
        }
    }
    // An answered echo comes after all that was sent before it.
    for gateway in [GATEWAY4, GATEWAY6] {
        answer(&liar.container.probe(&["ping", gateway, "1"]));
        answer(&victim.container.probe(&["ping", gateway, "1"]));
    }
    let believed: Vec<_> = lies.iter().filter(|lie| (lie.is_believed)(&scene.lab)).map(|lie| lie.name).collect();
    assert!(believed.is_empty(), "lies that are believed: {believed:?}");
}
