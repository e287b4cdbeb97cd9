//! Checks of the documents.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;

use super::log::noise;
use super::{Harness, Setup, block_on, setup};
use crate::StoreError;
use crate::documents::{
    Action, Change, ChangeResult, Collection, Condition, Document, Documents, Feed, FeedEntry,
    KEY_BYTES_MAX, ListRequest, Page, Revision, VALUE_BYTES_MAX,
};

const DEVICES: Collection = Collection(1);
const OTHERS: Collection = Collection(2);

/// Values as they were written, the newest only, and nothing once removed.
pub fn documents_are_read_back(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    assert_eq!(get(&documents, DEVICES, "a"), None);
    let check = |key: &'static str, value: Vec<u8>| {
        let revision = done(apply_one(&documents, put(key, 5, &value)));
        let expected = Document {
            key: Bytes::from_static(key.as_bytes()),
            revision,
            class: 5,
            value: value.into(),
        };
        assert_eq!(get(&documents, DEVICES, key), Some(expected));
    };
    check("a", b"first".to_vec());
    check("a", b"second".to_vec());
    check("a", Vec::new());
    check("b", noise(1, 1));
    check("large", noise(2, VALUE_BYTES_MAX));
    check("\u{0}\u{1}", noise(3, 5_000));
    assert_eq!(get(&documents, OTHERS, "a"), None, "another collection");
    done(apply_one(&documents, delete("a", Condition::Any)));
    assert_eq!(get(&documents, DEVICES, "a"), None);
}

/// Every condition, against a document that is there and one that is not.
pub fn conditions_decide_each_change_alone(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let check = |exists: bool, condition: fn(Revision) -> Condition, remove: bool, holds: bool| {
        apply_one(&documents, delete("k", Condition::Any));
        let revision = exists.then(|| done(apply_one(&documents, put("k", 0, b"before"))));
        let condition = condition(revision.unwrap_or(1));
        let change = if remove {
            delete("k", condition)
        } else {
            Change {
                condition,
                ..put("k", 0, b"after")
            }
        };
        // A neighbour on either side is made whatever happens to this one.
        let results = apply(
            &documents,
            vec![put("before", 0, b""), change, put("after", 0, b"")],
        );
        let case = format!("exists {exists}, {condition:?}, remove {remove}");
        assert!(matches!(results[0], ChangeResult::Done(_)), "{case}");
        assert!(matches!(results[2], ChangeResult::Done(_)), "{case}");
        let now = get(&documents, DEVICES, "k");
        if holds {
            assert!(matches!(results[1], ChangeResult::Done(_)), "{case}");
            assert_eq!(now.is_none(), remove, "{case}");
            if let Some(document) = now {
                assert_eq!(document.value, b"after"[..], "{case}");
            }
        } else {
            assert_eq!(results[1], ChangeResult::Refused(revision), "{case}");
            assert_eq!(now.map(|document| document.revision), revision, "{case}");
        }
    };
    for remove in [false, true] {
        check(true, |_| Condition::Any, remove, true);
        check(true, |_| Condition::Absent, remove, false);
        check(true, |_| Condition::Present, remove, true);
        check(true, Condition::Revision, remove, true);
        check(true, |now| Condition::Revision(now - 1), remove, false);
        check(true, |now| Condition::Revision(now + 1), remove, false);
        check(false, |_| Condition::Any, remove, true);
        check(false, |_| Condition::Absent, remove, true);
        check(false, |_| Condition::Present, remove, false);
        check(false, Condition::Revision, remove, false);
    }
}

/// A batch works on what it has done so far.
pub fn later_changes_of_a_batch_see_the_earlier_ones(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let absent = |change| Change {
        condition: Condition::Absent,
        ..change
    };
    let results = apply(
        &documents,
        vec![
            absent(put("k", 1, b"one")),
            absent(put("k", 2, b"two")),
            delete("k", Condition::Present),
            delete("k", Condition::Present),
            absent(put("k", 3, b"three")),
            Change {
                condition: Condition::Revision(3),
                ..put("k", 4, b"four")
            },
        ],
    );
    assert_eq!(
        results,
        [
            ChangeResult::Done(1),
            ChangeResult::Refused(Some(1)),
            ChangeResult::Done(2),
            ChangeResult::Refused(None),
            ChangeResult::Done(3),
            ChangeResult::Done(4),
        ]
    );
    let document = get(&documents, DEVICES, "k").unwrap();
    assert_eq!((document.revision, &document.value[..]), (4, &b"four"[..]));
    assert_eq!(documents.counts(DEVICES), [(4, 1)]);
    assert_eq!(feed(&documents, 0), [(4, DEVICES, "k".into(), false)]);
}

/// One sequence for all collections, moved by changes and by nothing else.
pub fn revisions_grow_over_all_collections(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let mut expected = 0;
    for round in 0..20u8 {
        let collection = if round % 2 == 0 { DEVICES } else { OTHERS };
        let change = Change {
            collection,
            ..put("same", 0, &[round])
        };
        expected += 1;
        assert_eq!(done(apply_one(&documents, change)), expected);
        // Refusals and removals of nothing take no revision.
        apply_one(&documents, delete("missing", Condition::Present));
        let nothing = apply_one(&documents, delete("missing", Condition::Any));
        assert_eq!(nothing, ChangeResult::Done(expected));
    }
    let removed = done(apply_one(&documents, delete("same", Condition::Any)));
    assert_eq!(removed, expected + 1);
    assert_eq!(done(apply_one(&documents, put("new", 0, b""))), removed + 1);
    assert_eq!(apply(&documents, Vec::new()), []);
}

/// Through creation, change of class, removal and creation again.
pub fn classes_are_counted(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let documents = subject.store().documents;
    assert_eq!(documents.counts(DEVICES), []);
    apply(
        &documents,
        vec![put("a", 1, b""), put("b", 1, b""), put("c", 9, b"")],
    );
    assert_eq!(documents.counts(DEVICES), [(1, 2), (9, 1)]);
    assert_eq!(documents.counts(OTHERS), []);
    apply(&documents, vec![put("a", 9, b""), put("b", 1, b"again")]);
    assert_eq!(documents.counts(DEVICES), [(1, 1), (9, 2)]);
    apply(
        &documents,
        vec![
            delete("b", Condition::Any),
            delete("b", Condition::Any),
            put("z", 255, b""),
            put("z", 0, b""),
        ],
    );
    assert_eq!(documents.counts(DEVICES), [(0, 1), (9, 2)]);
    let elsewhere = Change {
        collection: OTHERS,
        ..put("a", 3, b"")
    };
    apply_one(&documents, elsewhere);
    assert_eq!(documents.counts(OTHERS), [(3, 1)]);
    drop(documents);
    subject.reopen();
    let documents = subject.store().documents;
    assert_eq!(documents.counts(DEVICES), [(0, 1), (9, 2)]);
    assert_eq!(documents.counts(OTHERS), [(3, 1)]);
}

/// Prefix, start, limit, and whether there is more.
pub fn lists_are_paged_in_key_order(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let keys = ["b", "a", "a/2", "a/1", "ab", "c", "a\u{7f}", "a/10"];
    let mut changes: Vec<_> = keys.iter().map(|key| put(key, 0, key.as_bytes())).collect();
    changes.push(Change {
        collection: Collection(0),
        ..put("before", 0, b"")
    });
    changes.push(Change {
        collection: OTHERS,
        ..put("a/3", 0, b"")
    });
    apply(&documents, changes);
    apply(
        &documents,
        vec![put("a/11", 0, b""), delete("a/11", Condition::Any)],
    );
    let check =
        |prefix: &'static str, after: Option<&'static str>, limit, expected: &[&str], more| {
            let page = list(&documents, prefix, after, limit);
            let found: Vec<_> = page
                .documents
                .iter()
                .map(|document| str::from_utf8(&document.key).unwrap())
                .collect();
            let case = format!("{prefix:?} after {after:?}, {limit}");
            assert_eq!(found, expected, "{case}");
            assert_eq!(page.more, more, "{case}");
            for document in page.documents {
                assert_eq!(document.value, document.key);
            }
        };
    let sorted = ["a", "a/1", "a/10", "a/2", "ab", "a\u{7f}", "b", "c"];
    check("", None, 100, &sorted, false);
    check("", None, 8, &sorted, false);
    check("", None, 7, &sorted[..7], true);
    check("", Some("a/2"), 2, &["ab", "a\u{7f}"], true);
    check("", Some("a/3"), 1, &["ab"], true);
    check("", Some("c"), 1, &[], false);
    check("", Some("zzz"), 1, &[], false);
    check("a/", None, 100, &["a/1", "a/10", "a/2"], false);
    check("a/", None, 2, &["a/1", "a/10"], true);
    check("a/", Some("a/1"), 1, &["a/10"], true);
    check("a/", Some("a/2"), 1, &[], false);
    check("a/", Some("A"), 1, &["a/1"], true);
    check("a/", Some("b"), 1, &[], false);
    check("a/1", None, 10, &["a/1", "a/10"], false);
    check("nothing", None, 10, &[], false);
}

/// Whatever happened to it before, deletions included.
pub fn the_feed_shows_each_document_once_at_its_newest_change(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let check = |after, expected: &[(Revision, &str, bool)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(revision, key, deleted)| (*revision, DEVICES, String::from(*key), *deleted))
            .collect();
        assert_eq!(feed(&documents, after), expected);
    };
    check(0, &[]);
    apply(
        &documents,
        vec![put("a", 0, b""), put("b", 0, b""), put("c", 0, b"")],
    );
    check(0, &[(1, "a", false), (2, "b", false), (3, "c", false)]);
    apply_one(&documents, put("a", 0, b"again"));
    check(0, &[(2, "b", false), (3, "c", false), (4, "a", false)]);
    apply_one(&documents, delete("b", Condition::Any));
    check(0, &[(3, "c", false), (4, "a", false), (5, "b", true)]);
    check(3, &[(4, "a", false), (5, "b", true)]);
    check(5, &[]);
    apply_one(&documents, put("b", 0, b"back"));
    check(0, &[(3, "c", false), (4, "a", false), (6, "b", false)]);
    apply_one(&documents, delete("b", Condition::Any));
    apply_one(&documents, delete("c", Condition::Any));
    check(0, &[(4, "a", false), (7, "b", true), (8, "c", true)]);
    check(7, &[(8, "c", true)]);
    check(100, &[]);
}

/// In parts of any size, with deletions and changes mixed.
pub fn the_feed_is_paged(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let keys: Vec<String> = (0..60).map(|number| format!("k{number}")).collect();
    for (number, key) in keys.iter().enumerate() {
        apply_one(&documents, put(key, 0, b""));
        if number % 3 == 0 {
            apply_one(&documents, delete(key, Condition::Any));
        }
    }
    let whole = changes(&documents, 0, 1_000).entries;
    assert_eq!(whole.len(), 60);
    assert!(whole.is_sorted_by_key(|entry| entry.revision));
    for limit in [1, 7, 59, 60, 61] {
        let mut after = 0;
        let mut found = Vec::new();
        loop {
            let part = changes(&documents, after, limit).entries;
            assert!(part.len() <= limit);
            let Some(last) = part.last() else { break };
            after = last.revision;
            found.extend(part);
        }
        assert_eq!(found, whole, "parts of {limit}");
    }
}

/// The feed forgets the oldest deletions beyond its bound, and says so.
pub fn old_deletions_leave_the_feed(harness: &dyn Harness) {
    let mut subject = harness.create(Setup {
        deletions_kept: 3,
        ..setup(1)
    });
    let documents = subject.store().documents;
    let deleted = |feed: &Feed| {
        feed.entries
            .iter()
            .filter(|entry| entry.deleted)
            .map(|entry| entry.revision)
            .collect::<Vec<_>>()
    };
    apply_one(&documents, put("kept", 0, b""));
    for number in 0..3 {
        let key = format!("k{number}");
        apply_one(&documents, put(&key, 0, b""));
        apply_one(&documents, delete(&key, Condition::Any));
    }
    let feed = changes(&documents, 0, 100);
    assert_eq!((deleted(&feed), feed.deletions_trimmed), (vec![3, 5, 7], 0));

    // A document that comes back makes room.
    apply_one(&documents, put("k1", 0, b""));
    apply(
        &documents,
        vec![put("k3", 0, b""), delete("k3", Condition::Any)],
    );
    let feed = changes(&documents, 0, 100);
    assert_eq!(
        (deleted(&feed), feed.deletions_trimmed),
        (vec![3, 7, 10], 0)
    );

    apply(
        &documents,
        vec![
            delete("k1", Condition::Any),
            put("k4", 0, b""),
            delete("k4", Condition::Any),
        ],
    );
    let feed = changes(&documents, 0, 100);
    assert_eq!(
        (deleted(&feed), feed.deletions_trimmed),
        (vec![10, 11, 13], 7)
    );
    assert_eq!(feed.entries.len(), 4);
    // A forgotten document may be made and removed again.
    done(apply_one(&documents, put("k0", 0, b"")));
    done(apply_one(&documents, delete("k0", Condition::Present)));
    let feed = changes(&documents, 0, 100);
    assert_eq!(
        (deleted(&feed), feed.deletions_trimmed),
        (vec![11, 13, 15], 10)
    );
    drop(documents);
    if subject.reopen() {
        let documents = subject.store().documents;
        assert_eq!(changes(&documents, 0, 100), feed);
    }
}

/// What is outside is refused with the whole batch.
pub fn keys_and_values_have_bounds(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let check = |key: usize, value: usize, taken: bool| {
        let change = put(&"k".repeat(key), 0, &vec![1; value]);
        let answer = block_on(documents.apply(vec![put("beside", 0, b""), change]));
        let case = format!("{key} bytes of key, {value} bytes of value");
        if taken {
            assert!(answer.is_ok(), "{case}");
        } else {
            assert!(
                matches!(answer, Err(StoreError::OutOfBounds { .. })),
                "{case}"
            );
        }
    };
    check(0, 0, false);
    check(KEY_BYTES_MAX + 1, 0, false);
    check(1, VALUE_BYTES_MAX + 1, false);
    assert_eq!(documents.counts(DEVICES), []);
    check(KEY_BYTES_MAX, VALUE_BYTES_MAX, true);
    check(1, 0, true);
}

/// Of many who change the same document under a condition, one does.
pub fn concurrent_conditional_changes_have_one_winner(harness: &dyn Harness) {
    const THREADS: usize = 8;
    const ROUNDS: usize = 20;
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let won: usize = thread::scope(|scope| {
        let contenders: Vec<_> = (0..THREADS)
            .map(|_| {
                let documents = Arc::clone(&documents);
                scope.spawn(move || {
                    (0..ROUNDS)
                        .filter(|round| {
                            let change = Change {
                                condition: Condition::Absent,
                                ..put(&format!("k{round}"), 0, b"")
                            };
                            matches!(apply_one(&documents, change), ChangeResult::Done(_))
                        })
                        .count()
                })
            })
            .collect();
        contenders.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(won, ROUNDS);
    assert_eq!(documents.counts(DEVICES), [(0, ROUNDS as u64)]);
    let revisions: BTreeSet<_> = list(&documents, "", None, 100)
        .documents
        .iter()
        .map(|document| document.revision)
        .collect();
    assert_eq!(revisions, (1..=ROUNDS as u64).collect());
}

/// Dropping the answer, even unasked, does not stop the change.
pub fn an_abandoned_answer_abandons_no_change(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let documents = subject.store().documents;
    drop(documents.apply(vec![put("abandoned", 0, b"")]));
    // Batches are taken in order.
    apply_one(&documents, put("later", 0, b""));
    assert!(get(&documents, DEVICES, "abandoned").is_some());
}

/// Closing finishes what was handed in before and refuses what comes after.
pub fn closing_documents_keeps_what_was_submitted(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let documents = subject.store().documents;
    let answers: Vec<_> = (0..50)
        .map(|number| documents.apply(vec![put(&format!("k{number}"), 0, b"")]))
        .collect();
    block_on(documents.close());
    for answer in answers {
        block_on(answer).unwrap();
    }
    assert!(matches!(
        block_on(documents.apply(vec![put("late", 0, b"")])),
        Err(StoreError::Closed)
    ));
    block_on(documents.close());
    drop(documents);
    if subject.reopen() {
        assert_eq!(subject.store().documents.counts(DEVICES), [(0, 50)]);
    }
}

/// Documents, counts, feed and revisions survive closing.
pub fn reopened_documents_are_the_same(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    for round in 0..4u8 {
        let documents = subject.store().documents;
        let changes_made = (0..30u8)
            .map(|number| put(&format!("k{number}"), number % 3, &[round, number]))
            .collect();
        apply(&documents, changes_made);
        apply_one(&documents, delete(&format!("k{round}"), Condition::Present));
        let before = (
            list(&documents, "", None, 100),
            documents.counts(DEVICES),
            changes(&documents, 0, 100),
        );
        drop(documents);
        if !subject.reopen() {
            return;
        }
        let documents = subject.store().documents;
        let after = (
            list(&documents, "", None, 100),
            documents.counts(DEVICES),
            changes(&documents, 0, 100),
        );
        assert_eq!(before, after);
        let next = done(apply_one(&documents, put("next", round, b"")));
        assert_eq!(next, after.2.entries.last().unwrap().revision + 1);
    }
}

fn put(key: &str, class: u8, value: &[u8]) -> Change {
    Change {
        collection: DEVICES,
        key: Bytes::copy_from_slice(key.as_bytes()),
        condition: Condition::Any,
        action: Action::Put {
            class,
            value: Bytes::copy_from_slice(value),
        },
    }
}

fn delete(key: &str, condition: Condition) -> Change {
    Change {
        collection: DEVICES,
        key: Bytes::copy_from_slice(key.as_bytes()),
        condition,
        action: Action::Delete,
    }
}

fn apply(documents: &Arc<dyn Documents>, changes: Vec<Change>) -> Vec<ChangeResult> {
    block_on(documents.apply(changes)).unwrap()
}

fn apply_one(documents: &Arc<dyn Documents>, change: Change) -> ChangeResult {
    apply(documents, vec![change]).remove(0)
}

fn done(result: ChangeResult) -> Revision {
    match result {
        ChangeResult::Done(revision) => revision,
        ChangeResult::Refused(revision) => panic!("refused at {revision:?}"),
    }
}

fn get(documents: &Arc<dyn Documents>, collection: Collection, key: &str) -> Option<Document> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    block_on(documents.get(collection, key)).unwrap()
}

fn list(documents: &Arc<dyn Documents>, prefix: &str, after: Option<&str>, limit: usize) -> Page {
    let request = ListRequest {
        collection: DEVICES,
        prefix: Bytes::copy_from_slice(prefix.as_bytes()),
        after: after.map(|after| Bytes::copy_from_slice(after.as_bytes())),
        limit,
    };
    block_on(documents.list(request)).unwrap()
}

fn changes(documents: &Arc<dyn Documents>, after: Revision, limit: usize) -> Feed {
    block_on(documents.changes(after, limit)).unwrap()
}

fn feed(
    documents: &Arc<dyn Documents>,
    after: Revision,
) -> Vec<(Revision, Collection, String, bool)> {
    let name = |entry: FeedEntry| {
        let key = String::from_utf8(entry.key.to_vec()).unwrap();
        (entry.revision, entry.collection, key, entry.deleted)
    };
    let entries = changes(documents, after, 1_000).entries;
    entries.into_iter().map(name).collect()
}
