//! Framed records: no bytes panic, what is read is framed again as it was, and an error is the end.
#![no_main]

use bytes::Bytes;
use fieldpost_model::PartitionId;
use fieldpost_store::log::{BatchBuilder, FramedRecords};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, frames)) = input.split_first() else {
        return;
    };
    let mut frames = frames.to_vec();
    if mode & 1 != 0 {
        put_checks(&mut frames);
    }
    let mut walk = FramedRecords::new(Bytes::from(frames.clone()));
    let mut builder = BatchBuilder::new(PartitionId(0));
    let mut failed = false;
    for record in walk.by_ref() {
        assert!(!failed);
        match record {
            Ok(record) => {
                builder.push(|out| out.extend_from_slice(&record));
            }
            Err(_) => failed = true,
        }
    }
    assert!(walk.next().is_none());
    let again = builder.take().map_or(Bytes::new(), |batch| batch.frames);
    assert!(frames.starts_with(&again));
    assert_eq!(again.len() == frames.len(), !failed);
});

/// Gives each frame the check that it needs, as far as lengths lead.
fn put_checks(mut rest: &mut [u8]) {
    while let Some((header, data)) = rest.split_first_chunk_mut::<8>() {
        let length = [header[0], header[1], header[2], header[3]];
        let Some((data, after)) = data.split_at_mut_checked(u32::from_le_bytes(length) as usize)
        else {
            return;
        };
        let check = crc32c::crc32c_append(crc32c::crc32c(&length), data);
        header[4..].copy_from_slice(&check.to_le_bytes());
        rest = after;
    }
}
