//! What only a hub in test mode has: a list of what devices were sent, and acknowledgements that are
//! withheld. For users' own tests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fieldpost_model::{Identity, Timestamp};

use crate::c2d::{Delivery, LockToken};

/// Deliveries that are remembered, and bytes of their messages. The oldest are forgotten.
const SENT_MAX: usize = 10_000;
const SENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Looks into a hub in test mode, and disturbs it.
#[derive(Debug, Default)]
pub struct Probe {
    /// Guards what was sent; nothing else is taken while it is held.
    sent: Mutex<SentLog>,
    /// Whose acknowledgements are withheld, and who waits for them to be let go. Nothing else is
    /// taken and nobody is woken while it is held.
    withheld: Mutex<HashMap<Identity, Vec<Waker>>>,
}

/// A message that was handed to a device's connection or request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// Its place among all that was sent; the first is 1.
    pub number: u64,
    /// To whom.
    pub identity: Identity,
    /// When.
    pub at: Timestamp,
    /// The session epoch of the connection; `None` when a request asked for it.
    pub connection: Option<u64>,
    /// The delivery.
    pub delivery: Delivery,
}

#[derive(Debug, Default)]
struct SentLog {
    sent: VecDeque<SentMessage>,
    bytes: usize,
    last: u64,
}

impl Probe {
    /// What a device or module was sent after a number (0 for all that is remembered), oldest
    /// first, at most `limit`.
    #[must_use]
    pub fn sent(&self, identity: &Identity, after: u64, limit: usize) -> Vec<SentMessage> {
        let log = self.lock_sent();
        let to_it = |sent: &&SentMessage| sent.number > after && sent.identity == *identity;
        log.sent.iter().filter(to_it).take(limit).cloned().collect()
    }

    /// Withholds the acknowledgements of what a device or module sends, or lets them go. What it
    /// sends is stored all the same.
    pub fn withhold(&self, identity: &Identity, withhold: bool) {
        let mut withheld = self.lock_withheld();
        if withhold {
            withheld.entry(identity.clone()).or_default();
            return;
        }
        let waiting = withheld.remove(identity).unwrap_or_default();
        drop(withheld);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Ready unless the acknowledgements of `identity` are withheld.
    pub(crate) fn poll_released(&self, identity: &Identity, cx: &Context<'_>) -> Poll<()> {
        let mut withheld = self.lock_withheld();
        let Some(waiting) = withheld.get_mut(identity) else {
            return Poll::Ready(());
        };
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// A message is handed over.
    pub(crate) fn note(
        &self,
        identity: &Identity,
        at: Timestamp,
        connection: Option<u64>,
        delivery: &Delivery,
    ) {
        let mut log = self.lock_sent();
        log.last += 1;
        log.bytes += delivery.message.len();
        let number = log.last;
        log.sent.push_back(SentMessage {
            number,
            identity: identity.clone(),
            at,
            connection,
            delivery: Delivery {
                // Its neighbours in memory need not stay for it.
                message: Bytes::copy_from_slice(&delivery.message),
                ..delivery.clone()
            },
        });
        while (log.sent.len() > SENT_MAX || log.bytes > SENT_BYTES_MAX)
            && let Some(oldest) = log.sent.pop_front()
        {
            log.bytes = log.bytes.saturating_sub(oldest.delivery.message.len());
        }
    }

    /// A message that was handed over was not written.
    pub(crate) fn unnote(&self, lock: LockToken) {
        let mut log = self.lock_sent();
        if let Some(place) = log.sent.iter().rposition(|sent| sent.delivery.lock == lock)
            && let Some(unsent) = log.sent.remove(place)
        {
            log.bytes = log.bytes.saturating_sub(unsent.delivery.message.len());
        }
    }

    fn lock_sent(&self) -> MutexGuard<'_, SentLog> {
        // Nothing under the lock panics half way through a change.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_withheld(&self) -> MutexGuard<'_, HashMap<Identity, Vec<Waker>>> {
        // Nor here.
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_in_bytes() {
        let check = |size: usize, count: usize, expected: usize| {
            let probe = Probe::default();
            let identity = Identity::of_device("dev1".parse().unwrap());
            let delivery = Delivery {
                sequence: 7,
                lock: LockToken([1; 16]),
                delivery_count: 0,
                expires: Timestamp::UNIX_EPOCH,
                again: None,
                message: Bytes::from(vec![0; size]),
            };
            for _ in 0..count {
                probe.note(&identity, Timestamp::UNIX_EPOCH, None, &delivery);
            }
            let sent = probe.sent(&identity, 0, usize::MAX);
            assert_eq!(sent.len(), expected);
            assert_eq!(sent.last().unwrap().number, count as u64);
        };
        check(1, 10_000, 10_000);
        check(1, 10_010, 10_000);
        check(1 << 20, 70, 64);
    }
}
