//! The event log: streams of partitions, appended in groups, read by position.
//!
//! A writer holds an [`Appender`], frames its records into [`Batch`]es and submits them; the
//! engine's one committer gathers what is waiting, numbers it, writes and syncs once, and then tells
//! every appender of the group how far it is durable. Nothing is promised before that.

mod appender;
mod batch;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::{PartitionId, Partitioning, SequenceNumber, StreamId, Timestamp};
use tokio::sync::watch as channel;

pub use appender::{Appender, Completion, Submission};
pub use batch::{Batch, BatchBuilder, FramedRecords, RECORD_FRAME_BYTES, RecordFrameError};
pub use watch::TailWatch;

use crate::{Answer, Health, StoreError};

/// The event log facet.
///
/// Positions are `(stream, partition, sequence number)`. Sequence numbers start at 0, grow by one
/// for each record and are never used again, whatever happens.
pub trait EventLog: Send + Sync + 'static {
    /// Hands a batch to the committer. Never blocks.
    ///
    /// The caller bounds what it has in flight; the log queues whatever it is given. The
    /// submission's completion is told when the batch is durable, in submission order per
    /// appender, or that the log failed. Callers use [`Appender`] and not this method.
    ///
    /// # Errors
    /// When the log takes no messages at the moment; the batch is then dropped.
    fn submit(&self, submission: Submission) -> Result<(), StoreError>;

    /// Reads what the memory of recent groups holds, without touching the disk.
    ///
    /// `None` means that the range is not in memory (or does not exist yet) and says nothing else.
    fn read_recent(&self, request: &ReadRequest) -> Option<Records>;

    /// Reads durable records in order from `request.from`.
    ///
    /// Starts at the oldest record kept when `from` is older than that. Empty when `from` is the
    /// next sequence number to be given out, or beyond. At least one record is returned when there
    /// is one, however large.
    fn read(&self, request: ReadRequest) -> Answer<Result<Records, StoreError>>;

    /// First and next sequence numbers of a partition.
    fn bounds(&self, stream: StreamId, partition: PartitionId) -> Bounds;

    /// The sequence number of the first durable record whose enqueued time is later than `after`;
    /// the next one to be given out when there is none.
    fn seek_time(
        &self,
        stream: StreamId,
        partition: PartitionId,
        after: Timestamp,
    ) -> Answer<Result<SequenceNumber, StoreError>>;

    /// Calls `watch` after every group that appends to this partition, until `watch` is dropped.
    fn watch(&self, stream: StreamId, partition: PartitionId, watch: &Arc<TailWatch>);

    /// The partitions of every stream, fixed when the store was created.
    fn partitioning(&self) -> Partitioning;

    /// When the store was created.
    fn created(&self) -> Timestamp;

    /// Changes how long records are kept, from now on. After opening, everything is kept until the
    /// first call.
    fn set_retention(&self, retention: Retention);

    /// The health of the whole store and its changes.
    fn health(&self) -> channel::Receiver<Health>;

    /// Figures for metrics.
    fn figures(&self) -> LogFigures;

    /// Commits what was submitted, stops, and answers when everything is closed.
    fn close(&self) -> Answer<()>;
}

/// Which records to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The stream.
    pub stream: StreamId,
    /// The partition.
    pub partition: PartitionId,
    /// The first sequence number wanted.
    pub from: SequenceNumber,
    /// Stop before the records exceed this many bytes; one record is always returned.
    pub bytes_max: usize,
    /// Stop after this many records; at least 1.
    pub records_max: usize,
}

/// A contiguous run of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The records in order, with consecutive sequence numbers.
    pub records: Vec<StoredRecord>,
    /// Where the next read goes on: one after the last record. When there are none, the request's
    /// `from`, or the oldest sequence number kept if that is larger.
    pub next: SequenceNumber,
}

/// One record as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its number in its partition.
    pub sequence: SequenceNumber,
    /// When it was appended; never earlier than that of the record before it.
    pub enqueued: Timestamp,
    /// The bytes that were appended. Shares memory with its neighbours.
    pub data: Bytes,
}

/// What a partition of a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest record kept; equal to `next` when there is none.
    pub first: SequenceNumber,
    /// The number that the next record gets.
    pub next: SequenceNumber,
    /// Enqueued time of the newest record ever appended, if any was.
    pub last_enqueued: Option<Timestamp>,
}

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records are kept at least this long, unless `bytes_max` says otherwise.
    pub age_min: Duration,
    /// A bound on the bytes that the log takes on disk, if any.
    pub bytes_max: Option<u64>,
    /// What happens when the byte bound is reached before the age.
    pub at_bytes_max: AtBytesMax,
}

/// What a log does when its byte bound is reached by records younger than the minimum age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBytesMax {
    /// Takes no new messages until the age lets old ones go.
    HoldMessages,
    /// Drops the oldest and counts what it dropped.
    DropOldest,
}

/// Figures of a log since it was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// Groups made durable.
    pub groups: u64,
    /// Records made durable.
    pub records: u64,
    /// Bytes of records made durable.
    pub bytes: u64,
    /// Records dropped by the byte bound before their minimum age.
    pub records_dropped: u64,
    /// Bytes that the log takes on disk, preallocated ones included.
    pub disk_bytes: u64,
    /// Batches waiting for the committer.
    pub batches_waiting: u64,
    /// Time spent in sync calls, in microseconds.
    pub sync_micros: u64,
}
