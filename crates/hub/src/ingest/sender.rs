//! One connection's way into the log.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fieldpost_model::limits::D2C_MESSAGE_BYTES_MAX;
use fieldpost_model::{AuthStamp, DeviceMessage, Identity, Timestamp};
use fieldpost_record::{Envelope, Source};
use fieldpost_store::log::{Appender, Batch, BatchBuilder};
use fieldpost_store::{HealthLevel, StoreError};

use super::budget::Turn;
use super::warden::Orphan;
use super::{
    Hold, IngestError, Inner, MessageRefused, READ_RESERVATION, WINDOW_BYTES, WINDOW_MESSAGES,
};
use crate::auth::DevicePrincipal;
use crate::clock::Sleep;
use crate::throttles::Operation;

/// Accepts the messages of one identity on one connection, in order. Owned by one task.
///
/// For each read from the connection: [`Sender::poll_reserve`], read, [`Sender::accept`] for each
/// message while [`Sender::has_room`], [`Sender::submit`]; or [`Sender::unreserve`] when the read
/// brought nothing. [`Sender::poll_durable`] tells what may be acknowledged.
///
/// Dropping a sender gives up what was not submitted. What was submitted still becomes durable, and
/// counts against the byte budget until then.
pub struct Sender {
    ingest: Arc<Inner>,
    identity: Identity,
    generation_id: Arc<str>,
    stamp: AuthStamp,
    model_id: Option<Arc<str>>,
    open: BatchBuilder,
    /// The time of acceptance of what is in `open`.
    accepted: Timestamp,
    appender: Appender,
    /// Submitted and not yet durable, oldest first; the numbers are consecutive.
    in_flight: VecDeque<InFlight>,
    messages_in_flight: usize,
    bytes_in_flight: usize,
    /// Submitted by the caller and not taken by a log that is nearly full, oldest first; these are
    /// the last ones of `in_flight`.
    refused: VecDeque<Batch>,
    /// Made when it first has to wait, which most never do.
    turn: Option<Arc<Turn>>,
    is_reserved: bool,
    held_since: Option<Duration>,
    /// The turn of what was accepted last, while it has to wait for that.
    pace: Option<Box<Pace>>,
}

/// Somebody waits for the turn of his messages.
struct Pace {
    until: Duration,
    sleep: Option<Sleep>,
}

/// One batch on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) number: u64,
    messages: usize,
    pub(super) bytes: usize,
}

/// The bytes that a message of the largest size takes in the log, as a rule: some more than its
/// metered size for envelope and framing.
const LARGEST_RECORD_BYTES: usize = D2C_MESSAGE_BYTES_MAX + 16 * 1024;

impl Sender {
    pub(super) fn new(ingest: Arc<Inner>, principal: &DevicePrincipal) -> Self {
        Self {
            identity: principal.identity.clone(),
            generation_id: Arc::clone(&principal.generation_id),
            stamp: principal.stamp,
            model_id: None,
            open: BatchBuilder::new(principal.partition),
            accepted: Timestamp::NEVER,
            appender: Appender::new(Arc::clone(&ingest.log)),
            in_flight: VecDeque::new(),
            messages_in_flight: 0,
            bytes_in_flight: 0,
            refused: VecDeque::new(),
            turn: None,
            is_reserved: false,
            held_since: None,
            pace: None,
            ingest,
        }
    }

    /// Sets the plug-and-play model that the device named, which is stamped on its messages.
    pub fn set_model_id(&mut self, model_id: Option<Arc<str>>) {
        self.model_id = model_id;
    }

    /// Ready when one read may be made: the window has room and the byte budget has a turn for this
    /// sender. Stays ready until [`Sender::submit`] or [`Sender::unreserve`].
    ///
    /// Pending while the store holds messages back; [`Sender::hold`] then says since when. Pending also
    /// while what was accepted before has yet to wait for its turn among the hub's throttles. Room in the
    /// window comes from [`Sender::poll_durable`], so that one is polled as well.
    pub fn poll_reserve(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_reserved {
            return Poll::Ready(());
        }
        if self.poll_turn(cx).is_pending() || !self.refused.is_empty() || !self.has_room() {
            return Poll::Pending;
        }
        if self.poll_budget(cx).is_ready() {
            self.is_reserved = true;
            self.held_since = None;
            return Poll::Ready(());
        }
        if self.ingest.level() == HealthLevel::Ok {
            self.held_since = None;
        } else {
            self.note_hold();
        }
        Poll::Pending
    }

    /// Ends when one read may be made, as [`Sender::poll_reserve`], or one message accepted that
    /// came some other way. For callers that do not ask for the numbers of durable batches: it
    /// takes note of them itself, because they make room in the window.
    pub async fn reserve(&mut self) {
        poll_fn(|cx| {
            // After a failure nothing is in flight, and there is no room until the hub is
            // restarted.
            while let Poll::Ready(Ok(_)) = self.poll_durable(cx) {}
            self.poll_reserve(cx)
        })
        .await;
    }

    /// Gives back what was reserved for a read that brought nothing.
    pub fn unreserve(&mut self) {
        if std::mem::take(&mut self.is_reserved) {
            self.ingest.budget.give_back(READ_RESERVATION);
        }
    }

    /// Gives back what was reserved, and the place among those who wait for it. For a connection
    /// that will not read for a while, for reasons of its own; otherwise its turn would lie idle.
    pub fn withdraw(&mut self) {
        self.unreserve();
        if let Some(turn) = self.turn.take_if(|turn| turn.is_taken()) {
            self.ingest.budget.leave(&turn);
        }
    }

    /// Whether another message may be accepted. Asked between the messages of one read; when there
    /// is no room, the rest of the read waits until there is.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let messages = self
            .messages_in_flight
            .saturating_add(usize::try_from(self.open.count()).unwrap_or(usize::MAX));
        let bytes = self.bytes_in_flight + self.open.bytes();
        messages < WINDOW_MESSAGES && bytes + LARGEST_RECORD_BYTES <= WINDOW_BYTES
    }

    /// Accepts a message: stamps it and puts it at the end of the open batch. The time of
    /// acceptance is now for the first of a batch, and the same for all that follow it. It is on its
    /// way only after [`Sender::submit`].
    ///
    /// # Errors
    /// When it is too large; the batch is as it was.
    pub fn accept(&mut self, message: &DeviceMessage<'_>) -> Result<(), MessageRefused> {
        self.accept_batch(std::slice::from_ref(message))
    }

    /// Accepts messages that the client sent as one unit: all or none, and together within the size
    /// of one message.
    ///
    /// # Errors
    /// When they are too large together, or nothing is taken at the moment; the batch is as it was.
    pub fn accept_batch(&mut self, messages: &[DeviceMessage<'_>]) -> Result<(), MessageRefused> {
        let size = messages.iter().map(DeviceMessage::metered_size).sum();
        if size > D2C_MESSAGE_BYTES_MAX {
            return Err(MessageRefused::TooLarge {
                size,
                max: D2C_MESSAGE_BYTES_MAX,
            });
        }
        let faults = self.ingest.faults.as_ref();
        if let Some(refused) = faults.and_then(|faults| faults.refusal(&self.identity)) {
            return Err(refused);
        }
        let sizes = messages.iter().map(DeviceMessage::metered_size);
        let throttles = &self.ingest.throttles;
        if let Some(until) = throttles.message(Operation::DeviceToCloud, sizes)?.at {
            self.pace = Some(Box::new(Pace { until, sleep: None }));
        }
        if let Some(faults) = &self.ingest.faults {
            faults.look(&self.identity, messages);
        }
        if self.open.count() == 0 {
            self.accepted = self.ingest.timer.now();
        }
        let envelope = Envelope {
            source: Source::Telemetry,
            accepted: self.accepted,
            auth: self.stamp,
            device_id: self.identity.device.as_str(),
            module_id: self.identity.module.as_ref().map(|module| module.as_str()),
            generation_id: &self.generation_id,
            model_id: self.model_id.as_deref(),
        };
        for message in messages {
            self.open
                .push(|out| fieldpost_record::encode(out, &envelope, message));
        }
        Ok(())
    }

    /// Submits what was accepted since the last time as one batch and returns its number, one more
    /// than the last; `None` when there was nothing. The reservation ends either way.
    ///
    /// # Errors
    /// When the store takes nothing any more; what was accepted is gone and must not be
    /// acknowledged.
    pub fn submit(&mut self) -> Result<Option<u64>, IngestError> {
        let Some(batch) = self.open.take() else {
            self.unreserve();
            return Ok(None);
        };
        let bytes = batch.frames.len();
        let reserved = if std::mem::take(&mut self.is_reserved) {
            READ_RESERVATION
        } else {
            0
        };
        self.ingest.budget.exchange(reserved, bytes);
        let messages = usize::try_from(batch.count).unwrap_or(usize::MAX);
        let refused_before = u64::try_from(self.refused.len()).unwrap_or(u64::MAX);
        let number = self.appender.submitted() + refused_before + 1;
        if let Err(error) = self.pass_on(batch) {
            self.ingest.budget.give_back(bytes);
            return Err(error.into());
        }
        self.messages_in_flight += messages;
        self.bytes_in_flight += bytes;
        self.in_flight.push_back(InFlight {
            number,
            messages,
            bytes,
        });
        Ok(Some(number))
    }

    /// Ready when more batches are durable than were last reported, and it is their turn; gives the
    /// highest number. All up to that may be acknowledged. Before the first batch it leaves no waker behind, so that it is
    /// to be called again after that.
    ///
    /// # Errors
    /// When no further batch will become durable. None of those in flight may be acknowledged.
    pub fn poll_durable(&mut self, cx: &mut Context<'_>) -> Poll<Result<u64, IngestError>> {
        if let Some(probe) = &self.ingest.probe {
            ready!(probe.poll_released(&self.identity, cx));
        }
        ready!(self.poll_turn(cx));
        if !self.refused.is_empty()
            && let Err(error) = self.try_again(cx)
        {
            return Poll::Ready(Err(self.give_up(error)));
        }
        match ready!(self.appender.poll_durable(cx)) {
            Ok(number) => {
                self.settle(number);
                Poll::Ready(Ok(number))
            }
            Err(error) => Poll::Ready(Err(self.give_up(error))),
        }
    }

    /// Ends when the batch of that number is durable.
    ///
    /// # Errors
    /// As [`Sender::poll_durable`].
    pub async fn durable(&mut self, number: u64) -> Result<(), IngestError> {
        while self.appender.durable() < number {
            poll_fn(|cx| self.poll_durable(cx)).await?;
        }
        Ok(())
    }

    /// Messages submitted and not yet reported durable.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.messages_in_flight
    }

    /// Whether this sender is held back because of the store, and since when it has been waiting
    /// for that.
    #[must_use]
    pub fn hold(&self) -> Hold {
        if self.ingest.level() == HealthLevel::ReadOnly {
            return Hold::ReadOnly;
        }
        self.held_since
            .map_or(Hold::None, |since| Hold::Held { since })
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Pace { until, sleep }) = self.pace.as_deref_mut() else {
            return Poll::Ready(());
        };
        let sleep = sleep.get_or_insert_with(|| self.ingest.timer.sleep_until(*until));
        ready!(sleep.as_mut().poll(cx));
        self.pace = None;
        Poll::Ready(())
    }

    fn poll_budget(&mut self, cx: &Context<'_>) -> Poll<()> {
        let budget = &self.ingest.budget;
        match &self.turn {
            Some(turn) if turn.is_taken() => budget.poll_take(turn, cx),
            _ if budget.try_take() => Poll::Ready(()),
            _ => budget.poll_take(self.turn.get_or_insert_default(), cx),
        }
    }

    /// Hands a batch to the log, or keeps it while the log is nearly full.
    fn pass_on(&mut self, batch: Batch) -> Result<(), StoreError> {
        if self.refused.is_empty() {
            // Cloning shares the bytes.
            match self.appender.submit(batch.clone()) {
                Ok(_) => return Ok(()),
                Err(StoreError::Full) => {}
                Err(error) => return Err(error),
            }
        }
        self.note_hold();
        self.refused.push_back(batch);
        Ok(())
    }

    /// Hands on what the log did not take before, now or when its state changes.
    fn try_again(&mut self, cx: &Context<'_>) -> Result<(), StoreError> {
        let turn = self.turn.get_or_insert_default();
        turn.register(cx);
        self.ingest.await_change(turn);
        while let Some(batch) = self.refused.front() {
            match self.appender.submit(batch.clone()) {
                Ok(_) => self.refused.pop_front(),
                Err(StoreError::Full) => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        self.held_since = None;
        self.ingest.forget_change(turn);
        Ok(())
    }

    fn settle(&mut self, durable: u64) {
        let (mut messages, mut bytes) = (0, 0);
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.number <= durable) {
            messages += batch.messages;
            bytes += batch.bytes;
        }
        self.messages_in_flight -= messages;
        self.bytes_in_flight -= bytes;
        self.ingest.budget.give_back(bytes);
        self.ingest.messages.increment(messages as u64);
        self.ingest.bytes.increment(bytes as u64);
    }

    fn give_up(&mut self, error: StoreError) -> IngestError {
        self.refused.clear();
        self.in_flight.clear();
        self.messages_in_flight = 0;
        self.ingest
            .budget
            .give_back(std::mem::take(&mut self.bytes_in_flight));
        error.into()
    }

    fn note_hold(&mut self) {
        self.held_since
            .get_or_insert_with(|| self.ingest.timer.monotonic());
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.unreserve();
        if let Some(turn) = &self.turn {
            self.ingest.budget.leave(turn);
            if !self.refused.is_empty() {
                self.ingest.forget_change(turn);
            }
        }
        for batch in self.refused.drain(..) {
            self.in_flight.pop_back();
            self.ingest.budget.give_back(batch.frames.len());
        }
        if self.in_flight.is_empty() {
            return;
        }
        let log = Arc::clone(&self.ingest.log);
        let orphan = Orphan {
            appender: std::mem::replace(&mut self.appender, Appender::new(log)),
            in_flight: std::mem::take(&mut self.in_flight),
        };
        // When the warden has ended, the hub is closing and nobody takes from the budget any more.
        let _ = self.ingest.orphans.send(orphan);
    }
}
