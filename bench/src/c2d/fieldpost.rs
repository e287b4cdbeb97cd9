//! The hub: durable before it answers, in a store of its own on the disk of the temporary folder.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fieldpost_client::service::{Service, ServiceEvent, ServiceOptions};
use fieldpost_client::token::{KeyRule, sign};
use fieldpost_model::{CloudMessage, DeviceId};
use fieldpost_testkit::hub::{HubProcess, now};

use super::Load;
use super::devices::Login;
use crate::registration::{KEY, import};
use fieldpost_testkit::http::metric;

/// The hub's own count of messages that devices have completed, durably.
const COMPLETED: &str =
    r#"fieldpost_queue_messages_settled_total{queue="device",cause="completed"}"#;

/// How often that count is asked for.
const LOOK: Duration = Duration::from_millis(10);

/// A hub process with registered devices and a plain MQTT listener.
pub(crate) struct Fieldpost {
    process: HubProcess,
    host: String,
    pub(crate) mqtt: SocketAddr,
}

impl Fieldpost {
    /// Starts a hub with a new store in `folder` and registers the devices.
    pub(crate) async fn start(binary: &Path, folder: &Path, devices: usize) -> Result<Self> {
        let mut process = HubProcess::new(binary, folder);
        process.set("listeners.mqtt.enabled=true");
        process.set(&format!("listeners.mqtt.address={}", process.at(0).ip()));
        process.start().await?;
        import(&process, folder, (0..devices).map(super::name)).await?;
        Ok(Self {
            host: process.at(0).ip().to_string(),
            mqtt: process.at(1883),
            process,
        })
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.process.pid().context("the hub has ended")
    }

    pub(crate) fn logins(&self, names: &[String]) -> Result<Vec<Login>> {
        let host = &self.host;
        let expiry = now().saturating_add(Duration::from_secs(24 * 3600));
        let login = |device: &String| Login {
            client_id: device.clone(),
            user_name: Some(format!("{host}/{device}/?api-version=2021-04-12")),
            password: Some(sign(
                &format!("{host}/devices/{device}"),
                KEY,
                KeyRule::Decoded,
                None,
                expiry,
            )),
            filter: format!("devices/{device}/messages/devicebound/#"),
        };
        Ok(names.iter().map(login).collect())
    }

    /// Sends all messages and returns when the last one is accepted.
    pub(crate) async fn command(&self, load: &Load) -> Result<()> {
        let connection_string = self
            .process
            .run(&["connection-string", "--policy", "service"]);
        let mut service = Service::connect(&ServiceOptions {
            connection_string: connection_string.await?.parse()?,
            address: Some(self.process.at(5671)),
            trust: self.process.trust()?,
            now: now(),
        })
        .await?;
        let addresses: Vec<String> = load
            .devices
            .iter()
            .map(|device| {
                Ok(fieldpost_client::service::address_of(
                    &DeviceId::new(device)?,
                    None,
                ))
            })
            .collect::<Result<_>>()?;
        let mut payload = load.payload();
        let (mut sent, mut accepted) = (0, 0);
        while accepted < load.messages {
            if service.in_flight() == 0 {
                // Nothing is owed that could be waited for but credit.
                service.ready().await?;
            }
            while sent < load.messages
                && service.can_send()
                && service.in_flight() < usize::from(load.in_flight)
            {
                let place = usize::try_from(sent)? % addresses.len().max(1);
                service.send(&CloudMessage {
                    to: addresses.get(place).context("no devices")?.into(),
                    body: payload.numbered(sent).into(),
                    ..CloudMessage::default()
                })?;
                sent += 1;
            }
            let mut event = Some(service.next().await?);
            while let Some(heard) = event {
                if let ServiceEvent::Answered { outcome, .. } = heard {
                    outcome?;
                    accepted += 1;
                }
                event = service.next_ready();
            }
        }
        Ok(())
    }

    /// Returns when the hub's own count of completed messages has come to `messages`.
    pub(crate) async fn completed(&self, messages: u64) -> Result<()> {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let completed = metric(self.process.at(9640), COMPLETED).await?;
            ensure!(completed <= messages, "{completed} messages completed");
            if completed == messages {
                return Ok(());
            }
        }
    }
}
