//! Ports of the exit that lead to a member: who asks for them, and the elements that do it.

use std::net::IpAddr;

use super::admit::Confirmed;
use super::names::JailName;
use super::objects::{Element, Family, Part, Set, TableId};
use super::policy::{Forward, Jail, Port, PortError};

/// What is wrong with a list of forwarded ports. The text says what was meant to stand there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("it is empty; write ports such as tcp/51413, or leave it out")]
    Empty,
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("port {0} is named twice; name it once")]
    Twice(Port),
}

/// Reads a list as it stands in an annotation: separated by commas, spaces or both.
pub fn list(text: &str) -> Result<Vec<Forward>, ListError> {
    let mut forwards: Vec<Forward> = Vec::new();
    for word in text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty()) {
        let forward: Forward = word.parse()?;
        if forwards.iter().any(|other| other.port == forward.port) {
            return Err(ListError::Twice(forward.port));
        }
        forwards.push(forward);
    }
    if forwards.is_empty() {
        return Err(ListError::Empty);
    }
    Ok(forwards)
}

/// What the configuration asks for a member with these interfaces: what it asks for whichever member there is, and what
/// it asks for one of these addresses.
pub fn configured(jail: &Jail, interfaces: &[Confirmed]) -> Vec<Forward> {
    let has = |address: &IpAddr| interfaces.iter().any(|interface| interface.addresses.contains(address));
    jail.forward.iter().filter(|forward| forward.to.as_ref().is_none_or(has)).copied().collect()
}

/// One of each port; of several the first.
pub fn merged(forwards: impl IntoIterator<Item = Forward>) -> Vec<Forward> {
    let mut merged: Vec<Forward> = Vec::new();
    for forward in forwards {
        if !merged.iter().any(|other| other.port == forward.port) {
            merged.push(forward);
        }
    }
    merged
}

/// The elements that lead `forwards` to a member with these interfaces, in each family that it has: to the address that
/// was named, or else to its first one.
pub fn elements(jail: &JailName, interfaces: &[Confirmed], forwards: &[Forward]) -> Vec<Element> {
    let addresses: Vec<IpAddr> = interfaces.iter().flat_map(|interface| interface.addresses.clone()).collect();
    let mut elements = Vec::new();
    for forward in forwards {
        for family in Family::BOTH {
            let of_family = |address: &IpAddr| Family::of(*address) == family;
            let named = forward.to.filter(|to| of_family(to) && addresses.contains(to));
            if let Some(address) = named.or_else(|| addresses.iter().copied().find(of_family)) {
                elements.extend(lead(jail, forward, address));
            }
        }
    }
    elements
}

/// The way in, what the way in may lead to, and that nobody else may leave from there.
fn lead(jail: &JailName, forward: &Forward, address: IpAddr) -> [Element; 3] {
    let (map, set, taken) = match Family::of(address) {
        Family::V4 => (Set::Forward4, Set::Forwarded4, Set::Taken4),
        Family::V6 => (Set::Forward6, Set::Forwarded6, Set::Taken6),
    };
    let port = vec![Part::Protocol(forward.port.protocol), Part::Number(forward.port.number)];
    let target = vec![Part::Address(address), Part::Number(forward.to_port)];
    let table = TableId::wall(jail);
    [
        Element { table: table.clone(), set, key: [port.clone(), target.clone()].concat(), value: vec![] },
        Element { table: table.clone(), set: map, key: port.clone(), value: target },
        Element { table, set: taken, key: port, value: vec![] },
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot parse its own input has failed")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::objects::Mac;
    use crate::model::policy::Transport;

    #[test]
    fn a_list_is_separated_by_commas_spaces_or_both() {
        let read = |text: &str| list(text).unwrap().iter().map(Forward::to_string).collect::<Vec<_>>().join(" ");
        for text in [
            "tcp/51413 udp/51413, tcp/8443:443",
            "tcp/51413,udp/51413,tcp/8443:443",
            " tcp/51413\tudp/51413\n,, tcp/8443:443,",
        ] {
            assert_eq!(read(text), "tcp/51413 udp/51413 tcp/8443:443", "{text:?}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (text, expected) in [
            ("", "empty"),
            (" , ", "empty"),
            ("tcp/1;tcp/2", "is not a forwarded port"),
            ("tcp/0", "is not a forwarded port"),
            ("tcp/65536", "is not a forwarded port"),
            ("tcp/1 udp", "\"udp\" is not a forwarded port"),
            ("tcp/1 tcp/1", "tcp/1 is named twice"),
            ("tcp/1:2 tcp/1:3", "tcp/1 is named twice"),
        ] {
            let error = list(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    proptest! {
        /// Whatever stands in an annotation is read or refused, in one readable line.
        #[test]
        fn no_list_is_too_strange(text in "\\PC{0,60}|([a-z]{3}/[0-9]{1,6}(:[0-9]{1,6})?[, ]{1,2}){1,4}") {
            if let Err(error) = list(&text) {
                let error = error.to_string();
                prop_assert!(!error.contains('\n') && error.len() < 400);
            }
        }

        /// What was written is what is read.
        #[test]
        fn a_list_is_read_as_it_was_written(
            ports in proptest::collection::btree_map((any::<bool>(), 1u16..), 1u16.., 1..20),
            separator in "(,|,? {1,3}|\t|\n)",
        ) {
            let forwards: Vec<Forward> = ports
                .into_iter()
                .map(|((tcp, number), to_port)| {
                    let protocol = if tcp { Transport::Tcp } else { Transport::Udp };
                    Forward { port: Port { protocol, number }, to_port, to: None }
                })
                .collect();
            let words: Vec<String> = forwards.iter().map(Forward::to_string).collect();
            prop_assert_eq!(list(&words.join(&separator)).unwrap(), forwards);
        }
    }

    fn interface(addresses: &[&str]) -> Confirmed {
        Confirmed {
            name: "eth0".parse().unwrap(),
            index: 2,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            link_local: vec![],
            port: 7,
            port_name: "veth7".parse().unwrap(),
        }
    }

    fn lines(interfaces: &[Confirmed], forwards: &[Forward]) -> Vec<String> {
        let elements = elements(&"vpn".parse().unwrap(), interfaces, forwards);
        elements.iter().map(|element| element.to_string().replace("inet tunjail_vpn ", "")).collect()
    }

    #[test]
    fn a_port_leads_to_the_first_address_of_each_family() {
        let forwards = list("tcp/8443:443").unwrap();
        let both = [interface(&["172.18.0.2", "fd00:18::2", "172.18.0.3", "fd00:18::3"])];
        assert_eq!(
            lines(&both, &forwards),
            [
                "forwarded4 { tcp . 8443 . 172.18.0.2 . 443 }",
                "forward4 { tcp . 8443 : 172.18.0.2 . 443 }",
                "taken4 { tcp . 8443 }",
                "forwarded6 { tcp . 8443 . fd00:18::2 . 443 }",
                "forward6 { tcp . 8443 : fd00:18::2 . 443 }",
                "taken6 { tcp . 8443 }",
            ]
        );
        let named = [Forward { to: Some("172.18.0.3".parse().unwrap()), ..forwards[0] }];
        assert!(lines(&both, &named).contains(&"forward4 { tcp . 8443 : 172.18.0.3 . 443 }".to_owned()));
        assert_eq!(lines(&[interface(&["172.18.0.2"])], &forwards).len(), 3, "one family alone");
        let gone = [Forward { to: Some("172.18.0.9".parse().unwrap()), ..forwards[0] }];
        assert!(lines(&both, &gone).contains(&"forward4 { tcp . 8443 : 172.18.0.2 . 443 }".to_owned()));
    }

    #[test]
    fn an_element_is_what_nf_tables_compares() {
        let elements = elements(&"vpn".parse().unwrap(), &[interface(&["172.18.0.2"])], &list("udp/8443:443").unwrap());
        let key = [17, 0, 0, 0, 0x20, 0xfb, 0, 0];
        let value = [172, 18, 0, 2, 0x01, 0xbb, 0, 0];
        assert_eq!(elements[0].key_bytes(), [key, value].concat());
        assert_eq!((elements[1].key_bytes(), elements[1].value_bytes()), (key.to_vec(), value.to_vec()));
        assert_eq!((elements[2].key_bytes(), elements[2].value_bytes()), (key.to_vec(), vec![]));
    }
}
