//! What became of a message: everything that the hub still knows, in one answer.

use fieldpost_model::{Identity, Timestamp};
use fieldpost_record::CommandView;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{Lane, ListOutcomes, Outcome, OutcomeNumber};

use super::damage::LanePage;
use super::lanes::{DEAD_LETTERS, FEEDBACK, HISTORY};
use super::names::QueueKey;
use super::outcome::{Attempts, Cause, HistoryLine, Told};
use super::{CloudToDevice, Inner, MessageState, dead_letters};

/// Which message is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageQuery {
    /// Those with this message id. Senders make these ids up, so there may be several.
    Id(String),
    /// The one with this sequence number.
    Sequence(u64),
}

/// What is known of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageTrace {
    /// Its sequence number.
    pub sequence: u64,
    /// The generation of the device that it was sent to.
    pub generation: String,
    /// The id that its sender gave it.
    pub message_id: Option<String>,
    /// The policy whose holder sent it.
    pub sender: String,
    /// When it was put into the queue.
    pub enqueued: Timestamp,
    /// When it expires, or would have.
    pub expires: Timestamp,
    /// Bytes of the stored message.
    pub size: u64,
    /// How many of its deliveries counted.
    pub delivery_count: u32,
    /// Its deliveries that have ended, as far as the hub saw them since it started.
    pub attempts: Attempts,
    /// Where it is now.
    pub state: TraceState,
    /// Whether its sender is told.
    pub feedback: FeedbackState,
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceState {
    /// In its queue.
    Waiting,
    /// In its queue, held by a receiver.
    Locked {
        /// When the lock ends by itself, if it does.
        until: Option<Timestamp>,
    },
    /// Among the dead letters.
    DeadLettered {
        /// Its number there.
        number: OutcomeNumber,
        /// Why.
        cause: Cause,
        /// Since when.
        at: Timestamp,
    },
    /// Gone: its receiver completed it.
    Completed {
        /// When.
        at: Timestamp,
    },
    /// Gone: an operator emptied the queue.
    Purged {
        /// When.
        at: Timestamp,
    },
}

/// Whether the sender of a message is told what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedbackState {
    /// It did not ask, or there is nothing to tell yet.
    None,
    /// A record waits for its feedback message.
    Pending,
    /// The record is in a feedback message, or the device was deleted before it was.
    Sent {
        /// When that was put into the feedback queue, as long as the history has it.
        at: Option<Timestamp>,
    },
}

/// Messages in one answer; the newest count.
const TRACES_MAX: usize = 100;

/// Records of a lane read at once, and bytes of them.
const READ_RECORDS: usize = 4096;
const READ_BYTES: usize = 4 << 20;

impl CloudToDevice {
    /// Finds the messages to a device or module that a query means: those in its queue, among the
    /// dead letters and in the history, in the order of their numbers. At most the 100 newest.
    ///
    /// Messages to an older generation of the device are found as well, until their records are let
    /// go. Reads the history from its beginning: for operators, not for machines.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn show(
        &self,
        identity: &Identity,
        query: &MessageQuery,
    ) -> Result<Vec<MessageTrace>, StoreError> {
        let inner = self.inner();
        // The queue comes first: a message that is settled meanwhile is found behind it, twice at
        // worst, and the later finding counts.
        let mut traces = inner.live_traces(identity, query).await?;
        for lane in [DEAD_LETTERS, HISTORY] {
            inner.find(lane, identity, query, &mut traces).await?;
        }
        newest(&mut traces);
        inner.complete_feedback(identity, &mut traces).await?;
        Ok(traces)
    }
}

fn note_told(told: &Told, traces: &mut [MessageTrace]) {
    for trace in traces {
        if trace.feedback == FeedbackState::Pending && told.sequences.contains(&trace.sequence) {
            trace.feedback = FeedbackState::Sent { at: Some(told.at) };
        }
    }
}

/// Puts findings into the order of their numbers, the last finding of each, the newest numbers.
fn newest(traces: &mut Vec<MessageTrace>) {
    traces.reverse();
    // Sorting keeps the order of the findings for one number.
    traces.sort_by_key(|trace| trace.sequence);
    traces.dedup_by_key(|trace| trace.sequence);
    traces.drain(..traces.len().saturating_sub(TRACES_MAX));
}

impl MessageQuery {
    fn means(&self, sequence: u64, message_id: Option<&str>) -> bool {
        match self {
            Self::Id(id) => message_id == Some(id.as_str()),
            Self::Sequence(wanted) => sequence == *wanted,
        }
    }
}

impl Inner {
    async fn live_traces(
        &self,
        identity: &Identity,
        query: &MessageQuery,
    ) -> Result<Vec<MessageTrace>, StoreError> {
        let Some(found) = self.registry.find(identity).await? else {
            return Ok(Vec::new());
        };
        let generation = found.generation_id();
        let key = QueueKey::Device {
            identity: identity.clone(),
            generation: generation.clone(),
        };
        let messages = self.live(&key).await?;
        let traces = messages.into_iter().filter_map(|message| {
            let view = CommandView::parse(&message.message).ok();
            let id = view.as_ref().and_then(CommandView::message_id);
            query
                .means(message.sequence, id)
                .then(|| live_trace(&message, generation))
        });
        Ok(traces.collect())
    }

    /// Adds what a lane has.
    async fn find(
        &self,
        lane: Lane,
        identity: &Identity,
        query: &MessageQuery,
        traces: &mut Vec<MessageTrace>,
    ) -> Result<(), StoreError> {
        let found_before = traces.len();
        let mut after = 0;
        loop {
            let LanePage {
                records, through, ..
            } = self.read_lane(lane, after).await?;
            if records.is_empty() {
                return Ok(());
            }
            after = through;
            for record in &records {
                // It stands behind what it tells of.
                if lane == HISTORY
                    && let Some(told) = Told::decode(&record.record)
                {
                    note_told(&told, traces);
                    continue;
                }
                if let MessageQuery::Sequence(wanted) = query
                    && record.sequence != *wanted
                {
                    continue;
                }
                let Some(trace) = settled_trace(lane, record, identity, query) else {
                    continue;
                };
                traces.push(trace);
                if traces.len() - found_before > 2 * TRACES_MAX {
                    traces.drain(found_before..found_before + TRACES_MAX);
                }
            }
        }
    }

    /// Says which of the records that are owed still wait. They are few: the follower takes them
    /// away all the time.
    async fn complete_feedback(
        &self,
        identity: &Identity,
        traces: &mut [MessageTrace],
    ) -> Result<(), StoreError> {
        if !traces.iter().any(|t| t.feedback == FeedbackState::Pending) {
            return Ok(());
        }
        let mut pending = Vec::new();
        let mut after = 0;
        loop {
            let LanePage {
                records, through, ..
            } = self.read_lane(FEEDBACK, after).await?;
            if records.is_empty() {
                break;
            }
            after = through;
            let of_identity = records.iter().filter(|record| is_of(record, identity));
            pending.extend(of_identity.map(|record| record.sequence));
        }
        for trace in traces {
            if trace.feedback == FeedbackState::Pending && !pending.contains(&trace.sequence) {
                trace.feedback = FeedbackState::Sent { at: None };
            }
        }
        Ok(())
    }

    async fn read_lane(&self, lane: Lane, after: u64) -> Result<LanePage, StoreError> {
        self.lane_page(ListOutcomes {
            lane,
            after,
            limit: READ_RECORDS,
            bytes_max: READ_BYTES,
            queue: None,
        })
        .await
    }
}

fn is_of(record: &Outcome, identity: &Identity) -> bool {
    match QueueKey::parse(&record.queue) {
        Some(QueueKey::Device { identity: of, .. }) => of == *identity,
        Some(QueueKey::Feedback) | None => false,
    }
}

fn live_trace(message: &MessageState, generation: &str) -> MessageTrace {
    let view = CommandView::parse(&message.message).ok();
    MessageTrace {
        sequence: message.sequence,
        generation: generation.to_owned(),
        state: match message.locked {
            Some(lock) => TraceState::Locked { until: lock.until },
            None => TraceState::Waiting,
        },
        delivery_count: message.delivery_count,
        attempts: message.attempts.clone(),
        feedback: FeedbackState::None,
        expires: message.expires,
        ..of_message(view.as_ref(), message.message.len())
    }
}

/// What a record tells, if it is about what the query means.
fn settled_trace(
    lane: Lane,
    record: &Outcome,
    identity: &Identity,
    query: &MessageQuery,
) -> Option<MessageTrace> {
    if !is_of(record, identity) {
        return None;
    }
    if lane == DEAD_LETTERS {
        let letter = dead_letters::decode(record)?;
        let view = CommandView::parse(&letter.message).ok();
        let id = view.as_ref().and_then(CommandView::message_id);
        return query.means(letter.sequence, id).then(|| MessageTrace {
            sequence: letter.sequence,
            generation: letter.generation,
            state: TraceState::DeadLettered {
                number: letter.number,
                cause: letter.cause,
                at: letter.at,
            },
            delivery_count: letter.delivery_count,
            attempts: letter.attempts,
            feedback: owed(letter.is_told),
            ..of_message(view.as_ref(), letter.message.len())
        });
    }
    let line = HistoryLine::decode(&record.record).ok()?;
    let is_meant = query.means(record.sequence, line.message_id.as_deref());
    let Some(QueueKey::Device { generation, .. }) = QueueKey::parse(&record.queue) else {
        return None;
    };
    is_meant.then(|| MessageTrace {
        sequence: record.sequence,
        generation: generation.to_string(),
        message_id: line.message_id,
        sender: line.sender,
        enqueued: line.enqueued,
        expires: line.expires,
        size: line.size.into(),
        delivery_count: line.settled.delivery_count,
        attempts: line.settled.attempts,
        state: match line.settled.cause {
            Cause::Purged => TraceState::Purged {
                at: line.settled.at,
            },
            _ => TraceState::Completed {
                at: line.settled.at,
            },
        },
        feedback: owed(line.settled.is_told),
    })
}

/// Owed, until the lane of those that wait was looked at.
fn owed(is_told: bool) -> FeedbackState {
    if is_told {
        FeedbackState::Pending
    } else {
        FeedbackState::None
    }
}

/// What the message itself says; a message that cannot be read says nothing.
fn of_message(view: Option<&CommandView<'_>>, size: usize) -> MessageTrace {
    MessageTrace {
        sequence: 0,
        generation: String::new(),
        message_id: view.and_then(CommandView::message_id).map(str::to_owned),
        sender: view.map_or("", CommandView::sender).to_owned(),
        enqueued: view.map_or(Timestamp::NEVER, CommandView::enqueued),
        expires: view.map_or(Timestamp::NEVER, CommandView::expires),
        size: size as u64,
        delivery_count: 0,
        attempts: Attempts::default(),
        state: TraceState::Waiting,
        feedback: FeedbackState::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_message_that_is_settled_meanwhile_the_later_finding_counts() {
        let found = |sequence: u64, state: TraceState| MessageTrace {
            sequence,
            state,
            ..of_message(None, 0)
        };
        let completed = TraceState::Completed {
            at: Timestamp::from_millis(1),
        };
        let mut traces = vec![
            found(7, TraceState::Waiting),
            found(3, TraceState::Waiting),
            found(5, completed),
            found(7, completed),
        ];
        newest(&mut traces);
        let left: Vec<_> = traces.iter().map(|t| (t.sequence, t.state)).collect();
        let expected = [(3, TraceState::Waiting), (5, completed), (7, completed)];
        assert_eq!(left, expected);
        let mut many: Vec<_> = (0..150).map(|n| found(n, completed)).collect();
        newest(&mut many);
        assert_eq!((many.len(), many[0].sequence), (TRACES_MAX, 50));
    }
}
