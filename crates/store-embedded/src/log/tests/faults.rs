//! A disk that fails or fills up at every call.

use super::ledger::{Dice, Ledger, live};
use super::*;
use crate::files::sim::{CrashPlan, Fault};

/// Runs one history with a fault at a call; false when the call was not reached.
fn with_fault(at: u64, fault: Fault, seed: u64) -> bool {
    let clock = Arc::new(TestClock::at(START_MS));
    let disk = SimDisk::new();
    let mut ledger = Ledger::default();
    let mut dice = Dice(seed);
    let bench = Bench::open(&disk, Arc::clone(&clock), &small(), true).unwrap();
    live(&bench, &mut ledger, &mut dice, 60);
    let from = disk.calls();
    disk.fail_at(from + at, fault);
    live(&bench, &mut ledger, &mut dice, 120);
    let reached = disk.calls() > from + at;
    let read_only = bench.level() == HealthLevel::ReadOnly;
    if read_only {
        assert!(bench.appender().submit(batch(0, &[b"x"])).is_err());
        assert_eq!(bench.log.commit_once(), Turn::Failed);
    }
    // Whatever went wrong: what was acknowledged is there when the process comes back.
    let again = bench.reopen();
    assert_eq!(again.report.damage, [], "{fault:?} at {at}");
    ledger.check(&again);
    assert_eq!(again.level(), HealthLevel::Ok);
    again.append(0, &[&[0; 18]]);

    if !reached {
        return false;
    }

    // The process alone comes back, on what the system still has in memory; readers look at it and
    // more is acknowledged. Then the machine goes down.
    drop(bench);
    let back = Bench::open(&disk, clock, &small(), false).unwrap();
    live(&back, &mut ledger, &mut dice, 10);
    for _ in 0..2 {
        let plan = CrashPlan {
            seed: dice.below(u64::MAX),
            piece: 4096,
            kept_percent: 0,
        };
        let image = disk.image(plan);
        let last = Bench::open(&image, Arc::clone(&back.clock), &small(), false).unwrap();
        assert_eq!(last.report.damage, [], "{fault:?} at {at}");
        ledger.check(&last);
    }
    true
}

#[test]
fn nothing_acknowledged_is_lost_whichever_call_fails() {
    for fault in [Fault::Io, Fault::Full, Fault::Short] {
        let mut at = 0;
        while with_fault(at, fault, 7) {
            at += 1;
        }
        assert!(at > 100, "only {at} calls");
    }
}

#[test]
fn a_disk_that_fills_up_takes_a_part_first() {
    let bench = Bench::new();
    bench.append(0, &[b"before"]);
    let mut appender = bench.appender();
    appender.submit(batch(0, &[b"a"])).unwrap();
    // A part is taken, then nothing: the disk is full.
    let next = bench.disk.calls();
    bench.disk.fail_at(next, Fault::Short);
    bench.disk.fail_at(next + 1, Fault::Full);
    assert_eq!(bench.log.commit_once(), Turn::Held);
    assert_eq!(bench.level(), HealthLevel::HoldMessages);
    // A part is taken, and another, and then the rest.
    let next = bench.disk.calls();
    bench.disk.fail_at(next, Fault::Short);
    bench.disk.fail_at(next + 1, Fault::Short);
    assert_eq!(bench.log.commit_once(), Turn::Committed { batches: 1 });
    assert_eq!(durable(&mut appender), Some(Ok(1)));
    assert_eq!(bench.level(), HealthLevel::Ok);
    assert_eq!(bench.read_all(0).unwrap(), ["before", "a"]);
    let again = bench.reopen();
    assert_eq!(again.report.damage, []);
    assert_eq!(again.read_all(0).unwrap(), ["before", "a"]);
}

/// Appends until the next record needs a new segment, and gives its number.
fn fill_first_segment(bench: &Bench) -> u64 {
    let disk_bytes = |bench: &Bench| bench.log.figures().disk_bytes;
    let dry = Bench::new();
    let before = disk_bytes(&dry);
    let mut rolls = 0;
    while disk_bytes(&dry) == before {
        dry.append(0, &[&body(rolls, 3000)]);
        rolls += 1;
    }
    for number in 0..rolls - 1 {
        bench.append(0, &[&body(number, 3000)]);
    }
    rolls - 1
}

#[test]
fn a_segment_that_cannot_be_begun_is_thrown_away_and_tried_again() {
    let check = |call: &str, after: u64, fault: Fault, expected: HealthLevel| {
        let bench = Bench::new();
        let number = fill_first_segment(&bench);
        let mut appender = bench.appender();
        appender.submit(batch(0, &[&body(number, 3000)])).unwrap();
        // Several times: what is left behind would add up.
        for _ in 0..3 {
            let next = bench.disk.calls();
            bench.disk.fail_at(next + after, fault);
            let turn = bench.log.commit_once();
            let calls = bench.disk.last_calls();
            let failed = calls.iter().find(|(at, _)| *at == next + after);
            assert_eq!(failed.map(|failed| failed.1), Some(call));
            assert_eq!(bench.level(), expected, "{fault:?} at {call}");
            if expected == HealthLevel::ReadOnly {
                assert_eq!(turn, Turn::Failed);
                return;
            }
            assert_eq!(turn, Turn::Held);
        }
        let names = crate::files::Files::list(&bench.disk).unwrap();
        assert_eq!(names.len(), 1, "{fault:?} at {call} leaves {names:?}");
        assert_eq!(bench.log.figures().disk_bytes, 64 << 10);

        assert_eq!(bench.log.commit_once(), Turn::Committed { batches: 1 });
        assert_eq!(durable(&mut appender), Some(Ok(1)));
        assert_eq!(bench.level(), HealthLevel::Ok);
        let again = bench.reopen();
        assert_eq!(again.report.damage, []);
        assert_eq!(again.read_all(0).unwrap().len() as u64, number + 1);
    };
    check("write", 2, Fault::Full, HealthLevel::HoldMessages);
    check("write", 2, Fault::Io, HealthLevel::HoldMessages);
    check("sync", 3, Fault::Full, HealthLevel::HoldMessages);
    check("sync", 3, Fault::Io, HealthLevel::HoldMessages);
    check("rename", 4, Fault::Full, HealthLevel::HoldMessages);
    check("rename", 4, Fault::Io, HealthLevel::ReadOnly);
    check("sync_dir", 5, Fault::Full, HealthLevel::ReadOnly);
}

#[test]
fn a_filling_disk_is_asked_for_no_more_than_what_is_on_its_way() {
    const MIB: u64 = 1 << 20;
    let mut settings = small();
    settings.marks.hold_messages = Some(64 * MIB);
    let bench = Bench::with(&settings);
    let number = fill_first_segment(&bench);
    let mut appender = bench.appender();
    appender.submit(batch(0, &[&body(number, 3000)])).unwrap();
    bench.disk.set_free(63 * MIB);
    bench.clock.advance(Duration::from_secs(2));
    bench.keep();
    assert_eq!(bench.level(), HealthLevel::HoldMessages);
    assert_eq!(bench.log.commit_once(), Turn::Committed { batches: 1 });
    // And not twice the first segment.
    assert_eq!(bench.log.figures().disk_bytes, 2 * (64 << 10));
    assert_eq!(bench.read_all(0).unwrap().len() as u64, number + 1);
}

#[test]
fn a_failed_write_or_sync_turns_the_store_read_only_at_once() {
    let check = |call: &str, fault: Fault, expected: HealthLevel| {
        let bench = Bench::new();
        bench.append(0, &[b"before"]);
        let mut one = bench.appender();
        let mut two = bench.appender();
        one.submit(batch(0, &[b"a"])).unwrap();
        two.submit(batch(1, &[b"b"])).unwrap();
        let next = bench.disk.calls();
        bench.disk.fail_at(next + u64::from(call == "sync"), fault);
        let turn = bench.log.commit_once();
        assert_eq!(bench.disk.last_calls().last().unwrap().1, call);
        assert_eq!(bench.level(), expected, "{fault:?} at {call}");
        if expected == HealthLevel::ReadOnly {
            assert_eq!(turn, Turn::Failed);
            assert!(
                durable(&mut one)
                    .unwrap()
                    .unwrap_err()
                    .contains("read-only")
            );
            assert!(durable(&mut two).unwrap().is_err());
            let refused = one.submit(batch(0, &[b"c"]));
            assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
            let calls = bench.disk.calls();
            assert_eq!(bench.log.commit_once(), Turn::Failed);
            assert_eq!(bench.disk.calls(), calls, "nothing is tried again");
        } else {
            assert_eq!(turn, Turn::Held);
            assert!(matches!(
                one.submit(batch(0, &[b"c"])),
                Err(StoreError::Full)
            ));
            assert_eq!(bench.log.commit_once(), Turn::Committed { batches: 2 });
            assert_eq!(durable(&mut one), Some(Ok(1)));
            assert_eq!(bench.level(), HealthLevel::Ok);
            assert_eq!(bench.read_all(0).unwrap(), ["before", "a"]);
        }
        // What was read before can still be read.
        assert_eq!(bench.read(0, 0).unwrap().records[0].data, "before");
    };
    check("write", Fault::Io, HealthLevel::ReadOnly);
    check("sync", Fault::Io, HealthLevel::ReadOnly);
    check("sync", Fault::Full, HealthLevel::ReadOnly);
    check("write", Fault::Full, HealthLevel::HoldMessages);
}

#[test]
fn without_room_for_a_segment_messages_are_held_and_go_on_by_themselves() {
    let bench = Bench::new();
    bench.disk.set_free(0);
    let mut appender = bench.appender();
    let mut sent = 0;
    while bench.level() == HealthLevel::Ok {
        appender.submit(batch(0, &[&body(sent, 3000)])).unwrap();
        sent += 1;
        bench.log.commit_once();
        bench.keep();
        assert!(sent < 100);
    }
    assert_eq!(bench.level(), HealthLevel::HoldMessages);
    assert!(matches!(
        appender.submit(batch(0, &[b"x"])),
        Err(StoreError::Full)
    ));
    assert_eq!(durable(&mut appender), Some(Ok(sent - 1)));
    assert_eq!(bench.log.commit_once(), Turn::Held);

    bench.disk.set_free(1 << 30);
    assert_eq!(bench.log.commit_once(), Turn::Committed { batches: 1 });
    assert_eq!(durable(&mut appender), Some(Ok(sent)));
    assert_eq!(bench.level(), HealthLevel::Ok);
    assert_eq!(bench.read_all(0).unwrap().len() as u64, sent);
}

#[test]
fn a_hold_with_nothing_waiting_ends_by_itself() {
    let bench = Bench::new();
    bench.disk.set_free(0);
    let mut appender = bench.appender();
    // Two batches: the second still fits when the first is held.
    while bench.level() == HealthLevel::Ok {
        appender.submit(batch(0, &[&body(1, 10_000)])).unwrap();
        appender.submit(batch(0, &[b"small"])).unwrap();
        bench.log.commit_once();
        bench.log.commit_once();
    }
    let mut turns = 0;
    while bench.log.commit_once() != Turn::Held {
        turns += 1;
        assert!(turns < 10);
    }
    bench.disk.set_free(1 << 30);
    while bench.log.commit_once() != Turn::Idle {}
    assert_eq!(bench.level(), HealthLevel::Ok);
    appender.submit(batch(0, &[b"on"])).unwrap();
    bench.log.commit_once();
    assert_eq!(durable(&mut appender), Some(Ok(appender.submitted())));
}

#[test]
fn the_marks_of_a_filling_disk_hold_and_let_go() {
    const MIB: u64 = 1 << 20;
    let mut settings = small();
    settings.marks = DiskMarks {
        hold_messages: Some(64 * MIB),
        hold_all: Some(16 * MIB),
    };
    let bench = Bench::with(&settings);
    let mut appender = bench.appender();
    let mut check = |free: u64, level: HealthLevel| {
        bench.disk.set_free(free);
        bench.clock.advance(Duration::from_secs(2));
        bench.keep();
        assert_eq!(bench.level(), level);
        let taken = appender.submit(batch(0, &[b"x"])).is_ok();
        assert_eq!(taken, level == HealthLevel::Ok);
    };
    check(100 * MIB, HealthLevel::Ok);
    check(63 * MIB, HealthLevel::HoldMessages);
    check(15 * MIB, HealthLevel::HoldAll);
    check(40 * MIB, HealthLevel::HoldMessages);
    check(100 * MIB, HealthLevel::Ok);
}

#[test]
fn what_a_failed_sync_left_in_memory_is_on_the_disk_before_anybody_sees_it() {
    let bench = Bench::new();
    bench.append(0, &[b"before"]);
    let mut appender = bench.appender();
    appender.submit(batch(0, &[&body(1, 9000)])).unwrap();
    bench.disk.fail_at(bench.disk.calls() + 1, Fault::Io);
    assert_eq!(bench.log.commit_once(), Turn::Failed);

    let back = Bench::open(&bench.disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    let seen = back.read_all(0).unwrap();
    let image = bench.disk.image(CrashPlan {
        seed: 1,
        piece: 4096,
        kept_percent: 0,
    });
    let last = Bench::open(&image, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(last.report.damage, []);
    assert_eq!(last.read_all(0).unwrap(), seen);
}

#[test]
fn a_segment_named_in_memory_alone_is_named_on_the_disk_before_it_is_used() {
    for seed in 0..8 {
        let bench = Bench::new();
        let mut number = 0;
        // The process ends between the renaming and the sync of the directory.
        'filled: loop {
            let mut appender = bench.appender();
            appender.submit(batch(0, &[&body(number, 3000)])).unwrap();
            number += 1;
            let from = bench.disk.calls();
            bench.log.commit_once();
            for (call, kind) in bench.disk.last_calls() {
                if call >= from && kind == "rename" {
                    break 'filled;
                }
            }
        }
        let renamed = number;
        let again = Bench::new();
        for number in 0..renamed - 1 {
            again.append(0, &[&body(number, 3000)]);
        }
        let calls: Vec<_> = bench.disk.last_calls();
        let rename = calls
            .iter()
            .rposition(|(_, kind)| *kind == "rename")
            .unwrap();
        assert_eq!(calls[rename + 1].1, "sync_dir");
        again.disk.fail_at(calls[rename + 1].0, Fault::Io);
        let mut appender = again.appender();
        appender.submit(batch(0, &[&body(renamed, 3000)])).unwrap();
        assert_eq!(again.log.commit_once(), Turn::Failed);

        let back = Bench::open(&again.disk, Arc::clone(&again.clock), &small(), false).unwrap();
        back.append(0, &[b"acknowledged"]);
        let image = again.disk.image(CrashPlan {
            seed,
            piece: 4096,
            kept_percent: 0,
        });
        let last = Bench::open(&image, Arc::clone(&again.clock), &small(), false).unwrap();
        assert_eq!(last.report.damage, []);
        assert_eq!(last.read_all(0).unwrap().last().unwrap(), "acknowledged");
    }
}

#[test]
fn a_segment_that_cannot_be_removed_goes_before_newer_ones() {
    let mut settings = small();
    settings.retention.bytes_max = Some(256 << 10);
    settings.retention.at_bytes_max = AtBytesMax::DropOldest;
    let bench = Bench::with(&settings);
    let mut number = 0;
    let mut append = || {
        bench.append(0, &[&body(number, 9000)]);
        number += 1;
    };
    while bench.first(0) == 0 {
        append();
    }
    let names = bench.segments();
    bench.disk.refuse_changes_of(&names[0]);
    let first = bench.first(0);
    while bench.first(0) < first + 60 {
        append();
    }
    assert!(bench.segments().contains(&names[0]), "it is still there");
    let again = bench.reopen();
    assert_eq!(again.report.damage, []);
    bench.disk.refuse_changes_of("");
    let first = bench.first(0);
    while bench.first(0) == first {
        append();
    }
    assert!(!bench.segments().contains(&names[0]));
    assert_eq!(bench.reopen().report.damage, []);
}
