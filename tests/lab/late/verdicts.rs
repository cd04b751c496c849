//! Late containers that cannot be held, or are nobody's.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::{Unstarted, attendants, nobody_attends};
use crate::product::JAIL;
use crate::run::wait_until;
use crate::world::{Netns, SERVICE4};
use crate::yard::{Lock, Yard, address, created, unplug};

const SOON: Duration = Duration::from_secs(5);

/// A second network next to the bridge `vpn`, with a port into the namespace.
fn second_network(yard: &Yard, name: &str) {
    yard.lab.sh(&format!(
        "ip link add other type bridge; ip addr add 172.30.0.1/16 dev other; ip link set other up
        ip link add veth-second type veth peer name eth1 netns {name}; ip link set veth-second master other up"
    ));
}

/// Frames that arrive at a host interface, by the kernel's own count.
fn received(yard: &Yard, device: &str) -> u64 {
    let text = yard.lab.sh(&format!("busybox cat /sys/class/net/{device}/statistics/rx_packets"));
    text.trim().parse().expect("a number")
}

#[test]
fn a_wrong_address_leaves_the_lock_closed_and_status_says_why() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    let why = yard.wait_state("c1", "refused");
    assert!(why.contains("10.99.0.2") && why.contains("outside jail vpn's subnets"), "{why}");
    assert_eq!(late.netns.lock(), Lock::Closed);
    // An engine that corrects itself before the start is heard.
    late.netns.sh("ip addr flush dev eth0 scope global");
    address(&late.netns, 2);
    yard.wait_state("c1", "held");
    // Before the start, what was admitted can still be refused.
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    yard.wait_state("c1", "refused");
    assert_eq!(late.netns.lock(), Lock::Closed);
    assert_eq!(late.netns.lets_go("172.18.0.2", SERVICE4), 0);
    assert!(!yard.lab.has_element("inet", "members4", "172.18.0.2"), "no member any more");
    late.begin();
    nobody_attends();
    let text = yard.lab.tunjail_ok(&["status"]);
    assert!(text.contains("refused") && text.contains("locked: interface eth0 of the container has address"), "{text}");
    late.die();
    yard.leave("c1");
    unplug(&late.netns);
    before.assert_same(&yard.lab.settled(), "a refused container");
}

/// Nobody reads the helper's stderr: journald and every syslogd listen on /dev/log.
#[test]
fn the_systems_log_says_why() {
    let yard = Yard::new(JAIL);
    // A /dev of the lab's own, with what is used of the machine's.
    yard.lab.sh("mkdir /run/lab/dev; mount -t tmpfs dev /run/lab/dev
        for node in null zero full random urandom net; do
            if [ -d /dev/$node ]; then mkdir /run/lab/dev/$node; else touch /run/lab/dev/$node; fi
            mount --rbind /dev/$node /run/lab/dev/$node
        done
        mount --rbind /run/lab/dev /dev");
    let log = UnixDatagram::bind("/dev/log").expect("the log's socket");
    log.set_read_timeout(Some(SOON)).expect("a time-out");
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    yard.wait_state("c1", "refused");
    late.begin();
    let mut message = [0; 1024];
    let length = log.recv(&mut message).expect("a message");
    let message = String::from_utf8_lossy(&message[..length]);
    // RFC 3164: facility daemon (3), severity error (3).
    assert!(message.starts_with("<27>") && message.contains("tunjail["), "{message}");
    assert!(message.contains("container c1 is locked: interface eth0") && message.contains("10.99.0.2"), "{message}");
    nobody_attends();
    log.set_nonblocking(true).expect("no waiting");
    assert!(log.recv(&mut [0; 1024]).is_err(), "it is said once");
    late.die();
    yard.leave("c1");
}

/// The lock does not see raw frames, and CAP_NET_ADMIN can remove it: the host shuts the ports as well.
#[test]
fn a_second_network_is_shut_on_the_host_too() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    second_network(&yard, "m1");
    late.netns.sh("ip link set eth1 up");
    let before = yard.lab.settled();
    let raw = |times: &str| {
        let frame = ["frame", "eth1", "02:aa:00:00:00:01", "ff:ff:ff:ff:ff:ff", "172.30.0.2", SERVICE4, "9", times];
        late.netns.probe(&frame);
    };
    let arrived = |probe: &dyn Fn()| {
        yard.lab.sh("nft 'add table inet watch; add counter inet watch c; add chain inet watch in { type filter hook prerouting priority -400; }; add rule inet watch in iifname other ip saddr 172.30.0.2 counter name c'");
        probe();
        let text = yard.lab.sh("nft list counter inet watch c; nft delete table inet watch");
        text.split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok())
            .expect("a count")
    };
    assert_eq!(arrived(&|| raw("5")), 5, "the control: raw frames arrive by the second network");

    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    late.netns.sh("ip addr add 172.30.0.2/16 dev eth1");
    address(&late.netns, 2);
    let why = yard.wait_state("c1", "refused");
    assert!(why.contains("172.30.0.2") && why.contains("attach the container to the jail's network alone"), "{why}");
    assert_eq!(late.netns.lock(), Lock::Closed);
    assert_eq!(arrived(&|| raw("5")), 0, "raw frames pass the lock; the port is shut");
    late.netns.sh("nft delete table inet tunjail");
    assert_eq!(arrived(&|| raw("5")), 0);
    assert!(received(&yard, "veth-second") > 0, "the frames did come out of the container");

    late.netns.sh("ip addr flush dev eth1");
    late.die();
    yard.leave("c1");
    nobody_attends();
    late.netns.sh("ip addr flush dev eth0 scope global");
    before.assert_same(&yard.lab.settled(), "its end");
}

/// With CAP_NET_ADMIN a process could have taken a neighbour's address by the time that somebody looks.
#[test]
fn what_a_started_process_shows_is_believed_only_if_it_cannot_lie() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut liar = yard.late("m1");
    yard.lock_late("c1", &liar, &["--jail", "vpn"]);
    liar.begin();
    address(&liar.netns, 2);
    let why = yard.wait_state("c1", "refused");
    assert!(why.contains("started before its address was confirmed") && why.contains("tunjail runtime"), "{why}");
    assert_eq!(liar.netns.lock(), Lock::Closed);
    assert!(!yard.lab.has_element("inet", "members4", "172.18.0.2"));
    liar.die();
    yard.leave("c1");
    unplug(&liar.netns);

    let mut honest = Unstarted::without_net_admin(&yard.lab, yard.bridge.plug_bare("m2"));
    yard.lock_late("c2", &honest, &["--jail", "vpn"]);
    honest.begin();
    address(&honest.netns, 3);
    yard.wait_state("c2", "held");
    assert_eq!(honest.netns.lock(), Lock::Open);
    nobody_attends();
    honest.die();
    yard.leave("c2");
    unplug(&honest.netns);
    before.assert_same(&yard.lab.settled(), "both");
}

/// No jail was named: the address decides, and until it is there everything is closed.
#[test]
fn without_a_name_the_address_decides() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut ours = yard.late("m1");
    yard.lock_late("c1", &ours, &[]);
    yard.wait_state("c1", "pending");
    let text = yard.lab.tunjail_ok(&["status"]);
    assert!(text.contains("no jail yet"), "{text}");
    assert!(yard.lab.snapshot().part("nft ruleset").contains("table inet tunjail_vpn"), "it may be any jail's");
    address(&ours.netns, 2);
    yard.wait_state("c1", "held");
    ours.begin();
    nobody_attends();
    ours.die();
    yard.leave("c1");
    unplug(&ours.netns);

    let mut others = yard.late("m2");
    yard.lock_late("c2", &others, &[]);
    others.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    wait_until("the lock to go", SOON, || others.netns.lock() == Lock::Absent);
    others.begin();
    nobody_attends();
    assert_eq!(yard.state_of("c2"), None, "nobody's");
    wait_until("the wall to go", SOON, || yard.lab.snapshot().part("/run/tunjail") == "absent\n");
    others.die();
    unplug(&others.netns);
    before.assert_same(&yard.lab.settled(), "one of ours and one of nobody's");
}

/// First somebody else's network, then the jail's: not alone on the jail's network, so refused.
#[test]
fn an_address_of_the_jail_beside_a_foreign_one_is_refused() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &[]);
    late.netns.sh("ip addr add 10.99.0.2/24 dev eth0");
    wait_until("the lock to go", SOON, || late.netns.lock() == Lock::Absent);
    address(&late.netns, 2);
    let why = yard.wait_state("c1", "refused");
    assert!(why.contains("10.99.0.2"), "{why}");
    assert_eq!(late.netns.lock(), Lock::Closed);
    late.die();
    yard.leave("c1");
}

#[test]
fn no_network_at_all_starts_and_stays_locked() {
    let yard = Yard::new(JAIL);
    let mut none = Unstarted::new(&yard.lab, Netns::add("m1"));
    yard.lock_late("c1", &none, &["--jail", "vpn"]);
    none.begin();
    // A network that comes later is no way out.
    yard.bridge.port(&none.netns);
    address(&none.netns, 2);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        assert_eq!(none.netns.lets_go("172.18.0.2", SERVICE4), 0);
    }
    none.die();
    yard.leave("c1");
    nobody_attends();
}

#[test]
fn what_can_never_be_held_is_refused_before_it_has_an_address() {
    let yard = Yard::new(JAIL);
    let mut late = Unstarted::new(&yard.lab, Netns::add("m1"));
    yard.lab.sh("ip link add link eth0 name x0 type macvlan; ip link set x0 netns m1");
    let before = yard.lab.settled();
    let out = yard.lab.create_runtime(&created("c1", late.pid), &["--jail", "vpn"]);
    crate::yard::assert_refused(&out, &["interface x0", "is macvlan", "use a bridge network"]);
    before.assert_same(&yard.lab.snapshot(), "a refusal");
    assert!(attendants().is_empty());
    late.die();
}

/// A configuration that breaks while it waits frees nobody.
#[test]
fn a_configuration_that_breaks_meanwhile_opens_nothing() {
    let yard = Yard::new(JAIL);
    let mut late = yard.late("m1");
    yard.lock_late("c1", &late, &["--jail", "vpn"]);
    yard.lab.configure("[jail.vpn]\nsubnets = 7\n");
    address(&late.netns, 2);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(late.netns.lock(), Lock::Closed);
    }
    yard.lab.configure(JAIL);
    yard.wait_state("c1", "held");
    late.die();
    yard.leave("c1");
    nobody_attends();
}
