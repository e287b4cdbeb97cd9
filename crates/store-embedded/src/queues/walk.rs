//! Going over rows where a part of a table cannot be read.
//!
//! The engine gives up a whole walk at a block that does not pass its check, and names no keys. All
//! keys of these tables end in a number, though, so that it can be found out by trying from which
//! number to which a walk fails. Behind that it goes on. Within it the engine still finds single
//! keys, unless they are in the broken block themselves: messages are looked up there by the order
//! of expiry, and outcomes by each number that their lane has given out.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use fieldpost_model::Timestamp;
use fieldpost_store::queues::{Lane, OutcomeNumber};

use super::layout::{self, RecordView};
use crate::keyvalue::engine::{self, ALL_KEYS, EngineError, Space, View};

/// How many messages of a queue are looked up at a time where it cannot be walked over.
const LOOKED_UP_MAX: usize = 1_024;

/// How many numbers of a lane are tried one by one where it cannot be walked over: many times what
/// the keys of a block span.
const TRIED_MAX: u64 = 65_536;

/// Rows of one table whose keys are alike up to a number at their end.
pub(super) struct Rows<'a> {
    view: &'a dyn View,
    space: Space,
    prefix: Vec<u8>,
    /// Bytes of the number: 8 or 16.
    width: usize,
}

/// What a walk comes by.
pub(super) enum Found<'a> {
    /// A row.
    Row {
        /// Its key.
        key: &'a [u8],
        /// What is stored.
        row: &'a [u8],
    },
    /// Rows between these numbers, if there are any, cannot be walked over.
    Damaged {
        /// The first number.
        from: u128,
        /// The last one.
        to: u128,
        /// Why.
        why: &'a str,
    },
}

type Visit<'a> = dyn FnMut(Found<'_>) -> Result<ControlFlow<()>, EngineError> + 'a;

/// How a walk over a stretch ended.
enum End {
    Reached,
    Broken,
    Damaged(String),
}

impl<'a> Rows<'a> {
    /// The messages of a queue, by their numbers.
    fn of_queue(view: &'a dyn View, queue: &[u8]) -> Self {
        let mut prefix = layout::message_key(queue, 0);
        prefix.truncate(prefix.len() - 8);
        Self {
            view,
            space: Space::Messages,
            prefix,
            width: 8,
        }
    }

    /// The rows of a lane, by the numbers of their last records.
    pub(super) fn of_lane(view: &'a dyn View, lane: Lane) -> Self {
        Self {
            view,
            space: Space::Outcomes,
            prefix: vec![lane.0],
            width: 8,
        }
    }

    /// The order of expiry; expiry and number are taken for one number.
    pub(super) fn of_expiry(view: &'a dyn View) -> Self {
        Self {
            view,
            space: Space::Due,
            prefix: Vec::new(),
            width: 16,
        }
    }

    /// Shows the rows from one number to another in their order, and the damage between them, which
    /// may reach further. Nothing is stored under the number 0.
    pub(super) fn walk(
        &self,
        from: u128,
        to: u128,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        let mut next = from.max(1);
        while next <= to {
            let (mut end, mut seen) = self.walk_sound(next, to, visit)?;
            let End::Damaged(why) = end else {
                return Ok(());
            };
            // The engine reads ahead, and keeps the last rows in front of the damage to itself
            // unless it is asked for no more than them.
            let mut from = seen.map_or(next, |seen| seen.saturating_add(1));
            let sound = self.sound_up_to(from, to)?;
            if sound >= from {
                (end, seen) = self.walk_sound(from, sound, visit)?;
                from = match end {
                    End::Reached => sound.saturating_add(1),
                    End::Broken => return Ok(()),
                    // It comes and goes. What was not shown is told as damaged.
                    End::Damaged(_) => seen.map_or(from, |seen| seen.saturating_add(1)),
                };
            }
            let last = self.damaged_up_to(from)?;
            let damaged = Found::Damaged {
                from,
                to: last,
                why: &why,
            };
            if visit(damaged)?.is_break() {
                return Ok(());
            }
            match last.checked_add(1) {
                Some(behind) => next = behind,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Walks as far as the engine does, and gives the number of the last row shown.
    fn walk_sound(
        &self,
        from: u128,
        to: u128,
        visit: &mut Visit<'_>,
    ) -> Result<(End, Option<u128>), EngineError> {
        let mut seen = None;
        let mut flow = Ok(ControlFlow::Continue(()));
        let walked = self.range(from, to, &mut |key, row| {
            seen = self.number(key).or(seen);
            flow = visit(Found::Row { key, row });
            match &flow {
                Ok(flow) => *flow,
                Err(_) => ControlFlow::Break(()),
            }
        });
        if flow?.is_break() {
            return Ok((End::Broken, seen));
        }
        match walked {
            Ok(()) => Ok((End::Reached, seen)),
            Err(EngineError::Damaged(why)) => Ok((End::Damaged(why), seen)),
            Err(error) => Err(error),
        }
    }

    /// The last number, before `to`, up to which rows can be walked over; one before `from` where
    /// there is none.
    fn sound_up_to(&self, from: u128, to: u128) -> Result<u128, EngineError> {
        let mut sound = from.saturating_sub(1);
        let mut broken = to;
        while broken.saturating_sub(sound) > 1 {
            let middle = sound + (broken - sound) / 2;
            if self.is_sound(from, middle)? {
                sound = middle;
            } else {
                broken = middle;
            }
        }
        Ok(sound)
    }

    /// The last number of a damage that begins with a number. Steps out, so that sound rows between
    /// two damages are missed only where they are few beside these.
    fn damaged_up_to(&self, from: u128) -> Result<u128, EngineError> {
        let most = match self.width {
            8 => u128::from(u64::MAX),
            _ => u128::MAX,
        };
        let (mut broken, mut step) = (from, 1u128);
        let mut sound = loop {
            if broken >= most {
                return Ok(most);
            }
            let at = broken.saturating_add(step).min(most);
            if self.is_sound(at, at)? {
                break at;
            }
            broken = at;
            step = step.saturating_mul(2);
        };
        while sound - broken > 1 {
            let middle = broken + (sound - broken) / 2;
            if self.is_sound(middle, middle)? {
                sound = middle;
            } else {
                broken = middle;
            }
        }
        Ok(broken)
    }

    /// Whether the engine walks over a stretch to its end.
    fn is_sound(&self, from: u128, to: u128) -> Result<bool, EngineError> {
        match self.range(from, to, &mut |_, _| ControlFlow::Continue(())) {
            Ok(()) => Ok(true),
            Err(EngineError::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn range(
        &self,
        from: u128,
        to: u128,
        visit: &mut engine::Visit<'_>,
    ) -> Result<(), EngineError> {
        let (from, to) = (self.key(from), self.key(to));
        let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        self.view.range(self.space, range, visit)
    }

    fn key(&self, number: u128) -> Vec<u8> {
        let bytes = number.to_be_bytes();
        let (_, number) = bytes.split_at(bytes.len() - self.width);
        [&self.prefix, number].concat()
    }

    fn number(&self, key: &[u8]) -> Option<u128> {
        let number = key.strip_prefix(&self.prefix[..])?;
        (number.len() == self.width).then(|| {
            number
                .iter()
                .fold(0, |sum, byte| sum << 8 | u128::from(*byte))
        })
    }
}

/// What a walk over a queue comes by.
pub(super) enum Message<'a> {
    /// What is stored of a message.
    Row {
        /// Its number.
        sequence: u64,
        /// Its key.
        key: &'a [u8],
        /// What is stored.
        row: &'a [u8],
    },
    /// A message that cannot be read.
    Damaged {
        /// Its number.
        sequence: u64,
        /// When it expires, if that is known.
        expires: Option<Timestamp>,
        /// Why.
        why: &'a str,
    },
    /// Nobody knows which messages are between these numbers.
    Unknown {
        /// The first number.
        from: u64,
        /// The last one.
        to: u64,
        /// Why.
        why: &'a str,
    },
}

/// Shows the messages of a queue from a number on, in the order of their numbers. `newest` is the
/// newest number ever given out.
pub(super) fn messages(
    view: &dyn View,
    queue: &[u8],
    from: u64,
    newest: u64,
    visit: &mut dyn FnMut(Message<'_>) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let to = u128::from(u64::MAX);
    Rows::of_queue(view, queue).walk(from.into(), to, &mut |found| match found {
        Found::Row { key, row } => Ok(match layout::split_message_key(key) {
            Some((_, sequence)) => visit(Message::Row { sequence, key, row }),
            // No key of a message lies between two of one queue unless it is one of the queue.
            None => ControlFlow::Continue(()),
        }),
        Found::Damaged { from, to, why } => {
            let (from, to) = (narrow(from), narrow(to).min(newest));
            look_up(view, queue, from, to, why, visit)
        }
    })
}

/// Shows messages of a queue that cannot be walked over.
fn look_up(
    view: &dyn View,
    queue: &[u8],
    from: u64,
    to: u64,
    why: &str,
    visit: &mut dyn FnMut(Message<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, EngineError> {
    let mut from = from;
    while from <= to {
        let Some(expected) = expected(view, queue, from, to)? else {
            return Ok(visit(Message::Unknown { from, to, why }));
        };
        for (sequence, expires) in &expected {
            let (sequence, expires) = (*sequence, *expires);
            let key = layout::message_key(queue, sequence);
            let flow = match view.get(Space::Messages, &key) {
                Ok(None) => continue,
                Ok(Some(row)) => visit(Message::Row {
                    sequence,
                    key: &key,
                    row: &row,
                }),
                Err(EngineError::Damaged(why)) => visit(Message::Damaged {
                    sequence,
                    expires,
                    why: &why,
                }),
                Err(error) => return Err(error),
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        match expected.last_key_value() {
            Some((last, _)) if expected.len() >= LOOKED_UP_MAX => from = last.saturating_add(1),
            _ => break,
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The first messages of a queue between two numbers as the order of expiry knows them; none when it
/// is damaged as well.
fn expected(
    view: &dyn View,
    queue: &[u8],
    from: u64,
    to: u64,
) -> Result<Option<BTreeMap<u64, Option<Timestamp>>>, EngineError> {
    let mut expected = BTreeMap::new();
    let walked = view.range(Space::Due, ALL_KEYS, &mut |key, row| {
        let (position, expires) = match layout::parse_due(key, row) {
            Ok((position, of)) if of == queue => (position, Some(position.expires)),
            Ok(_) => return ControlFlow::Continue(()),
            // It may be one of them.
            Err(_) => match layout::split_due_key(key) {
                Some(position) => (position, None),
                None => return ControlFlow::Continue(()),
            },
        };
        if (from..=to).contains(&position.sequence) {
            expected.insert(position.sequence, expires);
            if expected.len() > LOOKED_UP_MAX {
                expected.pop_last();
            }
        }
        ControlFlow::Continue(())
    });
    match walked {
        Ok(()) => Ok(Some(expected)),
        Err(EngineError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a walk over a lane comes by.
pub(super) enum Records<'a> {
    /// The records of a row, of which there is one at least.
    Row {
        /// The number in the row's key.
        last: OutcomeNumber,
        /// Its records.
        records: Vec<RecordView<'a>>,
    },
    /// Records after those before it cannot be read.
    Damaged {
        /// The last of them; the number in a row's key, where there is one row.
        last: OutcomeNumber,
        /// Why.
        why: &'a str,
    },
}

/// Shows the rows of a lane that end between two numbers, in their order; `to` is not above the last
/// number given out.
pub(super) fn records(
    view: &dyn View,
    lane: Lane,
    from: OutcomeNumber,
    to: OutcomeNumber,
    visit: &mut dyn FnMut(Records<'_>) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let mut walk = LaneWalk {
        view,
        lane,
        damaged: BTreeMap::new(),
        visit,
    };
    let mut broken = false;
    Rows::of_lane(view, lane).walk(from.into(), to.into(), &mut |found| {
        let flow = match found {
            Found::Row { key, row } => walk.row(key, row),
            Found::Damaged {
                from,
                to: last,
                why,
            } => walk.look_up(narrow(from), narrow(last).min(to), why)?,
        };
        broken = flow.is_break();
        Ok(flow)
    })?;
    if !broken {
        let _: ControlFlow<()> = walk.tell_damaged(OutcomeNumber::MAX);
    }
    Ok(())
}

struct LaneWalk<'a> {
    view: &'a dyn View,
    lane: Lane,
    /// What was found damaged since the last sound row, by the last number of each. The engine takes
    /// a few keys for damaged that are not there; the next sound row then holds their numbers.
    damaged: BTreeMap<OutcomeNumber, String>,
    visit: &'a mut dyn FnMut(Records<'_>) -> ControlFlow<()>,
}

impl LaneWalk<'_> {
    fn row(&mut self, key: &[u8], row: &[u8]) -> ControlFlow<()> {
        let Some((_, last)) = layout::split_outcomes_key(key) else {
            return ControlFlow::Continue(());
        };
        match layout::parse_outcomes(key, row) {
            Ok(records) => {
                let first = records.first().map_or(last, |record| record.number);
                self.tell_damaged(first)?;
                (self.visit)(Records::Row { last, records })
            }
            Err(error) => {
                self.damaged.insert(last, error.what().to_owned());
                ControlFlow::Continue(())
            }
        }
    }

    /// Looks for rows that cannot be walked over.
    fn look_up(
        &mut self,
        from: OutcomeNumber,
        to: OutcomeNumber,
        why: &str,
    ) -> Result<ControlFlow<()>, EngineError> {
        let tried = to.min(from.saturating_add(TRIED_MAX - 1));
        for last in from..=tried {
            let key = layout::outcomes_key(self.lane, last);
            match self.view.get(Space::Outcomes, &key) {
                Ok(None) => {}
                Ok(Some(row)) => {
                    let flow = self.row(&key, &row);
                    if flow.is_break() {
                        return Ok(flow);
                    }
                }
                Err(EngineError::Damaged(why)) => {
                    self.damaged.insert(last, why);
                }
                Err(error) => return Err(error),
            }
        }
        if tried < to {
            self.damaged.insert(to, why.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Shows the damage in front of a sound row that begins with `first`.
    fn tell_damaged(&mut self, first: OutcomeNumber) -> ControlFlow<()> {
        for (last, why) in std::mem::take(&mut self.damaged) {
            if last < first {
                (self.visit)(Records::Damaged { last, why: &why })?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// A number of a table whose numbers have 8 bytes.
fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
