//! Bulk requests: what the caller asks for each device.

use std::str::FromStr;
use std::sync::Arc;

use super::device::{Device, DeviceSpec};
use super::write::{Match, Operation};

/// One device of a bulk request.
#[derive(Clone, Debug)]
pub struct BulkItem {
    /// What is to be done.
    pub mode: BulkMode,
    /// The device; for deletions its id alone matters.
    pub device: DeviceSpec,
    /// The entity tag that the modes with a condition compare; none and `*` match any state.
    pub etag: Option<String>,
}

/// What a bulk request does with a device; names as in Azure IoT Hub's `importMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BulkMode {
    /// `create`
    Create,
    /// `update`
    Update,
    /// `updateIfMatchETag`
    UpdateIfMatchETag,
    /// `createOrUpdate`
    CreateOrUpdate,
    /// `createOrUpdateIfMatchETag`
    CreateOrUpdateIfMatchETag,
    /// `delete`
    Delete,
    /// `deleteIfMatchETag`
    DeleteIfMatchETag,
}

/// A text is not the name of a [`BulkMode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an import mode of this hub")]
pub struct UnknownBulkMode;

impl FromStr for BulkMode {
    type Err = UnknownBulkMode;

    /// Reads the name of a mode in any case.
    fn from_str(text: &str) -> Result<Self, UnknownBulkMode> {
        [
            ("create", Self::Create),
            ("update", Self::Update),
            ("updateIfMatchETag", Self::UpdateIfMatchETag),
            ("createOrUpdate", Self::CreateOrUpdate),
            ("createOrUpdateIfMatchETag", Self::CreateOrUpdateIfMatchETag),
            ("delete", Self::Delete),
            ("deleteIfMatchETag", Self::DeleteIfMatchETag),
        ]
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text))
        .map(|(_, mode)| mode)
        .ok_or(UnknownBulkMode)
    }
}

/// What was done with a device.
#[derive(Clone, Debug)]
pub enum BulkDone {
    /// It is new.
    Created(Arc<Device>),
    /// It was known and is like this now.
    Updated(Arc<Device>),
    /// It is gone.
    Deleted,
}

impl BulkItem {
    pub(super) fn into_operation(self) -> (Operation, DeviceSpec) {
        let etag = match self.etag {
            Some(etag) if etag != "*" => Match::ETag(etag),
            _ => Match::Any,
        };
        let operation = match self.mode {
            BulkMode::Create => Operation::Create,
            BulkMode::Update => Operation::Update(Match::Any),
            BulkMode::UpdateIfMatchETag => Operation::Update(etag),
            BulkMode::CreateOrUpdate => Operation::CreateOrUpdate(Match::Any),
            BulkMode::CreateOrUpdateIfMatchETag => Operation::CreateOrUpdate(etag),
            BulkMode::Delete => Operation::Delete(Match::Any),
            BulkMode::DeleteIfMatchETag => Operation::Delete(etag),
        };
        (operation, self.device)
    }
}
