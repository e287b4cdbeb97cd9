//! A disk in memory that forgets what was not synced, tears writes, and fails on demand.
//!
//! Calls are numbered. [`SimDisk::crash_at`] switches the power off at one of them;
//! [`SimDisk::image`] then gives one of the disks that the machine may find when it comes back:
//! of everything not synced, an arbitrary part is there, in pieces of 512 or 4,096 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{File, Files, Space};

/// A simulated disk with one directory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    /// The directory as everybody sees it.
    names: BTreeMap<String, usize>,
    /// The directory as it stands on the disk.
    durable_names: BTreeMap<String, usize>,
    /// What happened to it since.
    unsynced_names: Vec<NameChange>,
    calls: u64,
    /// Calls that change something.
    changes: u64,
    faults: BTreeMap<u64, Fault>,
    /// Calls that failed so, and what they were.
    failed: Vec<(u64, &'static str)>,
    /// What happens while a sync is under way.
    during_sync: Option<DuringSync>,
    crash_at: Option<u64>,
    crashed: bool,
    free: Option<u64>,
    /// A file that can be neither removed nor renamed.
    stuck: String,
    /// The newest calls, for whoever wants to look at them.
    last_calls: Vec<(u64, &'static str)>,
    /// Bytes that were read.
    read_bytes: u64,
}

type DuringSync = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    reserved: u64,
}

#[derive(Clone)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device fails.
    Io,
    /// The disk is full. Reads and syncs of metadata-free files do not fail so, but a test may
    /// ask for it.
    Full,
    /// A write takes a part only; other calls fail like [`Fault::Io`].
    Short,
}

/// Chooses what survives a crash.
#[derive(Clone, Copy, Debug)]
pub struct CrashPlan {
    /// Where the choices come from.
    pub seed: u64,
    /// The piece in which writes reach the disk: 512 or 4,096.
    pub piece: usize,
    /// How many of 100 unsynced pieces are there.
    pub kept_percent: u64,
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls made so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Calls made so far that change or sync something.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// The kinds of the last calls, oldest first, with their numbers.
    #[must_use]
    pub fn last_calls(&self) -> Vec<(u64, &'static str)> {
        self.lock().last_calls.clone()
    }

    /// Files created so far.
    #[must_use]
    pub fn creations(&self) -> usize {
        self.lock().inodes.len()
    }

    /// Bytes read so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.lock().read_bytes
    }

    /// Makes the call with this number fail.
    pub fn fail_at(&self, call: u64, fault: Fault) {
        self.lock().faults.insert(call, fault);
    }

    /// The calls that failed because they were to, and what they were.
    #[must_use]
    pub fn failed_calls(&self) -> Vec<(u64, &'static str)> {
        self.lock().failed.clone()
    }

    /// Has something happen while each sync of a file is under way, such as time that passes.
    pub fn during_syncs(&self, happens: impl Fn() + Send + Sync + 'static) {
        self.lock().during_sync = Some(Arc::new(happens));
    }

    /// Switches the power off at this call, counting those only that change or sync something: it
    /// and all later ones fail, and what the call wanted to write counts as not synced.
    pub fn crash_at(&self, change: u64) {
        self.lock().crash_at = Some(change);
    }

    /// Switches the power off now.
    pub fn crash(&self) {
        self.lock().crashed = true;
    }

    /// Whether the power is off.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Sets the room on the disk, by which reservations are refused.
    pub fn set_free(&self, bytes: u64) {
        self.lock().free = Some(bytes);
    }

    /// Lets every removal and renaming of a file fail, until another one is named.
    pub fn refuse_changes_of(&self, name: &str) {
        name.clone_into(&mut self.lock().stuck);
    }

    /// Changes the content of a file behind everybody's back, durably.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let Some(&at) = state.names.get(name) else {
            return;
        };
        if let Some(inode) = state.inodes.get_mut(at) {
            change(&mut inode.content);
            inode.durable.clone_from(&inode.content);
            inode.unsynced.clear();
        }
    }

    /// The content of a file as everybody sees it.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let at = state.names.get(name)?;
        Some(state.inodes.get(*at)?.content.clone())
    }

    /// The disk as it is, powered and without faults.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.lock();
        let mut inodes = state.inodes.clone();
        for inode in &mut inodes {
            inode.durable.clone_from(&inode.content);
            inode.unsynced.clear();
        }
        Self::of(inodes, state.names.clone(), state.free)
    }

    /// A disk that the machine may find after losing power now.
    #[must_use]
    pub fn image(&self, plan: CrashPlan) -> Self {
        let state = self.lock();
        let mut random = plan.seed;
        let mut chance = || splitmix(&mut random);
        let inodes = state
            .inodes
            .iter()
            .map(|inode| {
                let content = inode.after_crash(plan, &mut chance);
                Inode {
                    durable: content.clone(),
                    content,
                    unsynced: Vec::new(),
                    reserved: inode.reserved,
                }
            })
            .collect();
        // A journalling file system keeps changes of names in order: some first part is there.
        let mut names = state.durable_names.clone();
        let kept = chance() % (state.unsynced_names.len() as u64 + 1);
        for change in state
            .unsynced_names
            .iter()
            .take(usize::try_from(kept).unwrap_or(0))
        {
            change.apply(&mut names);
        }
        Self::of(inodes, names, state.free)
    }

    fn of(inodes: Vec<Inode>, names: BTreeMap<String, usize>, free: Option<u64>) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                inodes,
                durable_names: names.clone(),
                names,
                free,
                ..State::default()
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next number of the sequence SplitMix64.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl State {
    /// Counts a call and lets it fail if it is to.
    fn call(&mut self, kind: &'static str) -> io::Result<Option<Fault>> {
        let number = self.calls;
        if self.crashed {
            return Err(power_off());
        }
        if !matches!(kind, "open" | "list" | "bytes" | "read" | "space") {
            self.crashed = self.crash_at == Some(self.changes);
            self.changes += 1;
        }
        self.calls += 1;
        if self.last_calls.len() >= 64 {
            self.last_calls.remove(0);
        }
        self.last_calls.push((number, kind));
        let fault = self.faults.remove(&number);
        if fault.is_some() {
            self.failed.push((number, kind));
        }
        Ok(fault)
    }

    /// As [`Self::call`], for calls that cannot be done in part.
    fn whole_call(&mut self, kind: &'static str) -> io::Result<()> {
        match self.call(kind)? {
            None if self.crashed => Err(power_off()),
            None => Ok(()),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Io | Fault::Short) => Err(failure()),
        }
    }

    fn inode(&mut self, at: usize) -> io::Result<&mut Inode> {
        self.inodes
            .get_mut(at)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn may_change(&self, name: &str) -> io::Result<()> {
        if self.stuck == name {
            return Err(failure());
        }
        Ok(())
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }
}

impl Inode {
    fn write(&mut self, at: usize, bytes: Vec<u8>) {
        put(&mut self.content, at, &bytes);
        self.unsynced.push((at, bytes));
    }

    fn after_crash(&self, plan: CrashPlan, chance: &mut impl FnMut() -> u64) -> Vec<u8> {
        let mut content = self.durable.clone();
        let mut kept: BTreeSet<usize> = BTreeSet::new();
        for (at, bytes) in &self.unsynced {
            let mut start = 0;
            while start < bytes.len() {
                // Pieces end where the disk's units end, wherever the write began.
                let end = ((at + start) / plan.piece + 1) * plan.piece - at;
                let end = end.min(bytes.len());
                if chance() % 100 < plan.kept_percent {
                    put(
                        &mut content,
                        at + start,
                        bytes.get(start..end).unwrap_or_default(),
                    );
                    kept.insert((at + start) / plan.piece);
                }
                start = end;
            }
        }
        // The length that was reserved may or may not have been noted down.
        if kept.is_empty() && self.durable.len() < self.content.len() && chance().is_multiple_of(2)
        {
            content.resize(self.content.len(), 0);
        } else if !kept.is_empty() {
            content.resize(self.content.len().max(content.len()), 0);
        }
        content
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    if let Some(place) = content.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn power_off() -> io::Error {
    io::Error::other("the power is off")
}

fn failure() -> io::Error {
    io::Error::other("simulated input/output error")
}

fn place(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Files for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = self.lock();
        state.whole_call("create")?;
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.change(NameChange::Link(name.to_owned(), inode));
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = self.lock();
        state.whole_call("open")?;
        let inode = state.find(name)?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.whole_call("rename")?;
        state.find(from)?;
        state.may_change(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.whole_call("remove")?;
        let inode = state.find(name)?;
        state.may_change(name)?;
        let reserved = std::mem::take(&mut state.inode(inode)?.reserved);
        if let Some(free) = &mut state.free {
            *free += reserved;
        }
        state.change(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.lock();
        state.whole_call("list")?;
        Ok(state.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.whole_call("sync_dir")?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let mut state = self.lock();
        state.whole_call("space")?;
        let total = 1 << 40;
        Ok(Space {
            free: state.free.unwrap_or(total),
            total,
        })
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl File for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        let mut state = self.disk.lock();
        state.whole_call("bytes")?;
        Ok(state.inode(self.inode)?.content.len() as u64)
    }

    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.whole_call("read")?;
        let content = &state.inode(self.inode)?.content;
        let from = place(at).min(content.len());
        let to = from.saturating_add(out.len()).min(content.len());
        let bytes = content.get(from..to).unwrap_or_default();
        if let Some(place) = out.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
        let read = bytes.len();
        state.read_bytes += read as u64;
        Ok(read)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let fault = state.call("write")?;
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(part);
        }
        let crashed = state.crashed;
        let inode = state.inode(self.inode)?;
        match fault {
            None => {}
            Some(Fault::Io) => return Err(failure()),
            Some(Fault::Full) => {
                // Some of it may have been taken before the room was used up.
                bytes.truncate(bytes.len() / 2);
                inode.write(place(at), bytes);
                return Err(io::ErrorKind::StorageFull.into());
            }
            Some(Fault::Short) => bytes.truncate(bytes.len() / 2),
        }
        let written = bytes.len();
        inode.write(place(at), bytes);
        if crashed {
            return Err(power_off());
        }
        Ok(written)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.whole_call("allocate")?;
        let more = bytes.saturating_sub(state.inode(self.inode)?.reserved);
        if let Some(free) = &mut state.free {
            *free = free
                .checked_sub(more)
                .ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        }
        let inode = state.inode(self.inode)?;
        inode.reserved += more;
        if inode.content.len() < place(bytes) && bytes < 1 << 30 {
            inode.content.resize(place(bytes), 0);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let during_sync = self.disk.lock().during_sync.clone();
        if let Some(happens) = during_sync {
            happens();
        }
        let mut state = self.disk.lock();
        let called = state.whole_call("sync");
        if called.is_err() && !state.crashed {
            // As Linux does: what could not be written counts as clean. It is read back as if it
            // were there, and no later sync writes it.
            state.inode(self.inode)?.unsynced.clear();
        }
        called?;
        let inode = state.inode(self.inode)?;
        for (at, bytes) in std::mem::take(&mut inode.unsynced) {
            put(&mut inode.durable, at, &bytes);
        }
        let length = inode.content.len();
        inode.durable.resize(length, 0);
        Ok(())
    }
}
