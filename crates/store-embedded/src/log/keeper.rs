//! Housekeeping: room on the disk, retention, and files that are made ready ahead of the committer.
//!
//! [`Keeper::step`] does one small thing and says whether there is more; a thread calls it, or a
//! test with a clock of its own.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use fieldpost_store::log::AtBytesMax;

use super::Shared;
use super::pace::{PACE_PERIOD, Pace};
use super::segment::{Fill, Segment, segment_name};
use super::space::SpaceWatch;
use super::time::SteadyTime;
use crate::files::File;

/// How often the disk is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(1);

/// How often the keeper looks around by itself.
const KEEPER_PERIOD: Duration = Duration::from_secs(1);

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
    /// What was filled last, and its file through a handle of the filler's own.
    pub(super) filling: Option<(Arc<Fill>, Arc<dyn File>)>,
    pub(super) pace: Pace,
    /// Whether there is something to fill when the log leaves the disk to it.
    pub(super) filling_waits: bool,
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
            filling: None,
            pace: Pace::default(),
            filling_waits: false,
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
        self.write_index() || self.prepare(now) || self.fill(now)
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

    /// Does one step of filling if there is something to fill and the log leaves the disk to it.
    fn fill(&mut self, now: Duration) -> bool {
        let Some((name, fill)) = self.unfilled() else {
            self.filling = None;
            self.filling_waits = false;
            return false;
        };
        let written = self.shared.figures.written.load(Ordering::Relaxed);
        let is_awaited = self.shared.intake.waiting.load(Ordering::Relaxed) > 0;
        self.filling_waits = !self.pace.allows(now, written, is_awaited);
        if self.filling_waits {
            return false;
        }
        if let Err(error) = self.fill_step(&name, &fill) {
            tracing::warn!(%error, name, "a file of the log could not be filled ahead");
            fill.give_up();
            // If it is a spare still, no record was ever written to it.
            self.shared.segments.remove_spare(&name);
            self.filling = None;
            self.prepare_due = now + RETRY_PERIOD;
        }
        true
    }

    /// What to fill next, and the name of its file: the segment that is being written before the
    /// one that comes after it.
    fn unfilled(&self) -> Option<(String, Arc<Fill>)> {
        let active = self.shared.segments.active()?;
        if active.fill.is_done() {
            return self.shared.segments.unfilled_spare();
        }
        Some((segment_name(active.id), Arc::clone(&active.fill)))
    }

    fn fill_step(&mut self, name: &str, fill: &Arc<Fill>) -> io::Result<()> {
        let file = match &self.filling {
            Some((filling, file)) if Arc::ptr_eq(filling, fill) => Arc::clone(file),
            _ => match self.shared.files.open(name) {
                Ok(file) => {
                    self.filling = Some((Arc::clone(fill), Arc::clone(&file)));
                    file
                }
                // A spare that has just become a segment is found under its new name.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        fill.step(&*file)
    }

    /// Makes a file for the next segment once a part of the active one is full.
    fn prepare(&mut self, now: Duration) -> bool {
        let Some(active) = self.shared.segments.active() else {
            return false;
        };
        let capacity = self.shared.next_capacity(active.capacity);
        let wanted = active.end() >= active.next_wanted_at()
            && !self.shared.segments.has_spare()
            && now >= self.prepare_due
            && self.shared.fits_bound(capacity)
            && self.shared.health.admit_message().is_ok();
        if !wanted {
            return false;
        }
        match self.shared.create_spare(capacity) {
            Ok(spare) => {
                self.shared.segments.add_spare(spare);
                true
            }
            Err(error) => {
                tracing::warn!(%error, bytes = capacity, "no file for the next segment of the log yet");
                self.prepare_due = now + RETRY_PERIOD;
                false
            }
        }
    }

    /// How long there is nothing to do unless somebody rings.
    pub(super) fn pause(&self) -> Duration {
        if self.filling_waits {
            PACE_PERIOD
        } else {
            KEEPER_PERIOD
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
