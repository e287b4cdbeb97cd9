//! Writes into `docs/reliability.md` what the latest runs of `./test` reached.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::say;

const PAGE: &str = "docs/reliability.md";
/// Where `./test` leaves what each part printed, and when and of what it was run.
const RECORDS: &str = "target/reliability";
const BEGIN: &str = "<!-- reached: begin, written by cargo xtask reliability -->\n";
const END: &str = "<!-- reached: end -->\n";

/// A part of `./test`, and words by which the lines are known that say what it reached.
struct Part {
    name: &'static str,
    title: &'static str,
    marks: &'static [&'static str],
}

const PARTS: &[Part] = &[
    Part {
        name: "unit",
        title: "Unit and property tests, crash images, images of power cuts",
        marks: &[" disks after crashes of ", " images of power cuts in "],
    },
    Part {
        name: "sim",
        title: "Simulation",
        marks: &["seeds: "],
    },
    Part {
        name: "fuzz",
        title: "Fuzzing",
        marks: &[" runs"],
    },
    Part {
        name: "conformance",
        title: "SDKs, other peers, system calls",
        marks: &[" passed in ", " passed, ", "# pass ", "\u{2139} pass "],
    },
    Part {
        name: "kill",
        title: "Kill rounds, power cuts of a whole hub",
        marks: &[
            " records checked; ",
            " images of power cuts of a whole hub in ",
        ],
    },
];

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut reached = String::new();
    for part in PARTS {
        reached.push_str(&section(&root.join(RECORDS), part)?);
    }
    let path = root.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    fs::write(&path, replaced(&page, &reached)?).with_context(|| format!("write {PAGE}"))?;
    say(&format!("{PAGE} is written"));
    Ok(())
}

/// The page with other text between its marks.
fn replaced(page: &str, reached: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("{PAGE} has no line {BEGIN:?}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{PAGE} has no line {END:?}"))?;
    Ok(format!("{before}{BEGIN}{reached}{END}{after}"))
}

/// What one part reached in its latest run.
fn section(records: &Path, part: &Part) -> Result<String> {
    let Part { name, title, marks } = part;
    let record = records.join(format!("{name}.json"));
    let Ok(text) = fs::read_to_string(&record) else {
        return Ok(format!(
            "### {title}\n\nNo run of `./test {name}` is recorded here.\n\n"
        ));
    };
    let about: Value = serde_json::from_str(&text)
        .with_context(|| format!("read what {} says", record.display()))?;
    let log = fs::read_to_string(records.join(format!("{name}.log")))
        .with_context(|| format!("read what ./test {name} printed"))?;
    let mut lines: Vec<&str> = log
        .lines()
        // Where a check is left out because another command makes it, it says that it made none.
        .filter(|line| !line.starts_with("0 ") && marks.iter().any(|mark| line.contains(mark)))
        .collect();
    let counts = fs::read_to_string(records.join(format!("{name}-counts.json")));
    let counts = counts.ok().filter(|_| is_true(&about, "passed"));
    let counts = counts
        .map(|counts| serde_json::from_str::<Value>(&counts).map(|counts| format!("{counts:#}")))
        .transpose()?;
    lines.extend(counts.iter().flat_map(|counts| counts.lines()));
    ensure!(
        !lines.is_empty() || !is_true(&about, "passed"),
        "./test {name} passed, but no line of what it printed says what it reached"
    );
    let mut lines = lines.join("\n");
    // Rust's tests print a line for each program.
    if let Some(tests) = passed_tests(&log) {
        lines.push_str(&format!("\n{tests} Rust tests passed"));
    }
    Ok(format!(
        "### {title}\n\n{}\n\n```text\n{}\n```\n\n",
        heading(name, &about),
        lines.trim()
    ))
}

/// When and of what a part was run, and how it ended.
fn heading(name: &str, about: &Value) -> String {
    let text = |key: &str| about.get(key).and_then(Value::as_str).unwrap_or("unknown");
    let number = |key: &str| about.get(key).and_then(Value::as_u64).unwrap_or_default();
    let full = if is_true(about, "full") {
        " --full"
    } else {
        ""
    };
    let changed = match number("changedFiles") {
        0 => String::new(),
        files => format!(" with {files} changed files"),
    };
    let outcome = if is_true(about, "passed") {
        "passed"
    } else {
        "**failed**"
    };
    format!(
        "`./test{full} {name}` on {}, commit {}{changed}: {outcome} after {} s.",
        text("date"),
        text("commit"),
        number("seconds")
    )
}

fn is_true(about: &Value, key: &str) -> bool {
    about.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// How many tests passed in all programs of a run, if any says.
fn passed_tests(log: &str) -> Option<u64> {
    let counts = log.lines().filter_map(|line| {
        let rest = line.strip_prefix("test result: ok. ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    });
    counts.reduce(|sum, count| sum + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL: Part = Part {
        name: "kill",
        title: "Kill rounds",
        marks: &[" checked; "],
    };

    fn recorded(passed: bool, log: &str) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let about = format!(
            r#"{{"date": "2026-11-23", "commit": "abc", "changedFiles": 2, "full": true, "passed": {passed}, "seconds": 7}}"#
        );
        fs::write(folder.path().join("kill.json"), about).unwrap();
        fs::write(folder.path().join("kill.log"), log).unwrap();
        fs::write(folder.path().join("kill-counts.json"), r#"{"kills":3}"#).unwrap();
        section(folder.path(), &KILL)
    }

    #[test]
    fn a_run_is_shown_with_its_date_and_commit_and_a_failed_one_as_failed() {
        assert_eq!(
            recorded(true, "noise\n4 records checked; 0 damages\n").unwrap(),
            "### Kill rounds\n\n`./test --full kill` on 2026-11-23, commit abc with 2 changed files: passed \
             after 7 s.\n\n```text\n4 records checked; 0 damages\n{\n  \"kills\": 3\n}\n```\n\n"
        );
        // The counts are those of an earlier run then.
        let failed = recorded(false, "noise\n").unwrap();
        assert!(failed.contains("**failed**") && !failed.contains("kills"));
    }

    #[test]
    fn a_part_that_never_ran_is_not_shown_as_if_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let section = section(folder.path(), &KILL).unwrap();
        assert!(section.contains("No run of `./test kill` is recorded"));
    }

    #[test]
    fn tests_are_counted_and_only_what_stands_between_the_marks_is_replaced() {
        let log = "test result: ok. 3 passed; 0 failed\nx\ntest result: ok. 4 passed; 0 failed\n";
        assert_eq!(passed_tests(log), Some(7));
        assert_eq!(passed_tests("x"), None);
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(
            replaced(&page, "new\n").unwrap(),
            format!("a\n{BEGIN}new\n{END}b\n")
        );
        assert!(replaced("a\n", "new\n").is_err());
    }
}
