//! Rows as bytes. `docs/formats/documents.md` describes each byte; the tests here pin them.

use bytes::{Buf, BufMut, Bytes};
use fieldpost_store::StoreError;
use fieldpost_store::documents::{Collection, Document, Revision};

use super::engine::Space;

/// The format of the whole documents store; a store of a newer one is not opened.
pub(super) const FORMAT: u32 = 1;

/// The version of each row.
const ROW: u8 = 1;

/// Checksum and version in front of each value.
const ROW_HEADER_BYTES: usize = 5;

/// The key of the format row in [`Space::Meta`].
pub(super) const FORMAT_KEY: &[u8] = b"format";

/// The key of the state row in [`Space::Meta`].
pub(super) const STATE_KEY: &[u8] = b"state";

/// What the keys of count rows in [`Space::Meta`] start with.
pub(super) const COUNT_PREFIX: &[u8] = b"count";

/// Collection and key in one: the key of a document's row.
pub(super) type Name = Vec<u8>;

/// A row that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}, key {key}: {what}", table = .space.name())]
pub(super) struct RowError {
    space: Space,
    key: String,
    what: &'static str,
}

impl From<RowError> for StoreError {
    fn from(error: RowError) -> Self {
        Self::Damaged {
            what: format!("documents, {error}").into(),
            resume: None,
        }
    }
}

/// What one commit leaves to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StateRow {
    /// The newest revision given out.
    pub(super) revision: Revision,
    /// The newest deletion that the feed has forgotten.
    pub(super) deletions_trimmed: Revision,
    /// Deletions in the feed.
    pub(super) deletions: u64,
}

pub(super) fn name(collection: Collection, key: &[u8]) -> Name {
    let mut name = Vec::with_capacity(1 + key.len());
    name.push(collection.0);
    name.extend_from_slice(key);
    name
}

pub(super) fn split_name(name: &[u8]) -> Option<(Collection, &[u8])> {
    let (collection, key) = name.split_first()?;
    (!key.is_empty()).then_some((Collection(*collection), key))
}

pub(super) fn revision_key(revision: Revision) -> Vec<u8> {
    revision.to_be_bytes().to_vec()
}

pub(super) fn split_revision_key(space: Space, key: &[u8]) -> Result<Revision, RowError> {
    let bytes = key
        .try_into()
        .map_err(|_| row_error(space, key, "the key is not a revision"))?;
    Ok(Revision::from_be_bytes(bytes))
}

pub(super) fn count_key(collection: Collection, class: u8) -> Vec<u8> {
    [COUNT_PREFIX, &[collection.0, class]].concat()
}

pub(super) fn split_count_key(key: &[u8]) -> Option<(Collection, u8)> {
    match key.strip_prefix(COUNT_PREFIX)? {
        [collection, class] => Some((Collection(*collection), *class)),
        _ => None,
    }
}

/// The row of a document in [`Space::Documents`].
pub(super) fn document_row(name: &[u8], revision: Revision, class: u8, value: &[u8]) -> Vec<u8> {
    seal(Space::Documents, name, 9 + value.len(), |row| {
        row.put_u8(class);
        row.put_u64_le(revision);
        row.put_slice(value);
    })
}

/// Revision and class of a document's row.
pub(super) fn parse_document_head(name: &[u8], row: &[u8]) -> Result<(Revision, u8), RowError> {
    let mut fields = open(Space::Documents, name, row)?;
    match (fields.try_get_u8(), fields.try_get_u64_le()) {
        (Ok(class), Ok(revision)) => Ok((revision, class)),
        _ => Err(row_error(Space::Documents, name, "the row is too short")),
    }
}

/// A whole document from its row.
pub(super) fn parse_document(name: &[u8], row: &[u8]) -> Result<Document, RowError> {
    let (revision, class) = parse_document_head(name, row)?;
    let (_, key) = split_name(name)
        .ok_or_else(|| row_error(Space::Documents, name, "the key is too short"))?;
    let value = row.get(ROW_HEADER_BYTES + 9..).unwrap_or_default();
    Ok(Document {
        key: Bytes::copy_from_slice(key),
        revision,
        class,
        value: Bytes::copy_from_slice(value),
    })
}

/// The row of a change in [`Space::Feed`] or [`Space::Deletions`]: which document it was.
pub(super) fn change_row(space: Space, revision_key: &[u8], name: &[u8]) -> Vec<u8> {
    seal(space, revision_key, name.len(), |row| row.put_slice(name))
}

/// Collection and key of the document that a change was of.
pub(super) fn parse_change<'a>(
    space: Space,
    revision_key: &[u8],
    row: &'a [u8],
) -> Result<(Collection, &'a [u8]), RowError> {
    let name = open(space, revision_key, row)?;
    split_name(name).ok_or_else(|| row_error(space, revision_key, "the row is too short"))
}

/// The row of a deletion in [`Space::Deleted`].
pub(super) fn deleted_row(name: &[u8], revision: Revision) -> Vec<u8> {
    seal(Space::Deleted, name, 8, |row| row.put_u64_le(revision))
}

pub(super) fn parse_deleted(name: &[u8], row: &[u8]) -> Result<Revision, RowError> {
    number(Space::Deleted, name, row)
}

/// The format row in [`Space::Meta`].
pub(super) fn format_row() -> Vec<u8> {
    seal(Space::Meta, FORMAT_KEY, 4, |row| row.put_u32_le(FORMAT))
}

pub(super) fn parse_format(row: &[u8]) -> Result<u32, RowError> {
    exact(Space::Meta, FORMAT_KEY, row).map(u32::from_le_bytes)
}

/// The state row in [`Space::Meta`].
pub(super) fn state_row(state: StateRow) -> Vec<u8> {
    seal(Space::Meta, STATE_KEY, 24, |row| {
        row.put_u64_le(state.revision);
        row.put_u64_le(state.deletions_trimmed);
        row.put_u64_le(state.deletions);
    })
}

pub(super) fn parse_state(row: &[u8]) -> Result<StateRow, RowError> {
    let fields: [u8; 24] = exact(Space::Meta, STATE_KEY, row)?;
    let mut fields = &fields[..];
    Ok(StateRow {
        revision: fields.get_u64_le(),
        deletions_trimmed: fields.get_u64_le(),
        deletions: fields.get_u64_le(),
    })
}

/// A count row in [`Space::Meta`].
pub(super) fn count_row(count_key: &[u8], count: u64) -> Vec<u8> {
    seal(Space::Meta, count_key, 8, |row| row.put_u64_le(count))
}

pub(super) fn parse_count(count_key: &[u8], row: &[u8]) -> Result<u64, RowError> {
    number(Space::Meta, count_key, row)
}

fn number(space: Space, key: &[u8], row: &[u8]) -> Result<u64, RowError> {
    exact(space, key, row).map(u64::from_le_bytes)
}

/// The fields of a row that has exactly `N` bytes of them.
fn exact<const N: usize>(space: Space, key: &[u8], row: &[u8]) -> Result<[u8; N], RowError> {
    open(space, key, row)?
        .try_into()
        .map_err(|_| row_error(space, key, "the row has another length than its kind"))
}

pub(super) fn seal(
    space: Space,
    key: &[u8],
    bytes: usize,
    fields: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut row = Vec::with_capacity(ROW_HEADER_BYTES + bytes);
    row.put_u32_le(0);
    row.put_u8(ROW);
    fields(&mut row);
    let crc = checksum(space, key, row.get(4..).unwrap_or_default());
    if let Some(mut place) = row.get_mut(..4) {
        place.put_u32_le(crc);
    }
    row
}

/// The fields of a row whose checksum is right.
fn open<'a>(space: Space, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], RowError> {
    let mut rest = row;
    let crc = rest
        .try_get_u32_le()
        .map_err(|_| row_error(space, key, "the row is too short"))?;
    if crc != checksum(space, key, rest) {
        return Err(row_error(space, key, "the row does not pass its check"));
    }
    match rest.try_get_u8() {
        Ok(ROW) => Ok(rest),
        Ok(_) => Err(row_error(space, key, "the row has an unknown version")),
        Err(_) => Err(row_error(space, key, "the row is too short")),
    }
}

/// Covers where the row belongs as well, so that a row in a wrong place is noticed.
fn checksum(space: Space, key: &[u8], rest: &[u8]) -> u32 {
    let place = match space {
        Space::Documents => 0,
        Space::Feed => 1,
        Space::Deletions => 2,
        Space::Deleted => 3,
        Space::Meta => 4,
    };
    let crc = crc32c::crc32c(&[place]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, key), rest)
}

fn row_error(space: Space, key: &[u8], what: &'static str) -> RowError {
    let key = match (space, split_name(key)) {
        (Space::Documents | Space::Deleted, Some((collection, key))) => {
            format!("{}/{}", collection.0, key.escape_ascii())
        }
        (Space::Feed | Space::Deletions, _) => key.try_into().map_or_else(
            |_| key.escape_ascii().to_string(),
            |revision| Revision::from_be_bytes(revision).to_string(),
        ),
        _ => key.escape_ascii().to_string(),
    };
    RowError { space, key, what }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_each_row_are_those_of_format_1() {
        let hex = |row: &[u8]| {
            row.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let check = |row: &[u8], expected: &str| assert_eq!(hex(row), expected);
        let name = name(Collection(1), b"dev");
        let key = revision_key(0x0102);
        check(&name, "01646576");
        check(&key, "0000000000000102");
        check(&count_key(Collection(1), 2), "636f756e740102");
        check(
            &document_row(&name, 0x0102, 7, b"{}"),
            "7fa2d9ca010702010000000000007b7d",
        );
        check(&change_row(Space::Feed, &key, &name), "379bc5460101646576");
        check(
            &change_row(Space::Deletions, &key, &name),
            "fd64ccba0101646576",
        );
        check(&deleted_row(&name, 0x0102), "e1013730010201000000000000");
        check(&format_row(), "c199f6e80101000000");
        check(
            &state_row(StateRow {
                revision: 3,
                deletions_trimmed: 2,
                deletions: 1,
            }),
            "a1d0095a01030000000000000002000000000000000100000000000000",
        );
        check(
            &count_row(&count_key(Collection(1), 2), 5),
            "8461541b010500000000000000",
        );
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed_and_so_is_a_wrong_place(
            key in prop::collection::vec(any::<u8>(), 1..40),
            other in prop::collection::vec(any::<u8>(), 1..40),
            class: u8,
            revision: u64,
            value in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let name = name(Collection(3), &key);
            let row = document_row(&name, revision, class, &value);
            let document = parse_document(&name, &row).unwrap();
            prop_assert_eq!(
                (&document.key[..], document.revision, document.class, &document.value[..]),
                (&key[..], revision, class, &value[..])
            );
            if other != key {
                prop_assert!(parse_document(&super::name(Collection(3), &other), &row).is_err());
            }
            prop_assert!(parse_change(Space::Feed, &name, &row).is_err());
            let cut = at.index(row.len());
            prop_assert!(parse_document(&name, &row[..cut]).is_err());
            let mut damaged = row;
            damaged[cut] ^= flip;
            prop_assert!(parse_document(&name, &damaged).is_err());
        }

        #[test]
        fn no_bytes_make_parsing_panic(row in prop::collection::vec(any::<u8>(), 0..40)) {
            let name = [1, b'k'];
            let _ = parse_document(&name, &row);
            let _ = parse_change(Space::Deletions, &name, &row);
            let _ = parse_deleted(&name, &row);
            let _ = parse_format(&row);
            let _ = parse_state(&row);
            let _ = parse_count(&name, &row);
            let _ = split_revision_key(Space::Feed, &row);
            let _ = split_count_key(&row);
            let _ = parse_document(&row, &document_row(&row, 1, 1, b""));
        }
    }
}
