//! Checks of the order in which messages expire.

use fieldpost_model::Timestamp;

use super::queues::{
    Queues, apply, apply_one, drop_whole, due, due_numbers, enqueue, enqueued, name, settle,
    waiting,
};
use super::{Harness, block_on, setup};
use crate::queues::DuePosition;

/// Of all queues, ties in the order of numbers, whatever time it is.
pub fn messages_fall_due_in_the_order_of_expiry(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let never = Timestamp::NEVER.as_millis();
    let expiries = [
        ("b", 70_000),
        ("a", 5),
        ("a", -1),
        ("c", 5),
        ("a", i64::MAX),
        ("b", never),
        ("c", 0),
        ("a", 256),
        ("b", 5),
        ("c", 1_800_000_000_000),
        ("c", i64::MIN),
    ];
    let mut expected = Vec::new();
    for (queue, expires) in expiries {
        let sequence = enqueued(apply_one(&queues, enqueue(queue, b"text", expires)));
        expected.push((name(queue), waiting(sequence, b"text", expires)));
    }
    expected.sort_by_key(|(_, message)| (message.expires, message.sequence));
    let check = |queues: &Queues| {
        for (_, message) in &expected {
            let until = message.expires.as_millis();
            let page = due(queues, until, None, 100, usize::MAX);
            let count = expected
                .iter()
                .filter(|(_, other)| other.expires <= message.expires)
                .count();
            assert_eq!(page.messages, expected[..count], "until {until}");
            assert!(!page.more, "until {until}");
        }
        let page = due(queues, 4, None, 100, usize::MAX);
        assert_eq!(page.messages, expected[..4]);
    };
    check(&queues);
    drop(queues);
    subject.reopen();
    check(&subject.store().queues);
}

/// After a position, as many and as large as asked for, and whether there are more.
pub fn due_messages_are_read_in_pages(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let expiries = [("a", 3), ("b", 1), ("b", 3), ("a", 2), ("c", 3), ("a", 9)];
    let batch = expiries.map(|(queue, expires)| enqueue(queue, b"0123456789", expires));
    let sequences: Vec<_> = apply(&queues, batch.to_vec())
        .into_iter()
        .map(enqueued)
        .collect();
    let order: Vec<_> = [1, 3, 0, 2, 4, 5].map(|index| sequences[index]).to_vec();
    let position = |index: usize| {
        let sequence = order[index];
        let at = sequences.iter().position(|one| *one == sequence).unwrap();
        DuePosition {
            expires: Timestamp::from_millis(expiries[at].1),
            sequence,
        }
    };
    let check = |until, after, limit, bytes_max, expected: &[u64], more| {
        let page = due(&queues, until, after, limit, bytes_max);
        let case = format!("until {until} after {after:?}, {limit}, {bytes_max} bytes");
        assert_eq!(due_numbers(&page), expected, "{case}");
        assert_eq!(page.more, more, "{case}");
    };
    check(9, None, 100, usize::MAX, &order, false);
    check(3, None, 100, usize::MAX, &order[..5], false);
    check(3, None, 5, usize::MAX, &order[..5], false);
    check(3, None, 4, usize::MAX, &order[..4], true);
    check(0, None, 100, usize::MAX, &[], false);
    for start in 0..6 {
        let after = Some(position(start));
        let rest = &order[start + 1..];
        check(9, after, 100, usize::MAX, rest, false);
        check(9, after, 1, 1, &rest[..rest.len().min(1)], rest.len() > 1);
    }
    check(2, Some(position(3)), 100, usize::MAX, &[], false);
    check(9, None, 100, 0, &order[..1], true);
    check(9, None, 100, 20, &order[..2], true);
    check(9, None, 100, 21, &order[..3], true);
    check(2, None, 100, 20, &order[..2], false);
    check(2, None, 100, 10, &order[..1], true);
    // A position need not be that of a message.
    let between = DuePosition {
        expires: Timestamp::from_millis(3),
        sequence: 0,
    };
    check(9, Some(between), 100, usize::MAX, &order[2..], false);
    let beyond = DuePosition {
        expires: Timestamp::from_millis(2),
        sequence: u64::MAX,
    };
    check(9, Some(beyond), 100, usize::MAX, &order[2..], false);

    // Positions outlive their messages.
    let after = Some(position(1));
    apply_one(&queues, settle("a", order[1], Vec::new()));
    check(9, after, 2, usize::MAX, &order[2..4], true);
}

/// The soonest of all, or of those after a position.
pub fn the_next_expiry_follows_what_is_there(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let queues = subject.store().queues;
    let check = |queues: &Queues, after, expected: Option<i64>| {
        let found = block_on(queues.next_due(after)).unwrap();
        assert_eq!(found, expected.map(Timestamp::from_millis), "{after:?}");
    };
    check(&queues, None, None);
    let put = |queue: &str, expires| {
        let sequence = enqueued(apply_one(&queues, enqueue(queue, b"", expires)));
        DuePosition {
            expires: Timestamp::from_millis(expires),
            sequence,
        }
    };
    let first = put("a", 50);
    check(&queues, None, Some(50));
    check(&queues, Some(first), None);
    let second = put("b", 70);
    check(&queues, None, Some(50));
    check(&queues, Some(first), Some(70));
    let sooner = put("a", 20);
    check(&queues, None, Some(20));
    check(&queues, Some(sooner), Some(50));
    let together = put("c", 50);
    check(&queues, Some(first), Some(50));
    check(&queues, Some(together), Some(70));
    check(&queues, Some(second), None);
    apply_one(&queues, settle("a", sooner.sequence, Vec::new()));
    check(&queues, None, Some(50));
    apply_one(&queues, settle("c", together.sequence, Vec::new()));
    check(&queues, Some(first), Some(70));
    assert_eq!(drop_whole(&queues, "a"), 1);
    check(&queues, None, Some(70));
    drop(queues);
    subject.reopen();
    let queues = subject.store().queues;
    check(&queues, None, Some(70));
    apply_one(&queues, settle("b", second.sequence, Vec::new()));
    check(&queues, None, None);
}
