//! Rows and journals as fuzz targets reach them.

use super::engine::Space;
use super::journal::{Rest, Walk};
use super::rows;
use crate::documents::layout;
use crate::queues::layout as queues;

/// The kinds of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// A document; its key is collection and key.
    Documents,
    /// A change; its key is a revision.
    Feed,
    /// A deletion by revision.
    Deletions,
    /// A deletion by collection and key.
    Deleted,
    /// A count; its key names collection and class.
    Count,
    /// The state.
    State,
    /// The format.
    Format,
    /// A message; its key is queue and number.
    Messages,
    /// A message in the order of expiry; its key is expiry and number.
    Due,
    /// Outcome records; their key is lane and number of the last.
    Outcomes,
    /// A queue's mark; its key is the queue.
    Marks,
    /// The newest message.
    Sequence,
    /// A lane; its key names it.
    Lane,
}

/// A row of `fields` that passes its check in this place. For [`Table::State`], [`Table::Format`] and
/// [`Table::Sequence`], `key` counts for nothing.
#[must_use]
pub fn row(table: Table, key: &[u8], fields: &[u8]) -> Vec<u8> {
    let (space, key) = place(table, key);
    rows::seal(space, key, fields.len(), |row| {
        row.extend_from_slice(fields);
    })
}

/// Reads a row, and writes again what was read; `None` when it is refused.
#[must_use]
pub fn row_read_back(table: Table, key: &[u8], row: &[u8]) -> Option<Vec<u8>> {
    match table {
        Table::Documents => {
            let document = layout::parse_document(key, row).ok()?;
            let (collection, own_key) = layout::split_name(key)?;
            assert_eq!(document.key, own_key);
            assert_eq!(layout::name(collection, own_key), key);
            let head = layout::parse_document_head(key, row).ok()?;
            assert_eq!(head, (document.revision, document.class));
            let (revision, class) = head;
            Some(layout::document_row(key, revision, class, &document.value))
        }
        Table::Feed | Table::Deletions => {
            let (space, key) = place(table, key);
            let revision = layout::split_revision_key(space, key).ok()?;
            assert_eq!(layout::revision_key(revision), key);
            let (collection, changed) = layout::parse_change(space, key, row).ok()?;
            let name = layout::name(collection, changed);
            Some(layout::change_row(space, key, &name))
        }
        Table::Deleted => {
            let revision = layout::parse_deleted(key, row).ok()?;
            Some(layout::deleted_row(key, revision))
        }
        Table::Count => {
            let (collection, class) = layout::split_count_key(key)?;
            assert_eq!(layout::count_key(collection, class), key);
            let count = layout::parse_count(key, row).ok()?;
            Some(layout::count_row(key, count))
        }
        Table::State => Some(layout::state_row(layout::parse_state(row).ok()?)),
        Table::Format => {
            let format = rows::parse_format(row).ok()?;
            Some(rows::format_row(format))
        }
        Table::Messages => {
            let (queue, sequence) = queues::split_message_key(key)?;
            assert_eq!(queues::message_key(queue, sequence), key);
            let message = queues::parse_message(key, sequence, row).ok()?;
            let head = queues::parse_message_head(key, row).ok()?;
            assert_eq!(head, (message.expires, message.delivery_count));
            let (expires, count) = head;
            Some(rows::seal(Space::Messages, key, 0, |out| {
                queues::put_message(out, expires, count, &message.message);
            }))
        }
        Table::Due => {
            let (position, queue) = queues::parse_due(key, row).ok()?;
            assert_eq!(queues::due_key(position), key);
            Some(rows::seal(Space::Due, key, 0, |out| {
                out.extend_from_slice(queue);
            }))
        }
        Table::Outcomes => {
            let records = queues::parse_outcomes(key, row).ok()?;
            let (lane, last) = queues::split_outcomes_key(key)?;
            assert_eq!(queues::outcomes_key(lane, last), key);
            Some(rows::seal(Space::Outcomes, key, 0, |out| {
                for record in records {
                    queues::put_record(out, last, record);
                }
            }))
        }
        Table::Marks => {
            let mark = queues::parse_mark(key, row).ok()?;
            Some(rows::seal(Space::Marks, key, 8, |out| {
                out.extend_from_slice(&mark.to_le_bytes());
            }))
        }
        Table::Sequence => {
            let (sequence, lanes) = queues::parse_sequence(row).ok()?;
            Some(queues::sequence_row(sequence, lanes))
        }
        Table::Lane => {
            let lane = queues::split_lane_key(key)?;
            assert_eq!(queues::lane_key(lane), key);
            let kept = queues::parse_lane(key, row).ok()?;
            Some(rows::seal(Space::Meta, key, 32, |out| {
                queues::put_lane(out, kept);
            }))
        }
    }
}

/// How many bytes of a journal are whole batches, and whether nothing but zeros follows them.
#[must_use]
pub fn journal(bytes: &[u8]) -> (u64, bool) {
    let walk = Walk::of(bytes, &mut None, None);
    (walk.valid_bytes, walk.rest == Rest::Nothing)
}

fn place(table: Table, key: &[u8]) -> (Space, &[u8]) {
    match table {
        Table::Documents => (Space::Documents, key),
        Table::Feed => (Space::Feed, key),
        Table::Deletions => (Space::Deletions, key),
        Table::Deleted => (Space::Deleted, key),
        Table::Count => (Space::Meta, key),
        Table::State => (Space::Meta, layout::STATE_KEY),
        Table::Format => (Space::Meta, rows::FORMAT_KEY),
        Table::Messages => (Space::Messages, key),
        Table::Due => (Space::Due, key),
        Table::Outcomes => (Space::Outcomes, key),
        Table::Marks => (Space::Marks, key),
        Table::Sequence => (Space::Meta, queues::SEQUENCE_KEY),
        Table::Lane => (Space::Meta, key),
    }
}
