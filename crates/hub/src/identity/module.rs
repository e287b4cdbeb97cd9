//! Modules: identities below a device, with credentials and queues of their own.
//!
//! A module's document names the generation of the device that it belongs to. So a device takes its
//! modules with it when it is deleted, in the one write that deletes it; what is cleared away after
//! that is only space.

use std::sync::Arc;

use bytes::Bytes;
use fieldpost_model::{DeviceId, Identity, ModuleId};
use fieldpost_store::StoreError;
use fieldpost_store::documents::{
    Action, Change, ChangeResult, Condition, Document, ListRequest, Revision,
};
use serde::{Deserialize, Serialize};

use super::device::{
    Authentication, AuthenticationSpec, Device, DeviceStatus, etag_of, revision_of_etag,
};
use super::document::{self, StoredAuthentication};
use super::{DeletedDevice, Inner, Precondition, Registry, RegistryError, rules};
use crate::collections::{MODULES, SESSIONS};
use crate::presence::Eviction;

/// Most modules of a device (Azure IoT Hub quotas: module identities per device).
pub const MODULES_MAX: usize = 50;

/// A registered module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its device's id.
    pub device_id: DeviceId,
    /// Its id.
    pub module_id: ModuleId,
    /// Made by the hub; another one after the id was deleted and created again.
    pub generation_id: Arc<str>,
    /// Grows with every change.
    pub revision: Revision,
    /// How it signs in.
    pub authentication: Authentication,
    /// Who looks after it, as given.
    pub managed_by: Option<String>,
    /// The generation of the device that it belongs to.
    parent: Arc<str>,
}

/// A module as a caller wants it.
#[derive(Clone, Debug)]
pub struct ModuleSpec {
    /// Its device.
    pub device_id: DeviceId,
    /// Which module.
    pub module_id: ModuleId,
    /// How it signs in.
    pub authentication: AuthenticationSpec,
    /// Who looks after it.
    pub managed_by: Option<String>,
}

/// What the rest of the hub asks of an identity that somebody speaks for, or to.
#[derive(Clone, Debug)]
pub(crate) enum Registered {
    /// A device.
    Device(Arc<Device>),
    /// A module, and its device.
    Module(Arc<Device>, Arc<Module>),
}

impl Module {
    /// The entity tag of this state of the module: short base64 text, without quotes.
    #[must_use]
    pub fn etag(&self) -> String {
        etag_of(self.revision)
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            device: self.device_id.clone(),
            module: Some(self.module_id.clone()),
        }
    }
}

impl Registered {
    /// The life that the identity is in.
    pub(crate) fn generation_id(&self) -> &Arc<str> {
        match self {
            Self::Device(device) => &device.generation_id,
            Self::Module(_, module) => &module.generation_id,
        }
    }

    /// How it signs in.
    pub(crate) fn authentication(&self) -> &Authentication {
        match self {
            Self::Device(device) => &device.authentication,
            Self::Module(_, module) => &module.authentication,
        }
    }

    /// Whether it may connect. A module cannot be disabled by itself.
    pub(crate) fn is_enabled(&self) -> bool {
        let (Self::Device(device) | Self::Module(device, _)) = self;
        device.status == DeviceStatus::Enabled
    }

    /// Who it is, with the texts of the ids that the registry keeps anyway.
    pub(crate) fn identity(&self) -> Identity {
        match self {
            Self::Device(device) => Identity::of_device(device.device_id.clone()),
            Self::Module(device, module) => Identity {
                device: device.device_id.clone(),
                module: Some(module.module_id.clone()),
            },
        }
    }
}

impl Registry {
    /// What is registered for an identity.
    pub(crate) async fn find(&self, identity: &Identity) -> Result<Option<Registered>, StoreError> {
        let Some(device) = self.get(&identity.device).await? else {
            return Ok(None);
        };
        let Some(id) = &identity.module else {
            return Ok(Some(Registered::Device(device)));
        };
        let module = self.0.module_of(&device, id).await?;
        Ok(module.map(|module| Registered::Module(device, Arc::new(module))))
    }

    /// Reads a module.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn module(
        &self,
        device: &DeviceId,
        module: &ModuleId,
    ) -> Result<Option<Module>, StoreError> {
        match self.get(device).await? {
            None => Ok(None),
            Some(device) => self.0.module_of(&device, module).await,
        }
    }

    /// Reads a device's modules in the order of their ids; there are [`MODULES_MAX`] at most.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when there is no such device, or when the store cannot be read.
    pub async fn modules(&self, device: &DeviceId) -> Result<Vec<Module>, RegistryError> {
        let device = self.get(device).await?.ok_or(RegistryError::NotFound)?;
        let stored = self.0.stored_modules(&device.device_id).await?;
        let modules: Vec<_> = stored.into_iter().collect::<Result<_, _>>()?;
        let is_its = |module: &Module| module.parent == device.generation_id;
        Ok(modules.into_iter().filter(is_its).collect())
    }

    /// Registers a module. Durable when it returns; carried out even if the caller goes away.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when there is no such device, [`RegistryError::AlreadyExists`],
    /// [`RegistryError::TooManyModules`], or when a field is not what it must be.
    pub async fn create_module(&self, spec: ModuleSpec) -> Result<Module, RegistryError> {
        self.write_module(spec, None).await
    }

    /// Replaces a module's fields; keys that are not given stay. Durable when it returns; carried out
    /// even if the caller goes away.
    ///
    /// # Errors
    /// [`RegistryError::ModuleNotFound`], [`RegistryError::PreconditionFailed`], or when a field is not
    /// what it must be.
    pub async fn update_module(
        &self,
        spec: ModuleSpec,
        precondition: Precondition,
    ) -> Result<Module, RegistryError> {
        self.write_module(spec, Some(precondition)).await
    }

    /// Removes a module with its session and its messages, and ends its connection. Durable when it
    /// returns; carried out even if the caller goes away.
    ///
    /// # Errors
    /// [`RegistryError::ModuleNotFound`] or [`RegistryError::PreconditionFailed`].
    pub async fn delete_module(
        &self,
        device: &DeviceId,
        module: &ModuleId,
        precondition: Precondition,
    ) -> Result<(), RegistryError> {
        let inner = Arc::clone(&self.0);
        let (device, module) = (device.clone(), module.clone());
        self.run_to_end(async move {
            let _one_at_a_time = inner.writing_modules.lock().await;
            let known = inner.read(&device).await?;
            let known = match known {
                Some(device) => inner.module_of(&device, &module).await?,
                None => None,
            };
            let known = known.ok_or(RegistryError::ModuleNotFound)?;
            known.check(&precondition)?;
            let identity = known.identity();
            let change = Change {
                collection: MODULES,
                key: key_of(&identity),
                condition: Condition::Revision(known.revision),
                action: Action::Delete,
            };
            inner.apply_one(change).await?;
            let target = vec![(identity, Eviction::Deleted)];
            inner.owners.evict_identities(target).await;
            inner.forget_modules(vec![known]).await;
            Ok(())
        })
        .await
    }

    /// Creates a module, or updates it when there is a precondition.
    async fn write_module(
        &self,
        spec: ModuleSpec,
        precondition: Option<Precondition>,
    ) -> Result<Module, RegistryError> {
        let inner = Arc::clone(&self.0);
        self.run_to_end(async move {
            // What is counted must not change until it is written.
            let _one_at_a_time = inner.writing_modules.lock().await;
            let device = inner.read(&spec.device_id).await?;
            let device = device.ok_or(RegistryError::NotFound)?;
            let known = inner.module_of(&device, &spec.module_id).await?;
            match (&precondition, &known) {
                (None, Some(_)) => return Err(RegistryError::AlreadyExists),
                (None, None) => inner.check_room(&device).await?,
                (Some(_), None) => return Err(RegistryError::ModuleNotFound),
                (Some(precondition), Some(known)) => known.check(precondition)?,
            }
            rules::check_managed_by(spec.managed_by.as_deref())?;
            let authentication = rules::authentication(
                &spec.authentication,
                known.as_ref().map(|known| &known.authentication),
                &*inner.chance,
            )?;
            let mut module = Module {
                device_id: spec.device_id,
                module_id: spec.module_id,
                generation_id: match &known {
                    Some(known) => Arc::clone(&known.generation_id),
                    None => inner.next_generation(),
                },
                revision: 0,
                authentication,
                managed_by: spec.managed_by,
                parent: Arc::clone(&device.generation_id),
            };
            let change = Change {
                collection: MODULES,
                key: key_of(&module.identity()),
                // This is the only writer, and one of an earlier life of the device may be in the way.
                condition: Condition::Any,
                action: inner.encode_module(&module),
            };
            module.revision = inner.apply_one(change).await?;
            Ok(module)
        })
        .await
    }
}

impl Module {
    fn check(&self, precondition: &Precondition) -> Result<(), RegistryError> {
        match precondition {
            Precondition::None | Precondition::Any => Ok(()),
            Precondition::ETag(etag) if revision_of_etag(etag) == Some(self.revision) => Ok(()),
            Precondition::ETag(_) => Err(RegistryError::PreconditionFailed),
        }
    }
}

impl Inner {
    /// Clears away the modules of devices that are no more. Nobody sees what a failure leaves behind.
    pub(super) async fn delete_modules_of(&self, devices: &[DeletedDevice]) {
        for deleted in devices {
            let device = &deleted.identity.device;
            if let Err(error) = self.delete_modules(device, &deleted.generation_id).await {
                tracing::warn!(%error, %device, "modules of a deleted device stay in the store");
            }
        }
    }

    async fn delete_modules(&self, device: &DeviceId, generation: &str) -> Result<(), StoreError> {
        let mut modules = self.stored_modules(device).await?;
        // The device may be there again, with modules of its own.
        modules.retain(|module| matches!(module, Ok(module) if *module.parent == *generation));
        let modules: Vec<_> = modules.into_iter().filter_map(Result::ok).collect();
        if modules.is_empty() {
            return Ok(());
        }
        let changes = modules.iter().map(|module| Change {
            collection: MODULES,
            key: key_of(&module.identity()),
            condition: Condition::Revision(module.revision),
            action: Action::Delete,
        });
        self.documents.apply(changes.collect()).await?;
        self.forget_modules(modules).await;
        Ok(())
    }

    /// Lets go of what belongs to modules that are no more.
    async fn forget_modules(&self, modules: Vec<Module>) {
        let sessions = modules.iter().map(|module| Change {
            collection: SESSIONS,
            key: key_of(&module.identity()),
            condition: Condition::Any,
            action: Action::Delete,
        });
        if let Err(error) = self.documents.apply(sessions.collect()).await {
            tracing::warn!(%error, "sessions of deleted modules stay in the store");
        }
        for module in modules {
            self.tell_deleted(DeletedDevice {
                identity: module.identity(),
                generation_id: module.generation_id,
            });
        }
    }

    /// A module of a device in the life that this is.
    async fn module_of(
        &self,
        device: &Device,
        module: &ModuleId,
    ) -> Result<Option<Module>, StoreError> {
        let identity = Identity {
            device: device.device_id.clone(),
            module: Some(module.clone()),
        };
        let Some(stored) = self.documents.get(MODULES, key_of(&identity)).await? else {
            return Ok(None);
        };
        let module = self.decode_module(&stored)?;
        Ok((module.parent == device.generation_id).then_some(module))
    }

    async fn check_room(&self, device: &Device) -> Result<(), RegistryError> {
        let stored = self.stored_modules(&device.device_id).await?;
        let is_its = |module: &&Result<Module, StoreError>| {
            // One that cannot be read is there as well.
            !matches!(module, Ok(module) if module.parent != device.generation_id)
        };
        if stored.iter().filter(is_its).count() >= MODULES_MAX {
            return Err(RegistryError::TooManyModules);
        }
        Ok(())
    }

    /// All modules that are stored for a device, those of its earlier lives too.
    async fn stored_modules(
        &self,
        device: &DeviceId,
    ) -> Result<Vec<Result<Module, StoreError>>, StoreError> {
        let mut modules = Vec::new();
        let mut after = None;
        loop {
            let request = ListRequest {
                collection: MODULES,
                prefix: Bytes::from(format!("{device}/")),
                after,
                limit: 2 * MODULES_MAX,
            };
            let page = self.documents.list(request).await?;
            after = page.documents.last().map(|document| document.key.clone());
            modules.extend(
                page.documents
                    .iter()
                    .map(|stored| self.decode_module(stored)),
            );
            if !page.more {
                return Ok(modules);
            }
        }
    }

    async fn apply_one(&self, change: Change) -> Result<Revision, RegistryError> {
        let results = self.documents.apply(vec![change]).await?;
        match results.into_iter().next() {
            Some(ChangeResult::Done(revision)) => Ok(revision),
            _ => Err(RegistryError::PreconditionFailed),
        }
    }

    fn encode_module(&self, module: &Module) -> Action {
        let (device, id) = (module.device_id.as_str(), module.module_id.as_str());
        let context = ["module", device, id, &module.generation_id];
        let stored = StoredModule {
            v: FORM_VERSION,
            generation: module.generation_id.to_string(),
            parent: module.parent.to_string(),
            auth: document::seal(
                &module.authentication,
                &self.keyring,
                &*self.chance,
                &context,
            ),
            manager: module.managed_by.clone(),
        };
        Action::Put {
            class: 0,
            value: serde_json::to_vec(&stored)
                .map(Bytes::from)
                .expect("a struct of plain values is JSON"),
        }
    }

    fn decode_module(&self, stored: &Document) -> Result<Module, StoreError> {
        let key = String::from_utf8_lossy(&stored.key);
        let damaged = |what: &str| StoreError::Damaged {
            what: format!("module {key}: {what}").into(),
            resume: None,
        };
        let ids = key.split_once('/').and_then(|(device, module)| {
            let device = device.parse::<DeviceId>().ok()?;
            Some((device, module.parse::<ModuleId>().ok()?))
        });
        let (device_id, module_id) = ids.ok_or_else(|| damaged("not an id"))?;
        let form: StoredModule =
            serde_json::from_slice(&stored.value).map_err(|_| damaged("not of a known form"))?;
        if form.v != FORM_VERSION {
            return Err(damaged("of a later form"));
        }
        let context = [
            "module",
            device_id.as_str(),
            module_id.as_str(),
            &form.generation,
        ];
        let authentication =
            document::open(form.auth, &self.keyring, &context).map_err(|what| damaged(&what))?;
        Ok(Module {
            authentication,
            generation_id: Arc::from(form.generation),
            revision: stored.revision,
            managed_by: form.manager,
            parent: Arc::from(form.parent),
            device_id,
            module_id,
        })
    }
}

const FORM_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct StoredModule {
    v: u8,
    generation: String,
    /// The generation of its device.
    parent: String,
    auth: StoredAuthentication,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manager: Option<String>,
}

/// `device/module`: ids hold no slash.
fn key_of(identity: &Identity) -> Bytes {
    Bytes::from(identity.to_string())
}
