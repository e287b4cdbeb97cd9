//! The documents facet: small keyed values with revisions, changed in conditional batches.
//!
//! A document lives in a collection under a key. Every change of any document gives it the next
//! *revision* of the store, one sequence for all collections, and appears once in the
//! revision-ordered change feed. A document carries a *class*, a small number with a meaning of the
//! caller's; the store keeps the number of documents per collection and class, so that nothing is
//! ever counted by a scan.

use bytes::Bytes;

use crate::{Answer, StoreError};

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
    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>>;

    /// Reads documents in key order.
    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>>;

    /// Reads the change feed after a revision, oldest first, at most `limit` entries.
    ///
    /// A document that changed several times appears once, at its newest revision.
    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Vec<FeedEntry>, StoreError>>;

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
    /// Done; the document has this revision now (or was removed by it).
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
