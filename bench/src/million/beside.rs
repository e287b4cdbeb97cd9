//! The other work of a hub, at fixed rates, whatever it takes: an open loop.
//!
//! Every piece of work has a moment at which it is due, and its latency counts from that moment, so
//! that a hub that stalls is not asked less for it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::service::address_of;
use fieldpost_client::{Device, DeviceEvent, PacketId, Service, ServiceEvent};
use fieldpost_model::{CloudMessage, DeviceId, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, interval_at};

use super::hub::{Hub, Registry};
use crate::payload::Payload;
use fieldpost_testkit::http;

/// Devices that publish, and how often each does.
const PUBLISHERS: u32 = 50;
const PUBLISH_EVERY: Duration = Duration::from_millis(50);
const PUBLISHED_AT_ONCE: usize = 256;

/// Devices that wait for messages over MQTT, devices that fetch theirs over HTTP, and how often
/// the back end sends to one of all these.
const SUBSCRIBERS: u64 = 50;
const POLLERS: u64 = 5;
const COMMAND_EVERY: Duration = Duration::from_millis(5);

/// Devices in the registry that change, and how often one of them does.
const CHANGING: u64 = 20;
const CHANGE_EVERY: Duration = Duration::from_millis(50);

/// Bytes of a message, either way.
const BYTES: usize = 256;

/// The longest wait for what is due to be done when the work ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// A device publishes at QoS 1, to PUBACK.
    Telemetry,
    /// A back end sends to a device, until the message is durable.
    Accepted,
    /// The same, until a connected device has it over MQTT.
    Delivered,
    /// The same, until a device that fetches over HTTP has been told that it is completed, durably.
    Completed,
    /// A device's registration is changed.
    Registry,
}

impl Work {
    pub(super) const ALL: [Self; 5] = [
        Self::Telemetry,
        Self::Accepted,
        Self::Delivered,
        Self::Completed,
        Self::Registry,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry, to PUBACK",
            Self::Accepted => "message to a device, to accepted",
            Self::Delivered => "the same, to the device",
            Self::Completed => "the same, to completed over HTTP",
            Self::Registry => "registry update",
        }
    }
}

/// One piece of work that was done.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) work: Work,
    pub(super) due: Instant,
    pub(super) took: Duration,
}

/// Clients that are connected and do nothing yet.
pub(super) struct Beside {
    publishers: Vec<Device>,
    subscribers: Vec<Device>,
    pollers: Vec<(String, String)>,
    service: Service,
    registry: Registry,
    http: SocketAddr,
}

/// Clients that work.
pub(super) struct Working {
    tasks: JoinSet<Result<()>>,
    stop: watch::Sender<bool>,
    books: Arc<Books>,
}

/// What was done.
#[derive(Default)]
struct Books {
    samples: Mutex<Vec<Sample>>,
    /// Messages for the subscribers that were sent, and those that came.
    commanded: AtomicU64,
    delivered: AtomicU64,
    /// The back end sends nothing more.
    is_all_sent: AtomicBool,
}

impl Books {
    fn note(&self, work: Work, due: Instant) {
        let took = due.elapsed();
        // A vector that was pushed to is whole.
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push(Sample { work, due, took });
    }
}

impl Beside {
    /// The devices that have to be registered for it.
    pub(super) fn names() -> impl Iterator<Item = String> {
        let all = [
            ("publisher", u64::from(PUBLISHERS)),
            ("subscriber", SUBSCRIBERS),
            ("poller", POLLERS),
            ("changing", CHANGING),
        ];
        all.into_iter()
            .flat_map(|(kind, count)| (0..count).map(move |number| format!("{kind}-{number}")))
    }

    /// Connects all of it, with tokens that are good for an hour from `now`.
    pub(super) async fn connect(hub: &Hub, now: Timestamp) -> Result<Self> {
        let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
        for number in 0..PUBLISHERS {
            let options = hub.device(&format!("publisher-{number}"), now)?;
            publishers.push(Device::connect(&options).await?);
        }
        for number in 0..SUBSCRIBERS {
            let options = hub.device(&format!("subscriber-{number}"), now)?;
            let mut device = Device::connect(&options).await?;
            device.subscribe_commands().await?;
            subscribers.push(device);
        }
        let poller = |number| {
            let name = format!("poller-{number}");
            let token = hub.token(&name, now);
            (name, token)
        };
        Ok(Self {
            publishers,
            subscribers,
            pollers: (0..POLLERS).map(poller).collect(),
            service: hub.service(now).await?,
            registry: hub.registry()?,
            http: hub.http(),
        })
    }

    /// Begins to work.
    pub(super) fn start(self) -> Working {
        let books = Arc::new(Books::default());
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        let begin = Instant::now();
        for (place, device) in (0..PUBLISHERS).zip(self.publishers) {
            // Devices do not publish in step.
            let first = begin + PUBLISH_EVERY * place / PUBLISHERS;
            let beat = interval_at(first, PUBLISH_EVERY);
            tasks.spawn(publish(device, beat, stop.subscribe(), Arc::clone(&books)));
        }
        for device in self.subscribers {
            tasks.spawn(subscribe(
                device,
                begin,
                stop.subscribe(),
                Arc::clone(&books),
            ));
        }
        let mut pollers = Vec::new();
        for (name, token) in self.pollers {
            let (notify, notified) = mpsc::unbounded_channel();
            pollers.push(notify);
            let path = format!("/devices/{name}/messages/devicebound");
            let poller = Poller {
                address: self.http,
                path,
                token,
                books: Arc::clone(&books),
            };
            tasks.spawn(poller.run(begin, notified));
        }
        let commander = Commander {
            service: self.service,
            begin,
            pollers,
            books: Arc::clone(&books),
            waiting: VecDeque::new(),
            in_flight: HashMap::new(),
            sent: 0,
        };
        let beat = interval_at(begin, COMMAND_EVERY);
        tasks.spawn(commander.run(beat, stop.subscribe()));
        let beat = interval_at(begin, CHANGE_EVERY);
        tasks.spawn(change(
            self.registry,
            beat,
            stop.subscribe(),
            Arc::clone(&books),
        ));
        Working { tasks, stop, books }
    }
}

impl Working {
    /// Goes on working until `wanted` is there. Fails with the first client that does.
    pub(super) async fn until<T>(&mut self, wanted: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = wanted => outcome,
            Some(ended) = self.tasks.join_next() => {
                ended.context("a task of the other work")??;
                bail!("a client of the other work ended by itself")
            }
        }
    }

    /// Stops, when all that was due is done, and gives what was done.
    ///
    /// # Errors
    /// When something is never answered.
    pub(super) async fn finish(mut self) -> Result<Vec<Sample>> {
        self.stop.send_replace(true);
        let done = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a task of the other work")??;
            }
            anyhow::Ok(())
        };
        let done = tokio::time::timeout(PATIENCE, done).await;
        done.context("work was accepted and is not done")??;
        let mut samples = self
            .books
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut samples))
    }
}

async fn publish(
    mut device: Device,
    mut beat: Interval,
    mut stop: watch::Receiver<bool>,
    books: Arc<Books>,
) -> Result<()> {
    let payload = Payload::of(BYTES).numbered(0).to_vec();
    let mut waiting = VecDeque::new();
    let mut in_flight: VecDeque<(PacketId, Instant)> = VecDeque::new();
    let mut acknowledged = Vec::new();
    loop {
        while in_flight.len() < PUBLISHED_AT_ONCE
            && let Some(due) = waiting.pop_front()
        {
            in_flight.push_back((device.publish("", &payload)?, due));
        }
        let is_stopping = *stop.borrow_and_update();
        if is_stopping && in_flight.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = stop.changed(), if !is_stopping => {}
            due = beat.tick(), if !is_stopping => waiting.push_back(due),
            heard = device.acknowledged(|packet_id| acknowledged.push(packet_id)) => {
                heard?;
            }
        }
        for packet_id in acknowledged.drain(..) {
            let (expected, due) = in_flight.pop_front().context("a PUBACK for nothing")?;
            ensure!(packet_id == expected, "a PUBACK out of order");
            books.note(Work::Telemetry, due);
        }
    }
}

async fn subscribe(
    mut device: Device,
    begin: Instant,
    mut stop: watch::Receiver<bool>,
    books: Arc<Books>,
) -> Result<()> {
    let mut last = None;
    loop {
        tokio::select! {
            event = device.next() => {
                let DeviceEvent::Command(command) = event? else {
                    continue;
                };
                device.acknowledge_command(command.packet_id.context("it came at QoS 0")?)?;
                let due = due_of(begin, &command.payload)?;
                ensure!(Some(due) > last, "a message came again or late without a cause");
                last = Some(due);
                books.note(Work::Delivered, due);
                books.delivered.fetch_add(1, Ordering::Relaxed);
            }
            () = all_came(&mut stop, &books) => return Ok(()),
        }
    }
}

/// Returns when the work is to stop and all subscribers have what was sent to them.
async fn all_came(stop: &mut watch::Receiver<bool>, books: &Books) {
    // The sender outlives the tasks.
    let _ = stop.wait_for(|stop| *stop).await;
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        look.tick().await;
        let is_all_sent = books.is_all_sent.load(Ordering::Acquire);
        let came = books.delivered.load(Ordering::Relaxed);
        if is_all_sent && came == books.commanded.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// The back end. The first eight bytes of a body say how long after the beginning it was due, in
/// nanoseconds.
struct Commander {
    service: Service,
    begin: Instant,
    pollers: Vec<mpsc::UnboundedSender<Instant>>,
    books: Arc<Books>,
    /// Due, and not sent for want of credit.
    waiting: VecDeque<Instant>,
    in_flight: HashMap<u64, (Instant, Option<usize>)>,
    sent: u64,
}

impl Commander {
    async fn run(mut self, mut beat: Interval, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut payload = Payload::of(BYTES);
        loop {
            while self.service.can_send()
                && let Some(due) = self.waiting.pop_front()
            {
                self.send(due, &mut payload)?;
            }
            let is_stopping = *stop.borrow_and_update();
            if is_stopping && self.waiting.is_empty() && self.in_flight.is_empty() {
                self.books.is_all_sent.store(true, Ordering::Release);
                return Ok(());
            }
            let mut heard = None;
            tokio::select! {
                _ = stop.changed(), if !is_stopping => {}
                due = beat.tick(), if !is_stopping => self.waiting.push_back(due),
                event = self.service.next() => heard = Some(event?),
            }
            while let Some(event) = heard {
                if let ServiceEvent::Answered { ticket, outcome } = event {
                    outcome?;
                    self.accepted(ticket)?;
                }
                heard = self.service.next_ready();
            }
        }
    }

    fn send(&mut self, due: Instant, payload: &mut Payload) -> Result<()> {
        let place = self.sent % (SUBSCRIBERS + POLLERS);
        self.sent += 1;
        let (device, poller) = match place.checked_sub(SUBSCRIBERS) {
            None => (format!("subscriber-{place}"), None),
            Some(poller) => (format!("poller-{poller}"), Some(usize::try_from(poller)?)),
        };
        let since = due.duration_since(self.begin).as_nanos();
        let ticket = self.service.send(&CloudMessage {
            to: address_of(&DeviceId::new(&device)?, None).into(),
            body: payload.numbered(u64::try_from(since)?).into(),
            ..CloudMessage::default()
        })?;
        self.in_flight.insert(ticket, (due, poller));
        if poller.is_none() {
            self.books.commanded.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn accepted(&mut self, ticket: u64) -> Result<()> {
        let known = self.in_flight.remove(&ticket);
        let (due, poller) = known.context("an answer to nothing")?;
        self.books.note(Work::Accepted, due);
        if let Some(poller) = poller.and_then(|poller| self.pollers.get(poller)) {
            poller.send(due).ok().context("a poller ended")?;
        }
        Ok(())
    }
}

/// A device that fetches a message when it is told that there is one, and completes it.
struct Poller {
    address: SocketAddr,
    path: String,
    token: String,
    books: Arc<Books>,
}

impl Poller {
    async fn run(
        self,
        begin: Instant,
        mut notified: mpsc::UnboundedReceiver<Instant>,
    ) -> Result<()> {
        let headers = [("Authorization", self.token.as_str())];
        // The commander's end is the end.
        while let Some(due) = notified.recv().await {
            let path = format!("{}?api-version=2021-04-12", self.path);
            let got = http::request(self.address, "GET", &path, &headers, b"").await?;
            ensure!(got.status == 200, "a poll was answered {}", got.status);
            ensure!(due_of(begin, &got.body)? == due, "another message came");
            let lock = got.header("etag").context("no lock")?.trim_matches('"');
            let path = format!("{}/{lock}?api-version=2021-04-12", self.path);
            let done = http::request(self.address, "DELETE", &path, &headers, b"").await?;
            ensure!(
                done.status == 204,
                "a completion was answered {}",
                done.status
            );
            self.books.note(Work::Completed, due);
        }
        Ok(())
    }
}

async fn change(
    registry: Registry,
    mut beat: Interval,
    stop: watch::Receiver<bool>,
    books: Arc<Books>,
) -> Result<()> {
    for number in (0..CHANGING).cycle() {
        if *stop.borrow() {
            break;
        }
        let due = beat.tick().await;
        registry.update(&format!("changing-{number}")).await?;
        books.note(Work::Registry, due);
    }
    Ok(())
}

fn due_of(begin: Instant, payload: &[u8]) -> Result<Instant> {
    let since = payload.first_chunk().context("a payload without a time")?;
    Ok(begin + Duration::from_nanos(u64::from_le_bytes(*since)))
}
