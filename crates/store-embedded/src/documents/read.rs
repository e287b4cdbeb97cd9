//! Reading: single documents, lists, the change feed, and what opening needs.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;

use bytes::Bytes;
use fieldpost_store::StoreError;
use fieldpost_store::documents::{
    Collection, Document, Feed, FeedEntry, ListRequest, Page, Revision,
};

use super::OpenError;
use super::engine::{EngineError, Space, View};
use super::layout::{
    self, COUNT_PREFIX, FORMAT, FORMAT_KEY, RowError, STATE_KEY, StateRow, revision_key,
};

/// One document.
pub(super) fn get(
    view: &dyn View,
    collection: Collection,
    key: &[u8],
) -> Result<Option<Document>, StoreError> {
    let name = layout::name(collection, key);
    match view.get(Space::Documents, &name)? {
        Some(row) => Ok(Some(layout::parse_document(&name, &row)?)),
        None => Ok(None),
    }
}

/// Documents in key order.
pub(super) fn list(view: &dyn View, request: &ListRequest) -> Result<Page, StoreError> {
    let prefix = layout::name(request.collection, &request.prefix);
    let after = request
        .after
        .as_ref()
        .map(|after| layout::name(request.collection, after));
    let from = match &after {
        Some(after) if *after >= prefix => Bound::Excluded(&after[..]),
        _ => Bound::Included(&prefix[..]),
    };
    let limit = request.limit.max(1);
    let mut page = Page {
        documents: Vec::new(),
        more: false,
    };
    visit(view, Space::Documents, from, |name, row| {
        if !name.starts_with(&prefix) {
            return Ok(ControlFlow::Break(()));
        }
        if page.documents.len() == limit {
            page.more = true;
            return Ok(ControlFlow::Break(()));
        }
        page.documents.push(layout::parse_document(name, row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}

/// The change feed after a revision.
pub(super) fn changes(view: &dyn View, after: Revision, limit: usize) -> Result<Feed, StoreError> {
    let state = state(view)?;
    let mut entries = entries(view, Space::Feed, after, limit)?;
    // Deletions up to there are gone, and a search over their remains is long.
    let after = after.max(state.deletions_trimmed);
    entries.extend(self::entries(view, Space::Deletions, after, limit)?);
    entries.sort_unstable_by_key(|entry| entry.revision);
    entries.truncate(limit);
    Ok(Feed {
        entries,
        deletions_trimmed: state.deletions_trimmed,
    })
}

/// What the last commit left.
pub(super) struct Loaded {
    pub(super) state: StateRow,
    pub(super) counts: BTreeMap<(Collection, u8), u64>,
}

/// Reads what the writer goes on from. Looks at a handful of rows, however many there are.
pub(super) fn load(path: &Path, view: &dyn View) -> Result<Loaded, OpenError> {
    let damaged = |what: String| OpenError::Damaged {
        path: path.to_owned(),
        what,
    };
    let format = match view.get(Space::Meta, FORMAT_KEY) {
        Ok(Some(row)) => layout::parse_format(&row).map_err(|error| damaged(error.to_string()))?,
        Ok(None) => return Err(damaged("the row of the format is missing".to_owned())),
        Err(error) => return Err(damaged(error.to_string())),
    };
    if format > FORMAT {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found: format,
            supported: FORMAT,
        });
    }
    let state = state(view).map_err(|error| damaged(error.to_string()))?;
    let counts = counts(view).map_err(|error| damaged(error.to_string()))?;
    match ends_at(view, state.revision) {
        Ok(true) => Ok(Loaded { state, counts }),
        Ok(false) => Err(damaged(format!(
            "the change feed does not end at revision {}, the newest one",
            state.revision
        ))),
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// The documents per collection and class.
pub(super) fn counts(view: &dyn View) -> Result<BTreeMap<(Collection, u8), u64>, StoreError> {
    let mut counts = BTreeMap::new();
    visit(
        view,
        Space::Meta,
        Bound::Included(COUNT_PREFIX),
        |key, row| {
            let Some(counted) = layout::split_count_key(key) else {
                return Ok(ControlFlow::Break(()));
            };
            counts.insert(counted, layout::parse_count(key, row)?);
            Ok(ControlFlow::Continue(()))
        },
    )?;
    Ok(counts)
}

/// Revision and bookkeeping of the last commit.
pub(super) fn state(view: &dyn View) -> Result<StateRow, StoreError> {
    match view.get(Space::Meta, STATE_KEY)? {
        Some(row) => Ok(layout::parse_state(&row)?),
        None => Err(StoreError::Damaged {
            what: "documents, the row of the state is missing".into(),
            resume: None,
        }),
    }
}

/// Shows rows until `read` breaks or fails.
pub(super) fn visit(
    view: &dyn View,
    space: Space,
    from: Bound<&[u8]>,
    mut read: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, RowError>,
) -> Result<(), StoreError> {
    let mut damage = None;
    view.range(space, from, &mut |key, row| match read(key, row) {
        Ok(flow) => flow,
        Err(error) => {
            damage = Some(error);
            ControlFlow::Break(())
        }
    })?;
    damage.map_or(Ok(()), |error| Err(error.into()))
}

/// Entries of one of the two tables of changes.
fn entries(
    view: &dyn View,
    space: Space,
    after: Revision,
    limit: usize,
) -> Result<Vec<FeedEntry>, StoreError> {
    let mut entries = Vec::new();
    let from = revision_key(after);
    visit(view, space, Bound::Excluded(&from), |key, row| {
        if entries.len() == limit {
            return Ok(ControlFlow::Break(()));
        }
        let revision = layout::split_revision_key(space, key)?;
        let (collection, document_key) = layout::parse_change(space, key, row)?;
        entries.push(FeedEntry {
            revision,
            collection,
            key: Bytes::copy_from_slice(document_key),
            deleted: space == Space::Deletions,
        });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(entries)
}

/// Whether the newest change in the feed is that of `revision`, as every commit leaves it. It is
/// not where a table and its journal have lost different things.
fn ends_at(view: &dyn View, revision: Revision) -> Result<bool, EngineError> {
    let newest = revision_key(revision);
    let mut found = revision == 0;
    let mut beyond = false;
    for space in [Space::Feed, Space::Deletions] {
        found |= view.get(space, &newest)?.is_some();
        view.range(space, Bound::Excluded(&newest), &mut |_, _| {
            beyond = true;
            ControlFlow::Break(())
        })?;
    }
    Ok(found && !beyond)
}
