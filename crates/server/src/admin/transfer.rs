//! Import and export of all devices as lines of JSON, in bounded memory.
//!
//! A line is an entry of Azure IoT Hub's bulk registry request, which is also the line of its import
//! and export jobs.

use std::collections::HashSet;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{Buf as _, Bytes, BytesMut};
use fieldpost_gateway::http::document::bulk_item_from_json;
use fieldpost_hub::identity::{Authentication, BulkItem, Device, DeviceStatus, RegistryError};
use fieldpost_model::DeviceId;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Parameters, Problem, invalid, problem};
use super::devices::explained;

/// Devices changed in one durable batch.
const BATCH_DEVICES: usize = 1000;

/// Longest line taken. A device with every member at its limit is far shorter.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// Failures reported one by one; more are only counted.
const FAILURES_MAX: usize = 10_000;

/// What became of an import.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Imported {
    applied: u64,
    failed: u64,
    errors: Vec<LineError>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LineError {
    line: u64,
    device_id: String,
    error_code: &'static str,
    error_status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExportQuery {
    #[serde(default)]
    exclude_keys: bool,
}

/// Applies every line of the body for itself, in order. Lines already applied stay applied when
/// the connection breaks; doing all of it again is harmless.
pub(super) async fn import(
    State(parts): State<AdminParts>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let mut import = Import {
        parts,
        line: 0,
        batch: Vec::new(),
        ids: HashSet::new(),
        result: Imported::default(),
    };
    let mut lines = Lines::default();
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        let mut piece = piece.map_err(|error| invalid(error.to_string()))?;
        while let Some(line) = lines.next_in(&mut piece) {
            import.take_line(line).await?;
        }
    }
    import.take_line(lines.last()).await?;
    import.apply().await?;
    Ok(Json(json!(import.result)))
}

/// Cuts pieces into lines, of which it never keeps more than [`LINE_BYTES_MAX`].
#[derive(Default)]
struct Lines {
    partial: BytesMut,
    too_long: bool,
}

/// A line without its end, or the news that it is too long to be one.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole(BytesMut),
    TooLong,
}

impl Lines {
    /// Takes from a piece up to the end of a line; `None` when the piece is used up.
    fn next_in(&mut self, piece: &mut Bytes) -> Option<Line> {
        let end = piece.iter().position(|byte| *byte == b'\n');
        let part = piece.split_to(end.unwrap_or(piece.len()));
        if self.partial.len() + part.len() > LINE_BYTES_MAX {
            self.too_long = true;
            self.partial.clear();
        } else if !self.too_long {
            self.partial.extend_from_slice(&part);
        }
        end?;
        piece.advance(1);
        Some(self.last())
    }

    /// What has come since the last end of a line.
    fn last(&mut self) -> Line {
        if std::mem::take(&mut self.too_long) {
            Line::TooLong
        } else {
            Line::Whole(self.partial.split())
        }
    }
}

struct Import {
    parts: AdminParts,
    line: u64,
    /// Line numbers with their items.
    batch: Vec<(u64, BulkItem)>,
    ids: HashSet<DeviceId>,
    result: Imported,
}

impl Import {
    async fn take_line(&mut self, line: Line) -> Result<(), Problem> {
        self.line += 1;
        let line = match &line {
            Line::Whole(line) => line.trim_ascii(),
            Line::TooLong => {
                let text = format!("the line is longer than {LINE_BYTES_MAX} bytes");
                self.fail(self.line, String::new(), "ArgumentInvalid", text);
                return Ok(());
            }
        };
        if line.is_empty() {
            return Ok(());
        }
        let parsed = serde_json::from_slice::<Value>(line)
            .map_err(|error| error.to_string())
            .and_then(|value| {
                let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
                let id = id.to_owned();
                bulk_item_from_json(value).map_err(|error| format!("{id}: {error}"))
            });
        match parsed {
            Err(text) => self.fail(self.line, String::new(), "ArgumentInvalid", text),
            Ok(item) => {
                // A device named twice gets both changes, one after the other.
                if self.batch.len() == BATCH_DEVICES || self.ids.contains(&item.device.device_id) {
                    self.apply().await?;
                }
                self.ids.insert(item.device.device_id.clone());
                self.batch.push((self.line, item));
            }
        }
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), Problem> {
        self.ids.clear();
        let (places, items): (Vec<_>, Vec<_>) = self
            .batch
            .drain(..)
            .map(|(line, item)| ((line, item.device.device_id.clone()), item))
            .unzip();
        if items.is_empty() {
            return Ok(());
        }
        let results = self.parts.hub.registry().bulk(items).await;
        for ((line, id), result) in places.into_iter().zip(results) {
            match result {
                Ok(_) => self.result.applied += 1,
                Err(RegistryError::Store(error)) => {
                    // Nothing more would succeed; the caller learns how far it got.
                    return Err(problem(
                        super::devices::store_status(&error),
                        "ServiceUnavailable",
                        format!("{error}; {} lines were applied", self.result.applied),
                    ));
                }
                Err(error) => {
                    let (code, text) = explained(&error, id.as_str());
                    self.fail(line, id.as_str().to_owned(), code, text);
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, line: u64, device_id: String, error_code: &'static str, text: String) {
        self.result.failed += 1;
        if self.result.errors.len() < FAILURES_MAX {
            self.result.errors.push(LineError {
                line,
                device_id,
                error_code,
                error_status: text,
            });
        }
    }
}

/// Every device as a line, in the order of their ids.
///
/// Devices that come or go meanwhile may be in it or not. A failure of the store breaks the answer
/// off, so that a part is never taken for the whole.
pub(super) async fn export(
    State(parts): State<AdminParts>,
    Parameters(query): Parameters<ExportQuery>,
) -> Response {
    let start = Some(None::<DeviceId>);
    let pages = stream::try_unfold(start, move |after| {
        let parts = parts.clone();
        async move {
            let Some(after) = after else {
                return Ok::<_, RegistryError>(None);
            };
            let page = parts
                .hub
                .registry()
                .list(after.as_ref(), BATCH_DEVICES)
                .await?;
            let mut lines = Vec::new();
            for device in &page.devices {
                lines.extend_from_slice(
                    export_line(device, query.exclude_keys)
                        .to_string()
                        .as_bytes(),
                );
                lines.push(b'\n');
            }
            let last = page.devices.last().map(|device| device.device_id.clone());
            let next = last.filter(|_| page.more).map(Some);
            Ok(Some((Bytes::from(lines), next)))
        }
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (content_type, Body::from_stream(pages)).into_response()
}

fn export_line(device: &Device, exclude_keys: bool) -> Value {
    let authentication = match &device.authentication {
        Authentication::Sas(_) if exclude_keys => json!({"type": "sas"}),
        Authentication::Sas(keys) => json!({
            "type": "sas",
            "symmetricKey": {
                "primaryKey": keys.primary.expose(),
                "secondaryKey": keys.secondary.expose(),
            },
        }),
        Authentication::SelfSigned(thumbprints) => json!({
            "type": "selfSigned",
            "x509Thumbprint": {
                "primaryThumbprint": thumbprints.primary,
                "secondaryThumbprint": thumbprints.secondary,
            },
        }),
        Authentication::CertificateAuthority => json!({"type": "certificateAuthority"}),
        Authentication::None => json!({"type": "none"}),
    };
    let status = match device.status {
        DeviceStatus::Enabled => "enabled",
        DeviceStatus::Disabled => "disabled",
    };
    let mut line = json!({
        "id": device.device_id.as_str(),
        "status": status,
        "authentication": authentication,
    });
    if let Some(members) = line.as_object_mut() {
        if let Some(reason) = &device.status_reason {
            members.insert("statusReason".to_owned(), json!(reason));
        }
        if device.iot_edge {
            members.insert("capabilities".to_owned(), json!({"iotEdge": true}));
        }
        if let Some(scope) = &device.device_scope {
            members.insert("deviceScope".to_owned(), json!(scope));
        }
        if !device.parent_scopes.is_empty() {
            members.insert("parentScopes".to_owned(), json!(device.parent_scopes));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of 300 KiB was refused or taken depending on where the network cut the body, and a
    /// refusal ended the import with lines before it neither applied nor counted.
    #[test]
    fn lines_are_the_same_wherever_the_body_is_cut() {
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let longest = "y".repeat(LINE_BYTES_MAX);
        let text = format!("a\n{long}\n\n{longest}\nlast");
        let whole = |text: &str| Line::Whole(text.into());
        let expected = [
            whole("a"),
            Line::TooLong,
            whole(""),
            whole(&longest),
            whole("last"),
        ];
        for size in [1, 7, 4096, LINE_BYTES_MAX, text.len()] {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                let mut piece = Bytes::copy_from_slice(piece);
                while let Some(line) = lines.next_in(&mut piece) {
                    found.push(line);
                }
            }
            found.push(lines.last());
            assert!(found == expected, "cut every {size} bytes");
        }
    }
}
