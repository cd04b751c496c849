//! The shape of the file: which keys there are and what types they have. What the values mean is checked later.
//!
//! Every value that a later check may refuse carries its place in the text, so that the check can name the line.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserialize, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::At;
use super::error::{Fault, JailFault, one_line};
use crate::model::names::{JailName, shorten};
use crate::model::policy::{Direction, Routes};

/// What may stand under `[jail.NAME]`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings, such as under [jail.vpn]")]
pub(super) struct RawJail {
    pub subnets: Option<List<String>>,
    pub exit: Option<OneOrMany>,
    pub gateway: Option<OneOrMany>,
    pub allow: Option<List<RawAllow>>,
    pub dns: Option<OneOrMany>,
    pub host: Option<List<String>>,
    pub forward: Option<List<RawForward>>,
    pub bridge: Option<Spanned<String>>,
    pub table: Option<Spanned<TableNumber>>,
    pub routes: Option<Spanned<Routes>>,
    #[serde(default)]
    pub enrolled_only: bool,
}

/// What may stand under `[runtime]`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as: [runtime] and below it path = \"/usr/bin/crun\"")]
struct RawRuntime {
    path: Spanned<String>,
}

/// What stands in one file.
#[derive(Debug, Default)]
pub(super) struct RawFile {
    /// With their places, in the order of their names.
    pub jails: Vec<(usize, JailName, RawJail)>,
    /// The path of `[runtime]`.
    pub runtime: Option<Spanned<String>>,
}

/// An entry of a list that is one word or says more in a table.
#[derive(Debug)]
pub(super) enum TextOr<T> {
    Text(String),
    Table(T),
}

/// What such an entry looks like, for a message.
pub(super) trait Entry {
    const EXPECTED: &'static str;
}

/// An entry of `allow`: `"192.0.2.0/24"` or `{ net = "192.0.2.0/24", … }`.
pub(super) type RawAllow = TextOr<RawAllowTable>;

/// An entry of `forward`: `"tcp/443"` or `{ port = "tcp/443", to = "172.18.0.2" }`.
pub(super) type RawForward = TextOr<RawForwardTable>;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAllowTable {
    pub net: Option<Spanned<String>>,
    pub ports: Option<List<String>>,
    #[serde(default)]
    pub direction: Direction,
}

impl Entry for RawAllowTable {
    const EXPECTED: &'static str =
        "a net such as \"192.0.2.0/24\" or a table such as { net = \"192.0.2.5\", ports = [\"tcp/443\"] }";
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawForwardTable {
    pub port: Spanned<String>,
    pub to: Spanned<String>,
}

impl Entry for RawForwardTable {
    const EXPECTED: &'static str =
        "a port such as \"tcp/8443:443\" or a table such as { port = \"tcp/443\", to = \"172.18.0.2\" }";
}

/// A list, and where it begins. With `ALONE`, a single value without brackets is a list of one.
#[derive(Debug)]
pub(super) struct List<T, const ALONE: bool = false> {
    pub at: usize,
    pub items: Vec<Spanned<T>>,
}

pub(super) type OneOrMany = List<String, true>;

/// A routing table's number that is free for a jail to take.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableNumber(pub u32);

/// Reads one file's text.
pub(super) fn file(text: &str) -> Result<RawFile, At> {
    let root = DeTable::parse(text).map_err(|error| syntax(text, error))?;
    let mut file = RawFile::default();
    for (key, value) in root.into_inner() {
        let offset = key.span().start;
        if key.get_ref() == "runtime" {
            file.runtime = Some(runtime(offset, value)?);
            continue;
        }
        if key.get_ref() != "jail" {
            return Err(At { offset, fault: Fault::UnknownKey(shorten(key.get_ref())) });
        }
        let DeValue::Table(tables) = value.into_inner() else {
            return Err(At { offset, fault: Fault::NoJails });
        };
        for (name, value) in tables {
            let offset = name.span().start;
            let name = JailName::try_from(name.into_inner().into_owned())
                .map_err(|error| At { offset, fault: Fault::Name(error) })?;
            let raw = jail(&name, offset, value)?;
            file.jails.push((offset, name, raw));
        }
    }
    Ok(file)
}

/// The path of `[runtime]` alone, whatever is wrong with the rest of a text that parses.
pub(super) fn runtime_alone(text: &str) -> Option<Spanned<String>> {
    let mut root = DeTable::parse(text).ok()?.into_inner();
    runtime(0, root.remove("runtime")?).ok()
}

fn runtime(heading: usize, value: Spanned<DeValue<'_>>) -> Result<Spanned<String>, At> {
    RawRuntime::deserialize(value.into_deserializer()).map(|raw| raw.path).map_err(|error| At {
        offset: error.span().map_or(heading, |span| span.start),
        fault: Fault::RuntimeShape(one_line(&keys_not_fields(error.message()))),
    })
}

/// serde speaks of fields, TOML of keys.
fn keys_not_fields(message: &str) -> String {
    match (message.strip_prefix("unknown field"), message.strip_prefix("missing field")) {
        (Some(rest), _) => format!("unknown key{rest}"),
        (_, Some(rest)) => format!("missing key{rest}"),
        _ => message.to_owned(),
    }
}

/// The parser tells first what it noticed first, which for a string without an end is the line after it. What a reader
/// has to mend is the earliest fault, so a text that does not parse is read once more for all of them.
fn syntax(text: &str, error: toml::de::Error) -> At {
    let start = |error: &toml::de::Error| error.span().map_or(text.len(), |span| span.start);
    let (_, errors) = DeTable::parse_recoverable(text);
    let earliest = errors.into_iter().min_by_key(start).unwrap_or(error);
    At { offset: start(&earliest), fault: Fault::Syntax(one_line(earliest.message())) }
}

fn jail(name: &JailName, heading: usize, value: Spanned<DeValue<'_>>) -> Result<RawJail, At> {
    RawJail::deserialize(value.into_deserializer()).map_err(|error| {
        let message = one_line(&keys_not_fields(error.message()));
        At {
            offset: error.span().map_or(heading, |span| span.start),
            fault: Fault::Jail { jail: name.clone(), fault: Box::new(JailFault::Shape(message)) },
        }
    })
}

impl<'de, T: Deserialize<'de>, const ALONE: bool> Deserialize<'de> for List<T, ALONE> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let items = Spanned::<Items<T, ALONE>>::deserialize(deserializer)?;
        let span = items.span();
        let items = match items.into_inner() {
            Items::One(item) => vec![Spanned::new(span.clone(), item)],
            Items::Many(items) => items,
        };
        Ok(Self { at: span.start, items })
    }
}

/// [`List`] before its place is known: `Spanned` learns the place only around a whole value.
enum Items<T, const ALONE: bool> {
    One(T),
    Many(Vec<Spanned<T>>),
}

impl<'de, T: Deserialize<'de>, const ALONE: bool> Deserialize<'de> for Items<T, ALONE> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemsVisitor::<T, ALONE>(PhantomData))
    }
}

struct ItemsVisitor<T, const ALONE: bool>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const ALONE: bool> Visitor<'de> for ItemsVisitor<T, ALONE> {
    type Value = Items<T, ALONE>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if ALONE { "a string or a list of strings" } else { "a list in brackets" })
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        if !ALONE {
            return Err(E::invalid_type(Unexpected::Str(value), &self));
        }
        T::deserialize(StrDeserializer::new(value)).map(Items::One)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Items::Many(items))
    }
}

impl<'de, T: Deserialize<'de> + Entry> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrVisitor(PhantomData))
    }
}

struct TextOrVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Entry> Visitor<'de> for TextOrVisitor<T> {
    type Value = TextOr<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<TextOr<T>, E> {
        Ok(TextOr::Text(value.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TextOr<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(TextOr::Table)
    }
}

impl<'de> Deserialize<'de> for TableNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TableVisitor)
    }
}

struct TableVisitor;

impl Visitor<'_> for TableVisitor {
    type Value = TableNumber;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a routing table's number from 1 to 4294967295, but not 253, 254 or 255, which are the kernel's")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<TableNumber, E> {
        // RT_TABLE_UNSPEC, RT_TABLE_DEFAULT, RT_TABLE_MAIN and RT_TABLE_LOCAL of linux/rtnetlink.h.
        match u32::try_from(value) {
            Ok(0 | 253..=255) | Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
            Ok(number) => Ok(TableNumber(number)),
        }
    }
}
