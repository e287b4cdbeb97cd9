//! What became of the messages to devices.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::figures::{histogram, lock, micros, millis, parse_body, percentiles};

/// Messages on their way to one device at most: the 50 that a queue takes, less those that a device has
/// got and not completed yet (the hub gives it 16 at a time), so that none is refused.
const WAITING_MAX: usize = 32;

/// Keeps account of every message to a device.
pub(super) struct Board {
    started: Instant,
    state: Mutex<State>,
    /// Rung whenever something came that somebody may wait for.
    changed: Notify,
}

struct State {
    /// Per device: its messages, in the order of their numbers.
    devices: Vec<Vec<Message>>,
    counts: Counts,
    accepted_latency: Histogram<u64>,
    delivered_latency: Histogram<u64>,
}

#[derive(Clone, Copy, Default)]
struct Message {
    accepted: bool,
    refused: bool,
    delivered: bool,
    completed: bool,
    feedback: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    sent: u64,
    accepted: u64,
    refused: u64,
    delivered: u64,
    completed: u64,
    feedback: u64,
}

/// The outcome.
#[derive(Debug)]
pub(super) struct CommandFigures {
    counts: Counts,
    /// Accepted and never delivered.
    lost: u64,
    accepted_latency: [Duration; 3],
    delivered_latency: [Duration; 3],
}

impl Board {
    pub(super) fn new(devices: u32, started: Instant) -> Self {
        let devices = usize::try_from(devices).unwrap_or_default();
        Self {
            started,
            state: Mutex::new(State {
                devices: vec![Vec::new(); devices],
                counts: Counts::default(),
                accepted_latency: histogram(),
                delivered_latency: histogram(),
            }),
            changed: Notify::new(),
        }
    }

    /// Counts a message to a device as sent and gives its number; `None` while too many wait.
    pub(super) fn send(&self, device: usize) -> Option<usize> {
        let mut state = lock(&self.state);
        let messages = state.devices.get_mut(device)?;
        // Only the newest ones can still wait, as they are delivered about in order.
        let newest = messages.iter().rev().take(WAITING_MAX);
        let waiting = newest.filter(|m| !m.delivered && !m.refused).count();
        if waiting == WAITING_MAX {
            return None;
        }
        messages.push(Message::default());
        let number = messages.len() - 1;
        state.counts.sent += 1;
        Some(number)
    }

    /// The hub has answered a message.
    pub(super) fn answered(&self, device: usize, number: usize, took: bool, latency: Duration) {
        let mut state = lock(&self.state);
        let Some(message) = state.message(device, number) else {
            return;
        };
        (message.accepted, message.refused) = (took, !took);
        if took {
            state.counts.accepted += 1;
            state.accepted_latency.saturating_record(micros(latency));
        } else {
            state.counts.refused += 1;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A device has got a message. The latency counts unless the device was away when it was sent.
    pub(super) fn delivered(&self, body: &[u8], connected: Instant) {
        let Some((device, number, sent_after)) = parse_body(body) else {
            return;
        };
        let mut state = lock(&self.state);
        let message = state.message(device, number);
        if message.is_none_or(|message| std::mem::replace(&mut message.delivered, true)) {
            return;
        }
        state.counts.delivered += 1;
        let sent = self.started + sent_after;
        if sent >= connected {
            state
                .delivered_latency
                .saturating_record(micros(sent.elapsed()));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A device has acknowledged a message.
    pub(super) fn completed(&self, body: &[u8]) {
        let Some((device, number, _)) = parse_body(body) else {
            return;
        };
        let mut state = lock(&self.state);
        let message = state.message(device, number);
        if message.is_some_and(|message| !std::mem::replace(&mut message.completed, true)) {
            state.counts.completed += 1;
        }
    }

    /// Feedback says that a message was completed.
    pub(super) fn feedback(&self, message_id: &str) {
        let Some((device, number)) = parse_message_id(message_id) else {
            return;
        };
        let mut state = lock(&self.state);
        let message = state.message(device, number);
        if message.is_some_and(|message| !std::mem::replace(&mut message.feedback, true)) {
            state.counts.feedback += 1;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether every accepted message was delivered and feedback about it came.
    pub(super) fn is_settled(&self) -> bool {
        let counts = lock(&self.state).counts;
        counts.delivered >= counts.accepted && counts.feedback >= counts.accepted
    }

    /// Waits for the next news.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn figures(&self) -> CommandFigures {
        let state = lock(&self.state);
        let messages = state.devices.iter().flatten();
        let lost = messages.filter(|m| m.accepted && !m.delivered).count();
        CommandFigures {
            counts: state.counts,
            lost: u64::try_from(lost).unwrap_or(u64::MAX),
            accepted_latency: percentiles(&state.accepted_latency),
            delivered_latency: percentiles(&state.delivered_latency),
        }
    }
}

impl State {
    fn message(&mut self, device: usize, number: usize) -> Option<&mut Message> {
        self.devices.get_mut(device)?.get_mut(number)
    }
}

impl CommandFigures {
    /// Whether every message was accepted, delivered, completed and told of.
    pub(super) fn is_complete(&self) -> bool {
        let Counts {
            sent,
            accepted,
            refused,
            delivered,
            completed,
            feedback,
        } = self.counts;
        self.lost == 0
            && refused == 0
            && sent == accepted
            && [delivered, completed, feedback] == [accepted; 3]
    }

    pub(super) fn as_json(&self) -> Value {
        json!({
            "sent": self.counts.sent,
            "accepted": self.counts.accepted,
            "refused": self.counts.refused,
            "delivered": self.counts.delivered,
            "completed": self.counts.completed,
            "feedback": self.counts.feedback,
            "lost": self.lost,
            "acceptedLatencyMs": millis(self.accepted_latency),
            "deliveredLatencyMs": millis(self.delivered_latency),
        })
    }

    /// Name, count and latencies of each row of the table.
    pub(super) fn rows(&self) -> [(&'static str, u64, Option<[Duration; 3]>); 6] {
        [
            ("sent", self.counts.sent, None),
            (
                "accepted",
                self.counts.accepted,
                Some(self.accepted_latency),
            ),
            (
                "delivered",
                self.counts.delivered,
                Some(self.delivered_latency),
            ),
            ("completed", self.counts.completed, None),
            ("feedback", self.counts.feedback, None),
            ("lost", self.lost, None),
        ]
    }

    /// One piece of the live view.
    pub(super) fn view(&self) -> String {
        format!(
            "to devices: accepted {}  delivered {}  feedback {}",
            self.counts.accepted, self.counts.delivered, self.counts.feedback
        )
    }
}

/// The id of a message to a device.
pub(super) fn message_id(device: usize, number: usize) -> String {
    format!("{device}-{number}")
}

fn parse_message_id(id: &str) -> Option<(usize, usize)> {
    let (device, number) = id.split_once('-')?;
    Some((device.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::figures::body;
    use super::*;

    #[test]
    fn a_message_counts_once_for_each_thing_that_happens_to_it() {
        let board = Board::new(2, Instant::now());
        let millisecond = Duration::from_millis(1);
        assert_eq!(
            (board.send(0), board.send(0), board.send(1)),
            (Some(0), Some(1), Some(0))
        );
        assert_eq!(board.send(2), None);
        board.answered(0, 0, true, millisecond);
        board.answered(0, 1, true, millisecond);
        board.answered(1, 0, true, millisecond);
        let texts = [
            body(0, 0, millisecond),
            body(0, 1, millisecond),
            body(0, 0, millisecond),
        ];
        for text in texts {
            board.delivered(text.as_bytes(), Instant::now());
            board.completed(text.as_bytes());
        }
        for id in ["0-0", "0-0", "0-1", "7-7", "else"] {
            board.feedback(id);
        }
        let expected = Counts {
            sent: 3,
            accepted: 3,
            refused: 0,
            delivered: 2,
            completed: 2,
            feedback: 2,
        };
        let figures = board.figures();
        assert_eq!((figures.counts, figures.lost), (expected, 1));
        assert!(!figures.is_complete() && !board.is_settled());
        let last = body(1, 0, millisecond);
        board.delivered(last.as_bytes(), Instant::now());
        board.completed(last.as_bytes());
        board.feedback("1-0");
        assert!(board.figures().is_complete() && board.is_settled());
        // A refusal is no loss and no success.
        board.send(1);
        board.answered(1, 1, false, millisecond);
        assert_eq!(board.figures().lost, 0);
        assert!(!board.figures().is_complete());
    }

    #[test]
    fn a_device_that_is_away_is_not_sent_more_than_its_queue_takes() {
        let board = Board::new(1, Instant::now());
        for number in 0..WAITING_MAX {
            assert_eq!(board.send(0), Some(number));
            board.answered(0, number, true, Duration::ZERO);
        }
        assert_eq!(board.send(0), None);
        board.delivered(body(0, 0, Duration::ZERO).as_bytes(), Instant::now());
        assert_eq!(board.send(0), Some(WAITING_MAX));
        assert_eq!(board.send(0), None);
    }
}
