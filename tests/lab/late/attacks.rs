//! Late containers that lie, siblings that lie for them, and others who wipe what was said about them.

use std::time::{Duration, Instant};

use super::{Unstarted, attendants, nobody_attends};
use crate::product::{JAIL, TUNJAIL};
use crate::run::{Cmd, wait_until};
use crate::world::{Lab, Netns, SERVICE4};
use crate::yard::{Lock, Stand, Yard, address, created, inode, unplug};

const SOON: Duration = Duration::from_secs(5);

/// A second port into the namespace, which is in no bridge.
fn second_port(yard: &Yard, name: &str) {
    yard.lab.sh(&format!(
        "ip link add veth-second type veth peer name eth1 netns {name}; ip link set veth-second up
        ip -n {name} link set eth1 up"
    ));
}

fn is_shut(lab: &Lab, port: &str) -> bool {
    lab.has_element("inet", "ports", port)
}

#[test]
fn a_wall_that_is_written_anew_goes_on_shutting_the_refused() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    second_port(&yard, "m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth1");
    yard.wait_state("c1", "refused");
    wait_until("its ports to be shut", SOON, || is_shut(&yard.lab, "veth-second"));
    late.begin();
    nobody_attends();
    yard.lab.sh("nft flush ruleset");
    assert!(!is_shut(&yard.lab, "veth-second"), "the control");
    yard.lab.tunjail_ok(&["up"]);
    assert!(is_shut(&yard.lab, "veth-second"), "the second port is open");
    assert!(is_shut(&yard.lab, "veth-m1"), "the first port is open");
    late.die();
    yard.leave("c1");
    unplug(&late.netns);
}

/// A port that the engine takes away from a refused container may be another's next.
#[test]
fn a_port_that_went_to_another_is_not_shut_any_more() {
    let yard = Yard::new(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    let mut late = yard.late("m1");
    let _other = Netns::add("m9");
    second_port(&yard, "m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    yard.wait_state("c1", "refused");
    wait_until("its ports to be shut", SOON, || is_shut(&yard.lab, "veth-second"));
    late.netns.sh("ip link set eth1 netns m9");
    wait_until("the port of another to be open", SOON, || !is_shut(&yard.lab, "veth-second"));
    late.die();
    yard.leave("c1");
}

/// The helper died, or /run was full, between the opened lock and the record that says so.
#[test]
fn a_refusal_closes_a_lock_that_is_open_without_a_record() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    address(&late.netns, 2);
    yard.wait_state("c1", "held");
    let [pid] = attendants()[..] else { panic!("one helper") };
    yard.lab.sh(&format!("kill -9 {pid}"));
    nobody_attends();
    let record = format!("/run/tunjail/late/{}.json", inode(&late.netns));
    let text = std::fs::read_to_string(&record).expect("the record");
    let before = text.replace(r#""verdict":"admitted""#, r#""verdict":"waiting","why":null"#);
    assert_ne!(before, text);
    std::fs::write(&record, before).expect("the record");
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    assert_eq!(late.netns.lock(), Lock::Open);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", late.pid)).expect("its stat");
    let start = stat[stat.rfind(')').expect("a name")..].split_whitespace().nth(20).expect("its start").to_owned();
    let helper = Cmd::new(TUNJAIL, &["attend", "c1", &late.pid.to_string(), &start]).spawn();
    yard.wait_state("c1", "refused");
    assert_eq!(late.netns.lock(), Lock::Closed);
    late.die();
    yard.leave("c1");
    helper.finish(SOON);
}

#[test]
fn a_sibling_does_not_vouch_for_a_liar() {
    let yard = Yard::new(JAIL);
    let mut liar = yard.late("m1");
    yard.lock_late("c1", &liar, &["--jail", "vpn"]);
    liar.begin();
    address(&liar.netns, 2);
    yard.wait_state("c1", "refused");
    nobody_attends();
    let mut sibling = Unstarted::new(&yard.lab, Netns::open("m1"));
    let out = yard.lab.create_runtime(&created("c2", sibling.pid), &["--jail", "vpn"]);
    crate::yard::assert_refused(&out, &["c1", "started before its address was confirmed"]);
    assert_eq!(liar.netns.lock(), Lock::Closed);
    assert!(!yard.lab.has_element("inet", "members4", "172.18.0.2"));
    liar.die();
    sibling.die();
    yard.leave("c1");
}

/// The same where the address came early: a member takes a neighbour's address, and waits for somebody to join it.
#[test]
fn a_member_does_not_get_an_address_by_a_sibling() {
    let yard = Yard::new(JAIL);
    let mut liar = yard.stand("m1", 2);
    yard.hold("c1", &liar);
    let mut sibling = Stand::new(&yard.lab, Netns::open("m1"));
    yard.hold("c2", &sibling);
    liar.netns.sh("ip addr add 172.18.0.99/16 dev eth0");
    let mut third = Stand::new(&yard.lab, Netns::open("m1"));
    let out = yard.enter("c3", &third);
    crate::yard::assert_refused(&out, &["172.18.0.99", "after container c1 was started"]);
    assert!(!yard.lab.has_element("inet", "members4", "172.18.0.99"));
    assert!(yard.lab.has_element("inet", "members4", "172.18.0.2"), "the others stay held");
    assert_eq!(liar.netns.lets_go("172.18.0.2", SERVICE4), 3);
    for stand in [&mut liar, &mut sibling, &mut third] {
        stand.die();
    }
    yard.leave("c1");
    yard.leave("c2");
}

/// Of two that wait together one is started, and says an address; the other one waits still.
#[test]
fn a_started_sibling_does_not_speak_for_one_that_waits() {
    let yard = Yard::new(JAIL);
    let mut first = yard.late("m1");
    yard.lock_late("c1", &first, &["--jail", "vpn"]);
    let mut liar = Unstarted::new(&yard.lab, Netns::open("m1"));
    yard.lock_late("c2", &liar, &["--jail", "vpn"]);
    liar.begin();
    address(&liar.netns, 2);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(first.netns.lock(), Lock::Closed);
        assert!(!yard.lab.has_element("inet", "members4", "172.18.0.2"));
    }
    first.begin();
    yard.wait_state("c1", "refused");
    assert_eq!(first.netns.lock(), Lock::Closed);
    first.die();
    liar.die();
    yard.leave("c1");
    yard.leave("c2");
    nobody_attends();
}

/// `#!/proc/self/exe` as a container's program executes the runtime once more, with the image's libraries.
#[test]
fn a_program_that_is_the_runtime_itself_has_started_too() {
    let yard = Yard::new(JAIL);
    let mut liar = Unstarted::that_becomes_the_runtime(&yard.lab, yard.bridge.plug_bare("m1"));
    yard.lock_late("c1", &liar, &["--jail", "vpn"]);
    liar.begin();
    address(&liar.netns, 2);
    let why = yard.wait_state("c1", "refused");
    assert!(why.contains("started before its address was confirmed"), "{why}");
    assert_eq!(liar.netns.lock(), Lock::Closed);
    liar.die();
    yard.leave("c1");
    nobody_attends();
}

/// A hook asks for the processor before others. What it leaves behind for minutes must not.
#[test]
fn the_helper_is_in_no_hurry() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    let [pid] = attendants()[..] else { panic!("one helper") };
    let nice = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
        stat[stat.rfind(')').expect("a name")..].split_whitespace().nth(17).expect("its nice value").to_owned()
    };
    wait_until("the helper to be like everybody", SOON, || nice() == "0");
    late.die();
    yard.leave("c1");
    nobody_attends();
}

/// A started container without an address changes its links as fast as it can.
#[test]
fn a_flood_of_changes_does_not_keep_the_helper_busy() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    let [pid] = attendants()[..] else { panic!("one helper") };
    late.begin();
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name")..].split_whitespace().collect();
        fields[12].parse::<u64>().expect("utime") + fields[13].parse::<u64>().expect("stime")
    };
    let flood = "i=0; while [ $i -lt 2000000 ]; do echo 'link set eth0 mtu 1400'; echo 'link set eth0 mtu 1300'; i=$((i+1)); done | ip -force -batch -";
    let mut flood = Cmd::new("/bin/sh", &["-c", flood]).within(&late.netns).spawn();
    let (begun, before) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_secs(2));
    let (took, used) = (begun.elapsed(), ticks() - before);
    assert!(!flood.ended(), "the flood ended too early");
    println!("late: {used} ticks of 10 ms in {took:?} under a flood");
    assert!(used <= 30, "{used} ticks in {took:?}");
    flood.end();
    late.die();
    yard.leave("c1");
    nobody_attends();
}

/// An engine may start its hooks with any signal mask.
#[test]
fn a_blocked_alarm_does_not_make_the_wait_for_the_lock_endless() {
    let yard = Yard::new(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    let lock = std::fs::File::open("/run/tunjail/lock").expect("the lock");
    lock.lock().expect("the lock");
    let out = Cmd::new("env", &["--block-signal=ALRM", TUNJAIL, "sweep"]).spawn().finish(Duration::from_secs(12));
    assert!(out.code != 0 && out.stderr.contains("another tunjail holds"), "{out:?}");
}
