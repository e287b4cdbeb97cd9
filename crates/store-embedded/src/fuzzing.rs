//! The functions that read what stands on disk, for fuzz targets in another workspace.
//!
//! The product does not use this module.

use std::sync::Arc;

use fieldpost_model::{Clock, Partitioning};

use crate::files::Files;
use crate::log::{LogId, LogIdentity, LogOpenError};
use crate::{LogSettings, LogVerdict};

pub use crate::keyvalue::fuzzing::{Table, journal, row, row_read_back};

/// Checks a log that nobody has open.
///
/// # Errors
/// When it belongs to another log, is of a newer version, or cannot be read.
pub fn verify_log(
    files: &dyn Files,
    log: LogId,
    partitioning: Partitioning,
) -> Result<LogVerdict, LogOpenError> {
    crate::log::verify::verify(files, log, partitioning)
}

/// Accepts that whatever is damaged in a log that nobody has open is lost. Gives what a walk finds
/// then.
///
/// # Errors
/// When it cannot be opened or written.
pub fn accept_log_losses(
    files: &Arc<dyn Files>,
    identity: LogIdentity,
    settings: &LogSettings,
    clock: &Arc<dyn Clock>,
) -> Result<LogVerdict, LogOpenError> {
    crate::log::repair::accept_losses(files, identity, settings, clock).map(|(_, left)| left)
}
