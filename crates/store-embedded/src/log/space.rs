//! Room on the disk: two marks, and a reserve that is let go at the first.

use std::io;

use fieldpost_store::HealthLevel;

use super::segment::remove_if_there;
use crate::files::{Files, Space};
use crate::health::StoreHealth;

/// The name of the reserve.
pub(crate) const RESERVE_NAME: &str = "reserve";

const FIRST_MARK_MAX: u64 = 512 * 1024 * 1024;
const SECOND_MARK_MAX: u64 = 128 * 1024 * 1024;

/// The most room above a mark that is asked for before it counts as left; an operator's mark may be
/// most of a large disk.
const SLACK_MAX: u64 = 64 * 1024 * 1024;

/// Free bytes at which the store takes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DiskMarks {
    /// Below this, messages are held back and the reserve is let go. `None`: 512 MiB, or a
    /// twentieth of the disk when that is less.
    pub hold_messages: Option<u64>,
    /// Below this, nothing is taken. `None`: 128 MiB, or a quarter of the first mark when that is
    /// less.
    pub hold_all: Option<u64>,
}

impl DiskMarks {
    fn of(self, space: Space) -> (u64, u64) {
        let first = self
            .hold_messages
            .unwrap_or_else(|| FIRST_MARK_MAX.min(space.total / 20));
        let second = self
            .hold_all
            .unwrap_or_else(|| SECOND_MARK_MAX.min(first / 4));
        (first, second.min(first))
    }
}

/// Watches one disk.
pub(super) struct SpaceWatch {
    marks: DiskMarks,
    reserve_bytes: u64,
    level: HealthLevel,
    has_reserve: bool,
    /// The last look failed, and that was said.
    blind: bool,
}

impl SpaceWatch {
    pub(super) fn new(marks: DiskMarks, reserve_bytes: u64) -> Self {
        Self {
            marks,
            reserve_bytes,
            level: HealthLevel::Ok,
            has_reserve: false,
            blind: false,
        }
    }

    /// Finds out whether the reserve is there.
    pub(super) fn find_reserve(&mut self, files: &dyn Files) -> io::Result<()> {
        self.has_reserve = match files.open(RESERVE_NAME) {
            Ok(file) => file.bytes()? >= self.reserve_bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Looks at the disk and tells the health.
    pub(super) fn step(&mut self, files: &dyn Files, health: &StoreHealth) {
        let space = match files.space() {
            Ok(space) => space,
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    tracing::warn!(%error, "the room on the disk cannot be told");
                }
                return;
            }
        };
        self.blind = false;
        let (first, second) = self.marks.of(space);
        let level = self.judge(space.free, first, second);
        if level > HealthLevel::Ok && self.has_reserve {
            self.let_go(files);
        }
        if level != self.level {
            self.level = level;
            let reason = format!(
                "{} MiB are free on the disk (messages are held below {} MiB, everything below {} MiB)",
                space.free >> 20,
                first >> 20,
                second >> 20
            );
            health.set_disk(level, &reason);
        }
        if level == HealthLevel::Ok
            && !self.has_reserve
            && self.reserve_bytes > 0
            && space.free >= first.saturating_add(self.reserve_bytes.saturating_mul(2))
        {
            self.take_reserve(files);
        }
    }

    /// The level for so much room. What was reached by filling is left only with some room more,
    /// so that it does not flutter.
    fn judge(&self, free: u64, first: u64, second: u64) -> HealthLevel {
        let slack = |mark: u64| (mark / 8).min(SLACK_MAX);
        let back_from_first = first.saturating_add(self.reserve_bytes.max(slack(first)));
        let back_from_second = second.saturating_add(slack(second));
        if free < second || (self.level == HealthLevel::HoldAll && free < back_from_second) {
            HealthLevel::HoldAll
        } else if free < first || (self.level > HealthLevel::Ok && free < back_from_first) {
            HealthLevel::HoldMessages
        } else {
            HealthLevel::Ok
        }
    }

    fn let_go(&mut self, files: &dyn Files) {
        self.has_reserve = false;
        match remove_if_there(files, RESERVE_NAME) {
            Ok(()) => tracing::info!(
                bytes = self.reserve_bytes,
                "the disk fills up; the reserve is let go for small changes"
            ),
            Err(error) => tracing::warn!(%error, "the reserve could not be let go"),
        }
    }

    fn take_reserve(&mut self, files: &dyn Files) {
        let taken = files
            .create(RESERVE_NAME)
            .and_then(|file| file.allocate(self.reserve_bytes));
        match taken {
            Ok(()) => self.has_reserve = true,
            Err(error) => {
                tracing::debug!(%error, "no room for the reserve");
                // A part of it is no use.
                let _ = files.remove(RESERVE_NAME);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sim::SimDisk;

    #[test]
    fn the_marks_hold_and_let_go_with_some_room_between() {
        const MIB: u64 = 1 << 20;
        let disk = SimDisk::new();
        let health = StoreHealth::new();
        let shown = health.subscribe();
        let marks = DiskMarks {
            hold_messages: Some(512 * MIB),
            hold_all: Some(128 * MIB),
        };
        let mut watch = SpaceWatch::new(marks, 64 * MIB);
        let mut check = |free: u64, level: HealthLevel, reserve: bool| {
            disk.set_free(free * MIB);
            watch.step(&disk, &health);
            assert_eq!(shown.borrow().level, level, "{free} MiB free");
            let names = disk.list().unwrap();
            assert_eq!(
                names.contains(&RESERVE_NAME.to_owned()),
                reserve,
                "{free} MiB free"
            );
        };
        check(600, HealthLevel::Ok, false);
        check(1000, HealthLevel::Ok, true);
        check(511, HealthLevel::HoldMessages, false);
        check(570, HealthLevel::HoldMessages, false);
        check(127, HealthLevel::HoldAll, false);
        check(130, HealthLevel::HoldAll, false);
        check(150, HealthLevel::HoldMessages, false);
        check(580, HealthLevel::Ok, false);
        check(700, HealthLevel::Ok, true);
    }
}
