//! The back end that sends messages to the devices and hears what became of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fieldpost_client::service::{
    FeedbackStatus, Service, ServiceEvent, ServiceOptions, address_of,
};
use fieldpost_model::{Ack, CloudMessage};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::board::{Board, message_id};
use super::devices::device_id;
use super::figures::body;

/// Messages that the hub has not answered at most.
const WINDOW: usize = 256;

/// Without news for so long, after the last message, what is missing is given up. The hub sends
/// feedback 15 seconds after the last one when fewer than 64 records wait.
const PATIENCE: Duration = Duration::from_secs(25);

/// A connection that sends.
pub(super) struct Commander {
    service: Service,
    board: Arc<Board>,
    devices: usize,
    started: Instant,
    /// The device whose turn is next.
    next: usize,
    /// Device, number and time of each message that the hub has not answered, by ticket.
    in_flight: HashMap<u64, (usize, usize, Instant)>,
}

impl Commander {
    /// Connects as a service and begins to receive feedback.
    pub(super) async fn connect(
        options: &ServiceOptions,
        devices: u32,
        board: Arc<Board>,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let mut service = Service::connect(options)
            .await
            .context("connect as a service")?;
        service.receive_feedback().await?;
        Ok(Self {
            service,
            board,
            devices: usize::try_from(devices)?,
            started,
            next: 0,
            in_flight: HashMap::new(),
        })
    }

    /// Sends to all devices in turn until told to stop, `rate` messages per second and device (0 for
    /// as many as the devices take); then waits for the rest of the answers and of the feedback.
    pub(super) async fn run(
        mut self,
        rate: u32,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let pause = match rate {
            0 => Duration::from_millis(1),
            rate => Duration::from_secs(1) / rate / u32::try_from(self.devices)?.max(1),
        };
        let mut turns = tokio::time::interval(pause.max(Duration::from_micros(1)));
        turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            let has_room = self.in_flight.len() < WINDOW && self.service.can_send();
            tokio::select! {
                changed = stop.wait_for(|stop| *stop) => {
                    changed?;
                    break;
                }
                _ = turns.tick(), if has_room => {
                    // At full speed a turn of the timer is one message to each device.
                    let turns = if rate == 0 { self.devices } else { 1 };
                    for _ in 0..turns {
                        self.send()?;
                    }
                }
                event = self.service.next() => self.note(event?)?,
            }
        }
        let mut deadline = Instant::now() + PATIENCE;
        while !(self.in_flight.is_empty() && self.board.is_settled()) {
            tokio::select! {
                event = self.service.next() => self.note(event?)?,
                () = self.board.changed() => {}
                // The figures tell of what is missing.
                () = tokio::time::sleep_until(deadline) => break,
            }
            deadline = Instant::now() + PATIENCE;
        }
        // What was completed last shall be known to the hub.
        self.service.flush().await?;
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        if self.in_flight.len() >= WINDOW || !self.service.can_send() {
            return Ok(());
        }
        let device = self.next;
        self.next = (self.next + 1) % self.devices;
        let Some(number) = self.board.send(device) else {
            return Ok(());
        };
        let now = Instant::now();
        let body = body(device, number, now.duration_since(self.started));
        let message = CloudMessage {
            to: address_of(&device_id(device)?, None).into(),
            message_id: Some(message_id(device, number).into()),
            ack: Ack::Full,
            body: body.as_bytes().into(),
            ..CloudMessage::default()
        };
        let ticket = self.service.send(&message)?;
        self.in_flight.insert(ticket, (device, number, now));
        Ok(())
    }

    fn note(&mut self, event: ServiceEvent) -> anyhow::Result<()> {
        match event {
            ServiceEvent::Answered { ticket, outcome } => {
                let sent = self.in_flight.remove(&ticket);
                let (device, number, at) = sent.context("an answer came for no message")?;
                if let Err(refused) = &outcome {
                    tracing::warn!(%refused, device, "a message to a device was refused");
                }
                let latency = at.elapsed();
                self.board
                    .answered(device, number, outcome.is_ok(), latency);
            }
            ServiceEvent::Feedback(batch) => {
                for record in &batch.records {
                    if record.status_code == FeedbackStatus::Success
                        && let Some(id) = &record.original_message_id
                    {
                        self.board.feedback(id);
                    }
                }
                self.service.complete(&batch)?;
            }
        }
        Ok(())
    }
}
