//! Rows and journals of documents and queues: no bytes panic, a row that is read is the row that would be
//! written, and a journal is cut where it stops being whole.
//!
//! Input: a kind, the length of a key, the key, and the fields of a row; or, for a journal, batches
//! with their length in front.
#![no_main]

use fieldpost_store_embedded::fuzzing::{Table, journal, row, row_read_back};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|input: &[u8]| {
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    let table = match kind % 14 {
        0 => Table::Documents,
        1 => Table::Feed,
        2 => Table::Deletions,
        3 => Table::Deleted,
        4 => Table::Count,
        5 => Table::State,
        6 => Table::Format,
        7 => return check_journal(rest),
        8 => Table::Messages,
        9 => Table::Due,
        10 => Table::Outcomes,
        11 => Table::Marks,
        12 => Table::Sequence,
        _ => Table::Lane,
    };
    let Some((&key_bytes, rest)) = rest.split_first() else {
        return;
    };
    let (key, fields) = rest.split_at(rest.len().min(usize::from(key_bytes)));
    for row in [fields, &row(table, key, fields)] {
        if let Some(written) = row_read_back(table, key, row) {
            assert_eq!(written, row);
        }
    }
});

fn check_journal(mut rest: &[u8]) {
    let mut bytes = Vec::new();
    let mut batches = 0;
    while let [mode, length, after @ ..] = rest {
        let (piece, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        if mode % 2 == 0 {
            bytes.extend_from_slice(piece);
        } else {
            batches += 1;
            put_batch(&mut bytes, batches, u32::from(*mode / 2), piece);
        }
    }
    let (valid, _) = journal(&bytes);
    let whole = &bytes[..usize::try_from(valid).expect("within the bytes")];
    assert_eq!(journal(whole), (valid, true));
}

/// A batch whose check is right; `items` are `count` items or not.
fn put_batch(out: &mut Vec<u8>, sequence: u64, count: u32, items: &[u8]) {
    out.push(1);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(items);
    out.push(3);
    out.extend_from_slice(&xxh3_64(items).to_le_bytes());
    out.extend_from_slice(b"FJL\x03");
}
