//! Stretches of the order of expiry in which there is nothing.
//!
//! Messages mostly leave their queues long before they expire, and the engine keeps the remains of
//! a row until it compacts its table. Whoever looks for the next expiry would walk over all of them,
//! again each time; so it is remembered where a walk found nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fieldpost_store::queues::DuePosition;

/// How many stretches are remembered: one from the beginning, and one from where each of a few
/// callers goes on.
const GAPS_MAX: usize = 4;

/// Where there is nothing, shared by the readers, who find out, and the writer, who fills.
#[derive(Debug, Default)]
pub(super) struct Gaps(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Oldest use first.
    gaps: Vec<Gap>,
    walks: Vec<Walk>,
    next_walk: u64,
}

/// Nothing is after `after` and before `next`; `None` is the beginning and the end.
#[derive(Clone, Copy, Debug)]
struct Gap {
    after: Option<DuePosition>,
    next: Option<DuePosition>,
}

/// A walk that a reader is on.
#[derive(Debug)]
struct Walk {
    number: u64,
    after: Option<DuePosition>,
    /// The soonest expiry beyond `after` that was written since the walk began.
    written: Option<DuePosition>,
}

/// The right to report what a walk found.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    gaps: &'a Gaps,
    number: u64,
}

impl Gaps {
    /// Begins a walk after a position, before the walker's snapshot is taken. Gives the first
    /// position that can hold anything; `None` when nothing can.
    pub(super) fn begin(&self, after: Option<DuePosition>) -> (Ticket<'_>, Start) {
        let mut state = self.lock();
        let number = state.next_walk;
        state.next_walk += 1;
        state.walks.push(Walk {
            number,
            after,
            written: None,
        });
        let ticket = Ticket { gaps: self, number };
        let mut start = match after {
            Some(after) => Start::After(after),
            None => Start::Beginning,
        };
        if let Some(at) = state.gaps.iter().position(|gap| gap.holds(after)) {
            let gap = state.gaps.remove(at);
            state.gaps.push(gap);
            start = match gap.next {
                Some(next) => Start::At(next),
                None => Start::Nowhere,
            };
        }
        (ticket, start)
    }

    /// Takes note of messages that have become visible.
    pub(super) fn written(&self, positions: impl Iterator<Item = DuePosition>) {
        let mut state = self.lock();
        let State { gaps, walks, .. } = &mut *state;
        for position in positions {
            for gap in &mut *gaps {
                sooner(gap.after, &mut gap.next, position);
            }
            for walk in &mut *walks {
                sooner(walk.after, &mut walk.written, position);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With the first of all.
    Beginning,
    /// Behind this one.
    After(DuePosition),
    /// With this one.
    At(DuePosition),
    /// There is nothing to walk over.
    Nowhere,
}

impl Gap {
    fn holds(&self, position: Option<DuePosition>) -> bool {
        self.after <= position && self.next.is_none_or(|next| position < Some(next))
    }
}

/// Moves the end of a stretch to a position that lies in it.
fn sooner(after: Option<DuePosition>, end: &mut Option<DuePosition>, position: DuePosition) {
    if Some(position) > after && end.is_none_or(|end| position < end) {
        *end = Some(position);
    }
}

impl Ticket<'_> {
    /// The walk found nothing before `next`; `None` when it came to the end of the order.
    pub(super) fn found(self, next: Option<DuePosition>) {
        let mut state = self.gaps.lock();
        let Some(walk) = state.walks.iter().find(|walk| walk.number == self.number) else {
            return;
        };
        let mut found = Gap {
            after: walk.after,
            next,
        };
        if let Some(written) = walk.written {
            sooner(found.after, &mut found.next, written);
        }
        // One that begins in another is as good as the other, and may reach further.
        let known = state.gaps.iter().position(|gap| gap.holds(found.after));
        if let Some(at) = known {
            found.after = state.gaps.remove(at).after;
        }
        if state.gaps.len() == GAPS_MAX {
            state.gaps.remove(0);
        }
        state.gaps.push(found);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.gaps.lock();
        state.walks.retain(|walk| walk.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_model::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn at(number: u64) -> DuePosition {
        DuePosition {
            expires: Timestamp::from_millis(0),
            sequence: number,
        }
    }

    #[test]
    fn a_walk_begins_where_the_last_one_found_something() {
        let gaps = Gaps::default();
        let begin = |after: Option<u64>| {
            let (_ticket, start) = gaps.begin(after.map(at));
            start
        };
        assert_eq!(begin(None), Start::Beginning);
        let (ticket, _) = gaps.begin(None);
        ticket.found(Some(at(9)));
        assert_eq!(begin(None), Start::At(at(9)));
        assert_eq!(begin(Some(4)), Start::At(at(9)));
        assert_eq!(begin(Some(9)), Start::After(at(9)));

        let (ticket, _) = gaps.begin(Some(at(9)));
        gaps.written([at(30), at(5)].into_iter());
        ticket.found(None);
        assert_eq!(begin(None), Start::At(at(5)));
        assert_eq!(begin(Some(9)), Start::At(at(30)), "written under way");

        let (ticket, _) = gaps.begin(None);
        ticket.found(None);
        assert_eq!(begin(None), Start::Nowhere);
        gaps.written([at(40)].into_iter());
        assert_eq!(begin(None), Start::At(at(40)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64),
        Remove(u64),
        Begin(Option<u64>),
        /// Of the walk that began first.
        Look,
        Finish,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let number = 1..40u64;
        let step = prop_oneof![
            number.clone().prop_map(Step::Write),
            number.clone().prop_map(Step::Remove),
            prop::option::of(number).prop_map(Step::Begin),
            Just(Step::Look),
            Just(Step::Finish),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        /// A walk has a beginning, a moment at which it looks, and an end, and writes come in
        /// between.
        #[test]
        fn no_walk_ever_misses_anything(steps in steps()) {
            use std::collections::{BTreeSet, VecDeque};
            let gaps = Gaps::default();
            let mut there = BTreeSet::new();
            let mut walks = VecDeque::new();
            for step in steps {
                match step {
                    Step::Write(number) => {
                        there.insert(number);
                        gaps.written([at(number)].into_iter());
                    }
                    Step::Remove(number) => {
                        there.remove(&number);
                    }
                    Step::Begin(after) if walks.len() < 2 => {
                        let (ticket, start) = gaps.begin(after.map(at));
                        walks.push_back((after, ticket, start, there.clone(), None));
                    }
                    Step::Begin(_) => {}
                    Step::Look => {
                        let Some((after, _, start, before, seen)) = walks.front_mut() else {
                            continue;
                        };
                        let from = match start {
                            Start::Beginning => 0,
                            Start::After(position) => position.sequence + 1,
                            Start::At(position) => position.sequence,
                            Start::Nowhere => u64::MAX,
                        };
                        let found = there.range(from..).next().copied();
                        // What is written while it is under way is not promised to it.
                        let promised = there
                            .intersection(before)
                            .find(|number| Some(**number) > *after);
                        if let Some(promised) = promised {
                            prop_assert!(found.is_some_and(|found| found <= *promised));
                        }
                        *seen = Some(found);
                    }
                    Step::Finish => {
                        if let Some((_, ticket, _, _, Some(found))) = walks.pop_front() {
                            ticket.found(found.map(at));
                        }
                    }
                }
                // A walk without anybody else.
                if walks.is_empty() {
                    for after in [None, Some(10), Some(25)] {
                        let (_ticket, start) = gaps.begin(after.map(at));
                        let from = match start {
                            Start::Beginning => 0,
                            Start::After(position) => position.sequence + 1,
                            Start::At(position) => position.sequence,
                            Start::Nowhere => u64::MAX,
                        };
                        prop_assert_eq!(
                            there.range(from..).next(),
                            there.range(after.map_or(0, |after| after + 1)..).next()
                        );
                    }
                }
            }
        }
    }
}
