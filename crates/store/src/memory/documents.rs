//! Documents in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::ready;

use super::SharedHealth;
use super::switches::Switches;
use crate::documents::{
    Action, Change, ChangeResult, Collection, Condition, Document, Documents, Feed, FeedEntry,
    ListRequest, Page, Revision, check_bounds,
};
use crate::{Answer, StoreError};

/// Deletions that the feed remembers until told otherwise.
const DELETIONS_KEPT: usize = 1_000_000;

/// Documents in memory.
pub struct MemoryDocuments {
    health: SharedHealth,
    deletions_kept: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    documents: BTreeMap<Name, Document>,
    /// The newest change of each document that there is or was.
    feed: BTreeMap<Revision, (Name, bool)>,
    /// Revisions of the deletions in the feed, by document and in order.
    deleted: BTreeMap<Name, Revision>,
    deletions: BTreeSet<Revision>,
    counts: BTreeMap<(Collection, u8), u64>,
    revision: Revision,
    deletions_trimmed: Revision,
    switches: Switches,
}

type Name = (Collection, Bytes);

impl Default for MemoryDocuments {
    fn default() -> Self {
        Self::sharing(SharedHealth::default())
    }
}

impl MemoryDocuments {
    pub(super) fn sharing(health: SharedHealth) -> Self {
        Self {
            health,
            deletions_kept: DELETIONS_KEPT,
            state: Mutex::default(),
        }
    }

    /// Sets how many deletions the feed remembers; before anything is stored.
    #[must_use]
    pub fn with_deletions_kept(mut self, deletions_kept: usize) -> Self {
        self.deletions_kept = deletions_kept;
        self
    }

    /// Makes the next batch of changes fail as a failed sync does: it is lost, and the store is
    /// read-only.
    pub fn fail_next(&self) {
        self.lock().switches.fail_next = true;
    }

    /// Keeps the answers of [`Documents::apply`] back, or lets all that were kept back go, in
    /// order. Changes are made and can be read meanwhile.
    pub fn withhold(&self, withhold: bool) {
        let withheld = self.lock().switches.withhold(withhold);
        withheld.release();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, change: Change) -> ChangeResult {
        let name = (change.collection, change.key);
        let before = self.documents.get(&name);
        let revision = before.map(|document| document.revision);
        let holds = match change.condition {
            Condition::Any => true,
            Condition::Absent => revision.is_none(),
            Condition::Present => revision.is_some(),
            Condition::Revision(wanted) => revision == Some(wanted),
        };
        if !holds {
            return ChangeResult::Refused(revision);
        }
        if before.is_none() && change.action == Action::Delete {
            return ChangeResult::Done(self.revision);
        }
        if let Some(before) = self.documents.remove(&name) {
            self.count(name.0, before.class, false);
            self.feed.remove(&before.revision);
        }
        if let Some(deleted) = self.deleted.remove(&name) {
            self.feed.remove(&deleted);
            self.deletions.remove(&deleted);
        }
        self.revision += 1;
        match change.action {
            Action::Put { class, value } => {
                self.count(name.0, class, true);
                let document = Document {
                    key: name.1.clone(),
                    revision: self.revision,
                    class,
                    value,
                };
                self.documents.insert(name.clone(), document);
                self.feed.insert(self.revision, (name, false));
            }
            Action::Delete => {
                self.deleted.insert(name.clone(), self.revision);
                self.deletions.insert(self.revision);
                self.feed.insert(self.revision, (name, true));
            }
        }
        ChangeResult::Done(self.revision)
    }

    fn count(&mut self, collection: Collection, class: u8, up: bool) {
        let count = self.counts.entry((collection, class)).or_default();
        *count = if up { *count + 1 } else { *count - 1 };
    }

    fn trim_deletions(&mut self, kept: usize) {
        while self.deletions.len() > kept {
            let Some(revision) = self.deletions.pop_first() else {
                return;
            };
            if let Some((name, _)) = self.feed.remove(&revision) {
                self.deleted.remove(&name);
            }
            self.deletions_trimmed = revision;
        }
    }
}

impl Documents for MemoryDocuments {
    fn get(
        &self,
        collection: Collection,
        key: Bytes,
    ) -> Answer<Result<Option<Document>, StoreError>> {
        let document = self.lock().documents.get(&(collection, key)).cloned();
        ready(Ok(document)).boxed()
    }

    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>> {
        let mut state = self.lock();
        let in_bounds = check_bounds(&changes);
        if let Err(refused) = state.switches.admit(&self.health, in_bounds) {
            return ready(Err(refused)).boxed();
        }
        let results = changes
            .into_iter()
            .map(|change| state.apply(change))
            .collect();
        state.trim_deletions(self.deletions_kept);
        state.switches.answer(results)
    }

    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>> {
        let state = self.lock();
        let prefix = request.prefix;
        let from = match request.after {
            Some(after) if after >= prefix => Bound::Excluded((request.collection, after)),
            _ => Bound::Included((request.collection, prefix.clone())),
        };
        let mut found = state
            .documents
            .range((from, Bound::Unbounded))
            .take_while(|((collection, key), _)| {
                *collection == request.collection && key.starts_with(&prefix)
            })
            .map(|(_, document)| document);
        let documents = found.by_ref().take(request.limit.max(1)).cloned().collect();
        let more = found.next().is_some();
        ready(Ok(Page { documents, more })).boxed()
    }

    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Feed, StoreError>> {
        let state = self.lock();
        let entries = state
            .feed
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take(limit)
            .map(|(revision, ((collection, key), deleted))| FeedEntry {
                revision: *revision,
                collection: *collection,
                key: key.clone(),
                deleted: *deleted,
            })
            .collect();
        let feed = Feed {
            entries,
            deletions_trimmed: state.deletions_trimmed,
        };
        ready(Ok(feed)).boxed()
    }

    fn counts(&self, collection: Collection) -> Vec<(u8, u64)> {
        self.lock()
            .counts
            .range((collection, 0)..=(collection, u8::MAX))
            .filter(|(_, count)| **count > 0)
            .map(|((_, class), count)| (*class, *count))
            .collect()
    }

    fn close(&self) -> Answer<()> {
        self.lock().switches.closed = true;
        self.withhold(false);
        ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Health, HealthLevel};

    fn put(documents: &MemoryDocuments) -> Answer<Result<Vec<ChangeResult>, StoreError>> {
        documents.apply(vec![Change {
            collection: Collection(1),
            key: Bytes::from_static(b"key"),
            condition: Condition::Any,
            action: Action::Put {
                class: 0,
                value: Bytes::from_static(b"value"),
            },
        }])
    }

    #[test]
    fn withheld_answers_come_when_they_are_let_go() {
        let documents = MemoryDocuments::default();
        documents.withhold(true);
        let mut answer = put(&documents);
        assert!((&mut answer).now_or_never().is_none());
        documents.withhold(false);
        assert!(matches!(answer.now_or_never(), Some(Ok(results)) if results.len() == 1));
    }

    #[test]
    fn a_failure_loses_the_batch_and_turns_the_store_read_only() {
        let documents = MemoryDocuments::default();
        documents.fail_next();
        for _ in 0..2 {
            assert!(matches!(
                put(&documents).now_or_never(),
                Some(Err(StoreError::ReadOnly { .. }))
            ));
        }
        assert_eq!(documents.counts(Collection(1)), []);
    }

    #[test]
    fn documents_are_held_at_the_second_mark_only() {
        let health = SharedHealth::default();
        let documents = MemoryDocuments::sharing(Arc::clone(&health));
        let check = |level, taken: bool| {
            health.set(Health {
                level,
                reason: None,
            });
            let answer = put(&documents).now_or_never().unwrap();
            assert_eq!(answer.is_ok(), taken, "{level:?}");
        };
        check(HealthLevel::HoldMessages, true);
        check(HealthLevel::HoldAll, false);
        check(HealthLevel::ReadOnly, false);
    }
}
