use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A store of fjall's own making with three batches, and where each ends in its journal.
fn store() -> (TempDir, PathBuf, Vec<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::builder(folder.path()).open().unwrap();
    let table = database
        .keyspace("table", KeyspaceCreateOptions::default)
        .unwrap();
    for number in 0..3u8 {
        let mut batch = database.batch().durability(Some(PersistMode::SyncData));
        batch.insert(&table, [number], [number; 40]);
        batch.insert(&table, [number, 1], []);
        batch.remove(&table, [number, 2]);
        batch.commit().unwrap();
    }
    drop((table, database));
    let file = folder.path().join("0.jnl");
    let bytes = fs::read(&file).unwrap();
    let mut ends = Vec::new();
    let mut rest = &bytes[..];
    while let Some(batch) = Batch::at(rest) {
        rest = batch.rest;
        ends.push(bytes.len() - rest.len());
    }
    assert_eq!(ends.len(), 3, "the format is as described here");
    // Whatever was allocated ahead is of no interest below.
    cut(&file, (ends[2] + 100) as u64).unwrap();
    (folder, file, ends)
}

#[test]
fn a_broken_batch_is_damage_unless_it_is_the_last() {
    let (folder, file, ends) = store();
    assert_eq!(inspect(folder.path(), None).unwrap(), Journals::Whole);
    let whole = fs::read(&file).unwrap();
    for at in 0..ends[2] {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            fs::write(&file, &damaged).unwrap();
            let found = inspect(folder.path(), None).unwrap();
            let valid = ends.iter().rev().find(|end| **end <= at).copied();
            let valid_bytes = valid.unwrap_or(0) as u64;
            let context = format!("byte {at} with {flip:#x}: {found:?}");
            if at >= ends[1] {
                // A higher number of the last batch cannot be told from the right one, and
                // does no harm.
                let number = (ends[1] + 5..ends[1] + 13).contains(&at);
                let file = file.clone();
                let torn = Journals::Torn { file, valid_bytes };
                assert!(
                    found == torn || number && found == Journals::Whole,
                    "{context}"
                );
            } else if let Journals::Damaged {
                valid_bytes: found,
                newer,
                ..
            } = found
            {
                // A number that is too high is noticed at the next batch.
                assert!(found >= valid_bytes && !newer, "{context}");
            } else {
                // Numbers that still grow keep the order, which is all they are for.
                let number = |start: usize| (start + 5..start + 13).contains(&at);
                assert!(number(0) || number(ends[0]), "{context}");
            }
        }
    }
}

#[test]
fn a_cut_or_a_torn_write_at_the_end_is_cut_off_and_the_rest_is_kept() {
    let (folder, file, ends) = store();
    let whole = fs::read(&file).unwrap();
    for end in 0..=whole.len() {
        fs::write(&file, &whole[..end]).unwrap();
        let valid = ends.iter().rev().find(|at| **at <= end).copied();
        let expected = match valid {
            Some(valid) if whole[valid..end].iter().all(|byte| *byte == 0) => Journals::Whole,
            None if end == 0 => Journals::Whole,
            valid => Journals::Torn {
                file: file.clone(),
                valid_bytes: valid.unwrap_or(0) as u64,
            },
        };
        assert_eq!(
            inspect(folder.path(), None).unwrap(),
            expected,
            "cut at {end}"
        );
    }
    // The middle of the last write never reached the disk.
    let mut torn = whole.clone();
    torn[ends[1] + 30..ends[1] + 60].fill(0);
    fs::write(&file, &torn).unwrap();
    let Journals::Torn { file, valid_bytes } = inspect(folder.path(), None).unwrap() else {
        panic!("torn");
    };
    cut(&file, valid_bytes).unwrap();
    assert_eq!(inspect(folder.path(), None).unwrap(), Journals::Whole);
    let database = Database::builder(folder.path()).open().unwrap();
    let table = database
        .keyspace("table", KeyspaceCreateOptions::default)
        .unwrap();
    assert_eq!(table.len().unwrap(), 4);
}

#[test]
fn older_journals_are_whole_or_damaged() {
    let (folder, file, ends) = store();
    fs::write(folder.path().join("1.jnl"), [0; 10]).unwrap();
    assert_eq!(inspect(folder.path(), None).unwrap(), Journals::Whole);
    let mut damaged = fs::read(&file).unwrap();
    damaged[ends[1] + 20] ^= 1;
    fs::write(&file, &damaged).unwrap();
    let expected = Journals::Damaged {
        file,
        valid_bytes: ends[1] as u64,
        newer: true,
    };
    assert_eq!(inspect(folder.path(), None).unwrap(), expected);

    fs::rename(folder.path().join("1.jnl"), folder.path().join("3.jnl")).unwrap();
    let missing = Journals::Missing { number: 1 };
    assert_eq!(inspect(folder.path(), None).unwrap(), missing);
}

/// A batch as the engine writes it, with one item for each value.
fn batch(sequence: u64, values: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut items = Vec::new();
    for (key, value) in values {
        items.extend([ITEM, 0, 0]);
        items.extend(7u64.to_le_bytes());
        items.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
        let length = u32::try_from(value.len()).unwrap().to_le_bytes();
        items.extend([length, length].concat());
        items.extend([*key, *value].concat());
    }
    let count = u32::try_from(values.len()).unwrap();
    let mut batch = vec![START];
    batch.extend(count.to_le_bytes());
    batch.extend(sequence.to_le_bytes());
    batch.extend(&items);
    batch.push(END);
    batch.extend(xxh3_64(&items).to_le_bytes());
    batch.extend(TRAILER);
    batch
}

/// A message that holds whole batches, as someone sends it who wants the store to stay shut.
fn crafted() -> impl Strategy<Value = Vec<u8>> {
    let empty = any::<u64>().prop_map(|sequence| batch(sequence, &[]));
    let next = (0..40u64, 0..90usize).prop_map(|(ahead, length)| {
        let value = vec![0x55; length];
        batch(4 + ahead, &[(b"key", &value), (SECRET_KEY, &value)])
    });
    let filler = proptest::collection::vec(any::<u8>(), 0..600);
    let part = prop_oneof![empty, next.clone(), next, filler];
    proptest::collection::vec(part, 1..24).prop_map(|parts| parts.concat())
}

/// Three batches of the store, and the journal's end after each, with a message in the last.
fn own_batches(secret: &Secret, message: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut journal = Vec::new();
    let mut ends = Vec::new();
    for (sequence, value) in [(1, &b"one"[..]), (2, b"two"), (3, message)] {
        let own = (SECRET_KEY, secret.row());
        journal.extend(batch(sequence, &[own, (b"message", value), (b"due", b"q")]));
        ends.push(journal.len());
    }
    (journal, ends)
}

fn walk(bytes: &[u8], secret: &Secret) -> (usize, Rest) {
    let walk = Walk::of(bytes, &mut None, Some(secret));
    (usize::try_from(walk.valid_bytes).unwrap(), walk.rest)
}

proptest! {
    #[test]
    fn nothing_that_was_sent_makes_a_torn_write_look_like_damage(
        message in crafted(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 8),
        holes in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let secret = Secret::choose().unwrap();
        let (whole, ends) = own_batches(&secret, &message);
        let (start, end) = (ends[1], ends[2]);
        prop_assert_eq!(walk(&whole, &secret), (end, Rest::Nothing));
        let check = |torn: &[u8]| {
            let is_gone = torn[start..].iter().all(|byte| *byte == 0);
            let is_whole = torn[..end.min(torn.len())] == whole[..];
            let expected = match (is_whole, is_gone) {
                (true, _) => (end, Rest::Nothing),
                (_, true) => (start, Rest::Nothing),
                _ => (start, Rest::Broken),
            };
            assert_eq!(walk(torn, &secret), expected);
        };
        // Ends early, at each sector and anywhere; zeros were allocated ahead, or were not.
        let sectors = (start..=end).filter(|at| at % 512 == 0);
        for cut in sectors.chain(cuts.iter().map(|cut| start + cut.index(end - start))) {
            check(&whole[..cut]);
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            torn.resize(end + 4_096, 0);
            check(&torn);
        }
        // Any of its sectors never came.
        for turned in 0..holes.len() {
            let mut torn = whole.clone();
            for (at, byte) in torn.iter_mut().enumerate().skip(start) {
                if holes[(at / 512 + turned) % holes.len()] {
                    *byte = 0;
                }
            }
            torn.resize(end + 4_096, 0);
            check(&torn);
        }
    }

    #[test]
    fn damage_in_front_of_own_batches_is_damage_whatever_was_sent(
        message in crafted(),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let secret = Secret::choose().unwrap();
        let (whole, ends) = own_batches(&secret, &message);
        let mut behind = whole.clone();
        behind.extend(batch(4, &[(SECRET_KEY, secret.row())]));
        let at = at.index(ends[2]);
        let mut damaged = behind.clone();
        damaged[at] ^= flip;
        let start = ends.iter().rev().find(|end| **end <= at).copied().unwrap_or(0);
        // Of a batch's number only the order is checked.
        if !(start + 5..start + 13).contains(&at) {
            prop_assert_eq!(walk(&damaged, &secret), (start, Rest::BrokenBeforeWhole));
        }
    }
}

#[test]
fn only_batches_with_the_secret_in_front_are_the_stores_own() {
    let secret = Secret::choose().unwrap();
    let (mut journal, ends) = own_batches(&secret, &batch(9, &[(b"key", b"value")]));
    journal[ends[1] + 20] ^= 1;
    assert_eq!(walk(&journal, &secret), (ends[1], Rest::Broken));
    let without = Walk::of(&journal, &mut None, None);
    assert_eq!(without.rest, Rest::BrokenBeforeWhole);

    let other = Secret::choose().unwrap();
    let own = (SECRET_KEY, secret.row());
    for (items, expected) in [
        (vec![own], Rest::BrokenBeforeWhole),
        (vec![own, (b"key", b"value")], Rest::BrokenBeforeWhole),
        (vec![(b"key", b"value"), own], Rest::Broken),
        (vec![(SECRET_KEY, other.row())], Rest::Broken),
        (vec![(b"key", secret.row())], Rest::Broken),
        (vec![], Rest::Broken),
    ] {
        let after = [&journal[..], &batch(10, &items)].concat();
        assert_eq!(walk(&after, &secret), (ends[1], expected), "{items:?}");
    }
}
