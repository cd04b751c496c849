//! Configurations that are wrong, through the program itself: the hook, `up` and `check` say so and touch nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::product::{CONFIG, JAIL, STRICT_JAIL, TUNJAIL};
use crate::run::Cmd;
use crate::yard::{Lock, Stand, Yard, assert_one_line, assert_refused, created, stopped};

/// Refused by all that read it; nothing changes; poststop does not even look.
#[track_caller]
fn assert_unusable(yard: &Yard, stand: &Stand, fragments: &[&str]) {
    let before = yard.lab.snapshot();
    let hook = yard.lab.create_runtime(&created("c1", stand.pid), &["--jail", "vpn"]);
    assert_refused(&hook, &[&["container c1 was not started"], fragments].concat());
    for args in [&["up"][..], &["up", "--dry-run"], &["exit", "up", "--dev", "tun0"], &["down"]] {
        assert_refused(&yard.lab.tunjail(args), fragments);
    }
    let check = yard.lab.tunjail(&["check"]);
    let said = format!("{}{}", check.stdout, check.stderr);
    assert!(check.code != 0 && fragments.iter().all(|fragment| said.contains(fragment)), "{check:?}");
    yard.leave("c1");
    before.assert_same(&yard.lab.snapshot(), "a wrong configuration");
    assert_eq!(stand.netns.lock(), Lock::Absent);
}

#[test]
fn what_is_wrong_in_a_line_is_said_with_the_line() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.lab.settled();
    let second = "\n[jail.second]\nsubnets = [\"172.18.7.0/24\"]\nexit = \"tun0\"\n";
    let line = |number: usize, text: &str| {
        let mut lines: Vec<&str> = STRICT_JAIL.lines().collect();
        lines[number - 1] = text;
        lines.join("\n")
    };
    for (config, expected) in [
        (format!("{STRICT_JAIL}exits = \"tun0\"\n"), &[":4: ", "unknown key `exits`", "expected one of"][..]),
        (format!("colour = 1\n{STRICT_JAIL}"), &[":1: ", "unknown key \"colour\""]),
        (line(2, "subnets = [\"172.18.0.0/33\"]"), &[":2: ", "\"172.18.0.0/33\" is not a net", "write it as"]),
        (line(2, "subnets = [\"172.18.0.1/16\"]"), &[":2: ", "host bits set", "write 172.18.0.0/16"]),
        (line(2, "subnets = []"), &[":2: ", "subnets is empty"]),
        (line(2, ""), &[":1: ", "subnets is missing"]),
        (line(2, "subnets = [\"0.0.0.0/0\"]"), &[":2: ", "would hold the host's own addresses"]),
        (
            format!("{STRICT_JAIL}{second}"),
            &[":6: ", "jail.second", "172.18.7.0/24 overlaps 172.18.0.0/16 of jail.vpn"],
        ),
        (format!("{STRICT_JAIL}bridge = \"tun0\"\n"), &[":3: ", "exit tun0 is the jail's own bridge"]),
        (line(3, "exit = \"\""), &[":3: ", "exit: interface name \"\""]),
        (line(3, ""), &["exit is missing"]),
        (format!("{STRICT_JAIL}table = 254\n"), &[":4: ", "table"]),
        (
            format!("{STRICT_JAIL}dns = [\"172.18.0.53\"]\n"),
            &[":4: ", "dns server 172.18.0.53 lies in the jail's own subnet"],
        ),
        (format!("{STRICT_JAIL}host = [\"udp/65536\"]\n"), &[":4: ", "\"udp/65536\" is not a port"]),
        (format!("{STRICT_JAIL}forward = [\"tcp/0\"]\n"), &[":4: ", "\"tcp/0\" is not a forwarded port"]),
        (format!("{STRICT_JAIL}routes = \"foreign\"\n"), &[":4: ", "needs the table"]),
        ("[jail.vpn\n".to_owned(), &[":1: ", "not valid TOML"]),
        ("[jail.VPN]\n".to_owned(), &[":1: ", "jail name \"VPN\"", "rename the jail"]),
        (STRICT_JAIL.replace("tun0", "tun0\u{0}"), &["not valid TOML"]),
    ] {
        yard.lab.configure(&config);
        assert_unusable(&yard, &stand, &[&[CONFIG], expected].concat());
    }
}

#[test]
fn a_file_that_cannot_be_trusted_or_read_is_not() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    yard.lab.settled();
    let mode = |path: &str, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");

    mode(CONFIG, 0o666);
    assert_unusable(&yard, &stand, &[CONFIG, "may be written by everyone", "run: chmod o-w /etc/tunjail/tunjail.toml"]);
    mode(CONFIG, 0o644);
    Cmd::new("busybox", &["chown", "1234", CONFIG]).ok();
    assert_unusable(&yard, &stand, &[CONFIG, "belongs to uid 1234", "run: chown root"]);

    let drop_in = "/etc/tunjail/jails.d/more.toml";
    yard.lab.configure(JAIL);
    Cmd::new("busybox", &["chown", "0", CONFIG]).ok();
    fs::create_dir_all("/etc/tunjail/jails.d").expect("jails.d");
    fs::write(drop_in, "[jail.more]\nsubnets = 7\n").expect("a drop-in");
    assert_unusable(&yard, &stand, &[&format!("{drop_in}:2: "), "jail.more"]);
    fs::write(drop_in, STRICT_JAIL).expect("a drop-in");
    assert_unusable(&yard, &stand, &[&format!("{drop_in}:1: "), "is defined already (/etc/tunjail/tunjail.toml:1)"]);
    mode("/etc/tunjail/jails.d", 0o777);
    assert_unusable(&yard, &stand, &["/etc/tunjail/jails.d", "may be written by everyone"]);
    fs::remove_dir_all("/etc/tunjail/jails.d").expect("jails.d removed");

    fs::write(CONFIG, [b'[', 0xff, b']']).expect("a file");
    assert_unusable(&yard, &stand, &[&format!("{CONFIG}:1: "), "not UTF-8"]);
    fs::write(CONFIG, "#".repeat(2 << 20)).expect("a file");
    assert_unusable(&yard, &stand, &[CONFIG, "larger than 1024 KiB"]);
    fs::remove_file(CONFIG).expect("the configuration removed");
    assert_unusable(&yard, &stand, &[CONFIG, "no such file", "create it with a line such as"]);
    fs::create_dir(CONFIG).expect("a directory");
    assert_unusable(&yard, &stand, &[CONFIG, "is a directory; name a file"]);
    fs::remove_dir(CONFIG).expect("the directory removed");
    Cmd::new("mkfifo", &[CONFIG]).ok();
    assert_unusable(&yard, &stand, &[CONFIG, "is not a regular file"]);
    fs::remove_file(CONFIG).expect("the FIFO removed");
    symlink("/run/nowhere", CONFIG).expect("a link");
    assert_unusable(&yard, &stand, &[CONFIG, "no such file"]);
    fs::remove_file(CONFIG).expect("the link removed");
    symlink(CONFIG, CONFIG).expect("a link to itself");
    assert_unusable(&yard, &stand, &[CONFIG, "cannot be opened", "check the path"]);
}

/// What the host itself has to say about a jail that is right on paper.
#[test]
fn a_jail_that_does_not_fit_the_host_is_refused() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    let own = "172.18.0.0/16\", \"fd00:18::/64";
    for (config, expected) in [
        (STRICT_JAIL.replace(own, "172.18.0.0/16\", \"192.168.178.0/24"), &["192.168.178.0/24", "interface eth0"][..]),
        (STRICT_JAIL.replace(own, "172.18.0.0/16\", \"192.168.178.128/25"), &["192.168.178.0/24", "interface eth0"]),
        (STRICT_JAIL.replace(own, "172.18.0.0/16\", \"192.168.0.0/16"), &["192.168.178.0/24", "interface eth0"]),
        (STRICT_JAIL.replace(own, "172.18.0.0/16\", \"2001:db8:178::/64"), &["2001:db8:178::/64", "interface eth0"]),
        (STRICT_JAIL.replace(own, "172.18.0.0/16\", \"10.8.0.0/24"), &["10.8.0.0/24", "interface tun0"]),
        (STRICT_JAIL.replace("tun0", "vpn"), &["exit vpn is the bridge of the jail's own containers", "such as tun0"]),
        (STRICT_JAIL.replace("\"tun0\"", "[\"tun0\", \"vpn\"]"), &["exit vpn is the bridge"]),
    ] {
        yard.lab.configure(&config);
        assert_refused(&yard.enter("c1", &stand), &[&["container c1 was not started", "jail vpn"], expected].concat());
        before.assert_same(&yard.lab.snapshot(), &config);
        assert_refused(&yard.lab.tunjail(&["up"]), &[&["jail vpn was not raised"], expected].concat());
        assert_refused(&yard.lab.tunjail(&["up", "--dry-run"]), expected);
        before.assert_same(&yard.lab.snapshot(), &config);
        assert_eq!(stand.netns.lock(), Lock::Absent);
    }
    // The bridge's own net is no conflict: the jail that all of them were made of stands.
    yard.lab.configure(STRICT_JAIL);
    yard.hold("c1", &stand);
}

/// One jail that cannot be raised does not keep the others down.
#[test]
fn up_raises_the_jails_that_it_can() {
    let yard = Yard::new(&format!("[jail.broken]\nsubnets = [\"192.168.178.0/24\"]\nexit = \"tun0\"\n{STRICT_JAIL}"));
    let before = yard.lab.settled();
    let out = yard.lab.tunjail(&["up"]);
    assert_refused(&out, &["jail broken was not raised", "192.168.178.0/24"]);
    let rules = yard.lab.sh("ip rule show");
    assert!(rules.contains("from 172.18.0.0/16 lookup tunjail_vpn") && !rules.contains("broken"), "{rules}");
    yard.lab.tunjail_ok(&["down"]);
    before.assert_same(&yard.lab.snapshot(), "up and down with a broken jail");
}

/// A configuration that breaks while a member lives: it stays held, and leaves as it should.
#[test]
fn a_configuration_that_breaks_later_frees_nobody() {
    let yard = Yard::new(JAIL);
    let mut stand = yard.stand("m1", 2);
    let before = yard.lab.settled();
    yard.hold("c1", &stand);
    let held = yard.lab.snapshot();
    yard.lab.configure("[jail.vpn]\nsubnets = []\n");
    assert_refused(&yard.lab.tunjail(&["up"]), &["subnets is empty"]);
    let down = yard.lab.tunjail(&["down"]);
    assert_one_line(&down, &["still holds 1 container(s)"]);
    held.assert_same(&yard.lab.snapshot(), "a broken configuration");
    stand.die();
    let out = Cmd::new(TUNJAIL, &["hook", "poststop"]).stdin(stopped("c1")).out();
    assert!(out.code == 0 && out.stderr.is_empty(), "{out:?}");
    before.assert_same(&yard.lab.snapshot(), "its poststop");
}
