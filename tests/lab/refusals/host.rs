//! A host that does not let tunjail do its work: no nft, no room for records, a table that is taken.

use std::fs;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rstest::rstest;

use crate::product::{JAIL, STRICT_JAIL, TUNJAIL};
use crate::run::Cmd;
use crate::yard::{Lock, Yard, assert_one_line, assert_refused, created, replace_program, stopped};

/// nft is tested as it lies on the machine: the lab's own calls go by another path.
const NFT: &str = "/usr/sbin/nft";
const LOCK: &str = "/run/tunjail/lock";

/// Where nft lies while it is missing.
fn spare_nft(yard: &Yard) -> String {
    let spare = yard.lab.dir("spare").join("nft").to_string_lossy().into_owned();
    fs::copy(NFT, &spare).expect("a copy of nft");
    spare
}

/// What is in nft's place, and what has to be said about it.
const BROKEN_NFTS: &[(&str, &str)] = &[
    ("", "running /usr/sbin/nft: "),
    ("#!/bin/sh\necho 'nft: no more' >&2; exit 3\n", "nft refused the ruleset: nft: no more (exit status: 3)"),
    ("#!/bin/sh\ncat >/dev/null; echo no; echo why >&2; exit 1\n", "nft refused the ruleset: why (exit status: 1)"),
    ("#!/bin/sh\ncat >/dev/null; printf 'a\\n  b\\n\\nc\\n' >&2; exit 1\n", "nft refused the ruleset: a | b | c (exit"),
    ("#!/bin/sh\nkill -9 $$\n", "nft refused the ruleset: it said nothing (signal: 9 (SIGKILL))"),
    ("#!/bin/sh\ncat >/dev/null\n", "the wall of jail vpn does not hold what was written: nftables table of the wall"),
    ("#!/bin/sh\nSPARE \"$@\"; echo 'too late' >&2; exit 1\n", "nft refused the ruleset: too late"),
    ("#!/bin/sh\nsed '/^table bridge/,$d' | SPARE \"$@\"\n", "nftables table of the guard is not what was loaded"),
];

#[test]
fn an_nft_that_does_not_do_its_work_starts_no_container() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    let spare = spare_nft(&yard);
    for (script, expected) in BROKEN_NFTS {
        replace_program(&yard.lab, NFT, &script.replace("SPARE", &spare));
        let hook = yard.enter("c1", &stand);
        let up = yard.lab.tunjail(&["up"]);
        umount2(NFT, MntFlags::empty()).expect("nft back");
        assert_refused(&hook, &["container c1 was not started", expected]);
        assert_refused(&up, &["jail vpn was not raised", expected]);
        before.assert_same(&yard.lab.snapshot(), &format!("nft as {script:?}"));
        assert_eq!(stand.netns.lock(), Lock::Absent);
    }
    yard.hold("c1", &stand);
}

#[test]
fn without_nft_no_wall_is_raised_and_one_that_stands_still_works() {
    let yard = Yard::new(JAIL);
    let mut stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    // A directory is no program; nothing else can be mounted there as absent.
    let hide = || {
        let empty = yard.lab.dir("empty-sbin");
        let keep = ["ip", "busybox"];
        for program in keep {
            let path = crate::tools::path_of(program);
            let place = empty.join(program);
            if path.starts_with("/usr/sbin") && !place.exists() {
                fs::copy(path, place).expect("a program kept");
            }
        }
        mount(Some(&empty), "/usr/sbin", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("an empty /usr/sbin");
    };
    let show = || umount2("/usr/sbin", MntFlags::empty()).expect("/usr/sbin back");
    hide();
    let (hook, up, check) = (yard.enter("c1", &stand), yard.lab.tunjail(&["up"]), yard.lab.tunjail(&["check"]));
    show();
    let fragments = ["nft was not found", "/usr/sbin/nft", "install the nftables package"];
    assert_refused(&hook, &[&["container c1 was not started"], &fragments[..]].concat());
    assert_refused(&up, &fragments);
    assert!(check.code != 0 && check.stdout.contains("install the nftables package"), "{check:?}");
    before.assert_same(&yard.lab.snapshot(), "no nft");

    // Members come and go by netlink, and so does the wall's end.
    yard.lab.tunjail_ok(&["up"]);
    hide();
    yard.hold("c1", &stand);
    stand.die();
    yard.leave("c1");
    yard.lab.tunjail_ok(&["down"]);
    show();
    before.assert_same(&yard.lab.snapshot(), "a member and down without nft");
}

#[rstest]
#[case::run("/run")]
#[case::its_own("/run/tunjail")]
fn records_that_cannot_be_written_start_no_container(#[case] place: &str) {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    fs::create_dir_all(place).expect("a mount point");
    mount(Some("lab"), place, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).expect("a read-only file system");
    let (hook, up) = (yard.enter("c1", &stand), yard.lab.tunjail(&["up"]));
    let poststop = yard.lab.poststop(&stopped("c1"), &[]);
    umount2(place, MntFlags::empty()).expect("a writable place");
    let _ = fs::remove_dir("/run/tunjail");
    let fragments = ["/run/tunjail", "Read-only file system", "where root must be able to write"];
    assert_refused(&hook, &[&["container c1 was not started"], &fragments[..]].concat());
    assert_refused(&up, &fragments);
    assert!(
        poststop.code == 0 && poststop.stderr.is_empty(),
        "nobody is known, so nothing is to be written: {poststop:?}"
    );
    before.assert_same(&yard.lab.snapshot(), "records that cannot be written");
    assert_eq!(stand.netns.lock(), Lock::Absent);
}

/// A /run that is full after so many files: the hook fails at each of them in turn, and takes back what it did.
#[test]
fn a_full_run_directory_starts_no_container_wherever_it_ends() {
    let yard = Yard::new(JAIL);
    let mut refused = 0;
    for inodes in 1..60 {
        let mut stand = yard.stand("m1", 2);
        let before = yard.lab.settled();
        let size = format!("nr_inodes={inodes}");
        mount(Some("lab"), "/run", Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("a small /run");
        let inside = yard.lab.snapshot();
        let hook = yard.enter("c1", &stand);
        if hook.code != 0 {
            assert_refused(&hook, &["container c1 was not started", "No space left on device"]);
            inside.assert_same(&yard.lab.snapshot(), &format!("a /run of {inodes} files"));
            assert_ne!(stand.netns.lock(), Lock::Open);
            refused += 1;
        }
        stand.die();
        yard.leave("c1");
        inside.assert_same(&yard.lab.snapshot(), &format!("a /run of {inodes} files, and poststop"));
        umount2("/run", MntFlags::empty()).expect("the old /run");
        before.assert_same(&yard.lab.snapshot(), "a small /run");
        stand.vanish();
        if hook.code == 0 {
            assert!(refused > 5, "the hook wants fewer files than that: {inodes}");
            return;
        }
    }
    panic!("the hook was refused every time");
}

#[test]
fn a_routing_table_that_others_use_is_refused_and_left_alone() {
    let yard = Yard::new(&format!("{STRICT_JAIL}table = 100\n"));
    let stand = yard.stand("m1", 2);
    for (family, route) in
        [("-4", "10.99.0.0/16 dev eth0"), ("-6", "unreachable fd99::/64"), ("-4", "default dev tun0")]
    {
        yard.lab.sh(&format!("ip {family} route add {route} table 100"));
        let before = yard.lab.settled();
        let fragments = [
            "routing table 100 of jail vpn holds a route of others",
            "set another number with \"table = \", or routes = \"foreign\" when it is to lead out, in [jail.vpn]",
        ];
        assert_refused(&yard.enter("c1", &stand), &[&["container c1 was not started"], &fragments[..]].concat());
        assert_refused(&yard.lab.tunjail(&["up"]), &fragments);
        yard.lab.tunjail_ok(&["down"]);
        before.assert_same(&yard.lab.snapshot(), "a table that is taken");
        assert_eq!(stand.netns.lock(), Lock::Absent);
        yard.lab.sh(&format!("ip {family} route del {route} table 100"));
    }
    yard.hold("c1", &stand);
}

/// A rule of others that stands before tunjail's would lead past the jail: the kernel's own answer says so.
#[test]
fn a_rule_that_leads_past_the_jail_is_noticed() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.lab.sh("ip rule add from 172.18.0.0/16 lookup main pref 100");
    let before = yard.lab.settled();
    let out = yard.enter("c1", &stand);
    assert_refused(
        &out,
        &["container c1 was not started", "not an exit of the jail", "look at `ip rule` for rules before"],
    );
    before.assert_same(&yard.lab.snapshot(), "a rule before tunjail's");
    assert_eq!(stand.netns.lock(), Lock::Closed, "it was closed before the kernel was asked, and stays so");
    assert_eq!(stand.netns.lets_go("172.18.0.2", crate::world::SERVICE4), 0);
}

/// Records of a program that is not this one, or of a disk that lost its mind.
#[rstest]
#[case::damaged("{\"version\":1,\"jail\"", &["wall.json is damaged", "stop the jailed containers"])]
#[case::of_another_version("{\"version\":99}", &["written by another version of tunjail (99", "`tunjail down`"])]
fn records_that_cannot_be_read_start_no_container(#[case] text: &str, #[case] fragments: &[&str]) {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.lab.tunjail_ok(&["up"]);
    let record = "/run/tunjail/jails/vpn/wall.json";
    fs::write(record, text).expect("a damaged record");
    let before = yard.lab.settled();
    assert_refused(&yard.enter("c1", &stand), &[&["container c1 was not started"], fragments].concat());
    assert_refused(&yard.lab.tunjail(&["up"]), fragments);
    assert_refused(&yard.lab.tunjail(&["down"]), fragments);
    yard.leave("c1");
    before.assert_same(&yard.lab.snapshot(), "a damaged record");
    assert_eq!(stand.netns.lock(), Lock::Absent);
}

/// Another tunjail at work makes this one wait, and one that hangs is named.
#[test]
fn a_tunjail_that_hangs_is_named() {
    let yard = Yard::new(JAIL);
    let [new, mut old] = [("m1", 2), ("m2", 3)].map(|(name, n)| yard.stand(name, n));
    yard.hold("c2", &old);
    old.die();
    let before = yard.lab.settled();
    let hanging = fs::File::open(LOCK).expect("the lock");
    hanging.try_lock().expect("nobody else holds it");
    let create = Cmd::new(TUNJAIL, &["hook", "create-runtime", "--jail", "vpn"]).stdin(created("c1", new.pid)).spawn();
    let poststop = Cmd::new(TUNJAIL, &["hook", "poststop"]).stdin(stopped("c2")).spawn();
    let [create, poststop] = [create, poststop].map(|job| job.finish(Duration::from_secs(30)));
    let fragments = ["another tunjail holds /run/tunjail/lock for more than", "`fuser /run/tunjail/lock`"];
    assert_refused(&create, &[&["container c1 was not started"], &fragments[..]].concat());
    assert_eq!(poststop.code, 0, "{poststop:?}");
    assert_one_line(&poststop, &[&["container c2 was not taken out of its jail"], &fragments[..]].concat());
    before.assert_same(&yard.lab.snapshot(), "a tunjail that hangs");
    assert_eq!(new.netns.lock(), Lock::Absent);
    drop(hanging);
    yard.hold("c1", &new);
    yard.leave("c2");
}
