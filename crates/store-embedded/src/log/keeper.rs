//! Housekeeping: room on the disk, retention, and files that are made ready ahead of the committer.
//!
//! [`Keeper::step`] does one small thing and says whether there is more; a thread calls it, or a
//! test with a clock of its own.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use fieldpost_store::log::AtBytesMax;

use super::Shared;
use super::segment::{FILL_BYTES, Segment, Spare, fill};
use super::space::SpaceWatch;
use super::time::SteadyTime;
use crate::files::File;

/// How often the disk is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(1);

/// How often segments are looked at.
const RETENTION_PERIOD: Duration = Duration::from_secs(10);

/// How long to wait after a file could not be made ready.
const RETRY_PERIOD: Duration = Duration::from_secs(30);

/// Wakes the keeper before its time.
#[derive(Default)]
pub(super) struct KeeperBell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Default)]
struct BellState {
    nudged: bool,
    closing: bool,
}

impl KeeperBell {
    pub(super) fn nudge(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.nudged = true;
        self.rung.notify_one();
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closing = true;
        self.rung.notify_one();
    }

    /// Waits for a nudge, at most for a while; false when the log is being closed.
    pub(super) fn wait(&self, at_most: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.nudged && !state.closing {
            state = self
                .rung
                .wait_timeout(state, at_most)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.nudged = false;
        !state.closing
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closing
    }
}

/// The housekeeper of one log.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) space: SpaceWatch,
    pub(super) time: SteadyTime,
    pub(super) space_due: Duration,
    pub(super) retention_due: Duration,
    pub(super) prepare_due: Duration,
    pub(super) preparing: Option<Preparing>,
    /// The active segment's file through a handle of the filler's own.
    pub(super) filling: Option<(u64, Arc<dyn File>)>,
}

/// A spare that is being filled.
pub(super) struct Preparing {
    spare: Spare,
    at: u64,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, space: SpaceWatch, time: SteadyTime) -> Self {
        Self {
            shared,
            space,
            time,
            space_due: Duration::ZERO,
            retention_due: Duration::ZERO,
            prepare_due: Duration::ZERO,
            preparing: None,
            filling: None,
        }
    }

    /// Does what is due. True when there is more to be done at once.
    pub(super) fn step(&mut self) -> bool {
        let now = self.shared.clock.monotonic();
        if now >= self.space_due {
            self.space_due = now + SPACE_PERIOD;
            self.space.step(&*self.shared.files, &self.shared.health);
            // Whatever is held back tries again; it is once a second.
            self.shared.intake.nudge_held();
        }
        if now >= self.retention_due || self.shared.retention_changed.swap(false, Ordering::AcqRel)
        {
            self.retention_due = now + RETENTION_PERIOD;
            self.retain();
        }
        if self.shared.health.failure().is_some() {
            return false;
        }
        self.write_index() || self.fill_active() || self.prepare(now)
    }

    /// Drops segments whose records are all older than the retention, and asks for a new one when
    /// the active one has been collecting for that long.
    fn retain(&mut self) {
        let Some(now) = self.time.now(&*self.shared.clock) else {
            return;
        };
        let age_min = self.shared.retention().age_min;
        let oldest_kept = now.saturating_sub(age_min);
        // All records of a segment are at least as old as the beginning of the next.
        while self
            .shared
            .drop_oldest(|_, next| next.created < oldest_kept)
            .is_some()
        {}
        if let Some(active) = self.shared.segments.active()
            && active.created < oldest_kept
            && active.end() > active.start
        {
            self.shared.roll_asked.store(true, Ordering::Release);
            self.shared.intake.nudge();
        }
    }

    fn write_index(&mut self) -> bool {
        let Some(segment) = self.shared.segments.without_index_file() else {
            return false;
        };
        if let Err(error) = self.shared.segments.write_index(&segment) {
            tracing::warn!(%error, segment = segment.id, "no index file; it will be made anew when it is needed");
        }
        true
    }

    fn fill_active(&mut self) -> bool {
        let Some(active) = self.shared.segments.active() else {
            return false;
        };
        if active.fill.is_done() {
            self.filling = None;
            return false;
        }
        if let Err(error) = self.fill_step(&active) {
            tracing::warn!(%error, segment = active.id, "a segment of the log could not be filled ahead");
        }
        true
    }

    fn fill_step(&mut self, active: &Segment) -> std::io::Result<()> {
        let file = match &self.filling {
            Some((id, file)) if *id == active.id => Arc::clone(file),
            _ => {
                let name = super::segment::segment_name(active.id);
                let file = self.shared.files.open(&name);
                let file = file.inspect_err(|_| active.fill.give_up())?;
                self.filling = Some((active.id, Arc::clone(&file)));
                file
            }
        };
        active.fill.step(&*file)
    }

    /// Makes the next segment's file ready once the active one is half full.
    fn prepare(&mut self, now: Duration) -> bool {
        if let Some(preparing) = &mut self.preparing {
            let to = (preparing.at + FILL_BYTES).min(preparing.spare.capacity);
            let file = &*preparing.spare.file;
            match fill(file, preparing.at, to).and_then(|()| file.sync()) {
                Ok(()) if to == preparing.spare.capacity => {
                    if let Some(Preparing { mut spare, .. }) = self.preparing.take() {
                        spare.filled = true;
                        self.shared.segments.add_spare(spare);
                    }
                }
                Ok(()) => preparing.at = to,
                Err(error) => {
                    // A file that no record was ever written to: it is thrown away.
                    tracing::warn!(%error, "a file for the next segment of the log could not be filled");
                    self.abandon_preparing();
                    self.prepare_due = now + RETRY_PERIOD;
                }
            }
            return true;
        }
        let Some(active) = self.shared.segments.active() else {
            return false;
        };
        let capacity = self.shared.next_capacity(active.capacity);
        let wanted = active.end() >= active.capacity / 2
            && !self.shared.segments.has_spare()
            && now >= self.prepare_due
            && self.shared.fits_bound(capacity)
            && self.shared.health.admit_message().is_ok();
        if !wanted {
            return false;
        }
        match self.shared.create_spare(capacity) {
            Ok(spare) => self.preparing = Some(Preparing { spare, at: 0 }),
            Err(error) => {
                tracing::warn!(%error, bytes = capacity, "no file for the next segment of the log yet");
                self.prepare_due = now + RETRY_PERIOD;
                return false;
            }
        }
        true
    }

    fn abandon_preparing(&mut self) {
        if let Some(Preparing { spare, .. }) = self.preparing.take() {
            // Best effort: what stays is removed when the log is opened.
            let _ = self.shared.files.remove(&spare.name);
        }
    }
}

impl Shared {
    /// Whether another file of this size keeps the byte bound.
    pub(super) fn fits_bound(&self, bytes: u64) -> bool {
        self.retention()
            .bytes_max
            .is_none_or(|max| self.segments.disk_bytes().saturating_add(bytes) <= max)
    }

    /// Makes room for another file under the byte bound, if the policy allows that.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        while !self.fits_bound(bytes) {
            if self.retention().at_bytes_max == AtBytesMax::HoldMessages {
                return false;
            }
            let Some(records) = self.drop_oldest(|_, _| true) else {
                // Nothing is left but the segment that is being written.
                return true;
            };
            self.figures
                .records_dropped
                .fetch_add(records, Ordering::Relaxed);
            // The file of the dropped one may serve at once.
            if self.segments.has_spare() {
                return true;
            }
        }
        true
    }

    /// Drops the oldest segment if `wanted` agrees. Gives how many records went with it.
    pub(super) fn drop_oldest(
        &self,
        wanted: impl FnOnce(&Segment, &Segment) -> bool,
    ) -> Option<u64> {
        let (oldest, next) = self.segments.take_oldest(wanted)?;
        self.tail.set_first(&next.base);
        let records = (next.base.known.iter())
            .map(|(&key, position)| position.next.saturating_sub(oldest.base.next(key)))
            .sum();
        let id = oldest.id;
        let spare_wanted = (!self.segments.has_spare())
            .then(|| self.segments.active())
            .flatten()
            .map(|active| self.next_capacity(active.capacity));
        match self.segments.release(oldest, spare_wanted) {
            Ok(()) => tracing::info!(
                segment = id,
                records,
                "a segment of the log is no longer kept"
            ),
            Err(error) => {
                tracing::warn!(segment = id, %error, "the file of a segment that is no longer kept could not be removed");
            }
        }
        Some(records)
    }

    /// The size of the segment after one of this size.
    pub(super) fn next_capacity(&self, capacity: u64) -> u64 {
        // Under a byte bound the log is at least four segments, so that dropping one is a small
        // part of it.
        let bound = self.retention().bytes_max.map_or(u64::MAX, |max| max / 4);
        let most = self
            .segment_bytes_max
            .min(bound)
            .max(super::SEGMENT_BYTES_MIN);
        super::format::to_block(capacity.saturating_mul(2).min(most))
    }
}
