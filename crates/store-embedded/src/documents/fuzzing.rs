//! Rows and journals as fuzz targets reach them.

use super::engine::Space;
use super::journal::{Rest, Walk};
use super::layout;

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
}

/// A row of `fields` that passes its check in this place. For [`Table::State`] and
/// [`Table::Format`], `key` counts for nothing.
#[must_use]
pub fn row(table: Table, key: &[u8], fields: &[u8]) -> Vec<u8> {
    let (space, key) = place(table, key);
    layout::seal(space, key, fields.len(), |row| {
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
            let format = layout::parse_format(row).ok()?;
            let own = layout::format_row();
            (format == layout::FORMAT).then_some(own)
        }
    }
}

/// How many bytes of a journal are whole batches, and whether nothing but zeros follows them.
#[must_use]
pub fn journal(bytes: &[u8]) -> (u64, bool) {
    let walk = Walk::of(bytes, &mut None);
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
        Table::Format => (Space::Meta, layout::FORMAT_KEY),
    }
}
