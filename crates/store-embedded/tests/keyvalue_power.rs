//! The power fails at any system call of a process that changes documents and queues; what it
//! reported as done is there.
//!
//! The test starts itself as that process, under strace, which takes down what it writes, renames,
//! removes and syncs, in order and with all data; and what it reports. From that it follows what may
//! be on a disk after a cut between any two calls: what was synced, and of the rest nothing, all,
//! or any part, torn and out of order. Such images are opened. Each opens soon; it holds exactly the
//! first so many batches, at least those that were reported, no message that was never sent, and
//! every one that was reported; it can be written, closed and opened again.
//!
//! That the checks can fail is shown first: with the syncs of one kind of file left out of the
//! record, some image has lost something.
//!
//! `FIELDPOST_POWER_IMAGES` sets how many images are made, 100 by default; with 0 nothing is done.
//! Needs strace, and without it passes only when the number is not set.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test without the usual harness reports by itself and stops where it fails"
)]

mod ledger;
mod power;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldpost_store::documents::{Collection, Documents, ListRequest};
use fieldpost_store::queues::{DeviceQueues, Lane, ListOutcomes, ListQueue, QueueName};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::keyvalue::{KeyValueStore, verify};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use ledger::{Found, Ledger, close, open, work};
use power::copy;
use power::disk::{Disk, Promises};
use power::image::{Chance, Data, Images, Mode, Names};
use power::trace::{self, Call, NOTES};

/// Set for the process that is recorded: the directory of its documents.
const VICTIM: &str = "FIELDPOST_POWER_VICTIM";
/// How many batches it sends.
const BATCHES: &str = "FIELDPOST_POWER_BATCHES";
/// How long its messages are, when all are of one length.
const LENGTH: &str = "FIELDPOST_POWER_LENGTH";
const IMAGES: &str = "FIELDPOST_POWER_IMAGES";

/// An image that takes longer to open is taken for one that never does.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// How often [`count_time`] looks up.
const TICK: Duration = Duration::from_millis(10);

/// Time in which this machine ran, in ticks.
static TICKS: AtomicU64 = AtomicU64::new(0);

fn main() {
    if let Some(path) = env::var_os(VICTIM) {
        return change(Path::new(&path));
    }
    let wanted = env::var(IMAGES).ok();
    if wanted.as_deref() == Some("0") {
        println!("images of power cuts are left out");
        return;
    }
    if !trace::is_possible() {
        assert!(wanted.is_none(), "strace is missing, or may not trace");
        println!("strace is missing, or may not trace: no images of power cuts were made");
        return;
    }
    let images = wanted.map_or(100, |wanted| wanted.parse().unwrap());
    catch_quietly();
    count_time();
    let folder = tempfile::tempdir().unwrap();
    let stories = stories(folder.path());
    for story in &stories {
        println!("{}", story.describe());
    }
    show_that_losses_are_seen(&stories[0]);
    let mut coverage = Coverage::default();
    let weights: u64 = stories.iter().map(|story| story.share).sum();
    let started = Instant::now();
    for story in &stories {
        coverage.add(check_images(story, images * story.share / weights));
    }
    let took = started.elapsed();
    println!("{coverage}");
    println!(
        "{} images of power cuts in {took:.1?}, slowest open {:.0?}",
        coverage.images, coverage.slowest
    );
    assert!(coverage.failed == 0, "{} images failed", coverage.failed);
}

/// The process that is recorded.
fn change(path: &Path) {
    let notes = fs::OpenOptions::new().write(true).open(NOTES).unwrap();
    let batches = env::var(BATCHES).unwrap().parse().unwrap();
    let length = env::var(LENGTH).ok().map(|length| length.parse().unwrap());
    let store = open(path).unwrap();
    work(&store, batches, length, |line| {
        let written = std::io::Write::write(&mut &notes, line.as_bytes());
        assert_eq!(written.unwrap(), line.len());
    });
    close(&store);
}

/// What one or more processes did, one after the other, and what they found.
struct Story {
    name: &'static str,
    /// Of the images.
    share: u64,
    folder: PathBuf,
    /// A copy of the folder as it was before.
    before: PathBuf,
    /// What had been said before.
    said: Vec<String>,
    calls: Vec<Call>,
    phases: Vec<Phase>,
    /// How much a cut after each call matters.
    weights: Vec<u64>,
    /// What was there before and is never changed.
    others: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Opening,
    Working,
    Closing,
}

/// What one process does.
#[derive(Clone, Copy)]
struct Run {
    batches: u64,
    /// It goes on until it is killed, which is when it has said that it sent the last.
    killed: bool,
    /// Of messages; none when each has its own.
    length: Option<usize>,
}

const fn run(batches: u64) -> Run {
    Run {
        batches,
        killed: false,
        length: None,
    }
}

const fn killed(batches: u64) -> Run {
    Run {
        killed: true,
        ..run(batches)
    }
}

fn stories(folder: &Path) -> Vec<Story> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let recorded = |name, share, like: Option<&str>, runs: &[Run]| {
        let before = folder.join(name).with_extension("before");
        match like {
            Some(like) => copy(&golden.join(like), &before),
            None => fs::create_dir(&before).unwrap(),
        }
        Story::record(name, share, before, Vec::new(), runs)
    };
    let kills = [killed(30), killed(400), killed(5), run(30)];
    let mut stories = vec![
        recorded("new", 40, None, &[run(1_500), run(800)]),
        recorded("killed", 20, None, &kills),
        recorded("format-1", 13, Some("format-1"), &[run(20), run(20)]),
        recorded("format-2", 7, Some("format-2"), &[run(20), run(20)]),
    ];
    // The power fails again while what a cut left is opened.
    for (name, cut) in [("torn-1", 1), ("torn-2", 3), ("torn-3", 2), ("torn-4", 5)] {
        let before = folder.join(name).with_extension("before");
        let (told, said) = tear(&stories[usize::from(cut > 2)], cut, &before);
        println!("{name}: {told}");
        stories.push(Story::record(name, 4, before, said, &[run(5)]));
    }
    // Its journals are made and removed, which takes 64 MB.
    let volume = Run {
        length: Some(100_000),
        ..run(400)
    };
    let mut rotating = recorded("rotating", 4, None, &[volume]);
    rotating.look_at_journals_only();
    stories.push(rotating);
    stories
}

/// Writes an image of a cut in the middle of a journal to a folder. Returns what was cut, and what
/// had been said until then.
fn tear(story: &Story, seed: u64, folder: &Path) -> (String, Vec<String>) {
    let writes: Vec<usize> = (0..story.calls.len())
        .filter(|at| {
            matches!(story.calls[*at], Call::Write { .. }) && story.phases[*at] == Phase::Working
        })
        .collect();
    let mut chance = Chance::new(seed);
    let cut = usize::try_from(chance.below(writes.len() as u64)).unwrap();
    let mut disk = story.disk(Promises::Posix);
    let mut said = story.said.clone();
    for call in &story.calls[..=writes[cut]] {
        disk.apply(call);
        if let Call::Note(note) = call {
            said.push(note.clone());
        }
    }
    let mode = Mode {
        data: Data::Sectors,
        names: Names::All,
    };
    let shared = image_folder();
    Images::new(shared.path().join("shared")).write(&disk, mode, &mut chance, folder);
    let told = format!("{} cut at call {}", story.name, writes[cut]);
    (told, said)
}

impl Story {
    /// Has processes run on a copy of the folder `before`, beside it.
    fn record(
        name: &'static str,
        share: u64,
        before: PathBuf,
        said: Vec<String>,
        runs: &[Run],
    ) -> Self {
        let folder = before.with_extension("");
        copy(&before, &folder);
        let documents = folder.join("documents");
        let mut disk = Disk::of(&folder, &before, Promises::Posix);
        let mut calls = Vec::new();
        let mut phases = Vec::new();
        for run in runs {
            let mut sent = 0;
            let path = documents.to_str().unwrap().to_owned();
            let batches = if run.killed { u64::MAX } else { run.batches };
            let mut set = vec![(VICTIM, path), (BATCHES, batches.to_string())];
            set.extend(run.length.map(|length| (LENGTH, length.to_string())));
            let mut recorded = trace::record(&folder, &set, |note| {
                sent += u64::from(note.starts_with("sent "));
                run.killed && sent == run.batches
            });
            for call in &recorded.calls {
                disk.apply(call);
            }
            for call in recorded.unfinished {
                let done = disk.done_of(&call);
                done.iter().for_each(|done| disk.apply(done));
                recorded.calls.extend(done);
            }
            recorded.calls.push(Call::End);
            disk.apply(&Call::End);
            disk.compare(&folder, 0);
            phases.extend(phases_of(&recorded.calls));
            calls.extend(recorded.calls);
        }
        let store = open(&documents).unwrap();
        let others = others(&store);
        close(&store);
        fs::remove_dir_all(&folder).unwrap();
        let weights = calls
            .iter()
            .zip(&phases)
            .map(|(call, phase)| weight(call, *phase));
        Self {
            name,
            share,
            folder,
            before,
            said,
            weights: weights.collect(),
            calls,
            phases,
            others,
        }
    }

    /// Leaves out cuts that are far from where a journal is made or removed.
    fn look_at_journals_only(&mut self) {
        let journals: Vec<usize> = (0..self.calls.len())
            .filter(|at| match &self.calls[*at] {
                Call::Open {
                    path, create: true, ..
                }
                | Call::Unlink { path } => path.extension().is_some_and(|end| end == "jnl"),
                _ => false,
            })
            .collect();
        for (at, weight) in self.weights.iter_mut().enumerate() {
            let is_near = journals.iter().any(|journal| journal.abs_diff(at) < 60);
            if self.phases[at] == Phase::Opening || !is_near {
                *weight = 0;
            }
        }
    }

    fn describe(&self) -> String {
        let mut disk = self.disk(Promises::Posix);
        let mut syncs = BTreeMap::new();
        let mut done: BTreeMap<_, u32> = BTreeMap::new();
        for call in &self.calls {
            if let Call::Sync { descriptor, .. } = call {
                let kind = Kind::of(&disk.name_of(*descriptor));
                *syncs.entry(kind).or_insert(0u32) += 1;
            }
            let what = match call {
                Call::Write { .. } => "writes",
                Call::Rename { .. } => "renames",
                Call::Unlink { path } if path.extension().is_some_and(|end| end == "jnl") => {
                    "journals removed"
                }
                Call::Unlink { .. } => "files removed",
                Call::Open {
                    path, create: true, ..
                } if disk.find(path).is_none() => match Kind::of(path.to_str().unwrap()) {
                    Kind::Journal => "journals made",
                    Kind::Table => "tables made",
                    _ => "other files made",
                },
                Call::MakeFolder { .. } => "folders made",
                _ => "",
            };
            *done.entry(what).or_default() += 1;
            disk.apply(call);
        }
        done.remove("");
        format!(
            "{}: {} calls; {done:?}; syncs {syncs:?}",
            self.name,
            self.calls.len()
        )
    }

    fn disk(&self, promises: Promises) -> Disk {
        Disk::of(&self.folder, &self.before, promises)
    }

    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        self.said.iter().for_each(|line| ledger.note(line));
        ledger
    }

    /// The calls after which the power fails, one for each image, in order.
    fn cuts(&self, images: u64, chance: &mut Chance) -> Vec<usize> {
        let total: u64 = self.weights.iter().sum();
        let mut cuts = Vec::new();
        let mut weight = 0;
        let mut next = chance.below(total / images.max(1) + 1);
        for at in 0..self.calls.len() {
            weight += self.weights[at];
            while next < weight && (cuts.len() as u64) < images {
                cuts.push(at);
                let number = cuts.len() as u64;
                next = number * total / images + chance.below(total / images + 1);
            }
        }
        cuts
    }
}

/// How much a cut after a call matters.
fn weight(call: &Call, phase: Phase) -> u64 {
    let weight = match call {
        Call::Open { create: true, .. }
        | Call::SetLength { .. }
        | Call::Rename { .. }
        | Call::Unlink { .. }
        | Call::MakeFolder { .. }
        | Call::RemoveFolder { .. }
        | Call::End => 8,
        Call::SyncBegins { .. } | Call::Sync { .. } => 4,
        Call::Write { .. } => 2,
        Call::Note(_) => 1,
        Call::Open { .. } | Call::Seek { .. } => 0,
    };
    match phase {
        Phase::Working => weight,
        Phase::Opening | Phase::Closing => 4 * weight,
    }
}

fn phases_of(calls: &[Call]) -> Vec<Phase> {
    let is_note = |call: &Call| matches!(call, Call::Note(_));
    let first = calls.iter().position(is_note).unwrap_or(calls.len());
    let last = calls.iter().rposition(is_note).unwrap_or(0);
    let phase = |at: usize| match at {
        at if at < first => Phase::Opening,
        at if at <= last => Phase::Working,
        _ => Phase::Closing,
    };
    (0..calls.len()).map(phase).collect()
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Journal,
    Table,
    /// Which tables a keyspace has.
    Version,
    /// Which version counts.
    Current,
    TablesFolder,
    KeyspaceFolder,
    KeyspacesFolder,
    StoreFolder,
    ParentFolder,
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_number = |text: &str| text.parse::<u64>().is_ok();
        if path.is_empty() {
            Self::ParentFolder
        } else if name.ends_with(".jnl") {
            Self::Journal
        } else if name == "tables" {
            Self::TablesFolder
        } else if path.contains("/tables/") {
            Self::Table
        } else if name.strip_prefix('v').is_some_and(is_number) {
            Self::Version
        } else if name == "current" || name.starts_with(".tmp") {
            Self::Current
        } else if name == "keyspaces" {
            Self::KeyspacesFolder
        } else if is_number(name) {
            Self::KeyspaceFolder
        } else if name == "documents" || name == "documents.new" {
            Self::StoreFolder
        } else {
            Self::Other
        }
    }
}

/// Leaves syncs out of the record, one kind after the other.
fn show_that_losses_are_seen(story: &Story) {
    for kind in [
        Kind::Journal,
        Kind::Table,
        Kind::Version,
        Kind::Current,
        Kind::TablesFolder,
        Kind::KeyspaceFolder,
        Kind::KeyspacesFolder,
        Kind::StoreFolder,
        Kind::ParentFolder,
    ] {
        let (images, loss) = loss_without(story, kind)
            .unwrap_or_else(|| panic!("nobody notices that no {kind:?} is synced"));
        println!("without syncs of {kind:?}: image {images}: {loss}");
    }
}

/// What an image has lost, and how many were looked at, when files of a kind are never synced.
fn loss_without(story: &Story, kind: Kind) -> Option<(u64, String)> {
    let folder = image_folder();
    let mut images = Images::new(folder.path().join("shared"));
    let mut disk = story.disk(Promises::Posix);
    let mut ledger = story.ledger();
    let mut made = 0;
    for (at, call) in story.calls.iter().enumerate() {
        // Without those of journals while it is made, there would not even be a store.
        let forgotten = match call {
            Call::Sync { descriptor, .. } if kind != Kind::Journal || ledger.documents > 0 => {
                Kind::of(&disk.name_of(*descriptor)) == kind
            }
            _ => false,
        };
        if !forgotten {
            disk.apply(call);
        }
        if let Call::Note(note) = call {
            ledger.note(note);
        }
        // When much was promised.
        if at % 500 > 0 || ledger.documents < 200 {
            continue;
        }
        for names in [Names::All, Names::None] {
            let mode = Mode {
                data: Data::None,
                names,
            };
            let path = folder.path().join("image");
            images.write(&disk, mode, &mut Chance::new(0), &path);
            let checked = check_image(&path, &ledger, &story.others, false);
            fs::remove_dir_all(&path).unwrap();
            made += 1;
            if let Err(loss) = checked {
                return Some((made, loss));
            }
        }
    }
    None
}

/// What was covered.
#[derive(Default)]
struct Coverage {
    images: u64,
    failed: u64,
    slowest: Duration,
    phases: BTreeMap<(&'static str, Phase), u64>,
    modes: BTreeMap<(Promises, Data, Names), u64>,
    /// Images that held batches which were not reported yet.
    ahead: u64,
}

impl Coverage {
    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.failed += other.failed;
        self.slowest = self.slowest.max(other.slowest);
        for (phase, images) in other.phases {
            *self.phases.entry(phase).or_default() += images;
        }
        for (mode, images) in other.modes {
            *self.modes.entry(mode).or_default() += images;
        }
        self.ahead += other.ahead;
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "cuts by what was done: {:?}", self.phases)?;
        let fewest = self.modes.values().min();
        writeln!(
            f,
            "{} ways to lose what was not synced, at least {} images of each",
            self.modes.len(),
            fewest.unwrap_or(&0)
        )?;
        write!(
            f,
            "{} images held batches that were not reported yet",
            self.ahead
        )
    }
}

fn check_images(story: &Story, images: u64) -> Coverage {
    let cuts = story.cuts(images, &mut Chance::new(images));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let stopped = AtomicBool::new(false);
    let total = Mutex::new(Coverage::default());
    thread::scope(|scope| {
        for part in 0..threads {
            let (cuts, stopped, total) = (&cuts, &stopped, &total);
            scope.spawn(move || {
                let numbered = cuts.iter().copied().enumerate();
                let own = numbered.skip(part).step_by(threads).collect();
                let covered = check_part(story, own, stopped);
                total.lock().unwrap().add(covered);
            });
        }
    });
    total.into_inner().unwrap()
}

/// Makes images at cuts, each with its number.
fn check_part(story: &Story, cuts: Vec<(usize, usize)>, stopped: &AtomicBool) -> Coverage {
    let folder = image_folder();
    let path = folder.path().join("image");
    let mut images = Images::new(folder.path().join("shared"));
    let mut disks = [Promises::Posix, Promises::Journaled].map(|promises| story.disk(promises));
    let seed = xxh3_64(story.name.as_bytes());
    let mut ledger = story.ledger();
    let mut coverage = Coverage::default();
    let mut cuts = cuts.into_iter().peekable();
    for (at, call) in story.calls.iter().enumerate() {
        for disk in &mut disks {
            disk.apply(call);
        }
        if let Call::Note(note) = call {
            ledger.note(note);
        }
        while let Some((number, _)) = cuts.next_if(|(_, cut)| *cut == at) {
            if stopped.load(Ordering::Relaxed) {
                return coverage;
            }
            let mut chance = Chance::new(seed ^ number as u64);
            let mode = Mode::of(number);
            let disk = &disks[number / Mode::COUNT % 2];
            let again = chance.clone();
            images.write(disk, mode, &mut chance, &path);
            let verify_first = chance.below(2) == 0;
            let checked = check_image(&path, &ledger, &story.others, verify_first);
            fs::remove_dir_all(&path).unwrap();
            coverage.images += 1;
            *coverage
                .phases
                .entry((story.name, story.phases[at]))
                .or_default() += 1;
            let mode_on_disk = (disk.promises, mode.data, mode.names);
            *coverage.modes.entry(mode_on_disk).or_default() += 1;
            match checked {
                Ok(seen) => {
                    coverage.slowest = coverage.slowest.max(seen.slowest);
                    coverage.ahead += u64::from(seen.found.batches > ledger.documents);
                }
                Err(loss) => {
                    coverage.failed += 1;
                    if coverage.failed == 3 {
                        stopped.store(true, Ordering::Relaxed);
                    }
                    let kept = env::temp_dir().join(format!(
                        "fieldpost-power-{}-{}-{number}",
                        process::id(),
                        story.name
                    ));
                    images.write(disk, mode, &mut again.clone(), &kept);
                    tell(
                        story,
                        at,
                        &format!("{mode}, {:?}", disk.promises),
                        &kept,
                        &loss,
                    );
                }
            }
        }
    }
    coverage
}

/// Shows an image that failed, and what led to it.
fn tell(story: &Story, at: usize, mode: &str, kept: &Path, loss: &str) {
    let mut disk = story.disk(Promises::Posix);
    let mut lines = Vec::new();
    for call in &story.calls[..=at] {
        let line = match call {
            Call::Write { descriptor, data } => {
                format!(
                    "write {} bytes to {}",
                    data.len(),
                    disk.name_of(*descriptor)
                )
            }
            Call::Sync { descriptor, .. } => format!("sync {}", disk.name_of(*descriptor)),
            Call::SyncBegins { descriptor, .. } => {
                format!("sync of {} begins", disk.name_of(*descriptor))
            }
            call => {
                let mut line = format!("{call:?}");
                line.truncate(300);
                line
            }
        };
        lines.push(line);
        disk.apply(call);
    }
    let last = lines.len().saturating_sub(40);
    println!(
        "{}: cut after call {at} ({:?}), {mode}: {loss}\nthe image is {}\n  {}",
        story.name,
        story.phases[at],
        kept.display(),
        lines[last..].join("\n  ")
    );
}

/// What an image showed.
struct Seen {
    found: Found,
    slowest: Duration,
}

/// Opens an image twice and looks whether everything is as was promised.
fn check_image(
    folder: &Path,
    ledger: &Ledger,
    others: &str,
    verify_first: bool,
) -> Result<Seen, String> {
    CAUGHT.set(Some(String::new()));
    let checked = panic::catch_unwind(AssertUnwindSafe(|| {
        let path = folder.join("documents");
        let mut slowest = Duration::ZERO;
        let mut open = || {
            let started = TICKS.load(Ordering::Relaxed);
            let store = open(&path).unwrap_or_else(|error| panic!("{error}"));
            let ticks = TICKS.load(Ordering::Relaxed) - started;
            slowest = slowest.max(TICK * u32::try_from(ticks).unwrap());
            store
        };
        if verify_first && path.exists() {
            assert_eq!(verify(&path).unwrap(), [""; 0]);
        }
        let store = open();
        let found = ledger.check(&store);
        assert_eq!(self::others(&store), others);
        close(&store);
        assert_eq!(verify(&path).unwrap(), [""; 0]);
        let store = open();
        assert_eq!(ledger.check(&store), found, "the second time");
        close(&store);
        assert!(slowest < OPEN_MAX, "took {slowest:?} to open");
        Seen { found, slowest }
    }));
    let caught = CAUGHT.take();
    checked.map_err(|_| caught.unwrap_or_default())
}

/// What is in a store besides what the ledger is about: what the stores of older formats hold.
fn others(store: &KeyValueStore) -> String {
    let documents = block_on(store.documents.list(ListRequest {
        collection: Collection(1),
        prefix: Bytes::new(),
        after: None,
        limit: usize::MAX,
    }));
    let messages = block_on(store.queues.list(ListQueue {
        queue: QueueName(Bytes::from_static(b"q")),
        after: 0,
        limit: usize::MAX,
        bytes_max: usize::MAX,
    }));
    let records = block_on(store.queues.outcomes(ListOutcomes {
        lane: Lane(2),
        after: 0,
        limit: usize::MAX,
        bytes_max: usize::MAX,
        queue: None,
    }));
    format!(
        "{:?} {:?} {:?}",
        documents.unwrap().documents,
        messages.unwrap().messages,
        records.unwrap()
    )
}

/// Counts ticks for ever. A machine that stands still, or has other things to do, is not a store
/// that does not open.
fn count_time() {
    thread::spawn(|| {
        loop {
            thread::sleep(TICK);
            TICKS.fetch_add(1, Ordering::Relaxed);
        }
    });
}

thread_local! {
    /// What a panic of this thread said, when it is expected that there may be one.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn catch_quietly() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |told| {
        let caught = CAUGHT.with_borrow_mut(|caught| {
            if let Some(caught) = caught {
                *caught = told.to_string();
                return true;
            }
            false
        });
        if !caught {
            before(told);
        }
    }));
}

/// A folder in memory, where there is one: a sync costs nothing there.
fn image_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}
