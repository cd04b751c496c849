//! What is inserted, and that nothing else is touched.

use std::os::unix::fs::symlink;

use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

use super::*;

fn ours(jail: Option<&JailName>) -> Hooks<'_> {
    Hooks { program: Path::new("/usr/bin/tunjail"), config: None, jail }
}

const CREATE: &str = r#"{"args":["tunjail","hook","create-runtime"],"path":"/usr/bin/tunjail","timeout":10}"#;
const POSTSTOP: &str = r#"{"args":["tunjail","hook","poststop"],"path":"/usr/bin/tunjail","timeout":10}"#;

/// The text in which C and P stand for the two hooks.
fn filled(text: &str) -> String {
    text.replace("@C", CREATE).replace("@P", POSTSTOP)
}

#[test]
fn hooks_are_appended_and_everything_else_stays_byte_for_byte() {
    for (text, expected) in [
        ("{}", r#"{"hooks":{"createRuntime":[@C],"poststop":[@P]}}"#),
        (" { } \n", r#" {"hooks":{"createRuntime":[@C],"poststop":[@P]} } "#),
        ("{\"a\" : 1.50e3 }\n", "{\"a\" : 1.50e3,\"hooks\":{\"createRuntime\":[@C],\"poststop\":[@P]} }\n"),
        (r#"{"hooks":null,"z":"\u00e9"}"#, r#"{"hooks":{"createRuntime":[@C],"poststop":[@P]},"z":"\u00e9"}"#),
        (r#"{"hooks": {},"z":1}"#, r#"{"hooks": {"createRuntime":[@C],"poststop":[@P]},"z":1}"#),
        (
            r#"{"hooks":{"poststop": [ ], "createRuntime" :null}}"#,
            r#"{"hooks":{"poststop": [@P], "createRuntime" :[@C]}}"#,
        ),
        (
            r#"{"hooks":{"prestart":[{"path":"/libnetwork"}],"createRuntime":[ {"path" : "/other"} ]}}"#,
            r#"{"hooks":{"prestart":[{"path":"/libnetwork"}],"createRuntime":[ {"path" : "/other"},@C ],"poststop":[@P]}}"#,
        ),
    ] {
        let edited = edit(text, &ours(None)).unwrap().unwrap();
        // An object without members loses the white space between its braces at most.
        assert_eq!(edited.trim_end(), filled(expected).trim_end(), "{text}");
        assert_eq!(edit(&edited, &ours(None)).unwrap(), None, "twice is once: {text}");
    }
}

#[test]
fn a_hook_that_says_the_same_counts() {
    let jail = "vpn".parse().unwrap();
    let with = |path: &str, args: &str, more: &str| {
        let hook = |stage| format!(r#"{{"path":"{path}","args":["x",{}]{more}}}"#, args.replace('@', stage));
        let [create, poststop] = ["create-runtime", "poststop"].map(hook);
        format!(r#"{{"hooks":{{"createRuntime":[{create}],"poststop":[{{"path":"/o"}},{poststop}]}}}}"#)
    };
    let is_there = |text: &str, hooks: &Hooks<'_>| edit(text, hooks).unwrap().is_none();
    for (path, args, more, same) in [
        ("/usr/local/bin/tunjail", r#""hook","@","--jail","vpn""#, "", true),
        ("/opt/tunjail", r#""hook","@","--jail=vpn""#, r#","timeout":3,"env":["PATH=/bin"]"#, true),
        ("/opt/tunjail", r#""hook","@","--jail","office""#, "", false),
        ("/opt/tunjail", r#""hook","@""#, "", false),
        ("/opt/tunjail", r#""hook","@","--jail","vpn","--dry-run""#, "", false),
        ("/opt/tunjail", r#""--config","/t.toml","hook","@","--jail","vpn""#, "", false),
        ("/opt/tunjail", r#""hook","@","--jail","vpn""#, r#","env":["TUNJAIL_CONFIG=/t.toml"]"#, false),
        ("/opt/other", r#""hook","@","--jail","vpn""#, "", false),
        ("/opt/tunjail", r#""hook","@","--jail","vpn""#, r#","env":7"#, false),
    ] {
        assert_eq!(is_there(&with(path, args, more), &ours(Some(&jail))), same, "{path} {args} {more}");
    }
    let named = Hooks { config: Some(Path::new("/t.toml")), ..ours(None) };
    assert!(is_there(&with("/t/tunjail", r#""--config=/t.toml","hook","@""#, ""), &named));
    let edited = edit("{}", &Hooks { jail: Some(&jail), ..named }).unwrap().unwrap();
    assert!(edited.contains(r#"["tunjail","--config","/t.toml","hook","poststop","--jail","vpn"]"#), "{edited}");
    assert!(is_there(&edited, &Hooks { jail: Some(&jail), ..named }));
}

#[test]
fn what_two_runtimes_would_read_differently_is_refused() {
    for (text, expected) in [
        ("", "not an OCI configuration"),
        ("{", "not an OCI configuration"),
        ("[]", "expected a JSON object"),
        ("{} {}", "trailing characters"),
        (r#"{"hooks":[]}"#, "\"hooks\" are not what"),
        (r#"{"hooks":{"createRuntime":{}}}"#, "\"hooks.createRuntime\" is not a list"),
        (r#"{"hooks":{"createRuntime":"x"}}"#, "\"hooks.createRuntime\" is not a list"),
        (r#"{"hooks":{},"hooks":{}}"#, "\"hooks\" more than once"),
        (r#"{"hooks":{},"Hooks":{}}"#, "\"hooks\" more than once"),
        (r#"{"HOOKS":{}}"#, "has \"HOOKS\" where \"hooks\" is meant"),
        ("{\"hoo\u{212a}\u{17f}\":{}}", "where \"hooks\" is meant"),
        (r#"{"\u0068ooks":{},"hooks":{}}"#, "\"hooks\" more than once"),
        (r#"{"hooks":{"createruntime":[]}}"#, "where \"createRuntime\" is meant"),
        (r#"{"hooks":{"poststop":[],"poststop":[]}}"#, "\"poststop\" more than once"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, text).unwrap();
        let error = format!("{:#}", add_hooks(&path, &ours(None)).unwrap_err());
        assert!(error.starts_with(&path.display().to_string()) && error.contains(expected), "{text}: {error}");
        assert_eq!(names(&directory), ["config.json"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn mode_and_owner_stay_and_other_names_of_the_file_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let [path, base] = ["config.json", "base.json"].map(|name| directory.path().join(name));
    fs::write(&base, "{}").unwrap();
    fs::set_permissions(&base, Permissions::from_mode(0o440)).unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&base, Some(1234), Some(5678)).unwrap();
    }
    fs::hard_link(&base, &path).unwrap();
    let before = fs::metadata(&base).unwrap();
    add_hooks(&path, &ours(None)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
    assert_eq!(fs::read_to_string(&base).unwrap(), "{}");
    assert!(fs::read_to_string(&path).unwrap().contains("create-runtime"));
}

#[test]
fn what_is_no_bundle_is_refused_with_the_mend() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("is-directory")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::write(path("latin1"), b"{\"a\":\"\xe9\"}").unwrap();
    fs::write(path("base"), "{}").unwrap();
    symlink("base", path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    File::create(path("huge")).unwrap().set_len(MAX_SIZE + 1).unwrap();
    for (name, expected) in [
        ("missing", "/missing: no such file; a bundle needs one"),
        ("no/bundle/config.json", "/no/bundle: no such directory"),
        ("is-directory", "/is-directory is a directory"),
        ("fifo", "/fifo is not a regular file"),
        ("latin1", "/latin1 is not UTF-8 at byte 6"),
        ("link", "/link is a symbolic link"),
        ("dangling", "/dangling: no such file"),
        ("huge", "/huge is larger than 64 MiB"),
    ] {
        let error = format!("{:#}", add_hooks(&path(name), &ours(None)).unwrap_err());
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert_eq!(fs::read_to_string(path("base")).unwrap(), "{}");
    // One that has the hooks already needs no change.
    fs::write(path("base"), edit("{}", &ours(None)).unwrap().unwrap()).unwrap();
    add_hooks(&path("link"), &ours(None)).unwrap();
    assert!(path("link").is_symlink());
}

#[test]
fn tens_of_mebibytes_are_no_trouble() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let start = "{\"ociVersion\":\"1.0.2\",\"x\":[";
    let item = format!("{{\"k\":\"{}\"}},", "v".repeat(1000));
    let text = format!("{start}{}0]}}", item.repeat(30_000));
    fs::write(&path, &text).unwrap();
    add_hooks(&path, &ours(None)).unwrap();
    let edited = fs::read_to_string(&path).unwrap();
    assert!(edited.starts_with(&text[..text.len() - 1]) && edited.len() > text.len());
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\é]{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Taking the hooks out again gives what was there.
    #[test]
    fn only_the_hooks_are_new(
        members in prop::collection::btree_map("[a-z\"\\\\é]{0,4}", json(), 0..4),
        lists in prop::option::of(prop::collection::btree_map(
            prop::sample::select(&["prestart", "createRuntime", "poststop", "other"][..]),
            prop::option::of(prop::collection::vec(json(), 0..3)),
            0..4,
        )),
        pretty in any::<bool>(),
    ) {
        let mut config: Value = Value::Object(members.into_iter().collect());
        if let Some(lists) = &lists {
            config["hooks"] = json!(lists);
        }
        let text = if pretty { serde_json::to_string_pretty(&config) } else { serde_json::to_string(&config) }.unwrap();
        let edited = edit(&text, &ours(None)).unwrap().expect("hooks to add");
        prop_assert_eq!(edit(&edited, &ours(None)).unwrap(), None);

        let mut after: Value = serde_json::from_str(&edited).unwrap();
        for (stage, hook) in [("createRuntime", CREATE), ("poststop", POSTSTOP)] {
            let list = after["hooks"][stage].as_array_mut().expect("a list");
            prop_assert_eq!(list.pop().unwrap(), serde_json::from_str::<Value>(hook).unwrap());
            if list.is_empty() {
                // Absent, null and empty are one.
                let before = config.get("hooks").and_then(|hooks| hooks.get(stage)).cloned();
                after["hooks"][stage] = before.clone().unwrap_or_default();
                if before.is_none() {
                    after["hooks"].as_object_mut().unwrap().remove(stage);
                }
            }
        }
        if lists.is_none() {
            after.as_object_mut().unwrap().remove("hooks");
        }
        prop_assert_eq!(after, config);
        // And what stood in front and behind is as it was, to the byte.
        let head = text.bytes().zip(edited.bytes()).take_while(|(one, other)| one == other).count();
        let tail = text.bytes().rev().zip(edited.bytes().rev()).take_while(|(one, other)| one == other).count();
        prop_assert!(lists.is_some() || head + tail >= text.len());
    }

    #[test]
    fn any_text_is_edited_or_refused(text in ".{0,40}") {
        let _ = edit(&text, &ours(None));
    }
}
