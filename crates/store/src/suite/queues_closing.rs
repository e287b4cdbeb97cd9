//! Checks of what device queues keep when nobody waits for an answer, and over closing.

use super::log::noise;
use super::queues::{
    Queues, all, apply, apply_one, depths, drop_whole, due, enqueue, enqueued, name, settle,
    waiting,
};
use super::{Harness, block_on, setup};
use crate::StoreError;
use crate::queues::{Operation, OperationResult};

/// Dropping the answer, even unasked, does not stop the operation.
pub fn an_abandoned_answer_abandons_no_operation(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    drop(queues.apply(vec![enqueue("a", b"abandoned", 1)]));
    // Batches are taken in order.
    let later = enqueued(apply_one(&queues, enqueue("a", b"later", 2)));
    let page = all(&queues, "a");
    let texts: Vec<_> = page.messages.iter().map(|one| &one.message[..]).collect();
    assert_eq!(texts, [&b"abandoned"[..], b"later"]);
    drop(queues.apply(vec![settle("a", later, Vec::new())]));
    let settled = apply_one(&queues, settle("a", later, Vec::new()));
    assert_eq!(settled, OperationResult::Gone);
}

/// Closing finishes what was handed in before and refuses what comes after.
pub fn closing_queues_keeps_what_was_submitted(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let answers: Vec<_> = (0..50)
        .map(|number| queues.apply(vec![enqueue("a", b"text", number)]))
        .collect();
    block_on(queues.close());
    let mut expected = Vec::new();
    for (answer, expires) in answers.into_iter().zip(0..) {
        let sequence = enqueued(block_on(answer).unwrap().remove(0));
        expected.push(waiting(sequence, b"text", expires));
    }
    assert!(expected.is_sorted_by_key(|message| message.sequence));
    assert!(matches!(
        block_on(queues.apply(vec![enqueue("a", b"late", 0)])),
        Err(StoreError::Closed)
    ));
    block_on(queues.close());
    drop(queues);
    if subject.reopen() {
        assert_eq!(all(&subject.store().queues, "a").messages, expected);
    }
}

/// Messages, expiries and counts survive closing.
pub fn reopened_queues_are_the_same(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    for round in 0..4u32 {
        let queues = subject.store().queues;
        let batch = (0..30).map(|number: u8| {
            let queue = ["a", "b", "c"][usize::from(number % 3)];
            enqueue(queue, &noise(number, 100), i64::from(number) % 7)
        });
        let results = apply(&queues, batch.collect());
        let sequences: Vec<_> = results.into_iter().map(enqueued).collect();
        apply(
            &queues,
            vec![
                settle("a", sequences[0], Vec::new()),
                settle("b", sequences[4], Vec::new()),
                Operation::SetDeliveryCount {
                    queue: name("c"),
                    sequence: sequences[2],
                    count: round + 1,
                },
            ],
        );
        let state = |queues: &Queues| {
            (
                all(queues, "a"),
                all(queues, "b"),
                all(queues, "c"),
                depths(queues, &["a", "b", "c"]),
                due(queues, 100, None, 1_000, usize::MAX),
                block_on(queues.next_due(None)).unwrap(),
            )
        };
        let before = state(&queues);
        drop(queues);
        if !subject.reopen() {
            return;
        }
        let queues = subject.store().queues;
        assert_eq!(state(&queues), before);
        let next = enqueued(apply_one(&queues, enqueue("next", b"", 0)));
        assert!(next > sequences[29]);
    }
}

/// Also when nothing is left that shows which ones were given.
pub fn numbers_are_never_given_twice(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let mut last = 0;
    for round in 0..6 {
        let queues = subject.store().queues;
        let batch = vec![enqueue("a", b"", 0), enqueue("b", b"", 0)];
        let sequences: Vec<_> = apply(&queues, batch).into_iter().map(enqueued).collect();
        assert!(sequences[0] > last && sequences[1] > sequences[0]);
        last = sequences[1];
        if round % 2 == 0 {
            apply_one(&queues, settle("a", sequences[0], Vec::new()));
            apply_one(&queues, settle("b", sequences[1], Vec::new()));
        } else {
            drop_whole(&queues, "a");
            drop_whole(&queues, "b");
        }
        assert_eq!(depths(&queues, &["a", "b"]), [0, 0]);
        assert_eq!(block_on(queues.next_due(None)).unwrap(), None);
        drop(queues);
        subject.reopen();
    }
}
