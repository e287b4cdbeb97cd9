//! Whether a hub that starts on an image has everything that was answered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::device::DeviceEvent;
use fieldpost_client::service::{FeedbackStatus, Service, ServiceEvent, ServiceOptions};
use fieldpost_client::{Device, ReaderOptions};
use fieldpost_testkit::admin::Admin;
use fieldpost_testkit::hub::{HubProcess, now};
use fieldpost_testkit::ledger::read_all;
use fieldpost_testkit::power::Checked;
use serde_json::{Value, json};

use crate::book::{Book, End, State};
use crate::work::{OVER_HTTP, ca_of, connection_string, device_options, id_of, message, settle};

/// Longest wait for something that is owed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The hub sends feedback at the latest so long after the batch before.
const FEEDBACK_INTERVAL_S: u32 = 16;

/// Has a hub start on an image and asks it for everything.
///
/// # Errors
/// With what is missing, or was never there before, and the hub's log.
pub(crate) fn check_image(
    binary: &Path,
    worker: usize,
    image: &Path,
    book: &Book,
    verify_first: bool,
) -> Result<Checked, String> {
    let number = u8::try_from(worker + 1).map_err(|error| error.to_string())?;
    let log_file = image.with_extension("log");
    // What another image left.
    drop(std::fs::remove_file(&log_file));
    let mut hub = HubProcess::numbered(binary, image, &log_file, number);
    let check = async {
        if verify_first {
            verify(binary, image)?;
        }
        settle(&mut hub);
        let begun = Instant::now();
        hub.start().await?;
        let slowest = begun.elapsed();
        no_error(&hub.log())?;
        let is_ahead = look(&hub, book).await?;
        hub.kill().await?;
        Ok(Checked { slowest, is_ahead })
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let checked: Result<Checked> = runtime.block_on(check);
    let log = hub.log();
    let checked = checked.and_then(|checked| no_error(&log).map(|()| checked));
    checked.map_err(|error| format!("{error:#}\n{log}"))
}

fn no_error(log: &str) -> Result<()> {
    let wrong = |line: &&str| line.contains("ERROR") || line.contains("panicked");
    match log.lines().find(wrong) {
        Some(line) => bail!("the hub's log holds an error: {line}"),
        None => Ok(()),
    }
}

/// Without a hub, nothing is damaged. There may be no store yet.
fn verify(binary: &Path, image: &Path) -> Result<()> {
    if !image.join("log").exists() {
        return Ok(());
    }
    let output = Command::new(binary)
        .arg("verify")
        .arg("--data")
        .arg(image)
        .output()?;
    ensure!(
        output.status.success(),
        "verify: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Looks for everything, and says whether there is more than was answered.
async fn look(hub: &HubProcess, book: &Book) -> Result<bool> {
    let admin = Admin::of(hub)?;
    let Some((ca, key)) = &book.identity else {
        // Nobody has heard of the hub yet.
        return Ok(false);
    };
    ensure!(*ca == ca_of(hub)?, "the CA certificate is another one");
    let service = connection_string(&admin, "policy=service").await?;
    ensure!(
        Some(key) == service.key.as_ref(),
        "a policy's key is another one"
    );
    if book.has_settings {
        let settings = admin.get("/api/hub").await?;
        let count = settings.pointer("/properties/cloudToDevice/maxDeliveryCount");
        ensure!(
            count == Some(&json!(17)),
            "the settings are lost: {settings}"
        );
    }
    let mut is_ahead = look_at_devices(&admin, book).await?;
    is_ahead |= look_at_telemetry(hub, &admin, book).await?;
    for (device, messages) in &book.queues {
        let waiting = waiting(&admin, device).await?;
        is_ahead |= look_at_queue(device, messages, &waiting)?;
    }
    look_at_dead_letters(&admin, book).await?;
    let mut service = Service::connect(&ServiceOptions {
        connection_string: service,
        address: Some(hub.at(5671)),
        trust: hub.trust()?,
        now: now(),
    })
    .await?;
    look_at_feedback(&admin, &mut service, book).await?;
    // From here on the image changes.
    for device in &book.subscribed {
        let waiting = waiting(&admin, device).await?;
        take(hub, device, &waiting).await?;
    }
    go_on(hub, &admin, &mut service, book).await?;
    Ok(is_ahead)
}

async fn look_at_devices(admin: &Admin, book: &Book) -> Result<bool> {
    for device in &book.devices {
        let found = state(admin, device).await?;
        ensure!(
            found == State::Here("made".to_owned()),
            "{device} is {found:?}"
        );
    }
    let mut is_ahead = false;
    for (device, expected) in &book.changing {
        let found = state(admin, device).await?;
        if found != expected.is {
            ensure!(
                Some(&found) == expected.maybe.as_ref(),
                "{device} is {found:?} and not {:?}, perhaps {:?}",
                expected.is,
                expected.maybe
            );
            is_ahead = true;
        }
    }
    Ok(is_ahead)
}

async fn state(admin: &Admin, device: &str) -> Result<State> {
    let path = format!("/api/devices/{device}");
    let response = admin.request("GET", &path, &[], None).await?;
    if response.status == 404 {
        return Ok(State::Absent);
    }
    ensure!(response.status == 200, "{device}: {}", response.status);
    let shown: Value = serde_json::from_slice(&response.body)?;
    let reason = shown.get("statusReason").and_then(Value::as_str);
    Ok(State::Here(reason.unwrap_or_default().to_owned()))
}

async fn look_at_telemetry(hub: &HubProcess, admin: &Admin, book: &Book) -> Result<bool> {
    let options = ReaderOptions {
        connection_string: connection_string(admin, "eventHub=true").await?,
        address: Some(hub.at(5671)),
        trust: hub.trust()?,
        consumer_group: "$Default".to_owned(),
        now: now(),
    };
    let ledger = Mutex::new(book.telemetry.clone());
    read_all(&options, &ledger, true).await?;
    let ledger = ledger.into_inner()?;
    for (device, count) in ledger.appeared() {
        let sent = book.sent.get(device).copied().unwrap_or_default();
        ensure!(
            count <= sent,
            "{device} sent {sent} messages, and there are {count}"
        );
    }
    Ok(ledger.shown_in_all() > ledger.acknowledged())
}

/// The ids of the messages that wait for a device, in order.
async fn waiting(admin: &Admin, device: &str) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/api/c2d/devices/{device}/messages?after={after}");
        let page = admin.get(&path).await?;
        let messages = page.get("messages").and_then(Value::as_array);
        for message in messages.context("no list of messages")? {
            let id = message.get("messageId").and_then(Value::as_str);
            ids.push(id.context("a message without its id")?.to_owned());
        }
        match page.get("continuation").and_then(Value::as_u64) {
            Some(next) => after = next,
            None => return Ok(ids),
        }
    }
}

fn look_at_queue(
    device: &str,
    messages: &[crate::book::Message],
    waiting: &[String],
) -> Result<bool> {
    let places: BTreeMap<&str, usize> = messages
        .iter()
        .enumerate()
        .map(|(at, m)| (m.id.as_str(), at))
        .collect();
    let mut last = None;
    let mut is_ahead = false;
    for id in waiting {
        let at = places.get(id.as_str()).copied();
        let at = at.with_context(|| format!("nobody sent {id}, which waits for {device}"))?;
        ensure!(last < Some(at), "{id} waits for {device} out of order");
        last = Some(at);
        let message = messages.get(at).context("a place")?;
        if let End::Sure(how) = message.end {
            bail!("{id} waits for {device} and was {how:?} before");
        }
        is_ahead |= !message.accepted;
    }
    let waiting: BTreeSet<&str> = waiting.iter().map(String::as_str).collect();
    for message in messages {
        if message.accepted && message.end == End::None {
            let id = &message.id;
            ensure!(
                waiting.contains(id.as_str()),
                "{id} does not wait for {device}"
            );
        }
    }
    Ok(is_ahead)
}

/// A device that subscribed gets what waits for it without asking again.
async fn take(hub: &HubProcess, device: &str, waiting: &[String]) -> Result<()> {
    let host = hub.at(0).ip().to_string();
    let options = device_options(&host, hub.at(8883), &hub.trust()?, device);
    let mut connected = Device::connect(&options).await?;
    let taking = async {
        for id in waiting {
            let command = loop {
                if let DeviceEvent::Command(command) = connected.next().await? {
                    break command;
                }
            };
            let came = id_of(&command.topic)?;
            ensure!(came == *id, "{came} came to {device} instead of {id}");
            let packet_id = command.packet_id.context("a message at QoS 0")?;
            connected.acknowledge_command(packet_id)?;
        }
        connected.disconnect().await?;
        Ok(())
    };
    let taken = tokio::time::timeout(PATIENCE, taking).await;
    taken.with_context(|| format!("{device} does not get its messages"))?
}

async fn look_at_dead_letters(admin: &Admin, book: &Book) -> Result<()> {
    let mut dead = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = admin
            .get(&format!("/api/c2d/dead-letters?after={after}"))
            .await?;
        let letters = page.get("deadLetters").and_then(Value::as_array);
        for letter in letters.context("no list of dead letters")? {
            let text = |name: &str| letter.get(name).and_then(Value::as_str).map(str::to_owned);
            dead.insert(text("messageId"), text("cause"));
        }
        match page.get("continuation").and_then(Value::as_u64) {
            Some(next) => after = next,
            None => break,
        }
    }
    for message in book.queues.values().flatten() {
        let cause = dead.get(&Some(message.id.clone()));
        let may_be = matches!(
            message.end,
            End::Maybe(FeedbackStatus::Rejected) | End::Sure(FeedbackStatus::Rejected)
        );
        match cause {
            Some(cause) => ensure!(
                may_be && cause.as_deref() == Some("Rejected"),
                "{} is dead by {cause:?}",
                message.id
            ),
            None => ensure!(
                message.end != End::Sure(FeedbackStatus::Rejected),
                "{} was rejected and is no dead letter",
                message.id
            ),
        }
    }
    Ok(())
}

/// Whatever has ended was told, or is told now.
async fn look_at_feedback(admin: &Admin, service: &mut Service, book: &Book) -> Result<()> {
    let messages = || book.queues.values().flatten();
    let ends: BTreeMap<&str, End> = messages().map(|m| (m.id.as_str(), m.end)).collect();
    let mut owed: BTreeSet<&str> = messages()
        .filter(|message| matches!(message.end, End::Sure(_)))
        .map(|message| message.id.as_str())
        .collect();
    if owed.is_empty() {
        return Ok(());
    }
    let span = json!({"advanceSeconds": FEEDBACK_INTERVAL_S});
    let moved = admin
        .request("POST", "/api/test/clock", &[], Some(span))
        .await?;
    ensure!(
        moved.status == 200,
        "the clock was answered {}",
        moved.status
    );
    service.receive_feedback().await?;
    let hearing = async {
        while !owed.is_empty() {
            let ServiceEvent::Feedback(batch) = service.next().await? else {
                bail!("an answer to nothing");
            };
            for record in &batch.records {
                let id = record.original_message_id.as_deref().unwrap_or_default();
                let told = record.status_code;
                match ends.get(id) {
                    Some(End::Sure(how) | End::Maybe(how)) if *how == told => owed.remove(id),
                    end => bail!("feedback says {told:?} of {id}, which was {end:?}"),
                };
            }
            service.complete(&batch)?;
        }
        Ok(())
    };
    let heard = tokio::time::timeout(PATIENCE, hearing).await;
    heard.map_err(|_| anyhow::anyhow!("of these nothing was told: {owed:?}"))?
}

/// The hub works as before.
async fn go_on(hub: &HubProcess, admin: &Admin, service: &mut Service, book: &Book) -> Result<()> {
    if !book.has_settings {
        return Ok(());
    }
    let host = hub.at(0).ip().to_string();
    for device in OVER_HTTP {
        let options = device_options(&host, hub.at(8883), &hub.trust()?, device);
        let mut connected = Device::connect(&options).await?;
        connected.publish("", b"and on 0")?;
        let sent = tokio::time::timeout(PATIENCE, connected.acknowledged(|_| {})).await;
        sent.context("telemetry is not acknowledged")??;
        service.ready().await?;
        service.send(&message("and-on", device)?)?;
        let accepted = async {
            loop {
                if let ServiceEvent::Answered { outcome, .. } = service.next().await? {
                    return anyhow::Ok(outcome?);
                }
            }
        };
        let accepted = tokio::time::timeout(PATIENCE, accepted).await;
        accepted.context("a message is not answered")??;
        let waiting = waiting(admin, device).await?;
        ensure!(
            waiting.last().is_some_and(|id| id == "and-on"),
            "a new message is lost"
        );
    }
    Ok(())
}
