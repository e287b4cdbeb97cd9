//! The check of older segments after a start.
//!
//! Opening walks the last segment only, because a log may be large. The others are walked
//! afterwards, slowly and beside the work, so that damage is told before somebody needs what it
//! cost.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::recovery::{EndOfSegment, RecoveryReport};
use super::scan::{ScanFrom, Uncertain, scan};
use super::segment::{Segment, segment_name};
use super::{Shared, tell_damage};
use crate::damage::Damage;
use crate::files::File;

/// The pause before each read of 256 KiB: with it the check reads at most 64 MiB in a second.
const PAUSE: Duration = Duration::from_millis(4);

/// Ends a check before its time.
#[derive(Default)]
pub(super) struct CheckBell {
    closing: Mutex<bool>,
    rung: Condvar,
}

impl CheckBell {
    pub(super) fn close(&self) {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.rung.notify_all();
    }

    /// Waits; false when the log is being closed.
    fn pause(&self, span: Duration) -> bool {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .rung
            .wait_timeout_while(closing, span, |closing| !*closing)
            .unwrap_or_else(PoisonError::into_inner);
        !*waited.0
    }
}

/// One walk over the segments that were there when the log was opened.
pub(super) struct Check {
    shared: Arc<Shared>,
    /// The newest of them; that one was walked at opening.
    last: u64,
    /// Files whose damage is known.
    told: BTreeSet<String>,
    pause: Duration,
}

impl Check {
    /// The check that is due after opening.
    pub(super) fn after(shared: &Arc<Shared>, last: u64, report: &RecoveryReport) -> Self {
        Self {
            shared: Arc::clone(shared),
            last,
            told: (report.damage.iter())
                .map(|damage| damage.file.clone())
                .collect(),
            pause: PAUSE,
        }
    }

    /// The same without a pause, for whoever turns the crank himself.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn at_once(mut self) -> Self {
        self.pause = Duration::ZERO;
        self
    }

    /// Walks all, tells what is damaged, and gives it.
    pub(super) fn run(&self, bell: &CheckBell) -> Vec<Damage> {
        let mut found = Vec::new();
        let mut checked = 0u64;
        let mut before = 0;
        while let Some(segment) = self.shared.segments.following(before) {
            before = segment.id;
            let Some(next) = self.shared.segments.following(segment.id) else {
                break;
            };
            if next.id > self.last || self.told.contains(&segment_name(segment.id)) {
                continue;
            }
            match self.walk(&segment, &next, bell) {
                Ok(damage) => found.extend(damage),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return found,
                Err(error) => {
                    tracing::warn!(segment = segment.id, %error, "a segment of the log could not be checked");
                }
            }
            checked += 1;
        }
        self.shared.accepted.leave_out(&mut found);
        tell_damage(&found);
        if checked > 0 {
            tracing::info!(
                segments = checked,
                damaged = found.len(),
                "the older segments of the log were checked"
            );
        }
        found
    }

    fn walk(&self, segment: &Segment, next: &Segment, bell: &CheckBell) -> io::Result<Vec<Damage>> {
        let file = Paced {
            file: &*segment.file,
            bell,
            pause: self.pause,
        };
        let mut scanned = scan(ScanFrom {
            file: &file,
            log: self.shared.log_id,
            segment: segment.id,
            start: segment.start,
            last_group: None,
            positions: segment.base.clone(),
            uncertain: Uncertain::default(),
            goes_on: true,
            ends: Some(next.base.clone()),
        })?;
        let end = EndOfSegment {
            id: segment.id,
            bytes: segment.capacity,
            cut: None,
            next_id: next.id,
            begins: Some(&next.base),
        };
        end.compare(&mut scanned, self.shared.partitioning);
        Ok(scanned.damage)
    }
}

/// A file that is read with pauses, so that others have the disk.
struct Paced<'a> {
    file: &'a dyn File,
    bell: &'a CheckBell,
    pause: Duration,
}

impl File for Paced<'_> {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        if self.bell.pause(self.pause) {
            self.file.read_at(out, at)
        } else {
            Err(io::ErrorKind::Interrupted.into())
        }
    }

    fn write_at(&self, _parts: &[IoSlice<'_>], _at: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
