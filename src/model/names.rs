//! Names that end up inside kernel objects, checked once at the edge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused; the text names the value and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("jail name \"{0}\" must be 1 to 24 characters of a-z, 0-9, _ and -, and begin with a letter")]
    Jail(String),
    #[error(
        "interface name \"{0}\" must be 1 to 15 characters without space, slash, colon, quote, backslash, * or control characters"
    )]
    Interface(String),
    #[error(
        "container id \"{0}\" must be 1 to 200 characters of A-Z, a-z, 0-9, _, +, - and . and begin with a letter or digit"
    )]
    Container(String),
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $error:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(&value) { Ok(Self(value)) } else { Err(NameError::$error(shorten(&value))) }
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_name!(
    /// A jail's name. It becomes part of an nftables table's and a routing table's name.
    JailName,
    Jail,
    |name| {
        name.len() <= 24
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
    }
);

checked_name!(
    /// A network interface's name: at most 15 bytes (`IFNAMSIZ` in linux/if.h, with its NUL).
    ///
    /// Stricter than the kernel's `dev_valid_name()` by the characters that nft's and ip's syntaxes give a meaning,
    /// so that a name can never become a pattern or end a quoted string.
    IfName,
    Interface,
    |name| {
        !name.is_empty()
            && name.len() <= 15
            && name != "."
            && name != ".."
            && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '"' | '\'' | '\\' | '*' | '@' | '!'))
    }
);

checked_name!(
    /// A container's id as the runtime gives it; it becomes a file name under /run/tunjail.
    ///
    /// runc allows `[\w+-.]`; the leading character is narrowed so that `.` and `..` cannot occur.
    ContainerId,
    Container,
    |name| {
        name.len() <= 200
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.'))
    }
);

/// Keeps an error line readable when the value is absurd: at most 40 characters, control characters escaped.
pub fn shorten(value: &str) -> String {
    let mut shown: String = value.chars().take(40).flat_map(char::escape_default).collect();
    if value.chars().nth(40).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", "a/b", "..", "x*", "a b", "a\nb", "tun0\"", "sixteen-bytes-xx"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        for bad in ["", "Vpn", "1vpn", "v.n", "a/b", &"v".repeat(25)] {
            assert!(bad.parse::<JailName>().is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a\0b", &"c".repeat(300)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn real_names_pass() {
        for good in ["tun0", "wg0", "br-1f2e3d4c5b6a", "eth0.100"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        assert!("vpn".parse::<JailName>().is_ok());
        assert!("4f1c0e".parse::<ContainerId>().is_ok());
    }

    #[test]
    fn an_absurd_value_is_shortened_in_the_message() {
        let error = "c".repeat(300).parse::<ContainerId>().unwrap_err().to_string();
        assert!(error.len() < 250, "{error}");
    }
}
