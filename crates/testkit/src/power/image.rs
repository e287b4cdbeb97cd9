//! What a power cut may leave of what was not synced.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk::{Change, Content, Disk, File, Folder, Inode, Node, PAGE, Promises, Renaming};

/// Random numbers from a seed.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// At most `most`.
    fn up_to(&mut self, most: usize) -> usize {
        usize::try_from(self.below(most as u64 + 1)).unwrap()
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// What is left of the data that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// The first so many writes; of the next one a part, up to a sector or page.
    Prefix,
    /// Of each sector of 512 bytes its state at some time since the last sync.
    Sectors,
    /// Of each page of 4 KiB.
    Pages,
}

/// What is left of the names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Names {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Of each folder the first so many steps.
    Prefix,
    /// Of each folder any of its steps; as [`Names::Prefix`] where the disk keeps their order.
    Any,
}

/// How an image is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode {
    /// What is left of data.
    pub data: Data,
    /// What is left of names.
    pub names: Names,
}

impl Mode {
    /// The modes take turns.
    pub(super) fn of(number: usize) -> Self {
        Self {
            data: match number % 5 {
                0 => Data::None,
                1 => Data::All,
                2 => Data::Prefix,
                3 => Data::Sectors,
                _ => Data::Pages,
            },
            names: match number / 5 % 4 {
                0 => Names::None,
                1 => Names::All,
                2 => Names::Prefix,
                _ => Names::Any,
            },
        }
    }

    /// How many there are.
    pub(super) const COUNT: usize = 20;
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data {:?}, names {:?}", self.data, self.names)
    }
}

/// Files below a folder of this name are never written again once they are synced, so that images
/// can share them.
const SHARED: &str = "tables";

/// Writes images of one disk.
pub(super) struct Images {
    shared: PathBuf,
    /// Durable files that stand in the folder `shared`, and how long each is.
    kept: HashMap<Inode, u64>,
}

impl Images {
    /// `shared` is a folder beside the images.
    pub(super) fn new(shared: PathBuf) -> Self {
        fs::create_dir_all(&shared).unwrap();
        Self {
            shared,
            kept: HashMap::new(),
        }
    }

    /// Writes what may be left of a disk to a folder, which is made.
    pub(super) fn write(&mut self, disk: &Disk, mode: Mode, chance: &mut Chance, path: &Path) {
        self.write_folder(disk, 0, mode, chance, path);
    }

    fn write_folder(
        &mut self,
        disk: &Disk,
        inode: Inode,
        mode: Mode,
        chance: &mut Chance,
        path: &Path,
    ) {
        // As hubs make them: others can read nothing.
        fs::DirBuilder::new().mode(0o700).create(path).unwrap();
        let Node::Folder(folder) = &disk.nodes[inode] else {
            panic!("a file is no folder");
        };
        for (name, inode) in entries(folder, disk.promises, mode.names, chance) {
            let path = path.join(name);
            match &disk.nodes[inode] {
                Node::Folder(_) => self.write_folder(disk, inode, mode, chance, &path),
                Node::File(file) => self.write_file(inode, file, mode.data, chance, &path),
            }
        }
    }

    fn write_file(
        &mut self,
        inode: Inode,
        file: &File,
        mode: Data,
        chance: &mut Chance,
        path: &Path,
    ) {
        let folder = path.parent().and_then(Path::file_name);
        if !file.pending.is_empty() || folder.is_none_or(|folder| folder != SHARED) {
            return write_content(&content(file, mode, chance), path);
        }
        let kept = self.shared.join(inode.to_string());
        let length = file.durable.length;
        if self.kept.insert(inode, length) != Some(length) {
            // It was there before it was whole, or was not.
            let _ = fs::remove_file(&kept);
            write_content(&file.durable, &kept);
        }
        if fs::hard_link(&kept, path).is_err() {
            // On another disk.
            fs::copy(kept, path).unwrap();
        }
    }
}

fn entries(
    folder: &Folder,
    promises: Promises,
    mode: Names,
    chance: &mut Chance,
) -> BTreeMap<OsString, Inode> {
    let pending = &folder.pending;
    let steps: Vec<&Renaming> = match mode {
        Names::None => Vec::new(),
        Names::All => pending.iter().collect(),
        Names::Any if promises == Promises::Posix => {
            pending.iter().filter(|_| chance.one_in(2)).collect()
        }
        Names::Prefix | Names::Any => pending.iter().take(chance.up_to(pending.len())).collect(),
    };
    let mut entries = folder.durable.clone();
    for step in steps {
        Folder::apply(&mut entries, step);
    }
    entries
}

fn content(file: &File, mode: Data, chance: &mut Chance) -> Content {
    let mut content = file.durable.clone();
    let pending = &file.pending;
    match mode {
        Data::None => {}
        Data::All => pending.iter().for_each(|change| content.apply(change)),
        Data::Prefix => {
            let whole = chance.up_to(pending.len());
            pending[..whole]
                .iter()
                .for_each(|change| content.apply(change));
            if let Some(Change::Write { offset, data }) = pending.get(whole) {
                let unit = if chance.one_in(2) { 512 } else { PAGE };
                let start = usize::try_from(*offset).unwrap();
                let units = (start + data.len()) / unit - start / unit;
                let end = (start / unit + chance.up_to(units)) * unit;
                content.write(*offset, &data[..end.saturating_sub(start).min(data.len())]);
            }
        }
        Data::Sectors => scatter(&mut content, pending, 512, chance),
        Data::Pages => scatter(&mut content, pending, PAGE, chance),
    }
    content
}

/// Lets each unit be as it was at some time, and the length too.
fn scatter(content: &mut Content, pending: &[Change], unit: usize, chance: &mut Chance) {
    let reach = if chance.one_in(3) {
        chance.up_to(pending.len())
    } else {
        pending.len()
    };
    // Seldom and often, so that few and that many are missing.
    let missing = 1 << chance.below(5);
    let mut until = HashMap::new();
    let before = content.length;
    for (number, change) in pending[..reach].iter().enumerate() {
        let (offset, data) = match change {
            Change::SetLength(length) => {
                content.set_length(*length);
                continue;
            }
            Change::Write { offset, data } => (*offset, data),
        };
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let next = (at / unit as u64 + 1) * unit as u64;
            let part = at - offset..next.min(end) - offset;
            let until = until.entry(at / unit as u64).or_insert_with(|| {
                if chance.one_in(missing) {
                    chance.up_to(reach)
                } else {
                    reach
                }
            });
            if number < *until {
                let [from, to] = [part.start, part.end].map(|at| usize::try_from(at).unwrap());
                content.write(at, &data[from..to]);
            }
            at = next;
        }
        content.length = content.length.max(end);
    }
    if content.length > before && chance.one_in(3) {
        let more = (content.length - before).div_ceil(unit as u64);
        let more = chance.below(more + 1) * unit as u64;
        content.set_length(content.length.min(before + more));
    }
}

fn write_content(content: &Content, path: &Path) {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).unwrap();
    for (number, page) in &content.pages {
        let at = number * PAGE as u64;
        let length = content.length.saturating_sub(at).min(PAGE as u64);
        let length = usize::try_from(length).unwrap();
        file.write_all_at(&page[..length], at).unwrap();
    }
    file.set_len(content.length).unwrap();
}
