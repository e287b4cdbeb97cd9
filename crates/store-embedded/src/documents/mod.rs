//! Documents on the key-value store.

pub(crate) mod group;
pub(crate) mod layout;
pub(crate) mod read;
pub(crate) mod verify;

use std::sync::Arc;

use bytes::Bytes;
use fieldpost_store::documents::{
    Change, ChangeResult, Collection, Document, Documents, Feed, ListRequest, Page, Revision,
    check_bounds,
};
use fieldpost_store::{Answer, StoreError};
use futures_util::FutureExt;
use futures_util::future::ready;

use crate::keyvalue::{Facet, Request};
use group::{Counts, DocumentsWriter};
use read::Loaded;

/// Documents in a key-value store that they share with device queues.
///
/// [`Documents::close`] before dropping them; dropping them alone finishes what was submitted in
/// the background.
pub struct EmbeddedDocuments {
    facet: Facet,
    counts: Arc<Counts>,
}

impl EmbeddedDocuments {
    /// The facet, and what the writer keeps for it.
    pub(crate) fn new(
        facet: Facet,
        loaded: Loaded,
        deletions_kept: usize,
    ) -> (Self, DocumentsWriter) {
        let counts = Arc::new(Counts::new(loaded.counts));
        let writer = DocumentsWriter {
            state: loaded.state,
            counts: Arc::clone(&counts),
            deletions_kept: deletions_kept.max(1) as u64,
        };
        (Self { facet, counts }, writer)
    }
}

impl Documents for EmbeddedDocuments {
    fn get(
        &self,
        collection: Collection,
        key: Bytes,
    ) -> Answer<Result<Option<Document>, StoreError>> {
        self.facet
            .read(move |engine| read::get(&*engine.snapshot(), collection, &key))
    }

    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>> {
        if let Err(refused) = check_bounds(&changes) {
            return ready(Err(refused)).boxed();
        }
        self.facet
            .write(|answer| Request::Documents { changes, answer })
    }

    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>> {
        self.facet
            .read(move |engine| read::list(&*engine.snapshot(), &request))
    }

    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Feed, StoreError>> {
        self.facet
            .read(move |engine| read::changes(&*engine.snapshot(), after, limit))
    }

    fn counts(&self, collection: Collection) -> Vec<(u8, u64)> {
        self.counts.of(collection)
    }

    fn close(&self) -> Answer<()> {
        self.facet.close()
    }
}
