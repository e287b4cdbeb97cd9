//! Messages to devices through the real binary: the command line, the service endpoint behind it, and
//! what the hub remembers.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use fieldpost_client::device::{Command, DeviceEvent, DeviceOptions};
use fieldpost_client::{Device, Trust};
use fieldpost_model::Timestamp;
use serde_json::{Value, json};
use support::{Hub, Place};

/// A hub in test mode with a device that is away.
fn hub_with_device(place: &Place) -> Hub {
    let hub = place.serve(&["--test-mode"]);
    place.run(&["device", "create", "dev1"]);
    hub
}

fn advance(hub: &Hub, seconds: u32) {
    let body = json!({"advanceSeconds": seconds}).to_string();
    let answer = hub.admin("POST /api/test/clock", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Asks until the answer is a list of so many; expiry is applied within seconds, not at once.
fn listed(place: &Place, arguments: &[&str], count: usize) -> Vec<Value> {
    loop {
        let list = place.json(arguments);
        let list = list.as_array().unwrap();
        if list.len() == count {
            return list.clone();
        }
    }
}

#[test]
fn a_message_is_sent_seen_and_purged() {
    let place = Place::new();
    let hub = hub_with_device(&place);
    place.run(&[
        "c2d",
        "send",
        "dev1",
        "gr\u{fc}n",
        "--message-id",
        "m 1/\u{fc}",
        "--ack",
        "full",
        "--ttl",
        "30s",
        "--property",
        "room=k\u{fc}che",
        "--content-type",
        "text/plain",
    ]);
    place.run(&["c2d", "send", "dev1", "second"]);
    let messages = place.json(&["c2d", "list", "dev1"]);
    let first = &messages[0];
    assert_eq!(first["messageId"], "m 1/\u{fc}");
    assert_eq!(first["properties"], json!({"room": "k\u{fc}che"}));
    assert_eq!(first["contentType"], "text/plain");
    assert_eq!(first["sender"], "service");
    assert_eq!(first["ack"], "full");
    assert_eq!(first["state"], "enqueued");
    assert_eq!(messages.as_array().unwrap().len(), 2);
    let text = place.run(&["c2d", "list", "dev1"]);
    assert!(
        text.contains("SEQUENCE") && text.contains("m 1/\u{fc}"),
        "{text}"
    );

    let by_id = place.json(&["c2d", "show", "dev1", "--message-id", "m 1/\u{fc}"]);
    let sequence = first["sequenceNumber"].to_string();
    let by_number = place.json(&["c2d", "show", "dev1", "--sequence", &sequence]);
    assert_eq!(by_id, by_number);
    let text = place.run(&["c2d", "show", "dev1", "--sequence", &sequence]);
    assert!(
        text.contains("sent by service") && text.contains("waits for the device"),
        "{text}"
    );
    let text = place.fail(&["c2d", "show", "dev1", "--message-id", "m2"]);
    assert!(text.contains("no such message"), "{text}");

    assert_eq!(place.run(&["c2d", "purge", "dev1"]), "2 purged\n");
    assert_eq!(place.json(&["c2d", "list", "dev1"]), json!([]));
    hub.stop();
}

#[test]
fn refusals_are_told_in_the_words_of_the_service_endpoint() {
    let place = Place::new();
    let hub = hub_with_device(&place);
    let check = |arguments: &[&str], expected: &str| {
        let text = place.fail(arguments);
        assert!(text.contains(expected), "{arguments:?}: {text}");
    };
    check(&["c2d", "send", "nobody", "x"], "DeviceNotFound");
    check(&["c2d", "list", "nobody"], "DeviceNotFound");
    check(&["c2d", "purge", "nobody"], "DeviceNotFound");
    check(&["c2d", "send", "dev1", "x", "--ttl", "3d"], "Expiry");
    check(
        &["c2d", "send", "dev1", "x", "--property", "y"],
        "NAME=VALUE",
    );
    check(
        &["c2d", "dead-letters", "show", "7"],
        "there is no dead letter 7",
    );
    let large = place.path("large");
    std::fs::write(&large, vec![b'x'; 65_537]).unwrap();
    check(
        &["c2d", "send", "dev1", "--file", large.to_str().unwrap()],
        "error",
    );
    // A queue takes what the hub's settings say, at once.
    let file = place.path("hub.json");
    std::fs::write(
        &file,
        r#"{"properties": {"cloudToDevice": {"maxQueueDepth": 2}}}"#,
    )
    .unwrap();
    place.run(&["hub", "apply", file.to_str().unwrap()]);
    for _ in 0..2 {
        place.run(&["c2d", "send", "dev1", "x"]);
    }
    check(
        &["c2d", "send", "dev1", "x"],
        "DeviceMaximumQueueDepthExceeded",
    );
    assert_eq!(
        place
            .json(&["c2d", "list", "dev1"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
    hub.stop();
    // Sending needs a hub that runs; looking does not.
    check(&["c2d", "send", "dev1", "x"], "no hub runs on");
}

#[test]
fn an_expired_message_is_a_dead_letter_that_can_be_sent_anew() {
    let place = Place::new();
    let hub = hub_with_device(&place);
    place.run(&[
        "c2d",
        "send",
        "dev1",
        "one",
        "--message-id",
        "m1",
        "--ttl",
        "1h",
    ]);
    place.run(&[
        "c2d",
        "send",
        "dev1",
        "two",
        "--message-id",
        "m2",
        "--ttl",
        "1h",
    ]);
    advance(&hub, 3700);
    let letters = listed(
        &place,
        &["c2d", "dead-letters", "list", "--device", "dev1"],
        2,
    );
    assert_eq!(letters[0]["cause"], "Expired");
    assert_eq!(letters[0]["messageId"], "m1");
    let number = letters[0]["number"].to_string();
    let text = place.run(&["c2d", "dead-letters", "show", &number]);
    assert!(
        text.contains("Expired") && text.ends_with("\none\n"),
        "{text}"
    );
    let text = place.run(&["c2d", "show", "dev1", "--message-id", "m1"]);
    assert!(
        text.contains(&format!("dead letter {number}: Expired")),
        "{text}"
    );
    let text = place.run(&["c2d", "dead-letters", "list"]);
    assert!(
        text.lines().count() == 3 && text.contains("CAUSE"),
        "{text}"
    );
    // What expired stays what it was when the hub is started anew, and without one.
    hub.stop();
    assert_eq!(place.json(&["c2d", "dead-letters", "list"]), json!(letters));
    let _hub = place.serve(&["--test-mode"]);
    let requeued = place.json(&["c2d", "dead-letters", "requeue", &number]);
    let waiting = place.json(&["c2d", "list", "dev1"]);
    assert_eq!(waiting[0]["sequenceNumber"], requeued[0]["sequenceNumber"]);
    assert_eq!(waiting[0]["messageId"], "m1");
    place.run(&[
        "c2d",
        "dead-letters",
        "delete",
        &letters[1]["number"].to_string(),
    ]);
    assert_eq!(place.json(&["c2d", "dead-letters", "list"]), json!([]));
}

#[test]
fn waiting_ends_when_the_message_is_settled() {
    let place = Place::new();
    let hub = hub_with_device(&place);
    let mut waiting = place
        .command(&[
            "c2d",
            "send",
            "dev1",
            "x",
            "--message-id",
            "m1",
            "--ttl",
            "1h",
            "--wait",
            "--output",
            "json",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    listed(&place, &["c2d", "list", "dev1"], 1);
    assert!(waiting.try_wait().unwrap().is_none());
    advance(&hub, 3700);
    let output = waiting.wait_with_output().unwrap();
    // It is settled, and not as one would like.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(message["state"], "deadLettered");
    assert_eq!(message["messageId"], "m1");
}

fn device_options(place: &Place, hub: &Hub) -> DeviceOptions {
    let ca = std::fs::read_to_string(place.data().join("ca.pem")).unwrap();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    DeviceOptions {
        connection_string: place
            .run(&["connection-string", "--device", "dev1"])
            .trim()
            .parse()
            .unwrap(),
        address: Some(([127, 0, 0, 1], hub.port("mqtts")).into()),
        trust: Trust::in_pem(&ca).unwrap(),
        keep_alive_s: 240,
        now: Timestamp::UNIX_EPOCH.saturating_add(since),
    }
}

/// Receives messages as a device over MQTT and acknowledges each, until the connection ends.
async fn serve_device(options: DeviceOptions) {
    let mut device = Device::connect(&options).await.unwrap();
    device.subscribe_commands().await.unwrap();
    while let Ok(event) = device.next().await {
        if let DeviceEvent::Command(Command { packet_id, .. }) = event {
            device.acknowledge_command(packet_id.unwrap()).unwrap();
        }
    }
}

#[test]
fn what_a_device_completed_is_told_to_whoever_waits_and_remembered() {
    let place = Place::new();
    let hub = place.serve(&[]);
    place.run(&["device", "create", "dev1"]);
    let options = device_options(&place, &hub);
    let device = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(serve_device(options));
    });
    let sent = place.json(&["c2d", "send", "dev1", "x", "--ack", "full", "--wait"]);
    assert_eq!(sent["state"], "completed");
    assert_eq!(sent["attempts"][0]["outcome"], "completed");
    assert!(sent["attempts"][0]["connection"].is_u64(), "{sent}");
    assert_eq!(place.json(&["c2d", "list", "dev1"]), json!([]));
    hub.stop();
    device.join().unwrap();
    // The same without a hub, and in words.
    let id = sent["messageId"].as_str().unwrap();
    let text = place.run(&["c2d", "show", "dev1", "--message-id", id]);
    assert!(
        text.contains(": completed") && text.contains("feedback"),
        "{text}"
    );
}

/// What users' own tests do with a hub in test mode.
#[test]
fn a_hub_in_test_mode_lists_what_it_sent_and_withholds_acknowledgements() {
    let place = Place::new();
    let hub = hub_with_device(&place);
    let options = device_options(&place, &hub);
    let withhold = |device: &str, withhold: bool| {
        let body = json!({"deviceId": device, "withhold": withhold}).to_string();
        hub.admin("POST /api/test/acknowledgements", &body).status
    };
    assert_eq!(withhold("nobody", true), 404);
    assert_eq!(withhold("dev1", true), 200);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut device = Device::connect(&options).await.unwrap();
        device.publish("", b"up").unwrap();
        // Whatever the hub had said of it would have come before what it says of this.
        device.subscribe_commands().await.unwrap();
        place.run(&["monitor", "--from", "earliest", "--count", "1"]);
        place.run(&["c2d", "send", "dev1", "down", "--message-id", "m1"]);
        let DeviceEvent::Command(command) = device.next().await.unwrap() else {
            panic!("an acknowledgement was not withheld");
        };
        device
            .acknowledge_command(command.packet_id.unwrap())
            .unwrap();
        assert_eq!(device.in_flight(), 1);
        assert_eq!(withhold("dev1", false), 200);
        assert_eq!(device.acknowledged(|_| ()).await.unwrap(), 1);
    });
    let answer = hub.admin("GET /api/test/devices/dev1/sent", "");
    let sent: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(sent["continuation"], Value::Null);
    let messages = sent["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1, "{sent}");
    let expected = [
        ("number", json!(1)),
        ("messageId", json!("m1")),
        ("body", json!("down")),
        ("deliveryCount", json!(0)),
    ];
    for (member, value) in expected {
        assert_eq!(messages[0][member], value, "{sent}");
    }
    assert!(messages[0]["connection"].is_u64(), "{sent}");
}
