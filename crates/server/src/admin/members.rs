//! JSON documents taken apart by hand, so that what is wrong is named by its whole path, and a
//! misspelt member with the one that was meant.

use std::time::Duration;

use serde_json::{Map, Value};

use super::answer::{Problem, invalid};
use super::duration;

/// The members of one object. Every member that is asked for counts as known; [`Members::end`]
/// refuses the others.
pub(super) struct Members<'a> {
    path: String,
    members: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Members<'a> {
    /// Those of a whole document.
    pub(super) fn of(document: &'a Value) -> Result<Self, Problem> {
        Self::at(String::new(), document)
    }

    fn at(path: String, value: &'a Value) -> Result<Self, Problem> {
        match value {
            Value::Object(members) => Ok(Self {
                path,
                members,
                known: Vec::new(),
            }),
            other => Err(wrong(&path, "an object", other)),
        }
    }

    /// A member as it stands; null is not told from absent.
    pub(super) fn value(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// Whether a member is there and null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(Value::is_null)
    }

    /// Members that are shown and cannot be changed here, or say nothing to this hub.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        self.known.extend_from_slice(names);
    }

    /// An object in this one.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Members<'a>>, Problem> {
        let path = self.path_of(name);
        self.value(name)
            .map(|value| Self::at(path, value))
            .transpose()
    }

    /// A whole number that is not negative.
    pub(super) fn number<T: TryFrom<u64>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Problem> {
        self.read(name, "a whole number", |value| {
            value.as_u64().and_then(|number| T::try_from(number).ok())
        })
    }

    /// `true` or `false`.
    pub(super) fn bool(&mut self, name: &'static str) -> Result<Option<bool>, Problem> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<&'a str>, Problem> {
        self.read(name, "a text", Value::as_str)
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Option<Vec<String>>, Problem> {
        self.read(name, "a list of texts", |value| {
            let texts = value.as_array()?.iter();
            texts.map(|text| text.as_str().map(str::to_owned)).collect()
        })
    }

    /// A span of time in the form of ISO 8601.
    pub(super) fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, Problem> {
        let path = self.path_of(name);
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        duration::parse(text)
            .map(Some)
            .map_err(|error| invalid(format!("{path}: `{text}`: {error}")))
    }

    /// One of some texts.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, Problem> {
        let path = self.path_of(name);
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match choices.iter().find(|(choice, _)| *choice == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let choices: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
                let choices = choices.join(", ");
                Err(invalid(format!("{path}: `{text}` is none of {choices}")))
            }
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn end(self) -> Result<(), Problem> {
        let Some(unknown) = self
            .members
            .keys()
            .find(|name| !self.known.contains(&name.as_str()))
        else {
            return Ok(());
        };
        let nearest = self
            .known
            .iter()
            .map(|known| (likeness(unknown, known), known))
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .filter(|(likeness, _)| *likeness >= 0.55);
        let hint = match nearest {
            Some((_, known)) => format!("; did you mean `{}`?", self.path_of(known)),
            None => format!("; there are {}", self.known.join(", ")),
        };
        let path = self.path_of(unknown);
        Err(invalid(format!("this hub has no setting `{path}`{hint}")))
    }

    fn read<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let path = self.path_of(name);
        self.value(name)
            .map(|value| read(value).ok_or_else(|| wrong(&path, expected, value)))
            .transpose()
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}

/// How alike two names are, from 0 to 1. The ending that tells the form of a span of time, which is
/// easily left out, does not count.
fn likeness(given: &str, known: &str) -> f64 {
    let bare = |name: &str| {
        let lower = name.to_lowercase();
        lower.trim_end_matches("asiso8601").to_owned()
    };
    strsim::normalized_damerau_levenshtein(&bare(given), &bare(known))
}

fn wrong(path: &str, expected: &str, found: &Value) -> Problem {
    let path = if path.is_empty() {
        "the document"
    } else {
        path
    };
    let mut found = found.to_string();
    if found.chars().count() > FOUND_CHARS_MAX {
        found = found
            .chars()
            .take(FOUND_CHARS_MAX)
            .chain(['\u{2026}'])
            .collect();
    }
    invalid(format!("{path}: expected {expected}, found {found}"))
}

/// Characters of a wrong value that are shown.
const FOUND_CHARS_MAX: usize = 60;
