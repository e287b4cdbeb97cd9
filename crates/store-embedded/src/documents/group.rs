//! What a group of changes does to the documents.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fieldpost_store::StoreError;
use fieldpost_store::documents::{Action, Change, ChangeResult, Collection, Condition, Revision};

use super::layout::{
    self, Name, STATE_KEY, StateRow, change_row, count_key, count_row, deleted_row, document_row,
    name, revision_key, state_row,
};
use crate::keyvalue::engine::{EngineError, Space, View, Writes};

/// Documents per collection and class, as of the last commit.
#[derive(Default)]
pub(crate) struct Counts(Mutex<BTreeMap<(Collection, u8), u64>>);

/// What the writer keeps of the documents from one group to the next.
pub(crate) struct DocumentsWriter {
    pub(crate) state: StateRow,
    pub(crate) counts: Arc<Counts>,
    /// How many deletions the feed remembers; at least 1.
    pub(crate) deletions_kept: u64,
}

impl DocumentsWriter {
    /// Takes over what a group did, once it is durable.
    pub(crate) fn committed(&mut self, done: DocumentsDone) {
        self.state = done.state;
        self.counts.set(done.counts);
    }
}

/// What a group did, for the next one.
pub(crate) struct DocumentsDone {
    state: StateRow,
    counts: BTreeMap<(Collection, u8), u64>,
}

impl Counts {
    pub(crate) fn new(counts: BTreeMap<(Collection, u8), u64>) -> Self {
        Self(Mutex::new(counts))
    }

    pub(super) fn of(&self, collection: Collection) -> Vec<(u8, u64)> {
        self.lock()
            .range((collection, 0)..=(collection, u8::MAX))
            .map(|((_, class), count)| (*class, *count))
            .collect()
    }

    fn get(&self, counted: (Collection, u8)) -> u64 {
        self.lock().get(&counted).copied().unwrap_or(0)
    }

    fn set(&self, changed: BTreeMap<(Collection, u8), u64>) {
        let mut counts = self.lock();
        for (counted, count) in changed {
            if count == 0 {
                counts.remove(&counted);
            } else {
                counts.insert(counted, count);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Collection, u8), u64>> {
        // Nothing under the lock panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is or was under a name.
#[derive(Clone, Copy)]
enum Standing {
    Present {
        revision: Revision,
        class: u8,
    },
    /// With the revision of its deletion, which the feed may have forgotten since.
    Absent {
        deleted: Option<Revision>,
    },
}

/// Decides the changes of one group against the durable state and what the group did so far.
pub(crate) struct DocumentsGroup<'a> {
    view: &'a dyn View,
    writer: &'a DocumentsWriter,
    state: StateRow,
    counts: BTreeMap<(Collection, u8), u64>,
    names: HashMap<Name, Standing>,
    /// Deletions that the group made, and those that it took back.
    deletions: BTreeMap<Revision, Option<Name>>,
    /// The last word on each key; `None` removes.
    rows: BTreeMap<(Space, Vec<u8>), Option<Vec<u8>>>,
}

impl<'a> DocumentsGroup<'a> {
    pub(crate) fn new(view: &'a dyn View, writer: &'a DocumentsWriter) -> Self {
        Self {
            view,
            writer,
            state: writer.state,
            counts: BTreeMap::new(),
            names: HashMap::new(),
            deletions: BTreeMap::new(),
            rows: BTreeMap::new(),
        }
    }

    pub(crate) fn take_batch(
        &mut self,
        changes: Vec<Change>,
    ) -> Result<Vec<ChangeResult>, StoreError> {
        // Everything that can fail comes before the first change, so that a batch whose documents
        // are damaged is left out as a whole.
        let mut names = Vec::with_capacity(changes.len());
        for change in &changes {
            let name = name(change.collection, &change.key);
            if !self.names.contains_key(&name) {
                let standing = self.look_up(&name)?;
                self.names.insert(name.clone(), standing);
            }
            names.push(name);
        }
        let results = changes
            .into_iter()
            .zip(names)
            .map(|(change, name)| self.take_change(change, name))
            .collect();
        self.trim_deletions();
        Ok(results)
    }

    fn look_up(&self, name: &[u8]) -> Result<Standing, StoreError> {
        if let Some(row) = self.view.get(Space::Documents, name)? {
            let (revision, class) = layout::parse_document_head(name, &row)?;
            return Ok(Standing::Present { revision, class });
        }
        let deleted = match self.view.get(Space::Deleted, name)? {
            Some(row) => Some(layout::parse_deleted(name, &row)?),
            None => None,
        };
        Ok(Standing::Absent { deleted })
    }

    fn take_change(&mut self, change: Change, name: Name) -> ChangeResult {
        let standing = self
            .names
            .get(&name)
            .copied()
            .unwrap_or(Standing::Absent { deleted: None });
        let current = match standing {
            Standing::Present { revision, .. } => Some(revision),
            Standing::Absent { .. } => None,
        };
        let holds = match change.condition {
            Condition::Any => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Revision(wanted) => current == Some(wanted),
        };
        if !holds {
            return ChangeResult::Refused(current);
        }
        if current.is_none() && change.action == Action::Delete {
            return ChangeResult::Done(self.state.revision);
        }

        self.state.revision += 1;
        let revision = self.state.revision;
        self.take_back(standing, change.collection, &name);
        let standing = match change.action {
            Action::Put { class, value } => {
                let row = document_row(&name, revision, class, &value);
                self.put(Space::Documents, name.clone(), row);
                self.write_change(Space::Feed, revision, &name);
                *self.count(change.collection, class) += 1;
                Standing::Present { revision, class }
            }
            Action::Delete => {
                self.remove(Space::Documents, name.clone());
                self.write_change(Space::Deletions, revision, &name);
                let row = deleted_row(&name, revision);
                self.put(Space::Deleted, name.clone(), row);
                self.deletions.insert(revision, Some(name.clone()));
                self.state.deletions += 1;
                Standing::Absent {
                    deleted: Some(revision),
                }
            }
        };
        self.names.insert(name, standing);
        ChangeResult::Done(revision)
    }

    /// Takes what a name stood for out of feed and counts.
    fn take_back(&mut self, standing: Standing, collection: Collection, name: &[u8]) {
        match standing {
            Standing::Present { revision, class } => {
                self.remove(Space::Feed, revision_key(revision));
                let count = self.count(collection, class);
                *count = count.saturating_sub(1);
            }
            Standing::Absent {
                deleted: Some(revision),
            } if revision > self.state.deletions_trimmed => {
                self.forget_deletion(revision, Some(name));
            }
            Standing::Absent { .. } => {}
        }
    }

    fn forget_deletion(&mut self, revision: Revision, name: Option<&[u8]>) {
        self.remove(Space::Deletions, revision_key(revision));
        if let Some(name) = name {
            self.remove(Space::Deleted, name.to_vec());
        }
        self.deletions.insert(revision, None);
        self.state.deletions = self.state.deletions.saturating_sub(1);
    }

    fn write_change(&mut self, space: Space, revision: Revision, name: &[u8]) {
        let key = revision_key(revision);
        let row = change_row(space, &key, name);
        self.put(space, key, row);
    }

    fn count(&mut self, collection: Collection, class: u8) -> &mut u64 {
        let counted = (collection, class);
        self.counts
            .entry(counted)
            .or_insert_with(|| self.writer.counts.get(counted))
    }

    /// Forgets the oldest deletions beyond the bound.
    fn trim_deletions(&mut self) {
        let kept = self.writer.deletions_kept;
        let surplus = self.state.deletions.saturating_sub(kept);
        if surplus == 0 {
            return;
        }
        // When they cannot be read, the next batch tries again; a failing disk shows elsewhere.
        let Ok(oldest) = self.oldest_deletions(surplus) else {
            return;
        };
        for (revision, name) in oldest {
            self.forget_deletion(revision, name.as_deref());
            self.state.deletions_trimmed = revision;
        }
    }

    /// Each with its document, unless its row is damaged.
    fn oldest_deletions(&self, count: u64) -> Result<Vec<(Revision, Option<Name>)>, EngineError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut oldest = Vec::new();
        // Older keys are gone, and a search from the first key would walk over their remains.
        let from = revision_key(self.state.deletions_trimmed);
        let range = (Bound::Excluded(&from[..]), Bound::Unbounded);
        self.view.range(Space::Deletions, range, &mut |key, row| {
            if oldest.len() == count {
                return ControlFlow::Break(());
            }
            let Ok(revision) = layout::split_revision_key(Space::Deletions, key) else {
                return ControlFlow::Continue(());
            };
            if !self.deletions.contains_key(&revision) {
                // A damaged row is forgotten like another; what it leaves in the other table
                // is told by its age.
                let name = layout::parse_change(Space::Deletions, key, row)
                    .map(|(collection, key)| name(collection, key))
                    .ok();
                oldest.push((revision, name));
            }
            ControlFlow::Continue(())
        })?;
        let made = self
            .deletions
            .range(self.writer.state.revision + 1..)
            .filter(|(_, name)| name.is_some())
            .map(|(revision, name)| (*revision, name.clone()));
        let missing = count - oldest.len();
        oldest.extend(made.take(missing));
        Ok(oldest)
    }

    /// Adds the rows of what has changed to the writes.
    pub(crate) fn finish(mut self, writes: &mut Writes) -> DocumentsDone {
        if self.state.revision != self.writer.state.revision {
            self.put(Space::Meta, STATE_KEY.to_vec(), state_row(self.state));
        }
        for ((collection, class), count) in &self.counts {
            let key = count_key(*collection, *class);
            let row = (*count > 0).then(|| count_row(&key, *count));
            self.rows.insert((Space::Meta, key), row);
        }
        for ((space, key), row) in &self.rows {
            match row {
                Some(row) => writes.put(*space, key, row),
                None => writes.remove(*space, |out| out.extend_from_slice(key)),
            }
        }
        DocumentsDone {
            state: self.state,
            counts: self.counts,
        }
    }

    fn put(&mut self, space: Space, key: Vec<u8>, row: Vec<u8>) {
        self.rows.insert((space, key), Some(row));
    }

    fn remove(&mut self, space: Space, key: Vec<u8>) {
        self.rows.insert((space, key), None);
    }
}
