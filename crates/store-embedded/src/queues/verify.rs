//! Walking over all queues and lanes, offline.

use std::collections::BTreeMap;

use fieldpost_store::StoreError;
use fieldpost_store::queues::{DuePosition, Lane};

use super::layout::{self, LaneRow, due_key, message_key};
use super::read::Loaded;
use crate::keyvalue::engine::{EngineError, Space, View};
use crate::keyvalue::verify::{self, Damage, Fingerprint};

/// Checks every row of the queues, and that messages and order of expiry, lanes and figures agree.
pub(crate) fn walk(
    view: &dyn View,
    loaded: &Loaded,
    damage: &mut Damage,
) -> Result<(), StoreError> {
    let mut walk = Walk {
        view,
        kept: loaded.sequence,
        damage,
    };
    walk.messages()?;
    walk.lanes(&loaded.lanes)?;
    walk.each(Space::Marks, |_, queue, row| {
        layout::parse_mark(queue, row)?;
        Ok(())
    })?;
    Ok(())
}

/// With the newest number given to a message.
type Walk<'a> = verify::Walk<'a, u64>;

impl Walk<'_> {
    fn messages(&mut self) -> Result<(), StoreError> {
        let mut messages = Fingerprint::default();
        self.each(Space::Messages, |walk, key, row| {
            let (queue, sequence) = layout::parse_message_key(key)?;
            let (expires, _) = layout::parse_message_head(key, row)?;
            if sequence == 0 || sequence > walk.kept {
                walk.damage.add(format!(
                    "table messages, {}: number {sequence} was never given out; the newest is {}",
                    queue.escape_ascii(),
                    walk.kept
                ));
            }
            messages.add(queue, &due_key(DuePosition { expires, sequence }));
            Ok(())
        })?;
        let mut due = Fingerprint::default();
        self.each(Space::Due, |_, key, row| {
            let (_, queue) = layout::parse_due(key, row)?;
            due.add(queue, key);
            Ok(())
        })?;
        if messages != due {
            self.compare()?;
        }
        Ok(())
    }

    /// Finds messages that are not in the order of expiry, and what is there without its message.
    fn compare(&mut self) -> Result<(), StoreError> {
        let view = self.view;
        let mut failed = None;
        self.each(Space::Messages, |walk, key, row| {
            let (queue, sequence) = layout::parse_message_key(key)?;
            let (expires, _) = layout::parse_message_head(key, row)?;
            let key = due_key(DuePosition { expires, sequence });
            let there = found(view, Space::Due, &key, &mut failed).is_some_and(|row| {
                layout::parse_due(&key, &row).is_ok_and(|(_, named)| named == queue)
            });
            if !there {
                walk.damage.add(format!(
                    "table due: no row for {}/{sequence}, which expires at {} ms",
                    queue.escape_ascii(),
                    expires.as_millis()
                ));
            }
            Ok(())
        })?;
        self.each(Space::Due, |walk, key, row| {
            let (position, queue) = layout::parse_due(key, row)?;
            let key = message_key(queue, position.sequence);
            let there = found(view, Space::Messages, &key, &mut failed).is_some_and(|row| {
                layout::parse_message_head(&key, &row)
                    .is_ok_and(|(expires, _)| expires == position.expires)
            });
            if !there {
                walk.damage.add(format!(
                    "table due, {} ms: {}/{} does not expire then in table messages",
                    position.expires.as_millis(),
                    queue.escape_ascii(),
                    position.sequence
                ));
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn lanes(&mut self, lanes: &BTreeMap<Lane, LaneRow>) -> Result<(), StoreError> {
        let mut counted: BTreeMap<Lane, LaneRow> = BTreeMap::new();
        self.each(Space::Outcomes, |walk, key, row| {
            let (lane, last) = layout::parse_outcomes_key(key)?;
            let kept = lanes.get(&lane).copied().unwrap_or_default();
            if last <= kept.forgotten {
                walk.damage.add(format!(
                    "table outcomes, key {}/{last}: all of it is forgotten, up to {}",
                    lane.0, kept.forgotten
                ));
            }
            let found = counted.entry(lane).or_default();
            for record in layout::parse_outcomes(key, row)? {
                if record.number <= found.last {
                    walk.damage.add(format!(
                        "table outcomes, key {}/{last}: record {} is in an earlier row as well",
                        lane.0, record.number
                    ));
                }
                found.last = record.number;
                if record.number > kept.forgotten {
                    found.count += 1;
                    found.bytes += record.record.len() as u64;
                }
            }
            Ok(())
        })?;
        for (lane, kept) in lanes {
            let found = counted.remove(lane).unwrap_or_default();
            if (kept.count, kept.bytes) != (found.count, found.bytes) {
                self.damage.add(format!(
                    "figures of lane {}: {} records of {} bytes, and there are {} of {} bytes",
                    lane.0, kept.count, kept.bytes, found.count, found.bytes
                ));
            }
        }
        for lane in counted.keys() {
            self.damage.add(format!(
                "figures of lane {}: there are none, and there are records",
                lane.0
            ));
        }
        Ok(())
    }
}

/// A row, if it is there and can be read.
fn found(
    view: &dyn View,
    space: Space,
    key: &[u8],
    failed: &mut Option<EngineError>,
) -> Option<Vec<u8>> {
    match view.get(space, key) {
        Ok(row) => row,
        Err(error) => {
            *failed = Some(error);
            None
        }
    }
}
