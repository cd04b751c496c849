//! Promises P3 and P4: no exit, no traffic; either layer alone holds.

use rstest::rstest;

use crate::engine::Container;
use crate::run::{answer, wait_until};
use crate::scene::{self, Scene, Traffic};
use crate::vpn::TUN;
use crate::world::{Lab, SERVICE4, SERVICE6, VPN4, VPN6};

/// How the exit goes.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Killed,
    Stopped,
    LinkDown,
    LinkDeleted,
}

impl Loss {
    fn happen(self, scene: &mut Scene) {
        match self {
            Self::Killed => scene.client.sigkill(),
            Self::Stopped => drop(scene.client.stop()),
            Self::LinkDown => drop(scene.lab.sh(&format!("ip link set {TUN} down"))),
            Self::LinkDeleted => drop(scene.lab.sh(&format!("ip link del {TUN}"))),
        }
    }

    /// The exit comes back, under another index.
    fn mend(self, scene: &mut Scene) {
        if matches!(self, Self::LinkDown | Self::LinkDeleted) {
            scene.client.end();
        }
        scene.client.start_and_wait();
    }
}

fn index() -> String {
    std::fs::read_to_string(format!("/sys/class/net/{TUN}/ifindex")).expect("the exit's index")
}

/// The same traffic and the same loss with policy routing alone: counted.
fn control(scene: &mut Scene, loss: Loss) -> u64 {
    let mut plain = scene.plain("control", 200);
    scene.client.start_and_wait();
    scene.recipe();
    scene.lab.reset_leaks();
    let mut traffic = Traffic::start(&plain);
    traffic.wait_flowing();
    loss.happen(scene);
    wait_until("the control to leak", std::time::Duration::from_secs(5), || {
        let leaks = scene.lab.leaks();
        leaks.v4 > 100 && leaks.v6 > 100
    });
    let seen = scene.lab.leaks().total();
    traffic.end(&plain);
    plain.remove();
    scene.client.end();
    scene.no_recipe();
    scene.lab.reset_leaks();
    seen
}

#[rstest]
#[case::openvpn_sigkill("openvpn-sigkill", Loss::Killed)]
#[case::openvpn_stop("openvpn-stop", Loss::Stopped)]
#[case::link_down("link-down", Loss::LinkDown)]
#[case::link_deleted("link-deleted", Loss::LinkDeleted)]
fn nothing_leaves_when_the_exit_goes_and_traffic_returns_with_it(#[case] case: &str, #[case] loss: Loss) {
    let mut scene = scene::strict();
    let control = control(&mut scene, loss);

    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    scene.lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    let before = index();
    loss.happen(&mut scene);
    traffic.press();
    scene.lab.assert_no_leak("closed", case, control);

    // Back under another index: the same container, no restart.
    loss.mend(&mut scene);
    assert_ne!(index(), before, "the exit was re-created");
    wait_until("the exit open again", std::time::Duration::from_secs(10), || {
        member.probe(&["http", SERVICE4]).json()["body"] == VPN4
    });
    assert_eq!(answer(&member.probe(&["http", SERVICE6])), VPN6);
    traffic.wait_floods_flowing();
    scene.lab.assert_no_leak("closed", &format!("{case}-return"), control);
    traffic.end(&member);
}

#[test]
fn nothing_leaves_when_the_exit_never_came() {
    let mut scene = scene::strict();
    let mut plain = scene.plain("control", 200);
    let control = scene.lab.assert_probe_is_visible(|| {
        let mut traffic = Traffic::start(&plain);
        traffic.wait_flowing();
        traffic.end(&plain);
    });
    plain.remove();

    let member = scene.member("runc", "m1", 2);
    scene.lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.press();
    scene.lab.assert_no_leak("closed", "exit-never-up", control);
    scene.client.start_and_wait();
    traffic.wait_flowing();
    scene.lab.assert_no_leak("closed", "exit-came-late", control);
    traffic.end(&member);
}

/// What somebody else wipes.
#[derive(Debug, Clone, Copy)]
pub enum Wipe {
    /// All of nftables: what `systemctl restart nftables` does.
    Ruleset,
    /// All ip rules, both families, as they come back after a flush by hand.
    Rules,
    /// Every route of the jail's own table.
    Table,
}

impl Wipe {
    pub fn happen(self, lab: &Lab) {
        match self {
            Self::Ruleset => drop(lab.sh("nft flush ruleset")),
            Self::Rules => drop(lab.sh("for family in -4 -6; do
                    ip $family rule flush
                    ip $family rule add pref 32766 lookup main
                done")),
            Self::Table => drop(lab.sh(
                "for table in $(ip -N rule show | sed -n 's/^700:.*lookup \\([0-9]*\\).*/\\1/p' | sort -u); do
                    ip -4 route flush table $table
                    ip -6 route flush table $table
                done",
            )),
        }
    }
}

/// One layer gone under traffic, with the exit alive, then the exit too: the other layer holds alone. The control is the
/// loss of the exit without either.
#[rstest]
#[case::ruleset("nft-flushed", Wipe::Ruleset)]
#[case::rules("rules-flushed", Wipe::Rules)]
#[case::table("table-flushed", Wipe::Table)]
fn either_layer_holds_alone(#[case] case: &str, #[case] wipe: Wipe) {
    let mut scene = scene::strict();
    let control = control(&mut scene, Loss::Killed);

    scene.client.start_and_wait();
    let member = scene.member("runc", "m1", 2);
    scene.lab.reset_leaks();
    let mut traffic = Traffic::start(&member);
    traffic.wait_flowing();
    let before = scene.lab.snapshot();
    wipe.happen(&scene.lab);
    assert!(before != scene.lab.snapshot(), "the wipe changed nothing");
    traffic.press_floods();
    scene.lab.assert_no_leak("closed", case, control);
    scene.client.sigkill();
    traffic.press();
    scene.lab.assert_no_leak("closed", &format!("{case}-and-exit-killed"), control);
    traffic.end(&member);
}

/// An IPv6 address is no source while its uniqueness is being proved: masquerade would take another interface's instead,
/// and the host's own address would come out of the exit.
#[test]
fn an_exit_is_not_used_before_its_address_can_be_a_source() {
    let lab = Lab::new();
    lab.configure(
        "[jail.vpn]\nsubnets = [\"172.18.0.0/16\", \"fd00:18::/64\"]\nexit = \"eth1\"\ngateway = \"2001:db8:8::1\"\n",
    );
    let _bridge = crate::bridge::Bridge::new(&lab);
    lab.tunjail_ok(&["up"]);
    lab.sh("ip link add eth1 type veth peer name other; ip link set other up
        echo 1 > /proc/sys/net/ipv6/conf/eth1/accept_dad; ip link set eth1 up");
    let carries = || lab.sh("ip -6 route show table tunjail_vpn").contains("2001:db8:8::1 dev eth1");
    let tentative = || !lab.sh("ip -6 addr show dev eth1 scope global tentative").is_empty();
    lab.sh("ip addr add 2001:db8:8::9/64 dev eth1");
    assert!(tentative(), "nothing is proved here");
    lab.tunjail_ok(&["up"]);
    assert!(!tentative() || !carries(), "the wall routes by an address that is no source");
    lab.tunjail_ok(&["exit", "up", "--dev", "eth1"]);
    assert!(!tentative() && carries(), "whoever made the exit calls once");
}
