//! The functions that read what stands on disk, for fuzz targets in another workspace.
//!
//! The product does not use this module.

use crate::LogVerdict;
use crate::files::Files;
use crate::log::{LogId, LogOpenError};

pub use crate::keyvalue::fuzzing::{Table, journal, row, row_read_back};

/// Checks a log that nobody has open.
///
/// # Errors
/// When it belongs to another log, is of a newer version, or cannot be read.
pub fn verify_log(files: &dyn Files, log: LogId) -> Result<LogVerdict, LogOpenError> {
    crate::log::verify::verify(files, log)
}
