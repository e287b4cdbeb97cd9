//! Large writes past the page cache.
//!
//! A log that is written at hundreds of megabytes a second fills the page cache with pages that hardly
//! anybody reads again, and finding memory for them takes longer than the disk: new files take three
//! to four times as much per second without it (docs/performance.md). Small groups stay on the way
//! through the cache, where readers find them.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Writes of so many bytes and more go past the page cache.
pub(super) const DIRECT_BYTES_MIN: usize = 256 * 1024;

/// Positions, lengths and memory are multiples of this. Enough for every disk; the system says what it
/// needs only for some of them (open(2), "`O_DIRECT`").
const ALIGNMENT: usize = 4096;

/// One system call takes so many bytes at most, and so many are kept for the next one.
const CHUNK_BYTES: usize = 1024 * 1024;

/// What one writer of large pieces needs. It has one file open at a time.
#[derive(Debug, Default)]
pub(super) struct DirectWriter {
    /// The handle that was written last, and the same file opened past the cache; none when the system
    /// refuses that.
    file: Option<(u64, Option<fs::File>)>,
    /// Whole chunks begin at an aligned place in here.
    memory: Vec<u8>,
}

/// Whether a write may go past the cache.
pub(super) fn is_direct(bytes: usize, at: u64) -> bool {
    let is_aligned = bytes.is_multiple_of(ALIGNMENT) && at.is_multiple_of(ALIGNMENT as u64);
    bytes >= DIRECT_BYTES_MIN && is_aligned
}

impl DirectWriter {
    /// Writes the parts one after the other, and returns how many bytes were taken; `None` when this
    /// file cannot be written past the cache and nothing was written.
    ///
    /// # Errors
    /// As the system reports.
    pub(super) fn write_at(
        &mut self,
        handle: u64,
        file: &fs::File,
        parts: &[IoSlice<'_>],
        at: u64,
    ) -> io::Result<Option<usize>> {
        if self.file.as_ref().is_none_or(|(known, _)| *known != handle) {
            self.file = Some((handle, reopen(file)));
        }
        let Some((_, Some(direct))) = &self.file else {
            return Ok(None);
        };
        if self.memory.is_empty() {
            self.memory = vec![0; CHUNK_BYTES + ALIGNMENT];
        }
        let begin = self.memory.as_ptr().align_offset(ALIGNMENT);
        let Some(chunk) = self
            .memory
            .get_mut(begin..begin.saturating_add(CHUNK_BYTES))
        else {
            return Ok(None);
        };
        let mut rest = parts.iter().map(|part| &**part);
        let mut part = rest.next().unwrap_or_default();
        let mut written = 0;
        loop {
            let mut filled = 0;
            while let Some(room) = chunk.get_mut(filled..).filter(|room| !room.is_empty()) {
                if part.is_empty() {
                    let Some(next) = rest.next() else { break };
                    part = next;
                }
                let count = part.len().min(room.len());
                let (taken, left) = part.split_at(count);
                if let Some(room) = room.get_mut(..count) {
                    room.copy_from_slice(taken);
                }
                part = left;
                filled += count;
            }
            let Some(full) = chunk.get(..filled).filter(|full| !full.is_empty()) else {
                return Ok(Some(written));
            };
            let result = loop {
                match direct.write_at(full, at + written as u64) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result,
                }
            };
            match result {
                Ok(count) => {
                    written += count;
                    if count < filled {
                        return Ok(Some(written));
                    }
                }
                // Said again by the next write.
                Err(_) if written > 0 => return Ok(Some(written)),
                // Opened, and of no use: some file systems refuse at the first write.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.file = Some((handle, None));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The same file, past the cache, if the system can do that. By its descriptor: it may have another name
/// by now.
fn reopen(file: &fs::File) -> Option<fs::File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    fs::OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::files::{DirectoryFiles, File, Files, write_all_at};

    const BLOCK: u64 = ALIGNMENT as u64;

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    fn write(file: &Arc<dyn File>, bytes: &[u8], at: u64) {
        write_all_at(&**file, &[IoSlice::new(bytes)], at).unwrap();
    }

    fn read(file: &Arc<dyn File>, bytes: usize, at: u64) -> Vec<u8> {
        let mut out = vec![0; bytes];
        assert_eq!(file.read_at(&mut out, at).unwrap(), bytes);
        out
    }

    #[test]
    fn only_what_is_large_and_aligned_goes_past_the_cache() {
        let check = |bytes: usize, at: u64, expected: bool| {
            assert_eq!(is_direct(bytes, at), expected, "{bytes} at {at}");
        };
        check(DIRECT_BYTES_MIN, 0, true);
        check(DIRECT_BYTES_MIN + ALIGNMENT, 3 * BLOCK, true);
        check(DIRECT_BYTES_MIN - ALIGNMENT, 0, false);
        check(DIRECT_BYTES_MIN + 1, 0, false);
        check(DIRECT_BYTES_MIN, 512, false);
    }

    #[test]
    fn readers_see_what_was_written_past_the_cache_that_they_had_filled() {
        let folder = tempfile::tempdir().unwrap();
        let files = DirectoryFiles::open(folder.path()).unwrap();
        let file = files.create("a").unwrap();
        file.allocate(8 * DIRECT_BYTES_MIN as u64).unwrap();
        let reader = files.open("a").unwrap();
        let (small, large) = (noise(ALIGNMENT, 1), noise(2 * DIRECT_BYTES_MIN, 2));
        for round in 0..3 {
            let at = round * 3 * BLOCK;
            read(&reader, 4 * DIRECT_BYTES_MIN, 0);
            write(&file, &small, at);
            write(&file, &large, at + BLOCK);
            file.sync().unwrap();
            assert!(read(&reader, small.len(), at) == small, "{round}");
            assert!(read(&reader, large.len(), at + BLOCK) == large, "{round}");
        }
    }

    /// The log gives its files other names, and removes them, while they are open.
    #[test]
    fn files_that_take_turns_or_have_other_names_are_not_mistaken() {
        let folder = tempfile::tempdir().unwrap();
        let files = DirectoryFiles::open(folder.path()).unwrap();
        let (one, other) = (files.create("one").unwrap(), files.create("other").unwrap());
        let large = |seed| noise(DIRECT_BYTES_MIN, seed);
        write(&one, &large(1), 0);
        files.rename("one", "first").unwrap();
        files.rename("other", "one").unwrap();
        write(&other, &large(2), 0);
        write(&one, &large(3), DIRECT_BYTES_MIN as u64);
        files.remove("first").unwrap();
        write(&one, &large(4), 2 * DIRECT_BYTES_MIN as u64);
        write(&other, &large(5), DIRECT_BYTES_MIN as u64);
        let all = |file, seeds: &[u64]| {
            let expected: Vec<u8> = seeds.iter().flat_map(|seed| large(*seed)).collect();
            read(file, expected.len(), 0) == expected
        };
        assert!(all(&one, &[1, 3, 4]));
        assert!(all(&other, &[2, 5]));
        assert!(all(&files.open("one").unwrap(), &[2, 5]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Parts of any lengths, shorter and longer than what one call takes.
        #[test]
        fn what_is_written_in_parts_is_read_as_a_whole(
            lengths in prop::collection::vec(
                prop_oneof![6 => 0..9000_usize, 2 => 0..300_000_usize, 1 => 0..2 * CHUNK_BYTES],
                1..12,
            ),
            block in 0..4_u64,
            seed in any::<u64>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let file = DirectoryFiles::open(folder.path()).unwrap().create("a").unwrap();
            let sum: usize = lengths.iter().sum();
            let mut lengths = lengths;
            lengths.push(sum.next_multiple_of(ALIGNMENT) - sum);
            let bytes = noise(sum.next_multiple_of(ALIGNMENT), seed);
            let mut rest = bytes.as_slice();
            let parts: Vec<_> = lengths.iter().map(|length| {
                let (part, left) = rest.split_at(*length);
                rest = left;
                IoSlice::new(part)
            }).collect();
            write_all_at(&*file, &parts, block * BLOCK).unwrap();
            file.sync().unwrap();
            prop_assert_eq!(file.bytes().unwrap(), if sum == 0 { 0 } else { block * BLOCK + bytes.len() as u64 });
            prop_assert!(read(&file, bytes.len(), block * BLOCK) == bytes);
        }
    }
}
