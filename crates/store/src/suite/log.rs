//! Checks of the event log.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::{Clock, PartitionId, StreamId, Timestamp};
use smallvec::smallvec;

use super::{Harness, block_on, setup};
use crate::StoreError;
use crate::log::{
    Appender, AtBytesMax, Batch, BatchBuilder, EventLog, ReadRequest, Records, Retention, TailWatch,
};

const P0: PartitionId = PartitionId(0);
const P1: PartitionId = PartitionId(1);

/// Numbering, reading back, bounds.
pub fn records_are_numbered_from_zero_in_each_partition(harness: &dyn Harness) {
    let subject = harness.create(setup(3));
    let log = subject.store().log;
    for partition in log.partitioning().partitions() {
        let bounds = log.bounds(StreamId::BUILT_IN, partition);
        assert_eq!(
            (bounds.first, bounds.next, bounds.last_enqueued),
            (0, 0, None)
        );
    }
    append(&log, P0, &[b"a", b"b"]);
    append(&log, P1, &[b"x"]);
    append(&log, P0, &[b"c"]);

    let read = read_all(&log, StreamId::BUILT_IN, P0);
    assert_eq!(data(&read), [&b"a"[..], b"b", b"c"]);
    assert_eq!(read.next, 3);
    let numbers: Vec<_> = read.records.iter().map(|record| record.sequence).collect();
    assert_eq!(numbers, [0, 1, 2]);
    assert_eq!(data(&read_all(&log, StreamId::BUILT_IN, P1)), [&b"x"[..]]);
    let bounds = log.bounds(StreamId::BUILT_IN, P0);
    assert_eq!((bounds.first, bounds.next), (0, 3));
    assert_eq!(
        bounds.last_enqueued,
        read.records.last().map(|record| record.enqueued)
    );
    let untouched = log.bounds(StreamId::BUILT_IN, PartitionId(2));
    assert_eq!((untouched.first, untouched.next), (0, 0));
}

/// From nothing to a device's largest message.
pub fn records_of_any_size_are_kept_as_they_are(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let log = subject.store().log;
    let sizes = [0usize, 1, 7, 4_095, 4_096, 4_097, 65_537, 300_000, 0, 3];
    let records: Vec<Vec<u8>> = (0u8..)
        .zip(sizes)
        .map(|(seed, size)| noise(seed, size))
        .collect();
    for record in &records {
        append(&log, P0, &[record]);
    }
    let all: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    append(&log, P0, &all);
    let read = read_all(&log, StreamId::BUILT_IN, P0);
    let expected: Vec<&[u8]> = all.iter().chain(&all).copied().collect();
    assert_eq!(data(&read), expected);
}

/// The order of one appender, with everything in flight at once.
pub fn batches_complete_in_the_order_of_their_submission(harness: &dyn Harness) {
    let subject = harness.create(setup(2));
    let log = subject.store().log;
    let mut appender = Appender::new(Arc::clone(&log));
    for number in 1..=200u64 {
        let partition = if number % 2 == 0 { P0 } else { P1 };
        let batch = batch(partition, &[&number.to_be_bytes()]);
        assert_eq!(appender.submit(batch).unwrap(), number);
    }
    let mut last = 0;
    while last < 200 {
        let durable = block_on(poll_fn(|cx| appender.poll_durable(cx))).unwrap();
        assert!(durable > last, "{durable} after {last}");
        // What is reported is there to be read.
        let readable =
            log.bounds(StreamId::BUILT_IN, P0).next + log.bounds(StreamId::BUILT_IN, P1).next;
        assert!(readable >= durable);
        last = durable;
    }
    assert_eq!((appender.submitted(), appender.durable()), (200, 200));
    assert!(pending(&mut appender));
    for (partition, first) in [(P0, 2u64), (P1, 1)] {
        let read = read_all(&log, StreamId::BUILT_IN, partition);
        let expected: Vec<_> = (first..=200)
            .step_by(2)
            .map(|number| number.to_be_bytes().to_vec())
            .collect();
        assert_eq!(data(&read), expected);
    }
}

/// Several threads append at once; each one's order holds and nothing is lost or doubled.
pub fn many_appenders_share_the_log(harness: &dyn Harness) {
    const THREADS: u8 = 8;
    const BATCHES: u64 = 100;
    let subject = harness.create(setup(2));
    let log = subject.store().log;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let log = Arc::clone(&log);
            scope.spawn(move || {
                let mut appender = Appender::new(log);
                for number in 1..=BATCHES {
                    let mut record = vec![thread];
                    record.extend_from_slice(&number.to_be_bytes());
                    let batch = batch(P1, &[&record]);
                    appender.submit(batch).unwrap();
                    // A window of ten.
                    while appender.submitted() - appender.durable() >= 10 {
                        block_on(poll_fn(|cx| appender.poll_durable(cx))).unwrap();
                    }
                }
                wait(&mut appender).unwrap();
            });
        }
    });
    let read = read_all(&log, StreamId::BUILT_IN, P1);
    assert_eq!(read.records.len() as u64, u64::from(THREADS) * BATCHES);
    let mut last = [0u64; THREADS as usize];
    let mut time = Timestamp::NEVER;
    for (expected, record) in (0u64..).zip(&read.records) {
        assert_eq!(record.sequence, expected);
        assert!(record.enqueued >= time);
        time = record.enqueued;
        let number = u64::from_be_bytes(record.data[1..].try_into().unwrap());
        let thread = usize::from(record.data[0]);
        assert_eq!(number, last[thread] + 1);
        last[thread] = number;
    }
    let figures = log.figures();
    assert_eq!(figures.records, u64::from(THREADS) * BATCHES);
    assert!(figures.groups >= 1 && figures.groups <= u64::from(THREADS) * BATCHES);
    assert_eq!(figures.batches_waiting, 0);
}

/// One payload in two streams is numbered in each of them.
pub fn one_batch_serves_several_streams(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let log = subject.store().log;
    let other = StreamId(7);
    append(&log, P0, &[b"built-in only"]);
    let mut appender = Appender::new(Arc::clone(&log));
    let both = Batch {
        streams: smallvec![StreamId::BUILT_IN, other],
        ..batch(P0, &[b"both 1", b"both 2"])
    };
    appender.submit(both).unwrap();
    let one = Batch {
        streams: smallvec![other],
        ..batch(P0, &[b"other only"])
    };
    appender.submit(one).unwrap();
    wait(&mut appender).unwrap();

    let built_in = read_all(&log, StreamId::BUILT_IN, P0);
    assert_eq!(
        data(&built_in),
        [&b"built-in only"[..], b"both 1", b"both 2"]
    );
    let read = read_all(&log, other, P0);
    assert_eq!(data(&read), [&b"both 1"[..], b"both 2", b"other only"]);
    assert_eq!(read.records[0].sequence, 0);
    assert_eq!(built_in.records[1].enqueued, read.records[0].enqueued);
    assert_eq!(log.bounds(other, P0).next, 3);
    assert_eq!(log.bounds(StreamId(8), P0).next, 0);
}

/// Bytes and counts, and the one record that always comes.
pub fn reads_stop_at_their_bounds(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let log = subject.store().log;
    for size in [10, 20, 30, 40] {
        append(&log, P0, &[&vec![1; size]]);
    }
    append(&log, P0, &[&[2; 50], &[2; 60]]);
    let check = |from, bytes_max, records_max, expected: &[usize]| {
        let read = read(&log, from, bytes_max, records_max);
        let sizes: Vec<_> = read
            .records
            .iter()
            .map(|record| record.data.len())
            .collect();
        let case = format!("from {from}, {bytes_max} bytes, {records_max} records");
        assert_eq!(sizes, expected, "{case}");
        assert_eq!(read.next, from + expected.len() as u64, "{case}");
    };
    let all = usize::MAX;
    check(0, all, all, &[10, 20, 30, 40, 50, 60]);
    check(0, all, 1, &[10]);
    check(0, all, 4, &[10, 20, 30, 40]);
    check(2, all, 2, &[30, 40]);
    check(0, 60, all, &[10, 20, 30]);
    check(0, 59, all, &[10, 20]);
    check(0, 0, all, &[10]);
    check(3, 39, all, &[40]);
    check(4, 109, all, &[50]);
    check(4, 110, all, &[50, 60]);
    check(5, 1, 1, &[60]);
}

/// At the end, beyond it, and where there is nothing at all.
pub fn reads_outside_of_what_is_kept(harness: &dyn Harness) {
    let subject = harness.create(setup(2));
    let log = subject.store().log;
    append(&log, P0, &[b"a", b"b"]);
    let end = read(&log, 2, usize::MAX, 10);
    assert_eq!((end.records.len(), end.next), (0, 2));
    assert!(read(&log, 3, usize::MAX, 10).records.is_empty());
    assert!(read(&log, u64::MAX, usize::MAX, 10).records.is_empty());
    assert!(read_all(&log, StreamId::BUILT_IN, P1).records.is_empty());
    assert!(read_all(&log, StreamId(9), P0).records.is_empty());
    assert!(log.read_recent(&request(2, usize::MAX, 10)).is_none());
}

/// The memory of recent groups says what the log says, or nothing.
pub fn recent_reads_agree_with_reads(harness: &dyn Harness) {
    let subject = harness.create(setup(1));
    let log = subject.store().log;
    for number in 0..50u8 {
        append(&log, P0, &[&noise(number, usize::from(number) * 10), b"z"]);
    }
    for from in 0..100 {
        for (bytes_max, records_max) in [(usize::MAX, 1_000), (300, 1_000), (usize::MAX, 3)] {
            let request = request(from, bytes_max, records_max);
            let Some(recent) = log.read_recent(&request) else {
                continue;
            };
            let whole = block_on(log.read(request)).unwrap();
            let count = recent.records.len();
            assert!(count >= 1 && count <= whole.records.len());
            assert_eq!(recent.records, whole.records[..count]);
            assert_eq!(recent.next, from + count as u64);
        }
    }
}

/// The first record later than a time.
pub fn times_are_found(harness: &dyn Harness) {
    let setup = setup(1);
    let clock = Arc::clone(&setup.clock);
    let subject = harness.create(setup);
    let log = subject.store().log;
    let seek = |after| block_on(log.seek_time(StreamId::BUILT_IN, P0, after)).unwrap();
    let begin = clock.now();
    assert_eq!(seek(begin), 0, "an empty log");
    for _ in 0..20 {
        append(&log, P0, &[b"one", b"two"]);
        clock.advance(Duration::from_secs(1));
    }
    let read = read_all(&log, StreamId::BUILT_IN, P0);
    for millis in (-1_500..22_000).step_by(250) {
        let after = Timestamp::from_millis(begin.as_millis() + millis);
        let expected = read
            .records
            .iter()
            .find(|record| record.enqueued > after)
            .map_or(40, |record| record.sequence);
        assert_eq!(seek(after), expected, "{millis} ms after the begin");
    }
    assert_eq!(seek(Timestamp::NEVER), 0);
    let after_first = read.records[0].enqueued;
    assert_eq!(seek(after_first), 2, "later, not equal");
}

/// A wall clock that is set back does not take the enqueued times with it.
pub fn store_time_never_goes_back(harness: &dyn Harness) {
    let setup = setup(1);
    let clock = Arc::clone(&setup.clock);
    let subject = harness.create(setup);
    let log = subject.store().log;
    append(&log, P0, &[b"before"]);
    clock.set_back(Duration::from_secs(60));
    append(&log, P0, &[b"after"]);
    let read = read_all(&log, StreamId::BUILT_IN, P0);
    assert!(read.records[1].enqueued >= read.records[0].enqueued);
}

/// A bell rings after a group for its partition and for no other.
pub fn watches_ring_for_their_partitions(harness: &dyn Harness) {
    let subject = harness.create(setup(2));
    let log = subject.store().log;
    let rung = |watch: &TailWatch| {
        watch
            .poll_rung(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    };
    let one = Arc::new(TailWatch::default());
    let both = Arc::new(TailWatch::default());
    log.watch(StreamId::BUILT_IN, P0, &one);
    log.watch(StreamId::BUILT_IN, P0, &both);
    log.watch(StreamId::BUILT_IN, P1, &both);
    assert!(!rung(&one) && !rung(&both));

    append(&log, P0, &[b"a"]);
    block_on(poll_fn(|cx| one.poll_rung(cx)));
    block_on(poll_fn(|cx| both.poll_rung(cx)));
    assert_eq!(log.bounds(StreamId::BUILT_IN, P0).next, 1);
    assert!(!rung(&one) && !rung(&both), "once per group");

    append(&log, P1, &[b"b"]);
    block_on(poll_fn(|cx| both.poll_rung(cx)));
    assert!(!rung(&one));
    drop(one);
    append(&log, P0, &[b"c"]);
    block_on(poll_fn(|cx| both.poll_rung(cx)));
}

/// Closing commits what was handed in before and refuses what comes after.
pub fn closing_keeps_what_was_submitted(harness: &dyn Harness) {
    let mut subject = harness.create(setup(1));
    let log = subject.store().log;
    let mut appender = Appender::new(Arc::clone(&log));
    for number in 0..50u8 {
        appender.submit(batch(P0, &[&[number]])).unwrap();
    }
    block_on(log.close());
    wait(&mut appender).unwrap();
    assert!(matches!(
        appender.submit(batch(P0, &[b"late"])),
        Err(StoreError::Closed)
    ));
    drop((appender, log));
    if subject.reopen() {
        let log = subject.store().log;
        assert_eq!(log.bounds(StreamId::BUILT_IN, P0).next, 50);
    }
}

/// Records, numbers, times and partitions survive closing.
pub fn a_reopened_log_goes_on_where_it_was(harness: &dyn Harness) {
    let setup = setup(3);
    let clock = Arc::clone(&setup.clock);
    let mut subject = harness.create(setup);
    let other = StreamId(3);
    let created = subject.store().log.created();
    let mut expected = Vec::new();
    let mut last_enqueued = None;
    for round in 0..4u8 {
        let log = subject.store().log;
        assert_eq!(log.partitioning().count(), 3);
        assert_eq!(log.created(), created);
        assert_eq!(data(&read_all(&log, StreamId::BUILT_IN, P1)), expected);
        let bounds = log.bounds(StreamId::BUILT_IN, P1);
        assert_eq!(bounds.last_enqueued, last_enqueued);
        for number in 0..10 {
            let record = noise(round, 100 * number);
            append(&log, P1, &[&record]);
            expected.push(record);
        }
        let mut appender = Appender::new(Arc::clone(&log));
        let elsewhere = Batch {
            streams: smallvec![other],
            ..batch(P0, &[b"elsewhere"])
        };
        appender.submit(elsewhere).unwrap();
        wait(&mut appender).unwrap();
        assert_eq!(log.bounds(other, P0).next, u64::from(round) + 1);
        let read = read_all(&log, StreamId::BUILT_IN, P1);
        assert!(
            read.records
                .is_sorted_by_key(|record| (record.enqueued, record.sequence))
        );
        last_enqueued = log.bounds(StreamId::BUILT_IN, P1).last_enqueued;
        drop((appender, log));
        clock.set_back(Duration::from_secs(5));
        if !subject.reopen() {
            return;
        }
    }
}

/// What retention let go is not read, and reading begins with the oldest that is kept.
pub fn retention_moves_the_first_record(harness: &dyn Harness) {
    let setup = setup(1);
    let clock = Arc::clone(&setup.clock);
    let mut subject = harness.create(setup);
    let log = subject.store().log;
    log.set_retention(Retention {
        age_min: Duration::from_secs(60),
        bytes_max: None,
        at_bytes_max: AtBytesMax::HoldMessages,
    });
    // More than any engine keeps in one piece in its tests.
    for number in 0..40u8 {
        append(&log, P0, &[&noise(number, 100_000)]);
    }
    drop(log);
    if !subject.housekeep() {
        return;
    }
    let bounds = |subject: &dyn super::Subject| subject.store().log.bounds(StreamId::BUILT_IN, P0);
    assert_eq!(bounds(&*subject).first, 0, "nothing is old enough");

    clock.advance(Duration::from_secs(24 * 60 * 60));
    append(&subject.store().log, P0, &[b"young"]);
    assert!(subject.housekeep());
    let kept = bounds(&*subject);
    assert!(
        kept.first > 0 && kept.first <= 40 && kept.next == 41,
        "{kept:?}"
    );

    let log = subject.store().log;
    let read = read(&log, 0, usize::MAX, usize::MAX);
    assert_eq!(read.records[0].sequence, kept.first);
    assert_eq!(read.next, 41);
    assert_eq!(read.records.last().unwrap().data, b"young"[..]);
    let first = block_on(log.seek_time(StreamId::BUILT_IN, P0, Timestamp::NEVER)).unwrap();
    assert_eq!(first, kept.first);
}

pub(super) fn batch(partition: PartitionId, records: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::new(partition);
    for record in records {
        builder.push(|out| out.extend_from_slice(record));
    }
    builder.take().unwrap()
}

/// Appends to the built-in stream and waits until that is durable.
fn append(log: &Arc<dyn EventLog>, partition: PartitionId, records: &[&[u8]]) {
    let mut appender = Appender::new(Arc::clone(log));
    appender.submit(batch(partition, records)).unwrap();
    wait(&mut appender).unwrap();
}

/// Waits until everything submitted is durable.
pub(super) fn wait(appender: &mut Appender) -> Result<(), StoreError> {
    while appender.durable() < appender.submitted() {
        block_on(poll_fn(|cx| appender.poll_durable(cx)))?;
    }
    Ok(())
}

fn pending(appender: &mut Appender) -> bool {
    matches!(
        appender.poll_durable(&mut Context::from_waker(Waker::noop())),
        Poll::Pending
    )
}

fn request(from: u64, bytes_max: usize, records_max: usize) -> ReadRequest {
    ReadRequest {
        stream: StreamId::BUILT_IN,
        partition: P0,
        from,
        bytes_max,
        records_max,
    }
}

/// Reads partition 0 of the built-in stream.
fn read(log: &Arc<dyn EventLog>, from: u64, bytes_max: usize, records_max: usize) -> Records {
    block_on(log.read(request(from, bytes_max, records_max))).unwrap()
}

/// Everything that a partition holds; an engine may give it in several parts.
pub(super) fn read_all(
    log: &Arc<dyn EventLog>,
    stream: StreamId,
    partition: PartitionId,
) -> Records {
    let mut all = Records::default();
    loop {
        let part = block_on(log.read(ReadRequest {
            stream,
            partition,
            from: all.next,
            bytes_max: usize::MAX,
            records_max: usize::MAX,
        }))
        .unwrap();
        if part.records.is_empty() {
            return all;
        }
        all.next = part.next;
        all.records.extend(part.records);
    }
}

fn data(records: &Records) -> Vec<Bytes> {
    records
        .records
        .iter()
        .map(|record| record.data.clone())
        .collect()
}

/// Bytes that neither compress nor repeat, so that a shift of one shows.
pub(super) fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(seed) << 32 ^ length as u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}
