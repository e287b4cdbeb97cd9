//! What of a queue is in memory: messages that may soon be delivered, and those that are held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::queues::QueuedMessage;

use super::super::receiver::LockToken;
use super::ReceiverId;

/// Messages by their numbers.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: BTreeMap<u64, Entry>,
    bytes: usize,
    /// Those that nobody holds, and bytes of their messages.
    ready: BTreeSet<u64>,
    ready_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Bytes,
    pub(super) expires: Timestamp,
    pub(super) delivery_count: u32,
    pub(super) held: Option<Held>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) by: Holder,
    pub(super) lock: LockToken,
    pub(super) since: Timestamp,
    pub(super) ends: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Receiver(ReceiverId),
    Request,
}

impl Entries {
    pub(super) fn get(&self, sequence: u64) -> Option<&Entry> {
        self.all.get(&sequence)
    }

    /// Its message stays as it is.
    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        self.all.get_mut(&sequence)
    }

    /// Who holds a message, if anybody does.
    pub(super) fn held(&self, sequence: u64) -> Option<Held> {
        self.get(sequence)?.held
    }

    /// The messages that somebody holds whom `wanted` means.
    pub(super) fn held_by(&self, wanted: impl Fn(&Held) -> bool) -> impl Iterator<Item = u64> {
        self.all.iter().filter_map(move |(sequence, entry)| {
            let held = entry.held.as_ref()?;
            wanted(held).then_some(*sequence)
        })
    }

    /// A message that nobody holds comes in. One that is there already must not.
    pub(super) fn insert(&mut self, message: QueuedMessage) {
        let sequence = message.sequence;
        self.bytes += message.message.len();
        let entry = Entry {
            message: message.message,
            expires: message.expires,
            delivery_count: message.delivery_count,
            held: None,
        };
        self.all.insert(sequence, entry);
        self.ready(sequence);
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Entry> {
        self.unready(sequence);
        let entry = self.all.remove(&sequence)?;
        self.bytes = self.bytes.saturating_sub(entry.message.len());
        Some(entry)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Nobody holds the message any more.
    pub(super) fn ready(&mut self, sequence: u64) {
        if let Some(entry) = self.all.get(&sequence)
            && self.ready.insert(sequence)
        {
            self.ready_bytes += entry.message.len();
        }
    }

    /// Somebody is about to hold the message.
    pub(super) fn unready(&mut self, sequence: u64) {
        if let Some(entry) = self.all.get(&sequence)
            && self.ready.remove(&sequence)
        {
            self.ready_bytes = self.ready_bytes.saturating_sub(entry.message.len());
        }
    }

    pub(super) fn is_ready(&self, sequence: u64) -> bool {
        self.ready.contains(&sequence)
    }

    /// The first message that nobody holds.
    pub(super) fn first_ready(&self) -> Option<(u64, &Entry)> {
        let sequence = *self.ready.first()?;
        Some((sequence, self.all.get(&sequence)?))
    }

    /// Whether so many messages or bytes are ready, or more.
    pub(super) fn has_ready(&self, messages: usize, bytes: usize) -> bool {
        self.ready.len() >= messages || self.ready_bytes >= bytes
    }

    pub(super) fn is_any_held(&self) -> bool {
        self.ready.len() != self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Bytes of all messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
