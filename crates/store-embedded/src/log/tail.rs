//! What readers see of the newest records: bounds, and the frames of recent groups in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use fieldpost_model::{SequenceNumber, Timestamp};
use fieldpost_store::log::{Bounds, RECORD_FRAME_BYTES, ReadRequest, Records, StoredRecord};
use smallvec::SmallVec;

use super::format::{Key, Positions, size};
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

/// A batch on its way into the ring.
pub(super) struct Published {
    /// The partitions that it belongs to, and its first number in each.
    pub(super) places: SmallVec<[(Key, SequenceNumber); 2]>,
    pub(super) count: u32,
    pub(super) frames: Bytes,
    /// Memory that the frames keep.
    pub(super) memory_bytes: usize,
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

    /// Publishes a group: batches in the order of their sequence numbers. Gives what the ring holds
    /// no more, whose memory is better freed when nobody waits.
    pub(super) fn publish(
        &self,
        enqueued: Timestamp,
        batches: impl Iterator<Item = Published>,
    ) -> Vec<RecentBatch> {
        // Readers wait for the lock, and this for them: nothing is done under it that can be done
        // before or after.
        let batches: Vec<Published> = batches.collect();
        let mut evicted = Vec::new();
        let mut group = Group {
            batches: Vec::new(),
            bytes: 0,
        };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for Published {
            places,
            count,
            frames,
            memory_bytes,
        } in batches
        {
            group.bytes += memory_bytes.max(frames.len());
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
            state.evict(oldest, &mut evicted);
        }
        evicted
    }

    /// Reads from memory alone.
    pub(super) fn read(&self, request: &ReadRequest) -> Option<Records> {
        let (from, batches) = self.holding(request)?;
        let mut out = Records {
            records: Vec::new(),
            next: from,
        };
        let mut bytes = 0usize;
        for batch in batches {
            let mut frames = Frames::new(batch.frames);
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

    /// Where a read begins, and the batches that it is about: as many as it can take, or one more.
    fn holding(&self, request: &ReadRequest) -> Option<(SequenceNumber, Vec<RecentBatch>)> {
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
        let mut batches = Vec::new();
        let mut records = 0u64;
        let mut bytes = 0usize;
        for batch in recent.range(start..) {
            batches.push(batch.clone());
            let count = u64::from(batch.count);
            let skipped = from.saturating_sub(batch.first);
            records += count.saturating_sub(skipped);
            // How much of a batch is skipped shows only when it is walked.
            if skipped == 0 {
                let headers = size(count).saturating_mul(RECORD_FRAME_BYTES);
                bytes = bytes.saturating_add(batch.frames.len().saturating_sub(headers));
            }
            if records >= request.records_max as u64 || bytes > request.bytes_max {
                break;
            }
        }
        Some((from, batches))
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

    /// Takes a group out; `evicted` gets what its memory hangs on.
    fn evict(&mut self, group: Group, evicted: &mut Vec<RecentBatch>) {
        self.bytes = self.bytes.saturating_sub(group.bytes);
        for (key, batches) in group.batches {
            if let Some(partition) = self.partitions.get_mut(&key) {
                for _ in 0..batches {
                    evicted.extend(partition.recent.pop_front());
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
            std::iter::once(Published {
                places: SmallVec::from_iter([(KEY, first)]),
                count: batch.count,
                frames: batch.frames,
                memory_bytes: batch.memory_bytes,
            }),
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
        let mut builder = BatchBuilder::new(KEY.1);
        builder.push(|out| out.extend_from_slice(b"aaaa"));
        let each = BATCH_BYTES + builder.take().unwrap().memory_bytes;
        let tail = Tail::new(3 * each, &Positions::default(), &Positions::default());
        for first in 0..5 {
            publish(&tail, first, &[b"aaaa"]);
        }
        assert_eq!(read(&tail, 1, 100, 100), None);
        assert_eq!(read(&tail, 2, 100, 100), Some(vec![2, 3, 4]));
    }

    #[test]
    fn the_ring_counts_the_memory_that_frames_keep() {
        let mut builder = BatchBuilder::new(KEY.1);
        let bodies = [[7; 1000]; 5];
        for body in &bodies {
            builder.push(|out| out.extend_from_slice(body));
        }
        let batch = builder.take().unwrap();
        assert!(batch.memory_bytes > batch.frames.len());
        let room = 2 * (BATCH_BYTES + batch.frames.len());
        assert!(batch.memory_bytes + BATCH_BYTES <= room);
        let tail = Tail::new(room, &Positions::default(), &Positions::default());
        let bodies: Vec<&[u8]> = bodies.iter().map(|body| &body[..]).collect();
        publish(&tail, 0, &bodies);
        assert!(read(&tail, 0, 1, 1).is_some());
        publish(&tail, 5, &bodies);
        assert!(read(&tail, 5, 1, 1).is_some());
        assert_eq!(read(&tail, 0, 1, 1), None);
    }

    #[test]
    fn readers_do_not_wait_for_memory_to_be_freed() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use std::sync::{Arc, Weak};

        /// Frames that look whether the ring can be read when they go.
        struct Looks(Vec<u8>, Weak<Tail>, Arc<AtomicUsize>);

        impl AsRef<[u8]> for Looks {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl Drop for Looks {
            fn drop(&mut self) {
                if let Some(tail) = self.1.upgrade() {
                    assert!(tail.state.try_read().is_ok());
                    self.2.fetch_add(1, Ordering::Relaxed);
                }
            }
        }

        let positions = Positions::default();
        let tail = Arc::new(Tail::new(BATCH_BYTES + 100, &positions, &positions));
        let freed = Arc::new(AtomicUsize::new(0));
        for first in 0..4 {
            let frames = Looks(vec![0; 60], Arc::downgrade(&tail), Arc::clone(&freed));
            let published = Published {
                places: SmallVec::from_iter([(KEY, first)]),
                count: 1,
                frames: Bytes::from_owner(frames),
                memory_bytes: 60,
            };
            tail.publish(Timestamp::UNIX_EPOCH, std::iter::once(published));
        }
        assert_eq!(freed.load(Ordering::Relaxed), 3);
    }
}
