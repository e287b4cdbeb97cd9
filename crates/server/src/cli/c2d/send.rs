//! `fieldpost c2d send`: a message to a device as a service sends it, over AMQP and TLS.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use fieldpost_client::service::{Service, ServiceEvent, ServiceOptions, address_of};
use fieldpost_hub::clock::Chance as _;
use fieldpost_model::{Ack, CloudMessage, DeviceId, ModuleId, Properties, Timestamp};
use serde_json::{Value, json};

use super::super::peer::{Peer, PeerArgs, Role};
use super::super::{Format, OutputArgs, block_on, output};
use super::{TargetArgs, array, cell, trace};
use crate::admin::{AdminClient, NoStore};

pub(super) const EXAMPLES: &str = "Examples:
  fieldpost c2d send my-device hello
  echo '{\"interval\": 5}' | fieldpost c2d send my-device --content-type application/json
  fieldpost c2d send my-device hello --ttl 30s --ack full --property priority=high
  fieldpost c2d send my-device hello --wait        # exit 0 once the device has completed it

--wait asks the hub where the message is, and takes no feedback away from your services.";

/// How often the hub is asked where a message is, at first and later.
const LOOK_INTERVALS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

#[derive(Args, Debug)]
pub(in crate::cli) struct SendArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The body; standard input when it is left out.
    #[arg(conflicts_with = "file")]
    body: Option<String>,
    /// Send the content of a file.
    #[arg(long, value_name = "FILE")]
    file: Option<std::path::PathBuf>,
    /// The message id. With --wait one is made up when it is left out.
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The correlation id.
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// The content type, such as application/json.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The content encoding, such as utf-8.
    #[arg(long, value_name = "ENCODING")]
    content_encoding: Option<String>,
    /// An application property.
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Which outcomes the hub sends feedback about.
    #[arg(long, value_enum, default_value_t)]
    ack: AckArg,
    /// Time to live, such as 30s, 5min or 2d [default: as the hub is set].
    #[arg(long, visible_alias = "expires-in", value_name = "SPAN", value_parser = span)]
    ttl: Option<Duration>,
    /// Wait until the device has completed the message; exit 1 when it never will.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which outcomes are told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum AckArg {
    /// None.
    #[default]
    None,
    /// Completed messages.
    Positive,
    /// Messages that were not completed.
    Negative,
    /// All.
    Full,
}

pub(super) fn run(args: &SendArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        !args.wait || args.peer.is_local(),
        "--wait asks a hub on this machine, through its data directory; it does not go with --connection-string"
    );
    let message_id = match (&args.message_id, args.wait) {
        (None, true) => Some(made_up_id()),
        (given, _) => given.clone(),
    };
    let body = args.read_body()?;
    block_on(async {
        let peer = args.peer.find(Role::Service).await?;
        let began = peer.now;
        send(args, &peer, message_id.as_deref(), &body).await?;
        let Some(id) = message_id.as_deref().filter(|_| args.wait) else {
            match args.output.output {
                Format::Json => output::json(&json!({"accepted": 1, "messageId": message_id}))?,
                Format::Text => output::note("accepted"),
            }
            return Ok(ExitCode::SUCCESS);
        };
        let config = args.peer.config()?;
        let client = AdminClient::open(&config, NoStore::Refuse).await?;
        let found = follow(&client, &args.target, id, began).await;
        client.close().await;
        tell(args, id, found?)
    })?
}

async fn send(
    args: &SendArgs,
    peer: &Peer,
    message_id: Option<&str>,
    body: &[u8],
) -> anyhow::Result<()> {
    let device = DeviceId::new(&args.target.device).context("the device's id")?;
    let module = args.target.module.as_deref().map(ModuleId::new);
    let module = module.transpose().context("the module's id")?;
    let mut properties = Properties::default();
    for property in &args.properties {
        let Some((name, value)) = property.split_once('=') else {
            bail!("--property {property}: expected NAME=VALUE");
        };
        properties.set(name.into(), Some(value.into()));
    }
    let message = CloudMessage {
        to: address_of(&device, module.as_ref()).into(),
        message_id: message_id.map(Into::into),
        correlation_id: args.correlation_id.as_deref().map(Into::into),
        content_type: args.content_type.as_deref().map(Into::into),
        content_encoding: args.content_encoding.as_deref().map(Into::into),
        expires: args.ttl.map(|ttl| peer.now.saturating_add(ttl)),
        ack: args.ack.into(),
        properties,
        body: body.into(),
        ..CloudMessage::default()
    };
    let mut service = Service::connect(&ServiceOptions {
        connection_string: peer.connection_string.clone(),
        address: peer.address,
        trust: peer.trust.clone(),
        now: peer.now,
    })
    .await?;
    service.ready().await?;
    let sent = service.send(&message)?;
    loop {
        match service.next().await? {
            ServiceEvent::Answered { ticket, outcome } if ticket == sent => {
                return outcome.with_context(|| format!("send to `{}`", args.target.device));
            }
            ServiceEvent::Answered { .. } | ServiceEvent::Feedback(_) => {}
        }
    }
}

/// Waits until a message is settled; what is known of it then, if anything.
async fn follow(
    client: &AdminClient,
    target: &TargetArgs,
    message_id: &str,
    began: Timestamp,
) -> anyhow::Result<Option<Value>> {
    let path = target.path("trace", &[("messageId", message_id.to_owned())]);
    let mut pause = LOOK_INTERVALS.0;
    loop {
        let answer = client.get(&path).await?;
        // The newest one: an id may have been used before.
        let message = array(&answer, "messages").last().filter(|message| {
            Timestamp::parse(&cell(message, "enqueuedTime")).is_some_and(|time| time >= began)
        });
        let state = message.map(|message| cell(message, "state"));
        match state.as_deref() {
            Some("enqueued" | "locked") => {}
            Some(_) | None => return Ok(message.cloned()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_INTERVALS.1);
    }
}

fn tell(args: &SendArgs, id: &str, found: Option<Value>) -> anyhow::Result<ExitCode> {
    let Some(message) = found else {
        bail!(
            "message `{id}` is gone without a trace: its device was deleted, or the hub keeps no history"
        );
    };
    let is_completed = cell(&message, "state") == "completed";
    match args.output.output {
        Format::Json => output::json(&message)?,
        Format::Text => output::print(&trace::story(&message))?,
    }
    Ok(if is_completed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl SendArgs {
    fn read_body(&self) -> anyhow::Result<Vec<u8>> {
        if let Some(body) = &self.body {
            return Ok(body.as_bytes().to_vec());
        }
        if let Some(file) = &self.file {
            return std::fs::read(file).with_context(|| format!("read {}", file.display()));
        }
        let mut body = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut body)
            .context("read standard input")?;
        Ok(body)
    }
}

impl From<AckArg> for Ack {
    fn from(ack: AckArg) -> Self {
        match ack {
            AckArg::None => Self::None,
            AckArg::Positive => Self::Positive,
            AckArg::Negative => Self::Negative,
            AckArg::Full => Self::Full,
        }
    }
}

fn span(text: &str) -> Result<Duration, String> {
    crate::config::parse_span(text)
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a span of time such as 30s, 5min, 1h or 2d".to_owned())
}

/// 16 random bytes in hexadecimal.
fn made_up_id() -> String {
    let mut bytes = [0; 16];
    crate::clock::SystemChance::default().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
