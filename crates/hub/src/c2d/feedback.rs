//! Telling senders what became of their messages.
//!
//! A settled message whose sender asked for feedback leaves a record in the feedback lane. One task,
//! the *follower*, collects records into feedback messages and puts those into the hub's feedback
//! queue, where receivers take them as devices take theirs. A message goes out when 64 records wait
//! or 15 seconds have passed since the last one went (Azure IoT Hub, "message feedback").
//!
//! The record is durable with the outcome, the message names the last record that it covers, and
//! records are forgotten when their message is durable. So a hub that stops anywhere in between tells
//! everything, and nothing twice: the queue takes no message that covers what it covered before.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fieldpost_model::Timestamp;
use fieldpost_record::RecordError;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{
    ITEM_BYTES_MAX, ListOutcomes, Operation, OperationResult, Outcome, OutcomeNumber,
};
use futures_util::future::{FutureExt, select};
use serde::Serialize;
use tokio::sync::{Notify, oneshot};

use super::Inner;
use super::damage::LanePage;
use super::lanes::{FEEDBACK, HISTORY};
use super::names::QueueKey;
use super::outcome::{FeedbackOwed, Told};

/// Records in one feedback message (Azure IoT Hub, "message feedback").
pub const FEEDBACK_RECORDS_MAX: usize = 64;

/// After a feedback message, how long records wait for others to go with them (Azure IoT Hub,
/// "message feedback").
pub const FEEDBACK_INTERVAL: Duration = Duration::from_secs(15);

/// A message in the feedback queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedbackMessage {
    /// When the hub made it.
    pub enqueued: Timestamp,
    /// How many records it holds; at least 1.
    pub records: u32,
    /// The records: a JSON array in UTF-8.
    pub json: Bytes,
}

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 4;

impl FeedbackMessage {
    /// Reads a message as it stands in the queue.
    ///
    /// # Errors
    /// When the bytes are not one of a known version.
    pub fn parse(message: &Bytes) -> Result<Self, RecordError> {
        let mut header: &[u8] = message;
        let version = header.try_get_u8().map_err(|_| RecordError::Truncated)?;
        if version != VERSION {
            return Err(RecordError::Version { version });
        }
        let enqueued = header.try_get_i64_le();
        let records = header.try_get_u32_le();
        Ok(Self {
            enqueued: Timestamp::from_millis(enqueued.map_err(|_| RecordError::Truncated)?),
            records: records.map_err(|_| RecordError::Truncated)?,
            json: message.slice(HEADER_BYTES..),
        })
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.json.len());
        out.put_u8(VERSION);
        out.put_i64_le(self.enqueued.as_millis());
        out.put_u32_le(self.records);
        out.put_slice(&self.json);
        out.freeze()
    }
}

/// What the follower shares with the rest of the hub.
#[derive(Default)]
pub(super) struct FeedbackProgress {
    bell: Notify,
}

impl FeedbackProgress {
    /// Wakes the follower: there is a new record in the lane, durably.
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }
}

/// Follows the lane until `stopped` is answered or dropped, or the store is closed.
pub(super) async fn run(inner: Arc<Inner>, stopped: oneshot::Receiver<()>) {
    let follower = Follower {
        inner,
        forgotten: 0,
        told: Vec::new(),
        last_sent: None,
        has_mark: true,
        failures: 0,
    };
    let run = pin!(follower.run());
    // Whatever is cut off in the middle is taken up by the next hub on this store.
    select(run, stopped).await;
}

struct Follower {
    inner: Arc<Inner>,
    /// Records up to this one are gone from the lane, or of no more use.
    forgotten: OutcomeNumber,
    /// Lines of history about the messages that have gone since records were last forgotten.
    told: Vec<Operation>,
    /// On the monotonic clock, when a message last went; not known after a start, and then nothing
    /// waits.
    last_sent: Option<Duration>,
    /// Whether the feedback queue's mark of what was told can be read. Without it, what a crash leaves
    /// in the lane is told a second time.
    has_mark: bool,
    /// Failures of the store in a row.
    failures: u32,
}

/// What is to be done about the records that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Send them; those that do not fill a message too, when their time has come.
    Send { partly: bool },
    /// Wait for more, at most until a moment of the monotonic clock.
    Wait { until: Option<Duration> },
}

/// Records read at once, and bytes of them.
const ROUND_RECORDS: usize = 16 * FEEDBACK_RECORDS_MAX;
const ROUND_BYTES: usize = 1 << 20;

/// Waits between tries when the store refuses: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

fn next(waiting: u64, last_sent: Option<Duration>, now: Duration) -> Next {
    let due = last_sent.map(|at| at.saturating_add(FEEDBACK_INTERVAL));
    match due {
        _ if waiting == 0 => Next::Wait { until: None },
        Some(due) if now < due => {
            if usize::try_from(waiting).is_ok_and(|waiting| waiting < FEEDBACK_RECORDS_MAX) {
                Next::Wait { until: Some(due) }
            } else {
                Next::Send { partly: false }
            }
        }
        Some(_) | None => Next::Send { partly: true },
    }
}

impl Follower {
    async fn run(mut self) {
        loop {
            match self.skip_covered().await {
                Ok(()) => break,
                Err(StoreError::Closed) => return,
                Err(error) => self.back_off(Trouble::Store(&error)).await,
            }
        }
        loop {
            let waiting = self.inner.queues.lane(FEEDBACK).count;
            let now = self.inner.timer.monotonic();
            let outcome = match next(waiting, self.last_sent, now) {
                Next::Wait { until } => {
                    self.wait(until).await;
                    continue;
                }
                Next::Send { partly } => self.send(partly).await,
            };
            match outcome {
                Ok(()) => self.recover(),
                Err(StoreError::Closed) => return,
                Err(error) => self.back_off(Trouble::Store(&error)).await,
            }
        }
    }

    /// Forgets what a hub before this one has told and not forgotten. An offer that no queue has
    /// room for is never taken, but one that was taken before is recognised first.
    async fn skip_covered(&mut self) -> Result<(), StoreError> {
        let records = self.read().await?.records;
        let offers = records.iter().map(|record| Operation::Enqueue {
            queue: QueueKey::Feedback.name(),
            message: Bytes::new(),
            expires: Timestamp::NEVER,
            depth_max: 0,
            once: Some(record.number),
        });
        let offers: Vec<_> = offers.collect();
        if offers.is_empty() {
            return Ok(());
        }
        let results = match self.inner.queues.apply(offers).await {
            Err(error @ StoreError::Damaged { .. }) => {
                self.do_without_mark(&error);
                return Ok(());
            }
            results => results?,
        };
        let covered = records
            .iter()
            .zip(&results)
            .take_while(|(_, result)| **result == OperationResult::DoneBefore)
            .last();
        match covered {
            Some((record, _)) => self.forget(record.number).await,
            None => Ok(()),
        }
    }

    /// Ready when the bell rings or the moment has come.
    async fn wait(&self, until: Option<Duration>) {
        let mut rung = pin!(self.inner.feedback.bell.notified());
        let mut sleep = until.map(|until| self.inner.timer.sleep_until(until));
        poll_fn(|cx| {
            let is_time = sleep
                .as_mut()
                .is_some_and(|sleep| sleep.poll_unpin(cx).is_ready());
            if is_time {
                return Poll::Ready(());
            }
            rung.as_mut().poll(cx)
        })
        .await;
    }

    /// Sends what fills messages and, if `partly`, what remains, and forgets it.
    async fn send(&mut self, partly: bool) -> Result<(), StoreError> {
        let page = self.read().await?;
        if page.records.is_empty() {
            // The lane says that there is something and shows nothing: not before the bell rings.
            if page.through > self.forgotten {
                self.forget(page.through).await?;
            }
            self.wait(None).await;
            return Ok(());
        }
        let (owed, dropped) = self.sift(&page.records).await?;
        if !dropped.is_empty() {
            match self.inner.queues.apply(dropped).await {
                Ok(_) => {}
                // They go with those behind them.
                Err(error @ StoreError::Damaged { .. }) => self.inner.tell_damage(&error),
                Err(error) => return Err(error),
            }
        }
        if owed.is_empty() {
            self.forgotten = page.through;
            return Ok(());
        }
        let mut covered = None;
        for batch in batches(&owed) {
            let is_full = batch.is_full || covered.is_none() && partly;
            if !is_full {
                break;
            }
            self.enqueue(&batch).await?;
            covered = Some(batch.through);
        }
        match covered {
            Some(through) => self.forget(through).await,
            None => {
                // The lane counts what cannot be read: these do not fill a message after all.
                let due = self
                    .last_sent
                    .map(|at| at.saturating_add(FEEDBACK_INTERVAL));
                self.wait(due).await;
                Ok(())
            }
        }
    }

    /// Reads what waits, as much as a round may take; damage is left out.
    async fn read(&self) -> Result<LanePage, StoreError> {
        let mut round = LanePage {
            records: Vec::new(),
            through: self.forgotten,
            damaged: None,
        };
        let waiting = self.inner.queues.lane(FEEDBACK).count;
        let enough = usize::try_from(waiting).unwrap_or(usize::MAX);
        // A page ends in front of damage. What is behind it may fill the message.
        while round.records.len() < enough.min(FEEDBACK_RECORDS_MAX) {
            let page = self.inner.lane_page(ListOutcomes {
                lane: FEEDBACK,
                after: round.through,
                limit: ROUND_RECORDS,
                bytes_max: ROUND_BYTES,
                queue: None,
            });
            let page = page.await?;
            round.through = page.through;
            if page.records.is_empty() {
                break;
            }
            round.records.extend(page.records);
        }
        Ok(round)
    }

    /// Sorts out what nobody is to be told: records of devices that are gone, or were deleted and
    /// made anew, and records that cannot be read. Returns the others as JSON.
    async fn sift(&self, records: &[Outcome]) -> Result<(Vec<Owed>, Vec<Operation>), StoreError> {
        let mut owed = Vec::with_capacity(records.len());
        let mut dropped = Vec::new();
        let (mut gone, mut unreadable) = (0, 0);
        for record in records {
            match to_json(record) {
                Some(_) if !self.is_present(record).await? => gone += 1,
                Some(json) => {
                    owed.push(Owed {
                        number: record.number,
                        sequence: record.sequence,
                        json,
                    });
                    continue;
                }
                None => unreadable += 1,
            }
            dropped.push(Operation::Remove {
                lane: FEEDBACK,
                number: record.number,
            });
        }
        if unreadable > 0 {
            tracing::warn!(
                unreadable,
                "feedback records cannot be read; their senders are not told"
            );
        }
        count_records("device_gone", gone);
        count_records("unreadable", unreadable);
        Ok((owed, dropped))
    }

    /// Whether the device that a record is about is still the same one.
    async fn is_present(&self, record: &Outcome) -> Result<bool, StoreError> {
        let Some(QueueKey::Device {
            identity,
            generation,
        }) = QueueKey::parse(&record.queue)
        else {
            return Ok(false);
        };
        match self.inner.registry.find(&identity).await {
            Ok(found) => Ok(found.is_some_and(|found| *found.generation_id() == generation)),
            // One device that cannot be read must not keep all others' senders waiting.
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, device = %identity.device, "a device cannot be read");
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a message into the feedback queue. It is offered unchanged until it is taken: one that
    /// covered more would be taken although its first records were told before.
    async fn enqueue(&mut self, batch: &Batch) -> Result<(), StoreError> {
        loop {
            let now = self.inner.wall.read().latest;
            let ttl = self.inner.settings.get().cloud_to_device.feedback.ttl;
            let message = FeedbackMessage {
                enqueued: now,
                records: u32::try_from(batch.sequences.len()).unwrap_or(u32::MAX),
                json: batch.json.clone(),
            };
            let mark = self.has_mark.then_some(batch.through);
            // The queue has no depth of its own: what nobody reads expires, and the disk's marks
            // bound the rest.
            let result = self
                .inner
                .enqueue(
                    QueueKey::Feedback,
                    message.encode(),
                    now.saturating_add(ttl),
                    u64::MAX,
                    mark,
                )
                .await;
            match result {
                Ok(OperationResult::Enqueued { sequence }) => {
                    self.last_sent = Some(self.inner.timer.monotonic());
                    self.note_told(now, sequence, batch);
                    count_records("sent", batch.sequences.len() as u64);
                    metrics::counter!("fieldpost_feedback_messages_total").increment(1);
                    return Ok(());
                }
                Ok(OperationResult::DoneBefore) => return Ok(()),
                Ok(_) => self.back_off(Trouble::NoRoom).await,
                Err(StoreError::Closed) => return Err(StoreError::Closed),
                // What is damaged may be the mark. All senders would wait for it for ever.
                Err(error @ StoreError::Damaged { .. }) if self.has_mark => {
                    self.do_without_mark(&error);
                }
                Err(error) => self.back_off(Trouble::Store(&error)).await,
            }
        }
    }

    fn do_without_mark(&mut self, error: &StoreError) {
        self.has_mark = false;
        tracing::error!(
            %error,
            "what was told last cannot be read; after a crash, senders may be told the same again"
        );
    }

    /// Lets the history know when senders were told, in the step that forgets the records.
    fn note_told(&mut self, at: Timestamp, sequence: u64, batch: &Batch) {
        if self.inner.settings.get().cloud_to_device.history.enabled {
            let told = Told {
                at,
                sequences: batch.sequences.clone(),
            };
            self.told.push(Operation::Record {
                lane: HISTORY,
                queue: QueueKey::Feedback.name(),
                sequence,
                record: told.encode(),
            });
        }
    }

    async fn forget(&mut self, through: OutcomeNumber) -> Result<(), StoreError> {
        self.forgotten = through;
        let mut operations = std::mem::take(&mut self.told);
        operations.push(Operation::Forget {
            lane: FEEDBACK,
            through,
        });
        loop {
            match self.inner.queues.apply(operations.clone()).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Closed) => return Err(StoreError::Closed),
                // They are left out from now on, and offered in vain after a restart.
                Err(error @ StoreError::Damaged { .. }) => {
                    self.inner.tell_damage(&error);
                    return Ok(());
                }
                Err(error) => self.back_off(Trouble::Store(&error)).await,
            }
        }
    }

    async fn back_off(&mut self, trouble: Trouble<'_>) {
        if self.failures == 0 {
            match trouble {
                Trouble::Store(error) => tracing::warn!(%error, "feedback waits for the store"),
                Trouble::NoRoom => tracing::warn!("feedback waits for room in the store"),
            }
        }
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let pause = RETRY_FIRST.saturating_mul(factor).min(RETRY_MAX);
        let until = self.inner.timer.monotonic().saturating_add(pause);
        self.inner.timer.sleep_until(until).await;
    }

    fn recover(&mut self) {
        if self.failures > 0 {
            tracing::info!("feedback goes on");
            self.failures = 0;
        }
    }
}

enum Trouble<'a> {
    Store(&'a StoreError),
    NoRoom,
}

/// A record that is to be sent.
struct Owed {
    number: OutcomeNumber,
    sequence: u64,
    json: Vec<u8>,
}

/// The records of one feedback message.
#[derive(Debug)]
struct Batch {
    /// The last one's number.
    through: OutcomeNumber,
    sequences: Vec<u64>,
    json: Bytes,
    /// Whether no further record would fit.
    is_full: bool,
}

/// Bytes of JSON in one feedback message. Ids can be long, and a message has its bound.
const BATCH_BYTES_MAX: usize = 192 * 1024;

/// The longest record that is sent at all.
const RECORD_BYTES_MAX: usize = ITEM_BYTES_MAX - HEADER_BYTES - 2;

/// Divides records into messages: full ones and, last, one that may not be.
fn batches(owed: &[Owed]) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut rest = owed;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take(FEEDBACK_RECORDS_MAX).take_while(|record| {
            bytes += record.json.len() + 1;
            bytes <= BATCH_BYTES_MAX
        });
        // One that is too long for company goes alone.
        let count = fitting.count().max(1);
        let Some((taken, left)) = rest.split_at_checked(count) else {
            break;
        };
        let mut json = BytesMut::with_capacity(taken.iter().map(|r| r.json.len() + 1).sum());
        for record in taken {
            json.put_u8(if json.is_empty() { b'[' } else { b',' });
            json.put_slice(&record.json);
        }
        json.put_u8(b']');
        batches.push(Batch {
            through: taken.last().map_or(0, |record| record.number),
            sequences: taken.iter().map(|record| record.sequence).collect(),
            json: json.freeze(),
            is_full: count == FEEDBACK_RECORDS_MAX || !left.is_empty(),
        });
        rest = left;
    }
    batches
}

/// One record as Azure IoT Hub's feedback messages have it ("message feedback"). All members are
/// strings.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FeedbackRecord<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    original_message_id: Option<&'a str>,
    description: &'a str,
    device_generation_id: &'a str,
    device_id: &'a str,
    enqueued_time_utc: &'a str,
    status_code: &'a str,
}

/// The JSON of a stored record; `None` when it cannot be read, or is too long to be sent.
fn to_json(record: &Outcome) -> Option<Vec<u8>> {
    let owed = FeedbackOwed::decode(&record.record).ok()?;
    let QueueKey::Device {
        identity,
        generation,
    } = QueueKey::parse(&record.queue)?
    else {
        return None;
    };
    let json = serde_json::to_vec(&FeedbackRecord {
        original_message_id: owed.message_id,
        description: owed.cause.feedback_status(),
        device_generation_id: &generation,
        device_id: identity.device.as_str(),
        enqueued_time_utc: &with_millis(owed.at),
        status_code: owed.cause.feedback_status(),
    });
    json.ok().filter(|json| json.len() <= RECORD_BYTES_MAX)
}

/// A time with exactly three digits of fraction.
fn with_millis(time: Timestamp) -> String {
    let text = time.to_string();
    // The date and the time of day; what a year beyond 9999 has there is shown as it is.
    match text.get(.."2026-01-05T10:20:30".len()) {
        Some(seconds) if text.ends_with('Z') => {
            format!("{seconds}.{:03}Z", time.as_millis().rem_euclid(1000))
        }
        _ => text,
    }
}

fn count_records(outcome: &'static str, records: u64) {
    if records > 0 {
        metrics::counter!("fieldpost_feedback_records_total", "outcome" => outcome)
            .increment(records);
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_model::Identity;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_goes_when_it_is_full_or_its_time_has_come() {
        let seconds = Duration::from_secs;
        let check = |waiting: u64, last_sent: Option<u64>, now: u64, expected: Next| {
            let found = next(waiting, last_sent.map(seconds), seconds(now));
            assert_eq!(found, expected, "{waiting} {last_sent:?} {now}");
        };
        let until = |at: u64| Next::Wait {
            until: Some(seconds(at)),
        };
        let (all, full) = (Next::Send { partly: true }, Next::Send { partly: false });
        check(0, None, 100, Next::Wait { until: None });
        check(0, Some(1), 100, Next::Wait { until: None });
        // After a quiet time the first record waits for nobody.
        check(1, None, 100, all);
        check(1, Some(85), 100, all);
        check(1, Some(86), 100, until(101));
        check(63, Some(100), 100, until(115));
        check(64, Some(100), 100, full);
        check(1000, Some(90), 100, full);
        check(1000, Some(80), 100, all);
    }

    #[test]
    fn times_have_three_digits_of_fraction() {
        let check = |millis: i64, expected: &str| {
            assert_eq!(with_millis(Timestamp::from_millis(millis)), expected);
        };
        check(1_767_608_430_123, "2026-01-05T10:20:30.123Z");
        check(1_767_608_430_000, "2026-01-05T10:20:30.000Z");
        check(1_767_608_430_007, "2026-01-05T10:20:30.007Z");
        check(-1, "1969-12-31T23:59:59.999Z");
    }

    fn outcome(number: u64, record: &[u8]) -> Outcome {
        let key = QueueKey::Device {
            identity: Identity::of_device("dev1".parse().unwrap()),
            generation: "638000000000000000".into(),
        };
        Outcome {
            number,
            queue: key.name(),
            sequence: 1000 + number,
            record: Bytes::copy_from_slice(record),
        }
    }

    #[test]
    fn records_are_written_as_azure_writes_them() {
        let check = |record: &[u8], expected: Option<&str>| {
            let json = to_json(&outcome(1, record));
            let json = json.map(|json| String::from_utf8(json).unwrap());
            assert_eq!(json.as_deref(), expected, "{record:?}");
        };
        let at = 1_767_608_430_123_i64.to_le_bytes();
        let record = |cause: u8, id: &[u8]| [&[1, cause], &at[..], id].concat();
        check(
            &record(1, b"\x02\0\0\0mm"),
            Some(
                "{\"originalMessageId\":\"mm\",\"description\":\"Success\",\
                 \"deviceGenerationId\":\"638000000000000000\",\"deviceId\":\"dev1\",\
                 \"enqueuedTimeUtc\":\"2026-01-05T10:20:30.123Z\",\"statusCode\":\"Success\"}",
            ),
        );
        check(
            &record(4, b"\xff\xff\xff\xff"),
            Some(
                "{\"description\":\"DeliveryCountExceeded\",\
                 \"deviceGenerationId\":\"638000000000000000\",\"deviceId\":\"dev1\",\
                 \"enqueuedTimeUtc\":\"2026-01-05T10:20:30.123Z\",\
                 \"statusCode\":\"DeliveryCountExceeded\"}",
            ),
        );
        check(&record(9, b"\xff\xff\xff\xff"), None);
        check(b"", None);
    }

    proptest! {
        #[test]
        fn batches_hold_every_record_once_in_order_and_within_bounds(
            lengths in prop::collection::vec(
                prop_oneof![8 => 2..300_usize, 1 => 2..RECORD_BYTES_MAX],
                0..300,
            ),
        ) {
            let owed: Vec<_> = lengths.iter().zip(1..).map(|(length, number)| Owed {
                number,
                sequence: 1000 + number,
                json: vec![b'x'; *length],
            }).collect();
            let batches = batches(&owed);
            let sequences: Vec<_> = batches.iter().flat_map(|b| b.sequences.clone()).collect();
            let expected: Vec<_> = owed.iter().map(|record| record.sequence).collect();
            prop_assert_eq!(sequences, expected);
            for (index, batch) in batches.iter().enumerate() {
                let count = batch.sequences.len();
                prop_assert!((1..=FEEDBACK_RECORDS_MAX).contains(&count));
                prop_assert_eq!(batch.through + 1000, *batch.sequences.last().unwrap());
                prop_assert!(count == 1 || batch.json.len() <= BATCH_BYTES_MAX + 1);
                prop_assert!(batch.is_full || index + 1 == batches.len());
                prop_assert!(batch.is_full || count < FEEDBACK_RECORDS_MAX);
                let message = FeedbackMessage {
                    enqueued: Timestamp::from_millis(5),
                    records: u32::try_from(count).unwrap(),
                    json: batch.json.clone(),
                };
                let stored = message.encode();
                prop_assert!(stored.len() <= ITEM_BYTES_MAX);
                prop_assert_eq!(FeedbackMessage::parse(&stored), Ok(message));
            }
        }

        #[test]
        fn other_bytes_are_no_feedback_message_and_no_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = Bytes::from(bytes);
            if let Ok(message) = FeedbackMessage::parse(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
