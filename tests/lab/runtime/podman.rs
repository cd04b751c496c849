//! Podman with tunjail as its runtime: not the way that we advise, but one that works.

use std::fs;

use rstest::rstest;

use super::WRAPPER;
use crate::engine::Container;
use crate::engine::podman::Podman;
use crate::product::{STRICT_JAIL, own_lines};
use crate::run::answer;
use crate::tools;
use crate::vpn::Vpn;
use crate::world::{Lab, SERVICE4, VPN4};

/// What docs/commands.md tells to write.
const CONTAINERS_CONF: &str = "runtime_supports_json = [\"crun\", \"runc\", \"tunjail-runtime\"]
runtime_supports_nocgroups = [\"crun\", \"tunjail-runtime\"]
[engine.runtimes]
tunjail-runtime = [\"/usr/local/bin/tunjail-runtime\"]
";

#[rstest]
#[case::runc_by_path("runc", WRAPPER)]
#[case::crun_by_path("crun", WRAPPER)]
#[case::runc_by_name("runc", "tunjail-runtime")]
#[case::crun_by_name("crun", "tunjail-runtime")]
fn podman_runs_jailed_containers_through_it(#[case] underneath: &str, #[case] named: &'static str) {
    let lab = Lab::new();
    let server = Vpn::start_server(&lab);
    let mut client = server.client(Some(&lab.exit_script()));
    let underneath = tools::path_of(underneath).to_string_lossy().into_owned();
    lab.configure(&format!("{STRICT_JAIL}[runtime]\npath = \"{underneath}\"\n"));
    client.start_and_wait();
    let podman = Podman::new(&lab).runtime(named);
    if named != WRAPPER {
        let path = "/etc/containers/containers.conf";
        let text = fs::read_to_string(path).expect("containers.conf");
        fs::write(path, text + CONTAINERS_CONF).expect("containers.conf");
    }
    let mut member = podman.run("m1", &[]);
    assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4);
    podman.call(&["restart", "--time", "0", "m1"]).ok();
    assert_eq!(answer(&member.probe(&["http", SERVICE4])), VPN4);
    member.stop();
    member.remove();
    assert!(!lab.tunjail_ok(&["status"]).contains("m1"));

    lab.configure(&format!("[jail.vpn]\nsubnets = 7\n[runtime]\npath = \"{underneath}\"\n"));
    let Err(out) = podman.try_run("m2", &[]) else { panic!("it runs") };
    println!("{named}: {}", out.stderr);
    let lines = own_lines(&out.stderr);
    assert!(lines.len() == 1 && lines[0].contains("was not started: /etc/tunjail/tunjail.toml:2: "), "{out:?}");
    podman.call(&["rm", "--force", "m2"]).ok();
}
