//! Gathers the configuration from its sources: file, then environment, then command line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Key};
use super::value::Value;

/// Where the configuration comes from. Later sources win.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// The file, if one was named.
    pub(crate) file: Option<PathBuf>,
    /// Environment variables; only those that start with `FIELDPOST_` count.
    pub(crate) environment: Vec<(String, String)>,
    /// `KEY=VALUE` texts of `--set`.
    pub(crate) assignments: Vec<String>,
    /// Keys that have a flag of their own: key, value, and the flag's name.
    pub(crate) flags: Vec<(&'static str, String, &'static str)>,
}

/// Every key's value and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, (Value, Origin)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File { path: PathBuf, line: usize },
    /// An environment variable.
    Environment { variable: String },
    /// A flag of the command line.
    Flag { name: &'static str },
}

/// Everything that is wrong with a configuration, at least one thing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigErrors(pub(crate) Vec<ConfigError>);

/// One thing that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{origin}: {message}")]
    Syntax { origin: Origin, message: String },
    #[error("{origin}: unknown key `{key}`{}", suggestion(.nearest))]
    UnknownKey {
        origin: Origin,
        key: String,
        nearest: Option<String>,
    },
    #[error("{origin}: `{key}`: {reason}")]
    Value {
        origin: Origin,
        key: String,
        reason: String,
    },
}

impl Settings {
    /// Reads all sources.
    ///
    /// # Errors
    /// Names everything that is wrong, in the order of the sources.
    pub(crate) fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let mut loader = Loader {
            settings: Self::defaults(),
            errors: Vec::new(),
        };
        if let Some(path) = &sources.file {
            match std::fs::read_to_string(path) {
                Ok(text) => loader.file(path, &text),
                Err(error) => loader.errors.push(ConfigError::Unreadable {
                    path: path.clone(),
                    reason: error.to_string(),
                }),
            }
        }
        let mut environment = sources.environment.clone();
        environment.sort();
        for (variable, text) in &environment {
            loader.variable(variable, text);
        }
        for assignment in &sources.assignments {
            loader.assignment(assignment);
        }
        for (path, text, name) in &sources.flags {
            loader.text(path, text, Origin::Flag { name });
        }
        if loader.errors.is_empty() {
            Ok(loader.settings)
        } else {
            Err(ConfigErrors(loader.errors))
        }
    }

    /// The value of a key and where it came from.
    pub(crate) fn get(&self, path: &str) -> (&Value, &Origin) {
        let (value, origin) = self
            .values
            .get(path)
            .expect("a value stands for every key of the table");
        (value, origin)
    }

    /// Whether somebody set this key.
    pub(crate) fn is_set(&self, path: &str) -> bool {
        *self.get(path).1 != Origin::Default
    }

    /// Whether somebody set a key whose path begins so.
    pub(crate) fn is_any_set(&self, prefix: &str) -> bool {
        let mut values = self.values.iter();
        values.any(|(path, (_, origin))| path.starts_with(prefix) && *origin != Origin::Default)
    }

    fn defaults() -> Self {
        let values = keys::keys().map(|key| {
            let line = format!("v = {}", key.default);
            let table = DeTable::parse(&line).expect("defaults of the table are TOML");
            let value = table.get_ref().get("v").expect("the line sets this key");
            let value = Value::from_toml(key.kind, value.get_ref())
                .expect("defaults of the table fit their kinds");
            (key.path, (value, Origin::Default))
        });
        Self {
            values: values.collect(),
        }
    }
}

struct Loader {
    settings: Settings,
    errors: Vec<ConfigError>,
}

impl Loader {
    fn file(&mut self, path: &Path, text: &str) {
        let origin_at = |at: usize| Origin::File {
            path: path.to_owned(),
            line: line_of(text, at),
        };
        match DeTable::parse(text) {
            Ok(table) => self.table("", table.get_ref(), &origin_at),
            Err(error) => self.errors.push(ConfigError::Syntax {
                origin: origin_at(error.span().map_or(0, |span| span.start)),
                message: error.message().to_owned(),
            }),
        }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, origin_at: &dyn Fn(usize) -> Origin) {
        for (name, value) in table {
            let path = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            let origin = origin_at(name.span().start);
            match (keys::key(&path), value.get_ref()) {
                (Some(key), value) => {
                    let value = Value::from_toml(key.kind, value).map_err(|e| e.to_string());
                    self.set(key, value, origin);
                }
                // A table is no key itself; what is in it is looked at, so that a misspelt table
                // is reported with the keys that were meant.
                (None, DeValue::Table(inner)) if !inner.is_empty() || is_table(&path) => {
                    self.table(&path, inner, origin_at);
                }
                (None, _) => self.unknown(&path, keys::nearest(&path), origin),
            }
        }
    }

    fn variable(&mut self, variable: &str, text: &str) {
        let Some(rest) = variable.strip_prefix("FIELDPOST_") else {
            return;
        };
        let origin = Origin::Environment {
            variable: variable.to_owned(),
        };
        if let Some(key) = keys::keys().find(|key| keys::variable(key) == variable) {
            let value = Value::from_text(key.kind, text).map_err(|e| e.to_string());
            return self.set(key, value, origin);
        }
        // Not every such variable is meant for us: Kubernetes sets FIELDPOST_PORT and others for a
        // service of that name. One that names a table, or nearly spells a key, is.
        let near = keys::keys()
            .map(keys::variable)
            .map(|known| (strsim::damerau_levenshtein(&known, variable), known))
            .min();
        let (distance, known) = near.expect("the table has keys");
        if distance <= 2 || (rest.contains("__") && variable != "FIELDPOST_CONFIG") {
            let known = (distance <= variable.len() / 3).then_some(known);
            self.errors.push(ConfigError::UnknownKey {
                origin,
                key: variable.to_owned(),
                nearest: known,
            });
        }
    }

    fn assignment(&mut self, assignment: &str) {
        let origin = Origin::Flag { name: "--set" };
        match assignment.split_once('=') {
            Some((path, text)) => self.text(path.trim(), text.trim(), origin),
            None => self.errors.push(ConfigError::Syntax {
                origin,
                message: format!("expected KEY=VALUE, found `{assignment}`"),
            }),
        }
    }

    fn text(&mut self, path: &str, text: &str, origin: Origin) {
        match keys::key(path) {
            Some(key) => {
                let value = Value::from_text(key.kind, text).map_err(|e| e.to_string());
                self.set(key, value, origin);
            }
            None => self.unknown(path, keys::nearest(path), origin),
        }
    }

    fn set(&mut self, key: &'static Key, value: Result<Value, String>, origin: Origin) {
        match value {
            Ok(value) => {
                self.settings.values.insert(key.path, (value, origin));
            }
            Err(reason) => self.errors.push(ConfigError::Value {
                origin,
                key: key.path.to_owned(),
                reason,
            }),
        }
    }

    fn unknown(&mut self, path: &str, nearest: Option<&str>, origin: Origin) {
        self.errors.push(ConfigError::UnknownKey {
            origin,
            key: path.to_owned(),
            nearest: nearest.map(str::to_owned),
        });
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{} line {line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Flag { name } => write!(f, "command line {name}"),
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

fn suggestion(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

fn is_table(path: &str) -> bool {
    keys::keys().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(at)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        file: Option<&str>,
        environment: &[(&str, &str)],
        assignments: &[&str],
    ) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fieldpost.toml");
        let sources = Sources {
            file: file.map(|text| {
                std::fs::write(&path, text).unwrap();
                path.clone()
            }),
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            assignments: assignments.iter().map(|a| (*a).to_owned()).collect(),
            flags: vec![],
        };
        Settings::load(&sources)
            .map_err(|errors| errors.to_string().replace(&*path.to_string_lossy(), "FILE"))
    }

    #[test]
    fn the_file_yields_to_the_environment_and_that_to_the_command_line() {
        let port = "listeners.mqtts.port";
        let file = Some("[listeners.mqtts]\nport = 1\n");
        let variable = [("FIELDPOST_LISTENERS__MQTTS__PORT", "2")];
        let check = |settings: Result<Settings, String>, expected: u64| {
            assert_eq!(*settings.unwrap().get(port).0, Value::Integer(expected));
        };
        check(load(None, &[], &[]), 8883);
        check(load(file, &[], &[]), 1);
        check(load(file, &variable, &[]), 2);
        check(load(file, &variable, &["listeners.mqtts.port=3"]), 3);
        check(load(None, &variable, &[]), 2);
    }

    #[test]
    fn errors_name_the_line_and_the_key_that_was_meant() {
        let check = |file: &str, expected: &str| {
            assert_eq!(load(Some(file), &[], &[]).unwrap_err(), expected, "{file}");
        };
        check(
            "data = \"x\"\n\n[listeners.mqtts]\nprot = 1\n",
            "FILE line 4: unknown key `listeners.mqtts.prot`; did you mean `listeners.mqtts.port`?",
        );
        check(
            "[listener.mqtts]\nport = 1\n",
            "FILE line 2: unknown key `listener.mqtts.port`; did you mean `listeners.mqtts.port`?",
        );
        check(
            "hub.retention_days = 9\n",
            "FILE line 1: `hub.retention_days`: 9 is not in the range 1 to 7",
        );
        check(
            "listeners.https.port = \"443\"\nlog.format = \"xml\"",
            "FILE line 1: `listeners.https.port`: expected a whole number from 0 to 65535, found \"443\"\n\
             FILE line 2: `log.format`: expected one of text, json, found `xml`",
        );
        check("zzz = 1\n", "FILE line 1: unknown key `zzz`");
        check("[qqqqqqq]\n", "FILE line 1: unknown key `qqqqqqq`");
        let syntax = load(Some("a = \n"), &[], &[]).unwrap_err();
        assert!(syntax.starts_with("FILE line 1: "), "{syntax}");
    }

    #[test]
    fn variables_that_are_not_ours_are_left_alone() {
        let check = |name: &str, value: &str, expected: Option<&str>| {
            let error = load(None, &[(name, value)], &[]).err();
            assert_eq!(error.as_deref(), expected, "{name}");
        };
        check("FIELDPOST_PORT", "tcp://10.0.0.1:80", None);
        check("FIELDPOST_SERVICE_PORT_MQTTS", "8883", None);
        check("FIELDPOST_CONFIG", "x", None);
        check("PATH", "x", None);
        check("FIELDPOST_HOST_NAME", "hub.example", None);
        check(
            "FIELDPOST_HOSTNAME",
            "hub.example",
            Some(
                "environment variable FIELDPOST_HOSTNAME: unknown key `FIELDPOST_HOSTNAME`; did you mean `FIELDPOST_HOST_NAME`?",
            ),
        );
        check(
            "FIELDPOST_LISTENERS__MQTTS__PROT",
            "1",
            Some(
                "environment variable FIELDPOST_LISTENERS__MQTTS__PROT: unknown key `FIELDPOST_LISTENERS__MQTTS__PROT`; did you mean `FIELDPOST_LISTENERS__MQTTS__PORT`?",
            ),
        );
    }

    #[test]
    fn assignments_are_checked_like_the_file() {
        let check = |assignment: &str, expected: &str| {
            assert_eq!(load(None, &[], &[assignment]).unwrap_err(), expected);
        };
        check(
            "nonsense",
            "command line --set: expected KEY=VALUE, found `nonsense`",
        );
        check(
            "log.levle=debug",
            "command line --set: unknown key `log.levle`; did you mean `log.level`?",
        );
        check(
            "listeners.mqtts.port=70000",
            "command line --set: `listeners.mqtts.port`: 70000 is not in the range 0 to 65535",
        );
        let settings = load(None, &[], &["additional_host_names=a.example, 10.0.0.1"]).unwrap();
        assert_eq!(
            *settings.get("additional_host_names").0,
            Value::Texts(vec!["a.example".into(), "10.0.0.1".into()])
        );
    }
}
