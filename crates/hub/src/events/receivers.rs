//! Who reads which partition for which consumer group.
//!
//! The rules are those of Azure Event Hubs for receivers with and without an owner level, with one
//! that its documentation leaves open: an equal level steals, because every balanced consumer uses
//! level 0.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fieldpost_model::PartitionId;
use fieldpost_model::limits::READERS_PER_PARTITION_AND_GROUP_MAX;
use fieldpost_store::log::TailWatch;

use super::{OpenReceiver, ReceiverRefused};

/// Why a receiver has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverEnd {
    /// Another receiver with an owner level took the partition.
    Stolen {
        /// Its owner level.
        owner_level: i64,
        /// Its name.
        receiver_name: Option<String>,
    },
    /// The consumer group was deleted.
    GroupDeleted,
}

/// All receivers. Cloning is cheap.
#[derive(Clone, Default)]
pub(crate) struct Receivers(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// As they are spelt.
    groups: Vec<String>,
    /// By lower-cased group and partition; no entry without a holder.
    tables: HashMap<(String, PartitionId), Vec<Holder>>,
    next_id: u64,
}

struct Holder {
    id: u64,
    owner_level: Option<i64>,
    name: Option<String>,
    end: Arc<OnceLock<ReceiverEnd>>,
    bell: Arc<TailWatch>,
}

/// A receiver's place. Dropping it gives the place up.
pub(super) struct Seat {
    receivers: Receivers,
    key: (String, PartitionId),
    id: u64,
    end: Arc<OnceLock<ReceiverEnd>>,
}

impl Receivers {
    /// Changes the consumer groups and ends the receivers of those that are gone.
    pub(crate) fn set_groups(&self, groups: &[String]) {
        let mut table = self.lock();
        table.groups = groups.to_vec();
        table.tables.retain(|(group, _), holders| {
            let stays = groups.iter().any(|g| g.eq_ignore_ascii_case(group));
            if !stays {
                for holder in holders {
                    holder.end(&ReceiverEnd::GroupDeleted);
                }
            }
            stays
        });
    }

    pub(super) fn groups(&self) -> Vec<String> {
        self.lock().groups.clone()
    }

    pub(super) fn open(&self, request: OpenReceiver) -> Result<Seat, ReceiverRefused> {
        let mut table = self.lock();
        let group = request.group.to_ascii_lowercase();
        if !table.groups.iter().any(|g| g.eq_ignore_ascii_case(&group)) {
            return Err(ReceiverRefused::UnknownGroup);
        }
        let id = table.next_id;
        let key = (group, request.partition);
        let no_holders = Vec::new();
        let holders = table.tables.get(&key).unwrap_or(&no_holders);
        let exclusive = holders
            .iter()
            .find_map(|holder| holder.owner_level.map(|held| (held, holder.name.clone())));
        match (request.owner_level, exclusive) {
            (Some(requested), Some((held, holder))) if held > requested => {
                return Err(ReceiverRefused::HigherOwnerLevel {
                    requested,
                    held,
                    holder,
                });
            }
            (None, Some((held, holder))) => {
                return Err(ReceiverRefused::ExclusiveHolder { held, holder });
            }
            (None, None) if holders.len() >= READERS_PER_PARTITION_AND_GROUP_MAX => {
                return Err(ReceiverRefused::TooManyReaders {
                    max: READERS_PER_PARTITION_AND_GROUP_MAX,
                });
            }
            _ => {}
        }
        table.next_id += 1;
        let holders = table.tables.entry(key.clone()).or_default();
        if let Some(owner_level) = request.owner_level {
            let stolen = ReceiverEnd::Stolen {
                owner_level,
                receiver_name: request.receiver_name.clone(),
            };
            for holder in holders.drain(..) {
                holder.end(&stolen);
            }
        }
        let end = Arc::default();
        holders.push(Holder {
            id,
            owner_level: request.owner_level,
            name: request.receiver_name,
            end: Arc::clone(&end),
            bell: request.bell,
        });
        Ok(Seat {
            receivers: self.clone(),
            key,
            id,
            end,
        })
    }

    /// No await and no other lock while this is held. A panic leaves a table that is whole.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    fn end(&self, reason: &ReceiverEnd) {
        // A holder leaves the table when it ends, so that this is its first end.
        let _ = self.end.set(reason.clone());
        self.bell.ring();
    }
}

impl Seat {
    pub(super) fn ended(&self) -> Option<&ReceiverEnd> {
        self.end.get()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.receivers.lock();
        if let Some(holders) = table.tables.get_mut(&self.key) {
            holders.retain(|holder| holder.id != self.id);
            if holders.is_empty() {
                table.tables.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receivers() -> Receivers {
        let receivers = Receivers::default();
        receivers.set_groups(&["$Default".to_owned(), "Reports".to_owned()]);
        receivers
    }

    fn open(
        receivers: &Receivers,
        group: &str,
        partition: u16,
        owner_level: Option<i64>,
        name: &str,
    ) -> Result<Seat, ReceiverRefused> {
        receivers.open(OpenReceiver {
            group: group.to_owned(),
            partition: PartitionId(partition),
            owner_level,
            receiver_name: Some(name.to_owned()),
            bell: Arc::default(),
        })
    }

    #[test]
    fn owner_levels_decide_who_reads() {
        // For each pair of a holder and a newcomer: does the newcomer get in, and does the holder
        // stay?
        let check = |holder: Option<i64>, newcomer: Option<i64>, gets_in: bool, stays: bool| {
            let receivers = receivers();
            let first = open(&receivers, "$Default", 0, holder, "first").unwrap();
            let second = open(&receivers, "$default", 0, newcomer, "second");
            let case = format!("{holder:?} then {newcomer:?}");
            assert_eq!(second.is_ok(), gets_in, "{case}");
            assert_eq!(first.ended().is_none(), stays, "{case}");
            if let Some(end) = first.ended() {
                let expected = ReceiverEnd::Stolen {
                    owner_level: newcomer.unwrap(),
                    receiver_name: Some("second".to_owned()),
                };
                assert_eq!(*end, expected, "{case}");
            }
            let holder_name = Some("first".to_owned());
            match second.err() {
                None => assert!(gets_in),
                Some(ReceiverRefused::ExclusiveHolder { held, holder: name }) => {
                    assert_eq!((Some(held), newcomer, name), (holder, None, holder_name));
                }
                Some(ReceiverRefused::HigherOwnerLevel {
                    requested,
                    held,
                    holder: name,
                }) => {
                    assert_eq!((Some(held), Some(requested)), (holder, newcomer));
                    assert_eq!(name, holder_name);
                }
                Some(other) => panic!("{case}: {other}"),
            }
        };
        check(None, None, true, true);
        check(None, Some(0), true, false);
        check(Some(0), None, false, true);
        check(Some(0), Some(0), true, false);
        check(Some(0), Some(1), true, false);
        check(Some(1), Some(0), false, true);
        check(Some(-1), Some(i64::MIN), false, true);
    }

    #[test]
    fn a_place_is_free_again_when_its_holder_goes() {
        let receivers = receivers();
        let mut seats: Vec<_> = (0..5)
            .map(|_| open(&receivers, "reports", 1, None, "r").unwrap())
            .collect();
        let full = ReceiverRefused::TooManyReaders { max: 5 };
        assert_eq!(open(&receivers, "Reports", 1, None, "r").err(), Some(full));
        open(&receivers, "Reports", 2, None, "r").unwrap();
        open(&receivers, "$Default", 1, None, "r").unwrap();
        seats.pop();
        seats.push(open(&receivers, "REPORTS", 1, None, "r").unwrap());

        let owner = open(&receivers, "reports", 1, Some(3), "owner").unwrap();
        assert!(seats.iter().all(|seat| seat.ended().is_some()));
        assert!(open(&receivers, "reports", 1, None, "r").is_err());
        // Those that were stolen from go late and leave the new owner alone.
        seats.clear();
        assert!(open(&receivers, "reports", 1, None, "r").is_err());
        drop(owner);
        open(&receivers, "reports", 1, None, "r").unwrap();
        assert!(receivers.lock().tables.is_empty());
    }

    #[test]
    fn receivers_of_a_deleted_group_end_and_their_bells_ring() {
        let receivers = receivers();
        let bell = Arc::new(TailWatch::default());
        let request = OpenReceiver {
            group: "reports".to_owned(),
            partition: PartitionId(0),
            owner_level: None,
            receiver_name: None,
            bell: Arc::clone(&bell),
        };
        let seat = receivers.open(request.clone()).unwrap();
        let other = open(&receivers, "$Default", 0, None, "other").unwrap();
        receivers.set_groups(&["$Default".to_owned()]);
        assert_eq!(seat.ended(), Some(&ReceiverEnd::GroupDeleted));
        assert_eq!(other.ended(), None);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(bell.poll_rung(&mut cx).is_ready());
        let refused = receivers.open(request).err();
        assert_eq!(refused, Some(ReceiverRefused::UnknownGroup));
    }
}
