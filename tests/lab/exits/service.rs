//! `tunjail watch` as a service: what it is told and tells, what it does not do, and that it goes on.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{PATIENCE, Watch};
use crate::product::{JAIL, STRICT_JAIL, TUNJAIL};
use crate::rootfs;
use crate::run::{Cmd, Job, wait_until};
use crate::world::Lab;
use crate::yard::Yard;

/// Another jail beside that of the yard. Its bridge is not there yet.
const OTHER: &str = "[jail.other]\nsubnets = [\"172.19.0.0/16\"]\nexit = \"tun0\"\ntable = 100\n";

fn wall(lab: &Lab, jail: &str) -> String {
    let status: Value = serde_json::from_str(&lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    let jails = status["jails"].as_array().expect("jails");
    let found = jails.iter().find(|found| found["jail"] == jail).expect("the jail");
    found["wall"].as_str().expect("the wall's state").to_owned()
}

#[track_caller]
fn comes_to_stand(lab: &Lab, jail: &str) {
    wait_until(&format!("the wall of {jail}"), PATIENCE, || wall(lab, jail) == "up");
}

/// How often it has waited so far: each look ends in one.
fn waits(lab: &Lab, job: &Job) -> u64 {
    let status = lab.sh(&format!("cat /proc/{}/status", lab.pid_inside(job)));
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a figure");
    line.trim().parse().expect("a number")
}

/// Waits until it has done nothing for longer than it takes between two looks.
#[track_caller]
fn comes_to_rest(lab: &Lab, job: &Job) {
    let deadline = Instant::now() + PATIENCE;
    let (mut before, mut since) = (waits(lab, job), Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "it does not come to rest: it wakes itself");
        std::thread::sleep(Duration::from_millis(20));
        let now = waits(lab, job);
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
}

#[test]
fn it_raises_no_wall_and_leaves_those_that_stand() {
    let yard = Yard::without_exit(JAIL);
    let before = yard.lab.settled();
    let watch = Watch::start(&yard.lab);
    yard.exit_comes();
    comes_to_rest(&yard.lab, &watch.job);
    assert_eq!(wall(&yard.lab, "vpn"), "down");
    yard.lab.sh("ip link del tun0");

    yard.lab.tunjail_ok(&["up"]);
    yard.exit_comes();
    comes_to_stand(&yard.lab, "vpn");
    assert!(yard.lab.sh("ip route show table tunjail_vpn").contains("default dev tun0"));
    comes_to_rest(&yard.lab, &watch.job);
    let standing = yard.lab.settled();
    watch.end();
    let now = yard.lab.settled();
    for part in
        ["ip rule", "ip -6 rule", "ip route, all tables", "ip -6 route, all tables", "nft ruleset", "/run/tunjail"]
    {
        assert_eq!(standing.part(part), now.part(part), "the end of tunjail watch changed it");
    }

    // It was taken down: that is no damage.
    let watch = Watch::start(&yard.lab);
    yard.lab.tunjail_ok(&["down"]);
    yard.lab.sh("ip link del tun0");
    comes_to_rest(&yard.lab, &watch.job);
    assert_eq!(watch.told("did"), Vec::<Value>::new());
    watch.end();
    before.assert_same(&yard.lab.settled(), "tunjail watch, with a wall raised and taken down");
}

/// One jail cannot be mended: that is said once, the other one is mended all the same, and it is tried again.
#[test]
fn what_cannot_be_mended_is_said_once_and_holds_nobody_up() {
    let yard = Yard::new(&format!("{JAIL}{OTHER}"));
    let lab = &yard.lab;
    lab.tunjail_ok(&["up"]);
    let watch = Watch::start(lab);
    lab.sh("ip route add 198.51.100.0/24 dev eth0 table 100");
    watch.wait_told("failed");
    comes_to_rest(lab, &watch.job);
    lab.sh("nft flush ruleset; ip rule flush; ip rule add pref 32766 lookup main");
    comes_to_stand(lab, "vpn");
    assert_ne!(wall(lab, "other"), "up");
    // Tried again without an event, and not said again.
    let before = waits(lab, &watch.job);
    wait_until("another try", PATIENCE, || waits(lab, &watch.job) > before + 1);
    let mut failed = watch.told("failed");
    failed.retain(|line| line["jail"] == "other");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["why"].to_string().contains("table 100"), "{failed:?}");
    lab.sh("ip route del 198.51.100.0/24 dev eth0 table 100");
    comes_to_stand(lab, "other");
    watch.wait_told("recovered");
    watch.end();
}

/// So much happens at once that the kernel loses some of it: also what is to be mended.
#[test]
fn what_the_kernel_could_not_tell_is_seen_all_the_same() {
    let yard = Yard::new(JAIL);
    let lab = &yard.lab;
    lab.tunjail_ok(&["up"]);
    let watch = Watch::start(lab);
    let lost = || -> u64 {
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        let table = lab.sh("cat /proc/net/netlink");
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields
            .filter(|fields| fields.get(1) == Some(&"0"))
            .filter_map(|fields| fields.get(8)?.parse::<u64>().ok())
            .sum()
    };
    let before = lost();
    watch.job.signal(Signal::SIGSTOP);
    let addresses = |verb: &str| -> String {
        (0..2000).map(|n| format!("addr {verb} 198.18.{}.{}/32 dev {}\n", n / 250, n % 250, "lo")).collect()
    };
    Cmd::new("ip", &["-batch", "-"]).stdin(addresses("add")).ok();
    lab.sh("ip rule del pref 700 from 172.18.0.0/16");
    assert!(lost() > before, "nothing was lost");
    watch.job.signal(Signal::SIGCONT);
    comes_to_stand(lab, "vpn");
    // And it listens on.
    lab.sh("ip rule del pref 700 from 172.18.0.0/16");
    comes_to_stand(lab, "vpn");
    watch.end();
}

#[test]
fn the_configuration_is_read_again_and_a_wrong_one_is_not_taken() {
    let yard = Yard::new(STRICT_JAIL);
    let lab = &yard.lab;
    lab.tunjail_ok(&["up"]);
    let watch = Watch::start(lab);
    let allows = || lab.sh("ip route show table tunjail_vpn").contains("throw 192.168.178.0/24");

    lab.configure("[jail.vpn]\nsubnets = [\"172.18.0.0/16\"]\nexit = \"lo\"\n");
    watch.job.signal(Signal::SIGHUP);
    watch.wait_told("not-reloaded");
    assert!(watch.told("not-reloaded")[0]["why"].to_string().contains("tunjail.toml:3"));
    lab.sh("nft delete table inet tunjail_vpn");
    comes_to_stand_with(lab, &watch);

    lab.configure(JAIL);
    watch.job.signal(Signal::SIGHUP);
    wait_until("the new configuration", PATIENCE, allows);

    // Somebody raises the wall by an edited file: that is not turned back.
    lab.configure(STRICT_JAIL);
    lab.tunjail_ok(&["up"]);
    comes_to_rest(lab, &watch.job);
    assert!(!allows() && wall(lab, "vpn") == "up");

    // A wall that left the configuration is left alone, and that is said.
    lab.configure(OTHER);
    watch.job.signal(Signal::SIGHUP);
    watch.wait_told("unconfigured");
    assert!(lab.sh("ip rule").contains("172.18.0.0/16"));
    watch.end();
}

/// While the file is wrong, `status` cannot say how the wall is.
#[track_caller]
fn comes_to_stand_with(lab: &Lab, watch: &Watch) {
    wait_until("the table", PATIENCE, || lab.sh("nft list tables").contains("inet tunjail_vpn"));
    comes_to_rest(lab, &watch.job);
}

/// Killed before each of its calls that change something while it mends everything: the next one finds its way.
#[test]
fn killed_at_any_moment_the_next_one_finds_its_way() {
    let yard = Yard::new(JAIL);
    let lab = &yard.lab;
    lab.tunjail_ok(&["up"]);
    let stand = yard.stand("m1", 2);
    yard.hold("m1", &stand);
    let standing = lab.settled();
    let mut nth = 0;
    loop {
        nth += 1;
        assert!(nth < 200, "it makes more calls than a mend takes");
        lab.sh("nft delete table inet tunjail_vpn; ip rule del pref 700 from 172.18.0.0/16
            ip route flush table tunjail_vpn");
        let probe = rootfs::probe().to_string_lossy().into_owned();
        let mut killed = Cmd::new(probe, &["kill-at", &nth.to_string(), TUNJAIL, "watch", "--json"]).spawn();
        wait_until("its end, or that it is ready", PATIENCE, || {
            killed.ended() || killed.stdout().contains("\"ready\"")
        });
        let is_over = !killed.ended();
        killed.end();
        // With what its unit leaves it of root's powers.
        let powers = "--bounding-set=-all,+net_admin,+sys_nice";
        let next = Watch { job: Cmd::new("setpriv", &[powers, TUNJAIL, "watch", "--json"]).spawn() };
        next.wait_told("ready");
        assert_eq!(wall(lab, "vpn"), "up", "killed before call {nth}");
        assert!(lab.has_element("inet", "members4", "172.18.0.2"), "killed before call {nth}");
        next.end();
        if is_over {
            break;
        }
    }
    assert!(nth > 10, "it makes hardly a call that changes something: {nth}");
    println!("crash: watch was killed before each of its {} calls", nth - 1);
    // In the same order, or none: of rules with one preference it says nothing.
    let now = lab.settled();
    for part in ["ip rule", "ip -6 rule", "nft ruleset"] {
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(lines(standing.part(part)), lines(now.part(part)), "{part}");
    }
}

/// What systemd asks of a service, and what it shows of one.
#[test]
fn systemd_is_told() {
    let yard = Yard::new(JAIL);
    yard.lab.tunjail_ok(&["up"]);
    let path = yard.lab.dir("notify").join("socket");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_nonblocking(true).expect("non-blocking");
    let job = yard
        .lab
        .tools()
        .cmd(TUNJAIL, &["watch"])
        .env("NOTIFY_SOCKET", &path.to_string_lossy())
        .env("WATCHDOG_USEC", "300000")
        .spawn();
    let mut heard = String::new();
    let mut hear = |what: &str| {
        wait_until(&format!("systemd to be told {what}"), PATIENCE, || {
            let mut buffer = [0; 512];
            while let Ok(length) = socket.recv(&mut buffer) {
                heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            heard.contains(what)
        });
        // What came behind it is for the next question.
        heard = heard.split_off(heard.find(what).expect("it was heard") + what.len());
    };
    hear("READY=1\n");
    for _ in 0..3 {
        hear("WATCHDOG=1\n");
    }
    yard.lab.sh("ip link del tun0");
    hear("STATUS=vpn: closed\n");
    yard.exit_comes();
    hear("STATUS=vpn by tun0\n");
    job.signal(Signal::SIGHUP);
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1\n");
    job.signal(Signal::SIGINT);
    hear("STOPPING=1\n");
    let out = job.finish(PATIENCE);
    assert_eq!((out.code, out.stdout.as_str()), (0, ""));
    for line in [
        "jail vpn: closed: no exit is there",
        "jail vpn: ip -4 route add default dev tun0 metric 100",
        "jail vpn: leaves by tun0",
    ] {
        assert!(out.stderr.contains(line), "{line:?} is not in {}", out.stderr);
    }
}
