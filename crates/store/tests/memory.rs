//! The memory engine keeps the contract.

use std::sync::Arc;

use fieldpost_store::Store;
use fieldpost_store::memory::{MemoryDocuments, MemoryLog, MemoryQueues};
use fieldpost_store::suite::{Harness, Setup, Subject};

struct Memory;

struct MemorySubject {
    log: Arc<MemoryLog>,
    documents: Arc<MemoryDocuments>,
    queues: Arc<MemoryQueues>,
}

impl Harness for Memory {
    fn create(&self, setup: Setup) -> Box<dyn Subject> {
        Box::new(MemorySubject {
            log: Arc::new(MemoryLog::automatic(setup.partitioning, setup.clock)),
            documents: Arc::new(
                MemoryDocuments::default().with_deletions_kept(setup.deletions_kept),
            ),
            queues: Arc::new(MemoryQueues::default()),
        })
    }
}

impl Subject for MemorySubject {
    fn store(&self) -> Store {
        Store {
            log: Arc::clone(&self.log) as _,
            documents: Arc::clone(&self.documents) as _,
            queues: Arc::clone(&self.queues) as _,
        }
    }

    fn reopen(&mut self) -> bool {
        false
    }

    fn housekeep(&mut self) -> bool {
        self.log.housekeep();
        true
    }
}

mod log {
    fieldpost_store::log_contract!(super::Memory);
}

mod documents {
    fieldpost_store::documents_contract!(super::Memory);
}

mod queues {
    fieldpost_store::queues_contract!(super::Memory);
}
