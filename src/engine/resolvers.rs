//! Engines' own resolvers, and which of them ask for names from the host's network namespace: what they ask leaves by the
//! host's uplink, and no wall sees that it was a member's question.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::ask_version;
use super::install::Host;
use super::install::docker::{DAEMON_JSON, Daemon};
use super::wiring::program;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where Podman keeps the networks of root (containers.conf(5), network_config_dir).
const PODMAN_NETWORKS: &str = "/etc/containers/networks";
/// systemd-resolved's stub. Where it stands alone, dockerd reads the file that names what is behind it.
const STUB: &str = "127.0.0.53";

/// A resolver that asks past every exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    pub resolver: Resolver,
    /// What it does, in half a sentence.
    pub what: String,
    /// What could be done about it besides naming servers for the jail.
    pub mend: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// Docker's, in the container's own namespace: what is in there can be removed with CAP_NET_ADMIN.
    InTheContainer,
    /// Podman's, at the bridge's gateway.
    AtTheGateway,
}

/// What the engines on this host would ask by its uplink, for containers in one of `subnets`.
pub fn that_ask_by_the_uplink(host: &Host, subnets: &[IpNet]) -> Vec<Leak> {
    dockers(host).into_iter().chain(podmans(host, subnets)).collect()
}

/// dockerd asks from the container's namespace what the container or daemon.json named. What it took from the host's
/// resolv.conf it asks from the host's: since 28.0 all of it, before that what is on a loopback address.
fn dockers(host: &Host) -> Option<Leak> {
    let version = ask_version(&host.at(&program(host, "dockerd")?));
    let text = host.read(Path::new(DAEMON_JSON)).ok().flatten();
    if text.is_some_and(|text| Daemon::read(&text).is_ok_and(|daemon| daemon.names_servers())) {
        return None;
    }
    let what = match version {
        Some((major @ ..28, minor)) => {
            let server = loopback_server(host)?;
            format!(
                "Docker {major}.{minor} asks {server}, which is in {RESOLV_CONF}, from the host's network namespace"
            )
        }
        Some((major, minor)) => {
            format!("Docker {major}.{minor} asks the servers of {RESOLV_CONF} from the host's network namespace")
        }
        None => format!("Docker may ask the servers of {RESOLV_CONF} from the host's network namespace"),
    };
    let mend = format!("set \"dns\" in {DAEMON_JSON} or `--dns` for the container");
    Some(Leak { resolver: Resolver::InTheContainer, what, mend })
}

fn loopback_server(host: &Host) -> Option<IpAddr> {
    let text = fs::read_to_string(host.at(Path::new(RESOLV_CONF))).ok()?;
    let servers: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    if servers == [STUB] {
        return None;
    }
    servers.iter().filter_map(|server| server.parse::<IpAddr>().ok()).find(IpAddr::is_loopback)
}

/// aardvark-dns runs in the host's namespace, for networks that were made without `--disable-dns`.
fn podmans(host: &Host, subnets: &[IpNet]) -> Option<Leak> {
    program(host, "podman")?;
    let entries = fs::read_dir(host.at(Path::new(PODMAN_NETWORKS))).ok()?.flatten();
    let name = entries.filter_map(|entry| network_with_dns(&entry.path(), subnets)).min()?;
    Some(Leak {
        resolver: Resolver::AtTheGateway,
        what: format!("the resolver of Podman's network {name} asks from the host's network namespace"),
        mend: "make the network with `--disable-dns`".to_owned(),
    })
}

fn network_with_dns(path: &Path, subnets: &[IpNet]) -> Option<String> {
    path.extension().filter(|extension| *extension == "json")?;
    let network: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let nets = network["subnets"].as_array()?.iter();
    let nets = nets.filter_map(|net| net["subnet"].as_str()?.parse::<IpNet>().ok());
    let is_the_jails =
        nets.into_iter().any(|net| subnets.iter().any(|subnet| subnet.contains(&net) || net.contains(subnet)));
    (is_the_jails && network["dns_enabled"] == true).then(|| network["name"].as_str().unwrap_or("?").to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), "/usr/local/bin/tunjail");
        for (path, text) in files {
            let place = host.at(Path::new(path));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, text).unwrap();
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        }
        (root, host)
    }

    fn leaks(files: &[(&str, &str)]) -> Vec<String> {
        let (_root, host) = host(files);
        let subnets = ["172.18.0.0/16".parse().unwrap()];
        that_ask_by_the_uplink(&host, &subnets).into_iter().map(|leak| leak.what).collect()
    }

    const DOCKER_20: (&str, &str) = ("/usr/sbin/dockerd", "#!/bin/sh\necho Docker version 20.10.24, build 0\n");
    const DOCKER_28: (&str, &str) = ("/usr/sbin/dockerd", "#!/bin/sh\necho Docker version 28.5.2, build 0\n");
    const PODMAN: (&str, &str) = ("/usr/bin/podman", "");

    #[test]
    fn docker_asks_from_the_host_what_it_took_from_there() {
        let uplink = (RESOLV_CONF, "search example\nnameserver 192.0.2.53\n");
        let local = (RESOLV_CONF, "nameserver 192.0.2.53\n  nameserver 127.0.0.1 # here\n");
        let stub = (RESOLV_CONF, "nameserver 127.0.0.53\noptions edns0\n");
        let of_28 = ["Docker 28.5 asks the servers of /etc/resolv.conf from the host's network namespace"];
        assert_eq!(leaks(&[DOCKER_28, uplink]), of_28);
        assert_eq!(leaks(&[DOCKER_28, local]), of_28);
        assert_eq!(leaks(&[DOCKER_20, uplink]), [""; 0]);
        assert_eq!(leaks(&[DOCKER_20, stub]), [""; 0]);
        assert_eq!(leaks(&[DOCKER_20]), [""; 0]);
        assert_eq!(
            leaks(&[DOCKER_20, local]),
            ["Docker 20.10 asks 127.0.0.1, which is in /etc/resolv.conf, from the host's network namespace"]
        );
        let named = (DAEMON_JSON, "{\"dns\": [\"192.0.2.53\"]}");
        assert_eq!(leaks(&[DOCKER_28, uplink, named]), [""; 0]);
        assert_eq!(leaks(&[DOCKER_28, uplink, (DAEMON_JSON, "{\"dns\": []}")]), of_28);
        assert_eq!(leaks(&[uplink]), [""; 0]);
        let mute = ("/usr/sbin/dockerd", "#!/bin/sh\n");
        assert_eq!(
            leaks(&[mute]),
            ["Docker may ask the servers of /etc/resolv.conf from the host's network namespace"]
        );
    }

    #[test]
    fn podmans_resolver_asks_from_the_host_where_a_network_has_it() {
        let network = |subnet: &str, dns: bool| {
            format!("{{\"name\": \"vpn\", \"subnets\": [{{\"subnet\": \"{subnet}\"}}], \"dns_enabled\": {dns}}}")
        };
        let path = "/etc/containers/networks/vpn.json";
        let with = network("172.18.0.0/24", true);
        let leak = ["the resolver of Podman's network vpn asks from the host's network namespace"];
        assert_eq!(leaks(&[PODMAN, (path, &with)]), leak);
        assert_eq!(leaks(&[(path, &with)]), [""; 0]);
        assert_eq!(leaks(&[PODMAN, (path, &network("172.18.0.0/24", false))]), [""; 0]);
        assert_eq!(leaks(&[PODMAN, (path, &network("172.19.0.0/24", true))]), [""; 0]);
        assert_eq!(leaks(&[PODMAN, (path, "{")]), [""; 0]);
    }
}
