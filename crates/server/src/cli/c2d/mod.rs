//! `fieldpost c2d ...`: messages to devices.

mod dead_letters;
mod queue;
mod send;
mod trace;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{OutputArgs, PlaceArgs, encoded};

pub(super) const EXAMPLES: &str = "Examples:
  fieldpost c2d send my-device '{\"reboot\": true}' --ack full --ttl 30s
  fieldpost c2d send my-device --file update.json --message-id update-7 --wait
  fieldpost c2d list my-device
  fieldpost c2d show my-device --message-id update-7     # where is my message?
  fieldpost c2d dead-letters list --device my-device
  fieldpost c2d dead-letters requeue 42";

#[derive(Debug, Subcommand)]
pub(super) enum C2dCommand {
    /// Send a message to a device, over AMQP and TLS as a service does; returns when it is durable.
    #[command(after_help = send::EXAMPLES)]
    Send(send::SendArgs),
    /// Print what waits for a device, and what it holds and has not completed.
    List(ListArgs),
    /// Tell where a message is: when and by whom it was sent, each delivery, and what became of it.
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
    /// Remove what waits for a device. What the device holds at the moment stays.
    Purge(PurgeArgs),
    /// Look at messages that were rejected, expired or given back too often; send them anew.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
}

const SHOW_HELP: &str =
    "Deliveries are known since the hub was started last, and of settled messages for good.
Completed messages are remembered as properties.cloudToDevice.history says (see `hub show`),
dead letters as properties.cloudToDevice.deadLetters says. A message that was purged, or sent to
a device that was deleted, leaves no trace.";

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// Print dead letters in the order in which they came.
    List(ListLettersArgs),
    /// Print one dead letter with its body.
    Show(ShowLetterArgs),
    /// Send dead letters anew to their devices, with the default time to live, and remove them.
    Requeue(RequeueArgs),
    /// Remove dead letters.
    Delete(DeleteLettersArgs),
}

/// Whose queue is meant.
#[derive(Args, Clone, Debug)]
pub(super) struct TargetArgs {
    /// The device's id.
    device: String,
    /// A module of the device.
    #[arg(long, value_name = "ID")]
    module: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct WhichArgs {
    /// The id that its sender gave it. Several messages may have it.
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The number that the hub gave it.
    #[arg(long, value_name = "N")]
    sequence: Option<u64>,
}

#[derive(Args, Debug)]
pub(super) struct PurgeArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ListLettersArgs {
    /// Only those to this device.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Only those to this module of the device.
    #[arg(long, value_name = "ID", requires = "device")]
    module: Option<String>,
    /// Only those after this number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u64,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ShowLetterArgs {
    /// Its number, as `list` prints it.
    number: u64,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct RequeueArgs {
    /// Their numbers, as `list` prints them.
    #[arg(required = true)]
    numbers: Vec<u64>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct DeleteLettersArgs {
    /// Their numbers, as `list` prints them.
    #[arg(required = true)]
    numbers: Vec<u64>,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) fn run(command: &C2dCommand) -> anyhow::Result<ExitCode> {
    match command {
        C2dCommand::Send(args) => send::run(args),
        C2dCommand::List(args) => queue::list(args),
        C2dCommand::Show(args) => trace::show(args),
        C2dCommand::Purge(args) => queue::purge(args),
        C2dCommand::DeadLetters(command) => match command {
            DeadLettersCommand::List(args) => dead_letters::list(args),
            DeadLettersCommand::Show(args) => dead_letters::show(args),
            DeadLettersCommand::Requeue(args) => dead_letters::requeue(args),
            DeadLettersCommand::Delete(args) => dead_letters::delete(args),
        },
    }
}

impl TargetArgs {
    /// The path of what an admin route says about this queue.
    fn path(&self, what: &str, parameters: &[(&str, String)]) -> String {
        let module = self.module.iter().map(|id| ("moduleId", id.clone()));
        let parameters: Vec<_> = parameters
            .iter()
            .cloned()
            .chain(module)
            .map(|(name, value)| format!("{name}={}", encoded(&value)))
            .collect();
        let mut path = format!("/api/c2d/devices/{}/{what}", encoded(&self.device));
        if !parameters.is_empty() {
            path.push('?');
            path.push_str(&parameters.join("&"));
        }
        path
    }
}

/// A member of a JSON answer as text for people; empty when it is not there.
fn cell(value: &Value, member: &str) -> String {
    match value.get(member) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => super::output::printable(text),
        Some(other) => other.to_string(),
    }
}

fn array<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    let items = value.get(member).and_then(Value::as_array);
    items.map(Vec::as_slice).unwrap_or_default()
}
