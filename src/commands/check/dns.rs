//! Who answers members that ask for names, and who would ask for them past the exit.

use super::{Findings, Verdict};
use crate::engine::install::Host;
use crate::engine::resolvers::{self, Leak, Resolver};
use crate::model::policy::{Dns, Jail};

pub(super) fn look(findings: &mut Findings, what: &str, jail: &Jail) {
    let Some(host) = findings.take(what, Host::own()) else { return };
    let leaks = resolvers::that_ask_by_the_uplink(&host, &jail.subnets);
    for (verdict, found) in judge(jail, &leaks) {
        findings.add(verdict, what, found);
    }
}

fn judge(jail: &Jail, leaks: &[Leak]) -> Vec<(Verdict, String)> {
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
            for server in servers {
                if let Some(allow) = jail.allow.iter().find(|allow| allow.net.contains(server)) {
                    found.push((Verdict::Warning, format!("dns server {server} lies in {}, which is allowed: it is asked past the exit; name one that the exit leads to, or take that net out of \"allow\" in [jail.{name}]", allow.net)));
                }
            }
            found.extend(leaks.iter().filter_map(|leak| with_net_admin(leak, name)));
            found
        }
        Dns::Block => {
            let closed = "names are asked of servers that members reach by the exit themselves; the engine's resolver and the host's are closed".to_owned();
            std::iter::once((Verdict::Ok, closed)).chain(leaks.iter().filter_map(|leak| with_net_admin(leak, name))).collect()
        }
    }
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
