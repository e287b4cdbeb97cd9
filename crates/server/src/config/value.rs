//! Values of configuration keys, read from a file, the environment or the command line.

use std::fmt;

use toml::de::DeValue;

use super::keys::Kind;

/// A value that fits its key's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Integer`], [`Kind::Bytes`] and, in seconds, [`Kind::Span`].
    Integer(u64),
    /// Of every kind of text.
    Text(String),
    /// Of [`Kind::Texts`].
    Texts(Vec<String>),
}

/// Why something is not a value of its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidValue {
    #[error("expected {expected}, found {found}")]
    Kind { expected: String, found: String },
    #[error("{value} is not in the range {min} to {max}")]
    Range { value: u64, min: u64, max: u64 },
    #[error("{} is not in the range {} to {}", span(*value), span(*min), span(*max))]
    SpanRange { value: u64, min: u64, max: u64 },
}

impl Value {
    /// Reads a value as the file holds it.
    pub(crate) fn from_toml(kind: Kind, value: &DeValue<'_>) -> Result<Self, InvalidValue> {
        let mismatch = || InvalidValue::Kind {
            expected: kind.to_string(),
            found: shown(value),
        };
        match (kind, value) {
            (Kind::Bool, DeValue::Boolean(value)) => Ok(Self::Bool(*value)),
            (Kind::Integer { min, max } | Kind::Bytes { min, max }, DeValue::Integer(number)) => {
                let digits = number.as_str().replace('_', "");
                let number =
                    u64::from_str_radix(&digits, number.radix()).map_err(|_| mismatch())?;
                in_range(number, min, max)
            }
            (Kind::Texts, DeValue::Array(items)) => {
                let texts = items.iter().map(|item| item.get_ref().as_str());
                texts
                    .map(|text| text.map(str::to_owned))
                    .collect::<Option<_>>()
                    .map(Self::Texts)
                    .ok_or_else(mismatch)
            }
            (Kind::Bool | Kind::Integer { .. } | Kind::Texts, DeValue::String(_)) => {
                Err(mismatch())
            }
            (_, DeValue::String(text)) => Self::from_text(kind, text),
            _ => Err(mismatch()),
        }
    }

    /// Reads a value as the environment and `--set` hold it: without quotes, lists with commas.
    pub(crate) fn from_text(kind: Kind, text: &str) -> Result<Self, InvalidValue> {
        let mismatch = || InvalidValue::Kind {
            expected: kind.to_string(),
            found: format!("`{text}`"),
        };
        match kind {
            Kind::Bool => text.parse().map(Self::Bool).map_err(|_| mismatch()),
            Kind::Integer { min, max } => {
                let number = text.parse().map_err(|_| mismatch())?;
                in_range(number, min, max)
            }
            Kind::Bytes { min, max } => {
                let number = parse_bytes(text).ok_or_else(mismatch)?;
                in_range(number, min, max)
            }
            Kind::Span { min, max } => {
                let value = parse_span(text).ok_or_else(mismatch)?;
                if (min..=max).contains(&value) {
                    Ok(Self::Integer(value))
                } else {
                    Err(InvalidValue::SpanRange { value, min, max })
                }
            }
            Kind::Choice(choices) if !choices.contains(&text) => Err(mismatch()),
            Kind::Address if text != "*" && text.parse::<std::net::IpAddr>().is_err() => {
                Err(mismatch())
            }
            Kind::Choice(_) | Kind::Address | Kind::Text | Kind::Path => {
                Ok(Self::Text(text.to_owned()))
            }
            Kind::Texts => {
                let items = text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty());
                Ok(Self::Texts(items.map(str::to_owned).collect()))
            }
        }
    }

    /// The value as it stands in a file for a key of this kind.
    pub(crate) fn to_toml(&self, kind: Kind) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => match kind {
                Kind::Bytes { .. } => match bytes_with_unit(*number) {
                    Some(text) => quoted(&text),
                    None => number.to_string(),
                },
                Kind::Span { .. } => quoted(&span(*number)),
                _ => number.to_string(),
            },
            Self::Text(text) => quoted(text),
            Self::Texts(items) => {
                let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Integer { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Bytes { .. } => f.write_str("a number of bytes such as 1048576 or \"1 MiB\""),
            Self::Span { .. } => {
                f.write_str("a span of time such as \"90 s\", \"5 min\", \"1 h\" or \"7 d\"")
            }
            Self::Text => f.write_str("a text"),
            Self::Choice(choices) => write!(f, "one of {}", choices.join(", ")),
            Self::Address => f.write_str("an IP address or *"),
            Self::Path => f.write_str("a path"),
            Self::Texts => f.write_str("a list of texts"),
        }
    }
}

const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    for (unit, factor) in UNITS {
        if let Some(number) = text.strip_suffix(unit) {
            return number.trim().parse::<u64>().ok()?.checked_mul(factor);
        }
    }
    text.parse().ok()
}

fn bytes_with_unit(number: u64) -> Option<String> {
    UNITS
        .iter()
        .find(|(_, factor)| number != 0 && number.is_multiple_of(*factor))
        .map(|(unit, factor)| format!("{} {unit}", number / factor))
}

const SPAN_UNITS: [(&str, u64); 4] = [("d", 24 * 60 * 60), ("h", 60 * 60), ("min", 60), ("s", 1)];

/// Seconds of a span of time such as `90 s` or `1 h`.
pub(crate) fn parse_span(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().ok()?;
    if unit.is_empty() {
        // The one span that needs no unit.
        return (number == 0).then_some(0);
    }
    let (_, factor) = SPAN_UNITS.iter().find(|(known, _)| *known == unit.trim())?;
    number.checked_mul(*factor)
}

/// A span of seconds in the largest unit that needs no fraction.
fn span(seconds: u64) -> String {
    SPAN_UNITS
        .iter()
        .find(|(_, factor)| seconds != 0 && seconds.is_multiple_of(*factor))
        .map_or_else(
            || format!("{seconds} s"),
            |(unit, factor)| format!("{} {unit}", seconds / factor),
        )
}

fn in_range(value: u64, min: u64, max: u64) -> Result<Value, InvalidValue> {
    if (min..=max).contains(&value) {
        Ok(Value::Integer(value))
    } else {
        Err(InvalidValue::Range { value, min, max })
    }
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{text}\""),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        other => format!("a {}", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_by_kind() {
        let check = |kind: Kind, text: &str, expected: Option<Value>| {
            assert_eq!(Value::from_text(kind, text).ok(), expected, "{text}");
        };
        let bytes = Kind::Bytes {
            min: 0,
            max: u64::MAX,
        };
        check(bytes, "256 MiB", Some(Value::Integer(256 << 20)));
        check(bytes, "4GiB", Some(Value::Integer(4 << 30)));
        check(bytes, "17", Some(Value::Integer(17)));
        check(bytes, "1 MB", None);
        check(bytes, "99999999999 TiB", None);
        check(
            Kind::Integer { min: 1, max: 7 },
            "7",
            Some(Value::Integer(7)),
        );
        check(Kind::Integer { min: 1, max: 7 }, "8", None);
        check(Kind::Integer { min: 1, max: 7 }, "-1", None);
        let spans = Kind::Span {
            min: 0,
            max: 172_800,
        };
        check(spans, "90 s", Some(Value::Integer(90)));
        check(spans, "5min", Some(Value::Integer(300)));
        check(spans, "1 h", Some(Value::Integer(3600)));
        check(spans, "2 d", Some(Value::Integer(172_800)));
        check(spans, "0", Some(Value::Integer(0)));
        check(spans, "3 d", None);
        check(spans, "60", None);
        check(spans, "1.5 h", None);
        check(spans, "-1 s", None);
        check(spans, "h", None);
        check(spans, "99999999999999999 d", None);
        check(Kind::Bool, "yes", None);
        check(Kind::Bool, "true", Some(Value::Bool(true)));
        check(Kind::Address, "*", Some(Value::Text("*".into())));
        check(Kind::Address, "::1", Some(Value::Text("::1".into())));
        check(Kind::Address, "example.org", None);
        check(Kind::Choice(&["a", "b"]), "c", None);
        check(
            Kind::Texts,
            "a, b,,c",
            Some(Value::Texts(vec!["a".into(), "b".into(), "c".into()])),
        );
        check(Kind::Texts, "", Some(Value::Texts(vec![])));
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for key in super::super::keys::keys() {
            let line = format!("v = {}", key.default);
            let parsed = toml::de::DeTable::parse(&line).unwrap();
            let value = parsed.get_ref().get("v").unwrap();
            let value = Value::from_toml(key.kind, value.get_ref()).expect(key.path);
            assert_eq!(value.to_toml(key.kind), key.default, "{}", key.path);
        }
    }
}
