//! A link on which a client reads a partition.

use std::sync::LazyLock;

use bytes::BytesMut;
use fieldpost_amqp::{Connection, Delivery, Error, LinkId, SendError};
use fieldpost_hub::events::{Receiver, StartError};
use fieldpost_model::{SequenceNumber, Timestamp};
use fieldpost_store::StoreError;
use fieldpost_store::log::Records;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::{Counter, Gauge, counter, gauge};

use super::grants::Permit;
use crate::dialect::amqp::error;
use crate::dialect::amqp::event::{RuntimeMetric, put_head};

/// Bytes of records that one turn of a reader takes. Readers of a connection get their turns in
/// rotation, and what a turn has read is sent or dropped in it, so that this is also what the
/// reading of one link costs in memory.
const TURN_BYTES: usize = 64 * 1024;

/// Records that one turn takes at most.
const TURN_RECORDS: u32 = 1024;

static FIGURES: LazyLock<Figures> = LazyLock::new(|| Figures {
    events: counter!("fieldpost_events_delivered_total"),
    bytes: counter!("fieldpost_event_bytes_delivered_total"),
    open: gauge!("fieldpost_event_receivers_open"),
});

struct Figures {
    events: Counter,
    bytes: Counter,
    open: Gauge,
}

/// One attached reader.
pub(super) struct Reader {
    receiver: Receiver,
    pub(super) permit: Permit,
    name: Option<String>,
    runtime_metric: bool,
    /// The next event to send; none while the start position is still being found.
    next: Option<SequenceNumber>,
    /// Events read ahead of the reader's turn.
    fetched: Option<Records>,
    /// A fetch is under way; its end calls for a turn.
    pub(super) fetching: bool,
    /// Waits in the queue of turns.
    pub(super) queued: bool,
    /// The client wants its credit used up.
    draining: bool,
    next_tag: u32,
}

/// What a fetch brought.
pub(super) enum Fetched {
    /// Where the reader starts.
    Start(Result<SequenceNumber, StartError>),
    /// Events.
    Records(Result<Records, StoreError>),
}

/// Work that a reader needs to have done before its next turn.
pub(super) type Fetch = BoxFuture<'static, Fetched>;

/// How a turn ended.
pub(super) enum Turn {
    /// There may be more to send at once.
    More,
    /// Nothing to do until credit or events come.
    Idle,
    /// Events have to be fetched first.
    Fetch,
    /// The link cannot go on.
    Failed(Error),
}

/// What a link needs to be opened as a reader.
pub(super) struct Opening {
    pub(super) receiver: Receiver,
    pub(super) permit: Permit,
    pub(super) name: Option<String>,
    pub(super) runtime_metric: bool,
    /// Where it starts; none when that is still being found, and then told by
    /// [`Fetched::Start`].
    pub(super) start: Option<SequenceNumber>,
}

impl Reader {
    /// A reader that has sent nothing yet.
    pub(super) fn open(opening: Opening) -> Self {
        FIGURES.open.increment(1);
        Self {
            receiver: opening.receiver,
            permit: opening.permit,
            name: opening.name,
            runtime_metric: opening.runtime_metric,
            next: opening.start,
            fetched: None,
            fetching: opening.start.is_none(),
            queued: false,
            draining: false,
            next_tag: 0,
        }
    }

    /// The error to detach with, if the partition was taken from this reader.
    pub(super) fn ended(&self) -> Option<Error> {
        let end = self.receiver.ended()?;
        Some(error::receiver_ended(end, self.name.as_deref()))
    }

    /// The client wants its credit used up.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// A fetch from the log for the next turn, which asks for what `credit` lets be sent.
    pub(super) fn fetch(&mut self, credit: u32) -> Fetch {
        self.fetching = true;
        let from = self.next.unwrap_or_default();
        self.receiver
            .read(from, TURN_BYTES, records_max(credit))
            .map(Fetched::Records)
            .boxed()
    }

    /// Takes what a fetch brought.
    ///
    /// # Errors
    /// The error to detach with when the fetch failed.
    pub(super) fn take(&mut self, fetched: Fetched) -> Result<(), FetchFailed> {
        self.fetching = false;
        match fetched {
            Fetched::Start(Ok(start)) => self.next = Some(start),
            Fetched::Start(Err(error)) => return Err(FetchFailed::Start(error)),
            Fetched::Records(Ok(records)) => {
                if records.records.is_empty() {
                    // The log says where to go on.
                    self.next = Some(records.next);
                }
                self.fetched = Some(records);
            }
            Fetched::Records(Err(error)) => return Err(FetchFailed::Read(error)),
        }
        Ok(())
    }

    /// Sends what there is, as far as the client's credit and one turn go.
    pub(super) fn turn(
        &mut self,
        link: LinkId,
        engine: &mut Connection,
        head: &mut BytesMut,
        now: Timestamp,
    ) -> Turn {
        let Some(next) = self.next.filter(|_| !self.fetching) else {
            return Turn::Idle;
        };
        let credit = engine.sendable(link);
        if credit == 0 {
            // Read again when credit comes: a client that is slow to give it must not keep events
            // in memory.
            self.fetched = None;
            return Turn::Idle;
        }
        let fetched = self.fetched.take();
        let records = fetched.filter(|records| !records.records.is_empty());
        let records = records.or_else(|| {
            self.receiver
                .read_recent(next, TURN_BYTES, records_max(credit))
                .filter(|records| !records.records.is_empty())
        });
        let Some(records) = records else {
            if next < self.receiver.bounds().next {
                return Turn::Fetch;
            }
            if std::mem::take(&mut self.draining) {
                // A client that changed its mind, or a link that is gone, needs no answer.
                let _ = engine.drained(link);
            }
            return Turn::Idle;
        };
        self.send(link, engine, head, &records, now)
    }

    fn send(
        &mut self,
        link: LinkId,
        engine: &mut Connection,
        head: &mut BytesMut,
        records: &Records,
        now: Timestamp,
    ) -> Turn {
        let metric = self
            .runtime_metric
            .then(|| RuntimeMetric::of(&self.receiver.bounds(), now));
        let (mut events, mut bytes) = (0, 0);
        let mut turn = Turn::More;
        for record in &records.records {
            head.clear();
            let sections = match put_head(head, record, metric.as_ref()) {
                Ok(sections) => sections,
                Err(error) => {
                    tracing::error!(
                        partition = %self.receiver.partition(),
                        sequence = record.sequence,
                        %error,
                        "an event in the log cannot be read"
                    );
                    turn = Turn::Failed(error::record_unreadable());
                    break;
                }
            };
            let delivery = Delivery {
                tag: &self.next_tag.to_be_bytes(),
                settled: true,
                message_format: 0,
                payload: &[&head[..], sections],
            };
            match engine.send(link, &delivery) {
                Ok(_) => {}
                Err(SendError::NoCredit | SendError::Misuse(_)) => break,
                Err(refused @ (SendError::TooLarge(_) | SendError::TagTooLong)) => {
                    turn = Turn::Failed(error::event_too_large(&refused));
                    break;
                }
            }
            self.next_tag = self.next_tag.wrapping_add(1);
            self.next = Some(record.sequence.saturating_add(1));
            events += 1;
            bytes += u64::try_from(sections.len()).unwrap_or(u64::MAX);
        }
        FIGURES.events.increment(events);
        FIGURES.bytes.increment(bytes);
        match turn {
            // Nothing went out, so that another turn would end the same way.
            Turn::More if events == 0 => Turn::Idle,
            turn => turn,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        FIGURES.open.decrement(1);
    }
}

/// Why a fetch brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchFailed {
    #[error(transparent)]
    Start(StartError),
    #[error(transparent)]
    Read(StoreError),
}

impl FetchFailed {
    /// The error to detach with.
    pub(super) fn to_amqp(&self) -> Error {
        match self {
            Self::Start(error) => error::start_refused(error),
            Self::Read(error) => error::read_failed(error),
        }
    }
}

fn records_max(credit: u32) -> usize {
    usize::try_from(credit.clamp(1, TURN_RECORDS)).unwrap_or(1)
}
