//! Checking a whole store that nobody has open.

use std::fmt;
use std::path::Path;

use crate::directory::{Description, DirectoryLock, keyvalue_path, log_path};
use crate::files::DirectoryFiles;
use crate::keyvalue;
use crate::log::verify::{self as log, LogVerdict};
use crate::store::OpenError;

/// What a walk over the whole store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// The log.
    pub log: LogVerdict,
    /// Damage to documents and queues, a line for each.
    pub documents: Vec<String>,
}

impl VerifyReport {
    /// Whether everything that was acknowledged is there and sound, but for losses that were accepted.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.log.damage.is_empty() && self.documents.is_empty()
    }
}

/// A line for each damage, and one that sums up.
impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for loss in &self.log.accepted {
            writeln!(f, "accepted as lost: log/{}", loss.damage)?;
        }
        for damage in &self.log.damage {
            writeln!(f, "damaged: log/{damage}")?;
        }
        for damage in &self.documents {
            writeln!(f, "damaged: {damage}")?;
        }
        if let Some(torn) = &self.log.torn {
            writeln!(
                f,
                "unfinished: log/{torn} (as a crash leaves it; it is cut off at the next start)"
            )?;
        }
        let LogVerdict {
            segments,
            groups,
            records,
            ..
        } = &self.log;
        let damages = self.log.damage.len() + self.documents.len();
        write!(
            f,
            "{segments} segments, {groups} groups, {records} records checked; {damages} damages"
        )?;
        match self.log.accepted.len() {
            0 => Ok(()),
            accepted => write!(f, ", {accepted} losses that were accepted"),
        }
    }
}

/// Walks a whole store and changes nothing: every check of every file, every sequence number.
///
/// # Errors
/// When there is no store, it is in use, or it cannot be read. Damage is no error; it is reported.
pub fn verify(path: &Path) -> Result<VerifyReport, OpenError> {
    let missing = || OpenError::Description {
        path: path.join("store.json"),
        what: "it is missing".to_owned(),
    };
    if !path.is_dir() {
        return Err(missing());
    }
    let description = Description::load(path)?.ok_or_else(missing)?;
    let _lock = DirectoryLock::take(path)?;
    let (Some(id), Some(partitioning)) = (description.log_id(), description.partitioning()) else {
        return Err(missing());
    };
    if description.creating {
        return Ok(VerifyReport::default());
    }
    let log_path = log_path(path);
    let files = DirectoryFiles::open(&log_path).map_err(OpenError::io("open", &log_path))?;
    Ok(VerifyReport {
        log: log::verify(&files, id, partitioning)?,
        documents: keyvalue::verify(&keyvalue_path(path))?,
    })
}
