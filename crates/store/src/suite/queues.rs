//! Checks of the device queues: what is put in, listed, settled and dropped.

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use fieldpost_model::Timestamp;

use super::log::noise;
use super::{Harness, block_on, setup};
use crate::StoreError;
use crate::queues::{
    DeviceQueues, DuePage, DuePosition, ITEM_BYTES_MAX, Lane, LaneFigures, ListDue, ListOutcomes,
    ListQueue, Operation, OperationResult, Outcome, QUEUE_NAME_BYTES_MAX, QueueName, QueuePage,
    QueuedMessage,
};

pub(super) type Queues = Arc<dyn DeviceQueues>;

/// No queue of a check gets near it.
const DEEP: u64 = 1_000_000;

/// Numbers grow from one batch to the next, whatever queue they are for.
pub fn messages_wait_in_the_order_of_their_numbers(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    assert_eq!(all(&queues, "a"), QueuePage::default());
    assert_eq!(apply(&queues, Vec::new()), []);
    let mut last = 0;
    let mut expected = Vec::new();
    for round in 0..10 {
        let batch = vec![
            enqueue("a", b"for a", round),
            enqueue("b", b"for b", 100 - round),
            enqueue("a", b"for a again", 50),
        ];
        let sequences: Vec<_> = apply(&queues, batch).into_iter().map(enqueued).collect();
        assert!(sequences[0] > last, "{sequences:?} after {last}");
        assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
        last = sequences[2];
        expected.push(waiting(sequences[0], b"for a", round));
        expected.push(waiting(sequences[2], b"for a again", 50));
    }
    let page = all(&queues, "a");
    assert_eq!(page.messages, expected);
    assert!(!page.more);
    assert_eq!(depths(&queues, &["a", "b", "c", "a"]), [20, 10, 0, 20]);
    assert_eq!(depths(&queues, &[]), [0; 0]);
}

/// Without a byte of it, and as large as it may be.
pub fn messages_of_any_size_are_kept_as_they_are(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    for length in [0, 1, 1_000, 70_000, ITEM_BYTES_MAX] {
        let message = noise(5, length);
        let sequence = enqueued(apply_one(&queues, enqueue("a", &message, 7)));
        let page = list(&queues, "a", sequence - 1, 1, usize::MAX);
        assert_eq!(
            page.messages,
            [waiting(sequence, &message, 7)],
            "{length} bytes"
        );
    }
}

/// Names that begin with each other, or with what an engine may put between a name and a number.
pub fn queues_with_similar_names_are_apart(harness: &dyn Harness) {
    let longest = "x".repeat(QUEUE_NAME_BYTES_MAX);
    let shorter = "x".repeat(QUEUE_NAME_BYTES_MAX - 1);
    let mut names: Vec<Bytes> = [
        "a",
        "aa",
        "a\0",
        "a\0\0\0\0\0\0\0\0",
        "b",
        &longest,
        &shorter,
    ]
    .iter()
    .map(|name| Bytes::copy_from_slice(name.as_bytes()))
    .collect();
    for name in [&[0][..], &[0, 0], &[0xff], &[0xff, 0xff], &[0xff; 9]] {
        names.push(Bytes::copy_from_slice(name));
    }
    let names: Vec<_> = names.into_iter().map(QueueName).collect();
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let batch = names.iter().map(|name| Operation::Enqueue {
        queue: name.clone(),
        message: name.0.clone(),
        expires: Timestamp::from_millis(9),
        depth_max: 1,
        once: Some(1),
    });
    let sequences: Vec<_> = apply(&queues, batch.collect())
        .into_iter()
        .map(enqueued)
        .collect();
    let due = due(&queues, 9, None, 100, usize::MAX);
    let of = |name: &QueueName| {
        block_on(queues.list(ListQueue {
            queue: name.clone(),
            after: 0,
            limit: 10,
            bytes_max: usize::MAX,
        }))
        .unwrap()
    };
    for (number, (name, sequence)) in names.iter().zip(&sequences).enumerate() {
        let message = waiting(*sequence, &name.0, 9);
        assert_eq!(due.messages[number], (name.clone(), message.clone()));
        assert_eq!(of(name).messages, [message], "{name:?}");
    }
    assert_eq!(
        block_on(queues.depths(names.clone())).unwrap(),
        vec![1; names.len()]
    );
    for (number, name) in names.iter().enumerate() {
        let dropped = Operation::Drop {
            queue: name.clone(),
        };
        let expected = OperationResult::Dropped {
            messages: 1,
            more: false,
        };
        assert_eq!(apply_one(&queues, dropped), expected, "{name:?}");
        for other in &names[number + 1..] {
            assert_eq!(of(other).messages.len(), 1, "{other:?} without {name:?}");
        }
    }
}

/// After a number, as many and as large as asked for, and whether there are more.
pub fn queues_are_read_in_pages(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let lengths = [10, 10, 0, 30, 5];
    let batch = lengths
        .iter()
        .flat_map(|length| {
            [
                enqueue("a", &noise(1, *length), 0),
                enqueue("beside", b"beside", 0),
            ]
        })
        .collect();
    let sequences: Vec<_> = apply(&queues, batch)
        .into_iter()
        .map(enqueued)
        .step_by(2)
        .collect();
    let check = |after: u64, limit, bytes_max, expected: &[u64], more| {
        let page = list(&queues, "a", after, limit, bytes_max);
        let found: Vec<_> = page.messages.iter().map(|one| one.sequence).collect();
        let case = format!("after {after}, {limit} messages, {bytes_max} bytes");
        assert_eq!((&found[..], page.more), (expected, more), "{case}");
    };
    check(0, 100, usize::MAX, &sequences, false);
    check(0, 5, usize::MAX, &sequences, false);
    check(0, 4, usize::MAX, &sequences[..4], true);
    check(0, 1, usize::MAX, &sequences[..1], true);
    check(sequences[0], 2, usize::MAX, &sequences[1..3], true);
    check(sequences[3], 2, usize::MAX, &sequences[4..], false);
    check(sequences[4], 2, usize::MAX, &[], false);
    check(u64::MAX, 2, usize::MAX, &[], false);
    // The number of a message in another queue is as good a place as any.
    check(sequences[1] + 1, 1, usize::MAX, &sequences[2..3], true);
    check(0, 100, 0, &sequences[..1], true);
    check(0, 100, 10, &sequences[..1], true);
    check(0, 100, 11, &sequences[..2], true);
    check(0, 100, 21, &sequences[..4], true);
    check(0, 100, 51, &sequences, false);
    check(0, 100, 55, &sequences, false);
    check(sequences[3], 100, 1, &sequences[4..], false);
}

/// The bound is the caller's, looked at in each operation's turn.
pub fn queues_are_bounded_by_their_depth(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let put = |depth_max| Operation::Enqueue {
        queue: name("a"),
        message: Bytes::from_static(b"message"),
        expires: Timestamp::from_millis(1),
        depth_max,
        once: None,
    };
    assert_eq!(apply_one(&queues, put(0)), OperationResult::QueueFull);
    let results = apply(&queues, vec![put(2), put(2), put(2), enqueue("b", b"", 1)]);
    assert_eq!(results[2], OperationResult::QueueFull);
    let first = enqueued(results[0].clone());
    enqueued(results[3].clone());
    assert_eq!(depths(&queues, &["a", "b"]), [2, 1]);

    // A message that leaves makes room for one.
    let results = apply(
        &queues,
        vec![put(2), settle("a", first, Vec::new()), put(2), put(2)],
    );
    assert_eq!(results[0], OperationResult::QueueFull);
    assert_eq!(results[3], OperationResult::QueueFull);
    let third = enqueued(results[2].clone());

    // A bound that is lower than what is there, and one that is higher.
    assert_eq!(apply_one(&queues, put(1)), OperationResult::QueueFull);
    enqueued(apply_one(&queues, put(3)));
    assert_eq!(apply_one(&queues, put(3)), OperationResult::QueueFull);
    drop(queues);
    subject.reopen();
    let queues = subject.store().queues;
    assert_eq!(apply_one(&queues, put(3)), OperationResult::QueueFull);
    let drop_it = Operation::Drop { queue: name("a") };
    let results = apply(&queues, vec![drop_it, put(1), put(1)]);
    assert!(enqueued(results[1].clone()) > third);
    assert_eq!(results[2], OperationResult::QueueFull);
    assert_eq!(depths(&queues, &["a"]), [1]);
}

/// A mark holds for its queue, as long as the queue is not dropped.
pub fn marks_let_a_thing_happen_once(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let put = |queue: &str, once, depth_max| Operation::Enqueue {
        queue: name(queue),
        message: Bytes::from_static(b"message"),
        expires: Timestamp::from_millis(1),
        depth_max,
        once,
    };
    let taken = |operation| {
        matches!(
            apply_one(&queues, operation),
            OperationResult::Enqueued { .. }
        )
    };
    let before = |operation| apply_one(&queues, operation) == OperationResult::DoneBefore;
    assert!(taken(put("a", Some(0), DEEP)), "the first, however small");
    assert!(before(put("a", Some(0), DEEP)));
    assert!(taken(put("a", Some(5), DEEP)));
    assert!(before(put("a", Some(5), DEEP)));
    assert!(before(put("a", Some(4), DEEP)));
    assert!(before(put("a", Some(5), 0)), "before it is full");
    assert!(taken(put("a", None, DEEP)), "without a mark, every time");
    assert!(before(put("a", Some(5), DEEP)), "and that forgets nothing");
    assert!(taken(put("b", Some(3), DEEP)), "another queue");

    // What was not carried out may be tried again.
    let full = apply_one(&queues, put("a", Some(6), 1));
    assert_eq!(full, OperationResult::QueueFull);
    assert!(taken(put("a", Some(6), DEEP)));

    let results = apply(
        &queues,
        vec![
            put("a", Some(7), DEEP),
            put("a", Some(7), DEEP),
            put("a", Some(9), DEEP),
            put("a", Some(8), DEEP),
        ],
    );
    assert_eq!(results[1], OperationResult::DoneBefore);
    assert_eq!(results[3], OperationResult::DoneBefore);
    assert_eq!(depths(&queues, &["a"]), [6]);

    // It outlives the messages.
    for message in all(&queues, "a").messages {
        apply_one(&queues, settle("a", message.sequence, Vec::new()));
    }
    assert_eq!(depths(&queues, &["a"]), [0]);
    assert!(before(put("a", Some(9), DEEP)));
    drop(queues);
    subject.reopen();
    let queues = subject.store().queues;
    let before = |operation| apply_one(&queues, operation) == OperationResult::DoneBefore;
    assert!(before(put("a", Some(9), DEEP)));
    assert!(before(put("b", Some(3), DEEP)));
    enqueued(apply_one(&queues, put("a", Some(u64::MAX), DEEP)));
    assert!(before(put("a", Some(u64::MAX), DEEP)));

    drop_whole(&queues, "a");
    assert!(before(put("b", Some(3), DEEP)), "another queue's mark");
    enqueued(apply_one(&queues, put("a", Some(1), DEEP)));
    assert!(before(put("a", Some(1), DEEP)));
    // A mark alone goes as well.
    let only = all(&queues, "a").messages[0].sequence;
    apply_one(&queues, settle("a", only, Vec::new()));
    drop_whole(&queues, "a");
    enqueued(apply_one(&queues, put("a", Some(1), DEEP)));
}

/// From every place where they could be seen, once.
pub fn settled_messages_are_gone(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let batch = (0..4).map(|number| enqueue("a", b"message", number));
    let sequences: Vec<_> = apply(&queues, batch.collect())
        .into_iter()
        .map(enqueued)
        .collect();
    let settled = apply_one(&queues, settle("a", sequences[1], Vec::new()));
    assert_eq!(settled, OperationResult::Done);
    let left = [sequences[0], sequences[2], sequences[3]];
    let numbers = |page: QueuePage| -> Vec<_> {
        let sequences = page.messages.iter().map(|message| message.sequence);
        sequences.collect()
    };
    assert_eq!(numbers(all(&queues, "a")), left);
    assert_eq!(due_numbers(&due(&queues, 100, None, 100, usize::MAX)), left);
    assert_eq!(depths(&queues, &["a"]), [3]);

    let gone = |queue: &str, sequence| {
        let result = apply_one(&queues, settle(queue, sequence, Vec::new()));
        assert_eq!(result, OperationResult::Gone, "{queue} {sequence}");
    };
    gone("a", sequences[1]);
    gone("b", sequences[0]);
    gone("a", 0);
    gone("a", sequences[3] + 1);
    gone("a", u64::MAX);
    assert_eq!(numbers(all(&queues, "a")), left);
}

/// Some are carried out and some are not, and each sees what those before it did.
pub fn operations_of_a_batch_stand_alone(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let known = enqueued(apply_one(&queues, enqueue("a", b"message", 1)));
    let record = || vec![(Lane(1), Bytes::from_static(b"record"))];
    let count = |count| Operation::SetDeliveryCount {
        queue: name("a"),
        sequence: known,
        count,
    };
    let remove = Operation::Remove {
        lane: Lane(1),
        number: 1,
    };
    let results = apply(
        &queues,
        vec![
            settle("a", known + 1_000, record()),
            remove.clone(),
            count(1),
            enqueue("b", b"beside", 2),
            settle("a", known, record()),
            count(2),
            settle("a", known, record()),
            remove.clone(),
            remove,
            Operation::Forget {
                lane: Lane(9),
                through: 100,
            },
            Operation::Drop { queue: name("b") },
            Operation::Drop { queue: name("b") },
        ],
    );
    let done = OperationResult::Done;
    let gone = OperationResult::Gone;
    let dropped = |messages| OperationResult::Dropped {
        messages,
        more: false,
    };
    assert!(matches!(results[3], OperationResult::Enqueued { .. }));
    let expected = [&gone, &gone, &done, &results[3], &done, &gone, &gone];
    assert_eq!(results[..7].iter().collect::<Vec<_>>(), expected);
    let expected = [done.clone(), gone, done, dropped(1), dropped(0)];
    assert_eq!(results[7..], expected);
    assert_eq!(depths(&queues, &["a", "b"]), [0, 0]);
    let figures = LaneFigures {
        last: 1,
        ..LaneFigures::default()
    };
    assert_eq!(queues.lane(Lane(1)), figures);
}

/// With the message, until it goes.
pub fn delivery_counts_are_kept(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let batch = vec![enqueue("a", b"first", 5), enqueue("a", b"second", 6)];
    let sequences: Vec<_> = apply(&queues, batch).into_iter().map(enqueued).collect();
    let set = |queue: &str, sequence, count| Operation::SetDeliveryCount {
        queue: name(queue),
        sequence,
        count,
    };
    let counted = |sequence, text: &[u8], expires, delivery_count| QueuedMessage {
        delivery_count,
        ..waiting(sequence, text, expires)
    };
    for count in [3, 0, u32::MAX] {
        let result = apply_one(&queues, set("a", sequences[1], count));
        assert_eq!(result, OperationResult::Done);
        let expected = [
            waiting(sequences[0], b"first", 5),
            counted(sequences[1], b"second", 6, count),
        ];
        assert_eq!(all(&queues, "a").messages, expected);
        let due = due(&queues, 6, None, 10, usize::MAX).messages;
        let due: Vec<_> = due.into_iter().map(|(_, message)| message).collect();
        assert_eq!(due, expected);
    }
    let twice = vec![set("a", sequences[0], 1), set("a", sequences[0], 2)];
    apply(&queues, twice);
    let gone = OperationResult::Gone;
    assert_eq!(apply_one(&queues, set("b", sequences[1], 1)), gone);
    assert_eq!(apply_one(&queues, set("a", sequences[1] + 1, 1)), gone);
    apply_one(&queues, settle("a", sequences[1], Vec::new()));
    assert_eq!(apply_one(&queues, set("a", sequences[1], 1)), gone);
    drop(queues);
    subject.reopen();
    let queues = subject.store().queues;
    let expected = [counted(sequences[0], b"first", 5, 2)];
    assert_eq!(all(&queues, "a").messages, expected);
}

/// Neither messages, nor expiries, nor a mark; records stay.
pub fn dropped_queues_leave_nothing(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    assert_eq!(drop_whole(&queues, "never seen"), 0);
    let batch = vec![
        enqueue("a", b"first", 1),
        enqueue("b", b"beside", 2),
        enqueue("a", b"second", 3),
        enqueue("a", b"third", 4),
    ];
    let sequences: Vec<_> = apply(&queues, batch).into_iter().map(enqueued).collect();
    let outcomes = vec![(Lane(1), Bytes::from_static(b"record"))];
    apply_one(&queues, settle("a", sequences[0], outcomes));
    let figures = queues.lane(Lane(1));
    assert_eq!(drop_whole(&queues, "a"), 2);
    assert_eq!(drop_whole(&queues, "a"), 0);
    assert_eq!(all(&queues, "a"), QueuePage::default());
    assert_eq!(depths(&queues, &["a", "b"]), [0, 1]);
    let left = due(&queues, 100, None, 100, usize::MAX);
    assert_eq!(due_numbers(&left), [sequences[1]]);
    assert_eq!(queues.lane(Lane(1)), figures);
    assert_eq!(outcomes_of(&queues, 1).len(), 1);
    let settled = apply_one(&queues, settle("a", sequences[2], Vec::new()));
    assert_eq!(settled, OperationResult::Gone);
    // The name may be used again, and begins with nothing.
    let again = enqueued(apply_one(&queues, enqueue("a", b"again", 9)));
    assert!(again > sequences[3]);
    assert_eq!(
        all(&queues, "a").messages,
        [waiting(again, b"again", 9)],
        "nothing comes back"
    );
}

/// Perhaps in parts; what is left is what came last.
pub fn large_queues_are_dropped_oldest_first(harness: &dyn Harness) {
    const MESSAGES: u64 = 2_500;
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let batch = (0..MESSAGES).map(|_| enqueue("a", b"message", 1));
    let sequences: Vec<_> = apply(&queues, batch.collect())
        .into_iter()
        .map(enqueued)
        .collect();
    let marked = Operation::Enqueue {
        queue: name("a"),
        message: Bytes::new(),
        expires: Timestamp::from_millis(0),
        depth_max: DEEP,
        once: Some(1),
    };
    enqueued(apply_one(&queues, marked.clone()));
    let mut dropped = 0;
    loop {
        let result = apply_one(&queues, Operation::Drop { queue: name("a") });
        let OperationResult::Dropped { messages, more } = result else {
            panic!("{result:?}");
        };
        dropped += messages;
        let depth = depths(&queues, &["a"])[0];
        assert_eq!(dropped + depth, MESSAGES + 1);
        assert_eq!(more, depth > 0);
        if !more {
            break;
        }
        assert!(messages > 0);
        let first = list(&queues, "a", 0, 1, usize::MAX).messages[0].sequence;
        let index = usize::try_from(dropped).unwrap();
        // The one with the mark came last.
        let expected = sequences.get(index).copied();
        assert!(expected.is_none_or(|expected| first == expected));
        assert_eq!(
            apply_one(&queues, marked.clone()),
            OperationResult::DoneBefore
        );
    }
    assert_eq!(due_numbers(&due(&queues, 1, None, 10, usize::MAX)), []);
    enqueued(apply_one(&queues, marked));
}

/// What is outside is refused with the whole batch.
pub fn names_and_messages_have_bounds(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let long = "x".repeat(QUEUE_NAME_BYTES_MAX + 1);
    let too_large = vec![0; ITEM_BYTES_MAX + 1];
    let check = |operation: Operation| {
        let kind = format!("{operation:?}");
        let batch = vec![enqueue("beside", b"", 0), operation];
        let answer = block_on(queues.apply(batch));
        let refused = matches!(answer, Err(StoreError::OutOfBounds { .. }));
        assert!(refused, "{}: {answer:?}", &kind[..kind.len().min(80)]);
    };
    for queue in ["", &long] {
        check(enqueue(queue, b"", 0));
        check(settle(queue, 1, Vec::new()));
        check(Operation::SetDeliveryCount {
            queue: name(queue),
            sequence: 1,
            count: 1,
        });
        check(Operation::Drop { queue: name(queue) });
    }
    check(enqueue("a", &too_large, 0));
    assert_eq!(depths(&queues, &["beside", "a"]), [0, 0]);
}

/// Of many who settle the same message, one does; of many who add, each gets a number.
pub fn each_message_is_settled_once(harness: &dyn Harness) {
    const THREADS: u8 = 8;
    const ROUNDS: u64 = 20;
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let batch = (0..ROUNDS).map(|_| enqueue("a", b"", 0)).collect();
    let sequences: Vec<_> = apply(&queues, batch).into_iter().map(enqueued).collect();
    let (settled, mut added) = thread::scope(|scope| {
        let contenders: Vec<_> = (0..THREADS)
            .map(|number| {
                let (queues, sequences) = (Arc::clone(&queues), &sequences);
                scope.spawn(move || {
                    let mut settled = 0;
                    let mut added = Vec::new();
                    for sequence in sequences {
                        let outcome = (Lane(1), Bytes::from(vec![number]));
                        let operations = vec![
                            settle("a", *sequence, vec![outcome]),
                            enqueue("b", &[number], 0),
                        ];
                        let results = apply(&queues, operations);
                        settled += u64::from(results[0] == OperationResult::Done);
                        added.push(enqueued(results[1].clone()));
                    }
                    (settled, added)
                })
            })
            .collect();
        let mut settled = 0;
        let mut added = Vec::new();
        for contender in contenders {
            let (count, numbers) = contender.join().unwrap();
            assert!(numbers.is_sorted());
            settled += count;
            added.extend(numbers);
        }
        (settled, added)
    });
    assert_eq!(settled, ROUNDS);
    assert_eq!(queues.lane(Lane(1)).count, ROUNDS);
    added.sort_unstable();
    let all = all(&queues, "b").messages;
    let found: Vec<_> = all.iter().map(|message| message.sequence).collect();
    assert_eq!(found, added);
    added.dedup();
    assert_eq!(added.len(), usize::from(THREADS) * sequences.len());
    assert_eq!(depths(&queues, &["a"]), [0]);
}

pub(super) fn name(queue: &str) -> QueueName {
    QueueName(Bytes::copy_from_slice(queue.as_bytes()))
}

pub(super) fn enqueue(queue: &str, message: &[u8], expires: i64) -> Operation {
    Operation::Enqueue {
        queue: name(queue),
        message: Bytes::copy_from_slice(message),
        expires: Timestamp::from_millis(expires),
        depth_max: DEEP,
        once: None,
    }
}

pub(super) fn settle(queue: &str, sequence: u64, outcomes: Vec<(Lane, Bytes)>) -> Operation {
    Operation::Settle {
        queue: name(queue),
        sequence,
        outcomes,
    }
}

pub(super) fn apply(queues: &Queues, operations: Vec<Operation>) -> Vec<OperationResult> {
    let count = operations.len();
    let results = block_on(queues.apply(operations)).unwrap();
    assert_eq!(results.len(), count);
    results
}

pub(super) fn apply_one(queues: &Queues, operation: Operation) -> OperationResult {
    apply(queues, vec![operation]).remove(0)
}

pub(super) fn enqueued(result: OperationResult) -> u64 {
    match result {
        OperationResult::Enqueued { sequence } => sequence,
        other => panic!("not enqueued but {other:?}"),
    }
}

/// Drops until nothing is left, and gives how many messages there were.
pub(super) fn drop_whole(queues: &Queues, queue: &str) -> u64 {
    let mut dropped = 0;
    loop {
        match apply_one(queues, Operation::Drop { queue: name(queue) }) {
            OperationResult::Dropped { messages, more } => {
                dropped += messages;
                if !more {
                    return dropped;
                }
            }
            other => panic!("not dropped but {other:?}"),
        }
    }
}

pub(super) fn waiting(sequence: u64, message: &[u8], expires: i64) -> QueuedMessage {
    QueuedMessage {
        sequence,
        expires: Timestamp::from_millis(expires),
        delivery_count: 0,
        message: Bytes::copy_from_slice(message),
    }
}

pub(super) fn list(
    queues: &Queues,
    queue: &str,
    after: u64,
    limit: usize,
    bytes_max: usize,
) -> QueuePage {
    block_on(queues.list(ListQueue {
        queue: name(queue),
        after,
        limit,
        bytes_max,
    }))
    .unwrap()
}

pub(super) fn all(queues: &Queues, queue: &str) -> QueuePage {
    list(queues, queue, 0, 10_000, usize::MAX)
}

pub(super) fn depths(queues: &Queues, names: &[&str]) -> Vec<u64> {
    let names = names.iter().map(|queue| name(queue)).collect();
    block_on(queues.depths(names)).unwrap()
}

pub(super) fn due(
    queues: &Queues,
    until: i64,
    after: Option<DuePosition>,
    limit: usize,
    bytes_max: usize,
) -> DuePage {
    block_on(queues.due(ListDue {
        until: Timestamp::from_millis(until),
        after,
        limit,
        bytes_max,
    }))
    .unwrap()
}

pub(super) fn due_numbers(page: &DuePage) -> Vec<u64> {
    let messages = page.messages.iter();
    messages.map(|(_, message)| message.sequence).collect()
}

pub(super) fn outcomes_of(queues: &Queues, lane: u8) -> Vec<Outcome> {
    block_on(queues.outcomes(ListOutcomes {
        lane: Lane(lane),
        after: 0,
        limit: 10_000,
        bytes_max: usize::MAX,
        queue: None,
    }))
    .unwrap()
}
