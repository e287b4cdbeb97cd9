//! Going on with a damaged store, at the operator's word.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use fieldpost_model::Clock;

use crate::directory::{Description, DirectoryLock, keyvalue_path, log_path};
use crate::files::{DirectoryFiles, Files};
use crate::keyvalue;
use crate::log::repair::accept_losses;
use crate::log::{AcceptedLoss, LogIdentity};
use crate::store::{EmbeddedConfig, OpenError, count_total_loss};
use crate::verify::VerifyReport;

/// What became of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// The losses that were accepted now.
    pub accepted: Vec<AcceptedLoss>,
    /// What a walk over the whole store finds now.
    pub left: VerifyReport,
}

/// A line for each loss, and what a walk over the store says.
impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for loss in &self.accepted {
            writeln!(f, "accepted now: log/{}", loss.damage)?;
        }
        self.left.fmt(f)
    }
}

/// Accepts that whatever is damaged in the event log is lost, and writes that down: readers then go
/// on behind it, and see the gap by the sequence numbers. The documents and queues are not changed;
/// their damage is in the report.
///
/// # Errors
/// When there is no store, it is in use, or it cannot be read or written.
pub fn accept_loss(
    path: &Path,
    config: &EmbeddedConfig,
    clock: Arc<dyn Clock>,
) -> Result<RepairReport, OpenError> {
    let missing = || OpenError::Description {
        path: path.join("store.json"),
        what: "it is missing".to_owned(),
    };
    if !path.is_dir() {
        return Err(missing());
    }
    let _lock = DirectoryLock::take(path)?;
    let mut description = Description::load(path)?.ok_or_else(missing)?;
    let (Some(id), Some(partitioning)) = (description.log_id(), description.partitioning()) else {
        return Err(missing());
    };
    if description.creating {
        return Ok(RepairReport::default());
    }
    let log_path = log_path(path);
    let files = DirectoryFiles::open(&log_path).map_err(OpenError::io("open", &log_path))?;
    count_total_loss(&mut description, &files, path)?;
    let identity = LogIdentity {
        id,
        created: description.created(),
        partitioning,
        fresh: false,
        losses: description.losses,
    };
    let files: Arc<dyn Files> = Arc::new(files);
    let (accepted, log) = accept_losses(&files, identity, &config.log, &clock)?;
    Ok(RepairReport {
        accepted,
        left: VerifyReport {
            log,
            documents: keyvalue::verify(&keyvalue_path(path))?,
        },
    })
}
