//! Exits: their places, what they need, and those whose routes are others'.

use super::{exit, jail, link, nic, standing, surroundings};
use crate::model::facts::{ExitFacts, Surroundings, WallFacts};
use crate::model::objects::{Family, Route, Target};
use crate::model::{conflict, desired, plan, verify};

/// The default routes of a jail with two exits, in the order in which the kernel takes them.
fn defaults(surroundings: Vec<ExitFacts>) -> Vec<String> {
    let jail = jail("exit = [\"tun0\", \"eth1\"]\ngateway = \"192.0.2.1\"");
    let wall = desired::wall(&jail, 7400, &Surroundings { exits: surroundings, ..Surroundings::default() });
    let everything = Family::V4.everything();
    let mut routes: Vec<_> = wall.routes.into_iter().filter(|route| route.destination == everything).collect();
    routes.sort_by_key(|route| route.metric);
    routes.iter().map(ToString::to_string).map(|text| text.replace(" protocol 116", "")).collect()
}

#[test]
fn an_exit_keeps_its_place_whatever_becomes_of_the_others() {
    let (tun, eth) = (exit(5, "tun0", true, true), nic(&["192.0.2.9/24"]));
    let (end, by_tun) = ("unreachable default metric 4294967295", "default dev tun0 metric 100");
    let by_eth = "default via 192.0.2.1 dev eth1 metric 101";
    assert_eq!(defaults(vec![tun.clone(), eth.clone()]), [by_tun, by_eth, end]);
    assert_eq!(defaults(vec![tun.clone()]), [by_tun, end]);
    assert_eq!(defaults(vec![eth]), [by_eth, end]);
    assert_eq!(defaults(vec![tun, nic(&["198.51.100.9/24"])]), [by_tun, end], "no neighbour of eth1");
}

#[test]
fn an_exit_without_a_carrier_comes_after_those_that_have_one() {
    let without = |mut exit: ExitFacts| {
        exit.link.carrier = false;
        exit
    };
    let (tun, eth) = (exit(5, "tun0", true, true), nic(&["192.0.2.9/24"]));
    let end = "unreachable default metric 4294967295";
    let (by_tun, by_eth) = ("default dev tun0 metric", "default via 192.0.2.1 dev eth1 metric");
    assert_eq!(
        defaults(vec![without(tun.clone()), eth.clone()]),
        [format!("{by_eth} 101"), format!("{by_tun} 102"), end.into()]
    );
    assert_eq!(
        defaults(vec![tun.clone(), without(eth.clone())]),
        [format!("{by_tun} 100"), format!("{by_eth} 103"), end.into()]
    );
    assert_eq!(
        defaults(vec![without(tun.clone()), without(eth)]),
        [format!("{by_tun} 100"), format!("{by_eth} 101"), end.into()]
    );
    assert_eq!(defaults(vec![without(tun)]), [format!("{by_tun} 100"), end.into()], "better than nothing: it may come");
}

#[test]
fn a_gateway_has_to_be_a_neighbour_of_the_exit() {
    let jail = jail("exit = [\"tun0\", \"eth1\"]\ngateway = [\"192.0.2.1\", \"fe80::1\"]");
    let tun = exit(5, "tun0", true, true);
    assert_eq!(conflict::with_gateways(&jail, &[tun.clone(), nic(&["192.0.2.9/24"])]), Ok(()));
    let error =
        conflict::with_gateways(&jail, &[tun.clone(), nic(&["198.51.100.9/24", "2001:db8::9/64"])]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "jail vpn: gateway 192.0.2.1 is in no net of exit eth1 (198.51.100.0/24); correct \"gateway = \" in [jail.vpn], or the address of eth1"
    );
    let mut unaddressed = nic(&[]);
    (unaddressed.v4, unaddressed.v6) = (false, false);
    assert_eq!(conflict::with_gateways(&jail, &[tun, unaddressed]), Ok(()), "its address may come");
}

#[test]
fn each_nic_has_the_gateway_that_is_its_neighbour() {
    let jail = jail("exit = [\"eth1\", \"eth2\"]\ngateway = [\"198.51.100.1\", \"192.0.2.1\"]");
    let second = ExitFacts { link: link(7, "eth2", "physical"), ..nic(&["198.51.100.9/24"]) };
    let exits = vec![nic(&["192.0.2.9/24"]), second];
    assert_eq!(conflict::with_gateways(&jail, &exits), Ok(()));
    let wall = desired::wall(&jail, 7400, &Surroundings { exits, ..Surroundings::default() });
    let routes: Vec<String> = wall.routes.iter().map(ToString::to_string).collect();
    for route in ["default via 192.0.2.1 dev eth1 metric 100", "default via 198.51.100.1 dev eth2 metric 101"] {
        assert!(routes.iter().any(|text| text.starts_with(route)), "{route:?} is not in {routes:?}");
    }
}

#[test]
fn the_hosts_only_uplink_is_no_exit_but_a_tunnel_may_be_that() {
    let jail = jail("exit = [\"tun0\", \"eth1\"]");
    let exits = [exit(5, "tun0", true, true), nic(&[])];
    for defaults in [&[][..], &[2], &[2, 6], &[5], &[5, 5]] {
        assert_eq!(conflict::with_uplink(&jail, &exits, defaults), Ok(()), "{defaults:?}");
    }
    for defaults in [&[6][..], &[6, 6]] {
        let error = conflict::with_uplink(&jail, &exits, defaults).unwrap_err().to_string();
        assert!(error.contains("exit eth1 is the interface of this host's only default route"), "{error}");
    }
}

#[test]
fn where_others_lead_the_way_only_the_end_is_tunjails() {
    let jail = jail("exit = [\"tun0\", \"eth1\"]\ntable = 100\nroutes = \"foreign\"\nallow = [\"192.168.178.0/24\"]");
    let wall = desired::wall(&jail, 100, &surroundings(vec![exit(5, "tun0", true, true), nic(&["192.0.2.9/24"])]));
    let routes: Vec<String> =
        wall.routes.iter().map(ToString::to_string).map(|text| text.replace(" protocol 116", "")).collect();
    assert_eq!(
        routes,
        [
            "unreachable default metric 4294967295",
            "172.18.0.0/16 dev vpn metric 100",
            "throw 192.168.178.0/24 metric 100",
            "unreachable default metric 4294967295",
            "fd00:18::/64 dev vpn metric 100",
        ]
    );
    let foreign = Route {
        destination: "0.0.0.0/0".parse().unwrap(),
        target: Target::Foreign("dev eth1 proto 4".to_owned()),
        metric: 0,
    };
    let mut observed = standing(&wall);
    observed.routes.push(foreign.clone());
    assert_eq!(verify::wall(&observed, &wall, observed.tables), Ok(()), "no damage");
    assert_eq!(plan::raise(&jail.name, &observed, &wall, None).unwrap(), [], "nothing to do");
    let bare = WallFacts { routes: vec![foreign.clone()], ..WallFacts::default() };
    let touches_it = |step: &plan::Change| step.lines("").contains("eth1");
    assert!(!plan::raise(&jail.name, &bare, &wall, None).unwrap().iter().any(touches_it));
    assert!(!plan::take_down(100, wall.ruleset.tables().map(Clone::clone), &observed).iter().any(touches_it));
}

#[test]
fn a_port_of_an_exit_is_kept_for_its_member_whoever_shares_the_exit() {
    use crate::model::policy::Jail;
    use crate::model::ruleset;

    let jail = Jail {
        sharing: vec!["172.19.0.0/16".parse().unwrap(), "fd00:19::/64".parse().unwrap()],
        ..jail("exit = \"tun0\"")
    };
    let ruleset = ruleset::of(&jail, None);
    let lines: Vec<&str> = ruleset.text().lines().filter(|line| line.contains("@taken4")).map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "oifname \"tun0\" ip saddr { 172.18.0.0/16, 172.19.0.0/16 } meta l4proto { tcp, udp } meta l4proto . th sport @taken4 meta l4proto . th sport . ip saddr . th sport != @forwarded4 masquerade to :1024-65535 fully-random",
            "ct original ip saddr { 172.18.0.0/16, 172.19.0.0/16 } meta l4proto { tcp, udp } meta l4proto . th sport @taken4 meta l4proto . th sport . ct original ip saddr . ct original proto-src != @forwarded4 counter name rejected_out drop",
        ]
    );
}
