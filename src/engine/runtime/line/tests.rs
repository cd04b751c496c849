//! Lines as engines write them, lines that could mislead, and every mixture against the reference.

use std::os::unix::ffi::OsStringExt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::reference::{self, Made};
use super::*;

fn read_line(line: &str) -> Said {
    read(&line.split(' ').map(Into::into).collect::<Vec<_>>())
}

fn bundle(directory: &str, id: &str) -> Bundle {
    Bundle { directory: directory.into(), config: Path::new(directory).join("config.json"), id: Some(id.into()) }
}

#[test]
fn engines_lines_are_clear() {
    let start = || Action::Start { id: "c1".into() };
    let delete = |force| Action::Delete { id: "c1".into(), force };
    for (line, action) in [
        // containerd's shim, by go-runc
        (
            "--root /run/containerd/runc/k8s.io --log /b/log.json --log-format json --systemd-cgroup create --bundle /b \
             --pid-file /b/init.pid --console-socket /tmp/pty.sock --no-pivot c1",
            Action::Create(bundle("/b", "c1")),
        ),
        (
            "--root /r --log /b/log.json --log-format json restore --image-path /i --work-path /w --detach \
             --pid-file /p --manage-cgroups-mode soft --bundle /b c1",
            Action::Restore(bundle("/b", "c1")),
        ),
        ("--root /r --log /b/log.json --log-format json start c1", start()),
        ("--root /r --log /b/log.json --log-format json delete --force c1", delete(true)),
        ("--root /r --log /b/log.json --log-format json delete c1", delete(false)),
        ("--root /r --log /b/log.json --log-format json kill --all c1 9", Action::Other),
        ("--root /r --log /b/log.json --log-format json exec --process /p --detach --pid-file /q c1", Action::Other),
        ("--root /r --log /b/log.json --log-format json state c1", Action::Other),
        // conmon, for Podman and CRI-O
        (
            "--log-format=json --log=/u/oci-log --systemd-cgroup --root=/r create --bundle /b --pid-file /u/pidfile \
             --console-socket /u/attach c1",
            Action::Create(bundle("/b", "c1")),
        ),
        (
            "--cgroup-manager=cgroupfs --rootless=false create --bundle /b --preserve-fds 2 c1",
            Action::Create(bundle("/b", "c1")),
        ),
        ("--root=/r restore --image-path=/i --tcp-established c1", Action::Restore(bundle(".", "c1"))),
        // by hand
        ("run c1", Action::Run(bundle(".", "c1"))),
        ("run -d -b /b c1", Action::Run(bundle("/b", "c1"))),
        ("--debug run --keep --bundle=/b c1", Action::Run(bundle("/b", "c1"))),
        ("run c1 --bundle /b", Action::Run(bundle("/b", "c1"))),
        ("create --bundle /b -- c1", Action::Create(bundle("/b", "c1"))),
        ("-- create -b /b c1", Action::Create(bundle("/b", "c1"))),
        ("create --bundle= c1", Action::Create(bundle(".", "c1"))),
        ("create --bundle /b --new-flag=x c1", Action::Create(bundle("/b", "c1"))),
        ("--new-flag=x create --bundle /b c1", Action::Create(bundle("/b", "c1"))),
        ("create --bundle /b --root /r c1", Action::Create(bundle("/b", "c1"))),
        ("delete -f c1", delete(true)),
        ("delete --force=false c1", delete(false)),
        ("delete --regex ^c", Action::Other),
        ("--version", Action::Other),
        ("-v create", Action::Other),
        ("--help create --bundle /b c1", Action::Other),
        ("create --help", Action::Other),
        ("features", Action::Other),
        ("list -f json", Action::Other),
        ("", Action::Other),
        ("--root", Action::Other),
        ("start", Action::Other),
        // words that look like something else
        ("--log create --root run state c1", Action::Other),
        ("--log create start c1", start()),
        ("exec c1 run --bundle /x", Action::Other),
        ("--new-switch exec c1 run", Action::Other),
        ("--log run create --pid-file run --bundle start create", Action::Create(bundle("start", "create"))),
    ] {
        assert_eq!(read_line(line).action, action, "{line}");
    }
}

#[test]
fn another_configuration_file_is_the_one_that_counts() {
    for line in ["create -f /c.json --bundle /b c1", "create --config=/c.json --bundle /b c1"] {
        let Action::Create(bundle) = read_line(line).action else { panic!("{line}") };
        assert_eq!(bundle.config, Path::new("/c.json"), "{line}");
    }
}

#[test]
fn what_is_not_clear_is_said() {
    for (line, expected) in [
        ("--new-flag create --bundle /b c1", "does not know the flag --new-flag"),
        ("--new-flag state create", "does not know the flag --new-flag"),
        ("--new-flag start c1", "does not know the flag --new-flag"),
        ("create --new-flag --bundle /b c1", "does not know the flag --new-flag"),
        ("create --bundl /b c1", "does not know the flag --bundl"),
        ("create --bundl=/b c1", "does not know the flag --bundl=/b"),
        ("create --c=/b c1", "does not know the flag --c=/b"),
        ("create -bundle /b c1", "does not know the flag -bundle"),
        ("create -b/b c1", "does not know the flag -b/b"),
        ("create -b=/b c1", "does not know the flag -b=/b"),
        ("run -db /b c1", "does not know the flag -db"),
        ("create --bundle /a --bundle /b c1", "--bundle is said twice"),
        ("create --bundle /a -b /b c1", "--bundle is said twice"),
        ("create --pid-file --bundle /b c1", "the value of --pid-file is missing or begins with a dash"),
        ("create --bundle", "the value of --bundle is missing"),
        ("create --config c.json --bundle /b c1", "--config c.json is not absolute"),
        ("create --config=config.json --bundle /b c1", "--config config.json is not absolute"),
        ("start --wait c1", "does not know the flag --wait"),
        ("start --root /r c1", "does not know the flag --root"),
        ("start --debug --", "does not know the flag --debug"),
        ("create --config=/f --", "--config stands in front of a --"),
        ("run --usage2 --", "does not know the flag --usage2"),
        ("--log -x create --bundle /b c1", "does not know the flag --log"),
    ] {
        let Action::Unclear { why } = read_line(line).action else { panic!("{line}") };
        assert!(why.contains(expected) && why.contains("hooks.d or CDI"), "{line}: {why}");
    }
    // runc makes a container called `--usage` of the bundle where it is called.
    let Action::Run(made) = read_line("run --usage --").action else { panic!("not noticed") };
    assert_eq!(made.config, Path::new("./config.json"));
    for line in ["--help=false create --bundle /b c1", "--help --help=false create --bundle /b c1"] {
        assert_eq!(read_line(line).action, Action::Create(bundle("/b", "c1")), "{line}");
    }
}

#[test]
fn log_and_root_are_found() {
    let said = read_line("--root=/r --log /l --log-format json state c1");
    assert_eq!(said.log, Log { file: Some("/l".into()), json: true });
    assert_eq!(said.root.as_deref(), Some(Path::new("/r")));
    // Behind a flag that tunjail does not know, too: the engine is to be told why.
    let said = read_line("--new --log=file:/l --log-format=text create c1");
    assert_eq!(said.log, Log { file: Some("/l".into()), json: false });
    for line in ["--log= state c1", "--log=journald:x state c1", "--log syslog:x state c1", "state --log /l"] {
        assert_eq!(read_line(line).log.file, None, "{line}");
    }
}

#[test]
fn a_log_is_found_behind_words_of_others() {
    let behind = |line: &str| log_behind(&line.split(' ').map(Into::into).collect::<Vec<_>>());
    let log = Log { file: Some("/l".into()), json: true };
    assert_eq!(behind("--jail Office --root /r --log /l --log-format json create c1"), log);
    assert_eq!(behind("--jail No Such --log /l --log-format json create c1"), log);
    assert_eq!(behind("--jail Office state c1"), Log::default());
}

#[test]
fn words_need_not_be_text() {
    let odd = |text: &[u8]| OsString::from_vec(text.to_vec());
    let args = [odd(b"--root"), odd(b"/\xff"), odd(b"create"), odd(b"--bundle"), odd(b"/b\xfe"), odd(b"c1")];
    let said = read(&args);
    assert_eq!(said.root, Some(PathBuf::from(odd(b"/\xff"))));
    let Action::Create(bundle) = said.action else { panic!("{said:?}") };
    assert_eq!(bundle.directory, PathBuf::from(odd(b"/b\xfe")));
    assert!(matches!(read(&[odd(b"--\xff"), odd(b"run"), odd(b"c1")]).action, Action::Unclear { .. }));
}

/// What was read, as the reference says it; None for unclear.
fn understood(args: &[&str]) -> Option<Option<Made>> {
    let made = |command: &str, bundle: Bundle| {
        let config = bundle.config.to_string_lossy().into_owned();
        let id = bundle.id.unwrap_or_default().to_string_lossy().into_owned();
        Some(Some(Made { command: command.into(), config, id }))
    };
    match read(&args.iter().map(Into::into).collect::<Vec<_>>()).action {
        Action::Unclear { .. } => None,
        // Flags that one runtime takes for ids are no ids to tunjail: it is the bundle that counts.
        Action::Create(bundle) => made("create", bundle),
        Action::Run(bundle) => made("run", bundle),
        Action::Restore(bundle) => made("restore", bundle),
        Action::Start { id } => {
            let id = id.to_string_lossy().into_owned();
            Some(Some(Made { command: "start".into(), config: String::new(), id }))
        }
        Action::Delete { .. } | Action::Other => Some(None),
    }
}

const GLOBAL: &[&str] = &[
    "--root",
    "--root=/r",
    "-root",
    "--log",
    "--log=/l",
    "--log-format",
    "--log-format=json",
    "--criu",
    "--rootless",
    "--rootless=auto",
    "--systemd-cgroup",
    "--debug",
    "--debug=false",
    "--cgroup-manager=cgroupfs",
    "--log-level",
    "--help",
    "--help=false",
    "-v",
    "--version",
    "--usage",
    "-?",
    "--deb",
    "--log-l",
    "--roo",
    "-",
    "--",
    "--new",
    "--new=x",
    "/r",
    "json",
];
const COMMAND: &[&str] = &["create", "run", "restore", "start", "state", "delete", "exec", "--", "-", "c1"];
const LOCAL: &[&str] = &[
    "--bundle",
    "--bundle=/b",
    "--bundle=",
    "-b",
    "-b=/b",
    "-b/b",
    "-bundle",
    "-bundle=/b",
    "--bund",
    "--b=/b",
    "-db",
    "-f",
    "--config",
    "--config=/f",
    "--conf=/f",
    "--config=config.json",
    "--pid-file",
    "--pid-file=/p",
    "--console-socket",
    "--preserve-fds",
    "--preserve-fds=2",
    "--no-pivot",
    "--no-pivot=false",
    "--no-p",
    "--no-new-keyring",
    "--detach",
    "-d",
    "--keep",
    "--no-subreaper",
    "--image-path",
    "--shell-job",
    "--help",
    "--help=false",
    "-h",
    "-?",
    "--",
    "-",
    "--new",
    "--new=x",
    "-x",
    "--=x",
    "---bundle",
    "/b",
    "/c",
    "c1",
    "create",
    "run",
];

/// Anything at all, near to what a runtime takes.
fn any_line() -> impl Strategy<Value = Vec<&'static str>> {
    let (global, local) = (vec(select(GLOBAL), 0..4), vec(select(LOCAL), 0..7));
    (global, select(COMMAND), local, select(&["c1", "c2", "--", "/b"][..]))
        .prop_map(|(global, command, local, last)| [global, vec![command], local, vec![last]].concat())
}

/// Flags with their values in their places, in every form that engines use.
fn engines_line() -> impl Strategy<Value = (Vec<String>, Made)> {
    let value = select(&["/a", "create", "run", "json", "c9", "x=y"][..]);
    let valued = |names: &'static [&'static str]| {
        (select(names), value.clone(), any::<bool>()).prop_map(|(name, value, joined)| match joined {
            true => vec![format!("--{name}={value}")],
            false => vec![format!("--{name}"), value.to_owned()],
        })
    };
    let switch = |names: &'static [&'static str]| select(names).prop_map(|name| vec![format!("--{name}")]);
    let global = prop_oneof![valued(&["root", "log", "log-format", "rootless"]), switch(&["debug", "systemd-cgroup"])];
    let local =
        prop_oneof![valued(&["pid-file", "console-socket", "preserve-fds"]), switch(&["no-pivot", "no-new-keyring"])];
    let bundle = select(&["/b", "/run/b", "create", "rel/b"][..]);
    let form = select(&["--bundle ", "--bundle=", "-b "][..]);
    let place = any::<prop::sample::Index>();
    (vec(global, 0..4), select(&["create", "run"][..]), vec(local, 0..4), bundle, form, place).prop_map(
        |(global, command, mut local, bundle, form, place)| {
            let said = format!("{form}{bundle}").split(' ').map(str::to_owned).collect();
            local.insert(place.index(local.len() + 1), said);
            let line = [global.concat(), vec![command.to_owned()], local.concat(), vec!["c1".to_owned()]].concat();
            (line, Made { command: command.into(), config: format!("{bundle}/config.json"), id: "c1".into() })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever either runtime would make or start, tunjail knows of, or refuses.
    #[test]
    fn no_container_goes_unnoticed(line in any_line()) {
        let understood = understood(&line);
        for made in [reference::runc(&line), reference::crun(&line)].into_iter().flatten() {
            let noticed = understood.as_ref().is_none_or(|read| {
                read.as_ref().is_some_and(|read| {
                    let same_id = read.id == made.id || made.id.starts_with('-');
                    (&read.command, &read.config) == (&made.command, &made.config) && same_id
                })
            });
            prop_assert!(noticed, "{made:?} but {understood:?}");
        }
    }
}

proptest! {
    #[test]
    fn engines_lines_are_understood((line, expected) in engines_line()) {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        prop_assert_eq!(reference::runc(&line), Some(expected.clone()));
        prop_assert_eq!(reference::crun(&line), Some(expected.clone()));
        prop_assert_eq!(understood(&line), Some(Some(expected)));
    }

    #[test]
    fn any_bytes_are_read(line in vec(vec(1_u8.., 0..12), 0..8)) {
        read(&line.into_iter().map(OsString::from_vec).collect::<Vec<_>>());
    }
}

/// The generated lines are worth something: each runtime takes many of them, many of those are understood, and the
/// runtimes differ on some.
#[test]
fn the_lines_are_no_mere_noise() {
    let mut runner = TestRunner::deterministic();
    let (mut runc, mut crun, mut both_differ, mut clear) = (0, 0, 0, 0);
    for _ in 0..20_000 {
        let line = any_line().new_tree(&mut runner).unwrap().current();
        let made = (reference::runc(&line), reference::crun(&line));
        runc += usize::from(made.0.is_some());
        crun += usize::from(made.1.is_some());
        both_differ += usize::from(made.0.is_some() && made.1.is_some() && made.0 != made.1);
        clear += usize::from((made.0.is_some() || made.1.is_some()) && understood(&line).is_some());
    }
    println!("runc {runc}, crun {crun}, they differ {both_differ}, clear {clear}");
    assert!(runc > 300 && crun > 300 && both_differ > 5 && clear > 300);
}
