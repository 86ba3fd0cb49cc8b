//! JSON as it came: the order of keys and the form of numbers stay.

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt::{self, Write};

/// How deep a document may be.
const DEPTH: usize = 100;

/// A JSON document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Object),
}

/// Keys in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object(Vec<(String, Json)>);

impl Object {
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        let entry = self.0.iter().find(|(name, _)| name == key);
        entry.map(|(_, value)| value)
    }

    /// A key that is there keeps its place.
    pub(crate) fn set(&mut self, key: impl Into<String>, value: impl Into<Json>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some(entry) => entry.1 = value,
            None => self.0.push((key, value)),
        }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Json>) -> Object {
        self.set(key, value);
        self
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// Adds what another object has; a key that both have keeps its place and gets the other's value.
    pub(crate) fn merged(mut self, other: Object) -> Object {
        for (key, value) in other.0 {
            self.set(key, value);
        }
        self
    }

    pub(crate) fn into_entries(self) -> Vec<(String, Json)> {
        self.0
    }
}

impl From<Object> for Json {
    fn from(object: Object) -> Json {
        Json::Object(object)
    }
}

impl From<Vec<Json>> for Json {
    fn from(list: Vec<Json>) -> Json {
        Json::List(list)
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::Text(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Json {
        Json::Bool(value)
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Json {
        Json::Number(value.to_string())
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Json {
        value.map_or(Json::Null, Into::into)
    }
}

impl Json {
    /// Reads a document.
    pub(crate) fn parse(text: &[u8]) -> Result<Json, serde_json::Error> {
        build(serde_json::from_slice(text)?, 0)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(object) => object.get(key),
            _ => None,
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Neither null, false, 0, nor empty.
    pub(crate) fn is_truthy(&self) -> bool {
        match self {
            Json::Null | Json::Bool(false) => false,
            Json::Bool(true) => true,
            Json::Number(number) => number.parse::<f64>().is_ok_and(|number| number != 0.0),
            Json::Text(text) => !text.is_empty(),
            Json::List(list) => !list.is_empty(),
            Json::Object(object) => !object.0.is_empty(),
        }
    }

    /// The value as people read it; `None` for null.
    pub(crate) fn display(&self) -> Option<String> {
        match self {
            Json::Null => None,
            Json::Text(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Two spaces a level and sorted keys, with a line feed at the end.
    pub(crate) fn pretty(&self) -> String {
        let mut text = String::new();
        self.write_pretty(&mut text, 0);
        text.push('\n');
        text
    }

    fn write_pretty(&self, text: &mut String, level: usize) {
        let line = |text: &mut String, level: usize| {
            text.push('\n');
            text.push_str(&"  ".repeat(level));
        };
        match self {
            Json::List(list) if !list.is_empty() => {
                text.push('[');
                for (index, value) in list.iter().enumerate() {
                    text.push_str(if index > 0 { "," } else { "" });
                    line(text, level + 1);
                    value.write_pretty(text, level + 1);
                }
                line(text, level);
                text.push(']');
            }
            Json::Object(object) if !object.0.is_empty() => {
                let mut entries: Vec<_> = object.0.iter().collect();
                entries.sort_by(|one, other| one.0.cmp(&other.0));
                text.push('{');
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    text.push_str(if index > 0 { "," } else { "" });
                    line(text, level + 1);
                    quote(text, key);
                    text.push_str(": ");
                    value.write_pretty(text, level + 1);
                }
                line(text, level);
                text.push('}');
            }
            other => text.push_str(&other.to_string()),
        }
    }
}

/// `, ` and `: ` between the parts, and only ASCII.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(number) => f.write_str(number),
            Json::Text(text) => {
                let mut quoted = String::with_capacity(text.len() + 2);
                quote(&mut quoted, text);
                f.write_str(&quoted)
            }
            Json::List(list) => {
                f.write_char('[')?;
                for (index, value) in list.iter().enumerate() {
                    f.write_str(if index > 0 { ", " } else { "" })?;
                    write!(f, "{value}")?;
                }
                f.write_char(']')
            }
            Json::Object(object) => {
                f.write_char('{')?;
                for (index, (key, value)) in object.0.iter().enumerate() {
                    f.write_str(if index > 0 { ", " } else { "" })?;
                    write!(f, "{}: {value}", Json::from(key.as_str()))?;
                }
                f.write_char('}')
            }
        }
    }
}

fn quote(target: &mut String, text: &str) {
    target.push('"');
    for character in text.chars() {
        match character {
            '"' => target.push_str("\\\""),
            '\\' => target.push_str("\\\\"),
            '\n' => target.push_str("\\n"),
            '\r' => target.push_str("\\r"),
            '\t' => target.push_str("\\t"),
            '\u{8}' => target.push_str("\\b"),
            '\u{c}' => target.push_str("\\f"),
            ' '..='~' => target.push(character),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    target.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    target.push('"');
}

fn build(raw: &RawValue, depth: usize) -> Result<Json, serde_json::Error> {
    if depth > DEPTH {
        return Err(serde_json::Error::custom("the document is too deep"));
    }
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'n') => Json::Null,
        Some(b't') => Json::Bool(true),
        Some(b'f') => Json::Bool(false),
        Some(b'"') => Json::Text(serde_json::from_str(text)?),
        Some(b'[') => {
            let parts = serde_json::Deserializer::from_str(text).deserialize_seq(Parts)?;
            let parts = parts.into_iter().map(|part| build(part, depth + 1));
            Json::List(parts.collect::<Result<_, _>>()?)
        }
        Some(b'{') => {
            let entries = serde_json::Deserializer::from_str(text).deserialize_map(Entries)?;
            let mut object = Object::default();
            for (key, value) in entries {
                object.set(key, build(value, depth + 1)?);
            }
            Json::Object(object)
        }
        _ => Json::Number(text.to_owned()),
    })
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = list.next_element()? {
            parts.push(part);
        }
        Ok(parts)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> String {
        Json::parse(text.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn order_and_numbers_stay() {
        let text = r#"{"b": 1.0, "a": [-0, 1e3, 123456789012345678901234567890], "": null}"#;
        assert_eq!(round(text), text);
        assert_eq!(round(r#"{"a":1,"b":2,"a":3}"#), r#"{"a": 3, "b": 2}"#);
    }

    #[test]
    fn text_is_ascii() {
        assert_eq!(
            round(r#""é😀\u007f\/\u0001""#),
            r#""\u00e9\ud83d\ude00\u007f/\u0001""#
        );
    }

    #[test]
    fn pretty_is_sorted() {
        let json = Json::parse(br#"{"b":{"y":[],"x":[1,2]},"a":{}}"#).unwrap();
        let expected = "{\n  \"a\": {},\n  \"b\": {\n    \"x\": [\n      1,\n      2\n    ],\n    \"y\": []\n  }\n}\n";
        assert_eq!(json.pretty(), expected);
    }

    #[test]
    fn what_is_too_deep_is_refused() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Json::parse(deep(90).as_bytes()).is_ok());
        assert!(Json::parse(deep(120).as_bytes()).is_err());
        assert!(Json::parse(deep(100_000).as_bytes()).is_err());
        assert!(Json::parse(b"{").is_err());
    }
}
