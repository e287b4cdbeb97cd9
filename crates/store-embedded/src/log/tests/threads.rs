//! Many connections at once, on real files and threads.

use std::future::poll_fn;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fieldpost_model::Clock;

use super::*;
use crate::files::DirectoryFiles;
use crate::log::EmbeddedLog;

#[test]
fn many_appenders_and_readers_agree() {
    const SENDERS: u64 = 12;
    const BATCHES: u64 = 150;
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::at(START_MS));
    let mut settings = small();
    settings.segment_bytes_max = 512 << 10;
    let (log, _) = EmbeddedLog::open(
        Arc::new(DirectoryFiles::open(directory.path()).unwrap()),
        identity(true),
        &settings,
        clock,
        Arc::new(StoreHealth::new()),
        None,
    )
    .unwrap();
    let start = Barrier::new(SENDERS as usize + 1);
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (log, start) = (&log, &start);
            scope.spawn(move || {
                let mut appender = Appender::new(Arc::clone(log) as _);
                start.wait();
                for number in 0..BATCHES {
                    let mut data = body(number, (sender * 37 % 600) as usize);
                    data.splice(0..0, (sender << 32 | number).to_le_bytes());
                    appender
                        .submit(batch((sender % 3) as u16, &[&data]))
                        .unwrap();
                    // Some wait for each batch, some keep a few on the way.
                    if number % (1 + sender % 4) == 0 {
                        let submitted = appender.submitted();
                        let done = poll_fn(|cx| {
                            loop {
                                match appender.poll_durable(cx) {
                                    Poll::Ready(Ok(number)) if number < submitted => {}
                                    other => return other,
                                }
                            }
                        });
                        assert_eq!(block_on(done).unwrap(), submitted);
                    }
                }
            });
        }
        start.wait();
        // A reader that follows each partition while it is written.
        for partition in 0..3u16 {
            let log = &log;
            scope.spawn(move || {
                let watch = Arc::new(fieldpost_store::log::TailWatch::default());
                log.watch(StreamId(0), PartitionId(partition), &watch);
                let mut next = 0;
                let mut last = std::collections::HashMap::new();
                while next < SENDERS / 3 * BATCHES {
                    let asked = request(0, partition, next, 4000);
                    let records = block_on(log.read(asked)).unwrap();
                    for record in &records.records {
                        assert_eq!(record.sequence, next);
                        next += 1;
                        let id = u64::from_le_bytes(record.data[..8].try_into().unwrap());
                        let before = last.insert(id >> 32, id & 0xffff_ffff);
                        assert_eq!(before.map_or(0, |before| before + 1), id & 0xffff_ffff);
                    }
                    if records.records.is_empty() {
                        block_on(poll_fn(|cx| watch.poll_rung(cx)));
                    }
                }
            });
        }
    });
    let figures = log.figures();
    assert_eq!(figures.records, SENDERS * BATCHES);
    assert!(figures.groups <= figures.records);
    assert_eq!(figures.batches_waiting, 0);
    block_on(log.close());
    let mut late = Appender::new(Arc::clone(&log) as _);
    assert!(matches!(
        late.submit(batch(0, &[b"x"])),
        Err(StoreError::Closed)
    ));
    let files = DirectoryFiles::open(directory.path()).unwrap();
    let verdict = super::super::verify::verify(&files, LOG_ID, partitioning()).unwrap();
    assert_eq!((verdict.damage, verdict.torn), (vec![], None));
    assert_eq!(verdict.records, SENDERS * BATCHES);
}

#[test]
fn everybody_who_closes_it_waits_for_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let guard: Arc<dyn Send + Sync> = Arc::new(());
    let (log, _) = EmbeddedLog::open(
        Arc::new(DirectoryFiles::open(directory.path()).unwrap()),
        identity(true),
        &small(),
        Arc::new(TestClock::at(START_MS)),
        Arc::new(StoreHealth::new()),
        Some(Arc::clone(&guard)),
    )
    .unwrap();
    let mut appender = Appender::new(Arc::clone(&log) as _);
    for number in 0..200 {
        let data = body(number, 20_000);
        appender.submit(batch(0, &[&data])).unwrap();
    }
    let _first = log.close();
    block_on(log.close());
    assert_eq!(Arc::strong_count(&guard), 1, "a thread still runs");
    assert_eq!(durable(&mut appender), Some(Ok(200)));
    block_on(log.close());
}

#[test]
fn a_reader_at_the_end_waits_for_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = EmbeddedLog::open(
        Arc::new(DirectoryFiles::open(directory.path()).unwrap()),
        identity(true),
        &small(),
        Arc::new(TestClock::at(START_MS)),
        Arc::new(StoreHealth::new()),
        None,
    )
    .unwrap();
    for from in [0, 7] {
        let mut answer = log.read(request(0, 0, from, 100));
        let polled = answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(records)) = polled else {
            panic!("not at once from {from}: {polled:?}");
        };
        assert_eq!((records.records.len(), records.next), (0, from));
    }
    block_on(log.close());
    let closed = block_on(log.read(request(0, 0, 0, 100)));
    assert!(matches!(closed, Err(StoreError::Closed)));
}

/// A clock that panics when the committer asks for the time.
struct Panics(AtomicBool);

impl Clock for Panics {
    fn now(&self) -> Timestamp {
        let asked_by = thread::current();
        let panics = self.0.load(Ordering::Relaxed) && asked_by.name() == Some("log-commit");
        assert!(!panics, "as the test wants it");
        Timestamp::from_millis(START_MS)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn nobody_waits_for_a_committer_that_panicked() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Panics(false.into()));
    let (log, _) = EmbeddedLog::open(
        Arc::new(DirectoryFiles::open(directory.path()).unwrap()),
        identity(true),
        &small(),
        Arc::clone(&clock) as _,
        Arc::new(StoreHealth::new()),
        None,
    )
    .unwrap();
    let answer = |appender: &mut Appender| block_on(poll_fn(|cx| appender.poll_durable(cx)));
    let mut answered = Appender::new(Arc::clone(&log) as _);
    answered.submit(batch(0, &[b"before"])).unwrap();
    assert_eq!(answer(&mut answered).unwrap(), 1);
    clock.0.store(true, Ordering::Relaxed);
    // Some in the group that is being made, and some left for the next ones.
    let big = batch(1, &[&body(1, 5 << 20)]);
    let mut appenders = Vec::new();
    for _ in 0..6 {
        let mut appender = Appender::new(Arc::clone(&log) as _);
        if appender.submit(big.clone()).is_ok() {
            appenders.push(appender);
        }
    }
    assert!(!appenders.is_empty());
    for appender in &mut appenders {
        assert!(matches!(answer(appender), Err(StoreError::ReadOnly { .. })));
    }
    assert_eq!(durable(&mut answered), None);
    block_on(log.close());
}
