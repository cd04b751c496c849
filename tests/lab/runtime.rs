//! `tunjail runtime` in front of real runtimes: what goes through it, what it adds, and what it refuses.

mod errors;
mod podman;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rstest::rstest;

use crate::engine::oci::Bundle;
use crate::product::{CONFIG, JAIL};
use crate::run::{Cmd, Out, wait_until};
use crate::tools;
use crate::world::{Lab, Netns};

const WRAPPER: &str = "/usr/local/bin/tunjail-runtime";

/// A lab with a namespace that is no jail's, one runtime, and bundles.
struct Bench {
    netns: Netns,
    runtime: String,
    lab: Lab,
}

impl Bench {
    fn new(runtime: &str) -> Self {
        tools::require(&[runtime]);
        let lab = Lab::new();
        lab.configure(JAIL);
        Self { netns: Netns::add("free"), runtime: tools::path_of(runtime).to_string_lossy().into_owned(), lab }
    }

    /// Two bundles of the same container: one to be run by the runtime itself, one through tunjail.
    fn bundles(&self, name: &str, make: impl Fn(Bundle) -> Bundle) -> [PathBuf; 2] {
        ["plain", "wrapped"].map(|kind| self.bundle(&format!("{name}-{kind}"), &make))
    }

    fn bundle(&self, name: &str, make: impl Fn(Bundle) -> Bundle) -> PathBuf {
        let dir = self.lab.dir(&format!("bundles/{name}"));
        fs::write(dir.join("config.json"), make(Bundle::new(&self.netns)).text()).expect("config.json");
        dir
    }

    /// The command lines of the runtime itself and of tunjail in front of it, in a shell script's words.
    fn calls(&self) -> [String; 2] {
        [format!("{} --root /run/lab/plain", self.runtime), self.wrapped()]
    }

    fn wrapped(&self) -> String {
        format!("{WRAPPER} --runtime {} --root /run/lab/wrapped", self.runtime)
    }

    fn sh(&self, script: &str) -> Out {
        Cmd::new("/bin/sh", &["-c", script]).out()
    }
}

fn has_hooks(bundle: &Path) -> bool {
    fs::read_to_string(bundle.join("config.json")).expect("config.json").contains("create-runtime")
}

/// Runs a shell script with `CALL` and `BUNDLE` in it for both, and demands the same of both.
#[track_caller]
fn same(bench: &Bench, name: &str, script: &str, make: impl Fn(Bundle) -> Bundle) -> Out {
    let bundles = bench.bundles(name, make);
    let [plain, wrapped] = bench.calls().map(|call| script.replace("CALL", &call));
    let [plain, wrapped] = [(plain, &bundles[0]), (wrapped, &bundles[1])].map(|(script, bundle)| {
        let out = bench.sh(&script.replace("BUNDLE", &bundle.to_string_lossy()));
        (out.code, out.stdout, out.stderr)
    });
    assert_eq!(plain, wrapped, "{name}");
    assert!(!has_hooks(&bundles[0]) && has_hooks(&bundles[1]), "{name}: the hooks are in the second alone");
    Out { code: wrapped.0, stdout: wrapped.1, stderr: wrapped.2 }
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn exit_codes_and_output_are_the_runtimes_own(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    let said = |script: &'static str| move |bundle: Bundle| bundle.process(&["/bin/sh", "-c", script]);
    let out = same(&bench, "ends", "CALL run --bundle BUNDLE c1", said("echo out; echo err >&2; exit 42"));
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (42, "out\n", "err\n"));
    let out = same(&bench, "stdin", "echo in | CALL run -b BUNDLE c1", said("read word; echo got $word"));
    assert_eq!((out.code, out.stdout.as_str()), (0, "got in\n"));
    let out = same(&bench, "here", "cd BUNDLE; CALL run c1", said("exit 3"));
    assert_eq!(out.code, 3);

    let bundles = bench.bundles("killed", said("echo ready; sleep 3600"));
    for (call, bundle) in bench.calls().into_iter().zip(bundles) {
        let run = format!("exec {call} run --bundle {} c1", bundle.display());
        let job = Cmd::new("/bin/sh", &["-c", &run]).spawn();
        wait_until("the process", Duration::from_secs(5), || job.stdout().contains("ready"));
        assert_eq!(bench.sh(&format!("{call} kill c1 KILL")).code, 0);
        assert_eq!(job.finish(Duration::from_secs(5)).code, 137, "{call}");
    }
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn what_a_runtime_says_of_itself_is_the_same_to_the_byte(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    for words in
        ["--version", "features", "--help", "list", "list --format json", "state nobody", "start nobody", "nonsense"]
    {
        let outs = bench.calls().map(|call| {
            // One root for both: it is in what they say.
            let out = bench.sh(&format!("{} {words}", call.replace("/run/lab/wrapped", "/run/lab/plain")));
            let time = |text: &str| text.split("time=").next().unwrap_or_default().to_owned();
            (out.code, out.stdout, time(&out.stderr))
        });
        assert_eq!(outs[0], outs[1], "{words}");
        assert!(!outs[0].1.is_empty() || outs[0].0 != 0, "{words}: {outs:?}");
    }
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn descriptors_reach_the_process(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    fs::write("/run/lab/three", "three\n").and_then(|()| fs::write("/run/lab/four", "four\n")).expect("files");
    let open = "exec 3</run/lab/three 4</run/lab/four;";
    let reader = |bundle: Bundle| bundle.process(&["/bin/sh", "-c", "cat <&3; cat <&4"]);
    let out = same(&bench, "fds", &format!("{open} CALL run --preserve-fds 2 --bundle BUNDLE c1"), reader);
    assert_eq!((out.code, out.stdout.as_str()), (0, "three\nfour\n"), "{out:?}");
    // The control: not without the flag.
    let out = same(&bench, "none", &format!("{open} CALL run --bundle BUNDLE c1"), reader);
    assert_eq!(out.stdout, "", "{out:?}");
    // Socket activation is for one process by its pid, so the pid has to stay as well.
    let listener = |bundle: Bundle| bundle.process(&["/bin/sh", "-c", "cat <&3"]);
    let script = format!("{open} export LISTEN_FDS=1 LISTEN_PID=$$; exec CALL run --bundle BUNDLE c1");
    let out = same(&bench, "listen", &script, listener);
    assert_eq!((out.code, out.stdout.as_str()), (0, "three\n"), "{out:?}");
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn a_signal_to_the_wrappers_pid_reaches_the_container(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 3600 & wait $!; done";
    let bundles = bench.bundles("signal", |bundle| bundle.process(&["/bin/sh", "-c", script]));
    for (call, bundle) in bench.calls().into_iter().zip(bundles) {
        let job = Cmd::new("/bin/sh", &["-c", &format!("exec {call} run --bundle {} c1", bundle.display())]).spawn();
        wait_until("the process", Duration::from_secs(5), || job.stdout().contains("ready"));
        job.signal(Signal::SIGTERM);
        let out = job.finish(Duration::from_secs(5));
        assert_eq!(out.code, 7, "{call}: {out:?}");
    }
}

/// The descriptor that a runtime sends to a console socket.
fn receive(listener: &UnixListener) -> fs::File {
    let mut stream = None;
    wait_until("the runtime at the console socket", Duration::from_secs(5), || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (stream, _) = stream.expect("a connection");
    stream.set_nonblocking(false).expect("a blocking socket");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    let (mut bytes, mut space) = ([0; 4096], nix::cmsg_space!([std::os::fd::RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).expect("a message");
    let fds = message.cmsgs().expect("whole control messages").find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fds.expect("a descriptor")) }.into()
}

#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn the_console_socket_gets_the_terminal(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    let script = "test -t 0 && test -t 1 && echo on a terminal";
    let bundle = bench.bundle("console", |bundle| bundle.terminal().process(&["/bin/sh", "-c", script]));
    let socket = bench.lab.dir("console").join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    listener.set_nonblocking(true).expect("a socket that does not block");
    let call = bench.wrapped();
    let create = format!("exec {call} create --console-socket {} --bundle {} c1", socket.display(), bundle.display());
    let create = Cmd::new("/bin/sh", &["-c", &create]).spawn();
    let mut terminal = receive(&listener);
    let out = create.finish(Duration::from_secs(5));
    assert_eq!(out.code, 0, "{out:?}");
    assert_eq!(bench.sh(&format!("{call} start c1")).code, 0);
    let mut said = Vec::new();
    let mut bytes = [0; 256];
    // The end of a terminal is an error (EIO), not an end of file.
    while let Ok(count) = terminal.read(&mut bytes) {
        said.extend_from_slice(&bytes[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&said), "on a terminal\r\n");
    assert_eq!(bench.sh(&format!("{call} delete --force c1")).code, 0);
}

/// A program in the real runtime's place that writes down all that it was given.
#[test]
fn every_byte_arrives() {
    let bench = Bench::new("runc");
    let dir = bench.lab.dir("record");
    let record = dir.join("runc");
    let script = "#!/bin/sh\ncat /proc/$$/cmdline; echo; cat /proc/$$/environ; echo; pwd
        ls /proc/$$/fd; echo $$\n";
    fs::write(&record, script).expect("a script");
    bench.lab.sh(&format!("chmod 755 {}", record.display()));
    // A non-UTF-8 word and variable, descriptor 7, and a directory of its own.
    let run = |call: &str| {
        let args = "exec c1 \"$(printf 'a\\377')\" '' 'b c' --config -- --jail x";
        let script = format!(
            "cd /run/lab/record; export ODD=\"$(printf '\\376')\"; exec 7</dev/null
            exec {call} --root /r {args}"
        );
        let out = Cmd::new("/bin/sh", &["-c", &script]).spawn();
        let pid = bench.lab.pid_inside(&out).to_string();
        (out.finish(Duration::from_secs(5)).stdout, pid)
    };
    let (plain, _) = run(&record.to_string_lossy());
    let (wrapped, pid) = run(&format!("{WRAPPER} --jail vpn --runtime {}", record.display()));
    let without_pid = |text: &str| text.trim_end().rsplit_once('\n').map(|(rest, _)| rest.to_owned());
    assert_eq!(without_pid(&plain), without_pid(&wrapped));
    assert_eq!(wrapped.trim_end().rsplit('\n').next(), Some(pid.as_str()), "the same process");
    let words = "exec\0c1\0a\u{fffd}\0\0b c\0--config\0--\0--jail\0x\0";
    assert!(wrapped.contains(words) && wrapped.contains("ODD=\u{fffd}\0"), "{wrapped:?}");
}

/// The same for signals: a shell would reset its mask, so the recorder is a program that shows its own status.
#[test]
fn the_signal_mask_and_dispositions_stay() {
    let bench = Bench::new("runc");
    let record = bench.lab.dir("record").join("runc");
    fs::write(&record, "#!/bin/cat /proc/self/status\n").expect("a script");
    bench.lab.sh(&format!("chmod 755 {}", record.display()));
    let run = |call: &str| {
        let signals = "--block-signal=USR1,CHLD --ignore-signal=HUP --default-signal=PIPE";
        let out = bench.sh(&format!("exec env {signals} {call} state c1"));
        let lines = out.stdout.lines().filter(|line| line.starts_with("SigBlk") || line.starts_with("SigIgn"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = run(&record.to_string_lossy());
    assert_eq!(plain[0], "SigBlk:\t0000000000010200");
    assert!(plain[1].ends_with('1'), "HUP is signal 1: {plain:?}");
    assert_eq!(run(&format!("{WRAPPER} --runtime {}", record.display())), plain);
}

/// Every odd line that the real runtime takes: tunjail sees the bundle in it, or refuses. The hooks name a jail that is
/// not there, so a process that runs ran without them.
#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn no_line_that_a_real_runtime_takes_goes_unnoticed(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    let (mut taken, mut unclear) = (0, 0);
    for (n, line) in [
        "run --bundle BUNDLE ID",
        "run --bundle=BUNDLE ID",
        "run -b BUNDLE ID",
        "run -bBUNDLE ID",
        "run -b=BUNDLE ID",
        "run -bundle BUNDLE ID",
        "run -bundle=BUNDLE ID",
        "run --bund BUNDLE ID",
        "run --b=BUNDLE ID",
        "run --bundle /nowhere --bundle BUNDLE ID",
        "run ID --bundle BUNDLE",
        "run --bundle BUNDLE -- ID",
        "run --no-pivot=false --bundle BUNDLE ID",
        "run --pid-file /run/lab/p --bundle BUNDLE ID",
        "run --pid-file run --bundle BUNDLE ID",
        "run --config BUNDLE/config.json --bundle BUNDLE ID",
        "run -f BUNDLE/config.json ID",
        "run -f BUNDLE/config.json --bundle /run/lab ID",
        "run --conf BUNDLE/config.json --bundle /run/lab ID",
        "-- run --bundle BUNDLE ID",
        "--log run run --bundle BUNDLE ID",
        "--log-format text --debug run --bundle BUNDLE ID",
        "-debug run --bundle BUNDLE ID",
        "--deb run --bundle BUNDLE ID",
        "--help=false run --bundle BUNDLE ID",
        "--rootless true run --bundle BUNDLE ID",
        "create --bundle BUNDLE ID && CALL start ID",
        "run ID",
        "run --usage --",
        "run --keep --version --",
        "run -d --",
        "run --bundle BUNDLE ID --",
    ]
    .into_iter()
    .enumerate()
    {
        let bundles = bench.bundles(&format!("line{n}"), |bundle| {
            bundle.process(&["/bin/sh", "-c", "echo ran >/tmp/ran"]).bind(&bench.lab.dir("trace"), "/tmp")
        });
        let trace = bench.lab.dir("trace").join("ran");
        let [plain, wrapped] = bench.calls();
        let jailed = wrapped.replace("--runtime", "--jail nope --runtime");
        let mut run = |call: &str, bundle: &Path| {
            let script = format!("cd {}; {call} {line}", bundle.display()).replace("CALL", call);
            let out = bench.sh(&script.replace("BUNDLE", &bundle.to_string_lossy()).replace("ID", &format!("c{n}")));
            // `start` does not wait for the process.
            if line.starts_with("create") && out.code == 0 {
                wait_until("the process", Duration::from_secs(5), || trace.exists());
            }
            unclear += usize::from(out.stderr.contains("is not sure which bundle"));
            (fs::remove_file(&trace).is_ok(), out)
        };
        let (control, _) = run(&plain, &bundles[0]);
        let (ran, out) = run(&jailed, &bundles[1]);
        assert!(!ran, "{line}: its process ran without hooks: {out:?}");
        assert!(out.code != 0 || !control, "{line}: {out:?}");
        taken += usize::from(control);
    }
    println!("{runtime}: {taken} lines taken, {unclear} refused as unclear");
    assert!(taken >= 15 && unclear >= 6, "{taken} {unclear}");
}

/// What tunjail was told of another configuration is what the hooks go by, wherever they are run.
#[rstest]
#[case::runc("runc")]
#[case::crun("crun")]
fn another_configuration_goes_into_the_hooks(#[case] runtime: &str) {
    let bench = Bench::new(runtime);
    fs::copy(CONFIG, "/run/lab/other.toml").expect("another configuration");
    fs::remove_file(CONFIG).expect("the usual one removed");
    for (n, (variable, flag)) in
        [("", "--config other.toml"), ("TUNJAIL_CONFIG=/run/lab/other.toml", "")].iter().enumerate()
    {
        let bundle = bench.bundle(&format!("other{n}"), |bundle| bundle.process(&["/bin/sh", "-c", "echo ran"]));
        let run = |jail: &str| {
            let call = bench.wrapped().replace(WRAPPER, &format!("{WRAPPER} {flag} {jail}"));
            bench.sh(&format!("cd /run/lab; export {variable} X=; {call} run --bundle {} c1", bundle.display()))
        };
        let out = run("");
        assert_eq!((out.code, out.stdout.as_str()), (0, "ran\n"), "{out:?}");
        let out = run("--jail office");
        let said = "jail office is not in the configuration (/run/lab/other.toml)";
        assert!(out.code != 0 && out.stdout.is_empty() && out.stderr.contains(said), "{out:?}");
        let text = fs::read_to_string(bundle.join("config.json")).expect("config.json");
        assert!(text.contains(r#"["tunjail","--config","/run/lab/other.toml","hook","poststop"]"#), "{text}");
    }
}

/// A container has to stay manageable when the configuration breaks: by the runtime that made it, and in silence.
#[test]
fn a_broken_configuration_keeps_containers_manageable() {
    let bench = Bench::new("crun");
    // An address that is nobody's: without one it would wait for it, and `start` with it.
    bench.netns.sh("ip addr add 10.99.0.2/32 dev lo");
    bench.lab.configure(&format!("{JAIL}[runtime]\npath = \"{}\"\n", bench.runtime));
    let bundle = bench.bundle("kept", |bundle| bundle);
    let call = format!("{WRAPPER} --root /run/lab/kept");
    let ok = |words: &str| {
        let out = bench.sh(&format!("{call} {words}"));
        assert!(out.code == 0 && out.stderr.is_empty(), "{words}: {out:?}");
        out.stdout
    };
    let elsewhere = format!("{JAIL}[runtime]\npath = \"/nowhere/crun\"\n");
    for (now, broken) in
        [("[jail.vpn]\nsubnets = 7\n", true), ("[", true), ("", true), (&elsewhere, true), (JAIL, false)]
    {
        bench.lab.configure(&format!("{JAIL}[runtime]\npath = \"{}\"\n", bench.runtime));
        ok(&format!("create --bundle {} c1", bundle.display()));
        assert!(Path::new("/run/lab/kept/c1/status").exists(), "crun made it");
        match now {
            "" => fs::remove_file(CONFIG).expect("the configuration removed"),
            _ => bench.lab.configure(now),
        }
        assert!(ok("state c1").contains("\"created\""));
        ok("start c1");
        ok("kill c1 KILL");
        wait_until("its end", Duration::from_secs(5), || ok("state c1").contains("\"stopped\""));
        ok("delete c1");
        if !broken {
            continue;
        }
        let out = bench.sh(&format!("{call} create --bundle {} c1", bundle.display()));
        assert_eq!(out.code, 1, "{out:?}");
        assert!(out.stderr.starts_with("tunjail: the container was not started: /etc/tunjail/tunjail.toml"), "{out:?}");
    }
}
