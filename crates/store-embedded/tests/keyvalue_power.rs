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

use std::cell::RefCell;
use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldpost_store::documents::{Collection, Documents, ListRequest};
use fieldpost_store::queues::{DeviceQueues, Lane, ListOutcomes, ListQueue, QueueName};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::keyvalue::{KeyValueStore, verify};
use fieldpost_testkit::power::{self, Checked, Coverage, NOTES, Process, Story, Whose, copy};

use ledger::{Ledger, close, open, work};

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
    if !power::is_possible() {
        assert!(wanted.is_none(), "strace is missing, or may not trace");
        println!("strace is missing, or may not trace: no images of power cuts were made");
        return;
    }
    let images = wanted.map_or(100, |wanted| wanted.parse().unwrap());
    catch_quietly();
    count_time();
    let folder = tempfile::tempdir().unwrap();
    let stories = stories(folder.path());
    for (story, _) in &stories {
        println!("{}", story.describe(Kind::of));
    }
    let (story, others) = &stories[0];
    show_that_losses_are_seen(story, others);
    let mut coverage = Coverage::default();
    let weights: u64 = stories.iter().map(|(story, _)| story.share).sum();
    let started = Instant::now();
    for (story, others) in &stories {
        let images = images * story.share / weights;
        coverage.add(story.check(images, |_, image, ledger: &Ledger, chance| {
            check_image(image, ledger, others, chance.below(2) == 0)
        }));
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

impl Run {
    /// This program again, on the documents in a folder.
    fn process(self, folder: &Path) -> Process {
        let batches = if self.killed { u64::MAX } else { self.batches };
        let path = folder.join("documents").into_os_string();
        let mut environment = vec![
            (VICTIM.into(), path),
            (BATCHES.into(), batches.to_string().into()),
        ];
        let length = self.length.map(|length| length.to_string());
        environment.extend(length.map(|length| (LENGTH.into(), length.into())));
        let mut sent = 0;
        Process {
            program: env::current_exe().unwrap(),
            arguments: Vec::new(),
            environment,
            whose: Whose::Own,
            kill: Box::new(move |note| {
                sent += u64::from(note.starts_with("sent "));
                self.killed && sent == self.batches
            }),
        }
    }
}

/// What happened, and what was there before and is never changed.
fn stories(folder: &Path) -> Vec<(Story, String)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let recorded = |name, share, like: Option<&str>, runs: &[Run]| {
        let before = folder.join(name).with_extension("before");
        match like {
            Some(like) => copy(&golden.join(like), &before),
            None => fs::create_dir(&before).unwrap(),
        }
        record(name, share, before, Vec::new(), runs)
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
        let (torn, _) = &stories[usize::from(cut > 2)];
        let (told, said) = torn.tear(cut, &before);
        println!("{name}: {told}");
        stories.push(record(name, 4, before, said, &[run(5)]));
    }
    // Its journals are made and removed, which takes 64 MB.
    let volume = Run {
        length: Some(100_000),
        ..run(400)
    };
    let (mut rotating, others) = recorded("rotating", 4, None, &[volume]);
    rotating.look_near("jnl");
    stories.push((rotating, others));
    stories
}

fn record(
    name: &'static str,
    share: u64,
    before: PathBuf,
    said: Vec<String>,
    runs: &[Run],
) -> (Story, String) {
    let processes = |folder: &Path| runs.iter().map(|run| run.process(folder)).collect();
    let look = |folder: &Path| {
        let store = open(&folder.join("documents")).unwrap();
        let others = others(&store);
        close(&store);
        others
    };
    Story::record(name, share, before, said, processes, look)
}

impl power::Ledger for Ledger {
    fn note(&mut self, line: &str) {
        Self::note(self, line);
    }

    fn is_rich(&self) -> bool {
        self.documents >= 200
    }
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
fn show_that_losses_are_seen(story: &Story, others: &str) {
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
        let is_left_out = |path: &str, ledger: &Ledger| {
            // Without those of journals while it is made, there would not even be a store.
            Kind::of(path) == kind && (kind != Kind::Journal || ledger.documents > 0)
        };
        let check = |image: &Path, ledger: &Ledger| check_image(image, ledger, others, false);
        let lost = story.loss_without(is_left_out, 500, check);
        let lost = lost.unwrap_or_else(|| panic!("nobody notices that no {kind:?} is synced"));
        println!(
            "without syncs of {kind:?}: image {}: {}",
            lost.images, lost.loss
        );
    }
}

/// Opens an image twice and looks whether everything is as was promised.
fn check_image(
    folder: &Path,
    ledger: &Ledger,
    others: &str,
    verify_first: bool,
) -> Result<Checked, String> {
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
        Checked {
            slowest,
            is_ahead: found.batches > ledger.documents,
        }
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
