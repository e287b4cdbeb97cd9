//! The documents facet: small keyed values with revisions, changed in conditional batches.
//!
//! A document lives in a collection under a key. Every change of any document gives it the next
//! *revision* of the store, one sequence for all collections, and appears once in the
//! revision-ordered change feed. A document carries a *class*, a small number with a meaning of the
//! caller's; the store keeps the number of documents per collection and class, so that nothing is
//! ever counted by a scan.

use bytes::Bytes;

use crate::{Answer, StoreError};

/// The most bytes of a key.
pub const KEY_BYTES_MAX: usize = 512;

/// The most bytes of a value.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;

/// A position in the store-wide order of document changes; the first change is 1.
pub type Revision = u64;

/// A collection of documents. The number is part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collection(pub u8);

/// The documents facet.
pub trait Documents: Send + Sync + 'static {
    /// Reads one document.
    fn get(
        &self,
        collection: Collection,
        key: Bytes,
    ) -> Answer<Result<Option<Document>, StoreError>>;

    /// Applies changes as one batch and answers when it is durable.
    ///
    /// Each change stands alone: it is carried out when its condition holds at its turn, whatever
    /// becomes of its neighbours. Results come in the order of the changes.
    ///
    /// The engine queues whatever it is given; the caller bounds what it has in flight. A batch
    /// with a key or value outside its bounds is refused as a whole.
    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>>;

    /// Reads documents in key order.
    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>>;

    /// Reads the change feed after a revision, oldest first, at most `limit` entries.
    ///
    /// A document that changed several times appears once, at its newest revision; one that was
    /// deleted appears once as well, until its deletion is trimmed.
    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Feed, StoreError>>;

    /// Documents of a collection per class, without a scan: `(class, count)`, counts above 0 only.
    fn counts(&self, collection: Collection) -> Vec<(u8, u64)>;

    /// Makes what was submitted durable, stops, and answers when everything is closed.
    fn close(&self) -> Answer<()>;
}

/// A stored document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its key in its collection.
    pub key: Bytes,
    /// The revision of its last change.
    pub revision: Revision,
    /// The caller's class, which the store counts by.
    pub class: u8,
    /// The caller's bytes.
    pub value: Bytes,
}

/// One change of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where the document lives.
    pub collection: Collection,
    /// Its key: 1 to 512 bytes.
    pub key: Bytes,
    /// When the change may be made.
    pub condition: Condition,
    /// What is to be done.
    pub action: Action,
}

/// When a change may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Any,
    /// When there is no such document.
    Absent,
    /// When there is one.
    Present,
    /// When there is one and its revision is this.
    Revision(Revision),
}

/// What a change does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes the whole document.
    Put {
        /// The caller's class.
        class: u8,
        /// The caller's bytes, at most 256 KiB.
        value: Bytes,
    },
    /// Removes the document; nothing happens when there is none and the condition allows that.
    Delete,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeResult {
    /// Done; the document has this revision now (or was removed by it). When there was nothing to
    /// remove, the newest revision of the store.
    Done(Revision),
    /// The condition did not hold; the document's revision as it stands, if there is one.
    Refused(Option<Revision>),
}

/// Which documents to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// The collection.
    pub collection: Collection,
    /// Only keys that start so; empty for all.
    pub prefix: Bytes,
    /// Only keys after this one.
    pub after: Option<Bytes>,
    /// At most so many, at least 1.
    pub limit: usize,
}

/// Documents in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The documents.
    pub documents: Vec<Document>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// A part of the change feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Feed {
    /// The changes, oldest first.
    pub entries: Vec<FeedEntry>,
    /// The newest deletion that the feed has forgotten, 0 if none. Whoever follows the feed and
    /// stands at an older revision than this may have missed deletions and begins anew with
    /// [`Documents::list`].
    pub deletions_trimmed: Revision,
}

/// One entry of the change feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEntry {
    /// The revision of the change.
    pub revision: Revision,
    /// Where the document lives or lived.
    pub collection: Collection,
    /// Its key.
    pub key: Bytes,
    /// Whether the change removed it.
    pub deleted: bool,
}

/// Whether every key and value is within its bounds. For engines, which refuse a batch otherwise.
///
/// # Errors
/// [`StoreError::OutOfBounds`] with what is too large or missing.
pub fn check_bounds(changes: &[Change]) -> Result<(), StoreError> {
    for change in changes {
        if change.key.is_empty() {
            return Err(StoreError::OutOfBounds {
                what: "an empty key",
            });
        }
        if change.key.len() > KEY_BYTES_MAX {
            return Err(StoreError::OutOfBounds {
                what: "a key longer than 512 bytes",
            });
        }
        match &change.action {
            Action::Put { value, .. } if value.len() > VALUE_BYTES_MAX => {
                return Err(StoreError::OutOfBounds {
                    what: "a value larger than 256 KiB",
                });
            }
            Action::Put { .. } | Action::Delete => {}
        }
    }
    Ok(())
}
