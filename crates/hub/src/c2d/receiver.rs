//! Receiving: deliveries, locks and settlements as a connection or a request sees them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

use super::Inner;
use super::names::Named;
use super::owner::Command;
use super::queue::ReceiverId;

/// The name of a lock: a random GUID (version 4), never used for another delivery.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockToken(pub [u8; 16]);

/// A text that is not a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lock token")]
pub struct InvalidLockToken;

/// A message, locked for whoever has this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message's number in its queue.
    pub sequence: u64,
    /// The lock.
    pub lock: LockToken,
    /// How many earlier deliveries counted.
    pub delivery_count: u32,
    /// When the message expires. Whoever holds it may complete it later than that.
    pub expires: Timestamp,
    /// The tag under which an earlier connection of the same session had it in flight.
    pub again: Option<u16>,
    /// The stored message: a command of the `record` crate, or a
    /// [`FeedbackMessage`](super::FeedbackMessage).
    pub message: Bytes,
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// The message is done with.
    Complete,
    /// The message will never be done with.
    Reject,
    /// Somebody else, or the same one later, may have it.
    Abandon,
}

/// Why a settlement was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SettleError {
    /// The lock has ended or never was; the message is as it is without this.
    #[error("the lock is lost")]
    LockLost,
    /// The store did not carry it out; the message will be delivered again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes messages of one queue as they come, as many at a time as its window allows.
///
/// One task drives it. Dropping it frees what it holds, uncounted.
pub struct Receiver {
    inner: Arc<Inner>,
    queue: Arc<Named>,
    id: ReceiverId,
    inbox: Arc<Inbox>,
    /// The lock of each delivery that was taken and not settled.
    held: BTreeMap<u64, LockToken>,
    window: u32,
    epoch: u64,
    /// How often the end was asked for.
    asked: u64,
    is_detached: bool,
}

/// What an owner leaves for a receiver.
#[derive(Default)]
pub(super) struct Inbox {
    /// Guards the contents; nothing else is taken while it is held.
    state: Mutex<InboxState>,
    news: AtomicWaker,
}

#[derive(Default)]
struct InboxState {
    /// Tags that deliveries may have again, until they are asked for.
    expected: Vec<u16>,
    deliveries: VecDeque<Delivery>,
    settled: VecDeque<(u64, Result<(), SettleError>)>,
    /// The last question for the end that was answered.
    ended: u64,
}

impl Inbox {
    pub(super) fn expect(&self, tags: Vec<u16>) {
        self.lock().expected = tags;
    }

    pub(super) fn deliver(&self, deliveries: impl IntoIterator<Item = Delivery>) {
        self.lock().deliveries.extend(deliveries);
        self.news.wake();
    }

    pub(super) fn take_expected(&self) -> Vec<u16> {
        std::mem::take(&mut self.lock().expected)
    }

    /// What was delivered and not taken.
    pub(super) fn take_back(&self) -> VecDeque<Delivery> {
        std::mem::take(&mut self.lock().deliveries)
    }

    pub(super) fn tell(&self, sequence: u64, settled: Result<(), SettleError>) {
        self.lock().settled.push_back((sequence, settled));
        self.news.wake();
    }

    pub(super) fn end(&self, asked: u64) {
        self.lock().ended = asked;
        self.news.wake();
    }

    fn poll<T>(
        &self,
        cx: &Context<'_>,
        mut take: impl FnMut(&mut InboxState) -> Option<T>,
    ) -> Poll<T> {
        if let Some(taken) = take(&mut self.lock()) {
            return Poll::Ready(taken);
        }
        self.news.register(cx.waker());
        // What came between the look and the registration must not be missed.
        take(&mut self.lock()).map_or(Poll::Pending, Poll::Ready)
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        // Nothing under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    /// Attaches to a queue. With `resume`, what an earlier connection had in flight comes first.
    pub(super) fn attach(
        inner: &Arc<Inner>,
        queue: Arc<Named>,
        epoch: u64,
        is_timed: bool,
        resume: bool,
    ) -> Self {
        let id = inner.next_receiver();
        let inbox = Arc::new(Inbox::default());
        inner.command(Command::Attach {
            queue: Arc::clone(&queue),
            id,
            epoch,
            is_timed,
            resume,
            inbox: Arc::clone(&inbox),
        });
        Self {
            inner: Arc::clone(inner),
            queue,
            id,
            inbox,
            held: BTreeMap::new(),
            window: 0,
            epoch,
            asked: 0,
            is_detached: false,
        }
    }

    /// Says how many deliveries it may hold at a time that are not settled; 0 at first. What it
    /// holds beyond a smaller number stays with it; with 0, what was not taken yet goes back,
    /// uncounted.
    pub fn set_window(&mut self, messages: u32) {
        if messages == self.window {
            return;
        }
        self.window = messages;
        self.command(|queue, id| Command::Window {
            queue,
            id,
            window: usize::try_from(messages).unwrap_or(usize::MAX),
        });
    }

    /// The next delivery. None comes while the window is 0.
    pub fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Delivery> {
        loop {
            let polled = self.inbox.poll(cx, |state| state.deliveries.pop_front());
            let Poll::Ready(delivery) = polled else {
                return Poll::Pending;
            };
            // It was on its way when the window was closed, or lay here until its time was over.
            if self.window == 0 || self.is_over(&delivery) {
                self.return_unseen(&delivery);
                continue;
            }
            self.held.insert(delivery.sequence, delivery.lock);
            self.inner
                .note_sent(&self.queue, Some(self.epoch), &delivery);
            return Poll::Ready(delivery);
        }
    }

    /// Asks whether there is anything more; [`Receiver::poll_end`] tells.
    pub fn ask_end(&mut self) {
        self.asked += 1;
        let number = self.asked;
        self.command(|queue, id| Command::AskEnd { queue, id, number });
    }

    /// Ready when, since the end was last asked for, everything that waits in the queue has been taken
    /// from here, or as much as the window allows. A queue that cannot be read at present counts as
    /// empty.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let asked = self.asked;
        self.inbox.poll(cx, |state| {
            (state.ended == asked && state.deliveries.is_empty()).then_some(())
        })
    }

    /// Gives a delivery back, as though it had never been taken: uncounted, and without an attempt
    /// to be seen in its trace.
    pub fn give_back(&mut self, delivery: &Delivery) {
        self.held.remove(&delivery.sequence);
        if let Some(probe) = &self.inner.probe {
            probe.unnote(delivery.lock);
        }
        self.return_unseen(delivery);
    }

    /// The tags under which deliveries may come again; once, and complete as soon as the first
    /// delivery has come.
    pub fn take_expected(&mut self) -> Vec<u16> {
        self.inbox.take_expected()
    }

    /// Settles a delivery, without waiting. False when this receiver does not hold it.
    ///
    /// When the store does not carry it out, the message is delivered again.
    pub fn settle(&mut self, sequence: u64, settlement: Settlement) -> bool {
        self.settle_held(sequence, settlement, false)
    }

    /// As [`Receiver::settle`]; [`Receiver::poll_settled`] says when it is durable, or that it is
    /// not to be.
    pub fn settle_and_tell(&mut self, sequence: u64, settlement: Settlement) -> bool {
        self.settle_held(sequence, settlement, true)
    }

    /// The outcome of a settlement that was to be told.
    pub fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<(u64, Result<(), SettleError>)> {
        self.inbox.poll(cx, |state| state.settled.pop_front())
    }

    /// How many deliveries were taken and not settled.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.held.len()
    }

    /// Ends receiving, and leaves for the next connection of the same session which messages were
    /// in flight under which tags, oldest first. The hub remembers it until it is stopped.
    pub fn detach(mut self, in_flight: Vec<(u16, u64)>) {
        self.is_detached = true;
        let in_flight = in_flight
            .into_iter()
            .map(|(tag, sequence)| (sequence, tag))
            .collect();
        self.command(|queue, id| Command::Detach {
            queue,
            id,
            in_flight,
        });
    }

    /// Whether a message may not be delivered any more, by the clock that its owner goes by. That
    /// one is shared, so the other is asked first.
    fn is_over(&self, delivery: &Delivery) -> bool {
        delivery.expires <= self.inner.timer.now() && delivery.expires <= self.inner.now().wall
    }

    fn return_unseen(&self, delivery: &Delivery) {
        let (sequence, lock) = (delivery.sequence, delivery.lock);
        self.command(|queue, _| Command::GiveBack {
            queue,
            sequence,
            lock,
        });
    }

    fn settle_held(&mut self, sequence: u64, settlement: Settlement, tell: bool) -> bool {
        let Some(lock) = self.held.remove(&sequence) else {
            return false;
        };
        self.command(|queue, id| Command::Settle {
            queue,
            sequence,
            lock,
            settlement,
            tell: tell.then_some(id),
        });
        true
    }

    fn command(&self, command: impl FnOnce(Arc<Named>, ReceiverId) -> Command) {
        self.inner
            .command(command(Arc::clone(&self.queue), self.id));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.is_detached {
            self.command(|queue, id| Command::Detach {
                queue,
                id,
                in_flight: Vec::new(),
            });
        }
    }
}

/// A request for one message that is under way. Dropped between the owner's answer and its being taken,
/// it gives the message back: nobody has seen it, and it would be locked for nobody.
pub(super) struct Pickup<'a> {
    inner: &'a Inner,
    queue: Arc<Named>,
    answered: oneshot::Receiver<Result<Option<Delivery>, StoreError>>,
}

impl<'a> Pickup<'a> {
    /// Asks the queue's owner for a message, to be locked for so long or as the settings say.
    pub(super) fn ask(inner: &'a Inner, queue: Arc<Named>, lock: Option<Duration>) -> Self {
        let (reply, answered) = oneshot::channel();
        inner.command(Command::Receive {
            queue: Arc::clone(&queue),
            lock,
            reply,
        });
        Self {
            inner,
            queue,
            answered,
        }
    }

    /// What the owner answers; once.
    pub(super) async fn answer(&mut self) -> Result<Option<Delivery>, StoreError> {
        let answer = (&mut self.answered).await;
        answer.unwrap_or(Err(StoreError::Closed))
    }

    /// The queue that was asked.
    pub(super) fn queue(&self) -> &Named {
        &self.queue
    }
}

impl Drop for Pickup<'_> {
    fn drop(&mut self) {
        // From here on the owner sees that nobody waits.
        self.answered.close();
        if let Ok(Ok(Some(delivery))) = self.answered.try_recv() {
            self.inner.command(Command::GiveBack {
                queue: Arc::clone(&self.queue),
                sequence: delivery.sequence,
                lock: delivery.lock,
            });
        }
    }
}

impl LockToken {
    /// A version 4 GUID of random bytes.
    pub(super) fn of_random(mut bytes: [u8; 16]) -> Self {
        // RFC 9562, 5.4: the version in the seventh byte, the variant in the ninth.
        if let Some(version) = bytes.get_mut(6) {
            *version = *version & 0x0F | 0x40;
        }
        if let Some(variant) = bytes.get_mut(8) {
            *variant = *variant & 0x3F | 0x80;
        }
        Self(bytes)
    }
}

/// Bytes in each part of a GUID's text.
const GUID_PARTS: [usize; 5] = [4, 2, 2, 2, 6];

impl fmt::Display for LockToken {
    /// The GUID in lower case, with hyphens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.0.iter();
        for (number, length) in GUID_PARTS.into_iter().enumerate() {
            if number > 0 {
                f.write_str("-")?;
            }
            for byte in bytes.by_ref().take(length) {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LockToken {
    type Err = InvalidLockToken;

    /// Reads what [`fmt::Display`] prints, in any case.
    fn from_str(text: &str) -> Result<Self, InvalidLockToken> {
        let mut parts = text.split('-');
        let mut bytes = Vec::with_capacity(16);
        for length in GUID_PARTS {
            let part = parts.next().ok_or(InvalidLockToken)?.as_bytes();
            if part.len() != 2 * length {
                return Err(InvalidLockToken);
            }
            for pair in part.chunks_exact(2) {
                let digits = pair.iter().try_fold(0, |value, digit| {
                    let digit = char::from(*digit).to_digit(16)?;
                    Some(value * 16 + u8::try_from(digit).ok()?)
                });
                bytes.push(digits.ok_or(InvalidLockToken)?);
            }
        }
        match (parts.next(), <[u8; 16]>::try_from(bytes)) {
            (None, Ok(bytes)) => Ok(Self(bytes)),
            _ => Err(InvalidLockToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_tokens_are_guids() {
        let token = LockToken::of_random([0xFF; 16]);
        let text = "ffffffff-ffff-4fff-bfff-ffffffffffff";
        assert_eq!(token.to_string(), text);
        assert_eq!(text.parse(), Ok(token));
        assert_eq!(text.to_uppercase().parse(), Ok(token));
        for wrong in [
            "",
            "ffffffff",
            "ffffffff-ffff-4fff-bfff-fffffffffffg",
            "ffffffff-ffff-4fff-bfff-ffffffffffff-",
            "fffffffff-fff-4fff-bfff-ffffffffffff",
            "{ffffffff-ffff-4fff-bfff-ffffffffffff}",
        ] {
            assert_eq!(wrong.parse::<LockToken>(), Err(InvalidLockToken), "{wrong}");
        }
    }
}
