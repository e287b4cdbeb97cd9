//! What all rows have in common: a check and a version in front, and the row of the format.

use bytes::{Buf, BufMut};
use fieldpost_store::StoreError;

use super::engine::{EngineError, Space};

/// The format of the whole key-value store; one of a newer format is not opened.
///
/// Format 1 had documents only; 2 brought device queues.
pub(crate) const FORMAT: u32 = 3;

/// The version of each row.
const ROW: u8 = 1;

/// Checksum and version in front of each value.
pub(crate) const ROW_HEADER_BYTES: usize = 5;

/// The header of a row that has no checksum yet.
pub(crate) const UNSEALED: [u8; ROW_HEADER_BYTES] = [0, 0, 0, 0, ROW];

/// The key of the format row in [`Space::Meta`].
pub(crate) const FORMAT_KEY: &[u8] = b"format";

/// A row that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}, key {key}: {what}", table = .space.name())]
pub(crate) struct RowError {
    space: Space,
    key: String,
    what: &'static str,
}

impl RowError {
    pub(crate) fn new(space: Space, key: &[u8], what: &'static str) -> Self {
        let key = shown(space, key);
        Self { space, key, what }
    }

    /// What is wrong with it.
    pub(crate) fn what(&self) -> &'static str {
        self.what
    }
}

impl From<RowError> for StoreError {
    fn from(error: RowError) -> Self {
        let facet = facet(error.space);
        Self::Damaged {
            what: format!("{facet}, {error}").into(),
            resume: None,
        }
    }
}

/// One row, or all rows from one to another, that cannot be read, for people.
pub(crate) fn shown_damage(space: Space, first: &[u8], last: &[u8], why: &str) -> String {
    let (facet, table) = (facet(space), space.name());
    let (first, last) = (shown(space, first), shown(space, last));
    if first == last {
        format!("{facet}, table {table}, key {first}: {why}")
    } else {
        format!("{facet}, table {table}, keys {first} to {last}: {why}")
    }
}

/// The error of a read of one row.
pub(crate) fn unread(space: Space, key: &[u8], error: EngineError) -> StoreError {
    match error {
        EngineError::Damaged(why) => StoreError::Damaged {
            what: shown_damage(space, key, key, &why).into(),
            resume: None,
        },
        error @ EngineError::Failed(_) => error.into(),
    }
}

fn facet(space: Space) -> &'static str {
    match space {
        Space::Documents | Space::Feed | Space::Deletions | Space::Deleted | Space::Meta => {
            "documents"
        }
        Space::Messages | Space::Due | Space::Outcomes | Space::Marks => "queues",
    }
}

/// A whole row.
pub(crate) fn seal(
    space: Space,
    key: &[u8],
    bytes: usize,
    fields: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut row = Vec::with_capacity(ROW_HEADER_BYTES + bytes);
    row.put_slice(&UNSEALED);
    fields(&mut row);
    finish(space, key, &mut row);
    row
}

/// Puts the checksum into a row that begins with [`UNSEALED`].
pub(crate) fn finish(space: Space, key: &[u8], row: &mut [u8]) {
    if let Some((mut place, rest)) = row.split_at_mut_checked(4) {
        place.put_u32_le(checksum(space, key, rest));
    }
}

/// The fields of a row whose checksum is right.
pub(crate) fn open<'a>(space: Space, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], RowError> {
    let mut rest = row;
    let crc = rest
        .try_get_u32_le()
        .map_err(|_| RowError::new(space, key, "the row is too short"))?;
    if crc != checksum(space, key, rest) {
        return Err(RowError::new(space, key, "the row does not pass its check"));
    }
    match rest.try_get_u8() {
        Ok(ROW) => Ok(rest),
        Ok(_) => Err(RowError::new(space, key, "the row has an unknown version")),
        Err(_) => Err(RowError::new(space, key, "the row is too short")),
    }
}

/// The fields of a row that has exactly `N` bytes of them.
pub(crate) fn exact<const N: usize>(
    space: Space,
    key: &[u8],
    row: &[u8],
) -> Result<[u8; N], RowError> {
    open(space, key, row)?
        .try_into()
        .map_err(|_| RowError::new(space, key, "the row has another length than its kind"))
}

/// The only field of a row.
pub(crate) fn number(space: Space, key: &[u8], row: &[u8]) -> Result<u64, RowError> {
    exact(space, key, row).map(u64::from_le_bytes)
}

/// The format row in [`Space::Meta`].
pub(crate) fn format_row(format: u32) -> Vec<u8> {
    seal(Space::Meta, FORMAT_KEY, 4, |row| row.put_u32_le(format))
}

pub(crate) fn parse_format(row: &[u8]) -> Result<u32, RowError> {
    exact(Space::Meta, FORMAT_KEY, row).map(u32::from_le_bytes)
}

/// Covers where the row belongs as well, so that a row in a wrong place is noticed.
fn checksum(space: Space, key: &[u8], rest: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&[space.number()]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, key), rest)
}

/// A key for people.
fn shown(space: Space, key: &[u8]) -> String {
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).ok();
    let structured = match space {
        Space::Documents | Space::Deleted => {
            let named = key.split_first().filter(|(_, key)| !key.is_empty());
            named.map(|(collection, key)| format!("{collection}/{}", key.escape_ascii()))
        }
        Space::Feed | Space::Deletions => number(key).map(|revision| revision.to_string()),
        Space::Messages => crate::queues::layout::split_message_key(key)
            .map(|(queue, sequence)| format!("{}/{sequence}", queue.escape_ascii())),
        Space::Due => crate::queues::layout::split_due_key(key)
            .map(|position| format!("{} ms/{}", position.expires.as_millis(), position.sequence)),
        Space::Outcomes => crate::queues::layout::split_outcomes_key(key)
            .map(|(lane, last)| format!("{}/{last}", lane.0)),
        Space::Meta | Space::Marks => None,
    };
    structured.unwrap_or_else(|| key.escape_ascii().to_string())
}
