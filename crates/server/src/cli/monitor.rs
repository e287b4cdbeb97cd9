//! `fieldpost monitor`: messages as they come in, read through the built-in endpoint.

use std::process::ExitCode;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use fieldpost_client::{Event, Reader, ReaderOptions, Start};
use fieldpost_model::Timestamp;
use serde_json::{Map, Value, json};

use super::output::printable;
use super::peer::{PeerArgs, Role};
use super::{Format, OutputArgs, block_on, output};

pub(super) const EXAMPLES: &str = "Examples:
  fieldpost monitor
  fieldpost monitor --device my-device --from earliest
  fieldpost monitor --from 2026-01-31T12:00:00Z --output json | jq .body
  fieldpost monitor --from 1000 --partition 2 --count 10";

#[derive(Args, Debug)]
pub(super) struct MonitorArgs {
    /// Only messages of this device.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Where to begin: earliest, latest, a time, or a sequence number.
    #[arg(long, value_name = "POSITION", default_value = "latest")]
    from: Position,
    /// Only this partition.
    #[arg(long, value_name = "ID")]
    partition: Option<String>,
    /// The consumer group to read in.
    #[arg(long, value_name = "NAME", default_value = "$Default")]
    consumer_group: String,
    /// Stop after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    peer: PeerArgs,
    /// JSON is one object per line.
    #[command(flatten)]
    output: OutputArgs,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position(Start);

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let start = match text {
            "earliest" => Start::Earliest,
            "latest" => Start::Latest,
            _ => match (text.parse(), Timestamp::parse(text)) {
                (Ok(sequence), _) => Start::Sequence(sequence),
                (_, Some(time)) => Start::After(time),
                _ => return Err("expected earliest, latest, a time such as 2026-01-31T12:00:00Z, or a sequence number".to_owned()),
            },
        };
        Ok(Self(start))
    }
}

pub(super) fn run(args: &MonitorArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let peer = args.peer.find(Role::Reader).await?;
        let mut reader = Reader::connect(&ReaderOptions {
            connection_string: peer.connection_string,
            address: peer.address,
            trust: peer.trust,
            consumer_group: args.consumer_group.clone(),
            now: peer.now,
        })
        .await?;
        let partitions = match &args.partition {
            Some(partition) => vec![partition.clone()],
            None => reader.partitions().await?,
        };
        for partition in &partitions {
            reader.receive(partition, args.from.0).await?;
        }
        if args.output.output == Format::Text {
            output::note(&format!(
                "reading {} partitions; Ctrl-C ends",
                partitions.len()
            ));
        }
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let event = tokio::select! {
                event = reader.next() => event?,
                interrupted = tokio::signal::ctrl_c() => { interrupted?; break; }
            };
            if args.device.is_some() && args.device != event.device_id {
                continue;
            }
            left -= 1;
            match args.output.output {
                Format::Text => output::line(&as_line(&event))?,
                Format::Json => output::line(&as_json(&event).to_string())?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })?
}

fn as_line(event: &Event) -> String {
    let mut line = format!(
        "{} {}/{} {}",
        event.enqueued,
        event.partition,
        event.sequence,
        output::heading(&printable(event.device_id.as_deref().unwrap_or("-"))),
    );
    for (name, value) in &event.properties {
        let value = value.as_deref().unwrap_or_default();
        line.push_str(&format!(" {}={}", printable(name), printable(value)));
    }
    match std::str::from_utf8(&event.body) {
        Ok(text) => line.push_str(&format!("  {}", printable(text))),
        Err(_) => line.push_str(&format!("  <{} bytes>", event.body.len())),
    }
    line
}

fn as_json(event: &Event) -> Value {
    let properties: Map<_, _> = event
        .properties
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let mut object = json!({
        "partition": event.partition,
        "sequenceNumber": event.sequence,
        "enqueuedTime": event.enqueued.to_string(),
        "acceptedTime": event.accepted.map(|time| time.to_string()),
        "deviceId": event.device_id,
        "messageId": event.message_id,
        "contentType": event.content_type,
        "properties": properties,
    });
    let (name, body) = match std::str::from_utf8(&event.body) {
        Ok(text) => ("body", text.to_owned()),
        Err(_) => ("bodyBase64", STANDARD.encode(&event.body)),
    };
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), json!(body));
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_in_every_form() {
        let check = |text: &str, expected: Option<Start>| {
            assert_eq!(
                text.parse::<Position>().ok().map(|p| p.0),
                expected,
                "{text}"
            );
        };
        check("earliest", Some(Start::Earliest));
        check("latest", Some(Start::Latest));
        check("17", Some(Start::Sequence(17)));
        let time = Timestamp::parse("2026-01-31T12:00:00Z").unwrap();
        check("2026-01-31T12:00:00Z", Some(Start::After(time)));
        check("yesterday", None);
    }
}
