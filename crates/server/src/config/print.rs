//! The effective configuration as text, with where each value came from.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::keys::{Key, keys};
use super::load::{Origin, Settings};
use super::value::Value;

/// The configuration as a TOML file that can be given to `--config`.
///
/// Every value carries its origin as a comment, so that it is plain which are defaults.
pub(crate) fn as_toml(settings: &Settings) -> String {
    let mut text = String::new();
    let mut table = "";
    for key in keys() {
        let (key_table, name) = split(key);
        if key_table != table {
            table = key_table;
            let _ = write!(text, "\n[{table}]\n");
        }
        let (value, origin) = settings.get(key.path);
        let _ = writeln!(text, "# {}", key.about);
        let _ = writeln!(text, "{name} = {}  # {origin}", value.to_toml(key.kind));
    }
    text
}

/// The configuration as a JSON object of `path: {value, origin}`.
pub(crate) fn as_json(settings: &Settings) -> serde_json::Value {
    let entries = keys().map(|key| {
        let (value, origin) = settings.get(key.path);
        let value = match value {
            Value::Bool(value) => json!(value),
            Value::Integer(value) => json!(value),
            Value::Text(value) => json!(value),
            Value::Texts(value) => json!(value),
        };
        let is_default = *origin == Origin::Default;
        let entry = json!({"value": value, "origin": origin.to_string(), "default": is_default, "about": key.about});
        (key.path.to_owned(), entry)
    });
    serde_json::Value::Object(entries.collect::<Map<_, _>>())
}

fn split(key: &Key) -> (&'static str, &'static str) {
    key.path.rsplit_once('.').unwrap_or(("", key.path))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Sources};
    use super::*;

    #[test]
    fn what_is_printed_loads_to_the_same_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("printed.toml");
        let sources = Sources {
            assignments: vec![
                "listeners.https.port=8443".to_owned(),
                "hub.consumer_groups=a,b".to_owned(),
                "host_name=hub.example".to_owned(),
            ],
            ..Sources::default()
        };
        let (_, settings) = Config::load(&sources).unwrap();
        let printed = as_toml(&settings);
        assert!(
            printed.contains("port = 8443  # command line --set"),
            "{printed}"
        );
        assert!(
            printed.contains("retention_days = 1  # default"),
            "{printed}"
        );
        std::fs::write(&path, &printed).unwrap();
        let (_, again) = Config::load(&Sources {
            file: Some(path),
            ..Sources::default()
        })
        .unwrap();
        for key in keys() {
            assert_eq!(
                settings.get(key.path).0,
                again.get(key.path).0,
                "{}",
                key.path
            );
        }
    }

    /// `docs/configuration.md` names every key with its real default and nothing else.
    #[test]
    fn the_documentation_names_every_key_and_its_default() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let text = std::fs::read_to_string(page).expect("docs/configuration.md is readable");
        let documented: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|');
                let path = cells.next()?.trim().trim_matches('`').to_owned();
                let default = cells.next()?.trim().trim_matches('`').to_owned();
                Some((path, default))
            })
            .collect();
        let real: Vec<_> = keys()
            .map(|key| (key.path.to_owned(), key.default.to_owned()))
            .collect();
        assert_eq!(documented, real);
        for key in keys() {
            assert!(
                text.contains(key.about),
                "the meaning of {} is not documented",
                key.path
            );
        }
    }
}
