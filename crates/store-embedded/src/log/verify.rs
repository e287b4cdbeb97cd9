//! Checking a whole log without opening it.

use super::format::LogId;
use super::format::group::GroupKind;
use super::format::index::SegmentIndex;
use super::format::{Positions, size};
use super::recovery::{LogOpenError, find_segments, lost_between};
use super::segment::{index_name, segment_name};
use crate::damage::Damage;
use crate::files::Files;

/// What a walk over the whole log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogVerdict {
    /// Segments walked.
    pub segments: usize,
    /// Groups that are sound.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// A last group that is not whole, as a crash leaves it. No damage.
    pub torn: Option<Damage>,
    /// What was acknowledged and cannot be read.
    pub damage: Vec<Damage>,
}

/// Walks every segment: every check, the chain of groups, every sequence number, every index.
pub(crate) fn verify(files: &dyn Files, log: LogId) -> Result<LogVerdict, LogOpenError> {
    let mut verdict = LogVerdict::default();
    let found = find_segments(files, log)?;
    verdict.segments = found.len();
    if found.is_empty() {
        verdict.missing(1, "there is no segment", Vec::new());
    }
    let mut before: Option<(u64, Option<u64>, Positions)> = None;
    let count = found.len();
    for (at, segment) in found.into_iter().enumerate() {
        verdict.damage.extend(segment.damage.clone());
        verdict.damage.extend(segment.cut());
        let (before_id, last_group, positions) = match before.take() {
            Some((id, last_group, positions)) => (Some(id), last_group, positions),
            None => (None, None, Positions::default()),
        };
        if let (Some(id), Some(header)) = (before_id, &segment.header) {
            let lost: Vec<_> = lost_between(&positions, &header.positions).collect();
            if segment.id != id + 1 {
                let what = format!("{} segments are missing from here", segment.id - id - 1);
                verdict.missing(id + 1, &what, lost);
            } else if !lost.is_empty() {
                verdict.missing(id, "records at the end of the segment are missing", lost);
            }
        }
        let scanned = segment.scan(log, last_group, positions)?;
        verdict.groups += scanned.groups;
        verdict.records += scanned.records;
        verdict.damage.extend(scanned.damage);
        let sealed = scanned.last_kind == Some(GroupKind::Sealed);
        if at + 1 == count {
            if sealed {
                verdict.missing(segment.id + 1, "the segment is missing", Vec::new());
            }
            verdict.torn = scanned.torn;
        } else {
            verdict.damage.extend(scanned.torn);
        }
        if let Some(what) = check_index(files, log, segment.id)? {
            verdict.damage.push(Damage {
                file: index_name(segment.id),
                from: 0,
                to: 0,
                what,
                lost: Vec::new(),
            });
        }
        before = Some((segment.id, scanned.last_group, scanned.positions));
    }
    Ok(verdict)
}

impl LogVerdict {
    fn missing(&mut self, id: u64, what: &str, lost: Vec<crate::damage::LostRecords>) {
        self.damage.push(Damage {
            file: segment_name(id),
            from: 0,
            to: 0,
            what: what.to_owned(),
            lost,
        });
    }
}

/// What is wrong with an index file, if it is there.
fn check_index(files: &dyn Files, log: LogId, id: u64) -> std::io::Result<Option<String>> {
    let file = match files.open(&index_name(id)) {
        Ok(file) => file,
        // It is made anew when it is needed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let bytes = file.bytes()?;
    if bytes > super::SEGMENT_BYTES_LIMIT {
        return Ok(Some("it is larger than any index".to_owned()));
    }
    let mut content = vec![0; size(bytes)];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(SegmentIndex::decode(log, id, &content)
        .err()
        .map(|error| format!("{error}; it is made anew when it is needed")))
}
