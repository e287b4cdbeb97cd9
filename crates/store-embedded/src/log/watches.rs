//! The bells of readers that wait at the end of a partition.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fieldpost_store::log::TailWatch;

use super::format::Key;

/// Who is to be told of which partition.
#[derive(Default)]
pub(super) struct Watches {
    by_key: Mutex<HashMap<Key, Vec<Weak<TailWatch>>>>,
}

impl Watches {
    /// Rings `watch` after every group of a partition, as long as somebody holds it.
    pub(super) fn add(&self, key: Key, watch: &Arc<TailWatch>) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let watches = by_key.entry(key).or_default();
        watches.retain(|other| other.strong_count() > 0);
        let known = watches
            .iter()
            .any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(watch)));
        if !known {
            watches.push(Arc::downgrade(watch));
        }
    }

    /// Rings everybody who watches one of the partitions, once.
    pub(super) fn ring(&self, keys: impl Iterator<Item = Key>) {
        let mut bells = Vec::new();
        {
            let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            for key in keys {
                let Some(watches) = by_key.get_mut(&key) else {
                    continue;
                };
                watches.retain(|watch| match watch.upgrade() {
                    Some(watch) => {
                        bells.push(watch);
                        true
                    }
                    None => false,
                });
                if watches.is_empty() {
                    by_key.remove(&key);
                }
            }
        }
        // Outside the lock: the one who wakes up may come back at once.
        let mut bells: Vec<(usize, Arc<TailWatch>)> = bells.into_iter().enumerate().collect();
        bells.sort_unstable_by_key(|(at, bell)| (Arc::as_ptr(bell), *at));
        bells.dedup_by(|(_, one), (_, two)| Arc::ptr_eq(one, two));
        // By where they live in memory they would ring in another order each time.
        bells.sort_unstable_by_key(|(at, _)| *at);
        for (_, bell) in bells {
            bell.ring();
        }
    }
}
