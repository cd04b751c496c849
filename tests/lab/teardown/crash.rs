//! Promise P8, "crash at any instruction": tunjail is killed before each of its calls that change something, one after
//! the other. Whatever it had done by then, nothing is open behind it, and the next call, or `tunjail down`, mends it.

use serde_json::Value;

use crate::product::{JAIL, TUNJAIL};
use crate::rootfs;
use crate::run::{Cmd, Out};
use crate::snapshot::Snapshot;
use crate::world::SERVICE4;
use crate::yard::{Lock, Stand, Yard, asking, created, stopped};

/// More calls than any command makes: beyond it something loops.
const MANY: u64 = 200;

/// `tunjail ARGS`, killed before its `nth` call. What became of it, and how many calls it would have made if none.
pub fn killed(nth: u64, args: &[&str], stdin: &str) -> (Out, bool) {
    let probe = rootfs::probe().to_string_lossy().into_owned();
    let out = Cmd::new(probe, &[&["kill-at", &nth.to_string(), TUNJAIL], args].concat()).stdin(stdin).out();
    let line: Value = out.json();
    let status = line["status"].as_i64().expect("a status");
    assert!(status == 0 || status == 128 + 9, "neither killed nor well: {out:?}");
    (out, status != 0)
}

/// Calls `case` with 1, 2, 3, and so on, until it says that its command came to its own end.
pub fn at_every_call(what: &str, mut case: impl FnMut(u64) -> bool) {
    let last = (1..MANY).find(|nth| !case(*nth)).expect("an end");
    assert!(last > 5, "{what} makes hardly a call that changes something: {last}");
    println!("crash: {what} was killed before each of its {} calls", last - 1);
}

/// A host on which nothing stands, and what it must be like again.
fn yard() -> (Yard, Snapshot) {
    let yard = Yard::new(&format!("{JAIL}dns = [\"192.0.2.53\"]\n"));
    let before = yard.lab.settled();
    (yard, before)
}

/// The namespace of a container that was not started: nothing, or a closed lock. Where the lock is open already, the
/// wall has to stand and to know the member.
fn assert_held_or_closed(yard: &Yard, stand: &Stand, nth: u64) {
    match stand.netns.lock() {
        Lock::Absent => {}
        Lock::Closed => assert_eq!(stand.netns.lets_go("172.18.0.2", SERVICE4), 0, "a closed lock lets go, call {nth}"),
        Lock::Open => {
            let now = yard.lab.snapshot();
            super::assert_stands(&now);
            assert!(yard.lab.has_element("inet", "members4", "172.18.0.2"), "an open lock, but no member: call {nth}");
            assert!(yard.lab.has_element("bridge", "own4", "172.18.0.2"), "an open lock, but no guard: call {nth}");
        }
    }
}

#[test]
fn a_killed_hook_leaves_nothing_open_and_down_takes_the_rest_away() {
    let (yard, _) = yard();
    let control = yard.stand("control", 9);
    let before = yard.lab.settled();
    assert_eq!(control.netns.lets_go("172.18.0.9", SERVICE4), 3, "without a lock the probe goes out");
    let mut seen = Vec::new();
    at_every_call("the hook", |nth| {
        let stand = yard.stand("m1", 2);
        let state = asking("c1", stand.pid, "tcp/51413, udp/51413:7");
        let (_, was_killed) = killed(nth, &["hook", "create-runtime", "--jail", "vpn"], &state);
        assert_held_or_closed(&yard, &stand, nth);
        seen.push(stand.netns.lock());
        stand.vanish();
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), &format!("a hook killed before call {nth}, and down"));
        was_killed
    });
    for state in [Lock::Absent, Lock::Closed, Lock::Open] {
        assert!(seen.contains(&state), "no kill met the lock {state:?}: {seen:?}");
    }
}

/// The same for a container without an address: locked, or nobody's yet; never open without a wall.
#[test]
fn a_killed_hook_of_a_late_container_opens_nothing() {
    let (yard, before) = yard();
    let mut seen = Vec::new();
    at_every_call("the hook of a late container", |nth| {
        let mut late = yard.late("m1");
        let state = created("c1", late.pid);
        let (_, was_killed) = killed(nth, &["hook", "create-runtime", "--jail", "vpn"], &state);
        seen.push(late.netns.lock());
        assert_ne!(late.netns.lock(), Lock::Open, "without an address, call {nth}");
        late.die();
        crate::late::nobody_attends();
        crate::yard::unplug(&late.netns);
        yard.lab.sh("ip netns del m1");
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), &format!("a late hook killed before call {nth}, and down"));
        was_killed
    });
    for state in [Lock::Absent, Lock::Closed] {
        assert!(seen.contains(&state), "no kill met the lock {state:?}: {seen:?}");
    }
}

#[test]
fn a_killed_hook_is_mended_by_the_next_one() {
    let (yard, before) = yard();
    at_every_call("the hook", |nth| {
        let mut stand = yard.stand("m1", 2);
        let (_, was_killed) = killed(nth, &["hook", "create-runtime", "--jail", "vpn"], &created("c1", stand.pid));
        yard.hold("c1", &stand);
        assert_eq!(stand.netns.lock(), Lock::Open, "call {nth}");
        assert_held_or_closed(&yard, &stand, nth);
        stand.die();
        yard.leave("c1");
        stand.vanish();
        before.assert_same(&yard.lab.snapshot(), &format!("a hook killed before call {nth}, and the next one"));
        was_killed
    });
}

#[test]
fn a_killed_poststop_is_mended_by_down() {
    let (yard, before) = yard();
    at_every_call("poststop", |nth| {
        let mut stand = yard.stand("m1", 2);
        yard.hold("c1", &stand);
        stand.die();
        let (_, was_killed) = killed(nth, &["hook", "poststop"], &stopped("c1"));
        stand.vanish();
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), &format!("a poststop killed before call {nth}, and down"));
        was_killed
    });
}

/// Of two members, one leaves and its poststop is killed: the other one's wall stands, whatever the call.
#[test]
fn a_killed_poststop_leaves_the_others_held() {
    let (yard, before) = yard();
    at_every_call("poststop", |nth| {
        let [mut stays, mut goes] = [("m1", 2), ("m2", 3)].map(|(name, n)| yard.stand(name, n));
        yard.hold("c1", &stays);
        yard.hold("c2", &goes);
        goes.die();
        let (_, was_killed) = killed(nth, &["hook", "poststop"], &stopped("c2"));
        assert_eq!(stays.netns.lock(), Lock::Open);
        assert_held_or_closed(&yard, &stays, nth);
        goes.vanish();
        stays.die();
        yard.leave("c1");
        stays.vanish();
        before.assert_same(&yard.lab.snapshot(), &format!("a poststop killed before call {nth}, and the last one"));
        was_killed
    });
}

#[test]
fn a_killed_up_is_mended_by_the_next_one_and_a_killed_down_too() {
    let (yard, before) = yard();
    yard.lab.tunjail_ok(&["up"]);
    let raised = yard.lab.snapshot();
    yard.lab.tunjail_ok(&["down"]);
    at_every_call("up", |nth| {
        let (_, was_killed) = killed(nth, &["up"], "");
        yard.lab.tunjail_ok(&["up"]);
        raised.assert_same(&yard.lab.snapshot(), &format!("an up killed before call {nth}, and the next one"));
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), &format!("an up killed before call {nth}, and down"));
        was_killed
    });
    at_every_call("down", |nth| {
        yard.lab.tunjail_ok(&["up"]);
        let (_, was_killed) = killed(nth, &["down"], "");
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), &format!("a down killed before call {nth}, and the next one"));
        was_killed
    });
}
