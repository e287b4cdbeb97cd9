//! The segments of an open log: which there are, where each ends, and their indexes.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use fieldpost_model::{SequenceNumber, Timestamp};

use super::format::index::SegmentIndex;
use super::format::{BLOCK, Key, LogId, Positions, size, to_block};
use super::scan;
use crate::files::{File, Files};

/// Memory for the indexes of sealed segments; the oldest loaded goes first.
const INDEX_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes that one step of filling writes: as little as is worth a sync, so that the committer never
/// waits long for it.
pub(super) const FILL_BYTES: u64 = 256 * 1024;

/// The name of a segment's file.
pub(crate) fn segment_name(id: u64) -> String {
    format!("{id:016x}.segment")
}

/// The name of a segment's index file.
pub(crate) fn index_name(id: u64) -> String {
    format!("{id:016x}.index")
}

/// The number of the segment that a file name belongs to.
pub(crate) fn parse_name(name: &str, extension: &str) -> Option<u64> {
    let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// One segment.
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) file: Arc<dyn File>,
    /// The length of the file.
    pub(super) capacity: u64,
    /// Where the first group stands.
    pub(super) start: u64,
    /// No earlier than any record before it, no later than any record in it.
    pub(super) created: Timestamp,
    /// Where every partition stood before it.
    pub(super) base: Positions,
    /// Where the last durable group ends.
    end: AtomicU64,
    sealed: AtomicBool,
    index: RwLock<Option<SegmentIndex>>,
    /// Whether the index file is there.
    indexed: AtomicBool,
    pub(super) fill: Arc<Fill>,
}

impl Segment {
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a segment, each named at the call"
    )]
    pub(super) fn new(
        id: u64,
        file: Arc<dyn File>,
        capacity: u64,
        start: u64,
        created: Timestamp,
        base: Positions,
        end: u64,
        fill: Arc<Fill>,
        index: Option<SegmentIndex>,
    ) -> Self {
        Self {
            id,
            file,
            capacity,
            start,
            created,
            base,
            end: AtomicU64::new(end),
            sealed: AtomicBool::new(false),
            index: RwLock::new(index),
            indexed: AtomicBool::new(false),
            fill,
        }
    }

    /// Where the last durable group ends.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Where groups must end: behind it there is one block for the seal.
    pub(super) fn limit(&self) -> u64 {
        self.capacity.saturating_sub(BLOCK)
    }

    /// How far it is written when the file after it is made ready.
    pub(super) fn next_wanted_at(&self) -> u64 {
        self.capacity / 4
    }

    pub(super) fn set_sealed(&self, sealed: bool) {
        self.sealed.store(sealed, Ordering::Release);
    }

    /// Lets readers see what a group added.
    pub(super) fn publish(&self, end: u64, add: impl FnOnce(&mut SegmentIndex)) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        add(index.get_or_insert_default());
        self.end.store(end, Ordering::Release);
    }

    pub(super) fn set_end(&self, end: u64) {
        self.end.store(end.min(self.capacity), Ordering::Release);
    }

    pub(super) fn set_index(&self, index: SegmentIndex) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }

    /// Looks into the index if it is in memory.
    pub(super) fn with_index<T>(&self, look: impl FnOnce(&SegmentIndex) -> T) -> Option<T> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.as_ref().map(look)
    }

    fn drop_index(&self) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn index_bytes(&self) -> usize {
        self.with_index(SegmentIndex::memory_bytes).unwrap_or(0)
    }
}

/// Segments in order, oldest first; the last one is being written.
pub(super) struct Segments {
    files: Arc<dyn Files>,
    log: LogId,
    list: RwLock<VecDeque<Arc<Segment>>>,
    /// Sealed segments with an index in memory, in the order of loading.
    loaded: Mutex<VecDeque<Arc<Segment>>>,
    /// Segments that left the list and whose files are still there, oldest first.
    unremoved: Mutex<VecDeque<u64>>,
    /// Empty files that are ready to become segments.
    spares: Mutex<Vec<Spare>>,
    spare_names: AtomicU64,
    spare_bytes: AtomicU64,
}

/// An empty file that is ready to become a segment.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn File>,
    pub(super) capacity: u64,
    pub(super) fill: Arc<Fill>,
}

impl Segments {
    pub(super) fn new(files: Arc<dyn Files>, log: LogId, list: VecDeque<Arc<Segment>>) -> Self {
        Self {
            files,
            log,
            list: RwLock::new(list),
            loaded: Mutex::default(),
            unremoved: Mutex::default(),
            spares: Mutex::default(),
            spare_names: AtomicU64::new(0),
            spare_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn push(&self, segment: Arc<Segment>) {
        self.list
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(segment);
    }

    pub(super) fn oldest(&self) -> Option<Arc<Segment>> {
        self.with_list(|list| list.front().cloned())
    }

    pub(super) fn active(&self) -> Option<Arc<Segment>> {
        self.with_list(|list| list.back().cloned())
    }

    /// The segment after the one with this number, if there is one.
    pub(super) fn following(&self, id: u64) -> Option<Arc<Segment>> {
        self.with_list(|list| {
            let at = list.partition_point(|segment| segment.id <= id);
            list.get(at).cloned()
        })
    }

    /// The last segment that began at or before a record: the only one that can hold it.
    pub(super) fn holding(&self, key: Key, sequence: SequenceNumber) -> Option<Arc<Segment>> {
        self.with_list(|list| {
            let after = list.partition_point(|segment| segment.base.next(key) <= sequence);
            list.get(after.checked_sub(1)?).cloned()
        })
    }

    /// The last segment that holds nothing later than `after` before it, or the oldest.
    pub(super) fn holding_time(&self, after: Timestamp) -> Option<Arc<Segment>> {
        self.with_list(|list| {
            let later = list.partition_point(|segment| segment.created <= after);
            list.get(later.saturating_sub(1)).cloned()
        })
    }

    /// Bytes on disk, spares included.
    pub(super) fn disk_bytes(&self) -> u64 {
        let held: u64 = self.with_list(|list| list.iter().map(|segment| segment.capacity).sum());
        held + self.spare_bytes.load(Ordering::Relaxed)
    }

    fn with_list<T>(&self, look: impl FnOnce(&VecDeque<Arc<Segment>>) -> T) -> T {
        look(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the oldest segment out of the list, unless it is the one being written or `wanted`
    /// says no. Gives it and the one that is the oldest now.
    pub(super) fn take_oldest(
        &self,
        wanted: impl FnOnce(&Segment, &Segment) -> bool,
    ) -> Option<(Arc<Segment>, Arc<Segment>)> {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let (oldest, next) = (list.front()?, list.get(1)?);
        if !wanted(oldest, next) {
            return None;
        }
        let next = Arc::clone(next);
        Some((list.pop_front()?, next))
    }

    /// Gives the file of a segment that left the list back: as a spare when one of its size is
    /// wanted, else to the disk.
    pub(super) fn release(
        &self,
        segment: Arc<Segment>,
        spare_wanted: Option<u64>,
    ) -> io::Result<()> {
        self.loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|loaded| loaded.id != segment.id);
        let mut unremoved = (self.unremoved.lock()).unwrap_or_else(PoisonError::into_inner);
        // A file that could not be removed goes before all newer ones: the next start would take it
        // for the oldest of the log, and those for lost.
        if let Err(error) = self.remove_in_order(&mut unremoved) {
            unremoved.push_back(segment.id);
            return Err(error);
        }
        let name = segment_name(segment.id);
        unremoved.push_back(segment.id);
        // A reader that still holds the segment would find another segment's groups in it.
        let recycled = match Arc::try_unwrap(segment) {
            Ok(segment) if spare_wanted == Some(segment.capacity) => Some(segment),
            _ => None,
        };
        let Some(segment) = recycled else {
            return self.remove_in_order(&mut unremoved);
        };
        remove_if_there(&*self.files, &index_name(segment.id))?;
        let spare = self.next_spare_name();
        self.files.rename(&name, &spare)?;
        unremoved.clear();
        // Durable before anything else is written into the file under its new name: a crash must
        // not bring the old name back with a new segment's header inside.
        self.files.sync_dir()?;
        self.add_spare(Spare {
            name: spare,
            file: segment.file,
            capacity: segment.capacity,
            fill: Arc::new(Fill::done()),
        });
        Ok(())
    }

    /// Removes the files of segments that left the list, oldest first.
    fn remove_in_order(&self, unremoved: &mut VecDeque<u64>) -> io::Result<()> {
        let mut removed = false;
        while let Some(&id) = unremoved.front() {
            remove_if_there(&*self.files, &index_name(id))?;
            remove_if_there(&*self.files, &segment_name(id))?;
            unremoved.pop_front();
            removed = true;
        }
        if removed {
            self.files.sync_dir()?;
        }
        Ok(())
    }

    pub(super) fn next_spare_name(&self) -> String {
        let number = self.spare_names.fetch_add(1, Ordering::Relaxed);
        format!("{SPARE_PREFIX}{number}")
    }

    pub(super) fn add_spare(&self, spare: Spare) {
        self.spare_bytes
            .fetch_add(spare.capacity, Ordering::Relaxed);
        self.spares
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(spare);
    }

    pub(super) fn has_spare(&self) -> bool {
        !self
            .spares
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// A spare that is not filled yet: its name, and how far it is.
    pub(super) fn unfilled_spare(&self) -> Option<(String, Arc<Fill>)> {
        let spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = spares.iter().find(|spare| !spare.fill.is_done())?;
        Some((spare.name.clone(), Arc::clone(&spare.fill)))
    }

    /// Throws a spare away, unless it was taken meanwhile.
    pub(super) fn remove_spare(&self, name: &str) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = spares.iter().position(|spare| spare.name == name) else {
            return;
        };
        let spare = spares.swap_remove(at);
        drop(spares);
        self.spare_bytes
            .fetch_sub(spare.capacity, Ordering::Relaxed);
        // Best effort: what stays is removed when the log is opened.
        let _ = self.files.remove(name);
    }

    /// Takes a spare of at least this size.
    pub(super) fn take_spare(&self, capacity_min: u64) -> Option<Spare> {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spares
            .iter()
            .position(|spare| spare.capacity >= capacity_min)?;
        let spare = spares.swap_remove(at);
        self.spare_bytes
            .fetch_sub(spare.capacity, Ordering::Relaxed);
        Some(spare)
    }

    /// Looks into the index of a segment: as it is in memory, from its file, or from a scan.
    pub(super) fn look<T>(
        &self,
        segment: &Arc<Segment>,
        look: impl Fn(&SegmentIndex) -> T,
    ) -> io::Result<T> {
        loop {
            if let Some(seen) = segment.with_index(&look) {
                return Ok(seen);
            }
            self.load_index(segment)?;
        }
    }

    fn load_index(&self, segment: &Arc<Segment>) -> io::Result<()> {
        let (index, end) = match self.read_index(segment) {
            Some(found) => found,
            None => scan::rebuild_index(segment, self.log)?,
        };
        segment.set_end(end);
        segment.set_index(index);
        self.remember(segment);
        Ok(())
    }

    fn read_index(&self, segment: &Segment) -> Option<(SegmentIndex, u64)> {
        let file = self.files.open(&index_name(segment.id)).ok()?;
        let bytes = size(file.bytes().ok()?);
        // Larger than any index of a segment of this size can be.
        if bytes > size(segment.capacity) {
            return None;
        }
        let mut content = vec![0; bytes];
        let read = file.read_at(&mut content, 0).ok()?;
        content.truncate(read);
        match SegmentIndex::decode(self.log, segment.id, &content) {
            Ok(found) => {
                segment.indexed.store(true, Ordering::Release);
                Some(found)
            }
            Err(error) => {
                tracing::warn!(segment = segment.id, %error, "an index file is damaged and made anew");
                None
            }
        }
    }

    /// Counts a sealed segment's index into the memory for indexes.
    pub(super) fn remember(&self, segment: &Arc<Segment>) {
        if !segment.is_sealed() {
            return;
        }
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.iter().any(|other| other.id == segment.id) {
            return;
        }
        loaded.push_back(Arc::clone(segment));
        let mut bytes: usize = loaded.iter().map(|segment| segment.index_bytes()).sum();
        while bytes > INDEX_BYTES_MAX && loaded.len() > 1 {
            if let Some(oldest) = loaded.pop_front() {
                bytes = bytes.saturating_sub(oldest.index_bytes());
                oldest.drop_index();
            }
        }
    }

    /// The oldest sealed segment with an index in memory and none on disk.
    pub(super) fn without_index_file(&self) -> Option<Arc<Segment>> {
        self.with_list(|list| {
            list.iter()
                .rev()
                .skip(1)
                .take(4)
                .find(|segment| {
                    !segment.indexed.load(Ordering::Acquire) && segment.with_index(|_| ()).is_some()
                })
                .cloned()
        })
    }

    /// Writes the index file of a sealed segment, which appears under its name when it is whole.
    pub(super) fn write_index(&self, segment: &Arc<Segment>) -> io::Result<()> {
        // Whatever comes of it, this is not tried again and again.
        segment.indexed.store(true, Ordering::Release);
        let Some(bytes) =
            segment.with_index(|index| index.encode(self.log, segment.id, segment.end()))
        else {
            return Ok(());
        };
        let name = index_name(segment.id);
        let new = format!("{name}{NEW_SUFFIX}");
        let file = self.files.create(&new)?;
        crate::files::write_all_at(&*file, &[io::IoSlice::new(&bytes)], 0)?;
        file.sync()?;
        self.files.rename(&new, &name)?;
        // It may have been dropped meanwhile: an index without its segment is the sign of one that
        // was lost.
        if self.with_list(|list| list.iter().all(|kept| kept.id != segment.id)) {
            return remove_if_there(&*self.files, &name);
        }
        Ok(())
    }
}

/// How the names of files end that are not whole yet.
pub(crate) const NEW_SUFFIX: &str = ".new";

/// How the names of spare files begin.
pub(crate) const SPARE_PREFIX: &str = "spare-";

pub(super) fn remove_if_there(files: &dyn Files, name: &str) -> io::Result<()> {
    match files.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Filling a file with zeros from its end towards the writer, be it a spare or a segment that is
/// already in use.
///
/// Written blocks cost a sync less than reserved ones, whose first write changes metadata.
pub(super) struct Fill {
    done: AtomicBool,
    state: Mutex<FillState>,
    idle: Condvar,
}

struct FillState {
    /// The writer has what is below.
    floor: u64,
    /// All from here on is filled, or being filled.
    ceiling: u64,
    /// What is being filled right now.
    busy: Option<u64>,
}

impl Fill {
    /// Nothing to fill.
    pub(super) fn done() -> Self {
        Self::between(0, 0)
    }

    /// To be filled from `ceiling` down to `floor`.
    pub(super) fn between(floor: u64, ceiling: u64) -> Self {
        Self {
            done: AtomicBool::new(ceiling <= floor),
            state: Mutex::new(FillState {
                floor,
                ceiling,
                busy: None,
            }),
            idle: Condvar::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Nothing more is filled.
    pub(super) fn give_up(&self) {
        self.done.store(true, Ordering::Release);
    }

    /// The writer is about to write below `end`. Returns when nothing there is being filled.
    pub(super) fn claim(&self, end: u64) {
        if self.is_done() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.floor = state.floor.max(to_block(end));
        while state.busy.is_some_and(|from| from < end) {
            state = self
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fills one stretch through a handle of the filler's own, so that the writer's handle still
    /// learns of a failed sync. Nothing more is filled after a failure.
    pub(super) fn step(&self, file: &dyn File) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let to = state.ceiling;
        let from = to.saturating_sub(FILL_BYTES).max(state.floor);
        if from >= to {
            self.done.store(true, Ordering::Release);
            return Ok(());
        }
        state.busy = Some(from);
        drop(state);

        let filled = fill(file, from, to).and_then(|()| file.sync());

        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy = None;
        state.ceiling = from;
        if filled.is_err() || from <= state.floor {
            self.done.store(true, Ordering::Release);
        }
        self.idle.notify_all();
        filled
    }
}

/// Writes zeros.
fn fill(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut at = from;
    while at < to {
        let bytes = size(to - at).min(ZEROS.len());
        let zeros = ZEROS.get(..bytes).unwrap_or_default();
        crate::files::write_all_at(file, &[io::IoSlice::new(zeros)], at)?;
        at += bytes as u64;
    }
    Ok(())
}
