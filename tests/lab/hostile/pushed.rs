//! A server that pushes its client routes to members, with the client's old gateway as next hop (OpenVPN's `net_gateway`):
//! the host would send by its uplink what the exit brings for them.

use std::time::Duration;

use crate::engine::Container;
use crate::run::{answer, wait_until};
use crate::scene;
use crate::world::{Lab, SERVICE4, SERVICE6};

/// As a client that takes its server's routes adds them to the host's own table, or takes them out again.
fn routes(lab: &Lab, verb: &str, n: u8) {
    lab.sh(&format!(
        "ip route {verb} 172.18.0.{n} via 192.168.178.1; ip -6 route {verb} fd00:18::{n} via 2001:db8:178::1"
    ));
}

/// Questions whose answers would leave.
fn ask(container: &dyn Container) {
    for service in [SERVICE4, SERVICE6] {
        container.probe(&["udp-flood", service, "7", "200", "0.3"]);
    }
}

#[test]
fn no_answer_leaves_by_a_route_that_the_exits_server_pushed() {
    let mut scene = scene::strict();
    scene.client.start_and_wait();
    let mut plain = scene.plain("control", 200);
    scene.recipe();
    answer(&plain.probe(&["http", SERVICE4]));
    scene.lab.reset_leaks();
    routes(&scene.lab, "add", 200);
    ask(&plain);
    wait_until("the control to leak", Duration::from_secs(5), || {
        let leaks = scene.lab.leaks();
        leaks.v4 > 10 && leaks.v6 > 10
    });
    let control = scene.lab.leaks().total();
    routes(&scene.lab, "del", 200);
    plain.remove();
    scene.no_recipe();

    let member = scene.member("runc", "m1", 2);
    for service in [SERVICE4, SERVICE6] {
        answer(&member.probe(&["http", service]));
    }
    scene.lab.reset_leaks();
    routes(&scene.lab, "add", 2);
    ask(&member);
    scene.lab.wait_quiet();
    scene.lab.assert_no_leak("hostile", "pushed-route", control);
    assert!(scene.lab.leaks().transport > 0, "nothing went through the tunnel either");
    routes(&scene.lab, "del", 2);
    for service in [SERVICE4, SERVICE6] {
        answer(&member.probe(&["http", service]));
    }
    scene.lab.assert_no_leak("hostile", "pushed-route-gone", control);
}
