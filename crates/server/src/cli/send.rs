//! `fieldpost send`: a message as a device sends it, over MQTT and TLS.

use std::io::{BufRead as _, Read as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use fieldpost_client::device::{Device, DeviceOptions};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::peer::{PeerArgs, Role};
use super::{Format, OutputArgs, block_on, output};

pub(super) const EXAMPLES: &str = "Examples:
  fieldpost send my-device '{\"temperature\": 21.5}' --property room=kitchen
  fieldpost send my-device --file picture.jpg --content-type image/jpeg
  tail -f readings.txt | fieldpost send my-device --lines";

/// Messages on their way at once when lines are sent.
const WINDOW: usize = 100;

#[derive(Args, Debug)]
pub(super) struct SendArgs {
    /// The device that sends.
    device: String,
    /// The body; standard input when it is left out.
    #[arg(conflicts_with = "file")]
    body: Option<String>,
    /// Send the content of a file.
    #[arg(long, value_name = "FILE", conflicts_with = "lines")]
    file: Option<std::path::PathBuf>,
    /// Send each line of standard input as a message of its own.
    #[arg(long, conflicts_with = "body")]
    lines: bool,
    /// An application property.
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// The content type, such as application/json.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The content encoding, such as utf-8.
    #[arg(long, value_name = "ENCODING")]
    content_encoding: Option<String>,
    /// The message id.
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &SendArgs) -> anyhow::Result<ExitCode> {
    let bag = args.property_bag()?;
    let sent = block_on(async {
        let peer = args.peer.find(Role::Device(&args.device)).await?;
        let mut device = Device::connect(&DeviceOptions {
            connection_string: peer.connection_string,
            address: peer.address,
            trust: peer.trust,
            keep_alive_s: 240,
            now: peer.now,
        })
        .await?;
        let sent = if args.lines {
            send_lines(&mut device, &bag).await?
        } else {
            device.publish(&bag, &args.read_body()?)?;
            wait_for_all(&mut device).await?;
            1
        };
        device.disconnect().await?;
        anyhow::Ok(sent)
    })??;
    match args.output.output {
        Format::Json => output::json(&json!({"acknowledged": sent}))?,
        Format::Text => output::note(&format!("{sent} acknowledged")),
    }
    Ok(ExitCode::SUCCESS)
}

async fn send_lines(device: &mut Device, bag: &str) -> anyhow::Result<u64> {
    // Standard input has no waiting that can be given up, so a thread reads it.
    let (lines, mut read) = tokio::sync::mpsc::channel(WINDOW);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut sent = 0;
    loop {
        tokio::select! {
            line = read.recv(), if device.in_flight() < WINDOW => match line {
                Some(line) => {
                    device.publish(bag, line?.as_bytes())?;
                    sent += 1;
                }
                None => break,
            },
            acknowledged = device.acknowledged(|_| {}) => { acknowledged?; }
        }
    }
    wait_for_all(device).await?;
    Ok(sent)
}

async fn wait_for_all(device: &mut Device) -> anyhow::Result<()> {
    while device.in_flight() > 0 {
        device
            .acknowledged(|_| {})
            .await
            .context("wait for the hub to acknowledge")?;
    }
    Ok(())
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

    /// Properties as they stand in a topic: system properties have names that begin with `$.`.
    fn property_bag(&self) -> anyhow::Result<String> {
        let system = [
            ("$.mid", &self.message_id),
            ("$.ct", &self.content_type),
            ("$.ce", &self.content_encoding),
        ];
        let mut pairs: Vec<String> = system
            .iter()
            .filter_map(|(name, value)| {
                Some(format!("{}={}", escaped(name), escaped(value.as_ref()?)))
            })
            .collect();
        for property in &self.properties {
            let Some((name, value)) = property.split_once('=') else {
                bail!("--property {property}: expected NAME=VALUE");
            };
            pairs.push(format!("{}={}", escaped(name), escaped(value)));
        }
        Ok(pairs.join("&"))
    }
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
