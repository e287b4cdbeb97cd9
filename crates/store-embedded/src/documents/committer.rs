//! The one writer: groups what is waiting, decides each change, writes once, answers everybody.
//!
//! The engine holds its lock while it syncs, so that callers on many threads would each pay for a
//! sync of their own. Grouping is therefore done here.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fieldpost_store::StoreError;
use fieldpost_store::documents::{Action, Change, ChangeResult, Collection, Condition, Revision};
use tokio::sync::oneshot;

use super::engine::{Engine, EngineError, Space, View, Writes};
use super::layout::{
    self, Name, STATE_KEY, StateRow, change_row, count_key, count_row, deleted_row, document_row,
    name, revision_key, state_row,
};
use super::queue::Queue;
use crate::health::StoreHealth;

/// The most bytes of keys and values that one group takes, unless a single batch is larger.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What each change is taken for besides its key and value.
const CHANGE_BYTES: usize = 64;

/// A batch and whom to answer.
pub(super) struct Request {
    changes: Vec<Change>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<Vec<ChangeResult>, StoreError>;

/// Documents per collection and class, as of the last commit.
#[derive(Default)]
pub(super) struct Counts(Mutex<BTreeMap<(Collection, u8), u64>>);

/// The state of the writer's thread.
pub(super) struct Committer {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) health: Arc<StoreHealth>,
    pub(super) counts: Arc<Counts>,
    pub(super) state: StateRow,
    /// How many deletions the feed remembers; at least 1.
    pub(super) deletions_kept: u64,
}

impl Request {
    pub(super) fn new(changes: Vec<Change>) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let bytes = changes.iter().map(change_bytes).sum();
        let request = Self {
            changes,
            bytes,
            answer,
        };
        (request, answered)
    }
}

impl Counts {
    pub(super) fn new(counts: BTreeMap<(Collection, u8), u64>) -> Self {
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

impl Committer {
    /// Commits groups until the queue is closed and empty.
    pub(super) fn run(&mut self, queue: &Queue<Request>) {
        loop {
            let mut bytes = 0usize;
            let requests = queue.take(|request| {
                bytes = bytes.saturating_add(request.bytes);
                bytes <= GROUP_BYTES_MAX
            });
            if requests.is_empty() {
                return;
            }
            // An engine that trips over its own files must not take the waiting callers with it.
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(requests)));
            if committed.is_err() {
                self.health.fail("the writer of documents panicked");
            }
        }
    }

    fn commit(&mut self, requests: Vec<Request>) {
        if let Some(error) = self.health.failure() {
            refuse(requests, &error);
            return;
        }
        let engine = Arc::clone(&self.engine);
        let view = engine.snapshot();
        let mut group = Group::new(&*view, self.state, &self.counts);
        let mut answers = Vec::with_capacity(requests.len());
        for Request {
            changes, answer, ..
        } in requests
        {
            let result = group.take_batch(changes, self.deletions_kept);
            answers.push((answer, result));
        }
        let Group {
            state,
            counts: changed,
            writes,
            ..
        } = group.finish();
        drop(view);
        if !writes.is_empty()
            && let Err(error) = engine.apply(writes)
        {
            self.health.fail(format!("writing documents: {error}"));
            let error = self.health.failure().unwrap_or(StoreError::Closed);
            for (answer, _) in answers {
                let _ = answer.send(Err(error.clone()));
            }
            return;
        }
        self.state = state;
        self.counts.set(changed);
        for (answer, result) in answers {
            // Whoever gave up waiting needs no answer.
            let _ = answer.send(result);
        }
    }
}

fn refuse(requests: Vec<Request>, error: &StoreError) {
    for request in requests {
        let _ = request.answer.send(Err(error.clone()));
    }
}

fn change_bytes(change: &Change) -> usize {
    let value = match &change.action {
        Action::Put { value, .. } => value.len(),
        Action::Delete => 0,
    };
    CHANGE_BYTES + change.key.len() + value
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
struct Group<'a> {
    view: &'a dyn View,
    /// The newest revision before the group.
    base: Revision,
    state: StateRow,
    counted: &'a Counts,
    counts: BTreeMap<(Collection, u8), u64>,
    names: HashMap<Name, Standing>,
    /// Deletions that the group made, and those that it took back.
    deletions: BTreeMap<Revision, Option<Name>>,
    writes: Writes,
}

impl<'a> Group<'a> {
    fn new(view: &'a dyn View, state: StateRow, counted: &'a Counts) -> Self {
        Self {
            view,
            base: state.revision,
            state,
            counted,
            counts: BTreeMap::new(),
            names: HashMap::new(),
            deletions: BTreeMap::new(),
            writes: Writes::default(),
        }
    }

    fn take_batch(&mut self, changes: Vec<Change>, deletions_kept: u64) -> Answer {
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
        self.trim_deletions(deletions_kept);
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
                self.writes.put(Space::Documents, name.clone(), row);
                self.write_change(Space::Feed, revision, &name);
                *self.count(change.collection, class) += 1;
                Standing::Present { revision, class }
            }
            Action::Delete => {
                self.writes.remove(Space::Documents, name.clone());
                self.write_change(Space::Deletions, revision, &name);
                let row = deleted_row(&name, revision);
                self.writes.put(Space::Deleted, name.clone(), row);
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
                self.writes.remove(Space::Feed, revision_key(revision));
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
        self.writes.remove(Space::Deletions, revision_key(revision));
        if let Some(name) = name {
            self.writes.remove(Space::Deleted, name.to_vec());
        }
        self.deletions.insert(revision, None);
        self.state.deletions = self.state.deletions.saturating_sub(1);
    }

    fn write_change(&mut self, space: Space, revision: Revision, name: &[u8]) {
        let key = revision_key(revision);
        let row = change_row(space, &key, name);
        self.writes.put(space, key, row);
    }

    fn count(&mut self, collection: Collection, class: u8) -> &mut u64 {
        let counted = (collection, class);
        self.counts
            .entry(counted)
            .or_insert_with(|| self.counted.get(counted))
    }

    /// Forgets the oldest deletions beyond the bound.
    fn trim_deletions(&mut self, kept: u64) {
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
        self.view
            .range(Space::Deletions, Bound::Excluded(&from), &mut |key, row| {
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
            .range(self.base + 1..)
            .filter(|(_, name)| name.is_some())
            .map(|(revision, name)| (*revision, name.clone()));
        let missing = count - oldest.len();
        oldest.extend(made.take(missing));
        Ok(oldest)
    }

    /// Adds the rows that go with every change.
    fn finish(mut self) -> Self {
        if self.state.revision != self.base {
            self.writes
                .put(Space::Meta, STATE_KEY.to_vec(), state_row(self.state));
        }
        for ((collection, class), count) in &self.counts {
            let key = count_key(*collection, *class);
            if *count == 0 {
                self.writes.remove(Space::Meta, key);
            } else {
                let row = count_row(&key, *count);
                self.writes.put(Space::Meta, key, row);
            }
        }
        self
    }
}
