//! aardvark-dns, on the real thing: it listens on the bridge's gateway, and asks from the host's namespace.

use rstest::rstest;

use super::{TRANSPORTS, ask, asks_by_the_exit, is_refused, jail, new_name, warnings};
use crate::bridge::{GATEWAY4, GATEWAY6};
use crate::engine::Container;
use crate::engine::podman::Podman;
use crate::guest::{Guest, Release};
use crate::matrix::wired::ALWAYS;
use crate::vpn::Vpn;
use crate::world::{DNS4, DNS6, Lab, ROUTER4};

#[rstest]
#[case::podman_4_3(Release::Bookworm)]
#[case::podman_5_8(Release::Sid)]
fn podmans_resolver_answers_by_the_exit_or_not_at_all(#[case] release: Release) {
    let lab = Lab::new();
    let guest = Guest::new(&lab, release);
    lab.is_of(&guest);
    lab.configure(&jail(""));
    let server = Vpn::start_server(&lab);
    let mut client = server.client(Some(&lab.exit_script()));
    let podman = Podman::of(&lab, &guest).with_dns();
    // That of 4.3 answers UDP alone.
    let own_transports = if release == Release::Sid { &TRANSPORTS[..] } else { &TRANSPORTS[..1] };
    let asks_past_the_exit = |container: &dyn Container, what: &str| {
        for transport in own_transports {
            for gateway in [GATEWAY4, GATEWAY6] {
                let name = ask(container, transport, gateway);
                assert_eq!(lab.askers(&name), [ROUTER4], "{what}: {transport} {gateway}");
            }
        }
    };

    let mut plain = podman.run("control", &[]);
    let control = lab.assert_probe_is_visible(|| asks_past_the_exit(&plain, "positive control"));
    let file = plain.exec(&["/bin/cat", "/etc/resolv.conf"]).stdout;
    assert!(file.contains(&format!("nameserver {GATEWAY4}")), "{file}");
    plain.remove();
    client.start_and_wait();
    let podman = podman.hooks("always", &ALWAYS);
    let warned = || warnings(&lab).iter().any(|warning| warning.contains("names leave by the host's uplink"));

    let mut member = podman.run("m1", &[]);
    lab.reset_leaks();
    assert!(!warned(), "{:?}", warnings(&lab));
    for transport in TRANSPORTS {
        for gateway in [GATEWAY4, GATEWAY6] {
            is_refused(&lab, &member, &[transport, gateway]);
        }
        asks_by_the_exit(&lab, &member, transport, DNS4);
        asks_by_the_exit(&lab, &member, transport, DNS6);
    }
    member.remove();
    lab.configure(&jail(&format!("dns = [\"{DNS4}\", \"{DNS6}\"]")));
    let mut member = podman.run("m2", &[]);
    for transport in TRANSPORTS {
        for server in [GATEWAY4, GATEWAY6, "192.0.2.8", "2001:db8:77::8"] {
            asks_by_the_exit(&lab, &member, transport, server);
        }
    }
    client.sigkill();
    for gateway in [GATEWAY4, GATEWAY6] {
        assert_eq!(member.probe(&["dns", gateway, &new_name()]).json()["ok"], false, "without an exit: {gateway}");
    }
    client.start_and_wait();
    member.remove();
    lab.wait_quiet();
    lab.assert_no_leak("dns", &format!("{release:?}-podman").to_lowercase(), control);

    lab.configure(&jail("dns = \"engine\""));
    assert!(warned(), "{:?}", warnings(&lab));
    let member = podman.run("m3", &[]);
    asks_past_the_exit(&member, "the engine's resolver, as `check` said");
}
