//! A dry run changes nothing, and what it prints is the truth: the same lines, typed by hand, do the same.

use rstest::rstest;

use crate::product::{JAIL, STRICT_JAIL};
use crate::run::Cmd;
use crate::world::Lab;
use crate::yard::{Yard, created, stopped};

/// Every kind of rule that a jail can bring.
const RICH_JAIL: &str = r#"[jail.vpn]
subnets = ["172.18.0.0/16", "fd00:18::/64"]
exit = ["tun0", "tun1"]
bridge = "vpn"
table = 4711
enrolled_only = true
allow = [
    "2001:db8:178::/64",
    { net = "192.168.178.50", ports = ["tcp/443", "udp/53"], direction = "out" },
    { net = "192.168.178.0/25", ports = ["tcp/22"], direction = "in" },
]

[jail.second]
subnets = ["172.20.0.0/16"]
exit = "tun0"
"#;

/// What the kernel holds, without names of tables: those are tunjail's own convenience.
fn kernel(lab: &Lab) -> String {
    lab.sh("for family in -4 -6; do ip $family -N rule show; ip $family -N route show table all; done
        nft -s list ruleset")
}

#[rstest]
#[case::plain(JAIL)]
#[case::strict(STRICT_JAIL)]
#[case::rich(RICH_JAIL)]
fn the_lines_of_up_and_down_typed_by_hand_do_the_same(#[case] config: &str) {
    let yard = Yard::new(config);
    let before = yard.lab.settled();
    let clean = kernel(&yard.lab);
    let up = yard.lab.tunjail_ok(&["up", "--dry-run"]);
    before.assert_same(&yard.lab.snapshot(), "up --dry-run");
    yard.lab.tunjail_ok(&["up"]);
    let (raised, wall) = (yard.lab.snapshot(), kernel(&yard.lab));
    assert_ne!(wall, clean, "up did nothing");
    assert_eq!(yard.lab.tunjail_ok(&["up", "--dry-run"]), "", "a wall that stands needs nothing");
    let down = yard.lab.tunjail_ok(&["down", "--dry-run"]);
    raised.assert_same(&yard.lab.snapshot(), "down --dry-run");
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "down");
    assert_eq!(yard.lab.tunjail_ok(&["down", "--dry-run"]), "", "nothing stands, so nothing has to go");

    yard.lab.sh(&up);
    assert_eq!(kernel(&yard.lab), wall, "the lines of up make another wall than up:\n{up}");
    yard.lab.sh(&down);
    assert_eq!(kernel(&yard.lab), clean, "the lines of down leave something:\n{down}");
}

#[rstest]
#[case::first_member(false)]
#[case::into_a_standing_wall(true)]
fn the_lines_of_the_hook_typed_by_hand_do_the_same(#[case] standing: bool) {
    let yard = Yard::new(&format!("{JAIL}dns = [\"192.0.2.53\"]\n"));
    let mut stand = yard.stand("m1", 2);
    if standing {
        yard.lab.tunjail_ok(&["up"]);
    }
    let state = created("c1", stand.pid);
    let before = yard.lab.settled();
    let clean = kernel(&yard.lab);
    let enter = yard.lab.create_runtime(&state, &["--jail", "vpn", "--dry-run"]);
    assert!(enter.code == 0 && enter.stderr.is_empty() && enter.stdout.contains("nsenter"), "{enter:?}");
    assert_eq!(standing, !enter.stdout.contains("rule add"), "{enter:?}");
    before.assert_same(&yard.lab.snapshot(), "hook create-runtime --dry-run");
    assert_eq!(stand.netns.sh("nft list ruleset"), "", "the dry run locked the namespace");

    yard.hold("c1", &stand);
    let inside = "nft -s list ruleset; ip route show table local 127.0.0.11";
    let (held, lock) = (kernel(&yard.lab), stand.netns.sh(inside));
    let expected = ["policy drop", "172.18.0.2", "dnat ip to 192.0.2.53", "local 127.0.0.11 dev lo"];
    assert!(expected.iter().all(|part| lock.contains(part)), "{lock}");
    let snapshot = yard.lab.snapshot();
    let leave = yard.lab.poststop(&stopped("c1"), &["--dry-run"]);
    assert!(leave.code == 0 && leave.stderr.is_empty(), "{leave:?}");
    snapshot.assert_same(&yard.lab.snapshot(), "hook poststop --dry-run");
    stand.die();
    yard.leave("c1");
    before.assert_same(&yard.lab.snapshot(), "its poststop");

    // A process of the same pid in the same namespace: the lines name it.
    stand.netns.sh("nft flush ruleset; ip route del table local 127.0.0.11");
    let stand = crate::yard::Stand::new(&yard.lab, stand.netns);
    let from = format!("/proc/{}/ns/net", state_pid(&state));
    yard.lab.sh(&enter.stdout.replace(&from, &format!("/proc/{}/ns/net", stand.pid)));
    assert_eq!(kernel(&yard.lab), held, "the lines of the hook do something else:\n{}", enter.stdout);
    assert_eq!(stand.netns.sh(inside), lock, "the lines of the hook make another lock");
    yard.lab.sh(&leave.stdout);
    assert_eq!(kernel(&yard.lab), clean, "the lines of poststop leave something:\n{}", leave.stdout);
}

fn state_pid(state: &str) -> u64 {
    let state: serde_json::Value = serde_json::from_str(state).expect("a state");
    state["pid"].as_u64().expect("a pid")
}

#[test]
fn the_lines_of_exit_up_typed_by_hand_do_the_same() {
    let yard = Yard::without_exit(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    yard.exit_comes();
    let before = yard.lab.settled();
    let closed = kernel(&yard.lab);
    let follow = yard.lab.tunjail_ok(&["exit", "up", "--dev", "tun0", "--dry-run"]);
    before.assert_same(&yard.lab.snapshot(), "exit up --dry-run");
    yard.lab.sh(&follow);
    let by_hand = kernel(&yard.lab);
    assert_ne!(by_hand, closed, "the exit changes nothing");
    assert_eq!(yard.lab.tunjail_ok(&["exit", "up", "--dev", "tun0", "--dry-run"]), "");
    yard.lab.sh(&follow.replace(" add ", " del "));
    assert_eq!(kernel(&yard.lab), closed);
    yard.lab.tunjail_ok(&["exit", "up", "--dev", "tun0"]);
    assert_eq!(kernel(&yard.lab), by_hand, "exit up does something else than its lines:\n{follow}");
}

#[test]
fn commands_that_show_change_nothing() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let look = |what: &str| {
        let before = yard.lab.settled();
        for args in
            [&["status"][..], &["status", "--json"], &["check"], &["check", "--json"], &["--help"], &["--version"]]
        {
            let out = Cmd::new(crate::product::TUNJAIL, args).out();
            assert!(!out.stdout.is_empty(), "{args:?} shows nothing: {out:?}");
        }
        before.assert_same(&yard.lab.snapshot(), what);
    };
    look("looking at nothing");
    yard.hold("c1", &stand);
    look("looking at a member");
}
