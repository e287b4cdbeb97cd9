//! Every call of the file layer fails once, in one history that makes all kinds of them.
//!
//! The history opens a log for the first time, fills several segments, drops old ones, closes it,
//! and does it all again. It is run once for each of its calls and each way to fail.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;
use crate::files::Files;
use crate::files::sim::{CrashPlan, Fault};

/// The lines of the program's log that ask for attention.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    fn take(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let line = (*event.metadata().level(), text.0);
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// What was sent to each partition and acknowledged: its sequence number is not known to a sender,
/// so this is a list in order.
type Acked = BTreeMap<u16, Vec<Vec<u8>>>;

/// A step of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Open,
    Commit,
    Keep,
    Read,
    Close,
}

/// The one call that failed, and what came of it.
struct Outcome {
    call: &'static str,
    step: Step,
    came: String,
}

struct History {
    disk: SimDisk,
    clock: Arc<TestClock>,
    settings: LogSettings,
    acked: Acked,
    /// Sent and not acknowledged; may be there or not.
    sent: Acked,
    lines: Lines,
    fault: Fault,
    outcome: Option<Outcome>,
    /// Power failures that are still to be looked at after the fault.
    images: u32,
    number: u64,
}

impl History {
    fn new(fault: Fault, at: Option<u64>) -> Self {
        let disk = SimDisk::new();
        if let Some(at) = at {
            disk.fail_at(at, fault);
        }
        let mut settings = small();
        settings.retention.bytes_max = Some(400 << 10);
        settings.retention.at_bytes_max = AtBytesMax::DropOldest;
        Self {
            disk,
            clock: Arc::new(TestClock::at(START_MS)),
            settings,
            acked: Acked::new(),
            sent: Acked::new(),
            lines: Lines::default(),
            fault,
            outcome: None,
            images: 2,
            number: 0,
        }
    }

    /// The whole history.
    fn run(&mut self) {
        for round in 0..2 {
            let bench = self.open(round == 0);
            let bench = self.live(bench, 30);
            self.step(Step::Close, |_| {
                bench.close();
                String::new()
            });
            drop(bench);
        }
    }

    /// Opens the log; a start that failed is tried again, as a service manager does.
    fn open(&mut self, fresh: bool) -> Bench {
        loop {
            let mut opened = None;
            self.step(Step::Open, |history| {
                let clock = Arc::clone(&history.clock);
                match Bench::open(&history.disk, clock, &history.settings, fresh) {
                    Ok(bench) => {
                        assert_eq!(bench.report.damage, []);
                        opened = Some(bench);
                        "opened".to_owned()
                    }
                    Err(error) => format!("refused: {error}"),
                }
            });
            if let Some(bench) = opened {
                return bench;
            }
            if fresh {
                // As the store does: nothing was accepted into a log that was never open.
                for name in self.disk.list().unwrap() {
                    self.disk.remove(&name).unwrap();
                }
            }
        }
    }

    fn live(&mut self, bench: Bench, steps: u64) -> Bench {
        let mut bench = bench;
        for step in 0..steps {
            bench = self.commit(bench, step);
            self.step(Step::Keep, |_| {
                for _ in 0..4 {
                    bench.log.keep_once();
                }
                format!("{:?}", bench.level())
            });
            self.clock.advance(Duration::from_secs(11));
            if step % 5 == 4 {
                let from = bench.first(0);
                self.step(Step::Read, |_| match bench.read(0, from) {
                    Ok(_) => "read".to_owned(),
                    Err(StoreError::Read { .. }) => {
                        assert!(bench.read(0, from).is_ok(), "it was the one read only");
                        "reader was told".to_owned()
                    }
                    Err(error) => panic!("{error}"),
                });
            }
        }
        bench
    }

    /// Appends to two partitions in one group, as often as it takes. Gives the log that goes on.
    fn commit(&mut self, bench: Bench, step: u64) -> Bench {
        let bodies: Vec<(u16, Vec<u8>)> = [0, (step % 2 + 1) as u16]
            .into_iter()
            .map(|partition| {
                self.number += 1;
                let length = if step.is_multiple_of(3) { 9000 } else { 400 };
                (partition, body(self.number, length))
            })
            .collect();
        let mut appenders = Vec::new();
        for (partition, body) in &bodies {
            let mut appender = bench.appender();
            // Housekeeping may have met the fault, and holds messages back.
            if appender.submit(batch(*partition, &[body])).is_ok() {
                appenders.push((appender, *partition, body.clone()));
            }
        }
        for turn in 0..3 {
            let mut done = Turn::Idle;
            self.step(Step::Commit, |_| {
                done = bench.log.commit_once();
                format!("{done:?} {:?}", bench.level())
            });
            let mut told = 0;
            for (appender, partition, body) in &mut appenders {
                match durable(appender) {
                    Some(Ok(_)) => {
                        told += 1;
                        self.acked.entry(*partition).or_default().push(body.clone());
                    }
                    Some(Err(_)) => assert_eq!(done, Turn::Failed),
                    None => assert!(matches!(done, Turn::Held | Turn::Idle), "{done:?}"),
                }
            }
            match done {
                Turn::Committed { .. } => {
                    assert_eq!(told, appenders.len());
                    self.check_durable();
                    return bench;
                }
                Turn::Idle => {
                    assert!(appenders.is_empty());
                    return bench;
                }
                Turn::Held => {
                    assert_eq!(told, 0, "an acknowledgement of what is held");
                    assert_eq!(bench.level(), HealthLevel::HoldMessages);
                    assert!(turn < 2, "it does not go on by itself");
                }
                Turn::Failed => {
                    assert_eq!(told, 0, "an acknowledgement in spite of the failure");
                    for (_, partition, body) in appenders {
                        self.sent.entry(partition).or_default().push(body);
                    }
                    return self.after_failure(bench);
                }
            }
        }
        unreachable!("a held group is committed or fails at the third try")
    }

    /// The store is read-only: it says so, does nothing more, and a restart puts it right.
    fn after_failure(&mut self, bench: Bench) -> Bench {
        assert_eq!(bench.level(), HealthLevel::ReadOnly);
        let refused = bench.appender().submit(batch(0, &[b"x"]));
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
        self.check_durable();
        let calls = self.disk.calls();
        for _ in 0..3 {
            assert_eq!(bench.log.commit_once(), Turn::Failed);
        }
        bench.close();
        assert_eq!(self.disk.calls(), calls, "nothing is tried again");
        assert_eq!(self.lines.take(), [], "nothing is said again");
        drop(bench);
        self.open(false)
    }

    /// Carries out a step, and looks at what came of it if the fault was met.
    fn step(&mut self, step: Step, run: impl FnOnce(&mut Self) -> String) {
        let before = self.disk.failed_calls().len();
        let came = tracing::subscriber::with_default(self.lines.clone(), || run(self));
        let lines = self.lines.take();
        let Some(&(_, call)) = self.disk.failed_calls().get(before) else {
            // The store says when it goes on after a hold.
            let on = lines.iter().all(|(_, text)| text.contains("room again"));
            assert!(on, "{step:?}: {lines:?}");
            return;
        };
        self.judge(step, call, &came, &lines);
        self.outcome = Some(Outcome { call, step, came });
    }

    /// What may come of a failed call.
    fn judge(&self, step: Step, call: &str, came: &str, lines: &[(Level, String)]) {
        let fault = self.fault;
        let errors = lines
            .iter()
            .filter(|(level, _)| *level == Level::ERROR)
            .count();
        let about = format!("{fault:?} of {call} at {step:?}: {came}: {lines:?}");
        match step {
            // Whoever starts the log logs why it does not open.
            Step::Open if came.starts_with("refused") => assert_eq!(lines, [], "{about}"),
            Step::Commit if came.starts_with("Failed") => {
                assert_eq!((errors, lines.len()), (1, 1), "{about}");
                assert!(came.ends_with("ReadOnly"), "{about}");
            }
            Step::Commit if came.starts_with("Held") => {
                assert_eq!((errors, lines.len()), (0, 1), "{about}");
                assert!(came.ends_with("HoldMessages"), "{about}");
            }
            // The reader's caller logs it.
            Step::Read => assert_eq!(lines, [], "{about}"),
            // Nothing that was promised depends on it.
            Step::Open | Step::Commit | Step::Keep | Step::Close => {
                assert!(errors == 0 && lines.len() <= 2, "{about}");
            }
        }
        // A group's own write and sync are the heart of it.
        if step == Step::Commit && came.starts_with("Committed") {
            let short_write = fault == Fault::Short && call == "write";
            let file_keeping = !matches!(call, "write" | "sync");
            assert!(short_write || file_keeping, "{about}");
        }
    }

    /// What was acknowledged is on the disk, should the power fail at this very moment.
    fn check_durable(&mut self) {
        if self.outcome.is_none() || self.images == 0 {
            return;
        }
        self.images -= 1;
        let image = self.disk.image(CrashPlan {
            seed: 1,
            piece: 4096,
            kept_percent: 0,
        });
        self.check_log(&image);
    }

    fn check_log(&self, disk: &SimDisk) {
        let clock = Arc::clone(&self.clock);
        let bench = Bench::open(disk, clock, &self.settings, false).unwrap();
        assert_eq!(bench.report.damage, []);
        assert_eq!(bench.level(), HealthLevel::Ok);
        for (partition, acked) in &self.acked {
            let mut found = Vec::new();
            let mut at = bench.first(*partition);
            let dropped = at;
            while at < bench.next(*partition) {
                let records = bench.read(*partition, at).unwrap();
                assert!(records.next > at);
                at = records.next;
                found.extend(records.records.into_iter().map(|record| record.data));
            }
            let sent = self.sent.get(partition);
            let mut acked = acked.iter().rev();
            // From the newest back, because the oldest may have been dropped.
            for record in found.iter().rev() {
                if acked.clone().next().is_some_and(|body| record == body) {
                    acked.next();
                } else {
                    let known = sent.is_some_and(|sent| sent.iter().any(|body| record == body));
                    assert!(known, "a record that was not sent, or not in this order");
                }
            }
            assert!(
                dropped > 0 || acked.next().is_none(),
                "an acknowledged record is gone"
            );
        }
    }
}

#[test]
fn each_call_fails_once_and_nothing_acknowledged_is_lost() {
    let mut whole = History::new(Fault::Io, None);
    whole.run();
    let calls = whole.disk.calls();
    assert!(whole.disk.creations() > 4 && whole.outcome.is_none());
    let mut outcomes: BTreeMap<(String, &str, String), u64> = BTreeMap::new();
    let mut writes = std::collections::BTreeSet::new();
    for fault in [Fault::Io, Fault::Full, Fault::Short] {
        for at in 0..calls {
            // Only a write can be done in part.
            if fault == Fault::Short && !writes.contains(&at) {
                continue;
            }
            let mut history = History::new(fault, Some(at));
            history.run();
            history.check_log(&history.disk.copy());
            history.images = 1;
            history.check_durable();
            let Outcome { call, step, came } = history.outcome.expect("the call is reached");
            if call == "write" {
                writes.insert(at);
            }
            let came = came.split(':').next().unwrap_or_default().to_owned();
            *outcomes
                .entry((format!("{fault:?} {step:?}"), call, came))
                .or_default() += 1;
        }
    }
    println!("{calls} calls");
    for ((fault, call, came), times) in &outcomes {
        println!("{fault} {call}: {came} {times}");
    }
    let came = |part: &str| {
        outcomes
            .keys()
            .filter(|(_, _, came)| came.starts_with(part))
            .count()
    };
    for part in [
        "refused",
        "Failed ReadOnly",
        "Held HoldMessages",
        "Committed",
        "reader",
    ] {
        assert!(came(part) > 0, "no fault ended as {part}");
    }
    for call in [
        "create", "open", "rename", "remove", "list", "sync_dir", "space", "bytes", "read",
        "write", "allocate", "sync",
    ] {
        assert!(
            outcomes.keys().any(|(_, other, _)| *other == call),
            "no {call} failed"
        );
    }
}

#[test]
fn nobody_is_told_before_a_slow_sync_has_ended() {
    let bench = Bench::new();
    let waiting: Arc<Mutex<Vec<Appender>>> = Arc::default();
    let syncs = Arc::new(AtomicUsize::new(0));
    bench.disk.during_syncs({
        let (waiting, syncs, clock) = (
            Arc::clone(&waiting),
            Arc::clone(&syncs),
            Arc::clone(&bench.clock),
        );
        move || {
            clock.advance(Duration::from_secs(20));
            for appender in waiting.lock().unwrap().iter_mut() {
                assert_eq!(
                    durable(appender),
                    None,
                    "an acknowledgement during the sync"
                );
                syncs.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut acked = 0u64;
    for number in 0..60 {
        let mut appender = bench.appender();
        appender.submit(batch(0, &[&body(number, 5000)])).unwrap();
        waiting.lock().unwrap().push(appender);
        // Two groups' worth wait now and then.
        if number % 3 == 0 {
            continue;
        }
        let calls = syncs.load(Ordering::Relaxed);
        assert!(matches!(bench.log.commit_once(), Turn::Committed { .. }));
        assert!(
            syncs.load(Ordering::Relaxed) > calls,
            "a group without a sync"
        );
        for mut appender in waiting.lock().unwrap().drain(..) {
            assert_eq!(durable(&mut appender), Some(Ok(1)));
            acked += 1;
        }
        bench.keep();
    }
    assert_eq!(bench.level(), HealthLevel::Ok);
    assert!(bench.log.figures().sync_micros >= 20_000_000 * bench.log.figures().groups);
    assert!(bench.segments().len() > 3);
    let image = bench.disk.image(CrashPlan {
        seed: 1,
        piece: 4096,
        kept_percent: 0,
    });
    let again = Bench::open(&image, Arc::clone(&bench.clock), &small(), false).unwrap();
    assert_eq!(again.read_all(0).unwrap().len() as u64, acked);
}
