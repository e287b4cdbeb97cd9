//! Checking fjall's journals before fjall replays them.
//!
//! fjall takes the first entry that it cannot parse for the end of a journal and cuts the file
//! there. That is right for a write that a crash tore, and would silently drop acknowledged changes
//! where the middle of the file is damaged. It also refuses to open when the torn write left its
//! end on the disk and not its middle, although nobody was ever promised that write. So the
//! journals are walked here first: a broken batch with whole batches after it is damage, and one
//! with none after it is a torn write and is cut off. Batches carry messages, and whoever sends one
//! could put whole-looking batches into it; those after a broken one therefore count only if they
//! have the store's secret.
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

use super::secret::{SECRET_KEY, Secret};

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
///
/// Without a secret, every whole batch after a broken one counts.
pub(super) fn inspect(folder: &Path, secret: Option<&Secret>) -> io::Result<Journals> {
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
        let walk = Walk::of(&fs::read(&file)?, &mut sequence, secret);
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
    let walk = Walk::of(&fs::read(&file)?, &mut sequence, secret);
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
    /// No whole batch of the store's own making.
    Broken,
    /// Something broken and a whole batch of the store's own making after it.
    BrokenBeforeWhole,
}

impl Walk {
    /// `sequence` is the newest sequence number so far. They grow from batch to batch; the
    /// journal's checksums do not cover them.
    pub(super) fn of(bytes: &[u8], sequence: &mut Option<u64>, secret: Option<&Secret>) -> Self {
        let mut rest = bytes;
        while let Some(batch) = Batch::at(rest)
            && sequence.is_none_or(|last| batch.sequence > last)
        {
            *sequence = Some(batch.sequence);
            rest = batch.rest;
        }
        let valid_bytes = (bytes.len() - rest.len()) as u64;
        // A batch ends with its trailer, so that none is cut short by this.
        let rest = without_zeros(rest);
        let rest = if rest.is_empty() {
            Rest::Nothing
        } else if (0..rest.len()).any(|at| {
            let rest = rest.get(at..).unwrap_or_default();
            rest.first() == Some(&START)
                && Batch::at(rest).is_some_and(|batch| batch.is_own(secret))
        }) {
            Rest::BrokenBeforeWhole
        } else {
            Rest::Broken
        };
        Self { valid_bytes, rest }
    }
}

/// Without the zeros at the end, of which there can be tens of megabytes.
fn without_zeros(mut bytes: &[u8]) -> &[u8] {
    const ZEROS: [u8; 4096] = [0; 4096];
    while let Some(rest) = bytes.strip_suffix(&ZEROS) {
        bytes = rest;
    }
    let end = bytes.iter().rposition(|byte| *byte != 0);
    bytes
        .get(..end.map_or(0, |last| last + 1))
        .unwrap_or_default()
}

/// A whole batch.
struct Batch<'a> {
    sequence: u64,
    /// Key and value of the first item, of which there is one at least.
    first: (&'a [u8], &'a [u8]),
    /// What comes after it.
    rest: &'a [u8],
}

impl<'a> Batch<'a> {
    /// The batch that `bytes` starts with.
    fn at(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        if rest.try_get_u8().ok()? != START {
            return None;
        }
        let count = rest.try_get_u32_le().ok()?;
        let sequence = rest.try_get_u64_le().ok()?;
        let items = rest;
        let mut first = None;
        for _ in 0..count {
            let item = match rest.try_get_u8().ok()? {
                ITEM => take_item(&mut rest)?,
                CLEAR => {
                    rest.try_get_u64_le().ok()?;
                    Default::default()
                }
                _ => return None,
            };
            first.get_or_insert(item);
        }
        let items = items.get(..items.len() - rest.len())?;
        if rest.try_get_u8().ok()? != END {
            return None;
        }
        let checksum = rest.try_get_u64_le().ok()?;
        let rest = rest.strip_prefix(TRAILER)?;
        (checksum == xxh3_64(items)).then_some(Self {
            sequence,
            first: first?,
            rest,
        })
    }

    /// Whether it is not something that came from outside. The secret stands in front of all else
    /// in a batch, so that nothing in a batch can hold it.
    fn is_own(&self, secret: Option<&Secret>) -> bool {
        secret.is_none_or(|secret| self.first == (SECRET_KEY, secret.row()))
    }
}

/// Key and value of an item whose first byte is taken.
fn take_item<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
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
    let (key, after) = rest.split_at_checked(key)?;
    let (value, after) = after.split_at_checked(usize::try_from(stored).ok()?)?;
    *rest = after;
    Some((key, value))
}

#[cfg(test)]
mod tests;
