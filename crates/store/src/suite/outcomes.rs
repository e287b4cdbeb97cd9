//! Checks of the lanes, in which the device queues keep outcome records.

use bytes::Bytes;

use super::log::noise;
use super::queues::{Queues, apply, apply_one, enqueue, enqueued, name, outcomes_of, settle};
use super::{Harness, block_on, setup};
use crate::StoreError;
use crate::queues::{
    ITEM_BYTES_MAX, Lane, LaneFigures, ListOutcomes, Operation, OperationResult, Outcome,
    OutcomeNumber, QUEUE_NAME_BYTES_MAX,
};

/// In the order given, into the lanes named; none when the message is gone.
pub fn settling_writes_outcomes(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let batch = vec![enqueue("a", b"first", 1), enqueue("a", b"second", 2)];
    let sequences: Vec<_> = apply(&queues, batch).into_iter().map(enqueued).collect();
    let outcomes = |records: &[(u8, &'static str)]| {
        let records = records.iter();
        records
            .map(|(lane, record)| (Lane(*lane), Bytes::from_static(record.as_bytes())))
            .collect::<Vec<_>>()
    };
    let both = outcomes(&[(1, "one"), (3, "other"), (1, "two")]);
    let settled = apply_one(&queues, settle("a", sequences[0], both.clone()));
    assert_eq!(settled, OperationResult::Done);
    let first = [
        outcome(1, "a", sequences[0], b"one"),
        outcome(2, "a", sequences[0], b"two"),
    ];
    assert_eq!(outcomes_of(&queues, 1), first);
    let other = [outcome(1, "a", sequences[0], b"other")];
    assert_eq!(outcomes_of(&queues, 3), other);
    assert_eq!(outcomes_of(&queues, 2), []);

    let gone = [("a", sequences[0]), ("b", sequences[1]), ("a", u64::MAX)];
    for (queue, sequence) in gone {
        let settled = apply_one(&queues, settle(queue, sequence, both.clone()));
        assert_eq!(settled, OperationResult::Gone);
    }
    assert_eq!(outcomes_of(&queues, 1), first);
    assert_eq!(figures(&queues, 3), (1, 1, 5));

    // Twice in one batch is once.
    let again = settle("a", sequences[1], outcomes(&[(3, "again")]));
    let results = apply(&queues, vec![again.clone(), again]);
    assert_eq!(results, [OperationResult::Done, OperationResult::Gone]);
    assert_eq!(figures(&queues, 3), (2, 2, 10));
}

/// Each lane for itself, with or without a message.
pub fn lanes_number_their_records_from_one(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let lanes = [0, 1, 2, 127, 128, 255];
    for lane in lanes {
        assert_eq!(queues.lane(Lane(lane)), LaneFigures::default());
        assert_eq!(outcomes_of(&queues, lane), []);
    }
    let mut expected = Vec::new();
    for round in 0..4u8 {
        // A queue need not be there, nor a message of that number.
        let text = noise(round, 300 * usize::from(round));
        let batch = lanes.map(|lane| record(lane, "never seen", u64::from(lane), &text));
        for result in apply(&queues, batch.to_vec()) {
            assert_eq!(result, OperationResult::Done);
        }
        expected.push((u64::from(round) + 1, text));
    }
    for lane in lanes {
        let expected: Vec<_> = expected
            .iter()
            .map(|(number, text)| outcome(*number, "never seen", u64::from(lane), text))
            .collect();
        assert_eq!(outcomes_of(&queues, lane), expected, "lane {lane}");
        assert_eq!(figures(&queues, lane), (4, 4, 1_800), "lane {lane}");
    }
    assert_eq!(queues.lane(Lane(3)), LaneFigures::default());
    let largest = noise(9, ITEM_BYTES_MAX);
    apply_one(&queues, record(3, "a", u64::MAX, &largest));
    let expected = [outcome(1, "a", u64::MAX, &largest)];
    assert_eq!(outcomes_of(&queues, 3), expected);
}

/// Up to a number; what comes later has later numbers.
pub fn lanes_are_forgotten_from_the_front(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let mut queues = subject.store().queues;
    let forget = |queues: &Queues, lane, through| {
        let lane = Lane(lane);
        let result = apply_one(queues, Operation::Forget { lane, through });
        assert_eq!(result, OperationResult::Done);
    };
    let write = |queues: &Queues, lane, count: u64| {
        let batch = (0..count).map(|sequence| record(lane, "a", sequence, b"ten bytes!"));
        apply(queues, batch.collect());
    };
    forget(&queues, 1, u64::MAX);
    assert_eq!(queues.lane(Lane(1)), LaneFigures::default());
    write(&queues, 1, 5);
    write(&queues, 2, 5);
    let check = |queues: &Queues, lane, expected: &[OutcomeNumber], last: OutcomeNumber| {
        assert_eq!(numbers(queues, lane), expected);
        let count = expected.len() as u64;
        assert_eq!(figures(queues, lane), (last, count, 10 * count));
    };
    forget(&queues, 1, 0);
    check(&queues, 1, &[1, 2, 3, 4, 5], 5);
    forget(&queues, 1, 2);
    check(&queues, 1, &[3, 4, 5], 5);
    forget(&queues, 1, 2);
    forget(&queues, 1, 1);
    check(&queues, 1, &[3, 4, 5], 5);
    check(&queues, 2, &[1, 2, 3, 4, 5], 5);
    forget(&queues, 1, u64::MAX);
    check(&queues, 1, &[], 5);
    drop(queues);
    subject.reopen();
    queues = subject.store().queues;
    check(&queues, 1, &[], 5);

    // Nothing that comes later was meant.
    write(&queues, 1, 3);
    check(&queues, 1, &[6, 7, 8], 8);
    forget(&queues, 1, 8);
    check(&queues, 1, &[], 8);

    // Of a batch, those before it are.
    let through = |through| Operation::Forget {
        lane: Lane(1),
        through,
    };
    let one = || record(1, "a", 1, b"ten bytes!");
    apply(
        &queues,
        vec![one(), one(), through(9), one(), through(100), one(), one()],
    );
    check(&queues, 1, &[12, 13], 13);
    drop(queues);
    subject.reopen();
    check(&subject.store().queues, 1, &[12, 13], 13);
}

/// Anywhere in the lane.
pub fn single_records_are_removed(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let mut queues = subject.store().queues;
    let remove = |lane, number| Operation::Remove {
        lane: Lane(lane),
        number,
    };
    let gone = |queues: &Queues, lane, number| {
        let result = apply_one(queues, remove(lane, number));
        assert_eq!(result, OperationResult::Gone, "{lane}/{number}");
    };
    gone(&queues, 1, 1);
    // Those of one batch, and those of several.
    apply(&queues, (1..=6).map(|number| sized(1, number)).collect());
    for number in 7..=9 {
        apply_one(&queues, sized(1, number));
    }
    apply_one(&queues, sized(2, 1));
    let mut expected: Vec<u64> = (1..=9).collect();
    let check = |queues: &Queues, expected: &[u64], last| {
        assert_eq!(numbers(queues, 1), expected);
        let bytes = expected.iter().sum();
        assert_eq!(figures(queues, 1), (last, expected.len() as u64, bytes));
    };
    for number in [3, 1, 6, 8, 9] {
        let result = apply_one(&queues, remove(1, number));
        assert_eq!(result, OperationResult::Done, "{number}");
        expected.retain(|kept| *kept != number);
        check(&queues, &expected, 9);
        gone(&queues, 1, number);
        drop(queues);
        subject.reopen();
        queues = subject.store().queues;
        check(&queues, &expected, 9);
    }
    gone(&queues, 1, 0);
    gone(&queues, 1, 10);
    gone(&queues, 1, u64::MAX);
    assert_eq!(figures(&queues, 2), (1, 1, 1));

    // The number of the last one is not used again.
    let results = apply(
        &queues,
        vec![sized(1, 10), remove(1, 10), remove(1, 10), sized(1, 11)],
    );
    let done = OperationResult::Done;
    assert_eq!(results[1..3], [done, OperationResult::Gone]);
    check(&queues, &[2, 4, 5, 7, 11], 11);
    // Forgetting passes over the holes, and what is forgotten cannot be removed.
    let forget = Operation::Forget {
        lane: Lane(1),
        through: 4,
    };
    apply_one(&queues, forget);
    check(&queues, &[5, 7, 11], 11);
    gone(&queues, 1, 4);
    check(&queues, &[5, 7, 11], 11);
    for number in [5, 7, 11] {
        apply_one(&queues, remove(1, number));
    }
    check(&queues, &[], 11);
    apply_one(&queues, sized(1, 12));
    check(&queues, &[12], 12);
}

/// After a number, as many and as large as asked for.
pub fn lanes_are_read_in_pages(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let sizes = [10, 10, 0, 30, 5];
    apply(&queues, sizes.map(|size| sized(1, size)).to_vec());
    let check = |after, limit, bytes_max, expected: &[OutcomeNumber]| {
        let found = read(&queues, after, limit, bytes_max, None);
        assert_eq!(
            found, expected,
            "after {after}, {limit} records, {bytes_max} bytes"
        );
    };
    check(0, 100, usize::MAX, &[1, 2, 3, 4, 5]);
    check(0, 3, usize::MAX, &[1, 2, 3]);
    check(3, 3, usize::MAX, &[4, 5]);
    check(4, 1, usize::MAX, &[5]);
    check(5, 10, usize::MAX, &[]);
    check(u64::MAX, 10, usize::MAX, &[]);
    check(0, 100, 0, &[1]);
    check(0, 100, 10, &[1]);
    check(0, 100, 11, &[1, 2]);
    check(0, 100, 21, &[1, 2, 3, 4]);
    check(0, 100, 50, &[1, 2, 3, 4]);
    check(0, 100, 51, &[1, 2, 3, 4, 5]);
    check(2, 100, 1, &[3, 4]);

    // From inside of what was forgotten or removed.
    let gone = vec![
        Operation::Forget {
            lane: Lane(1),
            through: 2,
        },
        Operation::Remove {
            lane: Lane(1),
            number: 4,
        },
    ];
    apply(&queues, gone);
    check(0, 100, usize::MAX, &[3, 5]);
    check(1, 1, usize::MAX, &[3]);
    check(3, 1, usize::MAX, &[5]);
    check(4, 1, usize::MAX, &[5]);
}

/// Among those of others, which count for no limit.
pub fn a_queue_finds_its_own_records(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    for round in 0..10 {
        let batch = vec![
            record(1, "a", round, b"ten bytes!"),
            record(1, "b", round, b"ten bytes!"),
            record(1, "aa", round, b"ten bytes!"),
        ];
        apply(&queues, batch);
    }
    let own: Vec<OutcomeNumber> = (0..10).map(|round| 3 * round + 2).collect();
    let check = |after, limit, bytes_max, expected: &[OutcomeNumber]| {
        let found = read(&queues, after, limit, bytes_max, Some("b"));
        assert_eq!(
            found, expected,
            "after {after}, {limit} records, {bytes_max} bytes"
        );
    };
    check(0, 100, usize::MAX, &own);
    check(0, 4, usize::MAX, &own[..4]);
    check(own[3], 4, usize::MAX, &own[4..8]);
    check(own[3] + 1, 100, 31, &own[4..8]);
    check(0, 100, 0, &own[..1]);
    assert_eq!(read(&queues, 0, 100, usize::MAX, Some("c")), []);
    assert_eq!(read(&queues, 0, 100, usize::MAX, Some("a")).len(), 10);
}

/// What is outside is refused with the whole batch.
pub fn records_have_bounds(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let sequence = enqueued(apply_one(&queues, enqueue("a", b"text", 1)));
    let too_large = Bytes::from(vec![0; ITEM_BYTES_MAX + 1]);
    let long = "x".repeat(QUEUE_NAME_BYTES_MAX + 1);
    let small = Bytes::from_static(b"small");
    let outcomes = vec![(Lane(1), small), (Lane(1), too_large.clone())];
    let refused = [
        settle("a", sequence, outcomes),
        // Also where nothing would be written.
        settle("a", sequence + 1, vec![(Lane(1), too_large.clone())]),
        record(1, "a", 1, &too_large),
        record(1, "", 1, b"text"),
        record(1, &long, 1, b"text"),
    ];
    for operation in refused {
        let batch = vec![record(1, "a", 1, b"beside"), operation];
        assert!(matches!(
            block_on(queues.apply(batch)),
            Err(StoreError::OutOfBounds { .. })
        ));
    }
    assert_eq!(queues.lane(Lane(1)), LaneFigures::default());
    let settled = apply_one(&queues, settle("a", sequence, Vec::new()));
    assert_eq!(settled, OperationResult::Done);
}

/// Records, numbers and figures survive closing.
pub fn reopened_lanes_are_the_same(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    for round in 1..5u64 {
        let queues = subject.store().queues;
        let sequence = enqueued(apply_one(&queues, enqueue("a", b"text", 1)));
        let outcomes = (0..20u8).map(|number| {
            let lane = Lane(number % 3);
            (lane, Bytes::from(noise(number, 17 * usize::from(number))))
        });
        let first = queues.lane(Lane(1)).last + 1;
        apply(
            &queues,
            vec![
                settle("a", sequence, outcomes.collect()),
                record(7, "b", round, b"only"),
                Operation::Remove {
                    lane: Lane(1),
                    number: first + 2,
                },
                Operation::Forget {
                    lane: Lane(0),
                    through: 5 * round,
                },
                Operation::Forget {
                    lane: Lane(7),
                    through: round,
                },
            ],
        );
        let state = |queues: &Queues| {
            [0, 1, 2, 7].map(|lane| (queues.lane(Lane(lane)), outcomes_of(queues, lane)))
        };
        let before = state(&queues);
        let last = figures(&queues, 7);
        assert_eq!(last, (round, 0, 0));
        drop(queues);
        if !subject.reopen() {
            return;
        }
        assert_eq!(state(&subject.store().queues), before);
    }
}

pub(super) fn record(lane: u8, queue: &str, sequence: u64, record: &[u8]) -> Operation {
    Operation::Record {
        lane: Lane(lane),
        queue: name(queue),
        sequence,
        record: Bytes::copy_from_slice(record),
    }
}

/// A record of so many bytes.
fn sized(lane: u8, size: u64) -> Operation {
    record(lane, "a", size, &vec![7; usize::try_from(size).unwrap()])
}

fn outcome(number: OutcomeNumber, queue: &str, sequence: u64, record: &[u8]) -> Outcome {
    Outcome {
        number,
        queue: name(queue),
        sequence,
        record: Bytes::copy_from_slice(record),
    }
}

/// The last number, records and bytes.
fn figures(queues: &Queues, lane: u8) -> (OutcomeNumber, u64, u64) {
    let LaneFigures { last, count, bytes } = queues.lane(Lane(lane));
    (last, count, bytes)
}

fn numbers(queues: &Queues, lane: u8) -> Vec<OutcomeNumber> {
    let outcomes = outcomes_of(queues, lane);
    outcomes.iter().map(|outcome| outcome.number).collect()
}

/// The numbers of records of lane 1.
fn read(
    queues: &Queues,
    after: OutcomeNumber,
    limit: usize,
    bytes_max: usize,
    queue: Option<&str>,
) -> Vec<OutcomeNumber> {
    let outcomes = block_on(queues.outcomes(ListOutcomes {
        lane: Lane(1),
        after,
        limit,
        bytes_max,
        queue: queue.map(name),
    }))
    .unwrap();
    outcomes.iter().map(|outcome| outcome.number).collect()
}
