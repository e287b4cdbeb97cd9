//! Messages through the real binary: `send`, `monitor`, `demo`, and what happens to them when the
//! hub stops or its files are damaged.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Place, fieldpost, stderr_of_failure};

/// The messages that a reader finds, oldest first.
fn messages(place: &Place, count: usize, more: &[&str]) -> Vec<Value> {
    let count = count.to_string();
    let mut arguments = vec!["monitor", "--from", "earliest", "--count", &count];
    arguments.extend(["--output", "json"]);
    arguments.extend(more);
    let text = place.run(&arguments);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_is_sent_is_read_with_its_properties() {
    let place = Place::new();
    let hub = place.serve(&[]);
    place.run(&["device", "create", "dev1"]);
    place.run(&["device", "create", "dev2"]);
    let body = "{\"temperature\": 21.5, \"note\": \"gr\u{fc}n & blau\"}";
    place.run(&[
        "send",
        "dev1",
        body,
        "--property",
        "room=k\u{fc}che & bad",
        "--property",
        "empty=",
        "--content-type",
        "application/json",
        "--content-encoding",
        "utf-8",
        "--message-id",
        "m-1",
    ]);
    let file = place.path("body");
    std::fs::write(&file, [0xff, 0x00, 0x80]).unwrap();
    place.run(&["send", "dev2", "--file", file.to_str().unwrap()]);

    let read = &messages(&place, 1, &["--device", "dev1"])[0];
    assert_eq!(read["body"], body);
    assert_eq!(
        read["properties"],
        json!({"room": "k\u{fc}che & bad", "empty": ""})
    );
    assert_eq!(read["contentType"], "application/json");
    assert_eq!(read["messageId"], "m-1");
    assert_eq!(
        messages(&place, 1, &["--device", "dev2"])[0]["bodyBase64"],
        "/wCA"
    );
    let text = place.run(&[
        "monitor", "--from", "earliest", "--device", "dev1", "--count", "1",
    ]);
    assert!(
        text.contains(" dev1 ") && text.ends_with(&format!("  {body}\n")),
        "{text}"
    );

    let text = place.fail(&["send", "nobody", "x"]);
    assert!(text.contains("DeviceNotFound"), "{text}");
    place.run(&["device", "update", "dev1", "--status", "disabled"]);
    let text = place.fail(&["send", "dev1", "x"]);
    assert!(text.contains("refused"), "{text}");
    drop(hub);
    assert!(place.fail(&["send", "dev2", "x"]).contains("error"));
}

#[test]
fn a_hub_with_connected_clients_stops_in_time_and_keeps_what_it_acknowledged() {
    let place = Place::new();
    let hub = place.serve(&[]);
    place.run(&["device", "create", "dev1"]);
    let mut sender = place
        .command(&["send", "dev1", "--lines"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = place
        .command(&["monitor", "--from", "earliest", "--output", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = sender.stdin.take().unwrap();
    for n in 0..100 {
        writeln!(lines, "{n}").unwrap();
    }
    let mut read = BufReader::new(reader.stdout.take().unwrap()).lines();
    for n in 0..100 {
        let message: Value = serde_json::from_str(&read.next().unwrap().unwrap()).unwrap();
        assert_eq!(message["body"], n.to_string());
    }
    let before = Instant::now();
    let (status, log) = hub.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        before.elapsed() < Duration::from_secs(10),
        "{:?}",
        before.elapsed()
    );
    assert!(!log.contains("ERROR"), "{log}");
    // Both clients were told, and say so.
    assert_eq!(reader.wait().unwrap().code(), Some(1));
    drop(lines);
    assert!(!sender.wait().unwrap().success());

    assert_eq!(place.json(&["verify"])["records"], 100);
    let hub = place.serve(&[]);
    assert_eq!(messages(&place, 100, &[]).len(), 100);
    drop(hub);
}

#[test]
fn damage_is_found_by_its_exact_place() {
    let place = Place::new();
    let hub = place.serve(&[]);
    place.run(&["device", "create", "dev1"]);
    let marked = "find-this-text-in-the-segment";
    place.run(&["send", "dev1", marked]);
    place.run(&["send", "dev1", "after"]);
    hub.stop();
    assert_eq!(place.json(&["verify"])["sound"], true);

    let segment = std::fs::read_dir(place.data().join("store/log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let bytes = std::fs::read(path).unwrap();
            bytes
                .windows(marked.len())
                .any(|window| window == marked.as_bytes())
        })
        .expect("a segment holds the message");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes
        .windows(marked.len())
        .position(|w| w == marked.as_bytes())
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    let output = place
        .command(&["verify", "--output", "json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["sound"], false);
    let damage = &report["damage"][0];
    assert_eq!(
        damage["file"],
        segment.file_name().unwrap().to_str().unwrap()
    );
    let (from, to) = (
        damage["fromByte"].as_u64().unwrap(),
        damage["toByte"].as_u64().unwrap(),
    );
    assert!((from..to).contains(&(at as u64)), "{damage}");
    let output = place.command(&["verify"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("damaged: log/"), "{text}");

    // Nothing is given up by a slip.
    let output = place.command(&["repair"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        place.command(&["verify"]).output().unwrap().status.code(),
        Some(1)
    );
    let report = place.json(&["repair", "--accept-loss"]);
    assert_eq!(report["accepted"][0]["lost"], damage["lost"]);
    assert_eq!(report["left"]["sound"], true);
    let report = place.json(&["verify"]);
    assert_eq!(report["sound"], true);
    assert_eq!(report["accepted"][0]["lost"], damage["lost"]);
    assert_eq!(report["accepted"][0]["file"], damage["file"]);
}

#[test]
fn the_demo_loses_nothing_and_says_so_in_its_last_line() {
    let output = fieldpost()
        .args([
            "demo",
            "--devices",
            "5",
            "--seconds",
            "2",
            "--output",
            "json",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let figures: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    for of_devices in [&figures, &figures["d2c"]] {
        assert_eq!(of_devices["lost"], 0);
        assert_eq!(of_devices["sent"], of_devices["acknowledged"]);
        assert_eq!(of_devices["sent"], of_devices["read"]);
        assert!(of_devices["sent"].as_u64().unwrap() > 100, "{figures}");
    }
    let to_devices = &figures["c2d"];
    assert_eq!(to_devices["lost"], 0, "{figures}");
    assert!(to_devices["sent"].as_u64().unwrap() > 20, "{figures}");
    for count in ["accepted", "delivered", "completed", "feedback"] {
        assert_eq!(to_devices[count], to_devices["sent"], "{count}: {figures}");
    }
    // Nothing but data on standard output, nothing but trouble on standard error.
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stderr.is_empty(), "{:?}", output.stderr);
}

#[test]
fn help_shows_examples_and_mistakes_are_usage_errors() {
    let help = |arguments: &[&str]| {
        let output = fieldpost().args(arguments).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for command in [
        &["serve"][..],
        &["demo"],
        &["monitor"],
        &["send"],
        &["c2d"],
        &["c2d", "send"],
        &["device"],
        &["hub"],
    ] {
        let text = help(command);
        assert!(text.contains("Examples:"), "{command:?}: {text}");
        assert!(
            !text.contains('\u{1b}'),
            "{command:?}: colours without a terminal"
        );
    }
    let output = fieldpost()
        .args(["demo", "--devices", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let missing = fieldpost()
        .args(["monitor", "--data", "/nonexistent"])
        .output()
        .unwrap();
    assert!(stderr_of_failure(&missing).contains("no hub runs on"));
}
