//! Who answers members that ask for names, and who would ask for them past the exit.

use std::net::IpAddr;

use super::{Findings, Verdict};
use crate::engine::install::Host;
use crate::engine::resolvers::{self, Leak, Resolver};
use crate::hold::Kernel;
use crate::model::policy::{Dns, Jail, Port};

pub(super) fn look(findings: &mut Findings, host: &mut Kernel, what: &str, jail: &Jail) {
    let Some(own) = findings.take(what, host.rtnl.addresses(None).map_err(Into::into)) else { return };
    let Some(engines) = findings.take(what, Host::own()) else { return };
    let own: Vec<IpAddr> = own.into_iter().map(|own| own.address).collect();
    let leaks = resolvers::that_ask_by_the_uplink(&engines, &jail.subnets);
    for (verdict, found) in judge(jail, &own, &leaks) {
        findings.add(verdict, what, found);
    }
}

fn judge(jail: &Jail, own: &[IpAddr], leaks: &[Leak]) -> Vec<(Verdict, String)> {
    let name = &jail.name;
    match &jail.dns {
        Dns::Engine if leaks.is_empty() => {
            vec![(Verdict::Ok, "names are asked of the engine's resolver; no engine here is seen to ask past the exit".to_owned())]
        }
        Dns::Engine => leaks
            .iter()
            .map(|Leak { what, mend, .. }| {
                (Verdict::Warning, format!("names leave by the host's uplink, not by the exit: dns is \"engine\", and {what}; write dns = [\"SERVER\"] in [jail.{name}], or {mend}"))
            })
            .collect(),
        Dns::Servers(servers) => {
            let text: Vec<String> = servers.iter().map(ToString::to_string).collect();
            let mut found = vec![(Verdict::Ok, format!("names are asked of {}", text.join(", ")))];
            found.extend(servers.iter().filter_map(|server| not_by_the_exit(jail, *server, own)).map(|text| (Verdict::Warning, text)));
            found.extend(leaks.iter().filter_map(|leak| with_net_admin(leak, name)));
            found
        }
        Dns::Block => {
            let closed = "names are asked of servers that members reach by the exit themselves; the engine's resolver and the host's are closed".to_owned();
            std::iter::once((Verdict::Ok, closed)).chain(leaks.iter().filter_map(|leak| with_net_admin(leak, name))).collect()
        }
    }
}

/// Why a server is not reached by the exit.
fn not_by_the_exit(jail: &Jail, server: IpAddr, own: &[IpAddr]) -> Option<String> {
    let name = &jail.name;
    let is_asked = |port: &Port| port.number == 53;
    if own.contains(&server) {
        let opened = jail.host.iter().any(is_asked);
        let (what, mend) = match opened {
            true => ("whom it asks by the host's uplink leaves past the exit", ""),
            false => ("its port is closed to members", ", or add \"udp/53\" and \"tcp/53\" to \"host\""),
        };
        return Some(format!(
            "dns server {server} is this host, and {what}; name one that the exit leads to{mend} in [jail.{name}]"
        ));
    }
    let allow = jail.allow.iter().find(|allow| allow.net.contains(&server))?;
    let opened = allow.direction.is_out() && (allow.ports.is_empty() || allow.ports.iter().any(is_asked));
    let what = if opened { "it is asked past the exit" } else { "but not for port 53: it is not asked at all" };
    Some(format!(
        "dns server {server} lies in {}, which is allowed: {what}; name one that the exit leads to, or take that net out of \"allow\" in [jail.{name}]",
        allow.net
    ))
}

/// What closes Docker's resolver is in the container's own namespace.
fn with_net_admin(
    Leak { resolver, what, mend }: &Leak,
    name: &crate::model::names::JailName,
) -> Option<(Verdict, String)> {
    let text =
        format!("a container of {name} that has CAP_NET_ADMIN can open Docker's resolver again, and {what}; {mend}");
    (*resolver == Resolver::InTheContainer).then_some((Verdict::Warning, text))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn judged(body: &str, leaks: &[Leak]) -> Vec<String> {
        let text = format!("[jail.vpn]\nsubnets = [\"172.18.0.0/16\"]\nexit = \"tun0\"\n{body}\n");
        let jail = Config::parse(Path::new("test.toml"), &text).unwrap().jails.remove(0);
        let own = ["192.0.2.1".parse().unwrap()];
        let warnings = judge(&jail, &own, leaks).into_iter().filter(|(verdict, _)| *verdict == Verdict::Warning);
        warnings.map(|(_, found)| found).collect()
    }

    fn leak(resolver: Resolver) -> Leak {
        Leak { resolver, what: "it asks past the exit".to_owned(), mend: "mend it".to_owned() }
    }

    #[test]
    fn a_server_in_an_allowed_net_is_asked_past_the_exit() {
        let allowed = "allow = [\"192.168.178.0/24\"]\ndns = [\"192.0.2.53\", \"192.168.178.1\"]";
        assert_eq!(
            judged(allowed, &[]),
            [
                "dns server 192.168.178.1 lies in 192.168.178.0/24, which is allowed: it is asked past the exit; name one that the exit leads to, or take that net out of \"allow\" in [jail.vpn]"
            ]
        );
        assert_eq!(judged("dns = [\"192.168.178.1\"]", &[]), [""; 0]);
        let other = "allow = [{ net = \"192.168.178.1\", ports = [\"tcp/443\"] }]\ndns = [\"192.168.178.1\"]";
        assert!(judged(other, &[])[0].contains("not for port 53"), "{:?}", judged(other, &[]));
        assert!(judged("dns = [\"192.0.2.1\"]", &[])[0].contains("its port is closed to members; name one"));
        let opened = judged("dns = [\"192.0.2.1\"]\nhost = [\"udp/53\"]", &[]);
        assert!(opened[0].contains("by the host's uplink"), "{opened:?}");
    }

    #[test]
    fn only_what_is_in_the_container_can_be_opened_from_there() {
        let both = [Resolver::InTheContainer, Resolver::AtTheGateway].map(leak);
        assert_eq!(judged("dns = \"engine\"", &both).len(), 2);
        assert_eq!(judged("dns = \"engine\"", &[]), [""; 0]);
        for body in ["dns = \"block\"", "dns = [\"192.0.2.53\"]"] {
            assert_eq!(
                judged(body, &both),
                [
                    "a container of vpn that has CAP_NET_ADMIN can open Docker's resolver again, and it asks past the exit; mend it"
                ]
            );
        }
    }
}
