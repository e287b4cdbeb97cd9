//! Which queues at rest stay in memory.

use std::collections::BTreeMap;

use fieldpost_store::queues::QueueName;

/// Queues at rest of which more is remembered than the store knows: past attempts, and what
/// sessions had in flight. The oldest are forgotten.
pub(super) const REMEMBERED_MAX: usize = 16_384;

/// Queues at rest of which something is remembered, each once, in the order in which they came to
/// rest.
#[derive(Default)]
pub(super) struct Remembered {
    by_rest: BTreeMap<u64, QueueName>,
    last: u64,
}

impl Remembered {
    /// Adds a queue that comes to rest. The number of that rest, from 1 on.
    pub(super) fn note(&mut self, name: QueueName) -> u64 {
        self.last += 1;
        self.by_rest.insert(self.last, name);
        self.last
    }

    /// A queue does not rest any more in the way that it did; 0 for one that never did.
    pub(super) fn forget(&mut self, rest: u64) {
        self.by_rest.remove(&rest);
    }

    /// The queue that rested first, when there are too many.
    pub(super) fn take_surplus(&mut self) -> Option<QueueName> {
        if self.by_rest.len() <= REMEMBERED_MAX {
            return None;
        }
        self.by_rest.pop_first().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn name(n: u64) -> QueueName {
        QueueName(Bytes::from(n.to_string()))
    }

    #[test]
    fn a_queue_that_rests_often_displaces_no_other() {
        let mut remembered = Remembered::default();
        remembered.note(name(0));
        let mut rest = 0;
        for _ in 0..2 * REMEMBERED_MAX {
            remembered.forget(rest);
            rest = remembered.note(name(1));
            assert_eq!(remembered.take_surplus(), None);
        }
        // As many as may be stay, and the one that rested first goes.
        for n in 2..REMEMBERED_MAX as u64 {
            remembered.note(name(n));
            assert_eq!(remembered.take_surplus(), None);
        }
        remembered.note(name(u64::MAX));
        assert_eq!(remembered.take_surplus(), Some(name(0)));
        assert_eq!(remembered.take_surplus(), None);
    }
}
