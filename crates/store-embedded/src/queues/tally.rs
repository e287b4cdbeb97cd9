//! Which queues have nothing in them, for a few bytes each.
//!
//! Most messages come to a queue that is empty, and of a million such queues few are among those that
//! the writer remembers. To count what is stored of a queue means to search every level of the
//! table. So messages are tallied by a number that comes from their queue's name: where the tally is
//! zero, all queues with that number are empty. The tally is not stored; a pass over the table makes
//! it after every opening, while the store works without.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::layout;
use crate::keyvalue::engine::{ALL_KEYS, EngineError, Space, View};

/// Two bytes each. With a quarter as many messages waiting, one of five empty queues shares its
/// place with one that is not.
const PLACES: usize = 1 << 22;

/// A place that has ever come so far is never empty again.
const FULL: i16 = i16::MAX;

/// The tally of the last commit, as far as it is known.
pub(super) struct Tally {
    /// Until the pass is over, only what was added since the store was opened.
    places: Vec<i16>,
    complete: bool,
    pass: Arc<Pass>,
}

/// The pass over what was stored when the store was opened.
#[derive(Default)]
pub(crate) struct Pass {
    counted: Mutex<Option<Vec<i16>>>,
    over: AtomicBool,
}

impl Tally {
    pub(super) fn new(pass: Arc<Pass>) -> Self {
        Self {
            places: vec![0; PLACES],
            complete: false,
            pass,
        }
    }

    /// Whether a queue is known to be empty.
    pub(super) fn is_empty(&self, queue: &[u8]) -> bool {
        self.complete && self.places.get(place(queue)) == Some(&0)
    }

    /// Whether it knows of all messages.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes note of messages that came to a queue or left it.
    pub(super) fn add(&mut self, queue: &[u8], messages: i64) {
        if messages != 0 {
            put(&mut self.places, queue, messages);
        }
    }

    /// Adds what the pass has counted, once it is over.
    pub(super) fn take_over(&mut self) {
        if self.complete || !self.pass.over.load(Ordering::Acquire) {
            return;
        }
        let counted = self
            .pass
            .counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(counted) = counted {
            for (place, counted) in self.places.iter_mut().zip(counted) {
                *place = sum(*place, i64::from(counted));
            }
            self.complete = true;
        }
    }
}

impl Pass {
    /// Goes over the messages of a view that shows the store as it was opened. Nothing comes of it
    /// when it is stopped or meets damage.
    pub(crate) fn run(&self, view: &dyn View, stop: &AtomicBool) -> Result<(), EngineError> {
        let mut counted = Vec::new();
        let mut whole = true;
        // The rows of the order of expiry are much smaller than the messages.
        view.range(Space::Due, ALL_KEYS, &mut |key, row| {
            match layout::parse_due(key, row) {
                Ok((_, queue)) if !stop.load(Ordering::Relaxed) => {
                    // An empty store has nothing to add.
                    counted.resize(PLACES, 0);
                    put(&mut counted, queue, 1);
                }
                _ => whole = false,
            }
            if whole {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if whole {
            let mut place = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            *place = Some(counted);
            drop(place);
            self.over.store(true, Ordering::Release);
        }
        Ok(())
    }
}

fn put(places: &mut [i16], queue: &[u8], messages: i64) {
    if let Some(place) = places.get_mut(place(queue)) {
        *place = sum(*place, messages);
    }
}

fn sum(place: i16, messages: i64) -> i16 {
    if place == FULL {
        return FULL;
    }
    let sum = i64::from(place).saturating_add(messages);
    i16::try_from(sum).unwrap_or(FULL)
}

fn place(queue: &[u8]) -> usize {
    let number = xxh3_64(queue) % (PLACES as u64);
    usize::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rows(Vec<(Vec<u8>, Vec<u8>)>);

    impl View for Rows {
        fn get(&self, _: Space, _: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
            Ok(None)
        }

        fn range(
            &self,
            _: Space,
            _: crate::keyvalue::engine::KeyRange<'_>,
            visit: &mut crate::keyvalue::engine::Visit<'_>,
        ) -> Result<(), EngineError> {
            for (key, row) in &self.0 {
                if visit(key, row).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    fn rows(queues: &[&[u8]]) -> Rows {
        let rows = queues.iter().zip(1..).map(|(queue, sequence)| {
            let key = layout::due_key(fieldpost_store::queues::DuePosition {
                expires: fieldpost_model::Timestamp::from_millis(0),
                sequence,
            });
            let row = crate::keyvalue::rows::seal(Space::Due, &key, 0, |row| {
                row.extend_from_slice(queue);
            });
            (key, row)
        });
        Rows(rows.collect())
    }

    #[test]
    fn what_was_stored_and_what_came_since_make_the_sum() {
        let pass = Arc::new(Pass::default());
        let mut tally = Tally::new(Arc::clone(&pass));
        tally.add(b"a", -1);
        tally.add(b"c", 1);
        tally.take_over();
        assert!(!tally.is_empty(b"d"), "nothing is known before the pass");
        let view = rows(&[b"a", b"b", b"b"]);
        pass.run(&view, &AtomicBool::new(false)).unwrap();
        tally.take_over();
        let empty = |tally: &Tally| [b"a", b"b", b"c", b"d"].map(|queue| tally.is_empty(queue));
        assert_eq!(empty(&tally), [true, false, false, true]);
        tally.add(b"b", -2);
        tally.add(b"c", 1);
        assert_eq!(empty(&tally), [true, true, false, true]);
        tally.add(b"d", 40_000);
        tally.add(b"d", -40_000);
        assert_eq!(empty(&tally), [true, true, false, false], "nobody knows");
    }

    #[test]
    fn a_pass_that_is_stopped_or_meets_damage_says_nothing() {
        let check = |view: &Rows, stop: bool| {
            let pass = Arc::new(Pass::default());
            pass.run(view, &AtomicBool::new(stop)).unwrap();
            let mut tally = Tally::new(pass);
            tally.take_over();
            assert!(!tally.is_empty(b"z"));
        };
        let mut view = rows(&[b"a", b"b"]);
        check(&view, true);
        view.0[1].1[5] ^= 1;
        check(&view, false);
    }
}
