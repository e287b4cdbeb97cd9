//! Checking a whole log without opening it.

use fieldpost_model::Partitioning;

use super::accepted::AcceptedLoss;
use super::format::index::SegmentIndex;
use super::format::{LogId, size};
use super::recovery::{
    LogOpenError, accepted_losses, fill_in_headers, find_segments, missing_before, walk_before,
    walk_last,
};
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
    /// What was acknowledged and cannot be read, as far as nobody accepted it.
    pub damage: Vec<Damage>,
    /// The losses that were accepted, in the order of acceptance.
    pub accepted: Vec<AcceptedLoss>,
}

/// Walks every segment: every check, the chain of groups, every sequence number, every index.
pub(crate) fn verify(
    files: &dyn Files,
    log: LogId,
    partitioning: Partitioning,
) -> Result<LogVerdict, LogOpenError> {
    let mut found = find_segments(files, log)?;
    let mut verdict = LogVerdict {
        segments: found.len(),
        damage: fill_in_headers(files, &mut found, log)?,
        ..LogVerdict::default()
    };
    let (accepted, unreadable) = accepted_losses(files, log)?;
    verdict.damage.extend(unreadable);
    (verdict.damage).extend(missing_before(files, log, &found, partitioning)?);
    for (at, segment) in found.iter().enumerate() {
        let scanned = match found.get(at + 1) {
            Some(next) => walk_before(segment, next, log, partitioning)?,
            None => walk_last(segment, log, partitioning)?.scanned,
        };
        verdict.groups += scanned.groups;
        verdict.records += scanned.records;
        verdict.damage.extend(scanned.damage);
        verdict.torn = scanned.torn;
        if let Some(what) = check_index(files, log, segment.id)? {
            verdict.damage.push(Damage {
                file: index_name(segment.id),
                from: 0,
                to: 0,
                what,
                lost: Vec::new(),
            });
        }
    }
    if found.is_empty() {
        verdict.damage.push(Damage {
            file: segment_name(1),
            from: 0,
            to: 0,
            what: "there is no segment".to_owned(),
            lost: Vec::new(),
        });
    }
    accepted.leave_out(&mut verdict.damage);
    accepted.losses().clone_into(&mut verdict.accepted);
    Ok(verdict)
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
