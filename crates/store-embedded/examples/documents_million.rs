//! Loads a million documents of about 360 bytes and prints how long that, opening, counting and
//! reading take: `cargo run --release -p fieldpost-store-embedded --example documents_million [DIR]`.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod figures;

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldpost_store::documents::{Action, Change, Collection, Condition, Documents, ListRequest};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::keyvalue::{KeyValueStore, verify};
use figures::{bytes_below, memory};

const DOCUMENTS: u64 = 1_000_000;
const BATCH: u64 = 10_000;
const READS: u64 = 20_000;
const DEVICES: Collection = Collection(1);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let folder = env::args_os().nth(1);
    let folder = folder.as_deref().map_or(temporary.path(), Path::new);
    let path = folder.join("documents");
    let open =
        || KeyValueStore::open(&path, Arc::new(StoreHealth::new())).map(|store| store.documents);

    let documents = open()?;
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for first in (0..DOCUMENTS).step_by(10_000) {
        let batch = (first..first + BATCH).map(create).collect();
        let sent = Instant::now();
        block_on(documents.apply(batch))?;
        slowest = slowest.max(sent.elapsed());
    }
    report("load, batches of 10,000", begin);
    println!("  slowest batch {slowest:?}, {}", memory());

    let begin = Instant::now();
    block_on(documents.close());
    report("close", begin);

    let begin = Instant::now();
    let documents = open()?;
    report("open", begin);
    println!("  {}", memory());
    let begin = Instant::now();
    let counts = documents.counts(DEVICES);
    report("counts", begin);
    println!("  {counts:?}");

    let begin = Instant::now();
    for number in 0..READS {
        let key = key(number.wrapping_mul(7_919) % DOCUMENTS);
        let found = block_on(documents.get(DEVICES, key))?;
        assert!(found.is_some(), "document {number}");
    }
    report("20,000 single reads, one after the other", begin);

    let begin = Instant::now();
    let mut after = None;
    let mut listed = 0;
    loop {
        let page = block_on(documents.list(ListRequest {
            collection: DEVICES,
            prefix: Bytes::new(),
            after: after.take(),
            limit: 1_000,
        }))?;
        listed += page.documents.len();
        after = page.documents.last().map(|document| document.key.clone());
        if !page.more {
            break;
        }
    }
    report("list all in pages of 1,000", begin);
    assert_eq!(listed as u64, DOCUMENTS);

    let begin = Instant::now();
    for number in 0..1_000 {
        block_on(documents.apply(vec![create(number * 31)]))?;
    }
    report("1,000 updates, one after the other", begin);
    println!("  {}", memory());
    block_on(documents.close());

    let begin = Instant::now();
    let damage = verify(&path)?;
    report("verify", begin);
    println!("  {damage:?}, {}", memory());
    println!("on disk: {} MB", bytes_below(&path)? / 1_000_000);
    Ok(())
}

fn report(what: &str, begin: Instant) {
    println!("{what}: {:?}", begin.elapsed());
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("device-{number:07}"))
}

/// A device as the registry keeps it, more or less; keys do not compress.
fn create(number: u64) -> Change {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let secret: String = (0..12).map(|_| format!("{:016x}", word())).collect();
    let value = format!(
        "{{\"generationId\":\"{:016x}\",\"status\":\"enabled\",\"statusUpdated\":1800000000000,\
         \"authentication\":{{\"type\":\"sas\",\"keys\":\"{secret}\"}},\"capabilities\":{{}}}}",
        word()
    );
    Change {
        collection: DEVICES,
        key: key(number),
        condition: Condition::Any,
        action: Action::Put {
            class: u8::from(number.is_multiple_of(10)),
            value: value.into(),
        },
    }
}
