//! Embedded documents and queues keep the contract.

use std::path::Path;
use std::sync::Arc;

use fieldpost_store::Store;
use fieldpost_store::memory::MemoryLog;
use fieldpost_store::suite::{Harness, Setup, Subject, block_on};
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::keyvalue::{KeyValueConfig, KeyValueStore, verify};
use tempfile::TempDir;

struct Embedded;

struct EmbeddedSubject {
    setup: Setup,
    folder: TempDir,
    /// None while it is being opened again.
    store: Option<Store>,
}

impl Harness for Embedded {
    fn create(&self, setup: Setup) -> Box<dyn Subject> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = Some(open(folder.path(), &setup));
        Box::new(EmbeddedSubject {
            setup,
            folder,
            store,
        })
    }

    fn cases(&self) -> u32 {
        32
    }
}

impl Subject for EmbeddedSubject {
    fn store(&self) -> Store {
        self.store.clone().expect("open")
    }

    fn reopen(&mut self) -> bool {
        self.close();
        let damage = verify(&self.folder.path().join("documents")).expect("closed");
        assert_eq!(damage, [""; 0]);
        self.store = Some(open(self.folder.path(), &self.setup));
        true
    }
}

impl EmbeddedSubject {
    fn close(&mut self) {
        if let Some(store) = self.store.take() {
            block_on(store.documents.close());
            block_on(store.queues.close());
        }
    }
}

impl Drop for EmbeddedSubject {
    /// The directory is removed after this.
    fn drop(&mut self) {
        self.close();
    }
}

fn open(folder: &Path, setup: &Setup) -> Store {
    let config = KeyValueConfig {
        deletions_kept: setup.deletions_kept,
    };
    let health = Arc::new(StoreHealth::new());
    let KeyValueStore { documents, queues } =
        KeyValueStore::open_with(&folder.join("documents"), health, &config).expect("it opens");
    Store {
        log: Arc::new(MemoryLog::automatic(
            setup.partitioning,
            Arc::clone(&setup.clock) as _,
        )),
        documents: Arc::new(documents),
        queues: Arc::new(queues),
    }
}

mod documents {
    fieldpost_store::documents_contract!(super::Embedded);
}

mod queues {
    fieldpost_store::queues_contract!(super::Embedded);
}
