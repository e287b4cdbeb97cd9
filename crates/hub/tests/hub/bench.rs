//! A hub in memory, the handles that steer it, and the clients' side of tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::clock::{Clock, ManualClock, SeededChance};
use fieldpost_hub::identity::{Authentication, Device, DeviceSpec};
use fieldpost_hub::secrets::{Keyring, Secret};
use fieldpost_hub::{Hub, HubConfig, HubParts, OpenError};
use fieldpost_model::{
    AuthKind, AuthScope, AuthStamp, DeviceId, Identity, Partitioning, Timestamp,
};
use fieldpost_store::documents::{
    Change, ChangeResult, Collection, Document, Documents, Feed, ListRequest, Page, Revision,
};
use fieldpost_store::memory::MemoryStore;
use fieldpost_store::{Answer, Store, StoreError};
use ring::hmac;

pub(crate) const HOST: &str = "hub1.example.test";

/// 2027-01-02T03:04:05Z
pub(crate) const NOW_SECONDS: u64 = 1_798_859_045;

pub(crate) struct Bench {
    pub(crate) hub: Hub,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) memory: MemoryStore,
    pub(crate) documents: Arc<CountedDocuments>,
    config: HubConfig,
    starts: AtomicU64,
}

impl Bench {
    /// Batches are durable as soon as they are submitted.
    pub(crate) async fn start() -> Self {
        Self::with(MemoryStore::automatic, |_| {}).await
    }

    /// Batches are durable when the log is stepped.
    pub(crate) async fn start_stepped() -> Self {
        Self::with(MemoryStore::manual, |_| {}).await
    }

    pub(crate) async fn with(
        memory: fn(Partitioning, Arc<dyn Clock>) -> MemoryStore,
        change: impl FnOnce(&mut HubConfig),
    ) -> Self {
        let now = i64::try_from(NOW_SECONDS).unwrap() * 1000;
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(now)));
        let memory = memory(Partitioning::new(4).unwrap(), Arc::clone(&clock) as _);
        let documents = Arc::new(CountedDocuments {
            inner: Arc::clone(&memory.documents) as _,
            gets: AtomicU64::new(0),
        });
        let mut config = HubConfig {
            host_names: vec![HOST.to_owned(), "localhost".to_owned()],
            ..HubConfig::default()
        };
        change(&mut config);
        let hub = open(&memory, &documents, &clock, config.clone(), 1)
            .await
            .unwrap();
        Self {
            hub,
            clock,
            memory,
            documents,
            config,
            starts: AtomicU64::new(1),
        }
    }

    /// A second hub on the same store, as after a restart.
    pub(crate) async fn reopen(
        &self,
        change: impl FnOnce(&mut HubConfig),
    ) -> Result<Hub, OpenError> {
        let mut config = self.config.clone();
        change(&mut config);
        let seed = self.starts.fetch_add(1, Ordering::Relaxed) + 1;
        open(&self.memory, &self.documents, &self.clock, config, seed).await
    }

    pub(crate) async fn device(&self, id: &str) -> Arc<Device> {
        self.hub.registry().create(spec(id)).await.unwrap()
    }

    pub(crate) async fn principal(&self, id: &str) -> DevicePrincipal {
        let device = self.device(id).await;
        principal_of(&device)
    }

    /// A device of this bench at another hub on the same store.
    pub(crate) async fn authenticated(&self, hub: &Hub, id: &str) -> DevicePrincipal {
        let id = DeviceId::new(id).unwrap();
        let device = hub.registry().get(&id).await.unwrap().unwrap();
        principal_of(&device)
    }

    /// What a client sends that knows the device's first key.
    pub(crate) async fn authenticate(
        &self,
        id: &str,
        key: &Secret,
    ) -> Result<DevicePrincipal, fieldpost_hub::auth::AuthError> {
        let token = device_token(id, key, NOW_SECONDS + 60);
        let identity = identity(id);
        self.hub
            .access()
            .authenticate_device(&identity, HOST, &token)
            .await
    }
}

async fn open(
    memory: &MemoryStore,
    documents: &Arc<CountedDocuments>,
    clock: &Arc<ManualClock>,
    config: HubConfig,
    seed: u64,
) -> Result<Hub, OpenError> {
    Hub::open(HubParts {
        store: Store {
            log: Arc::clone(&memory.log) as _,
            documents: Arc::clone(documents) as _,
            queues: Arc::clone(&memory.queues) as _,
        },
        timer: Arc::clone(clock) as _,
        chance: Arc::new(SeededChance::new(seed)),
        keyring: Keyring::new(1, [7; 32]),
        config,
    })
    .await
}

/// Documents that count how often one is read by its key.
pub(crate) struct CountedDocuments {
    inner: Arc<dyn Documents>,
    gets: AtomicU64,
}

impl CountedDocuments {
    /// Reads since the last call.
    pub(crate) fn take_gets(&self) -> u64 {
        self.gets.swap(0, Ordering::Relaxed)
    }
}

impl Documents for CountedDocuments {
    fn get(
        &self,
        collection: Collection,
        key: Bytes,
    ) -> Answer<Result<Option<Document>, StoreError>> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.inner.get(collection, key)
    }

    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>> {
        self.inner.apply(changes)
    }

    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>> {
        self.inner.list(request)
    }

    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Feed, StoreError>> {
        self.inner.changes(after, limit)
    }

    fn counts(&self, collection: Collection) -> Vec<(u8, u64)> {
        self.inner.counts(collection)
    }

    fn close(&self) -> Answer<()> {
        self.inner.close()
    }
}

pub(crate) fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

pub(crate) fn identity(text: &str) -> Identity {
    match text.split_once('/') {
        None => Identity::of_device(id(text)),
        Some((device, module)) => Identity {
            device: id(device),
            module: Some(module.parse().unwrap()),
        },
    }
}

pub(crate) fn spec(text: &str) -> DeviceSpec {
    DeviceSpec::new(id(text))
}

pub(crate) fn keys(device: &Device) -> (Secret, Secret) {
    match &device.authentication {
        Authentication::Sas(keys) => (keys.primary.clone(), keys.secondary.clone()),
        other => panic!("no keys: {other:?}"),
    }
}

pub(crate) fn principal_of(device: &Device) -> DevicePrincipal {
    DevicePrincipal {
        identity: Identity::of_device(device.device_id.clone()),
        generation_id: Arc::clone(&device.generation_id),
        stamp: AuthStamp {
            scope: AuthScope::Device,
            kind: AuthKind::Sas,
        },
        partition: Partitioning::new(4)
            .unwrap()
            .partition_of(&device.device_id),
        expires: Timestamp::from_millis(i64::MAX),
    }
}

/// A token as the device SDKs make it: the key decoded, the resource percent-encoded.
pub(crate) fn device_token(id: &str, key: &Secret, expires: u64) -> String {
    token(
        &format!("{HOST}/devices/{id}"),
        &decoded(key),
        expires,
        None,
    )
}

/// A token as IoT Hub's service SDKs make it.
pub(crate) fn policy_token(resource: &str, policy: &str, key: &Secret, expires: u64) -> String {
    token(resource, &decoded(key), expires, Some(policy))
}

/// A token as Event Hubs clients make it: signed with the text of the key.
pub(crate) fn event_hubs_token(resource: &str, policy: &str, key: &Secret, expires: u64) -> String {
    token(resource, key.expose().as_bytes(), expires, Some(policy))
}

fn decoded(key: &Secret) -> Vec<u8> {
    STANDARD.decode(key.expose()).unwrap()
}

fn token(resource: &str, key: &[u8], expires: u64, policy: Option<&str>) -> String {
    let encode = |text: &str| -> String {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let resource = encode(resource);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signature = hmac::sign(&key, format!("{resource}\n{expires}").as_bytes());
    let signature = encode(&STANDARD.encode(signature));
    let policy = policy
        .map(|name| format!("&skn={name}"))
        .unwrap_or_default();
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}{policy}")
}

/// A context for polling by hand.
pub(crate) fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Lets the hub's own tasks run until nothing of theirs is left to do.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
