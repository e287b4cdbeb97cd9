//! Messages that no device took: to be looked at, sent anew or removed by an operator.

use bytes::Bytes;
use fieldpost_model::{CloudMessage, Identity, Properties, Timestamp};
use fieldpost_record::CommandView;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{ListOutcomes, Operation, OperationResult, Outcome, OutcomeNumber};

use super::damage::LanePage;
use super::lanes::DEAD_LETTERS;
use super::names::QueueKey;
use super::outcome::{self, Attempts, Cause};
use super::{Accepted, CloudToDevice, Inner, SendRefused, Target};

/// A message that was rejected, has expired or was given back too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number among the dead letters; later ones have larger numbers.
    pub number: OutcomeNumber,
    /// Whom it was for.
    pub identity: Identity,
    /// The generation of the device that it was for.
    pub generation: String,
    /// The sequence number that it had.
    pub sequence: u64,
    /// Why it is here.
    pub cause: Cause,
    /// Since when.
    pub at: Timestamp,
    /// How many of its deliveries counted.
    pub delivery_count: u32,
    /// Its deliveries.
    pub attempts: Attempts,
    /// Whether its sender asked to be told.
    pub is_told: bool,
    /// The stored message, to be read with [`CommandView::parse`].
    pub message: Bytes,
}

/// Dead letters in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterPage {
    /// The dead letters.
    pub letters: Vec<DeadLetter>,
    /// Where to go on, when there may be more.
    pub next: Option<OutcomeNumber>,
}

/// Why a dead letter was not sent anew.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequeueError {
    /// There is no such dead letter.
    #[error("there is no such dead letter")]
    NotFound,
    /// The message cannot be read.
    #[error("the message cannot be read any more")]
    Unreadable,
    /// The device's queue does not take it.
    #[error(transparent)]
    Refused(#[from] SendRefused),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Dead letters in one answer, and bytes of them.
const PAGE_LETTERS_MAX: usize = 1000;
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Pages of other devices' letters that one question reads before it answers "go on there".
const PAGES_READ_MAX: usize = 64;

impl CloudToDevice {
    /// Reads dead letters after a number (0 for all), of all devices or of one, whatever its
    /// generation was. At most `limit` (and 1,000) of them, and no further one once 4 MiB are
    /// read. A question for one device reads past the others' a quarter of a gibibyte at most, so
    /// that an answer may hold few letters or none although there are more.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn dead_letters(
        &self,
        after: OutcomeNumber,
        limit: usize,
        device: Option<&Identity>,
    ) -> Result<DeadLetterPage, StoreError> {
        let limit = limit.clamp(1, PAGE_LETTERS_MAX);
        let mut page = DeadLetterPage::default();
        let mut bytes = 0;
        let mut after = after;
        for _ in 0..PAGES_READ_MAX {
            let read = read(self.inner(), after, limit).await?;
            if read.records.is_empty() {
                return Ok(page);
            }
            after = read.through;
            for record in &read.records {
                let letter = decode(record);
                let letter = letter.filter(|l| device.is_none_or(|device| l.identity == *device));
                let Some(letter) = letter else {
                    continue;
                };
                bytes += letter.message.len();
                page.letters.push(letter);
                if page.letters.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    page.next = Some(record.number);
                    return Ok(page);
                }
            }
        }
        page.next = Some(after);
        Ok(page)
    }

    /// Reads one dead letter.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn dead_letter(
        &self,
        number: OutcomeNumber,
    ) -> Result<Option<DeadLetter>, StoreError> {
        let record = self.inner().dead_letter_record(number).await?;
        Ok(record.as_ref().and_then(decode))
    }

    /// Sends a dead letter anew to the device as it is now, with the default time to live, and
    /// removes it. It keeps its message id, sender and properties, and gets a new sequence number.
    ///
    /// Carried out even if the caller goes away. When the hub stops in the middle, the message may
    /// be both in the queue and among the dead letters; it is never in neither.
    ///
    /// # Errors
    /// [`RequeueError::Refused`] for what also keeps a service from sending it; the dead letter
    /// stays then.
    pub async fn requeue(&self, number: OutcomeNumber) -> Result<Accepted, RequeueError> {
        let this = self.clone();
        let requeue = async move { this.requeue_now(number).await };
        self.inner().registry.run_to_end(requeue).await
    }

    /// Removes a dead letter. Durable when it returns. Whether there was one.
    ///
    /// # Errors
    /// When the store does not carry it out.
    pub async fn remove_dead_letter(&self, number: OutcomeNumber) -> Result<bool, StoreError> {
        // Not between the two steps of somebody who sends it anew.
        let _one_at_a_time = self.inner().requeueing.lock().await;
        self.inner().remove_dead_letter(number).await
    }

    async fn requeue_now(&self, number: OutcomeNumber) -> Result<Accepted, RequeueError> {
        // Two operators who ask for the same letter shall not send it twice.
        let _one_at_a_time = self.inner().requeueing.lock().await;
        let record = self.inner().dead_letter_record(number).await?;
        let record = record.ok_or(RequeueError::NotFound)?;
        let letter = decode(&record).ok_or(RequeueError::Unreadable)?;
        let view = CommandView::parse(&letter.message).map_err(|_| RequeueError::Unreadable)?;
        let message = to_message(&view).ok_or(RequeueError::Unreadable)?;
        let target = Target {
            identity: letter.identity.clone(),
            fallback: None,
        };
        let mut sender = self.sender(view.sender());
        let accepted = sender.send_one(target, &message).await?;
        metrics::counter!("fieldpost_dead_letters_requeued_total").increment(1);
        if let Err(error) = self.inner().remove_dead_letter(number).await {
            // The message is on its way all the same, which is what was asked for.
            tracing::warn!(%error, number, "a dead letter was sent anew and could not be removed");
        }
        Ok(accepted)
    }
}

impl Inner {
    async fn dead_letter_record(
        &self,
        number: OutcomeNumber,
    ) -> Result<Option<Outcome>, StoreError> {
        let Some(before) = number.checked_sub(1) else {
            return Ok(None);
        };
        let read = read(self, before, 1).await?;
        Ok(read
            .records
            .into_iter()
            .find(|record| record.number == number))
    }

    async fn remove_dead_letter(&self, number: OutcomeNumber) -> Result<bool, StoreError> {
        let remove = Operation::Remove {
            lane: DEAD_LETTERS,
            number,
        };
        let results = self.queues.apply(vec![remove]).await?;
        Ok(results.first() == Some(&OperationResult::Done))
    }
}

async fn read(inner: &Inner, after: OutcomeNumber, limit: usize) -> Result<LanePage, StoreError> {
    inner
        .lane_page(ListOutcomes {
            lane: DEAD_LETTERS,
            after,
            limit,
            bytes_max: PAGE_BYTES_MAX,
            queue: None,
        })
        .await
}

/// A dead letter from its record; `None` for one of a form that is not known, which is left alone.
pub(super) fn decode(record: &Outcome) -> Option<DeadLetter> {
    let QueueKey::Device {
        identity,
        generation,
    } = QueueKey::parse(&record.queue)?
    else {
        return None;
    };
    let (settled, message) = outcome::decode_dead_letter(&record.record).ok()?;
    Some(DeadLetter {
        number: record.number,
        identity,
        generation: generation.to_string(),
        sequence: record.sequence,
        cause: settled.cause,
        at: settled.at,
        delivery_count: settled.delivery_count,
        attempts: settled.attempts,
        is_told: settled.is_told,
        message,
    })
}

/// A stored message as its sender wrote it, but for the expiry, which has passed or soon will.
fn to_message<'a>(view: &CommandView<'a>) -> Option<CloudMessage<'a>> {
    let mut properties = Properties::default();
    for (name, value) in view.properties() {
        properties.set(name.into(), value.map(Into::into));
    }
    Some(CloudMessage {
        to: view.to().into(),
        message_id: view.message_id().map(Into::into),
        correlation_id: view.correlation_id().map(Into::into),
        user_id: view.user_id().map(Into::into),
        content_type: view.content_type().map(Into::into),
        content_encoding: view.content_encoding().map(Into::into),
        expires: None,
        ack: view.ack(),
        creation_time: view.creation_time().map(Into::into),
        message_schema: view.message_schema().map(Into::into),
        properties,
        body: view.body()?.into(),
    })
}
