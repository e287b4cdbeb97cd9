//! What the writer remembers of queues, so that it need not count their messages again.

use std::collections::HashMap;
use std::mem;

use bytes::Bytes;

/// How many queues are remembered, at about 150 bytes each.
const QUEUES_MAX: usize = 100_000;

/// How many messages are in a queue, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Depth {
    /// So many at least.
    pub(super) least: u64,
    /// And no more.
    pub(super) exact: bool,
}

/// What is remembered of a queue; nothing where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) depth: Option<Depth>,
    /// Its mark, which may be none.
    pub(super) mark: Option<Option<u64>>,
}

impl Depth {
    pub(super) const EMPTY: Self = Self {
        least: 0,
        exact: true,
    };
}

impl Known {
    /// Whether it is no more than that the queue is empty.
    pub(super) fn is_only_empty(self) -> bool {
        self.depth == Some(Depth::EMPTY) && self.mark.flatten().is_none()
    }
}

/// The queues that were touched lately, as of the last commit.
///
/// Two generations: what is asked for moves to the young one, and when that is full, what is left in
/// the old one has not been asked for since the last time, and goes.
#[derive(Debug, Default)]
pub(super) struct Depths {
    young: HashMap<Bytes, Known>,
    old: HashMap<Bytes, Known>,
}

impl Depths {
    pub(super) fn known(&self, queue: &Bytes) -> Known {
        let found = self.young.get(queue).or_else(|| self.old.get(queue));
        found.copied().unwrap_or_default()
    }

    pub(super) fn forget(&mut self, queue: &Bytes) {
        if self.young.remove(queue).is_none() {
            self.old.remove(queue);
        }
    }

    pub(super) fn remember(&mut self, queue: &Bytes, known: Known) {
        if let Some(before) = self.young.get_mut(queue) {
            *before = known;
            return;
        }
        // A name that is kept must not keep the buffer that it arrived in.
        let name = match self.old.remove_entry(queue) {
            Some((name, _)) => name,
            None => Bytes::copy_from_slice(queue),
        };
        if self.young.len() >= QUEUES_MAX / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(name, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_stays_and_the_rest_goes() {
        let mut depths = Depths::default();
        let known = |least| Known {
            depth: Some(Depth { least, exact: true }),
            mark: None,
        };
        let name = |number: usize| Bytes::from(format!("queue {number}"));
        for number in 0..3 * QUEUES_MAX {
            depths.remember(&name(number), known(number as u64));
            if number % 1_000 == 0 {
                depths.remember(&name(7), known(7));
            }
        }
        assert!(depths.young.len() + depths.old.len() <= QUEUES_MAX);
        assert_eq!(depths.known(&name(7)), known(7));
        assert_eq!(depths.known(&name(8)), Known::default());
        let last = 3 * QUEUES_MAX - 1;
        assert_eq!(depths.known(&name(last)), known(last as u64));
        depths.forget(&name(last));
        assert_eq!(depths.known(&name(last)), Known::default());
    }
}
