//! Many connections at once, on real files and threads.

use std::sync::Barrier;
use std::thread;

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
                        let done = std::future::poll_fn(|cx| {
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
                        block_on(std::future::poll_fn(|cx| watch.poll_rung(cx)));
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
    let verdict = super::super::verify::verify(&files, LOG_ID).unwrap();
    assert_eq!((verdict.damage, verdict.torn), (vec![], None));
    assert_eq!(verdict.records, SENDERS * BATCHES);
}
