//! Device queues on the key-value store.

mod depths;
mod gaps;
pub(crate) mod group;
mod lanes;
pub(crate) mod layout;
pub(crate) mod read;
pub(crate) mod tally;
pub(crate) mod verify;

use std::sync::Arc;

use fieldpost_model::Timestamp;
use fieldpost_store::queues::{
    DeviceQueues, DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue,
    Operation, OperationResult, Outcome, QueueName, QueuePage, check_bounds,
};
use fieldpost_store::{Answer, StoreError};
use futures_util::FutureExt;
use futures_util::future::ready;

use crate::keyvalue::{Facet, Request};
use gaps::Gaps;
use group::QueuesWriter;
use lanes::Lanes;
use read::Loaded;
use tally::Pass;

/// Device queues in a key-value store that they share with documents.
///
/// [`DeviceQueues::close`] before dropping them; dropping them alone finishes what was submitted in
/// the background.
pub struct EmbeddedQueues {
    facet: Facet,
    lanes: Arc<Lanes>,
    gaps: Arc<Gaps>,
}

impl EmbeddedQueues {
    /// The facet, and what the writer keeps for it.
    pub(crate) fn new(facet: Facet, loaded: Loaded, pass: Arc<Pass>) -> (Self, QueuesWriter) {
        let lanes = Arc::new(Lanes::new(loaded.lanes));
        let gaps = Arc::default();
        let writer =
            QueuesWriter::new(loaded.sequence, Arc::clone(&lanes), Arc::clone(&gaps), pass);
        (Self { facet, lanes, gaps }, writer)
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
        let gaps = Arc::clone(&self.gaps);
        self.facet
            .read(move |engine| read::due(engine, &gaps, &request))
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        let gaps = Arc::clone(&self.gaps);
        self.facet
            .read(move |engine| read::next_due(engine, &gaps, after))
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        self.facet
            .read(move |engine| read::outcomes(&*engine.snapshot(), &request))
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.lanes.figures(lane)
    }

    fn close(&self) -> Answer<()> {
        self.facet.close()
    }
}
