//! What is recorded: a hub, and devices, a back end and an operator who use it and write down its answers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::device::DeviceEvent;
use fieldpost_client::service::{
    FeedbackStatus, Service, ServiceEvent, ServiceOptions, address_of,
};
use fieldpost_client::token::{KeyRule, sign};
use fieldpost_client::{ConnectionString, Device, DeviceOptions};
use fieldpost_model::{Ack, CloudMessage, DeviceId};
use fieldpost_testkit::admin::Admin;
use fieldpost_testkit::http;
use fieldpost_testkit::hub::{HubProcess, now};
use fieldpost_testkit::power::NOTES;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::book::word_of;

/// The key of every device: what is tested is not the choosing of keys.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Takes its messages over MQTT.
const OVER_MQTT: &str = "mqtt";
/// Fetch their messages over HTTP.
pub(crate) const OVER_HTTP: [&str; 2] = ["http-0", "http-1"];
/// Is never there.
const AWAY: &str = "away";
/// Is never there, and its queue is emptied again and again.
const PURGED: &str = "purged";

/// Devices that send telemetry in each life of a hub.
const SENDERS: u32 = 4;
/// What each has in flight, and how often it fills that.
const WINDOW: usize = 3;
const PACE: Duration = Duration::from_millis(10);
/// After so many messages comes one that is long.
const LONG_EVERY: u64 = 150;

/// Messages that the back end has in flight.
const COMMANDS_IN_FLIGHT: usize = 8;

/// What a hub is used for.
#[derive(clap::Args)]
pub(crate) struct Work {
    /// The data directory.
    data: PathBuf,
    /// Which life of the hub this is, so that no name comes twice.
    #[arg(long)]
    life: u32,
    /// Messages for devices that are accepted before the end.
    #[arg(long)]
    messages: u32,
    /// The hub is killed at the end, not stopped.
    #[arg(long)]
    killed: bool,
}

/// Everybody's view of the hub.
struct Scene {
    notes: File,
    admin: Admin,
    host: String,
    mqtt: std::net::SocketAddr,
    amqp: std::net::SocketAddr,
    http: std::net::SocketAddr,
    trust: fieldpost_client::Trust,
    life: u32,
}

/// Starts a hub, works with it and ends it.
///
/// # Errors
/// When the hub does not do what it is there for.
pub(crate) fn run(work: &Work, binary: &Path) -> Result<()> {
    // On one thread, whose calls the record tells from those of the hub.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(live(work, binary))
}

async fn live(work: &Work, binary: &Path) -> Result<()> {
    let log_file = work.data.with_extension("log");
    let mut hub = HubProcess::numbered(binary, &work.data, &log_file, 0);
    settle(&mut hub);
    hub.start().await?;
    let scene = Arc::new(Scene {
        notes: File::options().write(true).open(NOTES)?,
        admin: Admin::of(&hub)?,
        host: hub.at(0).ip().to_string(),
        mqtt: hub.at(8883),
        amqp: hub.at(5671),
        http: hub.at(80),
        trust: hub.trust()?,
        life: work.life,
    });
    let service = connection_string(&scene.admin, "policy=service").await?;
    let key = service.key.as_deref().context("a policy without a key")?;
    scene.note(&format!("identity {} {key}", ca_of(&hub)?))?;
    set_up(&scene).await?;

    let (accepted, mut progress) = watch::channel(0);
    let mut everybody = JoinSet::new();
    for number in 0..SENDERS {
        everybody.spawn(send(Arc::clone(&scene), number));
    }
    everybody.spawn(change_devices(Arc::clone(&scene)));
    everybody.spawn(command(Arc::clone(&scene), service, accepted));
    everybody.spawn(take_over_mqtt(Arc::clone(&scene)));
    for device in OVER_HTTP {
        everybody.spawn(take_over_http(Arc::clone(&scene), device));
    }
    everybody.spawn(purge(Arc::clone(&scene)));
    tokio::select! {
        reached = progress.wait_for(|accepted| *accepted >= work.messages) => drop(reached?),
        ended = everybody.join_next() => {
            ended.context("everybody is gone")???;
            bail!("somebody has stopped");
        }
    }
    if work.killed {
        return hub.kill().await;
    }
    // They go on meanwhile, and lose their connections.
    let status = hub.stop().await?;
    ensure!(status.success(), "the hub ended with {status}");
    Ok(())
}

/// Settings of a hub of these tests.
pub(crate) fn settle(hub: &mut HubProcess) {
    let host = hub.at(0).ip();
    hub.set("run.test_mode=true");
    hub.set("listeners.http.enabled=true");
    hub.set(&format!("listeners.http.address={host}"));
    // So that segments end and begin.
    hub.set("store.segment_bytes=1 MiB");
}

/// The CA certificate without its lines' ends.
pub(crate) fn ca_of(hub: &HubProcess) -> Result<String> {
    let pem = std::fs::read_to_string(hub.ca_file()).context("read the CA certificate")?;
    Ok(pem.split_whitespace().collect())
}

/// A connection string from the admin API.
pub(crate) async fn connection_string(admin: &Admin, which: &str) -> Result<ConnectionString> {
    let answer = admin
        .get(&format!("/api/connection-string?{which}"))
        .await?;
    let text = answer.get("connectionString").and_then(Value::as_str);
    Ok(text.context("no connection string")?.parse()?)
}

/// What an MQTT device needs to connect.
pub(crate) fn device_options(
    host: &str,
    address: std::net::SocketAddr,
    trust: &fieldpost_client::Trust,
    device: &str,
) -> DeviceOptions {
    DeviceOptions {
        connection_string: ConnectionString {
            host_name: host.to_owned(),
            device_id: Some(device.to_owned()),
            policy: None,
            key: Some(KEY.to_owned()),
            entity_path: None,
        },
        address: Some(address),
        trust: trust.clone(),
        keep_alive_s: 0,
        now: now(),
    }
}

/// A message that asks for feedback.
pub(crate) fn message<'a>(id: &'a str, device: &str) -> Result<CloudMessage<'a>> {
    Ok(CloudMessage {
        to: address_of(&DeviceId::new(device)?, None).into(),
        message_id: Some(id.into()),
        ack: Ack::Full,
        body: Cow::Owned(format!("body of {id}").into_bytes()),
        ..CloudMessage::default()
    })
}

impl Scene {
    /// Says something between the hub's calls.
    fn note(&self, line: &str) -> Result<()> {
        let written = (&self.notes).write(line.as_bytes())?;
        ensure!(written == line.len(), "a note was cut");
        Ok(())
    }

    fn device(&self, device: &str) -> DeviceOptions {
        device_options(&self.host, self.mqtt, &self.trust, device)
    }
}

/// Makes the devices and the settings that are not there yet.
async fn set_up(scene: &Scene) -> Result<()> {
    let senders = (0..SENDERS).map(|number| sender(scene.life, number));
    let others = [OVER_MQTT, AWAY, PURGED].into_iter().chain(OVER_HTTP);
    for device in others.map(str::to_owned).chain(senders) {
        let status = put(scene, &device, "made", &[]).await?;
        ensure!(
            matches!(status, 200 | 409),
            "a device was answered {status}"
        );
        scene.note(&format!("device {device}"))?;
    }
    let settings = json!({"properties": {"cloudToDevice": {
        "maxDeliveryCount": 17,
        "maxQueueDepth": 10_000,
        "defaultTtlAsIso8601": "P2D",
        "feedback": {"ttlAsIso8601": "P2D"},
    }}});
    let response = scene.admin.request("PUT", "/api/hub", &[], Some(settings));
    let status = response.await?.status;
    ensure!(status == 200, "the settings were answered {status}");
    scene.note("settings")
}

fn sender(life: u32, number: u32) -> String {
    format!("sender-{life}-{number}")
}

/// The status of the answer.
async fn put(scene: &Scene, device: &str, reason: &str, headers: &[(&str, &str)]) -> Result<u16> {
    let body = json!({
        "deviceId": device,
        "status": "enabled",
        "statusReason": reason,
        "authentication": {"type": "sas", "symmetricKey": {"primaryKey": KEY, "secondaryKey": KEY}},
    });
    let path = format!("/api/devices/{device}");
    let response = scene.admin.request("PUT", &path, headers, Some(body));
    Ok(response.await?.status)
}

/// Telemetry without end.
async fn send(scene: Arc<Scene>, number: u32) -> Result<()> {
    let id = sender(scene.life, number);
    let mut device = Device::connect(&scene.device(&id)).await?;
    let mut sent = 0;
    let mut acknowledged = 0;
    let mut pace = tokio::time::interval(PACE);
    loop {
        pace.tick().await;
        while device.in_flight() < WINDOW {
            scene.note(&format!("telemetry? {id} {}", sent + 1))?;
            // Long ones take another way to the disk.
            let is_long = sent % LONG_EVERY == LONG_EVERY - 1;
            let padding = ".".repeat(if is_long { 250_000 } else { 100 });
            device.publish("n=1", format!("{padding} {sent}").as_bytes())?;
            sent += 1;
        }
        // Acknowledgements come in the order of the messages.
        acknowledged += device.acknowledged(|_| {}).await?;
        scene.note(&format!("telemetry {id} {}", acknowledged - 1))?;
    }
}

/// Devices come, change and go.
async fn change_devices(scene: Arc<Scene>) -> Result<()> {
    let any = [("If-Match", "*")];
    for number in 0_u32.. {
        let device = format!("changing-{}-{}", scene.life, number % 6);
        let state = if number / 6 % 4 == 3 {
            "-".to_owned()
        } else {
            number.to_string()
        };
        scene.note(&format!("change? {device} {state}"))?;
        let (status, expected) = match number / 6 % 4 {
            0 => (put(&scene, &device, &state, &[]).await?, 200),
            1 | 2 => (put(&scene, &device, &state, &any).await?, 200),
            _ => {
                let path = format!("/api/devices/{device}");
                let response = scene.admin.request("DELETE", &path, &any, None);
                (response.await?.status, 204)
            }
        };
        ensure!(
            status == expected,
            "a change of a device was answered {status}"
        );
        scene.note(&format!("changed {device} {state}"))?;
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// The back end.
async fn command(
    scene: Arc<Scene>,
    connection_string: ConnectionString,
    accepted: watch::Sender<u32>,
) -> Result<()> {
    let mut service = Service::connect(&ServiceOptions {
        connection_string,
        address: Some(scene.amqp),
        trust: scene.trust.clone(),
        now: now(),
    })
    .await?;
    let targets = [
        OVER_HTTP[0],
        OVER_MQTT,
        PURGED,
        OVER_HTTP[1],
        OVER_MQTT,
        AWAY,
        OVER_HTTP[0],
        PURGED,
    ];
    let mut in_flight = HashMap::new();
    let mut targets = targets.iter().cycle();
    let mut pace = tokio::time::interval(PACE);
    for number in 0_u32.. {
        if service.in_flight() == COMMANDS_IN_FLIGHT {
            pace.tick().await;
            let mut event = Some(service.next().await?);
            while let Some(ServiceEvent::Answered { ticket, outcome }) = event {
                outcome?;
                let (id, device) = in_flight.remove(&ticket).context("an unknown ticket")?;
                scene.note(&format!("accepted {id} {device}"))?;
                accepted.send_modify(|accepted| *accepted += 1);
                event = service.next_ready();
            }
        }
        let device = targets.next().context("a cycle")?;
        let id = format!("m{}-{number}", scene.life);
        scene.note(&format!("send? {id} {device}"))?;
        service.ready().await?;
        let ticket = service.send(&message(&id, device)?)?;
        service.flush().await?;
        in_flight.insert(ticket, (id, *device));
    }
    Ok(())
}

/// A device that acknowledges two of three messages.
async fn take_over_mqtt(scene: Arc<Scene>) -> Result<()> {
    let mut device = Device::connect(&scene.device(OVER_MQTT)).await?;
    device.subscribe_commands().await?;
    scene.note(&format!("subscribed {OVER_MQTT}"))?;
    let mut taken = 0_u32;
    loop {
        let DeviceEvent::Command(command) = device.next().await? else {
            continue;
        };
        let id = id_of(&command.topic)?;
        taken += 1;
        if let Some(packet_id) = command.packet_id
            && !taken.is_multiple_of(3)
        {
            let how = word_of(FeedbackStatus::Success);
            scene.note(&format!("end? {id} {OVER_MQTT} {how}"))?;
            device.acknowledge_command(packet_id)?;
        }
    }
}

/// The message id in a topic.
pub(crate) fn id_of(topic: &str) -> Result<String> {
    let id = topic
        .split(['&', '/'])
        .find_map(|pair| pair.strip_prefix("%24.mid="));
    Ok(id
        .with_context(|| format!("no message id in {topic}"))?
        .to_owned())
}

/// A device that completes two of three messages and rejects the third.
async fn take_over_http(scene: Arc<Scene>, device: &'static str) -> Result<()> {
    let resource = format!("{}/devices/{device}", scene.host);
    let expiry = now().saturating_add(Duration::from_secs(3600));
    let token = sign(&resource, KEY, KeyRule::Decoded, None, expiry);
    let headers = [("Authorization", token.as_str())];
    let queue = format!("/devices/{device}/messages/devicebound");
    let version = "api-version=2021-04-12";
    for taken in 0_u32.. {
        let path = format!("{queue}?{version}");
        let got = http::request(scene.http, "GET", &path, &headers, b"").await?;
        if got.status == 204 {
            tokio::time::sleep(PACE).await;
            continue;
        }
        ensure!(got.status == 200, "a poll was answered {}", got.status);
        let lock = got.header("etag").context("no lock")?.trim_matches('"');
        let id = got.header("iothub-messageid").context("no id")?;
        let (how, query) = if taken.is_multiple_of(3) {
            (FeedbackStatus::Rejected, format!("reject&{version}"))
        } else {
            (FeedbackStatus::Success, version.to_owned())
        };
        let how = word_of(how);
        scene.note(&format!("end? {id} {device} {how}"))?;
        let path = format!("{queue}/{lock}?{query}");
        let done = http::request(scene.http, "DELETE", &path, &headers, b"").await?;
        ensure!(done.status == 204, "an end was answered {}", done.status);
        scene.note(&format!("ended {id} {device} {how}"))?;
    }
    Ok(())
}

/// An operator who empties a queue again and again.
async fn purge(scene: Arc<Scene>) -> Result<()> {
    loop {
        tokio::time::sleep(20 * PACE).await;
        scene.note(&format!("purge? {PURGED}"))?;
        let path = format!("/api/c2d/devices/{PURGED}/purge");
        let status = scene.admin.request("POST", &path, &[], None).await?.status;
        ensure!(status == 200, "a purge was answered {status}");
        scene.note(&format!("purged {PURGED}"))?;
    }
}
