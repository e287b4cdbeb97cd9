//! Damage to rows, journals and files.

use std::fs;

use fieldpost_store::queues::{DuePosition, ListDue, ListOutcomes};

use super::*;
use crate::documents::layout::{self as documents, StateRow};
use crate::keyvalue::journal::{self, Journals};
use crate::keyvalue::verify;
use crate::queues::layout::{self as queues, LaneRow};

#[test]
fn damage_to_documents_is_found_and_named() {
    check(&|_| {}, &[]);
    check(
        &|writes| writes.put(Space::Documents, b"\x01a", b"rubbish"),
        &[
            "table documents, key 1/a: the row does not pass its check",
            "count of collection 1, class 0: 3, and there are 2 documents",
            "table documents, key 1/a: the row does not pass its check",
            "table feed, revision 1: 1/a is not at this revision in table documents",
        ],
    );
    check(
        &|writes| remove(writes, Space::Documents, b"\x01a"),
        &[
            "count of collection 1, class 0: 3, and there are 2 documents",
            "table feed, revision 1: 1/a is not at this revision in table documents",
        ],
    );
    check(
        &|writes| remove(writes, Space::Feed, &documents::revision_key(2)),
        &["table feed: no row for 1/b at revision 2"],
    );
    check(
        &|writes| {
            let key = documents::count_key(DEVICES, 7);
            let row = documents::count_row(&key, 9);
            writes.put(Space::Meta, &key, &row);
        },
        &["count of collection 1, class 7: 9, and there are no such documents"],
    );
    check(
        &|writes| remove(writes, Space::Deleted, b"\x01gone"),
        &["table deletions, revision 5: 1/gone is not at this revision in table deleted"],
    );
    check(
        &|writes| {
            let row = documents::deleted_row(b"\x01a", 4);
            writes.put(Space::Deleted, b"\x01a", &row);
        },
        &[
            "table deleted: 1/a was deleted at revision 4 and is a document",
            "table deletions: no row for 1/a at revision 4",
        ],
    );
    check(
        &|writes| {
            let row = documents::document_row(b"\x01c", 99, 0, b"");
            writes.put(Space::Documents, b"\x01c", &row);
        },
        &[
            "table documents, 1/c: revision 99 was never given out; the newest is 5",
            "table feed: no row for 1/c at revision 99",
            "table feed, revision 3: 1/c is not at this revision in table documents",
        ],
    );
    let state = |revision, deletions| {
        move |writes: &mut Writes| {
            let row = documents::state_row(StateRow {
                revision,
                deletions_trimmed: 0,
                deletions,
            });
            writes.put(Space::Meta, documents::STATE_KEY, &row);
        }
    };
    check(&state(5, 4), &["count of deletions: 4, and there are 1"]);
    check(
        &state(4, 1),
        &["the change feed does not end at revision 4, the newest one"],
    );
    check(
        &state(6, 1),
        &["the change feed does not end at revision 6, the newest one"],
    );
}

#[test]
fn damage_to_queues_is_found_and_named() {
    let first = queues::message_key(b"q", 1);
    check(
        &|writes| writes.put(Space::Messages, &first, b"rubbish"),
        &[
            "table messages, key q/1: the row does not pass its check",
            "table messages, key q/1: the row does not pass its check",
            "table due, 1 ms: q/1 does not expire then in table messages",
        ],
    );
    check(
        &|writes| remove(writes, Space::Messages, &first),
        &["table due, 1 ms: q/1 does not expire then in table messages"],
    );
    let due = |millis, sequence| {
        queues::due_key(DuePosition {
            expires: Timestamp::from_millis(millis),
            sequence,
        })
    };
    check(
        &|writes| {
            remove(writes, Space::Due, &due(2, 2));
            writes.seal(
                Space::Due,
                |key| key.extend_from_slice(&due(3, 2)),
                |row| row.extend_from_slice(b"q"),
            );
        },
        &[
            "table due: no row for q/2, which expires at 2 ms",
            "table due, 3 ms: q/2 does not expire then in table messages",
        ],
    );
    check(
        &|writes| {
            writes.put(
                Space::Meta,
                queues::SEQUENCE_KEY,
                &queues::sequence_row(1, [LANE]),
            )
        },
        &[
            "table messages, f: number 4 was never given out; the newest is 1",
            "table messages, q: number 2 was never given out; the newest is 1",
        ],
    );
    let records = queues::outcomes_key(LANE, 3);
    check(
        &|writes| writes.put(Space::Outcomes, &records, b"rubbish"),
        &[
            "table outcomes, key 2/3: the row does not pass its check",
            "figures of lane 2: 2 records of 12 bytes, and there are 0 of 0 bytes",
        ],
    );
    check(
        &|writes| remove(writes, Space::Outcomes, &records),
        &["figures of lane 2: 2 records of 12 bytes, and there are 0 of 0 bytes"],
    );
    let lane = |last, forgotten, count| {
        move |writes: &mut Writes| {
            let lane = LaneRow {
                last,
                forgotten,
                count,
                bytes: count * 6,
            };
            writes.seal(
                Space::Meta,
                |key| key.extend_from_slice(&queues::lane_key(LANE)),
                |row| queues::put_lane(row, lane),
            );
        }
    };
    check(
        &lane(3, 1, 3),
        &["figures of lane 2: 3 records of 18 bytes, and there are 2 of 12 bytes"],
    );
    check(
        &lane(3, 3, 0),
        &["table outcomes, key 2/3: all of it is forgotten, up to 3"],
    );
    check(
        &lane(2, 1, 2),
        &["lane 2 does not end at record 2, the newest one"],
    );
    // Feedback with numbers that were sent before would never be sent.
    let without_lane = |writes: &mut Writes| remove(writes, Space::Meta, &queues::lane_key(LANE));
    check(&without_lane, &["the row of lane 2 is missing"]);
    check(
        &|writes| {
            remove(writes, Space::Outcomes, &records);
            without_lane(writes);
        },
        &["the row of lane 2 is missing"],
    );
    check(
        &|writes| {
            let row = queues::sequence_row(4, []);
            writes.put(Space::Meta, queues::SEQUENCE_KEY, &row);
            without_lane(writes);
        },
        &["the row of lane 2 is missing, and there are records"],
    );
    check(
        &|writes| writes.put(Space::Marks, b"f", b"rubbish"),
        &["table marks, key f: the row does not pass its check"],
    );
}

#[test]
fn a_damaged_row_fails_alone() {
    let first = queues::message_key(b"q", 1);
    let records = queues::outcomes_key(LANE, 3);
    let (_folder, path) = stored(|writes| {
        writes.put(Space::Documents, b"\x01a", &[1; 40]);
        writes.put(Space::Messages, &first, &[1; 40]);
        writes.put(Space::Outcomes, &records, &[1; 40]);
        writes.put(Space::Marks, b"f", &[1; 13]);
    });
    let store = open(&path).unwrap();
    fn damaged<T>(result: Result<T, StoreError>) -> bool {
        matches!(result, Err(StoreError::Damaged { .. }))
    }
    assert!(damaged(document(&store, "a")));
    assert!(damaged(put(&store, "a")));
    assert!(document(&store, "b").unwrap());
    put(&store, "b").unwrap();
    put(&store, "new").unwrap();

    assert!(damaged(messages(&store, "q")));
    assert!(damaged(operate(&store, settle("q", 1, 0))));
    let batch = vec![enqueue("q", 9), settle("q", 1, 0)];
    assert!(damaged(block_on(store.queues.apply(batch))));
    assert_eq!(
        operate(&store, enqueue("q", 9)).unwrap(),
        OperationResult::Enqueued { sequence: 5 },
        "the batch before it did nothing"
    );
    operate(&store, settle("q", 2, 1)).unwrap();
    let request = ListDue {
        until: Timestamp::from_millis(100),
        after: None,
        limit: 100,
        bytes_max: usize::MAX,
    };
    let due = block_on(store.queues.due(request)).unwrap();
    let sequences: Vec<_> = due.messages.iter().map(|(_, due)| due.sequence).collect();
    assert_eq!(sequences, [4, 5], "the others still expire");
    let next = block_on(store.queues.next_due(None)).unwrap();
    assert_eq!(next, Some(Timestamp::from_millis(4)));

    let mut marked = enqueue("f", 9);
    if let Operation::Enqueue { once, .. } = &mut marked {
        *once = Some(8);
    }
    assert!(damaged(operate(&store, marked)));
    operate(&store, enqueue("f", 9)).unwrap();

    let lane = |after| {
        block_on(store.queues.outcomes(ListOutcomes {
            lane: LANE,
            after,
            limit: 100,
            bytes_max: usize::MAX,
            queue: None,
        }))
    };
    assert!(damaged(lane(0)));
    assert_eq!(lane(3).unwrap().len(), 1);
    let take = |number| Operation::Remove { lane: LANE, number };
    assert!(damaged(operate(&store, take(2))));
    assert_eq!(operate(&store, take(4)).unwrap(), OperationResult::Done);
    assert_eq!(operate(&store, take(4)).unwrap(), OperationResult::Gone);

    // What is dropped and forgotten takes its damage with it.
    let forget = Operation::Forget {
        lane: LANE,
        through: 3,
    };
    operate(&store, forget).unwrap();
    assert_eq!(lane(0).unwrap(), []);
    for name in ["q", "f"] {
        let drop = Operation::Drop { queue: queue(name) };
        let dropped = OperationResult::Dropped {
            messages: 2,
            more: false,
        };
        assert_eq!(operate(&store, drop).unwrap(), dropped);
        assert_eq!(messages(&store, name).unwrap(), []);
    }
    close(&store);
    let left = verify(&path).unwrap();
    // Of the document there are four lines; what was in the damaged rows is not known.
    assert_eq!(left.len(), 6, "{left:#?}");
    assert!(left[4].contains("table due, 1 ms: q/1 does not expire then"));
    assert!(left[5].contains("lane 2: 2 records of 12 bytes, and there are 0"));
}

#[test]
fn damage_in_the_middle_of_the_journal_is_an_error_that_names_the_file() {
    let (_folder, path) = stored(|_| {});
    let journal = path.join("0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    // In the second of eight writes.
    let at = bytes.windows(2).position(|two| two == b"\x01b").unwrap();
    bytes[at] ^= 0x40;
    fs::write(&journal, &bytes).unwrap();
    let before = fs::metadata(&journal).unwrap().len();
    let Err(OpenError::Damaged { path: file, what }) = open(&path) else {
        panic!("opened");
    };
    assert_eq!(file, journal);
    assert!(
        what.contains("acknowledged changes follow after it"),
        "{what}"
    );
    assert_eq!(fs::metadata(&journal).unwrap().len(), before, "left alone");
    let lines = verify(&path).unwrap();
    assert!(lines.len() == 1 && lines[0].contains("0.jnl"), "{lines:?}");
}

#[test]
fn missing_files_are_errors_and_not_new_beginnings() {
    let check = |file: &str| {
        let (_folder, path) = stored(|_| {});
        let gone = path.join(file);
        if gone.is_dir() {
            fs::remove_dir_all(&gone).unwrap();
        } else {
            fs::remove_file(&gone).unwrap();
        }
        let refused = open(&path).map(drop);
        assert!(
            matches!(refused, Err(OpenError::Damaged { .. })),
            "{file}: {refused:?}"
        );
    };
    for file in [
        "0.jnl",
        "version",
        "keyspaces",
        "keyspaces/1/current",
        "keyspaces/1",
    ] {
        check(file);
    }
}

#[test]
fn a_torn_write_at_the_end_of_the_journal_does_not_keep_the_store_shut() {
    let (_folder, path) = stored(|_| {});
    let journal = path.join("0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end);
    bytes.extend_from_slice(b"\x01\x02\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00\x02\x00");
    fs::write(&journal, &bytes).unwrap();
    let store = open(&path).unwrap();
    assert_eq!(store.documents.counts(DEVICES), [(0, 3)]);
    put(&store, "next").unwrap();
    close(&store);
    assert_eq!(verify(&path).unwrap(), [""; 0]);
}

#[test]
fn a_message_with_a_batch_in_it_does_not_keep_the_store_shut_when_its_write_is_torn() {
    let (_folder, path) = stored(|_| {});
    let file = path.join("0.jnl");
    // What is in a journal of this store looks most like what is in its journal.
    let batches = fs::read(&file).unwrap();
    let end = batches.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let starts = batches.windows(4).enumerate();
    let starts: Vec<_> = starts
        .filter(|(_, four)| *four == b"FJL\x03")
        .map(|(at, _)| at + 4)
        .collect();
    let last = starts[starts.len() - 2];
    // Without the secret, which nobody knows, the numbers of which are higher than any so far.
    let mut foreign = batches[last..end].to_vec();
    let secret = fs::read(path.join("secret")).unwrap();
    let at = foreign
        .windows(16)
        .position(|part| part == &secret[..16])
        .unwrap();
    let item = foreign[13..at + 16].len();
    foreign.drain(13..13 + item);
    foreign[1] -= 1;
    foreign[5..13].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    let items = &foreign[13..foreign.len() - 13];
    let sum = xxhash_rust::xxh3::xxh3_64(items).to_le_bytes();
    let at = foreign.len() - 12;
    foreign[at..at + 8].copy_from_slice(&sum);

    let store = open(&path).unwrap();
    let mut message = enqueue("q", 9);
    if let Operation::Enqueue { message, .. } = &mut message {
        *message = Bytes::from(foreign.repeat(20));
    }
    operate(&store, message).unwrap();
    close(&store);
    let mut bytes = fs::read(&file).unwrap();
    // The beginning of the write never reached the disk, but for its first bytes.
    bytes[end + 20..end + 100].fill(0);
    fs::write(&file, &bytes).unwrap();
    let looks_damaged = journal::inspect(&path, None).unwrap();
    assert!(matches!(looks_damaged, Journals::Damaged { .. }));
    let store = open(&path).unwrap();
    assert_eq!(messages(&store, "q").unwrap().len(), 2);
    operate(&store, enqueue("q", 9)).unwrap();
    close(&store);
    assert_eq!(verify(&path).unwrap(), [""; 0]);
}

#[test]
fn a_store_without_a_secret_is_given_one_that_counts_from_then_on() {
    let (_folder, path) = stored(|_| {});
    let journal = path.join("0.jnl");
    fs::remove_file(path.join("secret")).unwrap();
    let store = open(&path).unwrap();
    close(&store);
    assert!(path.join("secret").exists());
    let mut bytes = fs::read(&journal).unwrap();
    let at = bytes.windows(2).position(|two| two == b"\x01b").unwrap();
    bytes[at] ^= 0x40;
    fs::write(&journal, &bytes).unwrap();
    let refused = open(&path).map(drop);
    assert!(
        matches!(refused, Err(OpenError::Damaged { .. })),
        "{refused:?}"
    );
}

fn check(damage: &dyn Fn(&mut Writes), expected: &[&str]) {
    let (_folder, path) = stored(damage);
    let found = verify(&path).unwrap();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, expected) in found.iter().zip(expected) {
        assert!(line.contains(expected), "{line:?} has no {expected:?}");
    }
}

fn remove(writes: &mut Writes, space: Space, key: &[u8]) {
    writes.remove(space, |out| out.extend_from_slice(key));
}
