//! What several fuzz targets need.

use std::sync::Arc;

use fieldpost_hub::clock::{ManualClock, SeededChance, Timer};
use fieldpost_hub::secrets::Keyring;
use fieldpost_hub::{Hub, HubConfig, HubParts};
use fieldpost_model::{Clock, Partitioning, Timestamp};
use fieldpost_store::memory::MemoryStore;
use tokio::runtime::{Builder, Runtime};

/// When everything happens: 2027-01-15T08:00:00Z.
pub const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A hub in memory named `hub`, which clients call `hub.localhost`, and what runs it.
pub fn hub() -> (Runtime, Hub) {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let clock = Arc::new(ManualClock::new(NOW));
    let partitioning = Partitioning::new(4).expect("in range");
    let store = MemoryStore::automatic(partitioning, Arc::clone(&clock) as Arc<dyn Clock>);
    let hub = runtime
        .block_on(Hub::open(HubParts {
            store: store.store(),
            timer: clock as Arc<dyn Timer>,
            chance: Arc::new(SeededChance::new(7)),
            keyring: Keyring::new(1, [3; 32]),
            config: HubConfig {
                name: "hub".to_owned(),
                host_names: vec!["hub.localhost".to_owned()],
                ..HubConfig::default()
            },
        }))
        .expect("a hub starts on an empty store");
    (runtime, hub)
}

/// The first lines of a text and all that is behind them; what is missing is empty.
pub fn lines<const N: usize>(text: &str) -> [&str; N] {
    let mut parts = text.splitn(N, '\n');
    [(); N].map(|()| parts.next().unwrap_or_default())
}
