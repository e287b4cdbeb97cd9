//! Rows as bytes. `docs/formats/documents.md` describes each byte; the tests here pin them.

use bytes::{Buf, BufMut, Bytes};
use fieldpost_store::documents::{Collection, Document, Revision};

use crate::keyvalue::engine::Space;
use crate::keyvalue::rows::{ROW_HEADER_BYTES, RowError, exact, number, open, seal};

/// The key of the state row in [`Space::Meta`].
pub(crate) const STATE_KEY: &[u8] = b"state";

/// What the keys of count rows in [`Space::Meta`] start with.
pub(crate) const COUNT_PREFIX: &[u8] = b"count";

/// Collection and key in one: the key of a document's row.
pub(crate) type Name = Vec<u8>;

/// What one commit leaves to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StateRow {
    /// The newest revision given out.
    pub(crate) revision: Revision,
    /// The newest deletion that the feed has forgotten.
    pub(crate) deletions_trimmed: Revision,
    /// Deletions in the feed.
    pub(crate) deletions: u64,
}

pub(crate) fn name(collection: Collection, key: &[u8]) -> Name {
    let mut name = Vec::with_capacity(1 + key.len());
    name.push(collection.0);
    name.extend_from_slice(key);
    name
}

pub(crate) fn split_name(name: &[u8]) -> Option<(Collection, &[u8])> {
    let (collection, key) = name.split_first()?;
    (!key.is_empty()).then_some((Collection(*collection), key))
}

pub(crate) fn revision_key(revision: Revision) -> Vec<u8> {
    revision.to_be_bytes().to_vec()
}

pub(crate) fn split_revision_key(space: Space, key: &[u8]) -> Result<Revision, RowError> {
    let bytes = key
        .try_into()
        .map_err(|_| RowError::new(space, key, "the key is not a revision"))?;
    Ok(Revision::from_be_bytes(bytes))
}

pub(crate) fn count_key(collection: Collection, class: u8) -> Vec<u8> {
    [COUNT_PREFIX, &[collection.0, class]].concat()
}

pub(crate) fn split_count_key(key: &[u8]) -> Option<(Collection, u8)> {
    match key.strip_prefix(COUNT_PREFIX)? {
        [collection, class] => Some((Collection(*collection), *class)),
        _ => None,
    }
}

/// The row of a document in [`Space::Documents`].
pub(crate) fn document_row(name: &[u8], revision: Revision, class: u8, value: &[u8]) -> Vec<u8> {
    seal(Space::Documents, name, 9 + value.len(), |row| {
        row.put_u8(class);
        row.put_u64_le(revision);
        row.put_slice(value);
    })
}

/// Revision and class of a document's row.
pub(crate) fn parse_document_head(name: &[u8], row: &[u8]) -> Result<(Revision, u8), RowError> {
    let mut fields = open(Space::Documents, name, row)?;
    match (fields.try_get_u8(), fields.try_get_u64_le()) {
        (Ok(class), Ok(revision)) => Ok((revision, class)),
        _ => Err(RowError::new(
            Space::Documents,
            name,
            "the row is too short",
        )),
    }
}

/// A whole document from its row.
pub(crate) fn parse_document(name: &[u8], row: &[u8]) -> Result<Document, RowError> {
    let (revision, class) = parse_document_head(name, row)?;
    let (_, key) = split_name(name)
        .ok_or_else(|| RowError::new(Space::Documents, name, "the key is too short"))?;
    let value = row.get(ROW_HEADER_BYTES + 9..).unwrap_or_default();
    Ok(Document {
        key: Bytes::copy_from_slice(key),
        revision,
        class,
        value: Bytes::copy_from_slice(value),
    })
}

/// The row of a change in [`Space::Feed`] or [`Space::Deletions`]: which document it was.
pub(crate) fn change_row(space: Space, revision_key: &[u8], name: &[u8]) -> Vec<u8> {
    seal(space, revision_key, name.len(), |row| row.put_slice(name))
}

/// Collection and key of the document that a change was of.
pub(crate) fn parse_change<'a>(
    space: Space,
    revision_key: &[u8],
    row: &'a [u8],
) -> Result<(Collection, &'a [u8]), RowError> {
    let name = open(space, revision_key, row)?;
    split_name(name).ok_or_else(|| RowError::new(space, revision_key, "the row is too short"))
}

/// The row of a deletion in [`Space::Deleted`].
pub(crate) fn deleted_row(name: &[u8], revision: Revision) -> Vec<u8> {
    seal(Space::Deleted, name, 8, |row| row.put_u64_le(revision))
}

pub(crate) fn parse_deleted(name: &[u8], row: &[u8]) -> Result<Revision, RowError> {
    number(Space::Deleted, name, row)
}

/// The state row in [`Space::Meta`].
pub(crate) fn state_row(state: StateRow) -> Vec<u8> {
    seal(Space::Meta, STATE_KEY, 24, |row| {
        row.put_u64_le(state.revision);
        row.put_u64_le(state.deletions_trimmed);
        row.put_u64_le(state.deletions);
    })
}

pub(crate) fn parse_state(row: &[u8]) -> Result<StateRow, RowError> {
    let fields: [u8; 24] = exact(Space::Meta, STATE_KEY, row)?;
    let mut fields = &fields[..];
    Ok(StateRow {
        revision: fields.get_u64_le(),
        deletions_trimmed: fields.get_u64_le(),
        deletions: fields.get_u64_le(),
    })
}

/// A count row in [`Space::Meta`].
pub(crate) fn count_row(count_key: &[u8], count: u64) -> Vec<u8> {
    seal(Space::Meta, count_key, 8, |row| row.put_u64_le(count))
}

pub(crate) fn parse_count(count_key: &[u8], row: &[u8]) -> Result<u64, RowError> {
    number(Space::Meta, count_key, row)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keyvalue::rows::{format_row, parse_format};

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
        check(&format_row(1), "c199f6e80101000000");
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
