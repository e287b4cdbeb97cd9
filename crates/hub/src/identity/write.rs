//! Changes of devices: plan against what is stored, apply as one batch under conditions, follow up.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fieldpost_model::{DeviceId, Identity, Timestamp};
use fieldpost_store::documents::{Action, Change, ChangeResult, Condition};
use futures_util::{StreamExt, stream};

use super::bulk::BulkDone;
use super::device::{Device, DeviceSpec, DeviceStatus, revision_of_etag};
use super::{DeletedDevice, Inner, RegistryError, document, key_of, rules};
use crate::collections::{DEVICES, SESSIONS};
use crate::presence::Eviction;

/// What is to be done with a device.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Create,
    Update(Match),
    CreateOrUpdate(Match),
    Delete(Match),
}

/// Which state of a device a change is for.
#[derive(Clone, Debug)]
pub(super) enum Match {
    Any,
    ETag(String),
}

/// How often a change of a device, whatever its state, is tried against other writers of the same
/// device before it gives up.
const ATTEMPTS_MAX: usize = 16;

/// Reads of the store that are under way for one request.
const READS_AT_ONCE: usize = 64;

/// A change that has not been carried out yet.
struct Pending {
    index: usize,
    operation: Operation,
    spec: DeviceSpec,
}

/// A change on its way to the store.
struct Planned {
    pending: Pending,
    change: Change,
    /// What it is when it was carried out; nothing for a deletion.
    device: Option<Device>,
    /// The generation that a deletion ends.
    ends: Option<Arc<str>>,
    /// Whether it is new.
    is_new: bool,
}

impl Inner {
    /// Carries out operations and everything that follows from them. The order is: the store, then
    /// memory, then connections. A crash in between leaves no trace but session documents of a
    /// deleted generation, which nobody reads.
    ///
    /// Must run to its end.
    pub(super) async fn write(
        &self,
        operations: Vec<(Operation, DeviceSpec)>,
    ) -> Vec<Result<BulkDone, RegistryError>> {
        let mut results: Vec<Result<BulkDone, RegistryError>> = Vec::new();
        let mut seen = HashSet::new();
        let mut pending = Vec::new();
        for (index, (operation, spec)) in operations.into_iter().enumerate() {
            results.push(Err(if seen.insert(spec.device_id.clone()) {
                pending.push(Pending {
                    index,
                    operation,
                    spec,
                });
                RegistryError::PreconditionFailed
            } else {
                RegistryError::DefinedTwice
            }));
        }
        for _ in 0..ATTEMPTS_MAX {
            if pending.is_empty() {
                break;
            }
            pending = self.attempt(pending, &mut results).await;
        }
        results
    }

    /// Tries all that is pending and returns what must be tried again because somebody else changed
    /// the device meanwhile. What stays pending keeps its result of "precondition failed".
    async fn attempt(
        &self,
        pending: Vec<Pending>,
        results: &mut [Result<BulkDone, RegistryError>],
    ) -> Vec<Pending> {
        let mut set = |index: usize, result| {
            if let Some(slot) = results.get_mut(index) {
                *slot = result;
            }
        };
        let plans: Vec<_> = stream::iter(pending)
            .map(|pending| self.plan(pending))
            .buffered(READS_AT_ONCE)
            .collect()
            .await;
        let mut planned = Vec::with_capacity(plans.len());
        for plan in plans {
            match plan {
                Ok(plan) => planned.push(plan),
                Err((index, error)) => set(index, Err(error)),
            }
        }
        if planned.is_empty() {
            return Vec::new();
        }
        let changes = planned.iter().map(|plan| plan.change.clone()).collect();
        let outcomes = self.documents.apply(changes).await;
        // Whatever the outcome was: what is cached may be out of date.
        for plan in &planned {
            self.cache.forget(&plan.pending.spec.device_id);
        }
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => {
                for plan in planned {
                    set(plan.pending.index, Err(error.clone().into()));
                }
                return Vec::new();
            }
        };
        let mut again = Vec::new();
        let mut evictions = Vec::new();
        let mut deleted = Vec::new();
        let mut gone = Vec::new();
        for (plan, outcome) in planned.into_iter().zip(outcomes) {
            match outcome {
                ChangeResult::Done(revision) => {
                    let Planned {
                        pending,
                        device,
                        ends,
                        is_new,
                        ..
                    } = plan;
                    let id = pending.spec.device_id;
                    let done = match device {
                        None => {
                            evictions.push((id.clone(), Eviction::Deleted));
                            gone.extend(ends.map(|generation_id| DeletedDevice {
                                identity: Identity::of_device(id.clone()),
                                generation_id,
                            }));
                            deleted.push(id);
                            BulkDone::Deleted
                        }
                        Some(device) => {
                            if device.status == DeviceStatus::Disabled {
                                evictions.push((id, Eviction::Disabled));
                            }
                            let device = Arc::new(Device { revision, ..device });
                            if is_new {
                                BulkDone::Created(device)
                            } else {
                                BulkDone::Updated(device)
                            }
                        }
                    };
                    set(pending.index, Ok(done));
                }
                ChangeResult::Refused(found) => match plan.pending.operation.refused(found) {
                    Some(error) => set(plan.pending.index, Err(error)),
                    None => again.push(plan.pending),
                },
            }
        }
        if !evictions.is_empty() {
            self.owners.evict(evictions).await;
        }
        self.delete_modules_of(&gone).await;
        self.forget_sessions(deleted).await;
        for device in gone {
            self.tell_deleted(device);
        }
        again
    }

    async fn plan(&self, pending: Pending) -> Result<Planned, (usize, RegistryError)> {
        let index = pending.index;
        let outcome = match pending.operation {
            Operation::Delete(_) => return Ok(self.plan_delete(pending).await),
            Operation::Create => self.plan_create(&pending.spec),
            Operation::Update(_) | Operation::CreateOrUpdate(_) => self.plan_write(&pending).await,
        };
        match outcome {
            Ok((condition, device, is_new)) => Ok(Planned {
                change: Change {
                    collection: DEVICES,
                    key: key_of(&pending.spec.device_id),
                    condition,
                    action: match &device {
                        Some(device) => document::encode(device, &self.keyring, &*self.chance),
                        None => Action::Delete,
                    },
                },
                pending,
                device,
                ends: None,
                is_new,
            }),
            Err(error) => Err((index, error)),
        }
    }

    async fn plan_delete(&self, pending: Pending) -> Planned {
        // A device that cannot be read can be deleted all the same.
        let known = self.read(&pending.spec.device_id).await.ok().flatten();
        let condition = match (&pending.operation, &known) {
            // No device has revision 0, so a tag that never was tells "changed" from "unknown".
            (Operation::Delete(Match::ETag(etag)), _) => {
                Condition::Revision(revision_of_etag(etag).unwrap_or(0))
            }
            // What is deleted is what was read, so that it is known whose messages go with it.
            (_, Some(known)) => Condition::Revision(known.revision),
            (_, None) => Condition::Present,
        };
        Planned {
            change: Change {
                collection: DEVICES,
                key: key_of(&pending.spec.device_id),
                condition,
                action: Action::Delete,
            },
            pending,
            device: None,
            ends: known.map(|known| known.generation_id),
            is_new: false,
        }
    }

    fn plan_create(
        &self,
        spec: &DeviceSpec,
    ) -> Result<(Condition, Option<Device>, bool), RegistryError> {
        rules::check(spec)?;
        let device = Device {
            device_id: spec.device_id.clone(),
            generation_id: self.next_generation(),
            revision: 0,
            status: spec.status.unwrap_or(DeviceStatus::Enabled),
            status_reason: spec.status_reason.clone(),
            status_updated: Timestamp::NEVER,
            authentication: rules::authentication(&spec.authentication, None, &*self.chance)?,
            iot_edge: spec.iot_edge,
            device_scope: spec.device_scope.clone(),
            parent_scopes: spec.parent_scopes.clone(),
        };
        Ok((Condition::Absent, Some(device), true))
    }

    async fn plan_write(
        &self,
        pending: &Pending,
    ) -> Result<(Condition, Option<Device>, bool), RegistryError> {
        let (Operation::Update(wanted) | Operation::CreateOrUpdate(wanted)) = &pending.operation
        else {
            return Err(RegistryError::PreconditionFailed);
        };
        let spec = &pending.spec;
        let Some(known) = self.read(&spec.device_id).await? else {
            return match pending.operation {
                Operation::CreateOrUpdate(_) => self.plan_create(spec),
                _ => Err(RegistryError::NotFound),
            };
        };
        if let Match::ETag(etag) = wanted
            && revision_of_etag(etag) != Some(known.revision)
        {
            return Err(RegistryError::PreconditionFailed);
        }
        rules::check(spec)?;
        let status = spec.status.unwrap_or(known.status);
        let authentication = rules::authentication(
            &spec.authentication,
            Some(&known.authentication),
            &*self.chance,
        )?;
        let device = Device {
            device_id: known.device_id,
            generation_id: known.generation_id,
            revision: 0,
            status,
            status_reason: spec.status_reason.clone(),
            status_updated: if status == known.status {
                known.status_updated
            } else {
                self.timer.now()
            },
            authentication,
            iot_edge: spec.iot_edge,
            device_scope: spec.device_scope.clone(),
            parent_scopes: spec.parent_scopes.clone(),
        };
        Ok((Condition::Revision(known.revision), Some(device), false))
    }

    /// The sessions of deleted devices. What a failure leaves behind belongs to a generation that
    /// is gone, and is neither read nor kept once the device is there again.
    async fn forget_sessions(&self, devices: Vec<DeviceId>) {
        if devices.is_empty() {
            return;
        }
        let changes = devices
            .iter()
            .map(|id| Change {
                collection: SESSIONS,
                key: key_of(id),
                condition: Condition::Any,
                action: Action::Delete,
            })
            .collect();
        if let Err(error) = self.documents.apply(changes).await {
            tracing::warn!(%error, "sessions of deleted devices stay in the store");
        }
    }

    /// A generation id: 100-nanosecond ticks since the year 1, as in Azure's, larger than any that
    /// this process gave out before, and nine random digits, so that a clock that was set back
    /// between two starts does not repeat one.
    pub(super) fn next_generation(&self) -> Arc<str> {
        const TICKS_PER_MILLI: u64 = 10_000;
        let since_year_1 = self.timer.now().since(Timestamp::NEVER).as_millis();
        let now = u64::try_from(since_year_1)
            .unwrap_or(u64::MAX)
            .saturating_mul(TICKS_PER_MILLI);
        let after = |last: u64| now.max(last.saturating_add(1));
        let last =
            self.last_generation
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                    Some(after(last))
                });
        let ticks = after(last.unwrap_or_else(|last| last));
        let mut random = [0; size_of::<u64>()];
        self.chance.fill(&mut random);
        let random = u64::from_le_bytes(random) % 1_000_000_000;
        Arc::from(format!("{ticks}{random:09}"))
    }
}

impl Operation {
    /// The answer when the store's condition did not hold, or `None` when the state of the device
    /// did not matter to the caller and it is to be tried again.
    fn refused(&self, found: Option<u64>) -> Option<RegistryError> {
        match (self, found) {
            (Self::Create, _) => Some(RegistryError::AlreadyExists),
            (Self::Delete(_), None) => Some(RegistryError::NotFound),
            (Self::Delete(Match::ETag(_)) | Self::Update(Match::ETag(_)), Some(_)) => {
                Some(RegistryError::PreconditionFailed)
            }
            // Planned anew, these find out what the device is like by now.
            (Self::Delete(Match::Any) | Self::Update(_) | Self::CreateOrUpdate(_), _) => None,
        }
    }
}
