//! The seam between the facets and the key-value engine under them: four calls, so that another
//! engine can take its place.

use std::ops::{Bound, ControlFlow, Range};

use bytes::BufMut;
use fieldpost_store::StoreError;

use super::rows;

/// The tables of the store. Their layout is in `docs/formats/documents.md` and
/// `docs/formats/queues.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// Documents by name.
    Documents,
    /// The newest change of each document, by revision.
    Feed,
    /// Deletions by revision.
    Deletions,
    /// The revision of each deletion, by name.
    Deleted,
    /// Format, newest revision, counts, newest message, lanes.
    Meta,
    /// Messages by queue and number.
    Messages,
    /// The queue of each message, by expiry and number.
    Due,
    /// Outcome records by lane and number, many to a row.
    Outcomes,
    /// The marks of queues that do each thing once.
    Marks,
}

impl Space {
    pub(crate) const ALL: [Self; 9] = [
        Self::Documents,
        Self::Feed,
        Self::Deletions,
        Self::Deleted,
        Self::Meta,
        Self::Messages,
        Self::Due,
        Self::Outcomes,
        Self::Marks,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Feed => "feed",
            Self::Deletions => "deletions",
            Self::Deleted => "deleted",
            Self::Meta => "meta",
            Self::Messages => "messages",
            Self::Due => "due",
            Self::Outcomes => "outcomes",
            Self::Marks => "marks",
        }
    }

    /// The number that stands for the table in the checks of rows.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Documents => 0,
            Self::Feed => 1,
            Self::Deletions => 2,
            Self::Deleted => 3,
            Self::Meta => 4,
            Self::Messages => 5,
            Self::Due => 6,
            Self::Outcomes => 7,
            Self::Marks => 8,
        }
    }

    /// The format of the store that brought the table.
    pub(crate) const fn since_format(self) -> u32 {
        match self {
            Self::Documents | Self::Feed | Self::Deletions | Self::Deleted | Self::Meta => 1,
            Self::Messages | Self::Due | Self::Outcomes | Self::Marks => 2,
        }
    }
}

/// A key-value engine with atomic batches and snapshots.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Makes all writes at once, or none, and returns when they are on stable storage.
    ///
    /// Called by one thread only. After an error the engine takes no more writes, because nobody
    /// knows what the failed one left behind; reading shows the state before it.
    fn apply(&self, writes: &Writes) -> Result<(), EngineError>;

    /// A consistent view of what is durable.
    fn snapshot(&self) -> Box<dyn View + '_>;
}

/// A consistent view of an engine's tables.
pub(crate) trait View {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// Shows the rows of a stretch of keys in their order until there are no more or `visit`
    /// breaks. What was removed beyond the stretch costs nothing.
    fn range(
        &self,
        space: Space,
        keys: KeyRange<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError>;
}

/// Keys from one bound to another.
pub(crate) type KeyRange<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// All keys of a table.
pub(crate) const ALL_KEYS: KeyRange<'static> = (Bound::Unbounded, Bound::Unbounded);

/// Looks at one row, key and value, and says whether to go on.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Why an engine did not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EngineError {
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

/// Rows to be written or removed together, each key once.
///
/// The bytes of all rows stand in one buffer, so that a group of thousands takes no memory for each.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    space: Space,
    key: Range<usize>,
    /// The value begins where the key ends; none when the row is removed.
    value_end: Option<usize>,
}

impl Writes {
    /// With room for so many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            rows: Vec::new(),
        }
    }

    /// Writes a row with its check in front of `fields`.
    pub(crate) fn seal(
        &mut self,
        space: Space,
        key: impl FnOnce(&mut Vec<u8>),
        fields: impl FnOnce(&mut Vec<u8>),
    ) {
        let key = self.put_key(key);
        self.bytes.put_slice(&rows::UNSEALED);
        fields(&mut self.bytes);
        let (before, row) = self.bytes.split_at_mut(key.end);
        rows::finish(space, before.get(key.clone()).unwrap_or_default(), row);
        self.rows.push(Row {
            space,
            key,
            value_end: Some(self.bytes.len()),
        });
    }

    /// Writes a row that is sealed.
    pub(crate) fn put(&mut self, space: Space, key: &[u8], row: &[u8]) {
        let key = self.put_key(|bytes| bytes.put_slice(key));
        self.bytes.put_slice(row);
        self.rows.push(Row {
            space,
            key,
            value_end: Some(self.bytes.len()),
        });
    }

    /// Removes a row, if there is one.
    pub(crate) fn remove(&mut self, space: Space, key: impl FnOnce(&mut Vec<u8>)) {
        let key = self.put_key(key);
        self.rows.push(Row {
            space,
            key,
            value_end: None,
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Table, key and row; `None` removes.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = (Space, &[u8], Option<&[u8]>)> {
        self.rows.iter().map(|row| {
            let key = self.bytes.get(row.key.clone()).unwrap_or_default();
            let value = row
                .value_end
                .map(|end| self.bytes.get(row.key.end..end).unwrap_or_default());
            (row.space, key, value)
        })
    }

    fn put_key(&mut self, key: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.bytes.len();
        key(&mut self.bytes);
        start..self.bytes.len()
    }
}
