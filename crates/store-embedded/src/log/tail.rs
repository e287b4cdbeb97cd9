//! What readers see of the newest records: bounds, and the frames of recent groups in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use fieldpost_model::{SequenceNumber, Timestamp};
use fieldpost_store::log::{Bounds, ReadRequest, Records, StoredRecord};
use smallvec::SmallVec;

use super::format::{Key, Positions};
use super::frames::Frames;

/// What a batch takes in memory besides its frames, roughly.
const BATCH_BYTES: usize = 160;

/// Published bounds and the ring of recent groups.
pub(super) struct Tail {
    bytes_max: usize,
    state: RwLock<State>,
}

struct State {
    floor: SequenceNumber,
    partitions: HashMap<Key, Partition>,
    groups: VecDeque<Group>,
    bytes: usize,
}

struct Partition {
    bounds: Bounds,
    recent: VecDeque<RecentBatch>,
}

/// One batch in the ring.
#[derive(Clone)]
pub(super) struct RecentBatch {
    pub(super) first: SequenceNumber,
    pub(super) count: u32,
    pub(super) enqueued: Timestamp,
    /// As the connection framed them; shared with it.
    pub(super) frames: Bytes,
}

/// What a group put into the ring.
struct Group {
    batches: Vec<(Key, u32)>,
    bytes: usize,
}

impl Tail {
    /// The tail of a log that was just opened: `first` are the positions before the oldest record
    /// kept, `next` those behind the newest.
    pub(super) fn new(bytes_max: usize, first: &Positions, next: &Positions) -> Self {
        let partitions = next
            .known
            .iter()
            .map(|(&key, position)| {
                let bounds = Bounds {
                    first: first.next(key).min(position.next),
                    next: position.next,
                    last_enqueued: position.last_enqueued,
                };
                let recent = VecDeque::new();
                (key, Partition { bounds, recent })
            })
            .collect();
        Self {
            bytes_max,
            state: RwLock::new(State {
                floor: next.floor,
                partitions,
                groups: VecDeque::new(),
                bytes: 0,
            }),
        }
    }

    pub(super) fn bounds(&self, key: Key) -> Bounds {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.bounds(key)
    }

    /// The oldest records now begin at these positions.
    pub(super) fn set_first(&self, first: &Positions) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for (&key, partition) in &mut state.partitions {
            let bounds = &mut partition.bounds;
            bounds.first = bounds.first.max(first.next(key)).min(bounds.next);
        }
    }

    /// Publishes a group: batches in the order of their sequence numbers, each with the
    /// partitions that it belongs to and its first number there.
    pub(super) fn publish(
        &self,
        enqueued: Timestamp,
        batches: impl Iterator<Item = (SmallVec<[(Key, SequenceNumber); 2]>, u32, Bytes)>,
    ) {
        let mut group = Group {
            batches: Vec::new(),
            bytes: 0,
        };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for (places, count, frames) in batches {
            group.bytes += frames.len();
            for (key, first) in places {
                group.bytes += BATCH_BYTES;
                state.append(key, first, count, enqueued, &frames);
                match group.batches.last_mut() {
                    Some((last, batches)) if *last == key => *batches += 1,
                    _ => group.batches.push((key, 1)),
                }
            }
        }
        state.bytes += group.bytes;
        state.groups.push_back(group);
        while state.bytes > self.bytes_max {
            let Some(oldest) = state.groups.pop_front() else {
                break;
            };
            state.evict(oldest);
        }
    }

    /// Reads from memory alone.
    pub(super) fn read(&self, request: &ReadRequest) -> Option<Records> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let partition = state.partitions.get(&(request.stream, request.partition))?;
        let from = request.from.max(partition.bounds.first);
        let recent = &partition.recent;
        if from >= partition.bounds.next || recent.front()?.first > from {
            return None;
        }
        let start = recent
            .partition_point(|batch| batch.first <= from)
            .checked_sub(1)?;
        let mut out = Records {
            records: Vec::new(),
            next: from,
        };
        let mut bytes = 0usize;
        for batch in recent.range(start..) {
            let mut frames = Frames::new(batch.frames.clone());
            let skip = from.saturating_sub(batch.first);
            for _ in 0..skip {
                frames.skip()?;
            }
            for sequence in batch.first + skip..batch.first + u64::from(batch.count) {
                // What is in memory was checked by whoever framed it.
                let data = frames.next_unchecked()?;
                bytes = bytes.saturating_add(data.len());
                let full = out.records.len() >= request.records_max || bytes > request.bytes_max;
                if full && !out.records.is_empty() {
                    return Some(out);
                }
                out.records.push(StoredRecord {
                    sequence,
                    enqueued: batch.enqueued,
                    data,
                });
                out.next = sequence + 1;
            }
        }
        Some(out)
    }
}

impl State {
    fn bounds(&self, key: Key) -> Bounds {
        self.partitions.get(&key).map_or(
            Bounds {
                first: self.floor,
                next: self.floor,
                last_enqueued: None,
            },
            |partition| partition.bounds,
        )
    }

    fn append(
        &mut self,
        key: Key,
        first: SequenceNumber,
        count: u32,
        enqueued: Timestamp,
        frames: &Bytes,
    ) {
        let bounds = self.bounds(key);
        let partition = self.partitions.entry(key).or_insert_with(|| Partition {
            bounds,
            recent: VecDeque::new(),
        });
        partition.bounds.next = first + u64::from(count);
        partition.bounds.last_enqueued = Some(enqueued);
        partition.recent.push_back(RecentBatch {
            first,
            count,
            enqueued,
            frames: frames.clone(),
        });
    }

    fn evict(&mut self, group: Group) {
        self.bytes = self.bytes.saturating_sub(group.bytes);
        for (key, batches) in group.batches {
            if let Some(partition) = self.partitions.get_mut(&key) {
                for _ in 0..batches {
                    partition.recent.pop_front();
                }
                if partition.recent.is_empty() {
                    partition.recent.shrink_to(16);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldpost_model::{PartitionId, StreamId};
    use fieldpost_store::log::BatchBuilder;

    const KEY: Key = (StreamId(0), PartitionId(1));

    fn publish(tail: &Tail, first: u64, bodies: &[&[u8]]) {
        let mut builder = BatchBuilder::new(KEY.1);
        for body in bodies {
            builder.push(|out| out.extend_from_slice(body));
        }
        let batch = builder.take().unwrap();
        tail.publish(
            Timestamp::from_millis(first as i64),
            std::iter::once((
                SmallVec::from_iter([(KEY, first)]),
                batch.count,
                batch.frames,
            )),
        );
    }

    fn read(tail: &Tail, from: u64, bytes_max: usize, records_max: usize) -> Option<Vec<u64>> {
        let request = ReadRequest {
            stream: KEY.0,
            partition: KEY.1,
            from,
            bytes_max,
            records_max,
        };
        let records = tail.read(&request)?;
        assert_eq!(records.next, records.records.last().unwrap().sequence + 1);
        Some(
            records
                .records
                .iter()
                .map(|record| record.sequence)
                .collect(),
        )
    }

    #[test]
    fn recent_records_are_read_from_memory_within_the_limits() {
        let tail = Tail::new(1 << 20, &Positions::default(), &Positions::default());
        assert_eq!(read(&tail, 0, 100, 100), None);
        publish(&tail, 0, &[b"aaaa", b"bbbb"]);
        publish(&tail, 2, &[b"cccc", b"dddd"]);
        assert_eq!(read(&tail, 0, 100, 100), Some(vec![0, 1, 2, 3]));
        assert_eq!(read(&tail, 1, 8, 100), Some(vec![1, 2]));
        assert_eq!(read(&tail, 1, 100, 1), Some(vec![1]));
        assert_eq!(read(&tail, 3, 0, 100), Some(vec![3]));
        assert_eq!(read(&tail, 4, 100, 100), None);
        let bounds = tail.bounds(KEY);
        assert_eq!((bounds.first, bounds.next), (0, 4));
    }

    #[test]
    fn the_ring_forgets_the_oldest_group_when_it_is_full() {
        let tail = Tail::new(
            3 * (BATCH_BYTES + 12),
            &Positions::default(),
            &Positions::default(),
        );
        for first in 0..5 {
            publish(&tail, first, &[b"aaaa"]);
        }
        assert_eq!(read(&tail, 1, 100, 100), None);
        assert_eq!(read(&tail, 2, 100, 100), Some(vec![2, 3, 4]));
    }
}
