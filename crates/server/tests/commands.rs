//! The commands beside a running hub and without one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use serde_json::{Value, json};
use support::{Place, fieldpost, stderr_of_failure};

/// Runs a test both ways: beside a hub, and on its store alone.
fn both_ways(test: impl Fn(&Place)) {
    let place = Place::new();
    let hub = place.serve(&[]);
    test(&place);
    drop(hub);
    let place = Place::new();
    test(&place);
    // What a command did is there when a hub starts.
    place.serve(&[]);
}

#[test]
fn devices_are_created_shown_changed_and_deleted() {
    both_ways(|place| {
        let created = place.json(&["device", "create", "dev#1?%"]);
        assert_eq!(created["deviceId"], "dev#1?%");
        let key = created["authentication"]["symmetricKey"]["primaryKey"]
            .as_str()
            .unwrap();
        assert_eq!(place.json(&["device", "show", "dev#1?%"]), created);
        let text = place.fail(&["device", "create", "dev#1?%"]);
        assert!(text.contains("DeviceAlreadyExists"), "{text}");
        assert!(
            place
                .fail(&["device", "create", "a/b"])
                .contains("must not contain")
        );
        let string = place.run(&["connection-string", "--device", "dev#1?%"]);
        let expected = format!("HostName=localhost;DeviceId=dev#1?%;SharedAccessKey={key}\n");
        assert_eq!(string, expected);

        let arguments = [
            "device", "update", "dev#1?%", "--status", "disabled", "--reason", "lost",
        ];
        let updated = place.json(&arguments);
        assert_eq!(updated["status"], "disabled");
        assert_eq!(updated["statusReason"], "lost");
        assert_eq!(updated["authentication"], created["authentication"]);
        assert_ne!(updated["etag"], created["etag"]);
        let etag = created["etag"].as_str().unwrap();
        let text = place.fail(&["device", "delete", "dev#1?%", "--if-match", etag]);
        assert!(text.contains("PreconditionFailed"), "{text}");
        let renewed = place.json(&["device", "update", "dev#1?%", "--new-keys"]);
        assert_ne!(renewed["authentication"], created["authentication"]);

        place.run(&[
            "device",
            "create",
            "certified",
            "--primary-thumbprint",
            &"A".repeat(40),
        ]);
        let string = place.run(&["connection-string", "--device", "certified"]);
        assert_eq!(string, "HostName=localhost;DeviceId=certified;x509=true\n");

        place.run(&["device", "delete", "dev#1?%", "certified"]);
        assert!(
            place
                .fail(&["device", "show", "dev#1?%"])
                .contains("DeviceNotFound")
        );
        assert_eq!(place.json(&["device", "list"]), json!([]));
    });
}

#[test]
fn connection_strings_come_in_every_kind() {
    both_ways(|place| {
        place.run(&["device", "create", "d"]);
        let owner = place.run(&["connection-string"]);
        assert!(
            owner
                .starts_with("HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=")
        );
        assert_eq!(owner.lines().count(), 1);
        let service = place.run(&["connection-string", "--policy", "service"]);
        let key = service.trim().split_once("SharedAccessKey=").unwrap().1;
        let events = place.run(&["connection-string", "--event-hub"]);
        assert!(events.starts_with("Endpoint=sb://localhost"), "{events}");
        let end = format!(";SharedAccessKeyName=service;SharedAccessKey={key};EntityPath=hub\n");
        assert!(events.ends_with(&end), "{events}");
        let text = place.fail(&["connection-string", "--policy", "nobody"]);
        assert!(text.contains("registryReadWrite"), "{text}");
        assert!(
            place
                .fail(&["connection-string", "--device", "x"])
                .contains("DeviceNotFound")
        );
        let json = place.json(&["connection-string"]);
        assert_eq!(json["connectionString"], owner.trim());
    });
}

#[test]
fn what_is_imported_is_exported_again_byte_for_byte() {
    both_ways(|place| {
        // In the order of ids, as the export writes them.
        let lines: String = (0..10_000)
            .map(|n| {
                let key = |m: u8| {
                    use base64::Engine as _;
                    base64::engine::general_purpose::STANDARD.encode([m; 32])
                };
                let document = json!({
                    "id": format!("device-{n:05}"),
                    "status": if n % 7 == 0 { "disabled" } else { "enabled" },
                    "authentication": {
                        "type": "sas",
                        "symmetricKey": {"primaryKey": key(1), "secondaryKey": key(2)},
                    },
                });
                format!("{document}\n")
            })
            .collect();
        let file = place.path("devices.ndjson");
        std::fs::write(&file, &lines).unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(
            place.run(&["device", "import", file]),
            "10000 applied, 0 failed\n"
        );
        assert!(
            place.run(&["device", "export"]) == lines,
            "the export differs"
        );
        // Again, which does no harm, and to a file.
        let again = place.json(&["device", "import", file]);
        assert_eq!(again, json!({"applied": 10_000, "failed": 0, "errors": []}));
        let exported = place.path("exported.ndjson");
        place.run(&["device", "export", exported.to_str().unwrap()]);
        assert!(std::fs::read_to_string(&exported).unwrap() == lines);
        let without_keys = place.run(&["device", "export", "--exclude-keys"]);
        assert!(!without_keys.contains("primaryKey"));

        let listed = place.json(&["device", "list"]);
        assert_eq!(listed.as_array().unwrap().len(), 10_000);
        let page = place.json(&["device", "list", "--after", "device-00041", "--limit", "2"]);
        let ids: Vec<_> = page
            .as_array()
            .unwrap()
            .iter()
            .map(|d| &d["deviceId"])
            .collect();
        assert_eq!(ids, ["device-00042", "device-00043"]);
        let text = place.run(&["device", "list", "--limit", "1500"]);
        assert_eq!(text.lines().count(), 1501);
        assert!(
            text.starts_with("DEVICE") && !text.contains('\u{1b}'),
            "{}",
            &text[..80]
        );
    });
}

#[test]
fn lines_that_fail_are_reported_with_their_numbers_and_the_others_apply() {
    both_ways(|place| {
        let file = place.path("devices.ndjson");
        let lines = [
            r#"{"id":"a","importMode":"create"}"#,
            "nonsense",
            r#"{"id":"a","importMode":"create"}"#,
            "",
            r#"{"id":"b/c"}"#,
            r#"{"id":"a","importMode":"delete"}"#,
            r#"{"id":"d","importMode":"Update"}"#,
            r#"{"id":"e"}"#,
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        let arguments = [
            "device",
            "import",
            file.to_str().unwrap(),
            "--output",
            "json",
        ];
        let output = place.command(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&result["applied"], &result["failed"]),
            (&json!(3), &json!(4)),
            "{result}"
        );
        let failed = result["errors"].as_array().unwrap();
        let failed: Vec<_> = failed
            .iter()
            .map(|e| (&e["line"], &e["errorCode"]))
            .collect();
        let expected = [
            (json!(2), json!("ArgumentInvalid")),
            (json!(3), json!("DeviceAlreadyExists")),
            (json!(5), json!("ArgumentInvalid")),
            (json!(7), json!("DeviceNotFound")),
        ];
        let mut failed: Vec<_> = failed
            .into_iter()
            .map(|(l, c)| (l.clone(), c.clone()))
            .collect();
        failed.sort_by_key(|(line, _)| line.as_u64());
        assert_eq!(failed, expected);
        let text = place.fail(&["device", "import", file.to_str().unwrap()]);
        assert!(text.contains("line 2: "), "{text}");
        let ids: Vec<_> = place
            .json(&["device", "list"])
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["deviceId"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(ids, ["e"]);
    });
}

#[test]
fn settings_are_shown_and_changed_in_the_shape_of_azures_resource() {
    both_ways(|place| {
        // Makes a store where there is none.
        place.run(&["connection-string"]);
        let events = "/properties/eventHubEndpoints/events";
        let shown = place.json(&["hub", "show"]);
        let shown = shown.pointer(events).unwrap();
        assert_eq!(shown["retentionTimeInDays"], 1);
        assert_eq!(shown["partitionIds"], json!(["0", "1", "2", "3"]));
        assert_eq!(shown["consumerGroups"], json!(["$Default"]));
        let file = place.path("hub.json");
        let apply = |document: Value| {
            std::fs::write(&file, document.to_string()).unwrap();
            place
                .command(&["hub", "apply", file.to_str().unwrap()])
                .output()
                .unwrap()
        };
        let document =
            |events: Value| json!({"properties": {"eventHubEndpoints": {"events": events}}});
        let output = apply(document(
            json!({"retentionTimeInDays": 3, "consumerGroups": ["archive"]}),
        ));
        assert!(output.status.success(), "{output:?}");
        let changed = place.json(&["hub", "show"]);
        let changed = changed.pointer(events).unwrap();
        assert_eq!(changed["retentionTimeInDays"], 3);
        assert_eq!(changed["consumerGroups"], json!(["$Default", "archive"]));
        // What is shown can be applied.
        let output = apply(place.json(&["hub", "show"]));
        assert!(output.status.success(), "{output:?}");
        let refuse = |events: Value, expected: &str| {
            let text = stderr_of_failure(&apply(document(events)));
            assert!(text.contains(expected), "{text}");
        };
        refuse(json!({"retentionTimeInDays": 9}), "retention");
        refuse(json!({"partitionCount": 8}), "partition");
        refuse(json!({"retention": 9}), "retention");
        assert_eq!(
            place.json(&["hub", "show"]).pointer(events).unwrap(),
            changed
        );
    });
}

/// An export by root to /dev/null once put a file in its place.
#[test]
fn an_export_to_a_pipe_is_written_into_it() {
    let place = Place::new();
    place.run(&["device", "create", "dev1"]);
    let pipe = place.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).unwrap()
    });
    place.run(&["device", "export", pipe.to_str().unwrap()]);
    let is_pipe = std::fs::metadata(&pipe).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&is_pipe));
    let exported: Value = serde_json::from_str(&reader.join().unwrap()).unwrap();
    assert_eq!(exported["id"], "dev1");
}

/// A hub that was killed leaves its address behind. Commands asked whoever had the port next, with
/// the old token, and were turned away.
#[test]
fn a_killed_hubs_address_is_not_asked_again() {
    let place = Place::new();
    let hub = place.serve(&[]);
    place.run(&["device", "create", "dev1"]);
    let port = hub.port("admin");
    hub.kill();
    let other = Place::new();
    let _other_hub = other.serve(&["--set", &format!("listeners.admin.port={port}")]);
    assert_eq!(place.json(&["device", "show", "dev1"])["deviceId"], "dev1");
}

#[test]
fn settings_of_cloud_to_device_messages_are_seeded_shown_and_changed() {
    let place = Place::new();
    let seeded = place
        .command(&["connection-string"])
        .env("FIELDPOST_HUB__CLOUD_TO_DEVICE__DEFAULT_TTL", "2 h")
        .env(
            "FIELDPOST_HUB__CLOUD_TO_DEVICE__DELIVERY_COUNT_MODE",
            "every-lock",
        )
        .output()
        .unwrap();
    assert!(seeded.status.success(), "{seeded:?}");
    let settings = || place.json(&["hub", "show"])["properties"]["cloudToDevice"].clone();
    assert_eq!(settings()["defaultTtlAsIso8601"], "PT2H");
    assert_eq!(settings()["deliveryCountMode"], "everyLock");
    let hub = place.serve(&[]);
    let file = place.path("hub.json");
    let apply = |document: Value| {
        std::fs::write(
            &file,
            json!({"properties": {"cloudToDevice": document}}).to_string(),
        )
        .unwrap();
        let arguments = ["hub", "apply", file.to_str().unwrap()];
        place.command(&arguments).output().unwrap()
    };
    let refuse = |document: Value, expected: &str| {
        let text = stderr_of_failure(&apply(document));
        assert!(text.contains(expected), "{text}");
    };
    assert!(
        apply(json!({"feedback": {"ttlAsIso8601": "P1D"}}))
            .status
            .success()
    );
    refuse(json!({"maxDeliveryCount": 101}), "1 to 100, not 101");
    refuse(
        json!({"maxQueueDepht": 1}),
        "did you mean `properties.cloudToDevice.maxQueueDepth`?",
    );
    refuse(
        json!({"defaultTtlAsIso8601": "PT30S"}),
        "60 s to 172800 s, not 30 s",
    );
    hub.stop();
    assert_eq!(settings()["feedback"]["ttlAsIso8601"], "P1D");
    assert_eq!(settings()["defaultTtlAsIso8601"], "PT2H");
}

#[test]
fn commands_that_only_read_make_no_store() {
    let place = Place::new();
    for command in [
        vec!["device", "list"],
        vec!["device", "show", "x"],
        vec!["device", "export"],
        vec!["hub", "show"],
        vec!["connection-string", "--device", "x"],
        vec!["verify"],
    ] {
        let text = place.fail(&command);
        assert!(text.contains("there is no hub in"), "{command:?}: {text}");
    }
    assert!(!support::exists(&place.data()));
}

#[test]
fn a_store_is_verified_and_damage_is_reported_by_exit_code() {
    let place = Place::new();
    place.serve(&[]).stop();
    place.run(&["verify"]);
    let report = place.json(&["verify"]);
    assert_eq!(report["damage"], json!([]));
}

#[test]
fn the_configuration_is_printed_with_the_origin_of_each_value() {
    let print = |arguments: &[&str]| {
        let output = fieldpost()
            .args(["config", "print"])
            .args(arguments)
            .env("FIELDPOST_LOG__LEVEL", "debug")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = print(&["--set", "listeners.https.port=8443"]);
    assert!(
        text.contains("level = \"debug\"  # environment variable FIELDPOST_LOG__LEVEL"),
        "{text}"
    );
    assert!(text.contains("port = 8443  # command line --set"), "{text}");
    assert!(text.contains("port = 8883  # default"), "{text}");
    let json: Value = serde_json::from_str(&print(&["--output", "json"])).unwrap();
    assert_eq!(json["log.level"]["value"], "debug");
    assert_eq!(json["listeners.mqtts.port"]["default"], true);
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = fieldpost().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("connection-string"), "{shell}");
    }
}
