//! A bounded cache of devices that were used lately.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fieldpost_model::DeviceId;
use fieldpost_model::position::placement_hash;

use super::Device;

/// Shards, so that connections on different threads seldom meet.
const SHARDS: usize = 64;

/// Devices in one generation of a shard; two generations are kept, 65,536 devices in all.
const GENERATION_MAX: usize = 512;

/// Devices that were read lately, never ones that have changed since.
pub(super) struct DeviceCache {
    /// Each lock guards its shard and is held for a look-up alone.
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    young: HashMap<DeviceId, Arc<Device>>,
    old: HashMap<DeviceId, Arc<Device>>,
    /// Changes of devices of this shard so far.
    changes: u64,
}

/// What the cache knows of a device.
pub(super) enum Lookup {
    Hit(Arc<Device>),
    Miss(Ticket),
}

/// The state of the cache before a read of the store. What was read may only be kept when nothing
/// has changed meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

impl Default for DeviceCache {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl DeviceCache {
    pub(super) fn look_up(&self, id: &DeviceId) -> Lookup {
        let mut shard = self.shard(id);
        if let Some(device) = shard.young.get(id) {
            return Lookup::Hit(Arc::clone(device));
        }
        if let Some(device) = shard.old.remove(id) {
            shard.keep(Arc::clone(&device));
            return Lookup::Hit(device);
        }
        Lookup::Miss(Ticket(shard.changes))
    }

    /// Keeps what was read after `ticket` was given out.
    pub(super) fn fill(&self, id: &DeviceId, ticket: Ticket, device: &Arc<Device>) {
        let mut shard = self.shard(id);
        if shard.changes == ticket.0 {
            shard.keep(Arc::clone(device));
        }
    }

    /// Forgets a device because it has changed.
    pub(super) fn forget(&self, id: &DeviceId) {
        let mut shard = self.shard(id);
        shard.changes = shard.changes.wrapping_add(1);
        shard.young.remove(id);
        shard.old.remove(id);
    }

    fn shard(&self, id: &DeviceId) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(placement_hash(id) % SHARDS as u64).unwrap_or_default();
        self.shards
            .get(index)
            .expect("the remainder is below the number of shards")
            .lock()
            // A panic between two statements here leaves a cache that forgets too much at worst.
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn keep(&mut self, device: Arc<Device>) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(device.device_id.clone(), device);
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_model::Timestamp;

    use super::*;
    use crate::identity::{Authentication, DeviceStatus};

    fn device(id: &str) -> Arc<Device> {
        Arc::new(Device {
            device_id: id.parse().unwrap(),
            generation_id: "1".into(),
            revision: 1,
            status: DeviceStatus::Enabled,
            status_reason: None,
            status_updated: Timestamp::NEVER,
            authentication: Authentication::None,
            iot_edge: false,
            device_scope: None,
            parent_scopes: Vec::new(),
        })
    }

    fn miss(cache: &DeviceCache, id: &DeviceId) -> Ticket {
        match cache.look_up(id) {
            Lookup::Miss(ticket) => ticket,
            Lookup::Hit(_) => panic!("{id} is cached"),
        }
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let cache = DeviceCache::default();
        let dev1 = device("dev1");
        let id = &dev1.device_id;
        let ticket = miss(&cache, id);
        cache.forget(id);
        cache.fill(id, ticket, &dev1);
        let ticket = miss(&cache, id);
        cache.fill(id, ticket, &dev1);
        assert!(matches!(cache.look_up(id), Lookup::Hit(_)));
        cache.forget(id);
        miss(&cache, id);
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = DeviceCache::default();
        let used = device("used");
        cache.fill(&used.device_id, miss(&cache, &used.device_id), &used);
        for n in 0..200_000 {
            let other = device(&format!("other{n}"));
            cache.fill(&other.device_id, miss(&cache, &other.device_id), &other);
            if n % 1000 == 0 {
                assert!(
                    matches!(cache.look_up(&used.device_id), Lookup::Hit(_)),
                    "{n}"
                );
            }
        }
        let kept: usize = cache
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap())
            .map(|shard| shard.young.len() + shard.old.len())
            .sum();
        assert!(kept <= 2 * SHARDS * GENERATION_MAX, "{kept}");
    }
}
