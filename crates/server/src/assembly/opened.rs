//! A hub on its store, as `serve` and the commands open it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::Router;
use fieldpost_hub::{Hub, HubConfig, HubParts};
use fieldpost_model::Partitioning;
use fieldpost_store::Store;
use fieldpost_store_embedded::{DiskMarks, EmbeddedConfig, EmbeddedStore, OpenError};

use super::lock::{DataLock, LockError};
use crate::admin::{self, AdminParts, Reach};
use crate::clock::{SystemChance, SystemClock};
use crate::config::{Config, ListenerName};
use crate::{admin::AMQPS_PORT, files, keyfile, trust};

/// A hub that this process has opened.
pub(crate) struct OpenedHub {
    /// The hub.
    pub(crate) hub: Hub,
    /// Its clock.
    pub(crate) clock: Arc<SystemClock>,
    reach: Reach,
    _lock: DataLock,
}

/// Opens the hub of a data directory for one command, beside no running hub.
pub(crate) async fn open_for_command(config: &Config) -> anyhow::Result<OpenedHub> {
    files::prepare_data_directory(&config.data)?;
    let lock = DataLock::take(&config.data)?;
    open(config, lock, Purpose::Command).await
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To serve devices.
    Serve,
    /// For one command of the command line, which works on test stores and others alike.
    Command,
}

/// Opens the store, then the hub.
pub(super) async fn open(
    config: &Config,
    lock: DataLock,
    purpose: Purpose,
) -> anyhow::Result<OpenedHub> {
    let chance = Arc::new(SystemChance::default());
    let keyring = keyfile::load(&config.store.key_file, store_exists(config), &*chance)?;
    let clock = Arc::new(if config.test_mode {
        SystemClock::movable()
    } else {
        SystemClock::new()
    });
    let store = open_store(config, Arc::clone(&clock), purpose).await?;
    let hub = Hub::open(HubParts {
        store,
        timer: Arc::clone(&clock) as _,
        chance,
        keyring,
        config: hub_config(config),
    })
    .await
    .context("open the hub")?;
    let amqps = config.listener(ListenerName::Amqps).port;
    let emulator = config.listener(ListenerName::Amqp);
    let emulator_address = emulator
        .address
        .filter(|_| emulator.enabled && emulator.port != 0);
    Ok(OpenedHub {
        hub,
        clock,
        reach: Reach {
            host_name: config.host_name.clone(),
            amqps_port: Some(amqps).filter(|port| ![0, AMQPS_PORT].contains(port)),
            emulator: emulator_address.map(|address| (address, emulator.port).into()),
        },
        _lock: lock,
    })
}

async fn open_store(
    config: &Config,
    clock: Arc<SystemClock>,
    purpose: Purpose,
) -> anyhow::Result<Store> {
    let path = store_path(config);
    let mut engine = engine_config(config);
    if config.test_mode && store_exists(config) {
        refuse_to_mark_a_store_in_use(&path, &engine, Arc::clone(&clock)).await?;
    }
    // Opening reads files, which may take long.
    let store = tokio::task::spawn_blocking(move || {
        match EmbeddedStore::open(&path, engine.clone(), Arc::clone(&clock) as _) {
            Err(OpenError::TestStore { .. }) if purpose == Purpose::Command => {
                engine.mark_as_test = true;
                EmbeddedStore::open(&path, engine, clock)
            }
            opened => opened,
        }
    });
    Ok(store.await??)
}

/// A store is marked for good, and a clock that was moved does not go back: a slip on the command
/// line must not take a hub that has served devices out of service.
async fn refuse_to_mark_a_store_in_use(
    path: &Path,
    engine: &EmbeddedConfig,
    clock: Arc<SystemClock>,
) -> anyhow::Result<()> {
    let mut unmarked = engine.clone();
    unmarked.mark_as_test = false;
    let folder = path.to_owned();
    let opened =
        tokio::task::spawn_blocking(move || EmbeddedStore::open(&folder, unmarked, clock)).await?;
    let store = match opened {
        // It is a test store already.
        Err(OpenError::TestStore { .. }) => return Ok(()),
        opened => opened?,
    };
    let holds_data = fieldpost_hub::holds_data(&store).await;
    store.log.close().await;
    store.documents.close().await;
    store.queues.close().await;
    if holds_data.context("look into the store")? {
        bail!(
            "the store in {} was made outside test mode and holds devices, events or messages, and would be a test store for good; use another data directory for tests",
            path.display()
        );
    }
    Ok(())
}

/// How the storage engine is run.
pub(crate) fn engine_config(config: &Config) -> EmbeddedConfig {
    let partitioning = Partitioning::new(config.seed.partition_count)
        .expect("the configuration has checked the number of partitions");
    let mut engine = EmbeddedConfig::new(partitioning);
    engine.mark_as_test = config.test_mode;
    let log = &mut engine.log;
    log.segment_bytes_max = config.store.segment_bytes;
    log.segment_bytes_first = log.segment_bytes_first.min(config.store.segment_bytes);
    log.tail_bytes = config.store.recent_bytes;
    log.marks = DiskMarks {
        hold_messages: config.store.hold_messages_below_bytes,
        hold_all: config.store.hold_all_below_bytes,
    };
    engine
}

/// Whether a hub was ever opened in the data directory.
pub(crate) fn store_exists(config: &Config) -> bool {
    store_path(config).exists()
}

/// Where the storage engine keeps its files.
pub(crate) fn store_path(config: &Config) -> PathBuf {
    config.data.join("store")
}

/// Whether opening failed because another process is at it.
pub(crate) fn is_locked(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LockError::Held { .. }))
}

impl OpenedHub {
    /// The admin routes, without guards.
    pub(crate) fn admin_router(&self) -> Router {
        admin::routes(AdminParts {
            hub: self.hub.clone(),
            reach: Arc::new(self.reach.clone()),
            movable_clock: None,
            changing_settings: Arc::default(),
        })
    }

    /// Makes everything durable, closes the store, and lets go of the data directory.
    pub(crate) async fn close(self) {
        self.hub.close().await;
    }
}

fn hub_config(config: &Config) -> HubConfig {
    let mut host_names = trust::built_in_names(&config.hub_name);
    host_names.extend(config.names());
    HubConfig {
        name: config.hub_name.clone(),
        host_names,
        in_flight_bytes: config.in_flight_bytes,
        device_bound_bytes: config.device_bound_bytes,
        test_mode: config.test_mode,
        seed: config.seed.clone(),
    }
}
