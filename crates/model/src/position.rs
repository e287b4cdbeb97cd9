//! Positions in the event log: stream, partition, sequence number.

use std::fmt;

use crate::id::DeviceId;
use crate::limits::PARTITION_COUNT_RANGE;

/// A stream of the event log. Stream 0 is the built-in endpoint; later each route endpoint and
/// each kind of hub-made event is a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u16);

impl StreamId {
    /// The built-in endpoint `messages/events`.
    pub const BUILT_IN: Self = Self(0);
}

/// A partition of a stream, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u16);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of an event in its partition: from 0, one more for each event, never reused.
///
/// The *offset* that Event Hubs clients see and keep in checkpoints is this number in decimal.
pub type SequenceNumber = u64;

/// How device ids are spread over partitions. Fixed when a store is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitioning {
    count: u16,
}

impl Partitioning {
    /// A number of partitions, if it is in [`PARTITION_COUNT_RANGE`].
    #[must_use]
    pub fn new(count: u16) -> Option<Self> {
        PARTITION_COUNT_RANGE
            .contains(&count)
            .then_some(Self { count })
    }

    /// The number of partitions.
    #[must_use]
    pub fn count(self) -> u16 {
        self.count
    }

    /// All partitions in order.
    pub fn partitions(self) -> impl Iterator<Item = PartitionId> {
        (0..self.count).map(PartitionId)
    }

    /// The partition of a device: XXH3-64 (seed 0) of the id's UTF-8 bytes, modulo the count.
    ///
    /// The modules of a device share its partition. The mapping never changes; test vectors are in
    /// `docs/formats/partitioning.md`.
    #[must_use]
    pub fn partition_of(self, device: &DeviceId) -> PartitionId {
        let hash = xxhash_rust::xxh3::xxh3_64(device.as_str().as_bytes());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the remainder is below a u16"
        )]
        PartitionId((hash % u64::from(self.count)) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_of_devices_to_partitions_is_fixed() {
        let hash = |id: &str| xxhash_rust::xxh3::xxh3_64(id.as_bytes());
        // Published vectors of XXH3-64 with seed 0 pin the function itself.
        assert_eq!(hash(""), 0x2d06_8005_38d3_94c2);
        let four = Partitioning::new(4).unwrap();
        let mut seen = [0u32; 4];
        for n in 0..4000 {
            let device = DeviceId::new(&format!("device-{n}")).unwrap();
            seen[usize::from(four.partition_of(&device).0)] += 1;
        }
        assert!(
            seen.iter().all(|count| (900..1100).contains(count)),
            "{seen:?}"
        );
        assert!(Partitioning::new(0).is_none() && Partitioning::new(129).is_none());
    }
}
