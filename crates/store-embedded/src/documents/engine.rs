//! The seam between documents and the key-value engine under them: four calls, so that another
//! engine can take its place.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use fieldpost_store::StoreError;

/// The tables of the store. Their layout is in `docs/formats/documents.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    /// Documents by name.
    Documents,
    /// The newest change of each document, by revision.
    Feed,
    /// Deletions by revision.
    Deletions,
    /// The revision of each deletion, by name.
    Deleted,
    /// Format, newest revision, counts.
    Meta,
}

impl Space {
    pub(super) const ALL: [Self; 5] = [
        Self::Documents,
        Self::Feed,
        Self::Deletions,
        Self::Deleted,
        Self::Meta,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Feed => "feed",
            Self::Deletions => "deletions",
            Self::Deleted => "deleted",
            Self::Meta => "meta",
        }
    }
}

/// A key-value engine with atomic batches and snapshots.
pub(super) trait Engine: Send + Sync + 'static {
    /// Makes all writes at once, or none, and returns when they are on stable storage.
    ///
    /// Called by one thread only. After an error the engine takes no more writes, because nobody
    /// knows what the failed one left behind; reading shows the state before it.
    fn apply(&self, writes: Writes) -> Result<(), EngineError>;

    /// A consistent view of what is durable.
    fn snapshot(&self) -> Box<dyn View + '_>;
}

/// A consistent view of an engine's tables.
pub(super) trait View {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// Shows rows in key order until there are no more or `visit` breaks.
    fn range(
        &self,
        space: Space,
        from: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError>;
}

/// Looks at one row, key and value, and says whether to go on.
pub(super) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Why an engine did not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// The system refused, or an earlier failure stands in the way.
    #[error("{0}")]
    Failed(String),
    /// The engine's own checks found damage.
    #[error("{0}")]
    Damaged(String),
}

impl From<EngineError> for StoreError {
    /// For reads; a failed write is more than an error of its caller.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Failed(reason) => Self::Read {
                reason: reason.into(),
            },
            EngineError::Damaged(what) => Self::Damaged {
                what: what.into(),
                resume: None,
            },
        }
    }
}

/// Rows to be written or removed together; the last word on a key counts.
#[derive(Debug, Default)]
pub(super) struct Writes(BTreeMap<(Space, Vec<u8>), Option<Vec<u8>>>);

impl Writes {
    pub(super) fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert((space, key), Some(value));
    }

    pub(super) fn remove(&mut self, space: Space, key: Vec<u8>) {
        self.0.insert((space, key), None);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of space and key; `None` removes.
    pub(super) fn into_rows(self) -> impl Iterator<Item = (Space, Vec<u8>, Option<Vec<u8>>)> {
        self.0
            .into_iter()
            .map(|((space, key), value)| (space, key, value))
    }
}
