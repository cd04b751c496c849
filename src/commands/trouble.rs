//! Why nothing leaves by an exit, and what to do about it, as `status` and `check` say it.

use std::path::Path;

use crate::model::facts::ExitFacts;
use crate::model::names::IfName;
use crate::model::objects::Family;
use crate::model::policy::{Jail, Routes};

/// What is wrong with an exit.
pub struct Trouble {
    /// Behind its name: "is down".
    pub is: &'static str,
    pub mend: String,
}

/// The first thing that keeps traffic from leaving by the exit; `None` when it can.
pub fn of(jail: &Jail, name: &IfName, exit: Option<&ExitFacts>) -> Option<Trouble> {
    let own_key = format!("or correct \"exit = \" in [jail.{}]", jail.name);
    let Some(exit) = exit else {
        let mend = match Path::new("/etc/wireguard").join(format!("{name}.conf")).is_file() {
            true => format!("wg-quick up {name}"),
            false => format!("start the VPN that makes it, {own_key}"),
        };
        return Some(Trouble { is: "is missing", mend });
    };
    let link = &exit.link;
    let (is, mend) = if !link.up {
        ("is down", format!("ip link set {name} up"))
    } else if !link.tunnel && jail.gateways.is_empty() && jail.routes == Routes::Own {
        ("is no tunnel and has no next hop", format!("set \"gateway = \" in [jail.{}]", jail.name))
    } else if !link.carrier && link.tunnel {
        ("has no carrier", "start the VPN client that serves it".to_owned())
    } else if !link.carrier {
        ("has no carrier", "plug in its cable, or start what is at its other end".to_owned())
    } else if Family::BOTH.iter().all(|family| !exit.has(*family)) {
        ("has no address", format!("restart its VPN or DHCP client, or ip addr add ADDRESS/PREFIX dev {name}"))
    } else {
        return None;
    };
    Some(Trouble { is, mend })
}
