//! Checks that the compiler does not make.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::say;

/// Which of our crates may use which, outside of tests. An arrow that is not here is a change of
/// the design: discuss it, then write it down in ARCHITECTURE.md and here.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("mqtt", &[]),
    ("amqp", &[]),
    ("record", &["model", "amqp"]),
    ("store", &["model"]),
    ("store-embedded", &["store", "model"]),
    ("hub", &["store", "record", "model"]),
    (
        "gateway",
        &["hub", "mqtt", "amqp", "record", "store", "model"],
    ),
    ("client", &["mqtt", "amqp", "model"]),
    (
        "server",
        &[
            "gateway",
            "hub",
            "store",
            "store-embedded",
            "client",
            "record",
            "model",
        ],
    ),
];

/// Crates that only tests and measurements use.
const TEST_ONLY: &[&str] = &["bench", "testkit"];

/// Words that must not stand in a crate's code, and why: knowledge that belongs to another crate.
const FOREIGN_WORDS: &[(&str, &[&str], &str)] = &[
    (
        "hub",
        &[
            "$iothub/",
            "messages/events",
            "StatusCode",
            "axum",
            "hyper",
            "TcpStream",
        ],
        "wire words belong to gateway",
    ),
    (
        "store",
        &["mqtt", "amqp", "axum"],
        "storage knows no protocol",
    ),
    (
        "store-embedded",
        &["mqtt", "amqp", "axum"],
        "storage knows no protocol",
    ),
    (
        "mqtt",
        &["tokio", "iothub", "devicebound"],
        "the engine is pure and knows no hub",
    ),
    (
        "amqp",
        &["tokio", "iothub", "devicebound"],
        "the engine is pure and knows no hub",
    ),
];

/// A file of code longer than this probably has two subjects.
const LINES_MAX: usize = 800;

/// Runs all checks and reports every finding.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    dependency_directions(root, &mut findings)?;
    foreign_words(root, &mut findings)?;
    document_links(root, &mut findings)?;
    long_files(root, &mut findings)?;
    if findings.is_empty() {
        say("tidy: dependencies, foreign words, links and lengths are as they should be");
        return Ok(());
    }
    bail!("{}", findings.join("\n"));
}

fn dependency_directions(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for package in metadata
        .get("packages")
        .and_then(serde_json::Value::as_array)
        .context("packages")?
    {
        let Some(name) = ours(&package["name"]) else {
            continue;
        };
        if TEST_ONLY.contains(&name) {
            continue;
        }
        let Some(may_use) = allowed.get(name) else {
            findings.push(format!(
                "the crate {name} has no line in the table of arrows"
            ));
            continue;
        };
        for dependency in package
            .get("dependencies")
            .and_then(serde_json::Value::as_array)
            .context("dependencies")?
        {
            let Some(used) = ours(dependency) else {
                continue;
            };
            if dependency.get("kind").is_none_or(|kind| kind != "dev") && !may_use.contains(&used) {
                findings.push(format!("{name} must not depend on {used}"));
            }
        }
    }
    Ok(())
}

/// The short name of a package or dependency, if it is one of our crates.
fn ours(entry: &serde_json::Value) -> Option<&str> {
    entry.get("name")?.as_str()?.strip_prefix("fieldpost-")
}

fn foreign_words(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    for (name, words, why) in FOREIGN_WORDS {
        for file in files(&root.join("crates").join(name).join("src"), "rs")? {
            let text = fs::read_to_string(&file)?;
            for (number, line) in text.lines().enumerate() {
                let code = line.trim_start();
                // Tests stand last in a file and may speak of whatever a peer says.
                if line.starts_with("#[cfg(test)]") {
                    break;
                }
                if code.starts_with("//") {
                    continue;
                }
                for word in words.iter().filter(|word| code.contains(**word)) {
                    findings.push(format!(
                        "{}:{}: {word:?}: {why}",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    Ok(())
}

fn document_links(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let mut documents = files(&root.join("docs"), "md")?;
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        documents.push(root.join(name));
    }
    for document in documents {
        let text = fs::read_to_string(&document)
            .with_context(|| format!("read {}", document.display()))?;
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.contains(' ') {
                continue;
            }
            let folder = document.parent().unwrap_or(root);
            if !folder.join(path).exists() {
                findings.push(format!(
                    "{}: the link to {path} leads nowhere",
                    document.display()
                ));
            }
        }
    }
    Ok(())
}

fn long_files(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    for file in files(&root.join("crates"), "rs")? {
        let lines = fs::read_to_string(&file)?.lines().count();
        if lines > LINES_MAX {
            findings.push(format!(
                "{}: {lines} lines; has it two subjects?",
                file.display()
            ));
        }
    }
    Ok(())
}

/// All files below a folder with an extension, in a stable order.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
