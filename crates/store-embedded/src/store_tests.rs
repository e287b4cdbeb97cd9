//! Tests of a whole store in a directory.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fieldpost_model::{PartitionId, Partitioning, StreamId};
use fieldpost_store::Store;
use fieldpost_store::log::{Appender, BatchBuilder};
use fieldpost_store::suite::block_on;
use tempfile::TempDir;

use crate::testing::TestClock;
use crate::{EmbeddedConfig, EmbeddedStore, OpenError, verify};

fn config(partitions: u16) -> EmbeddedConfig {
    let mut config = EmbeddedConfig::new(Partitioning::new(partitions).unwrap());
    config.log.segment_bytes_first = 1 << 20;
    config.log.reserve_bytes = 0;
    config
}

fn open(path: &Path, config: EmbeddedConfig) -> Result<Store, OpenError> {
    EmbeddedStore::open(path, config, Arc::new(TestClock::at(1_800_000_000_000)))
}

fn close(store: &Store) {
    block_on(store.log.close());
    block_on(store.documents.close());
    block_on(store.queues.close());
}

fn append(store: &Store, body: &[u8]) {
    let mut builder = BatchBuilder::new(PartitionId(0));
    builder.push(|out| out.extend_from_slice(body));
    let mut appender = Appender::new(Arc::clone(&store.log));
    appender.submit(builder.take().unwrap()).unwrap();
    block_on(std::future::poll_fn(|cx| appender.poll_durable(cx))).unwrap();
}

fn edit(directory: &TempDir, from: &str, to: &str) {
    let path = directory.path().join("store.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
fn a_store_is_created_used_closed_and_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), config(4)).unwrap();
    append(&store, b"kept");
    let created = store.log.created();
    close(&store);
    // The partitions are those of the creation.
    let again = open(directory.path(), config(9)).unwrap();
    assert_eq!(again.log.partitioning().count(), 4);
    assert_eq!(again.log.created(), created);
    assert_eq!(again.log.bounds(StreamId(0), PartitionId(0)).next, 1);
    close(&again);
    let report = verify(directory.path()).unwrap();
    assert!(report.is_sound());
    assert_eq!(report.log.records, 1);
    assert!(report.to_string().ends_with("0 damages"));
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), config(1)).unwrap();
    let error = open(directory.path(), config(1)).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    assert!(matches!(
        verify(directory.path()),
        Err(OpenError::InUse { .. })
    ));
    close(&store);
    close(&open(directory.path(), config(1)).unwrap());
}

#[test]
fn a_test_store_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    close(&open(directory.path(), config(1)).unwrap());
    let mut marked = config(1);
    marked.mark_as_test = true;
    close(&open(directory.path(), marked.clone()).unwrap());
    let refused = open(directory.path(), config(1)).map(drop);
    assert!(matches!(refused, Err(OpenError::TestStore { .. })));
    close(&open(directory.path(), marked).unwrap());
}

#[test]
fn what_is_no_store_of_ours_is_left_alone() {
    let check = |from: &str, to: &str, expected: &str| {
        let directory = tempfile::tempdir().unwrap();
        close(&open(directory.path(), config(1)).unwrap());
        edit(&directory, from, to);
        let text = open(directory.path(), config(1))
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(text.contains(expected), "{text}");
        assert!(verify(directory.path()).is_err());
    };
    check(
        "\"format\": 1",
        "\"format\": 2",
        "has store format 2, and this version knows formats up to 1",
    );
    check("\"partitions\": 1", "\"partitions\": 0", "out of its range");
    check("\"log\"", "\"nothing\"", "missing field `log`");

    let directory = tempfile::tempdir().unwrap();
    close(&open(directory.path(), config(1)).unwrap());
    fs::remove_file(directory.path().join("store.json")).unwrap();
    let text = open(directory.path(), config(1))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(text.contains("it is missing, although there is"), "{text}");
}

#[test]
fn a_creation_that_was_interrupted_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    close(&open(directory.path(), config(2)).unwrap());
    edit(&directory, "\"creating\": false", "\"creating\": true");
    fs::write(
        directory.path().join("log/0000000000000001.segment"),
        b"half a header",
    )
    .unwrap();
    assert!(verify(directory.path()).unwrap().is_sound());
    let store = open(directory.path(), config(2)).unwrap();
    append(&store, b"first");
    close(&store);
    assert!(verify(directory.path()).unwrap().is_sound());
}

#[test]
fn damage_is_told_by_file_and_range() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), config(1)).unwrap();
    append(&store, b"one");
    append(&store, b"two");
    close(&store);
    let path = directory.path().join("log/0000000000000001.segment");
    let mut content = fs::read(&path).unwrap();
    let at = content
        .windows(3)
        .position(|window| window == b"one")
        .unwrap();
    content[at] ^= 1;
    fs::write(&path, content).unwrap();
    let report = verify(directory.path()).unwrap();
    let text = report.to_string();
    assert!(!report.is_sound());
    assert!(
        text.contains(
            "damaged: log/0000000000000001.segment, bytes 8288 to 8299: records of group"
        ),
        "{text}"
    );
    assert!(
        text.contains("lost: partition 0 sequence numbers 0 to 0"),
        "{text}"
    );
}

#[test]
fn a_log_that_is_lost_twice_uses_no_number_a_second_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut next = 0;
    for round in 0..3 {
        let store = open(directory.path(), config(1)).unwrap();
        let found = store.log.bounds(StreamId(0), PartitionId(0)).next;
        assert!(found >= next, "round {round}: {found} after {next}");
        append(&store, b"record");
        next = store.log.bounds(StreamId(0), PartitionId(0)).next;
        close(&store);
        drop(store);
        for entry in fs::read_dir(directory.path().join("log")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}
