//! Retention, files that are used again, and finding records by number and time.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn hours(bench: &Bench, hours: u32) {
    // In small steps, as a clock goes that nobody sets.
    for _ in 0..hours * 6 {
        bench.clock.advance(HOUR / 6);
        bench.keep();
        bench.log.commit_once();
    }
}

fn fill(bench: &Bench, records: u64) {
    for number in 0..records {
        bench.append((number % 2) as u16, &[&body(number, 3000)]);
    }
}

#[test]
fn segments_go_when_all_their_records_are_old_enough() {
    let bench = Bench::new();
    fill(&bench, 60);
    let before = bench.segments().len();
    assert!(before >= 3);
    hours(&bench, 12);
    fill(&bench, 60);
    hours(&bench, 11);
    assert_eq!(bench.first(0), 0);
    let rest = bench.read(0, 0).unwrap();
    assert_eq!(rest.records[0].sequence, 0);

    hours(&bench, 2);
    let first = bench.first(0);
    assert!(first > 0 && first <= 30, "{first}");
    // What is younger than a day is all there, and reading from before begins with it.
    assert_eq!(bench.read(0, 0).unwrap().records[0].sequence, first);
    let again = bench.reopen();
    assert_eq!((again.first(0), again.next(0)), (first, 60));
    assert_eq!(again.verify().damage, []);

    // A quiet log lets its last records go as well, and remembers their numbers.
    hours(&bench, 60);
    assert_eq!((bench.first(0), bench.next(0)), (60, 60));
    assert!(bench.segments().len() <= 2);
    assert_eq!(bench.reopen().next(0), 60);
}

#[test]
fn nothing_goes_before_the_retention_is_told() {
    let bench = Bench::new();
    bench.log.set_retention(Retention {
        age_min: HOUR * 24 * 7,
        ..small().retention
    });
    fill(&bench, 60);
    hours(&bench, 24 * 6);
    assert_eq!(bench.first(0), 0);
    // Whoever opens it does not know yet how long records are to be kept.
    let settings = LogSettings {
        retention: LogSettings::default().retention,
        ..small()
    };
    let disk = bench.disk.copy();
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &settings, false).unwrap();
    hours(&again, 12);
    assert_eq!(again.first(0), 0);
    assert_eq!(again.read(0, 0).unwrap().records[0].sequence, 0);
    again.log.set_retention(Retention {
        age_min: HOUR * 24 * 7,
        ..small().retention
    });
    hours(&again, 1);
    assert_eq!(again.first(0), 0);
    hours(&again, 24);
    assert!(again.first(0) > 0);
}

#[test]
fn a_clock_that_jumps_ahead_for_a_moment_dates_nothing() {
    const CENTURY_MS: i64 = 1000 * 86_400 * 36_525;
    let bench = Bench::new();
    let enqueued = |bench: &Bench| {
        bench.append(0, &[b"x"]);
        let bounds = bench.log.bounds(StreamId(0), PartitionId(0));
        bounds.last_enqueued.unwrap().as_millis() - START_MS
    };
    assert_eq!(enqueued(&bench), 0);
    bench.clock.step(CENTURY_MS);
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(enqueued(&bench), 5_000);
    // A segment begun at that moment goes with its time.
    fill(&bench, 60);
    bench.clock.step(-CENTURY_MS);
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(enqueued(&bench), 10_000);
    hours(&bench, 60);
    assert!(bench.first(0) > 0);
    // What holds is the time.
    let before = enqueued(&bench);
    bench.clock.step(3_600_000);
    assert_eq!(enqueued(&bench), before);
    bench.clock.advance(Duration::from_secs(60));
    assert_eq!(enqueued(&bench), before + 3_660_000);
}

#[test]
fn retention_can_be_changed_live() {
    let bench = Bench::new();
    fill(&bench, 60);
    hours(&bench, 5);
    assert_eq!(bench.first(0), 0);
    bench.log.set_retention(Retention {
        age_min: HOUR,
        ..small().retention
    });
    bench.keep();
    assert!(bench.first(0) > 0);
}

#[test]
fn a_step_of_the_clock_drops_nothing_until_it_has_held() {
    let bench = Bench::new();
    fill(&bench, 60);
    bench.keep();
    bench.clock.step(1000 * 86_400 * 30);
    bench.clock.advance(Duration::from_secs(60));
    bench.keep();
    bench.clock.advance(Duration::from_secs(500));
    bench.keep();
    assert_eq!(bench.first(0), 0);
    // It went back: nothing was lost.
    bench.clock.step(-1000 * 86_400 * 30);
    hours(&bench, 1);
    assert_eq!(bench.first(0), 0);
    // It holds: the records are a month old.
    bench.clock.step(1000 * 86_400 * 30);
    hours(&bench, 1);
    assert!(bench.first(0) > 0);
}

#[test]
fn files_of_dropped_segments_are_used_again() {
    let mut settings = small();
    settings.segment_bytes_max = 64 << 10;
    let bench = Bench::with(&settings);
    for _ in 0..6 {
        fill(&bench, 60);
        hours(&bench, 13);
    }
    assert_eq!(bench.log.figures().records_dropped, 0);
    // Stale groups of the earlier use are no groups of the new one.
    let again = Bench::open(
        &bench.disk.copy(),
        Arc::clone(&bench.clock),
        &settings,
        false,
    )
    .unwrap();
    assert_eq!(again.report.damage, []);
    assert_eq!(again.verify().damage, []);
    assert_eq!((again.first(0), again.next(0)), (bench.first(0), 180));
    assert_eq!(again.read_all(0).unwrap(), bench.read_all(0).unwrap());
}

#[test]
fn a_byte_bound_holds_messages_until_old_ones_may_go() {
    let mut settings = small();
    settings.retention.bytes_max = Some(256 << 10);
    let bench = Bench::with(&settings);
    let mut appender = bench.appender();
    let mut sent = 0;
    while bench.level() == HealthLevel::Ok {
        appender.submit(batch(0, &[&body(sent, 3000)])).unwrap();
        sent += 1;
        bench.log.commit_once();
        bench.keep();
    }
    assert!(bench.log.figures().disk_bytes <= 256 << 10);
    assert!(sent > 40);
    assert!(matches!(
        appender.submit(batch(0, &[b"x"])),
        Err(StoreError::Full)
    ));
    assert_eq!(bench.first(0), 0);
    hours(&bench, 25);
    assert_eq!(bench.level(), HealthLevel::Ok);
    assert_eq!(durable(&mut appender), Some(Ok(sent)));
    assert_eq!(bench.log.figures().records_dropped, 0);
}

#[test]
fn a_byte_bound_drops_the_oldest_and_counts_them() {
    let mut settings = small();
    settings.retention.bytes_max = Some(256 << 10);
    settings.retention.at_bytes_max = AtBytesMax::DropOldest;
    let bench = Bench::with(&settings);
    let made = |bench: &Bench| (bench.disk.creations(), bench.segments().pop().unwrap());
    let mut before = made(&bench);
    for number in 0..400 {
        bench.append(0, &[&body(number, 3000)]);
        bench.keep();
        if number == 200 {
            before = made(&bench);
        }
        let bytes = bench.log.figures().disk_bytes;
        assert!(bytes <= 320 << 10, "{bytes}");
    }
    // Nothing is made any more but an index for each segment.
    let after = made(&bench);
    let id = |name: &str| u64::from_str_radix(&name[..16], 16).unwrap();
    let segments = id(&after.1) - id(&before.1);
    assert!(segments > 5);
    assert_eq!((after.0 - before.0) as u64, segments);

    assert_eq!(bench.log.figures().records_dropped, bench.first(0));
    assert!(bench.first(0) > 300);
    let all = bench.read_all(0).unwrap();
    assert_eq!(all.len() as u64, 400 - bench.first(0));
    assert_eq!(all.last().unwrap(), &body(399, 3000));
}

#[test]
fn every_record_is_found_by_its_number_and_its_time() {
    let bench = Bench::new();
    let mut dice = ledger::Dice(3);
    // Partition 2 gets a record now and then only, partition 1 many small ones in one group.
    let mut times: [Vec<i64>; 3] = Default::default();
    let mut groups = Vec::new();
    for group in 0..500u64 {
        let partition = match dice.below(50) {
            0 => 2,
            1..20 => 1,
            _ => 0,
        };
        bench
            .clock
            .advance(Duration::from_millis(dice.below(3) * 10));
        let bodies: Vec<Vec<u8>> = (0..1 + dice.below(5))
            .map(|at| body(group * 10 + at, dice.below(2500) as usize))
            .collect();
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        bench.append(partition, &slices);
        let now = fieldpost_model::Clock::now(&*bench.clock).as_millis();
        times[usize::from(partition)].extend(slices.iter().map(|_| now));
        groups.push(now);
    }
    assert!(bench.segments().len() > 5);
    bench.keep();
    let again = bench.reopen();
    for bench in [&bench, &again] {
        for partition in 0..3u16 {
            let times = &times[usize::from(partition)];
            assert_eq!(bench.next(partition) as usize, times.len());
            for (sequence, time) in times.iter().enumerate() {
                let asked = ReadRequest {
                    records_max: 1,
                    ..request(0, partition, sequence as u64, 1)
                };
                let found = block_on(bench.log.read(asked)).unwrap();
                assert_eq!(found.records.len(), 1);
                assert_eq!(found.records[0].sequence, sequence as u64);
                assert_eq!(found.records[0].enqueued.as_millis(), *time);
            }
            let mut asked = groups.clone();
            asked.extend([START_MS - 1, groups[groups.len() - 1] + 1]);
            for after in asked {
                let expected = times.partition_point(|time| *time <= after);
                let found = block_on(bench.log.seek_time(
                    StreamId(0),
                    PartitionId(partition),
                    Timestamp::from_millis(after),
                ));
                assert_eq!(
                    found.unwrap(),
                    expected as u64,
                    "partition {partition} after {after}"
                );
            }
        }
    }
}

#[test]
fn store_time_does_not_go_back_over_a_restart() {
    let bench = Bench::new();
    bench.append(0, &[b"one"]);
    bench.clock.step(-3_600_000);
    let again = bench.reopen();
    again.append(0, &[b"two"]);
    let records = again.read(0, 0).unwrap().records;
    assert!(records[1].enqueued >= records[0].enqueued);
}

/// Whether a segment's file had been filled ahead when the segment was begun.
fn was_filled(bench: &Bench, name: &str) -> bool {
    use crate::log::format::segment::SegmentHeader;
    let content = bench.disk.content(name).unwrap();
    let bytes = SegmentHeader::announced_bytes(&content).unwrap() as usize;
    SegmentHeader::decode(&content[..bytes]).unwrap().filled
}

#[test]
fn the_next_file_is_filled_beside_a_slow_log_and_left_alone_in_a_burst() {
    for slow in [true, false] {
        let bench = Bench::new();
        bench.keep();
        while bench.segments().len() < 3 {
            if slow {
                bench.clock.advance(Duration::from_secs(1));
            }
            fill(&bench, 2);
            bench.keep();
        }
        let names = bench.segments();
        assert!(!was_filled(&bench, &names[0]), "there was nobody before it");
        for name in &names[1..] {
            assert_eq!(was_filled(&bench, name), slow, "{name}");
        }
        assert_eq!(bench.reopen().verify().damage, []);
    }
}
