//! Walking over all documents, offline.

use std::collections::BTreeMap;

use fieldpost_store::StoreError;
use fieldpost_store::documents::{Collection, Revision};

use super::layout::{self, Name, StateRow};
use super::read::Loaded;
use crate::keyvalue::engine::{Space, View};
use crate::keyvalue::verify::{self, Damage, Fingerprint};

/// Checks every row of the documents, and that documents, change feed and counts agree.
pub(crate) fn walk(
    view: &dyn View,
    loaded: &Loaded,
    damage: &mut Damage,
) -> Result<(), StoreError> {
    let mut walk = Walk {
        view,
        kept: loaded.state,
        damage,
    };
    walk.all(&loaded.counts)
}

/// With the state row.
type Walk<'a> = verify::Walk<'a, StateRow>;

impl Walk<'_> {
    fn all(&mut self, counts: &BTreeMap<(Collection, u8), u64>) -> Result<(), StoreError> {
        let mut counted = BTreeMap::new();
        let mut documents = Fingerprint::default();
        self.each(Space::Documents, |walk, name, row| {
            let (revision, class) = layout::parse_document_head(name, row)?;
            walk.check_revision(Space::Documents, name, revision);
            documents.add(name, &revision.to_le_bytes());
            if let Some((collection, _)) = layout::split_name(name) {
                *counted.entry((collection, class)).or_insert(0u64) += 1;
            }
            Ok(())
        })?;
        let feed = self.fingerprint_of_changes(Space::Feed)?;
        let deletions = self.fingerprint_of_changes(Space::Deletions)?;
        let mut deleted = Fingerprint::default();
        let state = self.kept;
        let view = self.view;
        let mut failed = None;
        self.each(Space::Deleted, |walk, name, row| {
            let revision = layout::parse_deleted(name, row)?;
            walk.check_revision(Space::Deleted, name, revision);
            // Older ones are remains that nobody looks at.
            if revision <= state.deletions_trimmed {
                return Ok(());
            }
            deleted.add(name, &revision.to_le_bytes());
            match view.get(Space::Documents, name) {
                Ok(None) => {}
                Ok(Some(_)) => walk.damage.add(format!(
                    "table deleted: {} was deleted at revision {revision} and is a document",
                    shown(name)
                )),
                Err(error) => failed = Some(error),
            }
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }

        for ((collection, class), count) in &counted {
            self.check_count(*collection, *class, *count, counts);
        }
        for ((collection, class), count) in counts {
            if !counted.contains_key(&(*collection, *class)) {
                self.damage.add(format!(
                    "count of collection {}, class {class}: {count}, and there are no such documents",
                    collection.0
                ));
            }
        }
        if deletions.pairs != self.kept.deletions {
            self.damage.add(format!(
                "count of deletions: {}, and there are {}",
                self.kept.deletions, deletions.pairs
            ));
        }
        if documents != feed {
            self.compare(Space::Documents, Space::Feed)?;
        }
        if deleted != deletions {
            self.compare(Space::Deleted, Space::Deletions)?;
        }
        Ok(())
    }

    fn fingerprint_of_changes(&mut self, space: Space) -> Result<Fingerprint, StoreError> {
        let mut fingerprint = Fingerprint::default();
        self.each(space, |walk, key, row| {
            let revision = layout::split_revision_key(space, key)?;
            let (collection, document) = layout::parse_change(space, key, row)?;
            let name = layout::name(collection, document);
            walk.check_revision(space, &name, revision);
            fingerprint.add(&name, &revision.to_le_bytes());
            Ok(())
        })?;
        Ok(fingerprint)
    }

    fn check_revision(&mut self, space: Space, name: &[u8], revision: Revision) {
        if revision == 0 || revision > self.kept.revision {
            self.damage.add(format!(
                "table {}, {}: revision {revision} was never given out; the newest is {}",
                space.name(),
                shown(name),
                self.kept.revision
            ));
        }
    }

    fn check_count(
        &mut self,
        collection: Collection,
        class: u8,
        found: u64,
        counts: &BTreeMap<(Collection, u8), u64>,
    ) {
        let kept = counts.get(&(collection, class)).copied().unwrap_or(0);
        if kept != found {
            self.damage.add(format!(
                "count of collection {}, class {class}: {kept}, and there are {found} documents",
                collection.0
            ));
        }
    }

    /// Finds the pairs of two tables that do not agree: one by name, one by revision.
    fn compare(&mut self, by_name: Space, by_revision: Space) -> Result<(), StoreError> {
        let view = self.view;
        let trimmed = self.kept.deletions_trimmed;
        let mut failed = None;
        self.each(by_name, |walk, name, row| {
            let revision = if by_name == Space::Documents {
                layout::parse_document_head(name, row)?.0
            } else {
                layout::parse_deleted(name, row)?
            };
            if by_name == Space::Deleted && revision <= trimmed {
                return Ok(());
            }
            let key = layout::revision_key(revision);
            let there = match view.get(by_revision, &key) {
                Ok(Some(row)) => layout::parse_change(by_revision, &key, &row)
                    .is_ok_and(|(collection, key)| layout::name(collection, key) == name),
                Ok(None) => false,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            };
            if !there {
                walk.damage.add(format!(
                    "table {}: no row for {} at revision {revision}",
                    by_revision.name(),
                    shown(name)
                ));
            }
            Ok(())
        })?;
        self.each(by_revision, |walk, key, row| {
            let revision = layout::split_revision_key(by_revision, key)?;
            let (collection, document) = layout::parse_change(by_revision, key, row)?;
            let name: Name = layout::name(collection, document);
            let found = match view.get(by_name, &name) {
                Ok(Some(row)) if by_name == Space::Documents => {
                    layout::parse_document_head(&name, &row)
                        .ok()
                        .map(|(revision, _)| revision)
                }
                Ok(Some(row)) => layout::parse_deleted(&name, &row).ok(),
                Ok(None) => None,
                Err(error) => {
                    failed = Some(error);
                    None
                }
            };
            if found != Some(revision) {
                walk.damage.add(format!(
                    "table {}, revision {revision}: {} is not at this revision in table {}",
                    by_revision.name(),
                    shown(&name),
                    by_name.name()
                ));
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

fn shown(name: &[u8]) -> String {
    match layout::split_name(name) {
        Some((collection, key)) => format!("{}/{}", collection.0, key.escape_ascii()),
        None => name.escape_ascii().to_string(),
    }
}
