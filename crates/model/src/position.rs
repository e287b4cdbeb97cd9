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
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the remainder is below a u16"
        )]
        PartitionId((placement_hash(device) % u64::from(self.count)) as u16)
    }
}

/// The hash that places devices, in partitions and in shards of live state: XXH3-64 (seed 0) of the
/// id's UTF-8 bytes.
#[must_use]
pub fn placement_hash(device: &DeviceId) -> u64 {
    xxhash_rust::xxh3::xxh3_64(device.as_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_of_devices_to_partitions_is_fixed() {
        // From an independent implementation; they stand in docs/formats/partitioning.md as well.
        let check = |id: &str, of_4: u16, of_32: u16, of_128: u16| {
            let device = DeviceId::new(id).unwrap();
            let of = |count| Partitioning::new(count).unwrap().partition_of(&device).0;
            assert_eq!((of(4), of(32), of(128)), (of_4, of_32, of_128), "{id}");
        };
        check("dev1", 3, 31, 31);
        check("device-0", 1, 17, 113);
        check("A-:.+%_#*?!(),=@;$'9", 2, 14, 14);
        check(&"x".repeat(128), 3, 23, 23);
        check("0", 1, 21, 85);
        check("hub.localhost", 2, 22, 118);
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
