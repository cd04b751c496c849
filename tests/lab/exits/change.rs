//! `tunjail up` with another configuration while members send all they can: nothing goes the old way once it has
//! returned, and nothing goes anywhere else meanwhile.

use super::{BY_NIC, BY_TUNNEL, NewFlows, TwoExits, comes_to_be_seen_as, is_seen_as, jail};
use crate::engine::Container;
use crate::run::{Job, wait_until};
use crate::scene::Traffic;
use crate::world::{LAN4, LAN6, Lab};

const ALLOWED: &str = "allow = [\"192.168.178.0/24\", \"2001:db8:178::/64\"]\n";

/// What the host itself lets go of members by each interface, read where nothing is on its way any more.
struct Gone;

impl Gone {
    /// What somebody else's rule gives an exit's address is not followed by the kernel as masquerading is.
    fn count(lab: &Lab, snat: bool) -> Self {
        let snat = if snat {
            let [tun4, tun6] = ["-4", "-6"].map(|family| {
                let text = lab.sh(&format!("ip {family} -o addr show dev tun0 scope global"));
                let addr = text.split_whitespace().nth(3).and_then(|addr| addr.split('/').next());
                addr.expect("the tunnel's address").to_owned()
            });
            format!(
                "table inet engine {{ chain out {{ type nat hook postrouting priority 90
                    oifname tun0 ip saddr 172.18.0.0/16 snat ip to {tun4}
                    oifname tun0 ip6 saddr fd00:18::/64 snat ip6 to {tun6}
                }}
                }}"
            )
        } else {
            String::new()
        };
        lab.nft(&format!(
            "table inet gone {{
                counter tun0 {{ }}
                counter eth1 {{ }}
                counter lan {{ }}
                chain out {{ type filter hook postrouting priority 320
                    iifname != vpn accept
                    oifname tun0 counter name tun0
                    oifname eth1 counter name eth1
                    oifname eth0 counter name lan
                }}
            }}
            {snat}"
        ));
        Self
    }

    fn by(&self, lab: &Lab, way: &str) -> u64 {
        let text = lab.sh(&format!("nft list counter inet gone {way}"));
        let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).expect("a counter")
    }
}

#[rstest::rstest]
#[case::masqueraded(false)]
#[case::by_somebody_elses_rule(true)]
fn what_changes_changes_at_once(#[case] snat: bool) {
    let mut two = TwoExits::new("\"tun0\"");
    let control = two.control();
    two.client.start_and_wait();
    let with_lan = |exits| format!("{}{ALLOWED}", jail("vpn", 18, exits));
    two.lab.configure(&with_lan("\"tun0\""));
    two.lab.tunjail_ok(&["up"]);
    let gone = Gone::count(&two.lab, snat);
    let member = two.member("m1", 2);
    is_seen_as(&member, BY_TUNNEL);
    two.lab.reset_leaks();
    two.uplink.forget_names();

    let mut traffic = Traffic::start(&member);
    let flows = NewFlows::start(&member);
    let mut lan: Vec<Job> = Vec::new();
    for addr in [LAN4, LAN6] {
        lan.push(member.probing(&["udp-flood", addr, "7", "1000", "100"]));
        lan.push(member.probing(&["tcp-hold", addr, "7", "100"]));
    }
    traffic.wait_flowing();
    wait_until("the LAN's floods", super::PATIENCE, || gone.by(&two.lab, "lan") > 500);

    // The LAN is not allowed any more.
    two.lab.configure(&jail("vpn", 18, "\"tun0\""));
    two.lab.tunjail_ok(&["up"]);
    let before = (gone.by(&two.lab, "lan"), two.lab.leaks());
    traffic.press_floods();
    assert_eq!(gone.by(&two.lab, "lan"), before.0, "the LAN is reached after `up` has returned");
    assert_eq!(two.lab.leaks().escaped(), 0, "{}", two.lab.leaked_flows());

    // There and back, with everything established.
    for (exits, old, callers) in [("\"eth1\"", "tun0", BY_NIC), ("\"tun0\"", "eth1", BY_TUNNEL)] {
        assert!(gone.by(&two.lab, old) > 500, "{old} carried nothing");
        two.lab.configure(&jail("vpn", 18, exits));
        two.lab.tunjail_ok(&["up"]);
        let before = gone.by(&two.lab, old);
        comes_to_be_seen_as(&member, callers);
        traffic.press_floods();
        assert_eq!(gone.by(&two.lab, old), before, "{old} carries something after `up` has returned");
        assert_eq!(two.lab.leaks().escaped(), 0, "{}", two.lab.leaked_flows());
    }
    assert_eq!(gone.by(&two.lab, "lan"), before.0);
    println!("leak: suite=exits case=change control={control} packets, jailed={} packets", two.lab.leaks().escaped());
    for job in lan {
        member.end(job);
    }
    flows.end(&member);
    traffic.end(&member);
    two.assert_right_names();
}
