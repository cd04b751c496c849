//! OpenVPN's scripts: `up`, `route-up` and `down`, the latter two also at a restart that keeps the device (`up-restart`).
//! What they are about is in the environment; the interface is also the first of the appended arguments, except for
//! `route-up` (openvpn(8), "Scripting and Environmental Variables").
//!
//! The environment is OpenVPN's, and part of what is in it came from a server. Every value is taken for what it has to be,
//! an interface's name or an address, or not at all; none becomes part of a command line or a path in its own spelling.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;

use crate::model::names::{IfName, NameError, shorten};
use crate::model::objects::Family;

/// Looks a variable of the environment up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Why a call was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("no interface was named: give --dev INTERFACE, or let OpenVPN call this as its up or down script")]
    NoInterface,
    #[error("{place}: {error}; OpenVPN itself sets it, from `dev` in its configuration")]
    Interface { place: &'static str, error: NameError },
    #[error(
        "OpenVPN's \"{variable}\" is no address of one host: \"{value}\"; let OpenVPN itself call this, or unset the variable"
    )]
    Address { variable: &'static str, value: String },
}

/// The interface that the call is about: named, in the environment, or appended.
pub fn interface(named: Option<&IfName>, get: Lookup, appended: &[OsString]) -> Result<IfName, CallError> {
    if let Some(name) = named {
        return Ok(name.clone());
    }
    // wg-quick and others call without it, so an empty one is none.
    if let Some(value) = get("dev").filter(|value| !value.is_empty()) {
        return parsed("\"dev\" in the environment", &value);
    }
    parsed("the first argument", appended.first().ok_or(CallError::NoInterface)?)
}

fn parsed(place: &'static str, value: &OsStr) -> Result<IfName, CallError> {
    value.to_string_lossy().parse().map_err(|error| CallError::Interface { place, error })
}

/// What OpenVPN tells of the call, besides the interface.
pub struct Environment<'a>(Lookup<'a>);

impl<'a> Environment<'a> {
    /// `None`: it is not OpenVPN that calls, or not by one of these scripts.
    pub fn of(get: Lookup<'a>) -> Option<Self> {
        let script = get("script_type")?;
        ["up", "route-up", "down", "route-pre-down"].iter().any(|known| script == *known).then_some(Self(get))
    }

    /// OpenVPN connects anew and keeps the device, and with it its routes (`persist-tun`).
    pub fn keeps_the_device(&self) -> bool {
        self.0("script_context").is_some_and(|context| context == "restart")
    }

    /// The other ends of the transport. After a change from a server of one family to one of the other, OpenVPN still
    /// tells the address of the first.
    pub fn servers(&self) -> Result<Vec<IpAddr>, CallError> {
        let told = [self.address("trusted_ip")?, self.address("trusted_ip6")?];
        Ok(told.into_iter().flatten().collect())
    }

    /// The host's gateway as OpenVPN found it before it set routes. Told together with routes only.
    pub fn gateway(&self, family: Family) -> Result<Option<IpAddr>, CallError> {
        self.address(match family {
            Family::V4 => "route_net_gateway",
            Family::V6 => "net_gateway_ipv6",
        })
    }

    /// The transport's own address where the configuration says one (`local`); it may be a host's name there.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.address("local_1").ok().flatten().filter(|address| Family::of(*address) == family)
    }

    fn address(&self, variable: &'static str) -> Result<Option<IpAddr>, CallError> {
        let Some(value) = self.0(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
        let value = value.to_string_lossy();
        let address = value.parse::<IpAddr>().ok().map(|address| address.to_canonical()).filter(is_of_one_host);
        match address {
            Some(address) => Ok(Some(address)),
            None => Err(CallError::Address { variable, value: shorten(&value) }),
        }
    }
}

fn is_of_one_host(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |wanted| variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.into())
    }

    #[test]
    fn the_interface_is_the_nearest_that_was_told() {
        let appended = ["tun2".into()];
        let named = "tun0".parse().unwrap();
        let environment = [("dev", "tun1")];
        let environment = get(&environment);
        assert_eq!(interface(Some(&named), &environment, &appended).unwrap().as_str(), "tun0");
        assert_eq!(interface(None, &environment, &appended).unwrap().as_str(), "tun1");
        assert_eq!(interface(None, &get(&[("dev", "")]), &appended).unwrap().as_str(), "tun2");
        assert_eq!(interface(None, &get(&[]), &[]), Err(CallError::NoInterface));
    }

    #[test]
    fn what_is_no_interface_is_said_in_one_short_line() {
        for value in ["tun0; reboot", "tun0\nrm", "../tun0", "$(id -u)", &"x".repeat(9000)] {
            for error in [
                interface(None, &get(&[("dev", value)]), &[]).unwrap_err().to_string(),
                interface(None, &get(&[]), &[value.into()]).unwrap_err().to_string(),
            ] {
                assert!(error.len() < 320 && !error.contains('\n'), "{error}");
            }
        }
    }

    #[test]
    fn only_scripts_of_openvpn_are_asked_for_more() {
        assert!(Environment::of(&get(&[("trusted_ip", "192.0.2.1")])).is_none());
        for script in ["", "client-connect", "up; id", "up\n"] {
            assert!(Environment::of(&get(&[("script_type", script)])).is_none(), "{script:?}");
        }
        let variables = [
            ("script_type", "route-up"),
            ("script_context", "init"),
            ("trusted_ip", "203.0.113.10"),
            ("trusted_ip6", "::ffff:203.0.113.11"),
            ("route_net_gateway", "192.168.178.1"),
            ("net_gateway_ipv6", "fe80::1"),
            ("local_1", "vpn.example.com"),
        ];
        let lookup = get(&variables);
        let environment = Environment::of(&lookup).unwrap();
        assert!(!environment.keeps_the_device());
        let servers: Vec<String> = environment.servers().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["203.0.113.10", "203.0.113.11"]);
        assert_eq!(environment.gateway(Family::V4), Ok("192.168.178.1".parse().ok()));
        assert_eq!(environment.gateway(Family::V6), Ok("fe80::1".parse().ok()));
        assert_eq!(environment.source(Family::V4), None);
    }

    #[test]
    fn what_is_no_address_is_said_in_one_short_line() {
        let long = "1".repeat(9000);
        for value in ["203.0.113.10; id", "203.0.113.10\n", "-j ACCEPT", "0.0.0.0", "ff02::1", "255.255.255.255", &long]
        {
            let variables = [("script_type", "up"), ("trusted_ip", value), ("route_net_gateway", value)];
            let lookup = get(&variables);
            let environment = Environment::of(&lookup).unwrap();
            let errors = [environment.servers().unwrap_err(), environment.gateway(Family::V4).unwrap_err()];
            for error in errors.map(|error| error.to_string()) {
                assert!(error.len() < 250 && !error.contains('\n'), "{error}");
            }
            assert_eq!(environment.gateway(Family::V6), Ok(None));
        }
    }
}
