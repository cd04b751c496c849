//! daemon.json.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rstest::rstest;

use super::super::docker::{self, DAEMON_JSON as DAEMON};
use super::super::{STATE, Target, install};
use super::{Yard, jails};

/// As they are found on hosts.
const DAEMON_FILES: [(&str, &str); 11] = [
    ("empty object", "{}"),
    ("empty object, line", "{}\n"),
    ("open object", "{\n}\n"),
    ("two spaces", "{\n  \"log-driver\": \"json-file\",\n  \"log-opts\": {\n    \"max-size\": \"10m\"\n  }\n}\n"),
    ("four spaces, no end", "{\n    \"dns\": [\"1.1.1.1\", \"9.9.9.9\"],\n    \"mtu\": 1450\n}"),
    ("tabs", "{\n\t\"iptables\": true,\n\t\"debug\" : false\n}\n"),
    ("crlf", "{\r\n  \"debug\": true,\r\n  \"hosts\": [\r\n    \"unix:///run/docker.sock\"\r\n  ]\r\n}\r\n"),
    ("one line", r#"{"debug":true,"log-level":"info"}"#),
    (
        "nvidia",
        "{\n    \"default-runtime\": \"nvidia\",\n    \"runtimes\": {\n        \"nvidia\": {\n            \"args\": [],\n            \"path\": \"nvidia-container-runtime\"\n        }\n    }\n}\n",
    ),
    ("empty runtimes", "{ \"runtimes\": {}, \"bip\": \"10.1.0.1/24\" }\n"),
    ("odd spaces", "  {\"a\" :1 ,\n\n\n \"b\":  [ 1,2 ] }\n\n"),
];

#[test]
fn docker_keeps_what_is_not_its_own_and_gives_back_every_byte() {
    for (name, text) in DAEMON_FILES {
        let yard = Yard::new();
        yard.write(DAEMON, text);
        fs::set_permissions(yard.at(DAEMON), fs::Permissions::from_mode(0o600)).unwrap();
        let before = yard.listing();
        yard.install(Target::Docker, yard.plan(Target::Docker).unwrap());
        let after = yard.read(DAEMON).unwrap();
        assert_eq!(after.contains("\r\n"), text.contains("\r\n"), "{name}");
        assert!(!text.contains("\r\n") || after.matches('\n').count() == after.matches("\r\n").count(), "{name}");
        insta::assert_snapshot!(format!("daemon_{}", name.replace([' ', ','], "_")), after);
        assert_eq!(fs::metadata(yard.at(DAEMON)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");

        let again = install(&yard.host, Target::Docker, yard.plan(Target::Docker).unwrap()).unwrap();
        assert!(again.is_empty(), "{name}: {}", again.diff());

        yard.uninstall(Target::Docker);
        assert_eq!(yard.listing(), before, "{name}");
        assert!(yard.uninstall(Target::Docker).is_empty(), "{name}");
    }
}

/// What stands in the file is taken out of it by meaning when somebody edited it meanwhile.
#[test]
fn docker_is_taken_out_of_a_file_that_was_edited_since() {
    for (name, text) in DAEMON_FILES {
        let yard = Yard::new();
        yard.write(DAEMON, text);
        yard.install(Target::Docker, yard.plan(Target::Docker).unwrap());
        let edited = yard.read(DAEMON).unwrap().replacen('{', "{\"userland-proxy\": false, ", 1);
        yard.write(DAEMON, &edited);
        yard.uninstall(Target::Docker);
        let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
        expected["userland-proxy"] = false.into();
        if expected["runtimes"].as_object().is_some_and(serde_json::Map::is_empty) {
            expected.as_object_mut().unwrap().remove("runtimes");
        }
        let after = yard.read(DAEMON).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&after).unwrap(), expected, "{name}: {after}");
        assert!(!yard.at(STATE).exists(), "{name}");
    }
}

#[rstest]
#[case::comment("{\n  // mine\n  \"debug\": true\n}", ":2: comments, trailing commas")]
#[case::trailing_comma("{\n  \"debug\": true,\n}", ":3: comments, trailing commas")]
#[case::broken("{\n  \"debug\": yes\n}", ":2: not valid JSON")]
#[case::missing_comma("{\n  \"a\": 1\n  \"b\": 2\n}", ":3: not valid JSON")]
#[case::empty("", "is empty")]
#[case::list("[]", "not a JSON object")]
#[case::runtimes_list("{\n\"runtimes\": []}", ":2: \"runtimes\" is not an object")]
#[case::twice("{\"runtimes\": {},\n\"runtimes\": {}}", "stands there twice")]
#[case::case("{\n\"Runtimes\": {}}", ":2: the key \"Runtimes\" has to be written \"runtimes\"")]
#[case::foreign(
    "{\"runtimes\": {\n\"tunjail-vpn\": {\"path\": \"/opt/kata\"}}}",
    ":2: runtime \"tunjail-vpn\" is somebody else's"
)]
#[case::other_jail(
    "{\"runtimes\": {\"tunjail-vpn\": {\"path\": \"/x/tunjail-runtime\", \"runtimeArgs\": [\"--jail\", \"office\"]}}}",
    "runtime \"tunjail-vpn\" is not for jail vpn"
)]
fn docker_leaves_a_file_alone_that_it_cannot_edit(#[case] text: &str, #[case] said: &str) {
    let yard = Yard::new();
    yard.write(DAEMON, text);
    let before = yard.listing();
    let error = yard.error(Target::Docker);
    assert!(error.contains(DAEMON) && error.contains(said) && !error.contains('\n'), "{error}");
    assert_eq!(yard.listing(), before);
}

#[test]
fn docker_keeps_a_runtime_of_its_own_that_was_written_by_hand() {
    let yard = Yard::new();
    let by_hand = r#"{"runtimes": {"tunjail": {"path": "/old/tunjail-runtime", "runtimeArgs": ["--jail", "vpn"]}}}"#;
    yard.write(DAEMON, by_hand);
    let plan = docker::install(&yard.host, &jails(&["vpn"]), false).unwrap();
    assert!(plan.notes[0].contains("stays as it is, with --jail vpn"), "{:?}", plan.notes);
    let daemon = docker::Daemon::read(plan.files[0].after.as_deref().unwrap()).unwrap();
    assert_eq!(daemon.runtimes()[0].path, "/usr/local/bin/tunjail-runtime");
    assert_eq!(daemon.runtimes()[0].jail(), Some("vpn"));
    let error = docker::install(&yard.host, &jails(&["vpn"]), true).unwrap_err();
    assert!(format!("{error:#}").contains("would put every container there"), "{error:#}");
    // Not ours to give back: uninstall leaves no runtime that runs tunjail.
    yard.install(Target::Docker, plan);
    yard.uninstall(Target::Docker);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&yard.read(DAEMON).unwrap()).unwrap(), serde_json::json!({}));
}

#[rstest]
#[case::absent(r#"{"debug": true}"#, Ok(()))]
#[case::runc(r#"{"default-runtime": "runc"}"#, Ok(()))]
#[case::other(r#"{"default-runtime": "nvidia"}"#, Err("\"default-runtime\" is \"nvidia\""))]
fn dockers_default_runtime(#[case] text: &str, #[case] expected: Result<(), &str>) {
    let yard = Yard::new();
    yard.write(DAEMON, text);
    match (docker::install(&yard.host, &jails(&["vpn"]), true), expected) {
        (Ok(plan), Ok(())) => {
            yard.install(Target::Docker, plan);
            let after = yard.read(DAEMON).unwrap();
            assert_eq!(docker::Daemon::read(&after).unwrap().default_runtime(), Some("tunjail"));
            // By meaning, too: dockerd would not start with a default runtime that is gone.
            yard.write(DAEMON, &(after + "\n"));
            yard.uninstall(Target::Docker);
            let rest = yard.read(DAEMON).unwrap();
            assert!(!rest.contains("tunjail"), "{rest}");
        }
        (Err(error), Err(said)) => assert!(format!("{error:#}").contains(said), "{error:#}"),
        (got, _) => panic!("{got:?}"),
    }
}

/// What was there before is what was there before the first install, as long as nobody else edits the file.
#[test]
fn installing_again_for_another_jail_remembers_the_first_bytes() {
    let yard = Yard::new();
    yard.write(DAEMON, "{}");
    let before = yard.listing();
    for names in [&["vpn"][..], &["vpn", "office"]] {
        yard.install(Target::Docker, docker::install(&yard.host, &jails(names), false).unwrap());
    }
    assert!(yard.read(DAEMON).unwrap().contains("tunjail-office"));
    yard.uninstall(Target::Docker);
    assert_eq!(yard.listing(), before);

    yard.install(Target::Docker, docker::install(&yard.host, &jails(&["vpn"]), false).unwrap());
    let edited = yard.read(DAEMON).unwrap().replacen('{', "{\n  \"debug\": true,", 1);
    yard.write(DAEMON, &edited);
    yard.install(Target::Docker, docker::install(&yard.host, &jails(&["vpn", "office"]), false).unwrap());
    yard.uninstall(Target::Docker);
    assert_eq!(yard.read(DAEMON).unwrap(), "{\n  \"debug\": true\n}");
}

mod properties {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{DAEMON, Target, Yard, docker, jails};

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[ -~äß\\u{1F600}]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z\\\\\"/-]{0,6}", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// An object with `runtimes` of others, or none, written in one of several ways.
    fn daemon() -> impl Strategy<Value = (String, Value)> {
        let whole = prop::collection::btree_map("[a-z-]{1,6}", value(), 0..4);
        let runtimes = prop::option::of(prop::collection::btree_map(
            "[a-z]{1,4}",
            "/[a-z]{1,5}".prop_map(|path| serde_json::json!({ "path": path })),
            0..3,
        ));
        (whole, runtimes, 0..4usize).prop_map(|(whole, runtimes, style)| {
            let mut whole = Value::Object(whole.into_iter().collect());
            if let Some(runtimes) = runtimes {
                whole["runtimes"] = Value::Object(runtimes.into_iter().collect());
            }
            let pretty = serde_json::to_string_pretty(&whole).unwrap();
            let text = match style {
                0 => pretty,
                1 => whole.to_string(),
                2 => pretty.replace("\n  ", "\n\t") + "\n",
                _ => pretty.replace('\n', "\r\n") + "\r\n",
            };
            (text, whole)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn docker_adds_what_it_says_and_takes_away_no_more((text, whole) in daemon()) {
            let yard = Yard::new();
            yard.write(DAEMON, &text);
            yard.install(Target::Docker, docker::install(&yard.host, &jails(&["vpn"]), true).unwrap());
            let after: Value = serde_json::from_str(&yard.read(DAEMON).unwrap()).unwrap();
            prop_assert_eq!(&after["runtimes"]["tunjail-vpn"]["runtimeArgs"][1], "vpn");
            prop_assert_eq!(&after["default-runtime"], "tunjail");
            // Byte for byte, and by meaning when somebody touched it.
            let installed = yard.read(DAEMON).unwrap();
            yard.uninstall(Target::Docker);
            prop_assert_eq!(yard.read(DAEMON).unwrap(), text);
            yard.write(DAEMON, &(installed + " "));
            yard.uninstall(Target::Docker);
            let mut rest: Value = serde_json::from_str(&yard.read(DAEMON).unwrap()).unwrap();
            let mut whole = whole;
            for value in [&mut rest, &mut whole] {
                if value["runtimes"].as_object().is_none_or(serde_json::Map::is_empty) {
                    value.as_object_mut().unwrap().remove("runtimes");
                }
            }
            prop_assert_eq!(rest, whole);
        }

        /// Whatever stands there: an edit, or an error that names the file; never a panic, and never a changed file.
        #[test]
        fn docker_survives_any_text(text in prop_oneof!["\\PC{0,60}", "[{}\\[\\]:,\"a-z0-9 \\n\\\\/*]{0,60}", r#"\{ ?"runtimes"[ :]+[{}\[\]":,a-z]{0,30}"#]) {
            let yard = Yard::new();
            yard.write(DAEMON, &text);
            if let Err(error) = docker::install(&yard.host, &jails(&["vpn"]), false) {
                prop_assert!(format!("{error:#}").contains(DAEMON), "{error:#}");
            }
            if let Err(error) = docker::uninstall(&yard.host) {
                prop_assert!(format!("{error:#}").contains(DAEMON), "{error:#}");
            }
            prop_assert_eq!(yard.read(DAEMON).unwrap(), text);
        }
    }
}
