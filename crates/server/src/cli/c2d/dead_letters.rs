//! Messages that no device took.

use std::process::ExitCode;

use anyhow::Context as _;
use axum::http::Method;
use serde_json::Value;

use super::super::{Format, encoded, output, with_hub};
use super::{DeleteLettersArgs, ListLettersArgs, RequeueArgs, ShowLetterArgs, array, cell};
use crate::admin::NoStore;

/// Dead letters asked for in one call.
const PAGE_LETTERS: usize = 1000;

const COLUMNS: [&str; 7] = [
    "NUMBER",
    "DEVICE",
    "CAUSE",
    "SINCE",
    "COUNTED",
    "BYTES",
    "MESSAGE ID",
];

const MEMBERS: [&str; 7] = [
    "number",
    "deviceId",
    "cause",
    "deadLetteredTime",
    "deliveryCount",
    "bodyBytes",
    "messageId",
];

pub(super) fn list(args: &ListLettersArgs) -> anyhow::Result<ExitCode> {
    with_hub(&args.place, NoStore::Refuse, async |client| {
        let mut printer = output::PagePrinter::new(args.output.output, &COLUMNS);
        let mut after = args.after;
        let mut left = args.limit.unwrap_or(usize::MAX);
        while left > 0 {
            let limit = left.min(PAGE_LETTERS);
            let mut path = format!("/api/c2d/dead-letters?after={after}&limit={limit}");
            for (name, id) in [("deviceId", &args.device), ("moduleId", &args.module)] {
                if let Some(id) = id {
                    path.push_str(&format!("&{name}={}", encoded(id)));
                }
            }
            let page = client.get(&path).await?;
            let letters = array(&page, "deadLetters");
            printer.page(letters, row)?;
            left = left.saturating_sub(letters.len());
            match page.get("continuation").and_then(Value::as_u64) {
                Some(last) => after = last,
                None => break,
            }
        }
        printer.end()
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show(args: &ShowLetterArgs) -> anyhow::Result<ExitCode> {
    let path = path_of(args.number);
    let letter = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.get(&path).await
    })?;
    if args.output.output == Format::Json {
        output::json(&letter)?;
        return Ok(ExitCode::SUCCESS);
    }
    let members = [
        ("number", "number"),
        ("device", "deviceId"),
        ("module", "moduleId"),
        ("cause", "cause"),
        ("since", "deadLetteredTime"),
        ("enqueued", "enqueuedTime"),
        ("sent by", "sender"),
        ("counted", "deliveryCount"),
        ("message id", "messageId"),
        ("correlation id", "correlationId"),
        ("content type", "contentType"),
        ("feedback for", "ack"),
    ];
    for (name, member) in members {
        let text = cell(&letter, member);
        if !text.is_empty() {
            let name = output::heading(&format!("{name:<15}"));
            output::line(&format!("{name} {text}"))?;
        }
    }
    let properties = letter.get("properties").and_then(Value::as_object);
    for (name, value) in properties.into_iter().flatten() {
        let name = output::printable(name);
        let value = output::printable(value.as_str().unwrap_or_default());
        let heading = output::heading(&format!("{:<15}", "property"));
        output::line(&format!("{heading} {name}={value}"))?;
    }
    for attempt in array(&letter, "attempts") {
        let heading = output::heading(&format!("{:<15}", "delivered"));
        let outcome = cell(attempt, "outcome").replace('_', " ");
        output::line(&format!("{heading} {} {outcome}", cell(attempt, "time")))?;
    }
    let body = match letter.get("body").and_then(Value::as_str) {
        Some(text) => output::printable(text),
        None => format!("<{} bytes>", cell(&letter, "bodyBytes")),
    };
    output::line(&format!("\n{body}"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn requeue(args: &RequeueArgs) -> anyhow::Result<ExitCode> {
    let requeued = with_hub(&args.place, NoStore::Refuse, async |client| {
        let mut requeued = Vec::new();
        for number in &args.numbers {
            let path = format!("{}/requeue", path_of(*number));
            let message = client.call(Method::POST, &path, &[], None).await;
            let message = message.with_context(|| progress(requeued.len(), "requeued"))?;
            requeued.push(message);
        }
        Ok(requeued)
    })?;
    match args.output.output {
        Format::Json => output::json(&Value::Array(requeued))?,
        Format::Text => {
            for (number, message) in args.numbers.iter().zip(&requeued) {
                let sequence = cell(message, "sequenceNumber");
                let expires = cell(message, "expiryTime");
                output::line(&format!(
                    "dead letter {number} is message {sequence}, expires {expires}"
                ))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn delete(args: &DeleteLettersArgs) -> anyhow::Result<ExitCode> {
    with_hub(&args.place, NoStore::Refuse, async |client| {
        for (done, number) in args.numbers.iter().enumerate() {
            let path = path_of(*number);
            let deleted = client.call(Method::DELETE, &path, &[], None).await;
            deleted.with_context(|| progress(done, "deleted"))?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// How far a command over several dead letters got when one failed.
fn progress(done: usize, what: &str) -> String {
    format!("after {done} were {what}")
}

fn path_of(number: u64) -> String {
    format!("/api/c2d/dead-letters/{number}")
}

fn row(letter: &Value) -> Vec<String> {
    let mut row = MEMBERS.map(|member| cell(letter, member)).to_vec();
    let module = cell(letter, "moduleId");
    if let Some(device) = row.get_mut(1)
        && !module.is_empty()
    {
        device.push_str(&format!("/{module}"));
    }
    row
}
