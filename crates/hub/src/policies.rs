//! The shared access policies of the hub: names, rights and keys.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldpost_store::documents::{Action, Change, ChangeResult, Condition, Documents};
use fieldpost_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::Chance;
use crate::collections::POLICIES;
use crate::secrets::{Keyring, OpenSecretError, Secret};

/// A set of the rights that Azure IoT Hub's policies grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u8);

impl Rights {
    /// No right.
    pub const NONE: Self = Self(0);
    /// Read the identity registry.
    pub const REGISTRY_READ: Self = Self(1);
    /// Change the identity registry.
    pub const REGISTRY_WRITE: Self = Self(2);
    /// Use the service side: send to devices, read events.
    pub const SERVICE_CONNECT: Self = Self(4);
    /// Speak for devices.
    pub const DEVICE_CONNECT: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);

    /// Whether every right of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::REGISTRY_READ, "RegistryRead"),
            (Self::REGISTRY_WRITE, "RegistryWrite"),
            (Self::SERVICE_CONNECT, "ServiceConnect"),
            (Self::DEVICE_CONNECT, "DeviceConnect"),
        ];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(right, _)| self.contains(*right)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights({self})")
    }
}

/// A shared access policy. Either key is good at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// One of [`POLICY_NAMES`].
    pub name: &'static str,
    /// What its holder may do.
    pub rights: Rights,
    /// The first key: any text, base64 when the hub made it.
    pub primary: Secret,
    /// The second key.
    pub secondary: Secret,
}

/// The names of the policies that every hub has, as in Azure IoT Hub.
pub const POLICY_NAMES: [&str; 5] = [
    "iothubowner",
    "service",
    "device",
    "registryRead",
    "registryReadWrite",
];

fn rights_of(name: &str) -> Rights {
    match name {
        "iothubowner" => Rights::ALL,
        "service" => Rights::SERVICE_CONNECT,
        "device" => Rights::DEVICE_CONNECT,
        "registryRead" => Rights::REGISTRY_READ,
        "registryReadWrite" => Rights::REGISTRY_READ.union(Rights::REGISTRY_WRITE),
        _ => Rights::NONE,
    }
}

/// Why a policy's keys were not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SetKeysError {
    /// There is no such policy.
    #[error("there is no policy of that name")]
    UnknownPolicy,
    /// A key is empty or longer than [`POLICY_KEY_BYTES_MAX`].
    #[error("a key has 1 to {POLICY_KEY_BYTES_MAX} bytes, this one has {length}")]
    KeyLength {
        /// Length of the key in bytes.
        length: usize,
    },
    /// The store did not take the change.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Longest key of a policy in bytes; a bound of our own, far above any key in use.
pub const POLICY_KEY_BYTES_MAX: usize = 1024;

/// Why the policies could not be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadPoliciesError {
    /// A stored policy is not of a form that this version knows.
    #[error("the stored policy {name} is not of a known form")]
    Form {
        /// The policy.
        name: &'static str,
    },
    /// The keys of a stored policy do not open.
    #[error("the keys of policy {name} do not open")]
    Keys {
        /// The policy.
        name: &'static str,
        /// Why.
        #[source]
        error: OpenSecretError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The policies, durable and in memory.
pub(crate) struct Policies {
    documents: Arc<dyn Documents>,
    keyring: Arc<Keyring>,
    chance: Arc<dyn Chance>,
    /// Guards the current policies; nothing else is taken while it is held.
    current: RwLock<Arc<HashMap<&'static str, Policy>>>,
    /// Held across a change, so that memory follows the order of the store.
    changing: tokio::sync::Mutex<()>,
}

impl Policies {
    /// Loads the policies, making those that are missing with random keys.
    pub(crate) async fn open(
        store: &Store,
        keyring: Arc<Keyring>,
        chance: Arc<dyn Chance>,
    ) -> Result<Self, LoadPoliciesError> {
        let policies = Self {
            documents: Arc::clone(&store.documents),
            keyring,
            chance,
            current: RwLock::default(),
            changing: tokio::sync::Mutex::new(()),
        };
        let mut current = HashMap::new();
        let mut missing = Vec::new();
        for name in POLICY_NAMES {
            let key = Bytes::from_static(name.as_bytes());
            let policy = match policies.documents.get(POLICIES, key).await? {
                Some(document) => policies.decode(name, &document.value)?,
                None => {
                    let policy = Policy {
                        name,
                        rights: rights_of(name),
                        primary: random_key(&*policies.chance),
                        secondary: random_key(&*policies.chance),
                    };
                    missing.push(policies.put(&policy, Condition::Absent));
                    policy
                }
            };
            current.insert(name, policy);
        }
        if !missing.is_empty() {
            let results = policies.documents.apply(missing).await?;
            debug_assert!(results.iter().all(|r| matches!(r, ChangeResult::Done(_))));
            tracing::info!(created = results.len(), "policies made with random keys");
        }
        policies.replace(current);
        Ok(policies)
    }

    pub(crate) fn all(&self) -> Vec<Policy> {
        let current = self.current();
        POLICY_NAMES
            .iter()
            .filter_map(|name| current.get(name).cloned())
            .collect()
    }

    /// Names compare without ASCII case.
    pub(crate) fn find(&self, name: &str) -> Option<Policy> {
        let current = self.current();
        current
            .values()
            .find(|policy| policy.name.eq_ignore_ascii_case(name))
            .cloned()
    }

    /// May be dropped at its await: the store then has the new keys and memory the old ones until
    /// the next start, so callers let it run to its end.
    pub(crate) async fn set_keys(
        &self,
        name: &str,
        primary: Secret,
        secondary: Secret,
    ) -> Result<(), SetKeysError> {
        for key in [&primary, &secondary] {
            let length = key.expose().len();
            if !(1..=POLICY_KEY_BYTES_MAX).contains(&length) {
                return Err(SetKeysError::KeyLength { length });
            }
        }
        let _one_at_a_time = self.changing.lock().await;
        let mut policy = self.find(name).ok_or(SetKeysError::UnknownPolicy)?;
        policy.primary = primary;
        policy.secondary = secondary;
        let change = self.put(&policy, Condition::Any);
        self.documents.apply(vec![change]).await?;
        tracing::info!(policy = policy.name, "keys of a policy replaced");
        let mut current = HashMap::clone(&self.current());
        current.insert(policy.name, policy);
        self.replace(current);
        Ok(())
    }

    fn current(&self) -> Arc<HashMap<&'static str, Policy>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn replace(&self, policies: HashMap<&'static str, Policy>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policies);
    }

    fn put(&self, policy: &Policy, condition: Condition) -> Change {
        let plain = Zeroizing::new(format!(
            "{}\0{}",
            STANDARD.encode(policy.primary.expose()),
            STANDARD.encode(policy.secondary.expose())
        ));
        let context = ["policy", policy.name];
        let sealed = self.keyring.seal(&*self.chance, &context, plain.as_bytes());
        let stored = StoredPolicy {
            v: FORM_VERSION,
            keys: STANDARD.encode(sealed),
        };
        Change {
            collection: POLICIES,
            key: Bytes::from_static(policy.name.as_bytes()),
            condition,
            action: Action::Put {
                class: 0,
                value: serde_json::to_vec(&stored)
                    .expect("a struct of plain values is JSON")
                    .into(),
            },
        }
    }

    fn decode(&self, name: &'static str, value: &[u8]) -> Result<Policy, LoadPoliciesError> {
        let form = || LoadPoliciesError::Form { name };
        let stored: StoredPolicy = serde_json::from_slice(value).map_err(|_| form())?;
        if stored.v != FORM_VERSION {
            return Err(form());
        }
        let sealed = STANDARD.decode(&stored.keys).map_err(|_| form())?;
        let plain = self
            .keyring
            .open(&["policy", name], &sealed)
            .map_err(|error| LoadPoliciesError::Keys { name, error })?;
        let plain = str::from_utf8(&plain).map_err(|_| form())?;
        let (primary, secondary) = plain.split_once('\0').ok_or_else(form)?;
        let key = |encoded: &str| -> Option<Secret> {
            let text = STANDARD.decode(encoded).ok()?;
            String::from_utf8(text).ok().map(Secret::new)
        };
        Ok(Policy {
            name,
            rights: rights_of(name),
            primary: key(primary).ok_or_else(form)?,
            secondary: key(secondary).ok_or_else(form)?,
        })
    }
}

const FORM_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct StoredPolicy {
    v: u8,
    /// Both keys, sealed, in base64.
    keys: String,
}

/// A key as Azure makes them: 32 random bytes in base64.
pub(crate) fn random_key(chance: &dyn Chance) -> Secret {
    let mut key = Zeroizing::new([0; 32]);
    chance.fill(key.as_mut_slice());
    Secret::new(STANDARD.encode(key.as_slice()))
}
