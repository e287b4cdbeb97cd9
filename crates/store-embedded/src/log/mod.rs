//! The durable event log.
//!
//! One log for all streams and partitions. Connections queue batches ([`intake`]); the
//! [`committer`] makes a group of all that is queued, writes it in one piece to the active segment,
//! syncs once and publishes it: to the index of the [`segment`], to the [`tail`] in memory, to the
//! readers' bells and to the appenders. The [`keeper`] prepares files ahead, drops old segments and
//! watches the disk. Opening walks the last segment only ([`recovery`], [`scan`]); reading goes
//! through the index ([`reader`]).
//!
//! The rules are state machines over [`crate::files`] and a clock. Threads ([`shell`]) only turn
//! the crank, and `SteppedLog` lets a test or a simulation turn it instead.

mod accepted;
mod check;
mod committer;
pub(crate) mod format;
mod frames;
mod intake;
mod keeper;
mod pace;
mod reader;
mod recovery;
pub(crate) mod repair;
mod scan;
mod segment;
mod shell;
mod space;
#[cfg(any(test, feature = "sim"))]
mod stepped;
mod tail;
#[cfg(test)]
mod tests;
mod time;
pub(crate) mod verify;
mod watches;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldpost_model::{Clock, Partitioning, StreamId, Timestamp};
use fieldpost_store::StoreError;
use fieldpost_store::log::{AtBytesMax, LogFigures, ReadRequest, Records, Retention, Submission};

pub use accepted::AcceptedLoss;
pub use committer::Turn;
pub use format::LogId;
pub use recovery::{LogOpenError, RecoveryReport};
pub(crate) use segment::parse_name;
pub use shell::EmbeddedLog;
pub use space::DiskMarks;
#[cfg(any(test, feature = "sim"))]
pub use stepped::SteppedLog;

use accepted::Accepted;
use check::Check;
use committer::{Committer, NoSegment};
use format::segment::SegmentHeader;
use intake::Intake;
use keeper::{Keeper, KeeperBell};
use recovery::Recovered;
use segment::Segments;
use space::SpaceWatch;
use tail::Tail;
use time::SteadyTime;
use watches::Watches;

use crate::damage::Damage;
use crate::files::{Files, is_full};
use crate::health::StoreHealth;

/// Segments are not made smaller than this.
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// Segments are not made larger than this.
pub const SEGMENT_BYTES_LIMIT: u64 = 4 * 1024 * 1024 * 1024;

/// The most bytes of frames in one batch.
pub const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most streams that one batch may name.
pub const BATCH_STREAMS_MAX: usize = 64;

/// Streams are numbered below this.
pub const STREAMS_MAX: u16 = 256;

/// How a log is run.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The size of the first segment.
    pub segment_bytes_first: u64,
    /// What the size grows to, by doubling.
    pub segment_bytes_max: u64,
    /// Memory for recent groups.
    pub tail_bytes: usize,
    /// How long records are kept, until told otherwise. By default everything is, so that nothing
    /// goes before whoever opened the log has found out how long that is.
    pub retention: Retention,
    /// When a filling disk holds writers back.
    pub marks: DiskMarks,
    /// Bytes kept in reserve for small changes on a filling disk.
    pub reserve_bytes: u64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            segment_bytes_first: 16 << 20,
            segment_bytes_max: 256 << 20,
            tail_bytes: 64 << 20,
            retention: Retention {
                age_min: Duration::MAX,
                bytes_max: None,
                at_bytes_max: AtBytesMax::HoldMessages,
            },
            marks: DiskMarks::default(),
            reserve_bytes: 64 << 20,
        }
    }
}

/// What a log is, fixed when it was created.
#[derive(Clone, Copy, Debug)]
pub struct LogIdentity {
    /// Goes into every check.
    pub id: LogId,
    /// When the store was created.
    pub created: Timestamp,
    /// The partitions of every stream.
    pub partitioning: Partitioning,
    /// The log is opened for the first time: it is no damage that nothing is there.
    pub fresh: bool,
    /// How many times before all its segments were found to be gone, this time included.
    pub losses: u32,
}

/// What committer, keeper and readers of one log share.
struct Shared {
    files: Arc<dyn Files>,
    clock: Arc<dyn Clock>,
    health: Arc<StoreHealth>,
    log_id: LogId,
    created: Timestamp,
    partitioning: Partitioning,
    segment_bytes_max: u64,
    intake: Intake,
    segments: Segments,
    tail: Tail,
    watches: Watches,
    keeper: KeeperBell,
    /// What is damaged and is left out because the operator said so.
    accepted: Accepted,
    figures: Figures,
    retention: Mutex<Retention>,
    retention_changed: AtomicBool,
    /// Housekeeping wants a new segment because of the age of the active one.
    roll_asked: AtomicBool,
}

#[derive(Default)]
struct Figures {
    groups: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that were written to segments, headers and padding included.
    written: AtomicU64,
    records_dropped: AtomicU64,
    sync_micros: AtomicU64,
}

/// An opened log before anything turns its crank.
struct Opened {
    shared: Arc<Shared>,
    committer: Committer,
    keeper: Keeper,
    /// What is to be walked in the background.
    check: Check,
    report: RecoveryReport,
}

/// Opens a log.
fn open(
    files: Arc<dyn Files>,
    identity: LogIdentity,
    settings: &LogSettings,
    clock: Arc<dyn Clock>,
    health: Arc<StoreHealth>,
) -> Result<Opened, LogOpenError> {
    let recovered = recovery::recover(&*files, &identity)?;
    tell(&recovered.report);
    let mut space = SpaceWatch::new(settings.marks, settings.reserve_bytes);
    space.find_reserve(&*files)?;
    space.step(&*files, &health);

    let Recovered {
        segments,
        at,
        number,
        last_durable,
        next_id,
        positions,
        newest,
        has_records,
        accepted,
        report,
    } = recovered;
    let oldest = segments.front().map(|segment| segment.base.clone());
    let segment_bytes =
        |bytes: u64| format::to_block(bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_LIMIT));
    let time = SteadyTime::after(newest, &*clock);
    let shared = Arc::new(Shared {
        tail: Tail::new(
            settings.tail_bytes,
            oldest.as_ref().unwrap_or(&positions),
            &positions,
        ),
        segments: Segments::new(Arc::clone(&files), identity.id, VecDeque::new()),
        files,
        clock,
        health,
        log_id: identity.id,
        created: identity.created,
        partitioning: identity.partitioning,
        segment_bytes_max: segment_bytes(settings.segment_bytes_max),
        intake: Intake::default(),
        watches: Watches::default(),
        keeper: KeeperBell::default(),
        accepted,
        figures: Figures::default(),
        retention: Mutex::new(settings.retention),
        retention_changed: AtomicBool::new(false),
        roll_asked: AtomicBool::new(false),
    });
    let store_time = newest
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .max(shared.clock.now());

    for segment in &segments {
        shared.segments.push(Arc::clone(segment));
    }
    // All before it are whole segments, whatever the committer begins.
    let last = segments.back().map_or(0, |segment| segment.id);
    let (active, at, last_durable) = match (segments.back(), at) {
        (Some(active), Some(at)) => (Arc::clone(active), at, last_durable),
        (last, _) => {
            let first = segment_bytes(settings.segment_bytes_first);
            let capacity = last.map_or(first, |last| shared.next_capacity(last.capacity / 2));
            let least = SegmentHeader::bytes(&positions) + 4 * format::BLOCK;
            let spare = shared.create_spare(capacity.max(least))?;
            let header = SegmentHeader {
                log: identity.id,
                id: next_id,
                capacity: spare.capacity,
                last_group: number,
                created: store_time,
                filled: false,
                positions: positions.clone(),
            };
            let segment = shared
                .begin_segment(spare, &header)
                .map_err(|error| match error {
                    NoSegment::Held {
                        error: Some(error), ..
                    } if !is_full(&error) => LogOpenError::Io(error),
                    NoSegment::Held { why, .. } => LogOpenError::ReadOnly(why.to_owned()),
                    NoSegment::Failed(error) => LogOpenError::Io(error),
                })?;
            shared.segments.push(Arc::clone(&segment));
            let at = segment.start;
            (segment, at, number)
        }
    };
    let steady = SteadyTime::of_records(&*shared.clock);
    let mut committer = Committer {
        has_records: has_records && !active.is_sealed(),
        active,
        at,
        number,
        last_durable,
        positions,
        store_time,
        time: steady,
        pending: VecDeque::new(),
        holding: false,
        staging: Vec::new(),
        shared: Arc::clone(&shared),
    };
    committer.mark_opened()?;
    let keeper = Keeper::new(Arc::clone(&shared), space, time);
    let check = Check::after(&shared, last, &report);
    Ok(Opened {
        shared,
        committer,
        keeper,
        check,
        report,
    })
}

/// Damages that are told one by one at a start.
const TOLD_MAX: usize = 20;

/// Says what is damaged, for whoever looks at the program's log.
fn tell_damage(damage: &[Damage]) {
    for damage in damage.iter().take(TOLD_MAX) {
        tracing::error!(%damage, "the log is damaged");
    }
    if let Some(more) = damage.len().checked_sub(TOLD_MAX).filter(|more| *more > 0) {
        tracing::error!(
            more,
            "the log is damaged in more places; `verify` lists them"
        );
    }
}

/// Says what opening found, for whoever looks at the program's log.
fn tell(report: &RecoveryReport) {
    tell_damage(&report.damage);
    if let Some(torn) = &report.torn {
        tracing::warn!(%torn, "the end of the log was not whole");
    }
    if report.accepted > 0 {
        tracing::info!(
            losses = report.accepted,
            "damage to the log that was accepted is left out; `verify` lists it"
        );
    }
}

impl Shared {
    fn submit(&self, submission: Submission) -> Result<(), StoreError> {
        self.check(&submission)?;
        self.health.admit_message()?;
        self.intake.submit(submission)
    }

    /// What the format has no room for is refused here, so that nothing can go wrong in a group.
    fn check(&self, submission: &Submission) -> Result<(), StoreError> {
        let batch = &submission.batch;
        let partition = batch.partition.0;
        let what = if batch.count == 0 || batch.frames.is_empty() {
            "a batch has at least one record"
        } else if batch.frames.len() > BATCH_BYTES_MAX {
            "a batch has at most 64 MiB"
        } else if partition >= self.partitioning.count() {
            "there is no such partition"
        } else if batch.streams.is_empty() || batch.streams.len() > BATCH_STREAMS_MAX {
            "a batch goes to 1 to 64 streams"
        } else if (batch.streams.iter()).any(|&StreamId(id)| id >= STREAMS_MAX) {
            "streams are numbered below 256"
        } else {
            return Ok(());
        };
        Err(StoreError::OutOfBounds { what })
    }

    /// The answer to a read from where the next record will be, or from behind that.
    fn read_at_end(&self, request: &ReadRequest) -> Option<Records> {
        let bounds = self.tail.bounds((request.stream, request.partition));
        (request.from >= bounds.next).then(|| Records {
            records: Vec::new(),
            next: request.from,
        })
    }

    fn retention(&self) -> Retention {
        *self
            .retention
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_retention(&self, retention: Retention) {
        *self
            .retention
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = retention;
        self.retention_changed.store(true, Ordering::Release);
        self.keeper.nudge();
        self.intake.nudge_held();
    }

    fn figures(&self) -> LogFigures {
        let figures = &self.figures;
        LogFigures {
            groups: figures.groups.load(Ordering::Relaxed),
            records: figures.records.load(Ordering::Relaxed),
            bytes: figures.bytes.load(Ordering::Relaxed),
            records_dropped: figures.records_dropped.load(Ordering::Relaxed),
            disk_bytes: self.segments.disk_bytes(),
            batches_waiting: self.intake.waiting.load(Ordering::Relaxed),
            sync_micros: figures.sync_micros.load(Ordering::Relaxed),
        }
    }
}
