//! Messages to devices that live through the kills.
//!
//! One back end numbers its messages and asks for feedback about most of them. Some are completed, some
//! rejected or abandoned until the hub gives up, over MQTT, AMQP and HTTPS; some expire, some are purged. A
//! book outside the hub's process remembers what was accepted, what came where, and what feedback said.

mod book;
mod plan;
mod takers;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::service::{Service, ServiceEvent, ServiceOptions, address_of};
use fieldpost_model::{CloudMessage, DeviceId};
use fieldpost_testkit::hub::{HubProcess, now};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::book::Book;
use self::plan::{DELIVERIES_MAX, POLLER, PURGED, Plan};
use self::takers::take_forever;
use super::fleet::Registrar;
use super::{PATIENCE, RETRY};

/// Messages that the back end has in flight.
const WINDOW: usize = 64;

/// The back end fills its window this often: kills are what is wanted, not volume.
const PACE: Duration = Duration::from_millis(20);

/// The back end, the devices, and the book about them.
pub(crate) struct Commands {
    book: Arc<Mutex<Book>>,
    tasks: Vec<JoinHandle<()>>,
    clients: [Child; 2],
}

impl Commands {
    /// Registers the devices and starts everybody.
    pub(crate) async fn start(
        hub: &HubProcess,
        registrar: &Registrar<'_>,
        python: &Path,
    ) -> Result<Self> {
        let book = Arc::<Mutex<Book>>::default();
        let mut tasks = Vec::new();
        let settings = json!({
            "properties": { "cloudToDevice": { "maxDeliveryCount": DELIVERIES_MAX } }
        });
        let file = hub.data().with_file_name("settings.json");
        std::fs::write(&file, settings.to_string())?;
        let file = file.to_str().context("a folder's name in UTF-8")?;
        hub.run(&["hub", "apply", file]).await?;

        for taker in plan::takers() {
            let options = registrar.register(&taker).await?;
            // It is a process of its own.
            if taker.id != POLLER {
                let book = Arc::clone(&book);
                tasks.push(tokio::spawn(take_forever(taker, options, book)));
            }
        }
        for device in plan::absent() {
            registrar.register(&device).await?;
        }
        let (string, _) = hub.connection_string(Some(POLLER)).await?;
        let ca = hub.ca_file().display().to_string();
        let mut poller = spawn(python, &["conformance/kill/poller.py", &string, &ca])?;
        follow_poller(&mut poller, Arc::clone(&book))?;

        let policy = hub.run(&["connection-string", "--policy", "service"]);
        let policy = policy.await?;
        let purger = ["conformance/kill/purger.py", &policy, &ca, PURGED];
        let purger = spawn(python, &purger)?;
        let options = ServiceOptions {
            connection_string: policy.parse()?,
            address: Some(hub.at(5671)),
            trust: hub.trust()?,
            now: now(),
        };
        tasks.push(tokio::spawn(command_forever(options, Arc::clone(&book))));
        Ok(Self {
            book,
            tasks,
            clients: [poller, purger],
        })
    }

    /// What was accepted and what has come so far.
    ///
    /// # Errors
    /// When something came that must not, or that nobody was owed.
    pub(crate) fn so_far(&self) -> Result<(usize, usize)> {
        let book = lock(&self.book);
        if let Some(wrong) = book.wrong() {
            bail!("{wrong}");
        }
        Ok(book.so_far())
    }

    /// Sends no more, waits until everything accepted has come and everything owed was told, and gives
    /// the counts.
    ///
    /// # Errors
    /// When something is lost.
    pub(crate) async fn end(self) -> Result<Value> {
        lock(&self.book).is_ending = true;
        let deadline = Instant::now() + PATIENCE;
        let mut tick = tokio::time::interval(PACE);
        loop {
            tick.tick().await;
            self.so_far()?;
            let book = lock(&self.book);
            let (undelivered, untold) = book.owed();
            if undelivered.is_empty() && untold.is_empty() {
                break;
            }
            let first = |numbers: &BTreeSet<u64>| numbers.first().map(|n| (*n, Plan::of(*n)));
            ensure!(
                Instant::now() < deadline,
                "of the accepted messages {} never came, first {:?}, and of {} nothing was told, first {:?}",
                undelivered.len(),
                first(undelivered),
                untold.len(),
                first(untold)
            );
        }
        for task in &self.tasks {
            task.abort();
        }
        for mut client in self.clients {
            drop(client.stdin.take());
            let status = tokio::time::timeout(PATIENCE, client.wait())
                .await
                .context("a client over HTTPS does not end")??;
            ensure!(status.success(), "a client over HTTPS ended with {status}");
        }
        let book = lock(&self.book);
        book.check_told()?;
        Ok(book.counts())
    }
}

/// Sends numbered messages and completes feedback for ever, connecting as often as it takes.
async fn command_forever(mut options: ServiceOptions, book: Arc<Mutex<Book>>) {
    loop {
        options.now = now();
        if let Ok(service) = Service::connect(&options).await {
            // The connection ends with the hub.
            let _ended = command_until_broken(service, &book).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn command_until_broken(mut service: Service, book: &Mutex<Book>) -> Result<()> {
    service.receive_feedback().await?;
    let mut in_flight = HashMap::new();
    let mut pace = tokio::time::interval(PACE);
    loop {
        tokio::select! {
            _ = pace.tick() => {
                while service.can_send() && in_flight.len() < WINDOW && !lock(book).is_ending {
                    let number = lock(book).send();
                    let plan = Plan::of(number);
                    let device = DeviceId::new(&plan.device)?;
                    let ticket = service.send(&CloudMessage {
                        to: address_of(&device, None).into(),
                        message_id: Some(number.to_string().into()),
                        ack: plan.ack,
                        expires: plan.ttl.map(|ttl| now().saturating_add(ttl)),
                        body: plan.body(number).into_bytes().into(),
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
                            // A full queue is an answer, and so is an expiry that is past; nothing is
                            // owed then.
                            if let (Some(number), Ok(())) = (number, outcome) {
                                lock(book).accept(number);
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

/// Starts a client over HTTPS.
fn spawn(python: &Path, arguments: &[&str]) -> Result<Child> {
    Command::new(python)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", python.display()))
}

/// Lets the book follow what the device that polls prints.
fn follow_poller(poller: &mut Child, book: Arc<Mutex<Book>>) -> Result<()> {
    let output = poller.stdout.take().context("the poller's output")?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (what, rest) = line.split_once(' ').unwrap_or_default();
            let mut book = lock(&book);
            match (what, rest.parse()) {
                ("got", _) => drop(book.deliver(POLLER, rest.as_bytes())),
                ("completed", Ok(number)) => book.confirm(number, "completed"),
                ("rejected", Ok(number)) => book.confirm(number, "rejected"),
                _ => book.fail(format!("the poller said {line:?}")),
            }
        }
    });
    Ok(())
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
