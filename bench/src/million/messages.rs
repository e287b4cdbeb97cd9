//! The messages of a run, one for each device, and what is owed for them.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::service::{FeedbackRecord, FeedbackStatus, address_of};
use fieldpost_client::{DeviceEvent, DeviceOptions, Service, ServiceEvent};
use fieldpost_model::{Ack, CloudMessage, DeviceId, Timestamp};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::hub::Hub;
use crate::payload::{Noise, Payload};

/// One in so many messages asks to be told what became of it.
const FEEDBACK_EVERY: u64 = 100;

/// Devices that come for their message at a time.
const COMING_AT_ONCE: usize = 32;

/// A message that has not come by then is lost, and so is feedback when none comes for so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// All messages: number `n` is for device number `n`.
pub(super) struct Messages {
    pub(super) count: u64,
    pub(super) bytes: usize,
    pub(super) expires: Timestamp,
}

impl Messages {
    /// Sends all of them and returns when the last one is accepted.
    pub(super) async fn send(&self, service: &mut Service, in_flight: usize) -> Result<()> {
        let mut payload = Payload::of(self.bytes);
        let (mut sent, mut accepted) = (0, 0);
        while accepted < self.count {
            if service.in_flight() == 0 {
                // Nothing is owed that could be waited for but credit.
                service.ready().await?;
            }
            while sent < self.count && service.can_send() && service.in_flight() < in_flight {
                let ack = if wants_feedback(sent) {
                    Ack::Full
                } else {
                    Ack::None
                };
                service.send(&CloudMessage {
                    to: address_of(&DeviceId::new(&name(sent))?, None).into(),
                    message_id: Some(id(sent).into()),
                    expires: Some(self.expires),
                    ack,
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

    /// Has these devices come over MQTT for their message and complete it. Gives those that did
    /// not get it, and why.
    pub(super) async fn fetch(&self, hub: &Hub, devices: &BTreeSet<u64>) -> Result<Vec<String>> {
        let fetched: Vec<Option<String>> = stream::iter(devices)
            .map(async |&number| {
                let options = hub.device(&name(number), hub.now())?;
                let outcome = tokio::time::timeout(PATIENCE, self.fetch_one(&options, number));
                let lost = match outcome.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{}: {error:#}", name(number))),
                    Err(_elapsed) => Some(format!("{}: its message did not come", name(number))),
                };
                anyhow::Ok(lost)
            })
            .buffer_unordered(COMING_AT_ONCE)
            .try_collect()
            .await?;
        Ok(fetched.into_iter().flatten().collect())
    }

    async fn fetch_one(&self, options: &DeviceOptions, number: u64) -> Result<()> {
        let mut device = fieldpost_client::Device::connect(options).await?;
        device.subscribe_commands().await?;
        let command = loop {
            if let DeviceEvent::Command(command) = device.next().await? {
                break command;
            }
        };
        let mut payload = Payload::of(self.bytes);
        ensure!(
            command.payload == payload.numbered(number),
            "another body came"
        );
        let is_id = |entry: &str| entry.strip_prefix("%24.mid=") == Some(&id(number));
        let (_, bag) = command
            .topic
            .rsplit_once('/')
            .context("a topic without a bag")?;
        ensure!(bag.split('&').any(is_id), "another message id came: {bag}");
        let packet_id = command.packet_id.context("it came at QoS 0")?;
        device.acknowledge_command(packet_id)?;
        device.disconnect().await?;
        Ok(())
    }
}

/// Messages about which feedback is owed, and which.
pub(super) struct Owed(HashMap<u64, FeedbackStatus>);

/// How the feedback came.
pub(super) struct Heard {
    /// When the last of it came.
    pub(super) last: Instant,
    /// What is wrong with it: records that did not come or say something else.
    pub(super) lost: Vec<String>,
    /// Records that came more than once.
    pub(super) again: u64,
}

impl Owed {
    /// What is owed for those of these messages that ask for it, when `status` becomes of them.
    pub(super) fn of(numbers: impl Iterator<Item = u64>, status: FeedbackStatus) -> Self {
        let asking = numbers.filter(|number| wants_feedback(*number));
        Self(asking.map(|number| (number, status)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Receives and completes feedback until all is there, or none has come for so long.
    pub(super) async fn hear(mut self, service: &mut Service, patience: Duration) -> Result<Heard> {
        let mut heard = Heard {
            last: Instant::now(),
            lost: Vec::new(),
            again: 0,
        };
        let mut known: HashMap<u64, FeedbackStatus> = HashMap::new();
        while !self.0.is_empty() {
            let Ok(event) = tokio::time::timeout(patience, service.next()).await else {
                break;
            };
            let ServiceEvent::Feedback(batch) = event? else {
                continue;
            };
            heard.last = Instant::now();
            for record in &batch.records {
                let number = number_of(record)?;
                match self.0.remove(&number).or(known.get(&number).copied()) {
                    Some(status) if status != record.status_code => {
                        heard.lost.push(format!("feedback says {record:?}"));
                    }
                    None => heard.lost.push(format!("nobody is owed {record:?}")),
                    Some(status) => {
                        if known.insert(number, status).is_some() {
                            heard.again += 1;
                        }
                    }
                }
            }
            service.complete(&batch)?;
        }
        service.flush().await?;
        for (number, status) in self.0 {
            heard
                .lost
                .push(format!("no feedback {status:?} of {}", id(number)));
        }
        Ok(heard)
    }
}

fn number_of(record: &FeedbackRecord) -> Result<u64> {
    let id = record.original_message_id.as_deref().unwrap_or_default();
    match id.strip_prefix("m-") {
        Some(number) => number.parse().context("a message id of ours"),
        None => bail!("feedback about a message that nobody sent: {record:?}"),
    }
}

/// `count` different numbers below `below` that are not in `without`, the same in every run.
pub(super) fn sample(below: u64, count: usize, without: &BTreeSet<u64>) -> BTreeSet<u64> {
    let mut sample = BTreeSet::new();
    let seed = without.len() as u64;
    let left = usize::try_from(below).unwrap_or(usize::MAX) - without.len();
    for number in Noise::new(seed).map(|noise| noise % below.max(1)) {
        if sample.len() >= count.min(left) {
            break;
        }
        if !without.contains(&number) {
            sample.insert(number);
        }
    }
    sample
}

pub(super) fn name(number: u64) -> String {
    format!("device-{number}")
}

fn id(number: u64) -> String {
    format!("m-{number}")
}

fn wants_feedback(number: u64) -> bool {
    number.is_multiple_of(FEEDBACK_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_others_than_the_one_before() {
        let first = sample(1000, 100, &BTreeSet::new());
        let second = sample(1000, 100, &first);
        assert_eq!((first.len(), second.len()), (100, 100));
        assert!(first.is_disjoint(&second));
        assert!(first.iter().chain(&second).all(|number| *number < 1000));
    }

    #[test]
    fn a_sample_ends_when_none_are_left() {
        let all = sample(10, 100, &BTreeSet::new());
        assert_eq!(all, (0..10).collect());
        assert_eq!(sample(10, 100, &all), BTreeSet::new());
    }
}
