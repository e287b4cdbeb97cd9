//! Messages to devices that live through the kills.
//!
//! One back end numbers its messages and asks for feedback about each. Devices take them over MQTT
//! and, one of them, over HTTPS. A book outside the hub's process remembers what was accepted, what
//! came where, and what feedback said.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::device::DeviceEvent;
use fieldpost_client::service::{
    FeedbackStatus, Service, ServiceEvent, ServiceOptions, address_of,
};
use fieldpost_client::{Device, DeviceOptions};
use fieldpost_model::{Ack, CloudMessage, DeviceId};
use fieldpost_testkit::hub::{HubProcess, now};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::PATIENCE;

/// Devices that take messages over MQTT.
const MQTT_DEVICES: u64 = 16;

/// The device that polls over HTTPS.
const POLLER: &str = "poller";

/// Messages that the back end has in flight.
const WINDOW: usize = 64;

/// The back end fills its window this often: kills are what is wanted, not volume.
const PACE: Duration = Duration::from_millis(20);

/// How long whoever lost the hub waits before the next try.
const RETRY: Duration = Duration::from_millis(50);

/// The back end, the devices, and the book about them.
pub(crate) struct Commands {
    book: Arc<Mutex<Book>>,
    tasks: Vec<JoinHandle<()>>,
    poller: Child,
}

#[derive(Default)]
struct Book {
    next: u64,
    /// No more messages are sent.
    is_ending: bool,
    accepted: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    /// Deliveries of a message that had come before.
    again: u64,
    /// Per device, the last message that came to it for the first time.
    last: HashMap<String, u64>,
    /// Completions that the hub has confirmed.
    confirmed: BTreeSet<u64>,
    /// Feedback records by message.
    told: BTreeMap<u64, u64>,
    wrong: Option<String>,
}

impl Commands {
    /// Registers the devices and starts everybody.
    pub(crate) async fn start(hub: &HubProcess, python: &Path) -> Result<Self> {
        let book = Arc::<Mutex<Book>>::default();
        let mut tasks = Vec::new();
        let mut devices = Vec::new();
        for number in 0..MQTT_DEVICES {
            let id = format!("mqtt-{number}");
            hub.run(&["device", "create", &id]).await?;
            let (_, connection_string) = hub.connection_string(Some(&id)).await?;
            let options = DeviceOptions {
                connection_string,
                address: Some(hub.at(8883)),
                trust: hub.trust()?,
                keep_alive_s: 30,
                now: now(),
            };
            tasks.push(tokio::spawn(take_forever(
                id.clone(),
                options,
                Arc::clone(&book),
            )));
            devices.push(id);
        }
        hub.run(&["device", "create", POLLER]).await?;
        let (text, _) = hub.connection_string(Some(POLLER)).await?;
        let poller = spawn_poller(python, &text, &hub.ca_file(), Arc::clone(&book))?;
        devices.push(POLLER.to_owned());

        let policy = hub.run(&["connection-string", "--policy", "service"]);
        let options = ServiceOptions {
            connection_string: policy.await?.parse()?,
            address: Some(hub.at(5671)),
            trust: hub.trust()?,
            now: now(),
        };
        tasks.push(tokio::spawn(command_forever(
            devices,
            options,
            Arc::clone(&book),
        )));
        Ok(Self {
            book,
            tasks,
            poller,
        })
    }

    /// What was accepted and what has come so far.
    ///
    /// # Errors
    /// When something came that must not, or that nobody was owed.
    pub(crate) fn so_far(&self) -> Result<(usize, usize)> {
        let book = lock(&self.book);
        if let Some(wrong) = &book.wrong {
            bail!("{wrong}");
        }
        Ok((book.accepted.len(), book.delivered.len()))
    }

    /// Sends no more, waits until everything accepted has come and feedback has told so, and says
    /// what it came to.
    ///
    /// # Errors
    /// When something is lost.
    pub(crate) async fn end(mut self) -> Result<String> {
        lock(&self.book).is_ending = true;
        let deadline = Instant::now() + PATIENCE;
        let mut tick = tokio::time::interval(PACE);
        loop {
            tick.tick().await;
            self.so_far()?;
            let (undelivered, untold) = {
                let book = lock(&self.book);
                let undelivered = book.accepted.difference(&book.delivered).count();
                let told = |number: &&u64| book.told.contains_key(number);
                (
                    undelivered,
                    book.accepted.iter().filter(|n| !told(n)).count(),
                )
            };
            if undelivered == 0 && untold == 0 {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "of the accepted messages {undelivered} never came, and of {untold} nothing was told"
            );
        }
        for task in &self.tasks {
            task.abort();
        }
        drop(self.poller.stdin.take());
        let status = tokio::time::timeout(PATIENCE, self.poller.wait())
            .await
            .context("the poller does not end")??;
        ensure!(status.success(), "the poller ended with {status}");
        let book = lock(&self.book);
        // Not before the end: what the poller prints takes its time.
        let mut told = book.told.keys();
        if let Some(number) = told.find(|number| !book.delivered.contains(number)) {
            bail!("feedback says that message {number} is done with, which never came");
        }
        Ok(format!(
            "messages to devices: accepted {}, delivered {} ({} more than once), confirmed over HTTPS {}, \
             feedback {}, lost 0",
            book.accepted.len(),
            book.delivered.len(),
            book.again,
            book.confirmed.len(),
            book.told.len()
        ))
    }
}

impl Book {
    fn deliver(&mut self, device: &str, number: u64) {
        if self.confirmed.contains(&number) {
            self.fail(format!(
                "{device} got message {number}, whose completion was confirmed before"
            ));
        }
        if !self.delivered.insert(number) {
            self.again += 1;
            return;
        }
        let last = self.last.insert(device.to_owned(), number);
        if let Some(last) = last.filter(|last| *last > number) {
            self.fail(format!("{device} got message {number} after {last}"));
        }
    }

    fn tell(&mut self, number: u64, status: FeedbackStatus) {
        if status != FeedbackStatus::Success {
            self.fail(format!("feedback about message {number} says {status:?}"));
        }
        *self.told.entry(number).or_default() += 1;
    }

    /// The first thing that goes wrong counts.
    fn fail(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }
}

/// Takes messages for ever, connecting as often as it takes.
async fn take_forever(id: String, mut options: DeviceOptions, book: Arc<Mutex<Book>>) {
    loop {
        options.now = now();
        if let Ok(mut device) = Device::connect(&options).await
            && device.subscribe_commands().await.is_ok()
        {
            while let Ok(event) = device.next().await {
                let DeviceEvent::Command(command) = event else {
                    continue;
                };
                match std::str::from_utf8(&command.payload).map(str::parse) {
                    Ok(Ok(number)) => lock(&book).deliver(&id, number),
                    _ => lock(&book).fail(format!("{id} got something that nobody sent")),
                }
                // Written with the next exchange; a PUBACK that does not arrive brings it again.
                let acknowledged = command.packet_id.map(|id| device.acknowledge_command(id));
                if matches!(acknowledged, Some(Err(_))) {
                    break;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Sends numbered messages and completes feedback for ever, connecting as often as it takes.
async fn command_forever(
    devices: Vec<String>,
    mut options: ServiceOptions,
    book: Arc<Mutex<Book>>,
) {
    loop {
        options.now = now();
        if let Ok(service) = Service::connect(&options).await {
            // The connection ends with the hub.
            let _ended = command_until_broken(service, &devices, &book).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn command_until_broken(
    mut service: Service,
    devices: &[String],
    book: &Arc<Mutex<Book>>,
) -> Result<()> {
    service.receive_feedback().await?;
    let mut in_flight = HashMap::new();
    let mut pace = tokio::time::interval(PACE);
    loop {
        tokio::select! {
            _ = pace.tick() => {
                while service.can_send() && in_flight.len() < WINDOW && !lock(book).is_ending {
                    let number = {
                        let mut book = lock(book);
                        book.next += 1;
                        book.next
                    };
                    let place = usize::try_from(number)? % devices.len();
                    let device = DeviceId::new(devices.get(place).context("a device")?)?;
                    let text = number.to_string();
                    let ticket = service.send(&CloudMessage {
                        to: address_of(&device, None).into(),
                        message_id: Some(text.as_str().into()),
                        ack: Ack::Full,
                        body: text.as_bytes().into(),
                        ..CloudMessage::default()
                    })?;
                    in_flight.insert(ticket, number);
                }
                service.flush().await?;
            }
            event = service.next() => {
                let mut event = Some(event?);
                while let Some(heard) = event {
                    match heard {
                        ServiceEvent::Answered { ticket, outcome } => {
                            let number = in_flight.remove(&ticket);
                            // A full queue is an answer; nothing is owed then.
                            if let (Some(number), Ok(())) = (number, outcome) {
                                lock(book).accepted.insert(number);
                            }
                        }
                        ServiceEvent::Feedback(batch) => {
                            for record in &batch.records {
                                let id = record.original_message_id.as_deref();
                                let number = id.context("a record without an id")?.parse()?;
                                lock(book).tell(number, record.status_code);
                            }
                            service.complete(&batch)?;
                        }
                    }
                    event = service.next_ready();
                }
            }
        }
    }
}

/// Starts the device that polls, and lets the book follow what it prints.
fn spawn_poller(
    python: &Path,
    connection_string: &str,
    ca_file: &Path,
    book: Arc<Mutex<Book>>,
) -> Result<Child> {
    let mut child = Command::new(python)
        .arg("conformance/kill/poller.py")
        .arg(connection_string)
        .arg(ca_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", python.display()))?;
    let output = child.stdout.take().context("the poller's output")?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (what, number) = line.split_once(' ').unwrap_or_default();
            let mut book = lock(&book);
            match (what, number.parse()) {
                ("got", Ok(number)) => book.deliver(POLLER, number),
                ("completed", Ok(number)) => drop(book.confirmed.insert(number)),
                _ => book.fail(format!("the poller said {line:?}")),
            }
        }
    });
    Ok(child)
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
