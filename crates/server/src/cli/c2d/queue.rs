//! What waits for a device.

use std::process::ExitCode;

use axum::http::Method;
use serde_json::Value;

use super::super::{Format, output, with_hub};
use super::{ListArgs, PurgeArgs, array, cell};
use crate::admin::NoStore;

const COLUMNS: [&str; 7] = [
    "SEQUENCE",
    "STATE",
    "ENQUEUED",
    "EXPIRES",
    "COUNTED",
    "BYTES",
    "MESSAGE ID",
];

pub(super) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let messages = with_hub(&args.place, NoStore::Refuse, async |client| {
        // A queue is short, so that there is no need to print page by page.
        let mut messages = Vec::new();
        let mut after = 0;
        loop {
            let parameters = [("after", after.to_string())];
            let page = client
                .get(&args.target.path("messages", &parameters))
                .await?;
            messages.extend_from_slice(array(&page, "messages"));
            match page.get("continuation").and_then(Value::as_u64) {
                Some(last) => after = last,
                None => return Ok(messages),
            }
        }
    })?;
    match args.output.output {
        Format::Json => output::json(&Value::Array(messages))?,
        Format::Text => {
            let members = [
                "sequenceNumber",
                "state",
                "enqueuedTime",
                "expiryTime",
                "deliveryCount",
                "bodyBytes",
                "messageId",
            ];
            let rows: Vec<Vec<_>> = messages
                .iter()
                .map(|message| members.map(|member| cell(message, member)).to_vec())
                .collect();
            output::print(&output::table(&COLUMNS, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn purge(args: &PurgeArgs) -> anyhow::Result<ExitCode> {
    let path = args.target.path("purge", &[]);
    let purged = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.call(Method::POST, &path, &[], None).await
    })?;
    match args.output.output {
        Format::Json => output::json(&purged)?,
        Format::Text => output::line(&format!("{} purged", cell(&purged, "totalMessagesPurged")))?,
    }
    Ok(ExitCode::SUCCESS)
}
