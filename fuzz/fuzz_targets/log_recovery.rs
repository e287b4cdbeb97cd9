//! Opening a log over arbitrary files: no bytes panic or hang, whatever can be read is read, and the
//! log takes records and is whole when it is opened again.
//!
//! Input: options, then pieces of files, each with a kind and a length in front (see `files`).
#![no_main]

use std::io::IoSlice;
use std::sync::Arc;

use fieldpost_fuzz::NOW;
use fieldpost_hub::clock::ManualClock;
use fieldpost_model::{Clock, PartitionId, Partitioning, StreamId, Timestamp};
use fieldpost_store::log::{Appender, AtBytesMax, BatchBuilder, EventLog, ReadRequest, Retention};
use fieldpost_store_embedded::files::Files;
use fieldpost_store_embedded::files::sim::SimDisk;
use fieldpost_store_embedded::fuzzing::{accept_log_losses, verify_log};
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::log::{LogId, LogIdentity, RecoveryReport, SteppedLog, Turn};
use fieldpost_store_embedded::{DiskMarks, LogSettings};
use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 4096;
const LOG_ID: [u8; 16] = [0x5a; 16];
const PARTITIONS: u16 = 3;
const FILE_BYTES_MAX: usize = 256 * 1024;

/// Give what is checked the check that it needs.
const PUT_CHECKS: u8 = 1;
/// Let the lengths and counts of a group agree.
const PUT_SUMS: u8 = 2;
/// Leave forged numbers that come close to the format's last one. A log never reaches those, and has
/// nowhere to go from there.
const KEEP_LAST_NUMBERS: u8 = 4;

fuzz_target!(|input: &[u8]| {
    let Some((&options, pieces)) = input.split_first() else {
        return;
    };
    let disk = SimDisk::new();
    for (name, mut content) in files(pieces) {
        if options & PUT_CHECKS != 0 {
            if name.ends_with(".segment") {
                put_segment_checks(&mut content, options);
            } else {
                put_index_check(&mut content);
            }
        }
        write(&disk, &name, &content);
    }
    let partitioning = identity().partitioning;
    let _ = verify_log(&disk, LogId(LOG_ID), partitioning);
    accept_losses(disk.copy());

    let Some((log, _)) = open(&disk) else {
        return;
    };
    log.check_older();
    for (stream, partition) in [(0, 0), (0, 1), (1, 2)] {
        read_all(&log, StreamId(stream), PartitionId(partition));
    }
    let appended = append(&log);
    while log.keep_once() {}
    log.close()
        .now_or_never()
        .expect("closing waits for nothing");
    let bounds = (0..PARTITIONS).map(|at| log.bounds(StreamId::BUILT_IN, PartitionId(at)));
    let bounds: Vec<_> = bounds.collect();
    if !appended || options & KEEP_LAST_NUMBERS != 0 {
        return;
    }

    let (again, report) = open(&disk).expect("it was closed in order");
    // It is not said to be clean when the last segment has no room for saying so.
    assert_eq!(report.torn, None);
    for (partition, bounds) in bounds.into_iter().enumerate() {
        let partition = PartitionId(u16::try_from(partition).expect("few"));
        let found = again.bounds(StreamId::BUILT_IN, partition);
        assert_eq!(found.next, bounds.next, "{partition}");
    }
});

/// Whatever is damaged, nothing of it is left once all of it is accepted.
fn accept_losses(disk: SimDisk) {
    let files: Arc<dyn Files> = Arc::new(disk);
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(NOW));
    if let Ok(left) = accept_log_losses(&files, identity(), &settings(), &clock) {
        assert_eq!(left.damage, []);
    }
}

fn open(disk: &SimDisk) -> Option<(Arc<SteppedLog>, RecoveryReport)> {
    let clock = Arc::new(ManualClock::new(NOW));
    let health = Arc::new(StoreHealth::new());
    let files = Arc::new(disk.clone());
    SteppedLog::open(files, identity(), &settings(), clock, health).ok()
}

fn identity() -> LogIdentity {
    LogIdentity {
        id: LogId(LOG_ID),
        created: NOW,
        partitioning: Partitioning::new(PARTITIONS).expect("in range"),
        fresh: false,
        losses: 1,
    }
}

fn settings() -> LogSettings {
    LogSettings {
        segment_bytes_first: 64 << 10,
        segment_bytes_max: 128 << 10,
        tail_bytes: 16 << 10,
        retention: Retention {
            age_min: std::time::Duration::from_secs(86_400),
            bytes_max: None,
            at_bytes_max: AtBytesMax::HoldMessages,
        },
        marks: DiskMarks {
            hold_messages: Some(0),
            hold_all: Some(0),
        },
        reserve_bytes: 0,
    }
}

/// Reads a partition from end to end, over what is damaged.
fn read_all(log: &SteppedLog, stream: StreamId, partition: PartitionId) {
    let bounds = log.bounds(stream, partition);
    assert!(bounds.first <= bounds.next);
    let mut from = bounds.first;
    // Damage may span any count of numbers; a few steps into it will do.
    for _ in 0..10 {
        let request = ReadRequest {
            stream,
            partition,
            from,
            bytes_max: 64 * 1024,
            records_max: 100,
        };
        let read = log.read(request).now_or_never().expect("answered at once");
        from = match read {
            Ok(records) if records.records.is_empty() => break,
            Ok(records) => {
                let first = records
                    .records
                    .first()
                    .map_or(from, |record| record.sequence);
                assert!(first >= from);
                for (expected, record) in (first..).zip(&records.records) {
                    assert_eq!(record.sequence, expected);
                }
                assert_eq!(records.next, first + records.records.len() as u64);
                assert!(records.next <= bounds.next);
                records.next
            }
            Err(_) if from < bounds.next => from + 1,
            Err(error) => panic!("nothing was asked for, and it failed: {error}"),
        };
    }
    for after in [i64::MIN, NOW.as_millis()] {
        let found = log.seek_time(stream, partition, Timestamp::from_millis(after));
        let found = found.now_or_never().expect("answered at once");
        assert!(found.is_err() || found.is_ok_and(|found| found <= bounds.next));
    }
}

/// Appends a record and reads it back; false when the log takes none.
fn append(log: &Arc<SteppedLog>) -> bool {
    let partition = PartitionId(1);
    let mut builder = BatchBuilder::new(partition);
    builder.push(|out| out.extend_from_slice(b"appended"));
    let batch = builder.take().expect("one record");
    let next = log.bounds(StreamId::BUILT_IN, partition).next;
    let mut appender = Appender::new(Arc::clone(log) as _);
    if appender.submit(batch).is_err() || log.commit_once() != (Turn::Committed { batches: 1 }) {
        return false;
    }
    let request = ReadRequest {
        stream: StreamId::BUILT_IN,
        partition,
        from: next,
        bytes_max: 1000,
        records_max: 1,
    };
    let read = log.read(request).now_or_never().expect("answered at once");
    let records = read.expect("it was made durable").records;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].sequence, next);
    assert_eq!(records[0].data, b"appended"[..]);
    true
}

/// Files as the input describes them: pieces with a kind and a length, little-endian, in front.
/// Kind modulo 4, with the rest as the number of a segment: 0 goes on with the file at the next block,
/// 1 begins a segment, 2 begins an index, 3 adds so many empty blocks.
fn files(mut rest: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    while let [kind, low, high, after @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let id = kind / 4;
        if kind % 4 == 3 {
            rest = after;
            if let Some((_, content)) = files.last_mut() {
                let end = content.len().next_multiple_of(BLOCK) + length % 64 * BLOCK;
                content.resize(end.min(FILE_BYTES_MAX), 0);
            }
            continue;
        }
        let (piece, after) = after.split_at(after.len().min(length));
        rest = after;
        let room = files.len() < 6;
        match (kind % 4, files.last_mut()) {
            (0, Some((_, content))) => {
                content.resize(content.len().next_multiple_of(BLOCK), 0);
                content.extend_from_slice(piece);
                content.truncate(FILE_BYTES_MAX);
            }
            (1 | 2, _) if room => {
                let extension = if kind % 4 == 1 { "segment" } else { "index" };
                files.push((format!("{id:016x}.{extension}"), piece.to_vec()));
            }
            _ => {}
        }
    }
    files
}

fn write(disk: &SimDisk, name: &str, content: &[u8]) {
    let file = disk.create(name).expect("no faults");
    let written = file.write_at(&[IoSlice::new(content)], 0);
    assert_eq!(written.expect("no faults"), content.len());
    file.sync().expect("no faults");
    disk.sync_dir().expect("no faults");
}

fn put_segment_checks(content: &mut [u8], options: u8) {
    if let Some(header) = content.first_chunk::<BLOCK>()
        && header.starts_with(b"FPLOGSEG")
    {
        let bytes = number(header, 12);
        if let Some(header) = content.get_mut(..bytes).filter(|header| header.len() >= 88) {
            header[16..32].copy_from_slice(&LOG_ID);
            // Capacity, last group, floor, and where each partition stands.
            let positions = (88..header.len().saturating_sub(24)).step_by(24);
            for field in [40, 48, 64].into_iter().chain(positions.map(|at| at + 8)) {
                lower(header, field, options);
            }
            put(header, 84, 0);
            let check = crc32c::crc32c(header);
            put(header, 84, check);
        }
    }
    for at in (BLOCK..content.len()).step_by(BLOCK) {
        let group = &mut content[at..];
        if group.len() >= 64 && group.starts_with(b"FPLG") {
            put_group_checks(group, options);
        }
    }
}

fn put_group_checks(group: &mut [u8], options: u8) {
    let table_end = 64 + number(group, 36);
    if table_end > group.len() {
        return;
    }
    lower(group, 16, options);
    lower(group, 24, options);
    let (mut at, mut frames_at) = (64, table_end);
    let (mut runs, mut records) = (0u32, 0u32);
    while at + 16 <= table_end {
        let streams = usize::from(u16::from_le_bytes([group[at + 2], group[at + 3]]));
        let bytes = number(group, at + 8);
        let Some(frames) = group.get_mut(frames_at..frames_at.saturating_add(bytes)) else {
            break;
        };
        put_frame_checks(frames);
        let check = crc32c::crc32c(frames);
        put(group, at + 12, check);
        for stream in 0..streams.min((table_end - at) / 16 - 1) {
            lower(group, at + 24 + stream * 16, options);
        }
        runs += 1;
        records = records.wrapping_add(number(group, at + 4) as u32);
        at += 16 + streams * 16;
        frames_at += bytes;
    }
    if options & PUT_SUMS != 0 {
        put(group, 32, u32::try_from(frames_at).expect("a small file"));
        put(group, 40, runs);
        put(group, 44, records);
    }
    let check = crc32c::crc32c_append(crc32c::crc32c(&LOG_ID), &group[..60]);
    let check = crc32c::crc32c_append(check, &group[64..table_end]);
    put(group, 60, check);
}

fn put_frame_checks(mut rest: &mut [u8]) {
    while rest.len() >= 8 {
        let length = number(rest, 0);
        let (header, data) = rest.split_at_mut(8);
        let Some((data, after)) = data.split_at_mut_checked(length) else {
            return;
        };
        let check = crc32c::crc32c_append(crc32c::crc32c(&header[..4]), data);
        put(header, 4, check);
        rest = after;
    }
}

fn put_index_check(content: &mut [u8]) {
    if content.len() < 52 {
        return;
    }
    content[16..32].copy_from_slice(&LOG_ID);
    let body = content.len() - 4;
    let check = crc32c::crc32c(&content[..body]);
    put(content, body, check);
}

fn number(bytes: &[u8], at: usize) -> usize {
    let field = bytes[at..].first_chunk().expect("within the bytes");
    u32::from_le_bytes(*field) as usize
}

/// Keeps a 64-bit number away from the format's last one.
fn lower(bytes: &mut [u8], at: usize, options: u8) {
    if options & KEEP_LAST_NUMBERS == 0
        && let Some(highest) = bytes.get_mut(at + 7)
    {
        *highest &= 0x0f;
    }
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
