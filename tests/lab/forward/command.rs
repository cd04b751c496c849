//! `tunjail forward`: ports at run time, for providers that change them.

use serde_json::{Value, json};

use super::leads;
use crate::product::JAIL;
use crate::teardown::crash::{at_every_call, killed};
use crate::yard::{Yard, asking, assert_refused};

const ID: &str = "4f1c0e2b9a77";
const OTHER: &str = "4f1c99999999";

impl Yard {
    fn forwards(&self) -> Value {
        serde_json::from_str(&self.lab.tunjail_ok(&["forward", "list", "--json"])).expect("JSON")
    }
}

#[test]
fn ports_come_and_go_while_a_member_runs() {
    let yard = Yard::new(JAIL);
    let before = yard.lab.settled();
    let mut stand = yard.stand("m1", 2);
    let mut other = yard.stand("m2", 3);
    yard.hold(ID, &stand);
    yard.hold(OTHER, &other);
    assert_eq!(yard.forwards(), json!({"version": 1, "forwards": []}));
    assert!(yard.lab.tunjail_ok(&["forward", "list"]).contains("no port of an exit leads to a member"));
    let held = yard.lab.settled();

    // What the dry run prints, nft takes; and the command then finds all of it there.
    let add = ["forward", "add", "4f1c0", "tcp/51413", "tcp/8443:443"];
    let lines = yard.lab.tunjail_ok(&[&add[..], &["--dry-run"]].concat());
    held.assert_same(&yard.lab.snapshot(), "a dry run");
    yard.lab.sh(&lines);
    let by_nft = yard.lab.snapshot();
    yard.lab.tunjail_ok(&add);
    assert_eq!(by_nft.part("nft ruleset"), yard.lab.snapshot().part("nft ruleset"));
    let led = yard.lab.settled();
    yard.lab.tunjail_ok(&add);
    led.assert_same(&yard.lab.snapshot(), "the same once more");
    assert_eq!(yard.lab.tunjail_ok(&[&add[..], &["--dry-run"]].concat()), "");

    let lead = |port: &str, number: u16| {
        let to = [format!("172.18.0.2:{number}"), format!("[fd00:18::2]:{number}")];
        json!({"jail": "vpn", "containers": [ID], "port": port, "to": to, "packets": 0})
    };
    assert_eq!(yard.forwards()["forwards"], json!([lead("tcp/51413", 51413), lead("tcp/8443", 443)]));
    let table = yard.lab.tunjail_ok(&["forward", "list"]);
    assert!(
        table.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words == ["vpn", ID, "tcp/8443", "0", "172.18.0.2:443", "[fd00:18::2]:443"]
        }),
        "{table}"
    );
    let status: Value = serde_json::from_str(&yard.lab.tunjail_ok(&["status", "--json"])).expect("JSON");
    let members = status["jails"][0]["members"].as_array().expect("members");
    let member = members.iter().find(|member| member["containers"] == json!([ID])).expect("the member");
    assert_eq!(member["forwards"][1]["to"][1], "[fd00:18::2]:443");

    // The provider gave another port.
    let remove = ["forward", "remove", ID, "tcp/51413"];
    let lines = yard.lab.tunjail_ok(&[&remove[..], &["--dry-run"]].concat());
    led.assert_same(&yard.lab.snapshot(), "a dry run");
    yard.lab.sh(&lines);
    let by_nft = yard.lab.snapshot();
    yard.lab.tunjail_ok(&remove);
    assert_eq!(by_nft.part("nft ruleset"), yard.lab.snapshot().part("nft ruleset"));
    assert!(!leads(&yard.lab, "vpn", "forward4").contains("51413"));
    yard.lab.tunjail_ok(&["forward", "add", OTHER, "tcp/51413"]);
    yard.lab.tunjail_ok(&["forward", "remove", ID, "tcp/8443"]);
    yard.lab.tunjail_ok(&["forward", "remove", OTHER, "tcp/51413"]);
    held.assert_same(&yard.lab.settled(), "ports that came and went");

    // What was added goes with the container.
    yard.lab.tunjail_ok(&add);
    stand.die();
    yard.leave(ID);
    let mut again = crate::yard::Stand::new(&yard.lab, crate::world::Netns::open("m1"));
    yard.hold(ID, &again);
    assert_eq!(leads(&yard.lab, "vpn", "forward4"), "");
    again.die();
    other.die();
    for id in [ID, OTHER] {
        yard.leave(id);
    }
    again.vanish();
    other.vanish();
    before.assert_same(&yard.lab.settled(), "all of it");
}

#[test]
fn a_port_that_cannot_be_given_is_refused_with_the_reason() {
    let yard = Yard::new(JAIL);
    let stand = yard.stand("m1", 2);
    let other = yard.stand("m2", 3);
    let out = yard.lab.create_runtime(&asking(ID, stand.pid, "tcp/7 tcp/8443:443"), &[]);
    assert_eq!(out.code, 0, "{out:?}");
    yard.hold(OTHER, &other);
    let late = yard.late("m3");
    yard.lock_late("late", &late, &["--jail", "vpn"]);
    let held = yard.lab.settled();
    for (args, fragments) in [
        (&["add", OTHER, "tcp/1", "tcp/7"][..], &["no port was changed", "port tcp/7 of exit tun0", ID][..]),
        (&["add", ID, "tcp/1", "tcp/8443:444"], &["port tcp/8443 leads to port 443 of container", "forward remove"]),
        (&["remove", ID, "tcp/7", "tcp/9"], &["port tcp/9 does not lead to container", "tcp/7, tcp/8443:443"]),
        (&["remove", OTHER, "tcp/7"], &["port tcp/7 does not lead to container", "the ports that do: none"]),
        (&["add", "4f1c", "tcp/1"], &["\"4f1c\" is the beginning of several containers' ids", ID, OTHER]),
        (&["add", "5", "tcp/1"], &["no container whose id begins with \"5\" is in a jail", "tunjail status"]),
        (&["add", "late", "tcp/1"], &["container late is no member of a jail yet"]),
    ] {
        assert_refused(&yard.lab.tunjail(&[&["forward"], args].concat()), fragments);
        held.assert_same(&yard.lab.snapshot(), &format!("{args:?}"));
    }
    for args in [&["add", ID][..], &["add", ID, "51413"], &["add", ID, "tcp/0"], &["remove", ID, "tcp/65536"]] {
        let out = yard.lab.tunjail(&[&["forward"], args].concat());
        assert_eq!(out.code, 2, "{args:?}: {out:?}");
    }
    yard.lab.configure("[jail.vpn]\nsubnets = 7\n");
    assert_refused(&yard.lab.tunjail(&["forward", "add", ID, "tcp/1"]), &["/etc/tunjail/tunjail.toml:2"]);
    yard.lab.tunjail_ok(&["forward", "list"]);
}

/// Killed before each of its calls that change something: the next call completes the work, and so does the next removal.
#[test]
fn a_killed_command_is_mended_by_the_next_one() {
    let yard = Yard::new(JAIL);
    let mut stand = yard.stand("m1", 2);
    yard.hold(ID, &stand);
    let held = yard.lab.settled();
    let add = ["forward", "add", ID, "tcp/51413", "udp/51413:7"];
    yard.lab.tunjail_ok(&add);
    let led = yard.lab.settled();
    let remove = ["forward", "remove", ID, "tcp/51413", "udp/51413"];
    yard.lab.tunjail_ok(&remove);
    at_every_call("forward add", |nth| {
        let (_, was_killed) = killed(nth, &add, "");
        yard.lab.tunjail_ok(&add);
        led.assert_same(&yard.lab.snapshot(), &format!("an addition killed before call {nth}, and another"));
        yard.lab.tunjail_ok(&remove);
        held.assert_same(&yard.lab.snapshot(), &format!("call {nth}, and a removal"));
        was_killed
    });
    at_every_call("forward remove", |nth| {
        yard.lab.tunjail_ok(&add);
        let (_, was_killed) = killed(nth, &remove, "");
        yard.lab.tunjail_ok(&add);
        led.assert_same(&yard.lab.snapshot(), &format!("a removal killed before call {nth}, and an addition"));
        yard.lab.tunjail_ok(&remove);
        held.assert_same(&yard.lab.snapshot(), &format!("call {nth}, and a removal"));
        was_killed
    });
    stand.die();
    yard.leave(ID);
}
