//! Damaged blocks of tables: what is not in them is read, and what is in them is named.

use std::collections::BTreeSet;
use std::fs;

use fieldpost_store::queues::{DuePosition, ListDue, ListOutcomes};

use super::*;
use crate::keyvalue::verify;

/// Three messages, or one record, to a block of a table.
const MESSAGE_BYTES: usize = 1_200;
const RECORD_BYTES: usize = 5_000;

const QUEUES: [&str; 4] = ["a", "b", "c", "d"];
const MESSAGES: u64 = 52;
const RECORDS: u64 = 12;
const FIRST_LANE: Lane = Lane(1);

/// Begins every block of a file of the engine.
const BLOCK: &[u8] = b"LSM\x03";

#[test]
fn of_a_damaged_block_of_messages_the_rest_of_each_queue_is_read_and_expires() {
    let mut between_queues = false;
    for damaged in [1, 20, 35, 52] {
        let (_folder, path) = stored();
        let lost = break_block(&path, "messages", &message(damaged), &all_messages());
        assert!(lost.contains(&damaged) && lost.len() < 8, "{lost:?}");
        let store = open(&path).unwrap();
        let mut read = BTreeSet::new();
        let mut unread = BTreeSet::new();
        for name in QUEUES {
            let (sound, broken) = read_queue(&store, name);
            between_queues |= !broken.is_empty() && !unread.is_empty();
            read.extend(sound);
            unread.extend(broken);
        }
        assert_eq!(unread, lost, "message {damaged}");
        let sound: BTreeSet<_> = (1..=MESSAGES).filter(|n| !lost.contains(n)).collect();
        assert_eq!(read, sound, "message {damaged}");
        assert_eq!(due(&store), sound, "message {damaged}");
        let next = block_on(store.queues.next_due(None)).unwrap();
        let soonest = sound.first().map(|n| expires(*n));
        assert_eq!(next, soonest);
        let depths = block_on(store.queues.depths(QUEUES.map(queue).to_vec())).unwrap();
        assert_eq!(
            depths,
            [MESSAGES / 4; 4],
            "those that are damaged are there"
        );

        // The queue goes on.
        let name = QUEUES[usize::try_from(damaged % 4).unwrap()];
        let depth_max = MESSAGES / 4 + 1;
        assert_eq!(
            operate(&store, enqueue_at(name, MESSAGES + 1, depth_max)).unwrap(),
            OperationResult::Enqueued {
                sequence: MESSAGES + 1
            }
        );
        assert_eq!(
            operate(&store, enqueue_at(name, MESSAGES + 2, depth_max)).unwrap(),
            OperationResult::QueueFull
        );
        let (sound, broken) = read_queue(&store, name);
        assert!(sound.contains(&(MESSAGES + 1)), "{damaged}: {sound:?}");
        assert!(broken.iter().all(|n| lost.contains(n)));

        // Only what touches the damage is refused.
        let refused = operate(&store, settle(name, damaged, 1));
        let Err(StoreError::Damaged { what, .. }) = refused else {
            panic!("{refused:?}");
        };
        let key = format!("table messages, key {name}/{damaged}: ");
        assert!(what.contains(&key), "{what}");
        let settled = operate(&store, settle(name, MESSAGES + 1, 1)).unwrap();
        assert_eq!(settled, OperationResult::Done);

        let drop = Operation::Drop { queue: queue(name) };
        let dropped = OperationResult::Dropped {
            messages: MESSAGES / 4,
            more: false,
        };
        assert_eq!(operate(&store, drop).unwrap(), dropped);
        assert_eq!(read_queue(&store, name), (vec![], vec![]));
        close(&store);
    }
    assert!(between_queues, "no block had messages of two queues");
}

#[test]
fn what_is_between_two_damaged_blocks_is_read() {
    let (_folder, path) = stored();
    let mut lost = break_block(&path, "messages", &message(4), &all_messages());
    lost.extend(break_block(
        &path,
        "messages",
        &message(48),
        &all_messages(),
    ));
    let mut lost_records = BTreeSet::new();
    for number in [2, 4, 10] {
        lost_records.extend(break_block(
            &path,
            "outcomes",
            &record(number),
            &all_records(),
        ));
    }
    let store = open(&path).unwrap();
    let of_queue = (4..=MESSAGES).step_by(4);
    let (broken, sound): (Vec<_>, Vec<_>) = of_queue.partition(|n| lost.contains(n));
    assert!(
        sound.iter().any(|n| (4..48).contains(n)),
        "some are between"
    );
    assert_eq!(read_queue(&store, "a"), (sound, broken));
    let (broken, sound): (Vec<_>, Vec<_>) = (1..=RECORDS).partition(|n| lost_records.contains(n));
    assert_eq!(read_lane(&store, LANE), (sound, broken));
    close(&store);
}

#[test]
fn a_batch_that_meets_damage_is_refused_alone() {
    let (_folder, path) = stored();
    let lost = break_block(&path, "messages", &message(20), &all_messages());
    let damaged_record = break_block(&path, "outcomes", &record(5), &all_records());
    assert_eq!(damaged_record, BTreeSet::from([5]));
    let sound = (1..=MESSAGES)
        .find(|n| n % 4 == 0 && !lost.contains(n))
        .unwrap();
    let store = open(&path).unwrap();
    // They wait for one another while the first is written, and make few groups.
    let remove = Operation::Remove {
        lane: LANE,
        number: 5,
    };
    let forget = Operation::Forget {
        lane: LANE,
        through: 6,
    };
    let answers = [
        enqueue("new", 1),
        settle("a", 20, 1),
        enqueue("new", 2),
        remove,
        settle("a", sound, 1),
        Operation::Drop { queue: queue("a") },
        forget,
        enqueue("new", 3),
    ]
    .map(|operation| store.queues.apply(vec![operation]));
    let answers = answers.map(block_on);
    let is_refused = answers
        .each_ref()
        .map(|answer| matches!(answer, Err(StoreError::Damaged { .. })));
    let refused = [false, true, false, true, false, false, false, false];
    assert_eq!(is_refused, refused, "{answers:?}");
    assert!(answers.iter().filter(|answer| answer.is_ok()).count() == 6);
    assert_eq!(messages(&store, "new").unwrap().len(), 3);
    close(&store);
}

#[test]
fn of_a_damaged_block_of_the_order_of_expiry_the_rest_expires_and_queues_are_whole() {
    let (_folder, path) = stored();
    // Rows of this table are small: one block has them all, but for what comes later.
    break_block(&path, "due", b"a", &[]);
    let store = open(&path).unwrap();
    for later in 1..=3 {
        operate(&store, enqueue_at("a", MESSAGES + later, 50)).unwrap();
    }
    for name in QUEUES {
        let (_, broken) = read_queue(&store, name);
        assert_eq!(broken, [0; 0]);
    }
    let later = (MESSAGES + 1..=MESSAGES + 3).collect();
    assert_eq!(due(&store), later);
    let next = block_on(store.queues.next_due(None)).unwrap();
    assert_eq!(next, Some(expires(MESSAGES + 1)));
    close(&store);
}

#[test]
fn where_nothing_is_known_of_messages_a_queue_goes_on_behind_all_that_were() {
    let (_folder, path) = stored();
    break_block(&path, "due", b"a", &[]);
    let lost = break_block(&path, "messages", &message(20), &all_messages());
    let store = open(&path).unwrap();
    let (sound, broken) = read_queue(&store, "a");
    assert!(broken.iter().any(|n| *n >= 20), "{broken:?}");
    let of_queue = (4..=MESSAGES).step_by(4).filter(|n| !lost.contains(n));
    let missed: Vec<_> = of_queue.filter(|n| !sound.contains(n)).collect();
    assert!(
        missed.iter().all(|n| broken.last() >= Some(n)),
        "{missed:?}"
    );
    operate(&store, enqueue_at("a", MESSAGES + 1, 50)).unwrap();
    let more = block_on(store.queues.list(ListQueue {
        queue: queue("a"),
        after: MESSAGES,
        limit: 10,
        bytes_max: usize::MAX,
    }));
    match more {
        Ok(page) => assert_eq!(page.messages.len(), 1),
        Err(StoreError::Damaged { resume, .. }) => assert_eq!(resume, Some(MESSAGES + 2)),
        Err(error) => panic!("{error}"),
    }
    close(&store);
}

#[test]
fn of_a_damaged_block_of_records_the_rest_of_each_lane_is_read_and_forgotten() {
    for damaged in [1, 5, RECORDS] {
        for lane in [FIRST_LANE, LANE] {
            let (_folder, path) = stored();
            let number = if lane == LANE { damaged } else { damaged + 100 };
            let lost = break_block(&path, "outcomes", &record(number), &all_records());
            assert_eq!(lost, BTreeSet::from([number]));
            let store = open(&path).unwrap();
            for (other, base) in [(FIRST_LANE, 100), (LANE, 0)] {
                let of_lane = if other == lane { Some(damaged) } else { None };
                let (sound, broken) = read_lane(&store, other);
                assert_eq!(broken, Vec::from_iter(of_lane), "{base}");
                let expected: Vec<_> = (1..=RECORDS).filter(|n| Some(*n) != of_lane).collect();
                assert_eq!(sound, expected);

                // The lane goes on.
                let more = Operation::Record {
                    lane: other,
                    queue: queue("a"),
                    sequence: 1,
                    record: Bytes::from(record(base + RECORDS + 1)),
                };
                operate(&store, more).unwrap();
                let (sound, _) = read_lane(&store, other);
                assert_eq!(sound.last(), Some(&(RECORDS + 1)));
            }
            let remove = |number| Operation::Remove { lane, number };
            let refused = operate(&store, remove(damaged));
            assert!(
                matches!(refused, Err(StoreError::Damaged { .. })),
                "{refused:?}"
            );
            for number in (1..=RECORDS + 1).filter(|n| *n != damaged) {
                let removed = operate(&store, remove(number)).unwrap();
                assert_eq!(removed, OperationResult::Done, "{number}");
            }
            let through = RECORDS + 1;
            operate(&store, Operation::Forget { lane, through }).unwrap();
            assert_eq!(read_lane(&store, lane), (vec![], vec![]));
            assert_eq!(store.queues.lane(lane).count, 0);
            close(&store);
        }
    }
}

#[test]
fn verify_names_the_table_of_a_damaged_block() {
    let (_folder, path) = stored();
    break_block(&path, "messages", &message(20), &all_messages());
    let lines = verify(&path).unwrap();
    let [line] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(line.contains("table messages cannot be read: "), "{line}");
}

/// A closed store with messages 1 to 52 in four queues, which expire in their order, and twelve
/// records in each of two lanes, all in files of tables.
fn stored() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let store = open(&path).unwrap();
    let enqueues = (1..=MESSAGES).map(|n| {
        let name = QUEUES[usize::try_from(n % 4).unwrap()];
        enqueue_at(name, n, 50)
    });
    block_on(store.queues.apply(enqueues.collect())).unwrap();
    for n in 1..=RECORDS {
        for (lane, number) in [(LANE, n), (FIRST_LANE, n + 100)] {
            let record = Operation::Record {
                lane,
                queue: queue("a"),
                sequence: 1,
                record: Bytes::from(record(number)),
            };
            operate(&store, record).unwrap();
        }
    }
    close(&store);
    let engine = FjallEngine::open_as_it_is(&path).unwrap();
    for space in Space::ALL {
        engine.flush(space);
    }
    drop(engine);
    (folder, path)
}

fn expires(n: u64) -> Timestamp {
    Timestamp::from_millis(i64::try_from(n).unwrap() * 1_000)
}

fn enqueue_at(name: &'static str, n: u64, depth_max: u64) -> Operation {
    Operation::Enqueue {
        queue: queue(name),
        message: Bytes::from(message(n)),
        expires: expires(n),
        depth_max,
        once: None,
    }
}

fn message(n: u64) -> Vec<u8> {
    format!("<m{n:03}>").repeat(MESSAGE_BYTES / 6).into_bytes()
}

fn record(n: u64) -> Vec<u8> {
    format!("<r{n:03}>").repeat(RECORD_BYTES / 6).into_bytes()
}

type Content = (u64, Vec<u8>);

fn all_messages() -> Vec<Content> {
    (1..=MESSAGES).map(|n| (n, message(n))).collect()
}

fn all_records() -> Vec<Content> {
    let numbers = (1..=RECORDS).chain(101..=100 + RECORDS);
    numbers.map(|n| (n, record(n))).collect()
}

/// Turns over a bit in the block of a table that holds `content`, and gives the numbers of what else
/// is in the block.
fn break_block(path: &Path, table: &str, content: &[u8], all: &[Content]) -> BTreeSet<u64> {
    let folder = path.join("keyspaces");
    let space = Space::ALL.into_iter().find(|space| space.name() == table);
    // The engine's tables are numbered in the order in which they are made.
    let number = space.unwrap().number() + 1;
    for file in fs::read_dir(folder.join(number.to_string()).join("tables")).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        let Some(at) = find(&bytes, content) else {
            continue;
        };
        let before = bytes[..at].windows(4).rposition(|four| four == BLOCK);
        let from = before.expect("the format of the engine");
        let to = find(&bytes[at..], BLOCK).map_or(bytes.len(), |length| at + length);
        let lost = all
            .iter()
            .filter(|(_, content)| find(&bytes[from..to], content).is_some())
            .map(|(n, _)| *n)
            .collect();
        bytes[at + content.len() / 2] ^= 4;
        fs::write(&file, bytes).unwrap();
        return lost;
    }
    panic!("{table} has no such row");
}

fn find(bytes: &[u8], content: &[u8]) -> Option<usize> {
    bytes
        .windows(content.len())
        .position(|part| part == content)
}

/// What can be read of a queue and what cannot, as whoever goes on where it is told to meets it.
fn read_queue(store: &KeyValueStore, name: &'static str) -> (Vec<u64>, Vec<u64>) {
    let (mut sound, mut broken) = (Vec::new(), Vec::new());
    let mut after = 0;
    loop {
        let read = block_on(store.queues.list(ListQueue {
            queue: queue(name),
            after,
            limit: 5,
            bytes_max: usize::MAX,
        }));
        match read {
            Ok(page) => {
                for message in page.messages {
                    assert_eq!(message.message, self::message(message.sequence));
                    after = message.sequence;
                    sound.push(message.sequence);
                }
                if !page.more {
                    return (sound, broken);
                }
            }
            Err(StoreError::Damaged { what, resume }) => {
                assert!(what.starts_with("queues, table messages, key"), "{what}");
                let resume = resume.unwrap();
                assert!(resume > after + 1);
                broken.extend(numbers_in(&what, name));
                after = resume - 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn read_lane(store: &KeyValueStore, lane: Lane) -> (Vec<u64>, Vec<u64>) {
    let (mut sound, mut broken) = (Vec::new(), Vec::new());
    let mut after = 0;
    loop {
        let read = block_on(store.queues.outcomes(ListOutcomes {
            lane,
            after,
            limit: 5,
            bytes_max: usize::MAX,
            queue: None,
        }));
        match read {
            Ok(records) if records.is_empty() => return (sound, broken),
            Ok(records) => {
                after = records.last().unwrap().number;
                sound.extend(records.into_iter().map(|record| record.number));
            }
            Err(StoreError::Damaged { what, resume }) => {
                let resume = resume.unwrap();
                assert!(resume > after + 1);
                broken.extend(numbers_in(&what, &lane.0.to_string()));
                after = resume - 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The first and the last number that a text names, and those of the same queue between them.
fn numbers_in(what: &str, name: &str) -> Vec<u64> {
    let (_, keys) = what.split_once(", key").unwrap();
    let (keys, _) = keys.split_once(": ").unwrap();
    let prefix = format!("{name}/");
    let numbers: Vec<u64> = keys
        .trim_start_matches('s')
        .split(" to ")
        .map(|key| key.trim().strip_prefix(&prefix).unwrap().parse().unwrap())
        .collect();
    let (first, last) = (numbers[0], *numbers.last().unwrap());
    let step = if name.parse::<u8>().is_ok() { 1 } else { 4 };
    (first..=last).step_by(step).collect()
}

fn due(store: &KeyValueStore) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    let mut after = None;
    loop {
        let request = ListDue {
            until: expires(1_000),
            after,
            limit: 7,
            bytes_max: usize::MAX,
        };
        let page = block_on(store.queues.due(request)).unwrap();
        for (_, message) in page.messages {
            after = Some(DuePosition {
                expires: message.expires,
                sequence: message.sequence,
            });
            numbers.insert(message.sequence);
        }
        if !page.more {
            return numbers;
        }
    }
}
