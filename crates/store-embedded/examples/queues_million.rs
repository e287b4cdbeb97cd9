//! Device queues at size, and what a message costs: `cargo run --release -p fieldpost-store-embedded
//! --example queues_million [DIR]`.
//!
//! First a million queues with a message of 256 bytes each: putting them in, opening again, and
//! letting all of them expire while documents are written beside it. Then cycles of putting a message
//! in and settling it, with so many in flight, with and without a history record.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod figures;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::documents::{Action, Change, Collection, Condition, Documents};
use fieldpost_store::queues::{
    DeviceQueues, DuePosition, Lane, ListDue, Operation, OperationResult, QueueName,
};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::keyvalue::{KeyValueStore, verify};
use figures::{bytes_below, memory};

type Failure = Box<dyn std::error::Error>;

const QUEUES: u64 = 1_000_000;
const MESSAGE_BYTES: usize = 256;
const RECORD_BYTES: usize = 400;
const HISTORY: Lane = Lane(3);

/// Batches that callers have unanswered at a time; a hub's owners of queues do the same.
const BATCHES: usize = 4;

fn main() -> Result<(), Failure> {
    let temporary = tempfile::tempdir()?;
    let folder = env::args_os().nth(1);
    let folder = folder.as_deref().map_or(temporary.path(), Path::new);
    let part = env::args().nth(2);
    if part.as_deref().is_none_or(|part| part == "million") {
        million(&folder.join("million"))?;
    }
    if part.as_deref().is_none_or(|part| part == "cycles") {
        for (in_flight, record) in [(256, false), (256, true), (4_096, false), (4_096, true)] {
            cycles(
                &folder.join(format!("{in_flight}-{record}")),
                in_flight,
                record,
            )?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<KeyValueStore, Failure> {
    Ok(KeyValueStore::open(path, Arc::new(StoreHealth::new()))?)
}

fn close(store: KeyValueStore) {
    block_on(store.documents.close());
    block_on(store.queues.close());
}

fn million(path: &Path) -> Result<(), Failure> {
    let store = open(path)?;
    let (begin, used) = (Instant::now(), cpu());
    let mut answers = VecDeque::new();
    for first in (0..QUEUES).step_by(1_000) {
        let batch = (first..first + 1_000).map(|number| enqueue(mixed(number), number));
        answers.push_back(store.queues.apply(batch.collect()));
        if answers.len() == BATCHES
            && let Some(answer) = answers.pop_front()
        {
            block_on(answer)?;
        }
    }
    for answer in answers {
        block_on(answer)?;
    }
    report("1,000,000 queues with a message each", QUEUES, begin, used);
    println!("  {}", memory());
    let begin = Instant::now();
    close(store);
    println!("close: {:?}", begin.elapsed());
    let begin = Instant::now();
    let damage = verify(path)?;
    println!("verify: {:?} {damage:?}", begin.elapsed());

    let begin = Instant::now();
    let store = open(path)?;
    println!("open: {:?}, {}", begin.elapsed(), memory());
    let begin = Instant::now();
    let next = block_on(store.queues.next_due(None))?;
    println!("next expiry: {:?} {next:?}", begin.elapsed());
    let begin = Instant::now();
    block_on(
        store
            .queues
            .apply((0..10_000).map(|n| enqueue(mixed(n), n)).collect()),
    )?;
    println!("10,000 more after opening: {:?}", begin.elapsed());

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let beside = scope.spawn(|| write_documents(&store, &stop));
        let expired = expire(&store);
        stop.store(true, Ordering::Relaxed);
        println!(
            "  documents beside it: {}",
            beside.join().unwrap_or_default()
        );
        expired
    })?;
    println!("  {}", memory());
    let begin = Instant::now();
    let next = block_on(store.queues.next_due(None))?;
    println!("next expiry: {:?} {next:?}", begin.elapsed());
    let begin = Instant::now();
    let next = block_on(store.queues.next_due(None))?;
    println!("next expiry again: {:?} {next:?}", begin.elapsed());
    close(store);
    println!("on disk: {} MB", bytes_below(path)? / 1_000_000);
    Ok(())
}

/// As a hub does: page after page, each settled with a record.
fn expire(store: &KeyValueStore) -> Result<(), Failure> {
    let (begin, used) = (Instant::now(), cpu());
    let mut after = None;
    let mut expired = 0;
    loop {
        let page = block_on(store.queues.due(ListDue {
            until: Timestamp::from_millis(i64::MAX),
            after: after.take(),
            limit: 1_000,
            bytes_max: 1 << 20,
        }))?;
        let Some((_, last)) = page.messages.last() else {
            break;
        };
        after = Some(DuePosition {
            expires: last.expires,
            sequence: last.sequence,
        });
        expired += page.messages.len() as u64;
        let settle = page
            .messages
            .into_iter()
            .map(|(queue, message)| Operation::Settle {
                queue,
                sequence: message.sequence,
                outcomes: vec![(Lane(2), message.message)],
            });
        block_on(store.queues.apply(settle.collect()))?;
    }
    report("expiry of all, with a record each", expired, begin, used);
    Ok(())
}

/// How many documents were written, and how long that took each.
fn write_documents(store: &KeyValueStore, stop: &AtomicBool) -> String {
    let mut slowest = Duration::ZERO;
    let mut written = 0u32;
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let change = Change {
            collection: Collection(1),
            key: Bytes::from(format!("device-{}", written % 10_000)),
            condition: Condition::Any,
            action: Action::Put {
                class: 0,
                value: Bytes::from(vec![b'x'; 360]),
            },
        };
        if block_on(store.documents.apply(vec![change])).is_err() {
            return "failed".to_owned();
        }
        slowest = slowest.max(sent.elapsed());
        written += 1;
    }
    let each = begin.elapsed() / written.max(1);
    format!("{written}, {each:?} each, slowest {slowest:?}")
}

fn cycles(path: &Path, in_flight: usize, record: bool) -> Result<(), Failure> {
    const CYCLES: u64 = 500_000;
    let store = open(path)?;
    let record = record.then(|| Bytes::from(vec![b'r'; RECORD_BYTES]));
    let size = in_flight / BATCHES;
    let mut answers = VecDeque::new();
    let mut number = 0;
    let mut settled = 0;
    let mut latencies = Vec::new();
    let (begin, used) = (Instant::now(), cpu());
    while settled < CYCLES {
        // New messages in one batch with the settlements of those that are there.
        while answers.len() < BATCHES {
            let queues: Vec<_> = (0..size as u64).map(|at| mixed(number + at)).collect();
            number += size as u64;
            let operations = queues.iter().map(|queue| enqueue(*queue, number)).collect();
            answers.push_back((Instant::now(), queues, store.queues.apply(operations)));
        }
        let Some((sent, queues, answer)) = answers.pop_front() else {
            break;
        };
        let results = block_on(answer)?;
        latencies.push(sent.elapsed());
        let operations: Vec<_> = queues
            .into_iter()
            .zip(results)
            .filter_map(|(queue, result)| match result {
                OperationResult::Enqueued { sequence } => Some(Operation::Settle {
                    queue: name(queue),
                    sequence,
                    outcomes: record
                        .iter()
                        .map(|record| (HISTORY, record.clone()))
                        .collect(),
                }),
                _ => None,
            })
            .collect();
        if !operations.is_empty() {
            settled += operations.len() as u64;
            answers.push_back((Instant::now(), Vec::new(), store.queues.apply(operations)));
        }
    }
    for (_, _, answer) in answers {
        block_on(answer)?;
    }
    let what = format!("{in_flight} in flight, history {}", record.is_some());
    report(&what, settled, begin, used);
    latencies.sort_unstable();
    let at = |part: usize| latencies.get(latencies.len() * part / 100).copied();
    println!("  p50 {:?}, p99 {:?}, {}", at(50), at(99), memory());
    let begin = Instant::now();
    block_on(store.queues.next_due(None))?;
    println!("  next expiry: {:?}", begin.elapsed());
    close(store);
    println!("  on disk: {} MB", bytes_below(path)? / 1_000_000);
    Ok(())
}

/// Queues come in no order.
fn mixed(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % QUEUES
}

fn name(number: u64) -> QueueName {
    let mut name = vec![1, 0, 0];
    name.extend_from_slice(format!("device-{number:07}\0637a1b2c3d4e5f60").as_bytes());
    QueueName(name.into())
}

/// A message that expires in the order of sending, as most do.
fn enqueue(queue: u64, number: u64) -> Operation {
    Operation::Enqueue {
        queue: name(queue),
        message: Bytes::from(vec![b'm'; MESSAGE_BYTES]),
        expires: Timestamp::from_millis(1_800_000_000_000 + i64::try_from(number).unwrap_or(0)),
        depth_max: 50,
        once: None,
    }
}

fn report(what: &str, count: u64, begin: Instant, used: Duration) {
    let (took, used) = (begin.elapsed(), cpu().saturating_sub(used));
    let each = |span: Duration| span.as_secs_f64() * 1e6 / count as f64;
    println!(
        "{what}: {took:.2?}, {:.0}/s, {:.1} us of CPU each",
        count as f64 / took.as_secs_f64(),
        each(used)
    );
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
