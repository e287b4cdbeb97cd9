//! Which packet ids a server has given to messages that its client has not acknowledged.

use crate::packet::PacketId;

/// While nothing is in flight, at most this much room is kept for ids.
const IDLE_CAPACITY_MAX: usize = 16;

/// Packet ids of one connection. They are few, so all searches go through them one by one.
#[derive(Debug, Default)]
pub(crate) struct PacketIds {
    in_flight: Vec<PacketId>,
    /// Ids of an earlier connection, given to nobody new for as long as this one lives.
    reserved: Vec<PacketId>,
    last: u16,
}

impl PacketIds {
    /// Starts the search for a free id at `first`.
    pub(crate) fn number_from(&mut self, first: PacketId) {
        self.last = first.get().wrapping_sub(1);
    }

    /// Keeps `packet_id` from being given to a new message.
    pub(crate) fn reserve(&mut self, packet_id: PacketId) {
        if !self.reserved.contains(&packet_id) {
            self.reserved.push(packet_id);
        }
    }

    /// The next id behind the last one that was given which is neither in flight nor reserved;
    /// `None` when there is none at all.
    pub(crate) fn free_id(&self) -> Option<PacketId> {
        let behind = (self.last..=u16::MAX).skip(1);
        let wrapped = 0..=self.last;
        behind.chain(wrapped).find_map(|id| {
            PacketId::new(id).filter(|id| !self.is_in_flight(*id) && !self.reserved.contains(id))
        })
    }

    /// Notes that a message went out under `packet_id`, which was not in flight. The search for
    /// `fresh` ids goes on behind it.
    pub(crate) fn send(&mut self, packet_id: PacketId, fresh: bool) {
        if fresh {
            self.last = packet_id.get();
        }
        self.in_flight.push(packet_id);
    }

    /// Takes an acknowledged id; `false` when it is not in flight.
    pub(crate) fn settle(&mut self, packet_id: PacketId) -> bool {
        // Oldest first: clients acknowledge in the order of arrival as a rule.
        let Some(index) = self.in_flight.iter().position(|id| *id == packet_id) else {
            return false;
        };
        self.in_flight.remove(index);
        if self.in_flight.is_empty() && self.in_flight.capacity() > IDLE_CAPACITY_MAX {
            self.in_flight = Vec::new();
        }
        true
    }

    pub(crate) fn is_in_flight(&self, packet_id: PacketId) -> bool {
        self.in_flight.contains(&packet_id)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(id: u16) -> PacketId {
        PacketId::new(id).expect("not zero")
    }

    #[test]
    fn ids_go_round_and_leave_out_what_is_in_use() {
        let mut ids = PacketIds::default();
        assert_eq!(ids.free_id(), Some(id(1)));
        ids.number_from(id(u16::MAX));
        for expected in [u16::MAX, 1, 2] {
            let free = ids.free_id().expect("there are many");
            assert_eq!(free, id(expected));
            ids.send(free, true);
        }
        ids.reserve(id(3));
        // An old message under its old id does not move the search.
        ids.send(id(5), false);
        assert_eq!(ids.free_id(), Some(id(4)));
        ids.send(id(4), true);
        assert_eq!(ids.free_id(), Some(id(6)));
        assert!(ids.settle(id(1)));
        assert!(!ids.settle(id(1)));
        ids.number_from(id(u16::MAX));
        assert_eq!(ids.free_id(), Some(id(1)));
    }

    proptest! {
        #[test]
        fn a_free_id_is_never_in_use(
            first in 1..=u16::MAX,
            // Around the end of the numbers, where they begin again.
            reserved in prop::collection::vec(prop_oneof![1..20u16, 65_520..=u16::MAX], 0..20),
            steps in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 0..60),
        ) {
            let mut ids = PacketIds::default();
            ids.number_from(id(first));
            for reserved in &reserved {
                ids.reserve(id(*reserved));
            }
            let mut model: Vec<PacketId> = Vec::new();
            for step in steps {
                match step {
                    Some(which) if !model.is_empty() => {
                        let gone = model.remove(which.index(model.len()));
                        prop_assert!(ids.settle(gone));
                    }
                    _ => {
                        let free = ids.free_id().expect("there are many");
                        prop_assert!(!model.contains(&free));
                        prop_assert!(!reserved.contains(&free.get()));
                        ids.send(free, true);
                        model.push(free);
                    }
                }
                prop_assert_eq!(&ids.in_flight, &model);
            }
        }
    }
}
