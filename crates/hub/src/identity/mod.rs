//! The identity registry: devices, their credentials and status.
//!
//! Devices live in the documents facet and nowhere else; memory holds a bounded cache of those that
//! were used lately. This process is the only writer, so a change forgets the cached device before
//! it returns.

mod bulk;
mod cache;
mod device;
mod document;
mod module;
mod rules;
mod write;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fieldpost_model::limits::REGISTRY_LIST_MAX;
use fieldpost_model::{DeviceId, Identity};
use fieldpost_store::documents::{Documents, ListRequest};
use fieldpost_store::{Store, StoreError};
use tokio::sync::{Semaphore, mpsc};

pub use bulk::{BulkDone, BulkItem, BulkMode, UnknownBulkMode};
pub use device::{
    Authentication, AuthenticationSpec, Device, DeviceSpec, DeviceStatus, SymmetricKeys,
    Thumbprints,
};
pub(crate) use module::Registered;
pub use module::{MODULES_MAX, Module, ModuleSpec};
pub use rules::{
    InvalidDevice, KEY_BYTES_RANGE, MANAGED_BY_CHARS_MAX, PARENT_SCOPES_MAX, SCOPE_CHARS_MAX,
    THUMBPRINT_DIGITS,
};

use crate::clock::{Chance, Timer};
use crate::collections::DEVICES;
use crate::presence::Owners;
use crate::secrets::Keyring;
use cache::{DeviceCache, Lookup};
use write::{Match, Operation};

/// The identity registry. Cloning is cheap.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    documents: Arc<dyn Documents>,
    keyring: Arc<Keyring>,
    chance: Arc<dyn Chance>,
    timer: Arc<dyn Timer>,
    owners: Owners,
    cache: DeviceCache,
    /// The last generation id given out; each one is larger than the one before.
    last_generation: AtomicU64,
    /// Who is told of deletions.
    deletions: OnceLock<mpsc::UnboundedSender<DeletedDevice>>,
    /// One permit per write on its way; all of them together mean that there is none.
    writes: Arc<Semaphore>,
    /// Held across a change of a module; nothing else is taken while it is held.
    writing_modules: tokio::sync::Mutex<()>,
}

/// Writes under way at the same time; further ones wait for a turn.
const WRITES_MAX: u32 = 256;

/// What must hold for a change of a device.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Precondition {
    /// Nothing was asked.
    #[default]
    None,
    /// That there is such a device, whatever its state.
    Any,
    /// That the device is as it was when it had this entity tag.
    ETag(String),
}

impl Precondition {
    /// From an entity tag without quotes; `*` is any.
    #[must_use]
    pub fn matching(etag: &str) -> Self {
        match etag {
            "*" => Self::Any,
            _ => Self::ETag(etag.to_owned()),
        }
    }
}

/// A device or module that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeletedDevice {
    pub(crate) identity: Identity,
    pub(crate) generation_id: Arc<str>,
}

/// Devices in the order of their ids.
#[derive(Clone, Debug, Default)]
pub struct DevicePage {
    /// The devices.
    pub devices: Vec<Device>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// How many devices there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatistics {
    /// All of them.
    pub total: u64,
    /// Those that may connect.
    pub enabled: u64,
    /// Those that may not.
    pub disabled: u64,
}

/// Why a registry operation was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such device.
    #[error("there is no such device")]
    NotFound,
    /// There is one already.
    #[error("there is a device or module of that id already")]
    AlreadyExists,
    /// There is no such module.
    #[error("there is no such module")]
    ModuleNotFound,
    /// The device has [`MODULES_MAX`] modules already.
    #[error("a device has at most {MODULES_MAX} modules")]
    TooManyModules,
    /// The device or module is not as the entity tag says.
    #[error("the device or module has changed")]
    PreconditionFailed,
    /// The device stands twice in one bulk request; the first one counts.
    #[error("the device stands twice in the request")]
    DefinedTwice,
    /// A field is not what it must be.
    #[error(transparent)]
    InvalidArgument(#[from] InvalidDevice),
    /// The store did not carry it out.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Registry {
    pub(crate) fn new(
        store: &Store,
        keyring: Arc<Keyring>,
        chance: Arc<dyn Chance>,
        timer: Arc<dyn Timer>,
        owners: Owners,
    ) -> Self {
        Self(Arc::new(Inner {
            documents: Arc::clone(&store.documents),
            keyring,
            chance,
            timer,
            owners,
            cache: DeviceCache::default(),
            last_generation: AtomicU64::new(0),
            deletions: OnceLock::new(),
            writes: Arc::new(Semaphore::new(WRITES_MAX as usize)),
            writing_modules: tokio::sync::Mutex::new(()),
        }))
    }

    /// Tells of every device that is deleted from now on, once that is durable. To be asked for
    /// once. What waits to be heard is bounded by how fast devices can be deleted.
    pub(crate) fn watch_deletions(&self) -> mpsc::UnboundedReceiver<DeletedDevice> {
        let (tell, told) = mpsc::unbounded_channel();
        let is_first = self.0.deletions.set(tell).is_ok();
        debug_assert!(is_first, "somebody else is told of deletions");
        told
    }

    /// A device that was used lately, without a look at the store.
    pub(crate) fn get_cached(&self, id: &DeviceId) -> Option<Arc<Device>> {
        match self.0.cache.look_up(id) {
            Lookup::Hit(device) => Some(device),
            Lookup::Miss(_) => None,
        }
    }

    /// Reads a device.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn get(&self, id: &DeviceId) -> Result<Option<Arc<Device>>, StoreError> {
        let ticket = match self.0.cache.look_up(id) {
            Lookup::Hit(device) => return Ok(Some(device)),
            Lookup::Miss(ticket) => ticket,
        };
        let Some(device) = self.0.read(id).await? else {
            return Ok(None);
        };
        let device = Arc::new(device);
        self.0.cache.fill(id, ticket, &device);
        Ok(Some(device))
    }

    /// Registers a device. Durable when it returns; carried out even if the caller goes away.
    ///
    /// # Errors
    /// [`RegistryError::AlreadyExists`], or when a field is not what it must be.
    pub async fn create(&self, device: DeviceSpec) -> Result<Arc<Device>, RegistryError> {
        self.write_device(Operation::Create, device).await
    }

    /// Replaces a device's fields; keys and status that are not given stay. Durable when it
    /// returns; carried out even if the caller goes away. A device that is disabled loses its
    /// connection before this returns.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::PreconditionFailed`], or when a field is not
    /// what it must be.
    pub async fn update(
        &self,
        device: DeviceSpec,
        precondition: Precondition,
    ) -> Result<Arc<Device>, RegistryError> {
        self.write_device(Operation::Update(precondition.into()), device)
            .await
    }

    /// Removes a device with its sessions and ends its connections. Durable when it returns;
    /// carried out even if the caller goes away.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] or [`RegistryError::PreconditionFailed`].
    pub async fn delete(
        &self,
        id: &DeviceId,
        precondition: Precondition,
    ) -> Result<(), RegistryError> {
        let operation = Operation::Delete(precondition.into());
        self.write_one(operation, DeviceSpec::new(id.clone()))
            .await
            .map(|_| ())
    }

    /// Carries out many changes as one batch; each stands alone. Results come in the order of the
    /// items. Carried out even if the caller goes away.
    pub async fn bulk(&self, items: Vec<BulkItem>) -> Vec<Result<BulkDone, RegistryError>> {
        let operations = items.into_iter().map(BulkItem::into_operation).collect();
        self.write(operations).await
    }

    /// Reads devices in the order of their ids, at most `limit` (and 1,000) of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<DevicePage, RegistryError> {
        let page = self
            .0
            .documents
            .list(ListRequest {
                collection: DEVICES,
                prefix: Bytes::new(),
                after: after.map(key_of),
                limit: limit.clamp(1, REGISTRY_LIST_MAX),
            })
            .await?;
        let devices: Result<Vec<_>, _> = page
            .documents
            .iter()
            .map(|document| document::decode(document, &self.0.keyring))
            .collect();
        Ok(DevicePage {
            devices: devices?,
            more: page.more,
        })
    }

    /// Counts the devices without reading them.
    #[must_use]
    pub fn statistics(&self) -> DeviceStatistics {
        let mut statistics = DeviceStatistics::default();
        for (class, count) in self.0.documents.counts(DEVICES) {
            statistics.total += count;
            match DeviceStatus::from_class(class) {
                Some(DeviceStatus::Enabled) => statistics.enabled += count,
                Some(DeviceStatus::Disabled) => statistics.disabled += count,
                None => {}
            }
        }
        statistics
    }

    /// Runs a change of the hub's state to its end, whatever becomes of the caller: a client that
    /// hangs up must not leave a change made in the store and unknown in memory.
    pub(crate) async fn run_to_end<T: Send + 'static>(
        &self,
        change: impl Future<Output = T> + Send + 'static,
    ) -> T {
        // There are no permits any more when the hub is closed; the store says so then.
        let permit = Arc::clone(&self.0.writes).acquire_owned().await;
        let task = tokio::spawn(async move {
            let _permit = permit;
            change.await
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and with it this task.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Waits until no write is on its way. Whoever comes later finds the store closed.
    pub(crate) async fn quiesce(&self) {
        // A hub that was closed before has nothing on its way.
        let _ = self.0.writes.acquire_many(WRITES_MAX).await;
        self.0.writes.close();
    }

    async fn write_device(
        &self,
        operation: Operation,
        device: DeviceSpec,
    ) -> Result<Arc<Device>, RegistryError> {
        match self.write_one(operation, device).await? {
            BulkDone::Created(device) | BulkDone::Updated(device) => Ok(device),
            BulkDone::Deleted => Err(RegistryError::NotFound),
        }
    }

    async fn write_one(
        &self,
        operation: Operation,
        device: DeviceSpec,
    ) -> Result<BulkDone, RegistryError> {
        let mut results = self.write(vec![(operation, device)]).await;
        results
            .pop()
            .unwrap_or(Err(RegistryError::Store(StoreError::Closed)))
    }

    async fn write(
        &self,
        operations: Vec<(Operation, DeviceSpec)>,
    ) -> Vec<Result<BulkDone, RegistryError>> {
        let inner = Arc::clone(&self.0);
        self.run_to_end(async move { inner.write(operations).await })
            .await
    }
}

impl From<Precondition> for Match {
    fn from(precondition: Precondition) -> Self {
        match precondition {
            Precondition::None | Precondition::Any => Self::Any,
            Precondition::ETag(etag) => Self::ETag(etag),
        }
    }
}

impl Inner {
    fn tell_deleted(&self, device: DeletedDevice) {
        if let Some(deletions) = self.deletions.get() {
            // Whoever wanted to be told has ended, and with it the hub.
            let _ = deletions.send(device);
        }
    }

    async fn read(&self, id: &DeviceId) -> Result<Option<Device>, StoreError> {
        let document = self.documents.get(DEVICES, key_of(id)).await?;
        document
            .map(|document| document::decode(&document, &self.keyring))
            .transpose()
    }
}

fn key_of(id: &DeviceId) -> Bytes {
    Bytes::copy_from_slice(id.as_str().as_bytes())
}
