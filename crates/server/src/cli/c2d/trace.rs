//! Where is my message?

use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

use super::super::{Format, output, with_hub};
use super::{ShowArgs, array, cell};
use crate::admin::NoStore;

pub(super) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let which = &args.which;
    let by_id = which.message_id.iter().map(|id| ("messageId", id.clone()));
    let by_number = which
        .sequence
        .iter()
        .map(|number| ("sequenceNumber", number.to_string()));
    let parameters: Vec<_> = by_id.chain(by_number).collect();
    let path = args.target.path("trace", &parameters);
    let answer = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.get(&path).await
    })?;
    let messages = array(&answer, "messages");
    if messages.is_empty() {
        bail!("the hub knows no such message to `{}`", args.target.device);
    }
    match args.output.output {
        Format::Json => output::json(&Value::Array(messages.to_vec()))?,
        Format::Text => {
            for message in messages {
                output::print(&story(message))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What happened to a message, a line for each thing, in the order of time.
pub(super) fn story(message: &Value) -> String {
    let mut title = format!("message {}", cell(message, "sequenceNumber"));
    let id = cell(message, "messageId");
    if !id.is_empty() {
        title.push_str(&format!(" ({id})"));
    }
    let mut lines = vec![(
        cell(message, "enqueuedTime"),
        format!(
            "sent by {}, expires {}",
            cell(message, "sender"),
            cell(message, "expiryTime")
        ),
    )];
    let attempts = array(message, "attempts");
    let count = message.get("attemptCount").and_then(Value::as_u64);
    let left_out = count
        .unwrap_or_default()
        .saturating_sub(attempts.len() as u64);
    for (n, attempt) in attempts.iter().enumerate() {
        // Of many deliveries the first few and the last few are kept.
        if left_out > 0 && n == attempts.len() / 2 {
            lines.push((String::new(), format!("... {left_out} more deliveries ...")));
        }
        let connection = cell(attempt, "connection");
        let receiver = if connection.is_empty() {
            "a request".to_owned()
        } else {
            format!("connection {connection}")
        };
        let outcome = cell(attempt, "outcome").replace('_', " ");
        lines.push((
            cell(attempt, "time"),
            format!("delivered to {receiver}: {outcome}"),
        ));
    }
    let end = match cell(message, "state").as_str() {
        "enqueued" => "waits for the device".to_owned(),
        "locked" => match cell(message, "lockedUntil").as_str() {
            "" => "delivered, not completed yet".to_owned(),
            until => format!("delivered, locked until {until}"),
        },
        "deadLettered" => format!(
            "dead letter {}: {}",
            cell(message, "deadLetter"),
            cell(message, "cause")
        ),
        state => state.to_owned(),
    };
    lines.push((cell(message, "settledTime"), end));
    match cell(message, "feedback").as_str() {
        "pending" => lines.push((String::new(), "feedback waits to be sent".to_owned())),
        "sent" => lines.push((cell(message, "feedbackTime"), "feedback sent".to_owned())),
        _ => {}
    }
    let mut text = format!("{}\n", output::heading(&title));
    for (time, what) in lines {
        text.push_str(&format!("  {time:<24}  {what}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_story_is_told_in_order() {
        let check = |message: Value, expected: &str| {
            let text = anstream::adapter::strip_str(&story(&message)).to_string();
            assert_eq!(text, expected);
        };
        check(
            json!({
                "sequenceNumber": 7, "messageId": "m\u{1b}[2J", "sender": "service",
                "enqueuedTime": "2026-01-01T00:00:00.000Z", "expiryTime": "2026-01-01T01:00:00.000Z",
                "attemptCount": 10,
                "attempts": [
                    {"time": "2026-01-01T00:00:01.000Z", "connection": 5, "outcome": "lock_expired"},
                    {"time": "2026-01-01T00:00:02.000Z", "connection": null, "outcome": "rejected"},
                ],
                "state": "deadLettered", "deadLetter": 3, "cause": "Rejected",
                "settledTime": "2026-01-01T00:00:03.000Z",
                "feedback": "sent", "feedbackTime": null,
            }),
            "message 7 (m\\u{1b}[2J)\n\
             \x20 2026-01-01T00:00:00.000Z  sent by service, expires 2026-01-01T01:00:00.000Z\n\
             \x20 2026-01-01T00:00:01.000Z  delivered to connection 5: lock expired\n\
             \x20                           ... 8 more deliveries ...\n\
             \x20 2026-01-01T00:00:02.000Z  delivered to a request: rejected\n\
             \x20 2026-01-01T00:00:03.000Z  dead letter 3: Rejected\n\
             \x20                           feedback sent\n",
        );
        check(
            json!({
                "sequenceNumber": 8, "messageId": null, "sender": "service",
                "enqueuedTime": "2026-01-01T00:00:00.000Z", "expiryTime": "2026-01-01T01:00:00.000Z",
                "attemptCount": 0, "attempts": [], "state": "locked", "lockedUntil": null,
                "feedback": "none",
            }),
            "message 8\n\
             \x20 2026-01-01T00:00:00.000Z  sent by service, expires 2026-01-01T01:00:00.000Z\n\
             \x20                           delivered, not completed yet\n",
        );
    }
}
