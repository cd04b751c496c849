//! Lies on the bridge: to another member, to the host, and to the bridge itself, about who is where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::forged::{self, Discovery, Mac, Sender};
use super::{Attack, Attacker, gateway_mac, v4, v6};
use crate::bridge::{BRIDGE, GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::run::{answer, wait_until};
use crate::scene::{self, Scene};
use crate::world::{Lab, SERVICE4, SERVICE6, VPN4, VPN6};

/// A prefix that no router of the lab announces.
const PREFIX: &str = "2001:db8:bad::";

/// For so long after its last change an ARP entry is not changed again (arp(7)).
const LOCKTIME: Duration = Duration::from_secs(1);

/// The bridge learns the sender of a frame for itself before any hook of the guard's (br_handle_frame): until the other
/// member speaks again, its packets go to the liar, who is in the same jail. Whoever closes this empties the list.
const STILL_BELIEVED: [&str; 2] =
    ["frame for 802.1X from the other member's MAC", "frame for LLDP from the other member's MAC"];

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whose belief a lie is to change, and into what.
#[derive(Debug, Clone, Copy)]
enum Belief {
    /// The victim takes the attacker for the gateway.
    VictimOfGateway4,
    VictimOfGateway6,
    /// The host takes the victim for the attacker.
    HostOfLiar4,
    /// The host takes the attacker for the victim.
    HostOfVictim4,
    HostOfVictim6,
    /// The victim takes the attacker for a router.
    VictimOfRouters,
    /// The bridge sends the attacker what is for the victim.
    BridgeOfVictim,
}

struct Lie {
    belief: Belief,
    attack: Attack,
}

/// The attacker's view of its victim.
struct Victim {
    at: Attacker,
    link_local: Ipv6Addr,
}

impl Victim {
    fn new(at: Attacker) -> Self {
        let text = at.netns.sh("ip -6 -o addr show dev eth0 scope link");
        let addr = text.split_whitespace().nth(3).and_then(|addr| addr.split('/').next());
        let link_local = v6(addr.expect("a link-local address"));
        Self { at, link_local }
    }

    /// Whether the lie is believed. Each belief that can be held is made to be held first, by traffic.
    fn believes(&self, lab: &Lab, belief: Belief, liar: &Attacker) -> bool {
        let liar_mac = text(liar.mac);
        let (addr4, addr6) = (self.at.addr4(), self.at.addr6());
        match belief {
            Belief::VictimOfGateway4 => self.at.netns.sh(&format!("ip neigh show {GATEWAY4}")).contains(&liar_mac),
            Belief::VictimOfGateway6 => self.at.netns.sh(&format!("ip neigh show {GATEWAY6}")).contains(&liar_mac),
            Belief::HostOfLiar4 => {
                lab.sh(&format!("ip neigh show {} dev {BRIDGE}", liar.addr4())).contains(&text(self.at.mac))
            }
            Belief::HostOfVictim4 => lab.sh(&format!("ip neigh show {addr4} dev {BRIDGE}")).contains(&liar_mac),
            Belief::HostOfVictim6 => lab.sh(&format!("ip neigh show {addr6} dev {BRIDGE}")).contains(&liar_mac),
            Belief::VictimOfRouters => {
                let routers = self.at.netns.sh("ip -6 route show; ip -6 addr show dev eth0");
                routers.contains("proto ra") || routers.contains(PREFIX.trim_end_matches(':'))
            }
            Belief::BridgeOfVictim => {
                let mac = text(self.at.mac);
                let table = lab.sh(&format!("bridge fdb show br {BRIDGE}"));
                let port = format!("veth-{}", liar.netns.name());
                table.lines().any(|line| line.starts_with(&mac) && line.contains(&port))
            }
        }
    }

    /// Both know each other and the host by their right names.
    fn warm_up(&self) {
        for gateway in [GATEWAY4, GATEWAY6] {
            // The lie before may still cost an echo or two.
            wait_until("the victim's echo", Duration::from_secs(10), || {
                self.at.container.probe(&["ping", gateway, "1"]).json()["ok"] == true
            });
        }
    }

    fn forget(&self, lab: &Lab) {
        self.at.netns.sh("ip neigh flush dev eth0; ip -6 route flush proto ra
            ip -6 addr flush dev eth0 scope global dynamic");
        lab.sh(&format!("ip neigh flush dev {BRIDGE}"));
    }
}

fn lies(liar: &Attacker, victim: &Victim) -> Vec<Lie> {
    let gateway = gateway_mac();
    let (their_mac, their4, their6) = (victim.at.mac, victim.at.addr4(), victim.at.addr6());
    let own_link_local: Ipv6Addr = link_local_of(liar.mac);
    let as_me = |addr: IpAddr| Sender { mac: liar.mac, addr };
    let mut lies = Vec::new();
    let mut add = |belief, name: String, frame: &[u8]| {
        lies.push(Lie { belief, attack: Attack::frame(name, frame) });
    };

    for question in [false, true] {
        let kind = if question { "question" } else { "answer" };
        let (gateway4, mine): (Ipv4Addr, Mac) = (v4(GATEWAY4), liar.mac);
        add(
            Belief::VictimOfGateway4,
            format!("ARP {kind}: the gateway is here"),
            &forged::arp(their_mac, mine, question, gateway4, mine, their4),
        );
        add(
            Belief::VictimOfGateway4,
            format!("ARP {kind} from the gateway's MAC: the gateway is here"),
            &forged::arp(their_mac, gateway, question, gateway4, mine, their4),
        );
        add(
            Belief::HostOfLiar4,
            format!("ARP {kind}: I am where the other member is"),
            &forged::arp(gateway, mine, question, liar.addr4(), their_mac, v4(GATEWAY4)),
        );
        add(
            Belief::BridgeOfVictim,
            format!("true ARP {kind} from the other member's MAC"),
            &forged::arp(gateway, their_mac, question, liar.addr4(), mine, v4(GATEWAY4)),
        );
        add(
            Belief::HostOfVictim4,
            format!("ARP {kind}: the other member is here"),
            &forged::arp(gateway, mine, question, their4, mine, v4(GATEWAY4)),
        );
        add(
            Belief::HostOfVictim4,
            format!("ARP {kind} from the other member's MAC: the other member is here"),
            &forged::arp(gateway, their_mac, question, their4, mine, v4(GATEWAY4)),
        );
    }
    for hidden in [false, true] {
        let how = if hidden { " behind a hop-by-hop header" } else { "" };
        for from in [own_link_local, liar.addr6()] {
            add(
                Belief::VictimOfGateway6,
                format!("advert{how} from {from}: the gateway is here"),
                &forged::discovery(
                    their_mac,
                    as_me(from.into()),
                    their6,
                    Discovery::Advert { target: v6(GATEWAY6) },
                    hidden,
                ),
            );
            add(
                Belief::HostOfVictim6,
                format!("advert{how} from {from}: the other member is here"),
                &forged::discovery(
                    gateway,
                    as_me(from.into()),
                    v6(GATEWAY6),
                    Discovery::Advert { target: their6 },
                    hidden,
                ),
            );
        }
        add(
            Belief::VictimOfGateway6,
            format!("solicitation{how} in the gateway's name"),
            &forged::discovery(
                their_mac,
                as_me(v6(GATEWAY6).into()),
                their6,
                Discovery::Solicit { target: their6 },
                hidden,
            ),
        );
        add(
            Belief::VictimOfRouters,
            format!("router advert{how}"),
            &forged::discovery(
                forged::group(v6("ff02::1").into()),
                as_me(own_link_local.into()),
                v6("ff02::1"),
                Discovery::Router { prefix: v6(PREFIX) },
                hidden,
            ),
        );
        add(
            Belief::VictimOfRouters,
            format!("router advert{how} to the victim alone"),
            &forged::discovery(
                their_mac,
                as_me(own_link_local.into()),
                victim.link_local,
                Discovery::Router { prefix: v6(PREFIX) },
                hidden,
            ),
        );
    }
    let me = as_me(own_link_local.into());
    let mut add_cut = |belief, name: &str, to, addr, what| {
        let frames =
            forged::cut_discovery(&forged::discovery(to, me, addr, what, false)).map(|frame| forged::hex(&frame));
        let attack = Attack::new(format!("{name}, cut up"), &["send", "eth0", "1", &frames[0], &frames[1]]);
        lies.push(Lie { belief, attack });
    };
    let [of_gateway, of_victim] = [v6(GATEWAY6), their6].map(|target| Discovery::Advert { target });
    add_cut(Belief::VictimOfGateway6, "advert: the gateway is here", their_mac, their6, of_gateway);
    add_cut(Belief::HostOfVictim6, "advert: the other member is here", gateway, v6(GATEWAY6), of_victim);
    let mut add = |belief, name: String, frame: &[u8]| {
        lies.push(Lie { belief, attack: Attack::frame(name, frame) });
    };
    for (to, what) in [
        (gateway, "to the host"),
        (forged::BROADCAST, "to everybody"),
        (forged::PORT_ACCESS, "for 802.1X"),
        (forged::NEAREST_BRIDGE, "for LLDP"),
    ] {
        let from = Sender { mac: their_mac, addr: liar.addr4().into() };
        add(
            Belief::BridgeOfVictim,
            format!("frame {what} from the other member's MAC"),
            &forged::datagram(to, from, GATEWAY4.parse().expect("an address"), 9),
        );
    }
    lies
}

/// RFC 4291, appendix A.
fn link_local_of([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Tells one lie until it is believed or it has been told often enough: over more than an ARP entry's locktime.
fn tell(scene: &Scene, liar: &Attacker, victim: &Victim, lie: &Lie) -> bool {
    const TIMES: u32 = 16;
    const LOOKS: u32 = 10;
    victim.forget(&scene.lab);
    victim.warm_up();
    // An ARP answer changes what the host knows of somebody; it does not make it known.
    wait_until("the liar's echo", Duration::from_secs(10), || {
        liar.container.probe(&["ping", GATEWAY4, "1"]).json()["ok"] == true
    });
    (0..TIMES).any(|_| {
        liar.attack(&lie.attack);
        (0..LOOKS).any(|_| {
            std::thread::sleep(LOCKTIME / (4 * LOOKS));
            victim.believes(&scene.lab, lie.belief, liar)
        })
    })
}

#[test]
fn no_lie_of_a_member_is_believed() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let mut liar = Attacker::new(scene.plain("p1", 200), "p1", 200);
    let mut victim = Victim::new(Attacker::new(scene.plain("p2", 201), "p2", 201));
    let lies_told = lies(&liar, &victim);
    let control = lies_told.len();
    let disbelieved: Vec<_> =
        lies_told.iter().filter(|lie| !tell(&scene, &liar, &victim, lie)).map(|lie| &lie.attack.name).collect();
    assert!(disbelieved.is_empty(), "positive control: nobody believes {disbelieved:#?}");
    liar.container.remove();
    victim.at.container.remove();

    let liar = Attacker::new(scene.member("runc", "m1", 2), "m1", 2);
    let victim = Victim::new(Attacker::new(scene.member("runc", "m2", 3), "m2", 3));
    liar.deletes_its_lock();
    victim.warm_up();
    let lies = lies(&liar, &victim);
    let mut believed = Vec::new();
    for _ in 0..3 {
        for lie in &lies {
            liar.attack(&lie.attack);
            if victim.believes(&scene.lab, lie.belief, &liar) {
                believed.push(&lie.attack.name);
                victim.forget(&scene.lab);
                victim.warm_up();
            }
        }
        std::thread::sleep(LOCKTIME / 2);
    }
    wait_until("an echo after the lies", Duration::from_secs(10), || {
        liar.container.probe(&["ping", GATEWAY4, "1"]).json()["ok"] == true
    });
    let late = lies.iter().filter(|lie| victim.believes(&scene.lab, lie.belief, &liar)).map(|lie| &lie.attack.name);
    believed.extend(late);
    believed.sort();
    believed.dedup();
    println!("neighbours: control={control} lies believed, jailed={} lies believed: {believed:?}", believed.len());
    believed.retain(|lie| !STILL_BELIEVED.contains(&lie.as_str()));
    assert!(believed.is_empty(), "lies that are believed: {believed:#?}");
    wait_until("the victim's way out", Duration::from_secs(5), || {
        victim.at.container.probe(&["http", SERVICE4]).json()["body"] == VPN4
    });
    assert_eq!(answer(&victim.at.container.probe(&["http", SERVICE6])), VPN6);
}
