//! Device queues on the key-value store.

mod depths;
mod gaps;
pub(crate) mod group;
mod lanes;
pub(crate) mod layout;
pub(crate) mod read;
pub(crate) mod tally;
pub(crate) mod verify;
mod walk;

use std::sync::Arc;

use fieldpost_model::Timestamp;
use fieldpost_store::queues::{
    DeviceQueues, DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue,
    Operation, OperationResult, Outcome, QueueName, QueuePage, check_bounds,
};
use fieldpost_store::{Answer, Health, StoreError};
use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::watch;

use crate::keyvalue::{Facet, Request};
use group::QueuesWriter;
use lanes::Lanes;
use read::{Expiry, Loaded};
use tally::Pass;

/// Device queues in a key-value store that they share with documents.
///
/// [`DeviceQueues::close`] before dropping them; dropping them alone finishes what was submitted in
/// the background.
pub struct EmbeddedQueues {
    facet: Facet,
    lanes: Arc<Lanes>,
    expiry: Arc<Expiry>,
}

impl EmbeddedQueues {
    /// The facet, and what the writer keeps for it.
    pub(crate) fn new(facet: Facet, loaded: Loaded, pass: Arc<Pass>) -> (Self, QueuesWriter) {
        let lanes = Arc::new(Lanes::new(loaded.lanes));
        let expiry = Arc::default();
        let sequence = loaded.sequence;
        let writer = QueuesWriter::new(sequence, Arc::clone(&lanes), Arc::clone(&expiry), pass);
        let queues = Self {
            facet,
            lanes,
            expiry,
        };
        (queues, writer)
    }
}

impl DeviceQueues for EmbeddedQueues {
    fn apply(
        &self,
        operations: Vec<Operation>,
    ) -> Answer<Result<Vec<OperationResult>, StoreError>> {
        if let Err(refused) = check_bounds(&operations) {
            return ready(Err(refused)).boxed();
        }
        self.facet
            .write(|answer| Request::Queues { operations, answer })
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        self.facet
            .read(move |engine| read::list(&*engine.snapshot(), &request))
    }

    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        self.facet
            .read(move |engine| read::depths(&*engine.snapshot(), &queues))
    }

    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>> {
        let expiry = Arc::clone(&self.expiry);
        self.facet
            .read(move |engine| read::due(engine, &expiry, &request))
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        let expiry = Arc::clone(&self.expiry);
        self.facet
            .read(move |engine| read::next_due(engine, &expiry, after))
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        self.facet
            .read(move |engine| read::outcomes(&*engine.snapshot(), &request))
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.lanes.figures(lane)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.facet.health_of_queues()
    }

    fn close(&self) -> Answer<()> {
        self.facet.close()
    }
}
