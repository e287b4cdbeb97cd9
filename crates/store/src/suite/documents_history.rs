//! Random histories of documents, compared with a model.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Harness, Setup, Subject, block_on, setup};
use crate::documents::{
    Action, Change, ChangeResult, Collection, Condition, Document, Feed, FeedEntry, ListRequest,
    Page, Revision,
};

/// Deletions that the feed remembers, few enough to be forgotten often.
const DELETIONS_KEPT: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// Batches that are in flight together.
    Apply(Vec<Vec<Planned>>),
    List {
        collection: u8,
        prefix: Vec<u8>,
        after: Option<Vec<u8>>,
        limit: usize,
    },
    Changes {
        after: Revision,
        limit: usize,
    },
    Reopen,
}

/// A change whose condition may depend on what is there at its turn.
#[derive(Clone, Debug)]
struct Planned {
    collection: u8,
    key: Vec<u8>,
    condition: PlannedCondition,
    put: Option<(u8, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug)]
enum PlannedCondition {
    Any,
    Absent,
    Present,
    CurrentRevision,
    Revision(Revision),
}

/// What is or was under a key: the newest change, and the document unless it is gone.
#[derive(Clone, Debug)]
struct Entry {
    revision: Revision,
    document: Option<(u8, Vec<u8>)>,
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<(u8, Vec<u8>), Entry>,
    revision: Revision,
    deletions_trimmed: Revision,
}

/// Batches, lists, feeds, counts and reopening in any order.
pub fn random_document_histories_agree_with_the_model(harness: &dyn Harness) {
    let config = Config {
        cases: harness.cases(),
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&vec(step(), 1..40), |steps| {
        let mut subject = harness.create(Setup {
            deletions_kept: DELETIONS_KEPT,
            ..setup(1)
        });
        let mut model = Model::default();
        for step in steps {
            take(&step, &mut *subject, &mut model)?;
            same_counts(&*subject, &model)?;
        }
        same_documents(&*subject, &model)?;
        if subject.reopen() {
            same_documents(&*subject, &model)?;
            same_counts(&*subject, &model)?;
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn step() -> impl Strategy<Value = Step> {
    let after = prop::option::of(key());
    prop_oneof![
        10 => vec(vec(planned(), 0..6), 1..5).prop_map(Step::Apply),
        4 => (0u8..3, prefix(), after, 1usize..5).prop_map(
            |(collection, prefix, after, limit)| Step::List {
                collection,
                prefix,
                after,
                limit,
            }
        ),
        4 => (0u64..60, 0usize..6).prop_map(|(after, limit)| Step::Changes { after, limit }),
        1 => Just(Step::Reopen),
    ]
}

/// Few keys, so that histories meet, some of them prefixes of others.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        b"a".to_vec(),
        b"ab".to_vec(),
        b"abc".to_vec(),
        b"b".to_vec(),
        vec![0],
        vec![0xff],
        vec![0xff, 0xff],
    ])
}

fn prefix() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), key()]
}

fn planned() -> impl Strategy<Value = Planned> {
    let condition = prop_oneof![
        4 => Just(PlannedCondition::Any),
        1 => Just(PlannedCondition::Absent),
        1 => Just(PlannedCondition::Present),
        2 => Just(PlannedCondition::CurrentRevision),
        1 => (0u64..40).prop_map(PlannedCondition::Revision),
    ];
    let put = prop::option::weighted(0.6, (0u8..3, vec(any::<u8>(), 0..40)));
    (0u8..2, key(), condition, put).prop_map(|(collection, key, condition, put)| Planned {
        collection,
        key,
        condition,
        put,
    })
}

fn take(step: &Step, subject: &mut dyn Subject, model: &mut Model) -> Result<(), TestCaseError> {
    let documents = subject.store().documents;
    match step {
        Step::Apply(batches) => {
            let mut answers = Vec::new();
            for batch in batches {
                let mut expected = Vec::new();
                let mut changes = Vec::new();
                for planned in batch {
                    let change = model.settle(planned);
                    expected.push(model.apply(&change));
                    changes.push(change);
                }
                model.trim_deletions();
                answers.push((expected, documents.apply(changes)));
            }
            for (expected, answer) in answers {
                prop_assert_eq!(block_on(answer).unwrap(), expected);
            }
            for ((collection, key), entry) in &model.entries {
                let key = Bytes::copy_from_slice(key);
                let found = block_on(documents.get(Collection(*collection), key.clone())).unwrap();
                prop_assert_eq!(found, entry.document(key));
            }
        }
        Step::List {
            collection,
            prefix,
            after,
            limit,
        } => {
            let mut expected = model.documents(*collection);
            expected.retain(|document| {
                document.key.starts_with(prefix)
                    && after.as_ref().is_none_or(|after| document.key > after)
            });
            let more = expected.len() > *limit;
            expected.truncate(*limit);
            let request = ListRequest {
                collection: Collection(*collection),
                prefix: Bytes::copy_from_slice(prefix),
                after: after.as_deref().map(Bytes::copy_from_slice),
                limit: *limit,
            };
            let found = block_on(documents.list(request)).unwrap();
            prop_assert_eq!(
                found,
                Page {
                    documents: expected,
                    more
                }
            );
        }
        Step::Changes { after, limit } => {
            let found = block_on(documents.changes(*after, *limit)).unwrap();
            prop_assert_eq!(found, model.feed(*after, *limit));
        }
        Step::Reopen => {
            drop(documents);
            subject.reopen();
        }
    }
    Ok(())
}

fn same_counts(subject: &dyn Subject, model: &Model) -> Result<(), TestCaseError> {
    for collection in 0..3 {
        let mut expected = BTreeMap::new();
        for document in model.documents(collection) {
            *expected.entry(document.class).or_insert(0u64) += 1;
        }
        prop_assert_eq!(
            subject.store().documents.counts(Collection(collection)),
            expected.into_iter().collect::<Vec<_>>()
        );
    }
    Ok(())
}

fn same_documents(subject: &dyn Subject, model: &Model) -> Result<(), TestCaseError> {
    let documents = subject.store().documents;
    for collection in 0..3 {
        let request = ListRequest {
            collection: Collection(collection),
            prefix: Bytes::new(),
            after: None,
            limit: 1_000,
        };
        let page = block_on(documents.list(request)).unwrap();
        prop_assert_eq!(page.documents, model.documents(collection));
    }
    let feed = block_on(documents.changes(0, 1_000)).unwrap();
    prop_assert_eq!(feed, model.feed(0, 1_000));
    Ok(())
}

impl Model {
    fn current(&self, collection: u8, key: &[u8]) -> Option<Revision> {
        self.entries
            .get(&(collection, key.to_vec()))
            .filter(|entry| entry.document.is_some())
            .map(|entry| entry.revision)
    }

    fn settle(&self, planned: &Planned) -> Change {
        let condition = match planned.condition {
            PlannedCondition::Any => Condition::Any,
            PlannedCondition::Absent => Condition::Absent,
            PlannedCondition::Present => Condition::Present,
            PlannedCondition::Revision(revision) => Condition::Revision(revision),
            PlannedCondition::CurrentRevision => Condition::Revision(
                self.current(planned.collection, &planned.key)
                    .unwrap_or_default(),
            ),
        };
        Change {
            collection: Collection(planned.collection),
            key: Bytes::copy_from_slice(&planned.key),
            condition,
            action: match &planned.put {
                Some((class, value)) => Action::Put {
                    class: *class,
                    value: Bytes::copy_from_slice(value),
                },
                None => Action::Delete,
            },
        }
    }

    fn apply(&mut self, change: &Change) -> ChangeResult {
        let current = self.current(change.collection.0, &change.key);
        let holds = match change.condition {
            Condition::Any => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Revision(revision) => current == Some(revision),
        };
        if !holds {
            return ChangeResult::Refused(current);
        }
        let document = match &change.action {
            Action::Put { class, value } => Some((*class, value.to_vec())),
            Action::Delete if current.is_none() => return ChangeResult::Done(self.revision),
            Action::Delete => None,
        };
        self.revision += 1;
        let entry = Entry {
            revision: self.revision,
            document,
        };
        self.entries
            .insert((change.collection.0, change.key.to_vec()), entry);
        ChangeResult::Done(self.revision)
    }

    /// The feed forgets after each batch.
    fn trim_deletions(&mut self) {
        let mut deletions: Vec<_> = self
            .entries
            .values()
            .filter(|entry| entry.document.is_none())
            .map(|entry| entry.revision)
            .collect();
        deletions.sort_unstable();
        let surplus = deletions.len().saturating_sub(DELETIONS_KEPT);
        if let Some(newest) = deletions[..surplus].last() {
            self.deletions_trimmed = *newest;
            self.entries
                .retain(|_, entry| entry.document.is_some() || entry.revision > *newest);
        }
    }

    fn documents(&self, collection: u8) -> Vec<Document> {
        self.entries
            .iter()
            .filter(|((at, _), _)| *at == collection)
            .filter_map(|((_, key), entry)| entry.document(Bytes::copy_from_slice(key)))
            .collect()
    }

    fn feed(&self, after: Revision, limit: usize) -> Feed {
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.revision > after)
            .map(|((collection, key), entry)| FeedEntry {
                revision: entry.revision,
                collection: Collection(*collection),
                key: Bytes::copy_from_slice(key),
                deleted: entry.document.is_none(),
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.revision);
        entries.truncate(limit);
        Feed {
            entries,
            deletions_trimmed: self.deletions_trimmed,
        }
    }
}

impl Entry {
    fn document(&self, key: Bytes) -> Option<Document> {
        self.document.as_ref().map(|(class, value)| Document {
            key,
            revision: self.revision,
            class: *class,
            value: Bytes::copy_from_slice(value),
        })
    }
}
