//! containerd as Kubernetes drives it. All containers of a pod share the sandbox's network namespace: the pod is one
//! member with several containers, and it goes with the last of them.

pub mod wiring;

use std::path::Path;
use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use self::wiring::{ANNOTATION, DEVICE, PLAIN, Way, ways, wired};
use crate::engine::Container;
use crate::engine::containerd::{Containerd, Pod, PodConfig, PodContainer};
use crate::guest::{Guest, Release};
use crate::matrix::{comes_to_be, control_of_the_loss};
use crate::product::{self, STRICT_JAIL, TUNJAIL, own_lines};
use crate::rootfs;
use crate::run::{Out, answer, wait_until};
use crate::scene::Traffic;
use crate::snapshot::Snapshot;
use crate::vpn::{Client, Vpn};
use crate::works::ask_the_internet;
use crate::world::{HOST6, Lab, Netns, ROUTER4, SERVICE4, SERVICE6, VPN4, VPN6};

/// The lab, after the kubelet's program is there: what builds it, should it be needed, is none of the lab's.
fn lab() -> Lab {
    rootfs::kubelet();
    Lab::new()
}

fn exit(lab: &Lab) -> (Vpn, Client) {
    let server = Vpn::start_server(lab);
    let client = server.client(Some(&lab.exit_script()));
    lab.configure(STRICT_JAIL);
    (server, client)
}

/// A pod that is no member, on its way in and out: what CNI leaves after its first pod is not counted.
fn settled_after_a_plain_pod(lab: &Lab, engine: &Containerd) -> Snapshot {
    let pod = engine.pod(PLAIN, &PodConfig::new("first"));
    pod.stop();
    pod.remove();
    lab.settled()
}

/// The containers of each member, as `tunjail status` lists them.
fn members(engine: &Containerd) -> Vec<Vec<String>> {
    // By the nft of the release: an older one cannot read what a newer one wrote.
    let status: Value = serde_json::from_str(&engine.guest.cmd(TUNJAIL, &["status", "--json"]).ok()).expect("JSON");
    let members = status["jails"][0]["members"].as_array().expect("a list of members");
    let ids = |member: &Value| -> Vec<String> {
        let containers = member["containers"].as_array().expect("a list of containers");
        let mut ids: Vec<String> = containers.iter().filter_map(|id| id.as_str().map(Into::into)).collect();
        ids.sort();
        ids
    };
    members.iter().map(ids).collect()
}

/// Nothing answers, whatever is asked. All at once, as each question takes its time to be given up.
#[track_caller]
fn ask_in_vain(containers: &[&PodContainer]) {
    let mut asked = Vec::new();
    for (container, address) in containers.iter().flat_map(|container| [(container, SERVICE4), (container, SERVICE6)]) {
        for question in [&["http", address][..], &["udp-echo", address, "7"], &["ping", address, "1"]] {
            asked.push((question.join(" "), container.probing(question)));
        }
    }
    for (question, job) in asked {
        let out = job.finish(Duration::from_secs(10));
        assert_eq!(out.json()["ok"], false, "{question}: {out:?}");
    }
}

fn comes_back(container: &dyn Container) {
    wait_until("the exit open again", Duration::from_secs(10), || {
        container.probe(&["http", SERVICE4]).json()["body"] == VPN4
    });
    assert_eq!(answer(&container.probe(&["http", SERVICE6])), VPN6);
}

/// A pod is over, in the order of a kubelet: containers stop, the sandbox stops, and later what is left is removed.
fn end(pod: &Pod, containers: &mut [PodContainer]) {
    containers.iter_mut().for_each(Container::stop);
    pod.stop();
    containers.iter_mut().for_each(Container::remove);
    pod.remove();
}

#[rstest]
#[case::containerd_1_6(Release::Bookworm)]
#[case::containerd_1_7(Release::Trixie)]
#[case::containerd_2_1(Release::Sid)]
fn a_pod_leaves_by_the_exit_or_not_at_all(#[case] release: Release) {
    let lab = lab();
    let (_server, mut client) = exit(&lab);
    let engine = wired(&lab, release);
    let plain_pod = engine.pod(PLAIN, &PodConfig::new("control"));
    let plain = plain_pod.container("c", &[]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&plain, ROUTER4, HOST6));
    let control = Control { control, of_the_loss: control_of_the_loss(&lab, &mut client, &plain) };
    end(&plain_pod, &mut [plain]);
    let before = lab.settled();
    assert_eq!(before.part("/run/tunjail"), "absent\n", "a plain pod was none of tunjail's business");
    for way in ways(release) {
        a_pod_lives(&lab, &mut client, &engine, way, control);
        comes_to_be(&lab, &before, &format!("a pod that came and went by {way:?}"));
    }
}

/// What an unjailed pod put on the uplink: asking, and losing its exit.
#[derive(Clone, Copy)]
struct Control {
    control: u64,
    of_the_loss: u64,
}

/// Two containers of a pod: held together, and each on its own when the other one goes. The exit is gone before and after.
fn a_pod_lives(lab: &Lab, client: &mut Client, engine: &Containerd, way: Way, control: Control) {
    let no_leak = |what: &str, control| {
        lab.assert_no_leak("containerd", &format!("{}-{way:?}-{what}", engine.guest.release().name()), control);
    };
    client.start_and_wait();
    let pod = way.pod(engine, "web");
    let mut first = way.container(&pod, "first");
    let second = way.container(&pod, "second");
    assert_eq!(members(engine), [way.ids(&pod, &[&first, &second])]);
    lab.reset_leaks();
    for container in [&first, &second] {
        ask_the_internet(container, VPN4, VPN6);
    }
    no_leak("works", control.control);
    assert!(lab.leaks().transport > 0, "nothing went through the tunnel either");

    let mut traffic = Traffic::start(&first);
    traffic.wait_flowing();
    client.sigkill();
    traffic.press();
    ask_in_vain(&[&second]);
    no_leak("exit-killed", control.of_the_loss);

    client.start_and_wait();
    comes_back(&second);
    traffic.wait_floods_flowing();
    no_leak("exit-returned", control.of_the_loss);
    traffic.end(&first);

    first.stop();
    first.remove();
    assert_eq!(members(engine), [way.ids(&pod, &[&second])]);
    ask_the_internet(&second, VPN4, VPN6);
    // As a kubelet restarts a container: another one in the same sandbox.
    let again = way.container(&pod, "again");
    assert_eq!(members(engine), [way.ids(&pod, &[&again, &second])]);
    ask_the_internet(&again, VPN4, VPN6);
    client.sigkill();
    ask_in_vain(&[&again, &second]);
    no_leak("one-of-two", control.control);
    end(&pod, &mut [again, second]);
}

/// The pod's network namespace, which no dead containerd keeps anybody from.
fn netns_of(lab: &Lab, pod: &Pod) -> Netns {
    let its = format!("/proc/{}/ns/net", pod.pid());
    let path = lab.sh(&format!("for path in /run/netns/*; do if [ $path -ef {its} ]; then echo $path; fi; done"));
    Netns::open(path.trim().rsplit('/').next().expect("a name"))
}

fn shim_of(lab: &Lab, pod: &Pod) -> String {
    lab.sh(&format!("sed -n 's/^PPid:[[:space:]]*//p' /proc/{}/status", pod.pid())).trim().to_owned()
}

/// SIGKILL for containerd and for the shim, one after the other and together. What a container's end is worth to its
/// jail is not theirs to say: it is held while a process of it lives.
#[rstest]
#[case::containerd_1_6(Release::Bookworm)]
#[case::containerd_2_1(Release::Sid)]
fn a_pod_is_held_without_its_containerd_and_its_shim(#[case] release: Release) {
    let lab = lab();
    let (_server, mut client) = exit(&lab);
    let engine = wired(&lab, release);
    let plain_pod = engine.pod(PLAIN, &PodConfig::new("control"));
    let plain = plain_pod.container("c", &[]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&plain, ROUTER4, HOST6));
    end(&plain_pod, &mut [plain]);
    let before = lab.settled();
    let ask = |netns: &Netns| {
        assert_eq!(answer(&netns.probe(&["http", SERVICE4])), VPN4);
        assert_eq!(answer(&netns.probe(&["http", SERVICE6])), VPN6);
    };
    let closed = |netns: &Netns, what: &str| {
        for service in [SERVICE4, SERVICE6] {
            assert_eq!(netns.probe(&["http", service]).json()["ok"], false, "{what}");
        }
        lab.assert_no_leak("containerd", &format!("{}-{what}", release.name()), control);
    };

    client.start_and_wait();
    let pod = Way::Annotation.pod(&engine, "web");
    let container = Way::Annotation.container(&pod, "first");
    let (netns, shim) = (netns_of(&lab, &pod), shim_of(&lab, &pod));
    let processes = [pod.pid(), container.pid()];
    let held = members(&engine);
    assert_eq!(held, [Way::Annotation.ids(&pod, &[&container])]);
    lab.reset_leaks();

    engine.sigkill();
    ask(&netns);
    engine.start_again();
    assert_eq!(members(&engine), held, "containerd came back");
    ask(&netns);
    client.sigkill();
    closed(&netns, "containerd-came-back");

    engine.sigkill();
    lab.sh(&format!("kill -9 {shim}"));
    for pid in processes {
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "the container lives without its shim");
    }
    closed(&netns, "no-shim");
    client.start_and_wait();
    ask(&netns);
    assert_eq!(members(&engine), held, "the shim died");
    client.sigkill();

    // When it comes back, containerd itself ends what has no shim any more, and calls the runtime's delete for it.
    engine.start_again();
    wait_until("the pod swept by containerd", Duration::from_secs(10), || members(&engine).is_empty());
    end(&pod, &mut [container]);
    comes_to_be(&lab, &before, "a pod whose shim died with containerd");
}

/// Nobody tells: containerd, shim and containers are killed, and the namespace is removed by hand.
#[test]
fn a_pod_that_nobody_ends_is_swept_by_the_next_command() {
    let lab = lab();
    lab.configure(STRICT_JAIL);
    let engine = wired(&lab, Release::Bookworm);
    let before = settled_after_a_plain_pod(&lab, &engine);
    let pod = Way::Annotation.pod(&engine, "web");
    let container = Way::Annotation.container(&pod, "first");
    let (netns, shim) = (netns_of(&lab, &pod), shim_of(&lab, &pod));
    let processes = format!("{shim} {} {}", pod.pid(), container.pid());
    engine.sigkill();
    lab.sh(&format!("kill -9 {processes}"));
    assert_eq!(members(&engine), [Way::Annotation.ids(&pod, &[&container])], "no poststop came: it is on record still");
    lab.sh(&format!("ip netns del {}", netns.name()));
    drop(netns);
    wait_until("the pod's port gone", Duration::from_secs(10), || lab.sh("ip link show master vpn").is_empty());
    lab.tunjail_ok(&["down"]);
    let swept = lab.snapshot();
    for part in ["ip rule", "ip -6 rule", "/run/tunjail", "rt_tables.d"] {
        assert_eq!(swept.part(part), before.part(part), "{part}");
    }
    assert!(!swept.part("nft ruleset").contains("tunjail"), "{}", swept.part("nft ruleset"));
    // What is left are CNI's own chains, and CNI's to remove.
}

/// What a kubelet reads in the event of a pod that does not start.
#[rstest]
#[case::containerd_1_6(Release::Bookworm)]
#[case::containerd_2_1(Release::Sid)]
fn the_kubelet_is_told_why_a_pod_was_refused(#[case] release: Release) {
    let lab = lab();
    lab.configure(STRICT_JAIL);
    let engine = wired(&lab, release);
    let before = settled_after_a_plain_pod(&lab, &engine);
    let jailed = |jail: &str| PodConfig::new("web").annotation(ANNOTATION, jail);
    let host_network = ["uses the host's own network namespace"];
    let unknown = ["jail nope is not in the configuration", "its jails are: vpn"];
    let told = |said: &Out, because: &[&str]| {
        println!("refused: {}: {}", release.name(), said.stderr.trim());
        let lines = own_lines(&said.stderr);
        assert_eq!(lines.len(), 1, "one line of tunjail's in:\n{}", said.stderr);
        for reason in because {
            assert!(lines[0].contains(reason), "{reason:?} is not in: {}", lines[0]);
        }
    };

    // The handler refuses the sandbox: the pod never is.
    for (config, because) in [(jailed("vpn").on_host_network(), &host_network[..]), (jailed("nope"), &unknown)] {
        let said = engine.try_pod("tunjail", &config).err().expect("a refusal");
        told(&said, because);
        comes_to_be(&lab, &before, "a refused sandbox");
    }
    // A specification does not reach the sandbox: its containers are refused.
    for (config, because) in [(jailed("vpn").on_host_network(), &host_network[..]), (jailed("nope"), &unknown)] {
        let pod = engine.pod("hooks", &config);
        told(&pod.try_container("c", &[]).err().expect("a refusal"), because);
        end(&pod, &mut []);
        comes_to_be(&lab, &before, "a refused container");
    }
    // Without an annotation a pod on the host's network is nobody's: the handler may be the default for all.
    let pod = engine.pod("tunjail", &PodConfig::new("node").on_host_network());
    let container = pod.container("c", &[]);
    end(&pod, &mut [container]);
    comes_to_be(&lab, &before, "a pod on the host's network");
}

/// `pod_annotations` alone brings the jail's name to the runtime, which runs hooks and reads no annotation: containerd
/// has no hooks.d. Such a pod is a plain one, until `tunjail up` holds the addresses of the jail whoever has them.
#[rstest]
#[case::containerd_1_6(Release::Bookworm)]
#[case::containerd_2_1(Release::Sid)]
fn an_annotation_alone_calls_no_hook_but_the_wall_holds(#[case] release: Release) {
    let lab = lab();
    let (_server, mut client) = exit(&lab);
    let engine = wired(&lab, release);
    let before = settled_after_a_plain_pod(&lab, &engine);
    client.start_and_wait();
    let pod = engine.pod("annotated", &PodConfig::new("web").annotation(ANNOTATION, "vpn"));
    let container = pod.container("c", &[]);
    let info: Value = serde_json::from_str(&engine.ctr(&["containers", "info", &container.id]).ok()).expect("JSON");
    assert_eq!(info["Spec"]["annotations"][ANNOTATION], "vpn", "the annotation is there");
    assert!(info["Spec"]["hooks"].is_null(), "{}", info["Spec"]["hooks"]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&container, ROUTER4, HOST6));
    assert_eq!(lab.snapshot().part("/run/tunjail"), "absent\n");

    engine.guest.cmd(TUNJAIL, &["up"]).ok();
    lab.reset_leaks();
    ask_the_internet(&container, VPN4, VPN6);
    client.sigkill();
    ask_in_vain(&[&container]);
    lab.assert_no_leak("containerd", &format!("{}-wall-alone", release.name()), control);
    end(&pod, &mut [container]);
    engine.guest.cmd(TUNJAIL, &["down"]).ok();
    comes_to_be(&lab, &before, "a pod without a hook");
}

/// A device is one container's, the network the whole pod's. With its last device gone the pod is no member: what is
/// left of it is held by a wall that `tunjail up` raised, and by nothing where a hook had raised it.
#[test]
fn a_container_beside_the_device_is_held_by_the_wall() {
    let lab = lab();
    let (_server, mut client) = exit(&lab);
    let engine = wired(&lab, Release::Sid);
    let before = settled_after_a_plain_pod(&lab, &engine);
    client.start_and_wait();
    let pod = engine.pod(PLAIN, &PodConfig::new("web"));
    // The member goes, and the container that was beside it stays.
    let left_alone = |names: [&str; 2]| {
        let [mut member, other] = [pod.container(names[0], &[DEVICE]), pod.container(names[1], &[])];
        assert_eq!(members(&engine), [Way::Cdi.ids(&pod, &[&member])]);
        for container in [&member, &other] {
            ask_the_internet(container, VPN4, VPN6);
        }
        member.stop();
        member.remove();
        assert!(members(&engine).is_empty());
        other
    };
    let first = left_alone(["m1", "o1"]);
    let control = lab.assert_probe_is_visible(|| ask_the_internet(&first, ROUTER4, HOST6));

    engine.guest.cmd(TUNJAIL, &["up"]).ok();
    let second = left_alone(["m2", "o2"]);
    lab.reset_leaks();
    ask_the_internet(&second, VPN4, VPN6);
    client.sigkill();
    ask_in_vain(&[&first, &second]);
    lab.assert_no_leak("containerd", "sid-beside-the-device", control);
    end(&pod, &mut [first, second]);
    engine.guest.cmd(TUNJAIL, &["down"]).ok();
    comes_to_be(&lab, &before, "a pod with one device");
}

/// A handler may have a network of its own (`cni_conf_dir`), so that a node's other pods are none of the jail's.
#[rstest]
#[case::containerd_1_6(Release::Bookworm)]
#[case::containerd_2_1(Release::Sid)]
fn a_pod_on_another_network_is_left_alone_and_cannot_name_the_jail(#[case] release: Release) {
    let lab = lab();
    lab.configure(STRICT_JAIL);
    let engine = wired(&lab, release);
    let pod = engine.pod("apart", &PodConfig::new("web"));
    let container = pod.container("c", &[]);
    ask_the_internet(&container, ROUTER4, HOST6);
    let inside = netns_of(&lab, &pod).sh("nft list ruleset");
    assert!(!inside.contains("tunjail"), "{inside}");
    let host = lab.snapshot();
    assert_eq!(host.part("/run/tunjail"), "absent\n");
    assert!(!host.part("nft ruleset").contains("tunjail"), "{}", host.part("nft ruleset"));

    let named = PodConfig::new("named").annotation(ANNOTATION, "vpn");
    let said = engine.try_pod("apart", &named).err().expect("a refusal");
    let lines = own_lines(&said.stderr);
    assert!(lines.len() == 1 && lines[0].contains("outside jail vpn's subnets"), "{}", said.stderr);
    println!("refused: {}", said.stderr.trim());
    assert_eq!(lab.snapshot().part("/run/tunjail"), "absent\n");
    ask_the_internet(&container, ROUTER4, HOST6);
    end(&pod, &mut [container]);
}

/// Not the files of this suite, but what tunjail writes by itself: the handler, and the devices where CDI is.
#[rstest]
#[case::containerd_1_6(Release::Bookworm, &[Way::Annotation, Way::Subnet])]
#[case::containerd_2_1(Release::Sid, &[Way::Annotation, Way::Subnet, Way::Cdi])]
fn what_install_writes_holds_a_pod(#[case] release: Release, #[case] ways: &[Way]) {
    let lab = lab();
    product::install_copy();
    lab.configure(STRICT_JAIL);
    let guest = Guest::new(&lab, release);
    let engine = Containerd::start(&lab, &guest, "");
    let before = settled_after_a_plain_pod(&lab, &engine);
    engine.sigkill();
    for what in ["containerd", "cdi"] {
        guest.cmd(TUNJAIL, &["install", what]).ok();
    }
    engine.start_again();
    for way in ways {
        let pod = way.pod(&engine, "web");
        let container = way.container(&pod, "first");
        assert_eq!(members(&engine), [way.ids(&pod, &[&container])], "{way:?}");
        end(&pod, &mut [container]);
        comes_to_be(&lab, &before, &format!("a pod by {way:?}"));
    }
}
