//! Damage to files at rest is reported by exact range, and what is sound stays readable.

use super::*;
use crate::files::Files;

/// A log with two sealed segments and a third, closed in order; 12 KiB records in partition 0 and
/// small ones in partition 1, one group each.
fn built() -> Bench {
    let bench = Bench::new();
    let mut number = 0;
    while bench.segments().len() < 3 {
        bench.append(0, &[&body(number, 12_000)]);
        bench.append(1, &[&body(number, 50), b"second"]);
        number += 1;
    }
    bench.append(0, &[b"last but one"]);
    bench.append(0, &[b"last"]);
    bench.keep();
    bench.close();
    bench
}

const FIRST: &str = "0000000000000001.segment";

/// The first record whose data contains `needle`.
fn find(content: &[u8], needle: &[u8]) -> usize {
    content
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap()
}

#[test]
fn damage_is_reported_and_never_skipped() {
    struct Case {
        name: &'static str,
        damage: fn(&SimDisk),
        /// What `verify` must say, and the report at opening where `at_open`.
        says: &'static str,
        at_open: bool,
    }
    let cases = [
        Case {
            name: "a bit of a record in a sealed segment",
            damage: |disk| {
                disk.tamper("0000000000000001.segment", |content| {
                    let at = find(content, &body(1, 12_000)[100..120]);
                    content[at] ^= 4;
                });
            },
            says: "partition 0 sequence numbers 1 to 1",
            at_open: false,
        },
        Case {
            name: "a zeroed block inside a sealed segment",
            damage: |disk| {
                disk.tamper("0000000000000001.segment", |content| {
                    let at = find(content, &body(1, 12_000)[..20]) / 4096 * 4096;
                    content[at..at + 4096].fill(0);
                });
            },
            says: "partition 0 sequence numbers 1 to 1",
            at_open: false,
        },
        Case {
            name: "the header of a sealed segment",
            damage: |disk| disk.tamper("0000000000000002.segment", |content| content[40] ^= 1),
            says: "the header cannot be read: it does not pass its check",
            at_open: true,
        },
        Case {
            name: "the header of the last segment",
            damage: |disk| disk.tamper("0000000000000003.segment", |content| content[8] ^= 32),
            says: "the header cannot be read",
            at_open: true,
        },
        Case {
            name: "a missing segment in the middle",
            damage: |disk| disk.remove("0000000000000002.segment").unwrap(),
            says: "0000000000000002.segment, bytes 0 to 0: 1 segments are missing from here; lost: partition 0",
            at_open: true,
        },
        Case {
            name: "the last segment is missing",
            damage: |disk| disk.remove("0000000000000003.segment").unwrap(),
            says: "0000000000000003.segment, bytes 0 to 0: the segment is missing",
            at_open: true,
        },
        Case {
            name: "the last segment is cut short",
            damage: |disk| {
                disk.tamper("0000000000000003.segment", |content| content.truncate(9000))
            },
            says: "the file is cut short",
            at_open: true,
        },
        Case {
            name: "a sealed segment is cut short",
            damage: |disk| {
                disk.tamper("0000000000000001.segment", |content| {
                    content.truncate(30_000)
                })
            },
            says: "the file is cut short",
            at_open: true,
        },
        Case {
            name: "a group header in the last segment, with groups behind it",
            damage: |disk| {
                disk.tamper("0000000000000003.segment", |content| {
                    let at = find(content, b"last but one") / 4096 * 4096;
                    content[at + 20] ^= 1;
                });
            },
            says: "are not readable; lost: partition 0",
            at_open: true,
        },
        Case {
            name: "the last record, behind which the log was closed",
            damage: |disk| {
                disk.tamper("0000000000000003.segment", |content| {
                    let at = content
                        .windows(4)
                        .rposition(|window| window == b"last")
                        .unwrap();
                    content[at] ^= 1;
                });
            },
            says: "do not pass their check; lost: partition 0",
            at_open: true,
        },
    ];
    for case in cases {
        let bench = built();
        let (sound, next) = (bench.read_all(0).unwrap(), bench.next(0));
        let disk = bench.disk.copy();
        (case.damage)(&disk);

        let verdict = super::super::verify::verify(&disk.copy(), LOG_ID, partitioning()).unwrap();
        let lines = |damage: &[crate::Damage]| {
            let lines: Vec<_> = damage.iter().map(ToString::to_string).collect();
            lines.join("\n")
        };
        let told = lines(&verdict.damage);
        assert!(
            told.contains(case.says),
            "{}: verify says {told:?}",
            case.name
        );

        let again = Bench::open(&disk, bench.clock, &small(), false).unwrap();
        let told = lines(&again.report.damage);
        assert_eq!(
            told.contains(case.says),
            case.at_open,
            "{}: opening says {told:?}",
            case.name
        );

        // No number is used again, and every record is there or is missed by its number.
        assert!(again.next(0) >= next, "{}", case.name);
        again.append(0, &[b"new"]);
        let mut at = 0;
        let mut damages = 0;
        while at < again.next(0) {
            match again.read(0, at) {
                Ok(records) => {
                    assert!(!records.records.is_empty(), "{} at {at}", case.name);
                    for record in &records.records {
                        let before = sound.get(record.sequence as usize);
                        let expected = before.map_or(&b"new"[..], |data| data);
                        assert_eq!(record.data, expected, "{} at {at}", case.name);
                    }
                    at = records.next;
                }
                Err(StoreError::Damaged { what, resume }) => {
                    damages += 1;
                    let resume = resume.unwrap();
                    assert!(
                        resume > at
                            && what.contains(&format!("sequence numbers {at} to {}", resume - 1)),
                        "{what}"
                    );
                    at = resume;
                }
                Err(error) => panic!("{}: {error}", case.name),
            }
        }
        let header_only = case.name.contains("the header of");
        assert_eq!(
            damages == 0,
            header_only,
            "{}: {damages} damages met",
            case.name
        );
    }
}

#[test]
fn a_damaged_or_missing_index_is_made_anew() {
    let bench = built();
    let expected = bench.read_all(0).unwrap();
    let check = |name: &str, change: fn(&SimDisk), reported: bool| {
        let disk = bench.disk.copy();
        assert!(disk.content("0000000000000001.index").is_some());
        change(&disk);
        let verdict = super::super::verify::verify(&disk.copy(), LOG_ID, partitioning()).unwrap();
        assert_eq!(!verdict.damage.is_empty(), reported, "{name}");
        let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
        assert_eq!(again.read_all(0).unwrap(), expected, "{name}");
    };
    check("sound", |_| (), false);
    check(
        "missing",
        |disk| disk.remove("0000000000000001.index").unwrap(),
        false,
    );
    check(
        "a bit",
        |disk| disk.tamper("0000000000000001.index", |content| content[60] ^= 1),
        true,
    );
    check(
        "empty",
        |disk| disk.tamper("0000000000000001.index", Vec::clear),
        true,
    );
}

#[test]
fn a_log_that_lost_every_segment_does_not_use_its_numbers_again() {
    let bench = built();
    let disk = bench.disk.copy();
    for name in disk.list().unwrap() {
        disk.remove(&name).unwrap();
    }
    let next = bench.next(0);
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert!(
        again.report.damage[0]
            .what
            .contains("all segments are missing")
    );
    assert!(again.next(0) > next && again.next(2) > 0);
    assert_eq!(again.first(0), again.next(0));
}

#[test]
fn an_end_that_a_crash_left_is_no_damage() {
    let bench = Bench::new();
    bench.append(0, &[b"one"]);
    bench.append(0, &[&body(2, 9000)]);
    // Without the mark that closing writes, a broken last group is what a crash leaves.
    let disk = bench.disk.copy();
    disk.tamper("0000000000000001.segment", |content| {
        let at = find(content, &body(2, 9000)[8000..8010]);
        content[at] ^= 1;
    });
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(again.report.damage, []);
    let torn = again.report.torn.clone().unwrap();
    assert_eq!((torn.from, torn.to), (12_288, 24_576));
    assert_eq!(again.next(0), 1);
    again.append(0, &[b"two"]);
    // What was cut off does not come back.
    let once_more = again.reopen();
    assert_eq!(
        (once_more.report.torn.clone(), once_more.report.damage.len()),
        (None, 0)
    );
    assert_eq!(once_more.read_all(0).unwrap(), ["one", "two"]);
}

#[test]
fn what_was_left_behind_a_closed_log_is_not_taken_for_torn() {
    let bench = Bench::new();
    bench.append(0, &[b"one"]);
    bench.close();
    let disk = bench.disk.copy();
    disk.tamper(FIRST, |content| {
        // The header, the mark of opening, the group, the mark of closing; then a group with a larger
        // number than any, which a device may have sent within a group that was torn.
        let mut left = content[8192..12_288].to_vec();
        assert!(left.starts_with(b"FPLG"));
        left[16..24].copy_from_slice(&1000_u64.to_le_bytes());
        left[24..32].copy_from_slice(&900_u64.to_le_bytes());
        content[16_384..20_480].copy_from_slice(&left);
    });
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    let report = &again.report;
    assert_eq!((report.clean, report.torn.clone()), (true, None));
    again.append(0, &[b"two"]);
    assert_eq!(again.reopen().read_all(0).unwrap(), ["one", "two"]);
}

#[test]
fn a_block_as_it_was_before_a_crash_does_not_hide_what_was_written_since() {
    let bench = Bench::new();
    bench.append(0, &[b"one"]);
    // The header, two marks of opening and a group stand before it; a crash leaves its first block.
    const AT: usize = 4 * 4096;
    let torn = bench.reopen();
    torn.append(1, &[&body(1, 40_000)]);
    let stale = torn.disk.content(FIRST).unwrap()[AT..AT + 4096].to_vec();
    let again = bench.reopen();
    for text in ["two", "three", "four"] {
        again.append(0, &[text.as_bytes()]);
    }
    let disk = again.disk.copy();
    disk.tamper(FIRST, |content| {
        for block in [&stale, &content[AT..AT + 4096]] {
            assert!(block.starts_with(b"FPLG"));
        }
        content[AT..AT + 4096].copy_from_slice(&stale);
    });
    let found = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(found.report.torn, None);
    let [damage] = &found.report.damage[..] else {
        panic!("{:?}", found.report.damage)
    };
    assert_eq!((damage.from, damage.to), (AT as u64, AT as u64 + 4096));
    let lost = &damage.lost[0];
    assert_eq!((lost.partition.0, lost.from, lost.to), (0, 1, 2));
    assert_eq!(found.next(0), 4);
    assert_eq!(found.reopen().next(0), 4);
}

#[test]
fn a_header_over_the_records_of_another_group_is_torn() {
    // Both records stand in blocks of their own: 4,096 bytes with header, table and frame.
    let written = |partition: u16, seed: u64| {
        let bench = Bench::new();
        bench.append(
            partition,
            &[&body(seed, 4096 - 96 - 8), &body(seed, 4096 - 8)],
        );
        bench
    };
    let (one, two) = (written(0, 1), written(1, 2));
    let other = one.disk.content("0000000000000001.segment").unwrap();
    let disk = two.disk.copy();
    disk.tamper("0000000000000001.segment", |content| {
        content[12_288..16_384].copy_from_slice(&other[12_288..16_384]);
    });
    // The second record is sound by itself, and was sent to another partition.
    let again = Bench::open(&disk, Arc::clone(&two.clock), &small(), false).unwrap();
    assert!(again.report.torn.is_some());
    assert_eq!((again.next(0), again.next(1)), (0, 0));
}

#[test]
fn bytes_that_a_device_sends_never_pass_for_a_group() {
    // A device sends what a group of this very log looks like, at every block of its record.
    let bench = Bench::new();
    bench.append(0, &[b"first"]);
    let content = bench.disk.content("0000000000000001.segment").unwrap();
    let group = &content[8192..12_288];
    let mut forged = vec![0; 4096 - 8 - 80];
    for _ in 0..4 {
        forged.extend_from_slice(group);
    }
    bench.append(1, &[&forged]);
    bench.close();
    let disk = bench.disk.copy();
    disk.tamper("0000000000000001.segment", |content| {
        // The header of the device's group is lost, so that its record is searched for groups.
        content[12_288 + 16] ^= 1;
    });
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(again.read(0, 0).unwrap().records[0].data, "first");
    // Nobody knows any more whose records those were.
    assert!(again.next(0) > 1 && again.next(1) > 0);
    assert_eq!(again.report.damage.len(), 1);
}

#[test]
fn files_of_another_log_or_a_newer_version_are_refused() {
    let bench = built();
    let newer = bench.disk.copy();
    newer.tamper("0000000000000002.segment", |content| {
        content[8] = 2;
        content[84..88].fill(0);
        let check = crc32c::crc32c(&content[..4096]);
        content[84..88].copy_from_slice(&check.to_le_bytes());
    });
    let opened = Bench::open(&newer, Arc::clone(&bench.clock), &small(), false);
    assert!(
        matches!(opened.err(), Some(LogOpenError::Newer { file }) if file.contains("2.segment"))
    );

    let mut other = identity(false);
    other.id = LogId([1; 16]);
    let opened = SteppedLog::open(
        Arc::new(bench.disk.copy()),
        other,
        &small(),
        Arc::clone(&bench.clock) as _,
        Arc::new(StoreHealth::new()),
    );
    assert!(matches!(opened.err(), Some(LogOpenError::Foreign { .. })));
}

#[test]
fn no_number_is_used_again_behind_an_unreadable_group() {
    // Groups of one block each, behind the header of the segment. Number 0 is the mark of opening, 1
    // the records of partition 0, 2 those of partition 1.
    const START: usize = 4096;
    let check = |name: &str, close: bool, later: u16, broken: &[(usize, usize)]| {
        let bench = Bench::new();
        bench.append(0, &[b"zero", b"one"]);
        bench.append(1, &[b"zero"]);
        if !close {
            bench.append(later, &[b"later"]);
        } else {
            bench.close();
        }
        let next: Vec<_> = (0..PARTITIONS)
            .map(|partition| bench.next(partition))
            .collect();
        let mut disk = bench.disk.copy();
        disk.tamper(FIRST, |content| {
            for &(group, byte) in broken {
                content[START + group * 4096 + byte] ^= 1;
            }
        });
        for round in 0..3 {
            let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
            for partition in 0..PARTITIONS {
                let found = again.next(partition);
                let before = next[usize::from(partition)] + if partition == 2 { round } else { 0 };
                assert!(
                    found >= before,
                    "{name}, {round}: {partition} goes on at {found}"
                );
            }
            let number = again.next(2);
            again.append(2, &[b"new"]);
            assert_eq!(
                again.read(2, number).unwrap().records[0].data,
                "new",
                "{name}"
            );
            disk = again.disk.copy();
        }
    };
    check("closed behind", true, 0, &[(2, 16)]);
    check("both are gone", true, 0, &[(1, 20), (2, 16)]);
    check("another partition goes on", false, 1, &[(1, 16)]);
    check(
        "one without a record so far goes on",
        false,
        2,
        &[(1, 16), (2, 16)],
    );
    check(
        "the last is torn, and proves the one before",
        false,
        2,
        &[(2, 16), (3, 105)],
    );
    check("two proofs", false, 1, &[(1, 16), (2, 105)]);
}

#[test]
fn what_is_certain_again_is_not_left_out() {
    let bench = Bench::new();
    bench.append(0, &[b"zero"]);
    bench.append(1, &[b"zero"]);
    bench.append(0, &[b"one"]);
    let disk = bench.disk.copy();
    disk.tamper(FIRST, |content| content[8192 + 16] ^= 1);
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(again.next(0), 2);
    assert_eq!(again.next(1), 1);
    assert_eq!(again.next(2), 4096 / 8 + 1);
}

#[test]
fn no_record_stands_under_the_number_of_another() {
    let bodies: Vec<Vec<u8>> = (0..40).map(|number| body(number, 120)).collect();
    let check = |name: &str, damage: fn(&mut [u8]), lost: std::ops::Range<usize>| {
        let bench = Bench::new();
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        bench.append(0, &slices);
        bench.append(0, &[b"behind"]);
        // Too much for the memory of recent records, and into another segment.
        while bench.segments().len() < 2 {
            bench.append(1, &[&body(9, 9000)]);
        }
        bench.close();
        let first = find(&bench.disk.content(FIRST).unwrap(), &bodies[0]) - 8;
        for sealed in [false, true] {
            let disk = bench.disk.copy();
            if !sealed {
                disk.remove("0000000000000002.segment").unwrap();
            }
            disk.tamper(FIRST, |content| damage(&mut content[first..]));
            let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
            for from in 0..bodies.len() {
                match again.read(0, from as u64) {
                    Ok(records) => {
                        assert!(!lost.contains(&from), "{name}: {from} can be read");
                        for record in records.records {
                            let number = record.sequence as usize;
                            let expected = bodies.get(number).map_or(&b"behind"[..], |body| body);
                            assert_eq!(record.data, expected, "{name}: {number} from {from}");
                        }
                    }
                    Err(StoreError::Damaged { what, .. }) => {
                        assert!(lost.contains(&from), "{name}: {what}");
                        let told = format!("sequence numbers {from} to {}", lost.end - 1);
                        assert!(what.contains(&told), "{name}: {what}");
                    }
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            assert_eq!(
                again.read(0, 40).unwrap().records[0].data,
                "behind",
                "{name}"
            );
            let verdict = super::super::verify::verify(&disk, LOG_ID, partitioning()).unwrap();
            let told: Vec<_> = (verdict.damage.iter().flat_map(|damage| &damage.lost))
                .filter(|lost| lost.partition.0 == 0)
                .map(|lost| (lost.from as usize, lost.to as usize))
                .collect();
            if sealed {
                assert_eq!(told, [(lost.start, lost.end)], "{name}");
            }
        }
    };
    // A frame has 128 bytes. The length of the sixth becomes that of two frames.
    check("a bit of a length", |frames| frames[5 * 128] ^= 0x80, 5..40);
    check(
        "a bit of a record",
        |frames| frames[5 * 128 + 50] ^= 0x80,
        5..6,
    );
    check("the last length", |frames| frames[39 * 128] ^= 0x80, 39..40);
    check(
        "a zeroed stretch",
        |frames| frames[5 * 128..9 * 128].fill(0),
        5..40,
    );
}

#[test]
fn a_log_that_lost_every_segment_again_goes_on_further() {
    let bench = Bench::new();
    let lose = |losses: u32| {
        let mut lost = identity(false);
        lost.losses = losses;
        let (log, _) = SteppedLog::open(
            Arc::new(SimDisk::new()),
            lost,
            &small(),
            Arc::clone(&bench.clock) as _,
            Arc::new(StoreHealth::new()),
        )
        .unwrap();
        log.bounds(StreamId(0), PartitionId(0)).next
    };
    assert!(lose(1) >= 1 << 40);
    assert!(lose(2) > lose(1) + (1 << 42));
}

#[test]
fn a_damaged_record_of_accepted_losses_is_reported_and_counts_for_nothing() {
    let bench = built();
    let disk = bench.disk.copy();
    disk.tamper(FIRST, |content| {
        let at = find(content, &body(1, 12_000)[100..120]);
        content[at] ^= 4;
    });
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let clock: Arc<dyn fieldpost_model::Clock> = Arc::clone(&bench.clock) as _;
    let accept =
        || super::super::repair::accept_losses(&files, identity(false), &small(), &clock).unwrap();
    let (accepted, left) = accept();
    assert_eq!((accepted.len(), left.damage.len()), (1, 0));
    let open = || Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(open().read(0, 1).unwrap().records[0].sequence, 2);

    disk.tamper("accepted-losses", |content| content[20] ^= 1);
    let again = open();
    assert_eq!(again.report.damage.len(), 1);
    assert!(again.report.damage[0].what.contains("accepted"));
    assert!(matches!(
        again.read(0, 1),
        Err(StoreError::Damaged {
            resume: Some(2),
            ..
        })
    ));
    drop(again);
    // Accepted once more, everything is as before.
    let (accepted, left) = accept();
    assert_eq!(left.damage, []);
    assert!(accepted.iter().any(|loss| loss.damage.lost.len() == 1));
    assert_eq!(open().read(0, 1).unwrap().records[0].sequence, 2);
}

#[test]
fn a_segment_that_retention_dropped_is_not_missed() {
    let mut settings = small();
    settings.retention.bytes_max = Some(400 << 10);
    settings.retention.at_bytes_max = AtBytesMax::DropOldest;
    let bench = Bench::with(&settings);
    let mut number = 0;
    while bench.first(0) == 0 {
        bench.append(0, &[&body(number, 12_000)]);
        bench.keep();
        number += 1;
    }
    bench.close();
    let oldest = bench.segments()[0].clone();
    let index = oldest.replace("segment", "index");
    assert!(bench.disk.content(&index).is_some());
    assert_eq!(bench.verify().damage, []);
    // The oldest of those that are kept is.
    bench.disk.remove(&oldest).unwrap();
    let damage = bench.verify().damage;
    assert_eq!(
        (damage.len(), damage[0].file.as_str()),
        (1, oldest.as_str())
    );
    assert_eq!(damage[0].lost[0].from, bench.first(0));
    assert_eq!(bench.reopen().report.damage, damage);
}

// Found by the fuzzer.
#[test]
fn nothing_is_read_beyond_the_end_that_a_segment_of_another_copy_sets() {
    use crate::log::format::segment::SegmentHeader;

    let bench = Bench::new();
    for number in 0..5 {
        bench.append(1, &[&body(number, 50), b"second"]);
        bench.clock.advance(Duration::from_secs(1));
    }
    let mut number = 0;
    while bench.segments().len() < 2 {
        bench.append(0, &[&body(number, 12_000)]);
        number += 1;
    }
    bench.close();
    let disk = bench.disk.copy();
    disk.tamper("0000000000000002.segment", |content| {
        let bytes = SegmentHeader::announced_bytes(content).unwrap() as usize;
        let mut header = SegmentHeader::decode(&content[..bytes]).unwrap();
        let key = (StreamId(0), PartitionId(1));
        header.positions.known.get_mut(&key).unwrap().next = 3;
        content[..bytes].copy_from_slice(&header.encode());
    });
    let again = Bench::open(&disk, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(again.next(1), 3);
    let read = again.read(1, 1).unwrap();
    let sequences: Vec<_> = read.records.iter().map(|record| record.sequence).collect();
    assert_eq!((sequences, read.next), (vec![1, 2], 3));
    let after = Timestamp::from_millis(START_MS + 2_500);
    let found = block_on(again.log.seek_time(StreamId(0), PartitionId(1), after));
    assert_eq!(found.unwrap(), 3);
}
