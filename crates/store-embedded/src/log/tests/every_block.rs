//! Every kind of damage at every block of every file of a small log.
//!
//! What can be read afterwards is compared with what was written; the reports must name exactly the
//! rest. Then the loss is accepted, and everything else must come out as if nothing had been.
//!
//! `FIELDPOST_DAMAGE_FLIPS` sets how many bits of each block are changed one by one, besides those in
//! the places of headers.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Dice;
use super::*;
use crate::files::Files;
use crate::log::format::Key;
use crate::log::segment::SPARE_PREFIX;
use crate::{Damage, LostRecords};

const FLIPS: u64 = 2;

/// What was written, by partition and sequence number.
type Model = BTreeMap<Key, Vec<Bytes>>;

/// Records by partition and sequence number.
type Known = BTreeSet<(Key, u64)>;

/// How the process that wrote the log came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Killed,
}

/// A log, and what is known of it.
struct Written {
    disk: SimDisk,
    model: Model,
    /// The records of the last group.
    last: Known,
    /// Where the last group stands in the last segment.
    last_at: usize,
    /// The file of the last segment.
    last_name: String,
    /// Where the last mark or group ends in it.
    end: usize,
}

/// A log of three segments that was opened twice, with groups of one block and of several, of one
/// partition and of all, in two streams.
fn written(end: End) -> Written {
    let clock = Arc::new(TestClock::at(START_MS));
    let disk = SimDisk::new();
    let mut dice = Dice(11);
    let mut model = Model::new();
    let mut number = 0;
    let mut last = Known::new();
    let mut last_at = 0;
    for round in 0..2 {
        let bench = Bench::open(&disk, Arc::clone(&clock), &small(), round == 0).unwrap();
        let wanted = if round == 0 { 2 } else { 3 };
        while bench.segments().len() < wanted {
            group(&bench, &mut model, &mut dice, &mut number);
        }
        for _ in 0..4 {
            let before = model.clone();
            last_at = used(&bench);
            group(&bench, &mut model, &mut dice, &mut number);
            clock.advance(Duration::from_secs(1));
            last = (model.iter())
                .flat_map(|(&key, records)| {
                    let from = before.get(&key).map_or(0, Vec::len) as u64;
                    (from..records.len() as u64).map(move |sequence| (key, sequence))
                })
                .collect();
        }
        bench.keep();
        if round == 0 || end == End::Closed {
            bench.close();
        }
    }
    let disk = disk.copy();
    let last_name = disk
        .list()
        .unwrap()
        .into_iter()
        .filter(|name| name.ends_with(".segment"));
    let last_name = last_name.max().unwrap();
    let content = disk.content(&last_name).unwrap();
    let used = content.iter().rposition(|byte| *byte != 0).unwrap();
    Written {
        disk,
        model,
        last,
        last_at,
        last_name,
        end: (used + 1).next_multiple_of(4096),
    }
}

/// Where the last group in the last segment ends.
fn used(bench: &Bench) -> usize {
    let content = bench
        .disk
        .content(bench.segments().last().unwrap())
        .unwrap();
    let last = content.iter().rposition(|byte| *byte != 0).unwrap();
    (last + 1).next_multiple_of(4096)
}

/// One group of one to four batches.
fn group(bench: &Bench, model: &mut Model, dice: &mut Dice, number: &mut u64) {
    let mut appenders = Vec::new();
    for _ in 0..=dice.below(4) {
        // The last partition is written to now and then only.
        let partition = if dice.percent(10) {
            2
        } else {
            dice.below(2) as u16
        };
        let bodies: Vec<Vec<u8>> = (0..=dice.below(3))
            .map(|_| {
                *number += 1;
                let length = if dice.percent(15) { 9000 } else { 200 };
                body(*number, dice.below(length) as usize)
            })
            .collect();
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let mut batch = batch(partition, &slices);
        if dice.percent(20) {
            batch.streams.push(StreamId(3));
        }
        let mut appender = bench.appender();
        let streams = batch.streams.clone();
        appender.submit(batch).unwrap();
        appenders.push((appender, streams, partition, bodies));
    }
    assert!(matches!(bench.log.commit_once(), Turn::Committed { .. }));
    for (mut appender, streams, partition, bodies) in appenders {
        assert_eq!(durable(&mut appender), Some(Ok(1)));
        for stream in streams {
            let known = model.entry((stream, PartitionId(partition))).or_default();
            known.extend(bodies.iter().cloned().map(Bytes::from));
        }
    }
}

/// One damage to one file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// A bit of a byte changes.
    Flip { at: usize, bit: u8 },
    /// So many bytes become zeros.
    Zero { from: usize, bytes: usize },
    /// The file ends here.
    Cut { at: usize },
    /// The file is gone.
    Gone,
}

impl Harm {
    fn apply(self, disk: &SimDisk, name: &str) {
        match self {
            Self::Flip { at, bit } => disk.tamper(name, |content| content[at] ^= 1 << bit),
            Self::Zero { from, bytes } => disk.tamper(name, |content| {
                let to = content.len().min(from + bytes);
                content[from..to].fill(0);
            }),
            Self::Cut { at } => disk.tamper(name, |content| content.truncate(at)),
            Self::Gone => disk.remove(name).unwrap(),
        }
    }
}

/// Every damage that is tried on a file of this length.
fn harms(bytes: usize, flips: u64, dice: &mut Dice) -> Vec<Harm> {
    const BLOCK: usize = 4096;
    let mut harms = vec![Harm::Gone];
    for block in (0..bytes).step_by(BLOCK) {
        let inside = |dice: &mut Dice| block + dice.below(BLOCK.min(bytes - block) as u64) as usize;
        // The head of a group or of a segment is where most of the rules are.
        for at in [
            block,
            block + 8,
            block + 16,
            block + 24,
            block + 40,
            block + 70,
        ] {
            if at < bytes {
                let bit = dice.below(8) as u8;
                harms.push(Harm::Flip { at, bit });
            }
        }
        for _ in 0..flips {
            let at = inside(dice);
            let bit = dice.below(8) as u8;
            harms.push(Harm::Flip { at, bit });
        }
        harms.push(Harm::Zero {
            from: block,
            bytes: BLOCK,
        });
        harms.push(Harm::Zero {
            from: block / 512 * 512 + 512,
            bytes: 512,
        });
        harms.push(Harm::Zero {
            from: block,
            bytes: 4 * BLOCK,
        });
        harms.push(Harm::Cut { at: block });
        harms.push(Harm::Cut { at: inside(dice) });
    }
    harms.retain(|harm| match harm {
        Harm::Zero { from, .. } => *from < bytes,
        _ => true,
    });
    harms
}

/// The records that a list of damages names, of those that were written.
fn named<'a>(damage: impl IntoIterator<Item = &'a Damage>, model: &Model) -> Known {
    let mut known = Known::new();
    for lost in damage.into_iter().flat_map(|damage| &damage.lost) {
        let LostRecords {
            stream,
            partition,
            from,
            to,
        } = *lost;
        assert!(from < to, "{lost:?}");
        let key = (stream, partition);
        let written = model.get(&key).map_or(0, Vec::len) as u64;
        known.extend((from..to.min(written)).map(|sequence| (key, sequence)));
    }
    known
}

/// What reading everything comes to: what fails, and what the log says it never had.
struct Seen {
    unreadable: Known,
    cut: Known,
}

fn look(bench: &Bench, model: &Model, accepted: bool) -> Seen {
    let mut seen = Seen {
        unreadable: Known::new(),
        cut: Known::new(),
    };
    for (&key, written) in model {
        let bounds = bench.log.bounds(key.0, key.1);
        let written_to = written.len() as u64;
        seen.cut
            .extend((bounds.next..written_to).map(|sequence| (key, sequence)));
        let mut found = Known::new();
        let mut at = 0;
        while at < bounds.next {
            match block_on(bench.log.read(request(key.0.0, key.1.0, at, 5000))) {
                Ok(records) => {
                    for record in &records.records {
                        assert!(record.sequence >= at);
                        let expected = &written[record.sequence as usize];
                        assert_eq!(&record.data, expected, "{key:?} {}", record.sequence);
                        found.insert((key, record.sequence));
                    }
                    assert!(records.next > at, "{key:?} stands still at {at}");
                    at = records.next;
                }
                Err(StoreError::Damaged { what, resume }) => {
                    assert!(!accepted, "{what} was accepted");
                    let resume = resume.unwrap();
                    assert!(resume > at, "{what}");
                    at = resume;
                }
                Err(error) => panic!("{error}"),
            }
        }
        for sequence in 0..written_to.min(bounds.next) {
            if !found.contains(&(key, sequence)) {
                seen.unreadable.insert((key, sequence));
            }
        }
    }
    seen
}

fn lines(damage: &[Damage]) -> String {
    let lines: Vec<_> = damage.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// What was tried and what came of it.
#[derive(Debug, Default)]
struct Counts {
    damages: u64,
    with_loss: u64,
    torn: u64,
    untold: u64,
}

#[test]
fn what_cannot_be_read_is_named_exactly_and_everything_else_goes_on() {
    let flips = std::env::var("FIELDPOST_DAMAGE_FLIPS");
    let flips = flips
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(FLIPS);
    let mut counts = Counts::default();
    for end in [End::Closed, End::Killed] {
        let written = written(end);
        let mut dice = Dice(3);
        let mut names = written.disk.list().unwrap();
        names.retain(|name| !name.starts_with(SPARE_PREFIX));
        for name in names {
            let bytes = written.disk.content(&name).unwrap().len();
            for harm in harms(bytes, flips, &mut dice) {
                // Shown with a failure.
                println!("{end:?} {name} {harm:?}");
                let damaged = written.disk.copy();
                harm.apply(&damaged, &name);
                check(&written, end, &name, harm, &damaged, &mut counts);
            }
        }
    }
    println!("{counts:?}");
    assert!(counts.damages > 1800 && counts.with_loss > 1000 && counts.torn > 5);
    assert!(counts.untold < 20, "{counts:?}");
}

fn check(
    written: &Written,
    end: End,
    name: &str,
    harm: Harm,
    damaged: &SimDisk,
    counts: &mut Counts,
) {
    let model = &written.model;
    let clock = Arc::new(TestClock::at(START_MS + 60_000));
    let verdict = super::super::verify::verify(damaged, LOG_ID, partitioning()).unwrap();
    let told = named(&verdict.damage, model);

    // A log that is opened all the same says what it cannot read, and not a record else.
    let copy = damaged.copy();
    let bench = Bench::open(&copy, Arc::clone(&clock), &small(), false).unwrap();
    let seen = look(&bench, model, false);
    assert_eq!(told, seen.unreadable, "{}", lines(&verdict.damage));
    let at_open = named(&bench.report.damage, model);
    let at_once = name == written.last_name || matches!(harm, Harm::Cut { .. } | Harm::Gone);
    assert!(at_open == told || (!at_once && at_open.is_subset(&told)));
    let mut at_start = at_open;
    at_start.extend(named(&bench.log.check_older(), model));
    assert_eq!(at_start, told, "in the background");
    drop(bench);

    counts.damages += 1;
    counts.with_loss += u64::from(!seen.unreadable.is_empty());
    if !seen.cut.is_empty() {
        // Behind the last sign of what was durable, damage cannot be told from what was never
        // written, or not to its end.
        let wiped = matches!(harm, Harm::Zero { from, bytes }
            if name == written.last_name
                && (from + bytes >= written.end || (from <= written.last_at && from + bytes > written.last_at)));
        let last_only = end == End::Killed && seen.cut == written.last;
        assert!(wiped || last_only, "{:?} were cut off", seen.cut);
        assert_eq!(
            verdict.torn.is_some(),
            !wiped || !named(&verdict.torn, model).is_empty()
        );
        counts.torn += u64::from(verdict.torn.is_some());
        counts.untold += u64::from(verdict.torn.is_none());
    }

    // The operator accepts it.
    let files: Arc<dyn Files> = Arc::new(damaged.clone());
    let wall: Arc<dyn fieldpost_model::Clock> = Arc::clone(&clock) as _;
    let (accepted, left) =
        super::super::repair::accept_losses(&files, identity(false), &small(), &wall).unwrap();
    assert_eq!(left.damage, []);
    assert_eq!(left.accepted, accepted);
    let lost = named(accepted.iter().map(|loss| &loss.damage), model);
    assert_eq!(lost, seen.unreadable);

    let bench = Bench::open(damaged, clock, &small(), false).unwrap();
    assert_eq!(bench.report.damage, []);
    assert_eq!(bench.report.accepted, accepted.len());
    assert_eq!(bench.log.check_older(), []);
    let after = look(&bench, model, true);
    assert_eq!(after.unreadable, seen.unreadable);
    assert_eq!(after.cut, seen.cut);
    for partition in 0..PARTITIONS {
        let next = bench.next(partition);
        bench.append(partition, &[b"new"]);
        assert_eq!(bench.read(partition, next).unwrap().records[0].data, "new");
    }
    bench.close();
    let verdict = bench.verify();
    assert_eq!(verdict.damage, []);
    assert_eq!(verdict.accepted, accepted);
}
