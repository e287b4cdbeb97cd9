//! What processes did, the moments at which the power may fail, and what was covered.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::disk::{Disk, Promises};
use super::image::{Chance, Data, Images, Mode, Names};
use super::trace::{self, Call};
use super::{copy, image_folder};

pub use super::trace::{Process, Whose};

/// What one or more processes did to a folder, one after the other.
pub struct Story {
    /// For people, and for the choice of images.
    pub name: &'static str,
    /// Of the images.
    pub share: u64,
    folder: PathBuf,
    /// A copy of the folder as it was before.
    before: PathBuf,
    /// What had been said before.
    said: Vec<String>,
    calls: Vec<Call>,
    phases: Vec<Phase>,
    /// How much a cut after each call matters.
    weights: Vec<u64>,
}

/// What a process was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It had not said anything yet.
    Opening,
    /// Between the first and the last thing that it said.
    Working,
    /// It said nothing any more.
    Closing,
}

/// What processes promised.
pub trait Ledger: Default {
    /// Takes note of what a process said.
    fn note(&mut self, line: &str);

    /// Whether enough was promised for a loss to show.
    fn is_rich(&self) -> bool;
}

/// What an image showed that keeps every promise.
pub struct Checked {
    /// The longest time in which it was opened.
    pub slowest: Duration,
    /// It also held something that was not promised yet.
    pub is_ahead: bool,
}

/// An image that lost something.
pub struct Lost {
    /// How many images were looked at before, this one included.
    pub images: u64,
    /// What it lost.
    pub loss: String,
}

impl Story {
    /// Has processes run on a copy of the folder `before`, beside it, and looks at what they left there.
    ///
    /// `said` is what had been promised of `before`.
    pub fn record<T>(
        name: &'static str,
        share: u64,
        before: PathBuf,
        said: Vec<String>,
        runs: impl FnOnce(&Path) -> Vec<Process>,
        look: impl FnOnce(&Path) -> T,
    ) -> (Self, T) {
        let folder = before.with_extension("");
        copy(&before, &folder);
        let mut disk = Disk::of(&folder, &before, Promises::Posix);
        let mut calls = Vec::new();
        let mut phases = Vec::new();
        for run in runs(&folder) {
            let mut recorded = trace::record(&folder, run);
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
        let looked = look(&folder);
        fs::remove_dir_all(&folder).unwrap();
        let weights = calls
            .iter()
            .zip(&phases)
            .map(|(call, phase)| weight(call, *phase));
        let story = Self {
            name,
            share,
            folder,
            before,
            said,
            weights: weights.collect(),
            calls,
            phases,
        };
        (story, looked)
    }

    /// Leaves out cuts that are far from where a file is made or removed whose name ends so, after a dot.
    pub fn look_near(&mut self, extension: &str) {
        let events: Vec<usize> = (0..self.calls.len())
            .filter(|at| match &self.calls[*at] {
                Call::Open {
                    path, create: true, ..
                }
                | Call::Unlink { path } => path.extension().is_some_and(|end| end == extension),
                _ => false,
            })
            .collect();
        for (at, weight) in self.weights.iter_mut().enumerate() {
            let is_near = events.iter().any(|event| event.abs_diff(at) < 60);
            if self.phases[at] == Phase::Opening || !is_near {
                *weight = 0;
            }
        }
    }

    /// How often what was done. `kind` says what a file is for, by its path.
    pub fn describe<K: Ord + fmt::Debug>(&self, kind: impl Fn(&str) -> K) -> String {
        let mut disk = self.disk(Promises::Posix);
        let mut syncs = BTreeMap::new();
        let mut made = BTreeMap::new();
        let mut done: BTreeMap<_, u32> = BTreeMap::new();
        for call in &self.calls {
            let what = match call {
                Call::Sync { descriptor, .. } => {
                    let kind = kind(&disk.name_of(*descriptor));
                    *syncs.entry(kind).or_insert(0_u32) += 1;
                    ""
                }
                Call::Write { .. } | Call::WriteAt { .. } => "writes",
                Call::Rename { .. } => "renames",
                Call::Unlink { .. } => "files removed",
                Call::Open {
                    path, create: true, ..
                } if disk.find(path).is_none() => {
                    let path = path.strip_prefix(&self.folder).unwrap();
                    let kind = kind(&format!("/{}", path.display()));
                    *made.entry(kind).or_insert(0_u32) += 1;
                    ""
                }
                Call::MakeFolder { .. } => "folders made",
                _ => "",
            };
            *done.entry(what).or_default() += 1;
            disk.apply(call);
        }
        done.remove("");
        format!(
            "{}: {} calls; {done:?}; files made {made:?}; syncs {syncs:?}",
            self.name,
            self.calls.len()
        )
    }

    /// Writes an image of a cut in the middle of a write to a folder. Returns what was cut, and what had
    /// been said until then.
    pub fn tear(&self, seed: u64, folder: &Path) -> (String, Vec<String>) {
        let is_write = |call: &Call| matches!(call, Call::Write { .. } | Call::WriteAt { .. });
        let writes: Vec<usize> = (0..self.calls.len())
            .filter(|at| is_write(&self.calls[*at]) && self.phases[*at] == Phase::Working)
            .collect();
        let mut chance = Chance::new(seed);
        let cut = usize::try_from(chance.below(writes.len() as u64)).unwrap();
        let mut disk = self.disk(Promises::Posix);
        let mut said = self.said.clone();
        for call in &self.calls[..=writes[cut]] {
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
        let told = format!("{} cut at call {}", self.name, writes[cut]);
        (told, said)
    }

    /// What an image has lost when the syncs of some files are left out of the record, if any has. Every
    /// `step` calls the power fails.
    pub fn loss_without<L: Ledger>(
        &self,
        is_left_out: impl Fn(&str, &L) -> bool,
        step: usize,
        check: impl Fn(&Path, &L) -> Result<Checked, String>,
    ) -> Option<Lost> {
        let folder = image_folder();
        let mut images = Images::new(folder.path().join("shared"));
        let mut disk = self.disk(Promises::Posix);
        let mut ledger: L = self.ledger();
        let mut made = 0;
        for (at, call) in self.calls.iter().enumerate() {
            let is_left_out = match call {
                Call::Sync { descriptor, .. } => is_left_out(&disk.name_of(*descriptor), &ledger),
                _ => false,
            };
            if !is_left_out {
                disk.apply(call);
            }
            if let Call::Note(note) = call {
                ledger.note(note);
            }
            if !at.is_multiple_of(step) || !ledger.is_rich() {
                continue;
            }
            for names in [Names::All, Names::None] {
                let mode = Mode {
                    data: Data::None,
                    names,
                };
                let path = folder.path().join("image");
                images.write(&disk, mode, &mut Chance::new(0), &path);
                let checked = check(&path, &ledger);
                fs::remove_dir_all(&path).unwrap();
                made += 1;
                if let Err(loss) = checked {
                    return Some(Lost { images: made, loss });
                }
            }
        }
        None
    }

    /// Makes so many images and has each checked, on a thread for each processor. The check is told its
    /// thread's number and may choose by chance.
    pub fn check<L: Ledger>(
        &self,
        images: u64,
        check: impl Fn(usize, &Path, &L, &mut Chance) -> Result<Checked, String> + Sync,
    ) -> Coverage {
        let cuts = self.cuts(images, &mut Chance::new(images));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let stopped = AtomicBool::new(false);
        let total = Mutex::new(Coverage::default());
        thread::scope(|scope| {
            for part in 0..threads {
                let (cuts, stopped, total, check) = (&cuts, &stopped, &total, &check);
                scope.spawn(move || {
                    let numbered = cuts.iter().copied().enumerate();
                    let own = numbered.skip(part).step_by(threads).collect();
                    let check = |path: &Path, ledger: &L, chance: &mut Chance| {
                        check(part, path, ledger, chance)
                    };
                    let covered = self.check_part(own, stopped, check);
                    total.lock().unwrap().add(covered);
                });
            }
        });
        total.into_inner().unwrap()
    }

    /// Makes images at cuts, each with its number.
    fn check_part<L: Ledger>(
        &self,
        cuts: Vec<(usize, usize)>,
        stopped: &AtomicBool,
        check: impl Fn(&Path, &L, &mut Chance) -> Result<Checked, String>,
    ) -> Coverage {
        let folder = image_folder();
        let path = folder.path().join("image");
        let mut images = Images::new(folder.path().join("shared"));
        let mut disks = [Promises::Posix, Promises::Journaled].map(|promises| self.disk(promises));
        let seed = seed_of(self.name);
        let mut ledger: L = self.ledger();
        let mut coverage = Coverage::default();
        let mut cuts = cuts.into_iter().peekable();
        for (at, call) in self.calls.iter().enumerate() {
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
                let checked = check(&path, &ledger, &mut chance);
                fs::remove_dir_all(&path).unwrap();
                coverage.images += 1;
                let phase = (self.name, self.phases[at]);
                *coverage.phases.entry(phase).or_default() += 1;
                let mode_on_disk = (disk.promises, mode.data, mode.names);
                *coverage.modes.entry(mode_on_disk).or_default() += 1;
                match checked {
                    Ok(seen) => {
                        coverage.slowest = coverage.slowest.max(seen.slowest);
                        coverage.ahead += u64::from(seen.is_ahead);
                    }
                    Err(loss) => {
                        coverage.failed += 1;
                        if coverage.failed == 3 {
                            stopped.store(true, Ordering::Relaxed);
                        }
                        let kept = env::temp_dir().join(format!(
                            "fieldpost-power-{}-{}-{number}",
                            process::id(),
                            self.name
                        ));
                        images.write(disk, mode, &mut again.clone(), &kept);
                        let mode = format!("{mode}, {:?}", disk.promises);
                        self.tell(at, &mode, &kept, &loss);
                    }
                }
            }
        }
        coverage
    }

    /// Shows an image that failed, and what led to it.
    fn tell(&self, at: usize, mode: &str, kept: &Path, loss: &str) {
        let mut disk = self.disk(Promises::Posix);
        let mut lines = Vec::new();
        for call in &self.calls[..=at] {
            let line = match call {
                Call::Write { descriptor, data } => {
                    format!(
                        "write {} bytes to {}",
                        data.len(),
                        disk.name_of(*descriptor)
                    )
                }
                Call::WriteAt {
                    descriptor,
                    offset,
                    data,
                } => {
                    let name = disk.name_of(*descriptor);
                    format!("write {} bytes to {name} at {offset}", data.len())
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
            self.name,
            self.phases[at],
            kept.display(),
            lines[last..].join("\n  ")
        );
    }

    fn disk(&self, promises: Promises) -> Disk {
        Disk::of(&self.folder, &self.before, promises)
    }

    fn ledger<L: Ledger>(&self) -> L {
        let mut ledger = L::default();
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
        | Call::Reserve { .. }
        | Call::Rename { .. }
        | Call::Unlink { .. }
        | Call::MakeFolder { .. }
        | Call::RemoveFolder { .. }
        | Call::End => 8,
        Call::SyncBegins { .. } | Call::Sync { .. } => 4,
        Call::Write { .. } | Call::WriteAt { .. } => 2,
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

/// A start for random numbers.
fn seed_of(name: &str) -> u64 {
    // FNV-1a.
    let mix = |seed: u64, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// What was covered.
#[derive(Default)]
pub struct Coverage {
    /// How many were made.
    pub images: u64,
    /// How many of them had lost something, or did not open.
    pub failed: u64,
    /// The longest time in which one was opened.
    pub slowest: Duration,
    phases: BTreeMap<(&'static str, Phase), u64>,
    modes: BTreeMap<(Promises, Data, Names), u64>,
    /// Images that held something that was not promised yet.
    ahead: u64,
}

impl Coverage {
    /// Adds what was covered elsewhere.
    pub fn add(&mut self, other: Self) {
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

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
            "{} images held something that was not reported yet",
            self.ahead
        )
    }
}
