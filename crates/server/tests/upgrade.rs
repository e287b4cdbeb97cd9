//! A data directory of the first version that ever was, as it lay when that was killed.
//!
//! `data/first.tar.gz` holds it, but for the reserve of disk space, which is nothing. The hub had devices, settings,
//! and three messages that were acknowledged.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::Place;

fn first_version() -> Place {
    let place = Place::new();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/first.tar.gz");
    let data = place.data();
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C");
    let status = tar.arg(data.parent().unwrap()).status().unwrap();
    assert!(status.success());
    std::fs::rename(place.path("first"), data).unwrap();
    place
}

#[test]
fn what_the_first_version_left_is_whole_and_served() {
    let place = first_version();
    let told = place.run(&["verify"]);
    assert!(told.contains("3 records checked; 0 damages"), "{told}");
    let ca = std::fs::read(place.data().join("ca.pem")).unwrap();

    let hub = place.serve(&[]);
    let devices = place.json(&["device", "list"]);
    let ids: Vec<_> = devices.as_array().unwrap().iter().collect();
    assert_eq!(ids.len(), 2, "{devices}");
    let retired = place.json(&["device", "show", "retired"]);
    assert_eq!(retired["status"], "disabled");
    assert_eq!(retired["statusReason"], "worn out");
    assert_eq!(
        place.run(&["connection-string", "--device", "sensor"]),
        "HostName=localhost;DeviceId=sensor;\
         SharedAccessKey=Q1blRIo5NMNstWAD5FFO3S5UEg1r1TaJuTN/Y6i5HeA=\n"
    );
    assert_eq!(
        place.run(&["connection-string", "--policy", "service"]),
        "HostName=localhost;SharedAccessKeyName=service;\
         SharedAccessKey=m0E9+4OEyesFmcnpOnqfM89wGMjnAou4SfuByFnBCrY=\n"
    );
    assert_eq!(std::fs::read(place.data().join("ca.pem")).unwrap(), ca);
    let events = &place.json(&["hub", "show"])["properties"]["eventHubEndpoints"]["events"];
    assert_eq!(events["retentionTimeInDays"], 7);
    assert_eq!(events["consumerGroups"], json!(["$Default", "archive"]));

    // The numbers go on behind what was there.
    place.run(&["send", "sensor", "reading 4", "--message-id", "m-4"]);
    let text = place.run(&[
        "monitor", "--from", "earliest", "--count", "4", "--output", "json",
    ]);
    let read: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (message, number) in read.iter().zip(1..) {
        assert_eq!(message["messageId"], format!("m-{number}"));
        assert_eq!(message["body"], format!("reading {number}"));
        assert_eq!(message["sequenceNumber"], number - 1);
    }
    let (status, log) = hub.stop();
    assert!(status.success(), "{log}");
    // It may warn of the years that have gone by.
    assert!(!log.contains("ERROR") && log.contains("damaged=0"), "{log}");
}
