//! Checking fjall's journals before fjall replays them.
//!
//! fjall takes the first entry that it cannot parse for the end of a journal and cuts the file
//! there. That is right for a write that a crash tore, and would silently drop acknowledged changes
//! where the middle of the file is damaged. It also refuses to open when the torn write left its
//! end on the disk and not its middle, although nobody was ever promised that write. So the
//! journals are walked here first: a broken batch with whole batches after it is damage, and one
//! with none after it is a torn write and is cut off.
//!
//! A journal is a file `<number>.jnl` of batches, followed by zeros that were allocated ahead.
//! All integers are little-endian:
//!
//! | Entry | Bytes |
//! | --- | --- |
//! | start | `1`, item count `u32`, sequence number `u64` |
//! | item | `2`, kind `u8`, compression `u8` (0), table `u64`, key length `u16`, value length `u32`, stored length `u32`, key, value |
//! | clear | `4`, table `u64` |
//! | end | `3`, XXH3-64 of the item and clear entries `u64`, `FJL` `3` |

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";

/// What the journals of a store look like.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Journals {
    /// Nothing is wrong.
    Whole,
    /// A write was torn; it has to be cut off.
    Torn {
        /// The newest journal.
        file: PathBuf,
        /// Where its last whole batch ends.
        valid_bytes: u64,
    },
    /// A journal is not there.
    Missing {
        /// Its number.
        number: u64,
    },
    /// Acknowledged changes are damaged.
    Damaged {
        /// The journal.
        file: PathBuf,
        /// Where its first broken batch begins.
        valid_bytes: u64,
        /// Whether there are newer journals.
        newer: bool,
    },
}

/// Walks all journals of a store. Changes nothing.
pub(super) fn inspect(folder: &Path) -> io::Result<Journals> {
    let mut files = journals(folder)?;
    // Journals go from the oldest on, and the newest never goes.
    let first = files.first().map_or(0, |(number, _)| *number);
    let missing = (first..)
        .zip(&files)
        .find(|(expected, (number, _))| expected != number);
    if let Some((number, _)) = missing {
        return Ok(Journals::Missing { number });
    }
    let newest = files.pop();
    let mut sequence = None;
    for (_, file) in files {
        let walk = Walk::of(&fs::read(&file)?, &mut sequence);
        if walk.rest != Rest::Nothing {
            return Ok(Journals::Damaged {
                file,
                valid_bytes: walk.valid_bytes,
                newer: true,
            });
        }
    }
    let Some((_, file)) = newest else {
        return Ok(Journals::Missing { number: first });
    };
    let walk = Walk::of(&fs::read(&file)?, &mut sequence);
    let valid_bytes = walk.valid_bytes;
    Ok(match walk.rest {
        Rest::Nothing => Journals::Whole,
        Rest::Broken => Journals::Torn { file, valid_bytes },
        Rest::BrokenBeforeWhole => Journals::Damaged {
            file,
            valid_bytes,
            newer: false,
        },
    })
}

/// Cuts a torn write off.
pub(super) fn cut(file: &Path, valid_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    file.set_len(valid_bytes)?;
    File::sync_all(&file)
}

/// The journals, oldest first.
fn journals(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jnl"))
            .and_then(|number| number.parse().ok());
        // fjall itself refuses journals with another name.
        if let Some(number) = number {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// How far a journal is whole, and what follows.
pub(super) struct Walk {
    pub(super) valid_bytes: u64,
    pub(super) rest: Rest,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Zeros or nothing.
    Nothing,
    /// No whole batch.
    Broken,
    /// Something broken and a whole batch after it.
    BrokenBeforeWhole,
}

impl Walk {
    /// `sequence` is the newest sequence number so far. They grow from batch to batch; the
    /// journal's checksums do not cover them.
    pub(super) fn of(bytes: &[u8], sequence: &mut Option<u64>) -> Self {
        let mut rest = bytes;
        while let Some((number, after)) = batch(rest)
            && sequence.is_none_or(|last| number > last)
        {
            *sequence = Some(number);
            rest = after;
        }
        let valid_bytes = (bytes.len() - rest.len()) as u64;
        let rest = if rest.iter().all(|byte| *byte == 0) {
            Rest::Nothing
        } else if (0..rest.len())
            .any(|at| rest.get(at) == Some(&START) && rest.get(at..).and_then(batch).is_some())
        {
            Rest::BrokenBeforeWhole
        } else {
            Rest::Broken
        };
        Self { valid_bytes, rest }
    }
}

/// The sequence number of the whole batch that `bytes` starts with, and what comes after it.
fn batch(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut rest = bytes;
    if rest.try_get_u8().ok()? != START {
        return None;
    }
    let count = rest.try_get_u32_le().ok()?;
    let sequence = rest.try_get_u64_le().ok()?;
    let items = rest;
    for _ in 0..count {
        match rest.try_get_u8().ok()? {
            ITEM => {
                let kind_and_compression = rest.try_get_u16_le().ok()?;
                let (kind, compression) = (kind_and_compression & 0xff, kind_and_compression >> 8);
                if kind > 4 || compression != 0 {
                    return None;
                }
                rest.try_get_u64_le().ok()?;
                let key = usize::from(rest.try_get_u16_le().ok()?);
                let value = rest.try_get_u32_le().ok()?;
                let stored = rest.try_get_u32_le().ok()?;
                if value != stored {
                    return None;
                }
                let data = key.checked_add(usize::try_from(stored).ok()?)?;
                rest = rest.get(data..)?;
            }
            CLEAR => {
                rest.try_get_u64_le().ok()?;
            }
            _ => return None,
        }
    }
    let items = items.get(..items.len() - rest.len())?;
    if rest.try_get_u8().ok()? != END {
        return None;
    }
    let checksum = rest.try_get_u64_le().ok()?;
    let rest = rest.strip_prefix(TRAILER)?;
    (checksum == xxh3_64(items)).then_some((sequence, rest))
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};
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
        while let Some((_, after)) = batch(rest) {
            ends.push(bytes.len() - after.len());
            rest = after;
        }
        assert_eq!(ends.len(), 3, "the format is as described here");
        // Whatever was allocated ahead is of no interest below.
        cut(&file, (ends[2] + 100) as u64).unwrap();
        (folder, file, ends)
    }

    #[test]
    fn a_broken_batch_is_damage_unless_it_is_the_last() {
        let (folder, file, ends) = store();
        assert_eq!(inspect(folder.path()).unwrap(), Journals::Whole);
        let whole = fs::read(&file).unwrap();
        for at in 0..ends[2] {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                fs::write(&file, &damaged).unwrap();
                let found = inspect(folder.path()).unwrap();
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
            assert_eq!(inspect(folder.path()).unwrap(), expected, "cut at {end}");
        }
        // The middle of the last write never reached the disk.
        let mut torn = whole.clone();
        torn[ends[1] + 30..ends[1] + 60].fill(0);
        fs::write(&file, &torn).unwrap();
        let Journals::Torn { file, valid_bytes } = inspect(folder.path()).unwrap() else {
            panic!("torn");
        };
        cut(&file, valid_bytes).unwrap();
        assert_eq!(inspect(folder.path()).unwrap(), Journals::Whole);
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
        assert_eq!(inspect(folder.path()).unwrap(), Journals::Whole);
        let mut damaged = fs::read(&file).unwrap();
        damaged[ends[1] + 20] ^= 1;
        fs::write(&file, &damaged).unwrap();
        let expected = Journals::Damaged {
            file,
            valid_bytes: ends[1] as u64,
            newer: true,
        };
        assert_eq!(inspect(folder.path()).unwrap(), expected);

        fs::rename(folder.path().join("1.jnl"), folder.path().join("3.jnl")).unwrap();
        let missing = Journals::Missing { number: 1 };
        assert_eq!(inspect(folder.path()).unwrap(), missing);
    }
}
