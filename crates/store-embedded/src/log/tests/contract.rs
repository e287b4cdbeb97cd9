//! The contract of the log, on files and with threads.

use std::sync::Arc;

use fieldpost_model::Clock;
use fieldpost_store::Store;
use fieldpost_store::suite::{Harness, Setup, Subject, block_on};
use tempfile::TempDir;

use crate::log::LogSettings;
use crate::{EmbeddedConfig, EmbeddedStore};

/// Stores of 64 KiB segments and nearly no memory, so that every path is taken soon.
struct OnFiles {
    tail_bytes: usize,
}

struct Opened {
    directory: TempDir,
    config: EmbeddedConfig,
    clock: Arc<dyn Clock>,
    store: Option<Store>,
}

impl Harness for OnFiles {
    fn create(&self, setup: Setup) -> Box<dyn Subject> {
        let mut config = EmbeddedConfig::new(setup.partitioning);
        config.log = LogSettings {
            segment_bytes_first: 64 << 10,
            segment_bytes_max: 1 << 20,
            tail_bytes: self.tail_bytes,
            reserve_bytes: 0,
            ..LogSettings::default()
        };
        let mut opened = Opened {
            directory: tempfile::tempdir().unwrap(),
            config,
            clock: setup.clock,
            store: None,
        };
        opened.open();
        Box::new(opened)
    }

    fn cases(&self) -> u32 {
        16
    }
}

impl Opened {
    fn open(&mut self) {
        let clock = Arc::clone(&self.clock);
        let path = self.directory.path();
        self.store = Some(EmbeddedStore::open(path, self.config.clone(), clock).unwrap());
    }

    fn close(&mut self) {
        if let Some(store) = self.store.take() {
            block_on(store.log.close());
            block_on(store.documents.close());
            block_on(store.queues.close());
        }
    }
}

impl Subject for Opened {
    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    fn reopen(&mut self) -> bool {
        self.close();
        self.open();
        true
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.close();
        let report = crate::verify(self.directory.path()).unwrap();
        assert!(report.is_sound(), "{report}");
    }
}

mod with_a_tail {
    fieldpost_store::log_contract!(super::OnFiles {
        tail_bytes: 1 << 20
    });
}

mod without_a_tail {
    fieldpost_store::log_contract!(super::OnFiles { tail_bytes: 0 });
}
