//! Random histories of the event log, compared with a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_model::{Clock, PartitionId, StreamId, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use smallvec::smallvec;

use super::log::{batch, noise, read_all, wait};
use super::{Harness, SteppedClock, Subject, block_on, setup};
use crate::log::{Appender, Batch, ReadRequest};

const PARTITIONS: u16 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Batches that are in flight together, from as many appenders.
    Append(Vec<(u16, u8, Vec<usize>)>),
    Read {
        stream: u16,
        partition: u16,
        from: u64,
        bytes_max: usize,
        records_max: usize,
    },
    Seek {
        partition: u16,
        back_ms: i64,
    },
    Advance(u64),
    SetBack(u64),
    Reopen,
}

/// What each partition of each stream holds: bytes and times.
type Model = BTreeMap<(StreamId, PartitionId), Vec<(Vec<u8>, Timestamp)>>;

/// Appends, reads, seeks, clock changes and reopening in any order.
pub fn random_log_histories_agree_with_the_model(harness: &dyn Harness) {
    let config = Config {
        cases: harness.cases(),
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&vec(step(), 1..40), |steps| {
        let setup = setup(PARTITIONS);
        let clock = Arc::clone(&setup.clock);
        let mut subject = harness.create(setup);
        let mut model = Model::new();
        for step in steps {
            take(&step, &mut *subject, &clock, &mut model)?;
        }
        for ((stream, partition), expected) in &model {
            let read = read_all(&subject.store().log, *stream, *partition);
            let found: Vec<_> = read
                .records
                .iter()
                .map(|record| (record.data.to_vec(), record.enqueued))
                .collect();
            prop_assert_eq!(&found, expected);
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn step() -> impl Strategy<Value = Step> {
    let batch = (0..PARTITIONS, 0u8..3, vec(0usize..3_000, 1..6));
    prop_oneof![
        8 => vec(batch, 1..6).prop_map(Step::Append),
        6 => (0u16..3, 0..PARTITIONS, 0u64..60, 0usize..9_000, 1usize..12).prop_map(
            |(stream, partition, from, bytes_max, records_max)| Step::Read {
                stream,
                partition,
                from,
                bytes_max,
                records_max,
            }
        ),
        3 => (0..PARTITIONS, -10i64..20_000)
            .prop_map(|(partition, back_ms)| Step::Seek { partition, back_ms }),
        4 => (0u64..5_000).prop_map(Step::Advance),
        1 => (0u64..5_000).prop_map(Step::SetBack),
        1 => Just(Step::Reopen),
    ]
}

fn take(
    step: &Step,
    subject: &mut dyn Subject,
    clock: &SteppedClock,
    model: &mut Model,
) -> Result<(), TestCaseError> {
    let log = subject.store().log;
    match step {
        Step::Append(batches) => {
            let mut appenders = Vec::new();
            let mut submitted: Vec<(Batch, Vec<Vec<u8>>)> = Vec::new();
            for (seed, (partition, streams, sizes)) in (0u8..).zip(batches) {
                let records: Vec<_> = sizes.iter().map(|size| noise(seed, *size)).collect();
                let all: Vec<_> = records.iter().map(Vec::as_slice).collect();
                let streams = match streams {
                    0 => smallvec![StreamId::BUILT_IN],
                    1 => smallvec![StreamId(1)],
                    _ => smallvec![StreamId::BUILT_IN, StreamId(2)],
                };
                let batch = Batch {
                    streams,
                    ..batch(PartitionId(*partition), &all)
                };
                let mut appender = Appender::new(Arc::clone(&log));
                appender.submit(batch.clone()).unwrap();
                appenders.push(appender);
                submitted.push((batch, records));
            }
            for appender in &mut appenders {
                wait(appender).unwrap();
            }
            // Submissions of one thread are committed in their order; times come from the log.
            for (batch, records) in submitted {
                for stream in batch.streams {
                    let expected = model.entry((stream, batch.partition)).or_default();
                    let from = expected.len();
                    for record in &records {
                        expected.push((record.clone(), Timestamp::NEVER));
                    }
                    let read = read_all(&log, stream, batch.partition);
                    for (record, (_, time)) in
                        read.records.iter().zip(expected.iter_mut()).skip(from)
                    {
                        *time = record.enqueued;
                    }
                    prop_assert!(
                        expected.is_sorted_by_key(|(_, time)| *time),
                        "times go back"
                    );
                }
            }
        }
        Step::Read {
            stream,
            partition,
            from,
            bytes_max,
            records_max,
        } => {
            let name = (StreamId(*stream), PartitionId(*partition));
            let kept = model.get(&name).map_or(&[][..], Vec::as_slice);
            let start = usize::try_from(*from).unwrap().min(kept.len());
            let mut expected = Vec::new();
            let mut bytes = 0;
            for (record, time) in &kept[start..] {
                bytes += record.len();
                let full = bytes > *bytes_max || expected.len() >= *records_max;
                if full && !expected.is_empty() {
                    break;
                }
                expected.push((record.clone(), *time));
            }
            let request = ReadRequest {
                stream: name.0,
                partition: name.1,
                from: *from,
                bytes_max: *bytes_max,
                records_max: *records_max,
            };
            let read = block_on(log.read(request)).unwrap();
            let found: Vec<_> = read
                .records
                .iter()
                .map(|record| (record.data.to_vec(), record.enqueued))
                .collect();
            prop_assert_eq!(found, expected);
            let bounds = log.bounds(name.0, name.1);
            prop_assert_eq!((bounds.first, bounds.next), (0, kept.len() as u64));
            prop_assert_eq!(bounds.last_enqueued, kept.last().map(|(_, time)| *time));
        }
        Step::Seek { partition, back_ms } => {
            let after = Timestamp::from_millis(clock.now().as_millis() - back_ms);
            let name = (StreamId::BUILT_IN, PartitionId(*partition));
            let expected = model.get(&name).map_or(0, |records| {
                records.partition_point(|(_, time)| *time <= after) as u64
            });
            let found = block_on(log.seek_time(name.0, name.1, after)).unwrap();
            prop_assert_eq!(found, expected);
        }
        Step::Advance(millis) => clock.advance(Duration::from_millis(*millis)),
        Step::SetBack(millis) => clock.set_back(Duration::from_millis(*millis)),
        Step::Reopen => {
            drop(log);
            subject.reopen();
        }
    }
    Ok(())
}
