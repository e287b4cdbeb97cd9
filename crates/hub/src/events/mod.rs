//! The built-in endpoint: who reads events, from where, and who has to give way.
//!
//! The hub keeps no cursor. A receiver reads a partition from a sequence number that its client
//! chose, at its client's pace; positions live with the clients.

mod receivers;

use std::sync::Arc;

use fieldpost_model::{PartitionId, Partitioning, SequenceNumber, StreamId, Timestamp};
use fieldpost_store::log::{Bounds, EventLog, ReadRequest, Records, TailWatch};
use fieldpost_store::{Answer, Store, StoreError};

pub use receivers::ReceiverEnd;
pub(crate) use receivers::Receivers;
use receivers::Seat;

/// The built-in endpoint.
pub struct Events {
    log: Arc<dyn EventLog>,
    entity: String,
    receivers: Receivers,
}

/// What the endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsDescription {
    /// Its entity name, which is the hub's.
    pub name: String,
    /// When the store was created.
    pub created: Timestamp,
    /// Its partitions, numbered from 0.
    pub partition_count: u16,
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionProperties {
    /// Which partition.
    pub partition: PartitionId,
    /// The oldest event kept; the next to come when there is none.
    pub first: SequenceNumber,
    /// The newest event ever stored, if there was one.
    pub last: Option<SequenceNumber>,
    /// When that was stored.
    pub last_enqueued: Option<Timestamp>,
    /// Whether no event is kept.
    pub is_empty: bool,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct OpenReceiver {
    /// The consumer group, in any case.
    pub group: String,
    /// The partition.
    pub partition: PartitionId,
    /// The owner level ("epoch"), if the client wants to be the only reader. 0 is a level.
    pub owner_level: Option<i64>,
    /// The client's name for the receiver, for messages to others.
    pub receiver_name: Option<String>,
    /// Rung when there are new events in the partition and when the receiver has ended.
    pub bell: Arc<TailWatch>,
}

/// Why a receiver is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiverRefused {
    /// There is no such consumer group.
    #[error("there is no such consumer group")]
    UnknownGroup,
    /// There is no such partition.
    #[error("there is no partition {partition}, there are {count}")]
    UnknownPartition {
        /// The partition asked for.
        partition: PartitionId,
        /// How many there are.
        count: u16,
    },
    /// A receiver with a higher owner level holds the partition.
    #[error("a receiver with owner level {held} exists, above {requested}")]
    HigherOwnerLevel {
        /// The level asked for.
        requested: i64,
        /// The holder's level.
        held: i64,
        /// The holder's name.
        holder: Option<String>,
    },
    /// A receiver with an owner level holds the partition; ones without cannot share it.
    #[error("a receiver with owner level {held} exists")]
    ExclusiveHolder {
        /// The holder's level.
        held: i64,
        /// The holder's name.
        holder: Option<String>,
    },
    /// There are as many receivers without an owner level as there can be.
    #[error("there are {max} receivers of the partition and consumer group")]
    TooManyReaders {
        /// How many there can be.
        max: usize,
    },
}

/// Where a client wants to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPosition {
    /// At the oldest event kept.
    Earliest,
    /// At the next event to come.
    Latest,
    /// At or after an event's sequence number.
    Sequence {
        /// The number.
        number: SequenceNumber,
        /// Whether that event is wanted as well.
        inclusive: bool,
    },
    /// At or after an event's offset, which is its sequence number in decimal.
    Offset {
        /// The number.
        number: SequenceNumber,
        /// Whether that event is wanted as well.
        inclusive: bool,
    },
    /// At the first event stored later than this.
    EnqueuedAfter(Timestamp),
}

/// Why a receiver cannot start where its client wants.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// The position lies beyond the next event to come.
    #[error("position {asked} lies beyond the next event, {next}")]
    BeyondEnd {
        /// The first sequence number that would be read.
        asked: SequenceNumber,
        /// The number of the next event to come.
        next: SequenceNumber,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Events {
    pub(crate) fn new(store: &Store, entity: String, receivers: Receivers) -> Self {
        Self {
            log: Arc::clone(&store.log),
            entity,
            receivers,
        }
    }

    /// What the endpoint is.
    #[must_use]
    pub fn describe(&self) -> EventsDescription {
        EventsDescription {
            name: self.entity.clone(),
            created: self.log.created(),
            partition_count: self.partitioning().count(),
        }
    }

    /// Whether `name` is the endpoint's entity name, without regard to case.
    #[must_use]
    pub fn is_entity(&self, name: &str) -> bool {
        self.entity.eq_ignore_ascii_case(name)
    }

    /// The partition that a client calls `id`: a decimal number without signs or leading zeros.
    #[must_use]
    pub fn partition(&self, id: &str) -> Option<PartitionId> {
        let partition = PartitionId(id.parse().ok()?);
        let is_plain = partition.to_string() == id;
        (is_plain && partition.0 < self.partitioning().count()).then_some(partition)
    }

    /// What a partition holds; `None` when there is no such partition.
    #[must_use]
    pub fn partition_properties(&self, partition: PartitionId) -> Option<PartitionProperties> {
        if partition.0 >= self.partitioning().count() {
            return None;
        }
        let bounds = self.log.bounds(StreamId::BUILT_IN, partition);
        Some(PartitionProperties {
            partition,
            first: bounds.first,
            last: bounds.next.checked_sub(1),
            last_enqueued: bounds.last_enqueued,
            is_empty: bounds.first == bounds.next,
        })
    }

    /// The consumer groups, the default one first.
    #[must_use]
    pub fn consumer_groups(&self) -> Vec<String> {
        self.receivers.groups()
    }

    /// Opens a receiver. One with an owner level ends all that have none and one of the same or a
    /// lower level, in its consumer group and partition.
    ///
    /// # Errors
    /// When there is nothing to read there, or somebody has a better right.
    pub fn open_receiver(&self, request: OpenReceiver) -> Result<Receiver, ReceiverRefused> {
        let count = self.partitioning().count();
        let partition = request.partition;
        if partition.0 >= count {
            return Err(ReceiverRefused::UnknownPartition { partition, count });
        }
        let bell = Arc::clone(&request.bell);
        let seat = self.receivers.open(request)?;
        self.log.watch(StreamId::BUILT_IN, partition, &bell);
        Ok(Receiver {
            log: Arc::clone(&self.log),
            partition,
            seat,
        })
    }

    /// The sequence number at which to start reading a partition. A position that retention has
    /// removed is as good as the oldest event kept.
    ///
    /// Asked before the receiver is opened, so that nobody has to give way to one that cannot
    /// start. Everything but a search by time is known at once.
    pub fn resolve_start(
        &self,
        partition: PartitionId,
        position: StartPosition,
    ) -> Answer<Result<SequenceNumber, StartError>> {
        let Bounds { first, next, .. } = self.log.bounds(StreamId::BUILT_IN, partition);
        let start = match position {
            StartPosition::Earliest => Ok(first),
            StartPosition::Latest => Ok(next),
            StartPosition::Sequence { number, inclusive }
            | StartPosition::Offset { number, inclusive } => {
                let asked = number.saturating_add(u64::from(!inclusive));
                if asked > next {
                    Err(StartError::BeyondEnd { asked, next })
                } else {
                    Ok(asked.max(first))
                }
            }
            StartPosition::EnqueuedAfter(time) => {
                let sought = self.log.seek_time(StreamId::BUILT_IN, partition, time);
                return Box::pin(async move { Ok(sought.await?) });
            }
        };
        Box::pin(std::future::ready(start))
    }

    fn partitioning(&self) -> Partitioning {
        self.log.partitioning()
    }
}

/// A reader of one partition for one consumer group. Dropping it makes room at once.
pub struct Receiver {
    log: Arc<dyn EventLog>,
    partition: PartitionId,
    seat: Seat,
}

impl Receiver {
    /// Why the receiver has ended, if it has; its holder then reads no more and drops it. The bell
    /// is rung when this changes.
    #[must_use]
    pub fn ended(&self) -> Option<&ReceiverEnd> {
        self.seat.ended()
    }

    /// Which partition it reads.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// What the partition holds.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.log.bounds(StreamId::BUILT_IN, self.partition)
    }

    /// Reads what memory holds; `None` says only that this is not in memory.
    #[must_use]
    pub fn read_recent(
        &self,
        from: SequenceNumber,
        bytes_max: usize,
        records_max: usize,
    ) -> Option<Records> {
        self.log
            .read_recent(&self.request(from, bytes_max, records_max))
    }

    /// Reads stored events in order from a sequence number, from the oldest one kept if that is
    /// gone. At least one event is returned when there is one.
    pub fn read(
        &self,
        from: SequenceNumber,
        bytes_max: usize,
        records_max: usize,
    ) -> Answer<Result<Records, StoreError>> {
        self.log.read(self.request(from, bytes_max, records_max))
    }

    fn request(&self, from: SequenceNumber, bytes_max: usize, records_max: usize) -> ReadRequest {
        ReadRequest {
            stream: StreamId::BUILT_IN,
            partition: self.partition,
            from,
            bytes_max,
            records_max,
        }
    }
}
