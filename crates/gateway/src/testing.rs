//! A hub in memory whose time and durability tests move by hand.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldpost_hub::clock::{Clock, ManualClock, SeededChance, Timer};
use fieldpost_hub::identity::{Authentication, AuthenticationSpec, DeviceSpec};
use fieldpost_hub::secrets::{Keyring, Secret};
use fieldpost_hub::{Hub, HubConfig, HubParts};
use fieldpost_model::{DeviceId, PartitionId, Partitioning, StreamId, Timestamp};
use fieldpost_record::RecordView;
use fieldpost_store::log::{EventLog, ReadRequest};
use fieldpost_store::memory::MemoryStore;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;

/// When tests begin: 2027-01-15T08:00:00Z.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The name of the hub in tests; `localhost` is the name that clients use.
pub(crate) const HUB_NAME: &str = "hub";

/// A hub on a store in memory.
pub(crate) struct TestHub {
    pub(crate) hub: Hub,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: MemoryStore,
}

/// What a test looks at in a stored event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SeenEvent {
    pub(crate) body: String,
    pub(crate) properties: Vec<(String, Option<String>)>,
}

impl TestHub {
    /// A hub whose log commits at once.
    pub(crate) async fn automatic() -> Self {
        Self::open(MemoryStore::automatic).await
    }

    /// A hub whose log commits only when the test steps `store.log`.
    pub(crate) async fn stepped() -> Self {
        Self::open(MemoryStore::manual).await
    }

    async fn open(store: impl FnOnce(Partitioning, Arc<dyn Clock>) -> MemoryStore) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let partitioning = Partitioning::new(4).unwrap();
        let store = store(partitioning, Arc::clone(&clock) as Arc<dyn Clock>);
        let hub = Hub::open(HubParts {
            store: store.store(),
            timer: Arc::clone(&clock) as Arc<dyn Timer>,
            chance: Arc::new(SeededChance::new(7)),
            keyring: Keyring::new(1, [3; 32]),
            config: HubConfig {
                name: HUB_NAME.to_owned(),
                host_names: vec!["localhost".to_owned(), "hub.localhost".to_owned()],
                ..HubConfig::default()
            },
        })
        .await
        .unwrap();
        Self { hub, clock, store }
    }

    /// Registers a device and returns its primary key.
    pub(crate) async fn device(&self, id: &str) -> Secret {
        let mut spec = DeviceSpec::new(DeviceId::new(id).unwrap());
        spec.authentication = AuthenticationSpec::Sas {
            primary: None,
            secondary: None,
        };
        let device = self.hub.registry().create(spec).await.unwrap();
        match &device.authentication {
            Authentication::Sas(keys) => keys.primary.clone(),
            other => panic!("keys were asked for, and this came: {other:?}"),
        }
    }

    /// A token of a policy for the whole hub, signed as IoT Hub clients do.
    pub(crate) fn policy_token(&self, policy: &str) -> String {
        let key = self.hub.access().policy(policy).unwrap().primary;
        let token = sas_token("localhost", &key, expiry(3600));
        format!("{token}&skn={policy}")
    }

    /// Everything stored for a device's partition.
    pub(crate) async fn events(&self, device: &str) -> Vec<SeenEvent> {
        let log = &self.store.log;
        let partition: PartitionId = log
            .partitioning()
            .partition_of(&DeviceId::new(device).unwrap());
        let records = log
            .read(ReadRequest {
                stream: StreamId::BUILT_IN,
                partition,
                from: 0,
                bytes_max: usize::MAX,
                records_max: usize::MAX,
            })
            .await
            .unwrap();
        let seen = |data: &[u8]| {
            let view = RecordView::parse(data).unwrap();
            SeenEvent {
                body: String::from_utf8(view.body().unwrap_or_default().to_vec()).unwrap(),
                properties: view
                    .properties()
                    .map(|(name, value)| (name.to_string(), value.map(|v| v.to_string())))
                    .collect(),
            }
        };
        records
            .records
            .iter()
            .map(|record| seen(&record.data))
            .collect()
    }
}

/// Seconds since 1970, so many seconds after the start of the test.
pub(crate) fn expiry(after_s: i64) -> i64 {
    START.as_millis() / 1000 + after_s
}

/// A token over `resource`, signed with the decoded key.
pub(crate) fn sas_token(resource: &str, key: &Secret, expiry_s: i64) -> String {
    let resource = utf8_percent_encode(resource, NON_ALPHANUMERIC).to_string();
    let key = STANDARD.decode(key.expose()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = hmac::sign(&key, format!("{resource}\n{expiry_s}").as_bytes());
    let signature = STANDARD.encode(signature);
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry_s}")
}
