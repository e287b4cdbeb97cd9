//! A hub in memory whose time and durability tests move by hand.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::clock::{Chance, Clock, ManualClock, SeededChance, Timer};
use fieldpost_hub::identity::{
    Authentication, AuthenticationSpec, DeviceSpec, ModuleSpec, Thumbprints,
};
use fieldpost_hub::secrets::{Keyring, Secret};
use fieldpost_hub::settings::HubSettings;
use fieldpost_hub::throttles::{Operation, ThrottlingSettings, Tier};
use fieldpost_hub::{Hub, HubConfig, HubParts};
use fieldpost_model::{DeviceId, Identity, PartitionId, Partitioning, StreamId, Timestamp};
use fieldpost_record::RecordView;
use fieldpost_store::log::{EventLog, ReadRequest};
use fieldpost_store::memory::MemoryStore;
use futures_util::FutureExt;
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

    /// A hub in test mode, whose log commits at once.
    pub(crate) async fn in_test_mode() -> Self {
        let mut hub = Self::automatic().await;
        let chance = Arc::new(SeededChance::new(8));
        hub.hub = open_hub(&hub.store, &hub.clock, chance, true).await;
        hub
    }

    /// The same with a chance of the test's own.
    pub(crate) async fn automatic_with(chance: Arc<dyn Chance>) -> Self {
        Self::open_with(MemoryStore::automatic, chance).await
    }

    /// Gives the hub tier S1, and has as many devices connect as can wait for that.
    pub(crate) async fn crowd_of_devices(&self) {
        let settings = HubSettings {
            throttling: ThrottlingSettings {
                tier: Some(Tier::S1),
                units: 1,
            },
            ..HubSettings::clone(&self.hub.settings().get())
        };
        self.hub.settings().apply(settings).await.expect("valid");
        let turn = || {
            self.hub
                .throttles()
                .pass(Operation::Connection)
                .now_or_never()
        };
        while !matches!(turn(), Some(Err(_))) {}
    }

    /// A hub whose log commits only when the test steps `store.log`.
    pub(crate) async fn stepped() -> Self {
        Self::open(MemoryStore::manual).await
    }

    /// Opens the hub anew on what its store holds, as after a crash: the old one is not closed.
    pub(crate) async fn crash(&mut self, chance: Arc<dyn Chance>) {
        self.hub = open_hub(&self.store, &self.clock, chance, false).await;
    }

    async fn open(store: impl FnOnce(Partitioning, Arc<dyn Clock>) -> MemoryStore) -> Self {
        Self::open_with(store, Arc::new(SeededChance::new(7))).await
    }

    async fn open_with(
        store: impl FnOnce(Partitioning, Arc<dyn Clock>) -> MemoryStore,
        chance: Arc<dyn Chance>,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let partitioning = Partitioning::new(4).unwrap();
        let store = store(partitioning, Arc::clone(&clock) as Arc<dyn Clock>);
        let hub = open_hub(&store, &clock, chance, false).await;
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

    /// Registers a module of a device and returns its primary key.
    pub(crate) async fn module(&self, device: &str, module: &str) -> Secret {
        let spec = ModuleSpec {
            device_id: DeviceId::new(device).unwrap(),
            module_id: module.parse().unwrap(),
            authentication: AuthenticationSpec::Unchanged,
            managed_by: None,
        };
        let module = self.hub.registry().create_module(spec).await.unwrap();
        match &module.authentication {
            Authentication::Sas(keys) => keys.primary.clone(),
            other => panic!("keys were asked for, and this came: {other:?}"),
        }
    }

    /// Registers a device that signs in with a certificate of its own, given in DER.
    pub(crate) async fn device_with_certificate(&self, id: &str, certificate: &[u8]) {
        let mut spec = DeviceSpec::new(DeviceId::new(id).unwrap());
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let digits = digest.as_ref().iter().map(|byte| format!("{byte:02X}"));
        spec.authentication = AuthenticationSpec::SelfSigned(Thumbprints {
            primary: Some(digits.collect()),
            secondary: None,
        });
        self.hub.registry().create(spec).await.unwrap();
    }

    /// A token of a policy for the whole hub, signed as IoT Hub clients do.
    pub(crate) fn policy_token(&self, policy: &str) -> String {
        self.policy_token_for(policy, 3600)
    }

    /// The same, good until so many seconds after the start of the test.
    pub(crate) fn policy_token_for(&self, policy: &str, life_s: i64) -> String {
        let key = self.hub.access().policy(policy).unwrap().primary;
        let token = sas_token("localhost", &key, expiry(life_s));
        format!("{token}&skn={policy}")
    }

    /// A registered device or module, as somebody who signed in with its primary key.
    pub(crate) async fn principal(&self, identity: &Identity) -> DevicePrincipal {
        let device = self.hub.registry().get(&identity.device).await.unwrap();
        let device = device.expect("it is registered");
        let Authentication::Sas(keys) = &device.authentication else {
            panic!("keys were asked for")
        };
        let resource = format!("localhost/devices/{}", identity.device);
        let token = sas_token(&resource, &keys.primary, expiry(3600));
        let access = self.hub.access();
        let authenticated = access.authenticate_device(identity, "localhost", &token);
        authenticated.await.unwrap()
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

async fn open_hub(
    store: &MemoryStore,
    clock: &Arc<ManualClock>,
    chance: Arc<dyn Chance>,
    test_mode: bool,
) -> Hub {
    let parts = HubParts {
        store: store.store(),
        timer: Arc::clone(clock) as Arc<dyn Timer>,
        chance,
        keyring: Keyring::new(1, [3; 32]),
        config: HubConfig {
            name: HUB_NAME.to_owned(),
            host_names: vec!["localhost".to_owned(), "hub.localhost".to_owned()],
            test_mode,
            ..HubConfig::default()
        },
    };
    Hub::open(parts).await.unwrap()
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
