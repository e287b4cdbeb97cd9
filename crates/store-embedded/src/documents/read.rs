//! Reading: single documents, lists, the change feed, and what opening needs.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use fieldpost_store::StoreError;
use fieldpost_store::documents::{
    Collection, Document, Feed, FeedEntry, ListRequest, Page, Revision,
};

use super::layout::{self, COUNT_PREFIX, STATE_KEY, StateRow, revision_key};
use crate::keyvalue::engine::{EngineError, Space, View};
use crate::keyvalue::{damaged_store, visit};

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
    visit(
        view,
        Space::Documents,
        (from, Bound::Unbounded),
        |name, row| {
            if !name.starts_with(&prefix) {
                return Ok(ControlFlow::Break(()));
            }
            if page.documents.len() == limit {
                page.more = true;
                return Ok(ControlFlow::Break(()));
            }
            page.documents.push(layout::parse_document(name, row)?);
            Ok(ControlFlow::Continue(()))
        },
    )?;
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
pub(crate) struct Loaded {
    pub(crate) state: StateRow,
    pub(crate) counts: BTreeMap<(Collection, u8), u64>,
}

/// Reads what the writer goes on from. Looks at a handful of rows, however many there are.
pub(crate) fn load(view: &dyn View) -> Result<Loaded, StoreError> {
    let state = state(view)?;
    let counts = counts(view)?;
    if !ends_at(view, state.revision)? {
        return Err(damaged_store(format!(
            "the change feed does not end at revision {}, the newest one",
            state.revision
        )));
    }
    Ok(Loaded { state, counts })
}

/// The documents per collection and class.
fn counts(view: &dyn View) -> Result<BTreeMap<(Collection, u8), u64>, StoreError> {
    let mut counts = BTreeMap::new();
    let range = (Bound::Included(COUNT_PREFIX), Bound::Unbounded);
    visit(view, Space::Meta, range, |key, row| {
        let Some(counted) = layout::split_count_key(key) else {
            return Ok(ControlFlow::Break(()));
        };
        counts.insert(counted, layout::parse_count(key, row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(counts)
}

/// Revision and bookkeeping of the last commit.
fn state(view: &dyn View) -> Result<StateRow, StoreError> {
    match view.get(Space::Meta, STATE_KEY)? {
        Some(row) => Ok(layout::parse_state(&row)?),
        None => Err(damaged_store(
            "the row of the documents' state is missing".to_owned(),
        )),
    }
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
    let range = (Bound::Excluded(&from[..]), Bound::Unbounded);
    visit(view, space, range, |key, row| {
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
        let range = (Bound::Excluded(&newest[..]), Bound::Unbounded);
        view.range(space, range, &mut |_, _| {
            beyond = true;
            ControlFlow::Break(())
        })?;
    }
    Ok(found && !beyond)
}
