//! Remembers what was promised, and says where a promise is broken.
//!
//! From devices: every acknowledged message comes out, with the content and the device that it had;
//! nothing comes out that was not sent; the first appearances of a device's messages are in the
//! order of their sending; a position keeps its event. To devices: see [`commands`](crate::commands).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fieldpost_client::Event;
use fieldpost_client::service::FeedbackRecord;
use fieldpost_hub::c2d::Cause;
use fieldpost_model::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

use crate::commands::{Answer, CommandLedger, SentCommand};
use crate::journal::Journal;

/// Broken promises that are kept; the first ones tell the most.
const VIOLATIONS_MAX: usize = 20;

/// The auditor of one run. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Auditor {
    journal: Journal,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    violations: Vec<String>,
    devices: BTreeMap<String, DeviceLedger>,
    /// What readers saw, by partition and sequence number.
    positions: BTreeMap<String, BTreeMap<u64, Seen>>,
    commands: CommandLedger,
}

/// What a device sent. Messages are numbered from 0.
#[derive(Default)]
struct DeviceLedger {
    /// A hash of each body.
    sent: Vec<u64>,
    acknowledged: Vec<bool>,
    /// How often each was read back.
    copies: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    device: String,
    number: u64,
    enqueued: Timestamp,
}

/// How much happened, to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages that devices sent.
    pub sent: u64,
    /// Those that were acknowledged.
    pub acknowledged: u64,
    /// Events read back, repetitions of a message included.
    pub read: u64,
    /// Commands that the hub accepted.
    pub accepted: u64,
    /// Commands given to devices, repetitions included.
    pub delivered: u64,
    /// Commands for which feedback came.
    pub answered: u64,
}

impl Auditor {
    pub(crate) fn new(journal: Journal) -> Self {
        Self {
            journal,
            state: Arc::default(),
        }
    }

    /// Notes what happened, for the hash and for whoever looks at the run.
    pub(crate) fn note(&self, event: fmt::Arguments<'_>) {
        self.journal.note(event);
    }

    /// Notes a broken promise.
    pub(crate) fn violation(&self, what: fmt::Arguments<'_>) {
        self.note(format_args!("VIOLATION {what}"));
        self.lock().violation(what.to_string());
    }

    /// A device is about to send a message for the first time; gives the message's number.
    pub(crate) fn sent(&self, device: &str, make: impl FnOnce(u64) -> Vec<u8>) -> (u64, Vec<u8>) {
        let mut state = self.lock();
        let ledger = state.devices.entry(device.to_owned()).or_default();
        let number = ledger.sent.len() as u64;
        let body = make(number);
        ledger.sent.push(xxh3_64(&body));
        ledger.acknowledged.push(false);
        ledger.copies.push(0);
        (number, body)
    }

    /// The hub has acknowledged a message.
    pub(crate) fn acknowledged(&self, device: &str, number: u64) {
        self.note(format_args!("{device} acknowledged {number}"));
        let mut state = self.lock();
        if let Some(ledger) = state.devices.get_mut(device) {
            ledger.acknowledged[index(number)] = true;
        }
    }

    /// A reader got an event.
    pub(crate) fn read(&self, event: &Event) {
        let text = String::from_utf8_lossy(&event.body);
        let mut words = text.split(' ');
        let device = words.next().unwrap_or_default().to_owned();
        let number: u64 = words
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(u64::MAX);
        let (partition, sequence) = (&event.partition, event.sequence);
        self.note(format_args!(
            "read {partition}/{sequence}: {device} {number}"
        ));
        let mut state = self.lock();
        let state = &mut *state;
        if event.device_id.as_deref() != Some(&device) {
            let stamped = &event.device_id;
            state.violation(format!(
                "{partition}/{sequence} is of {device} and says {stamped:?}"
            ));
        }
        let ledger = state.devices.entry(device.clone()).or_default();
        match ledger.sent.get(index(number)) {
            Some(hash) if *hash == xxh3_64(&event.body) => {}
            Some(_) => state.violations.push(format!(
                "{partition}/{sequence} has another content than {device} {number}"
            )),
            None => {
                state.violations.push(format!(
                    "{partition}/{sequence} was never sent: {device} {number}"
                ));
                return;
            }
        }
        let seen = Seen {
            device,
            number,
            enqueued: event.enqueued,
        };
        let before = state
            .positions
            .entry(partition.clone())
            .or_default()
            .insert(sequence, seen.clone());
        match before {
            Some(before) if before != seen => state.violations.push(format!(
                "{partition}/{sequence} was {before:?} and is {seen:?}"
            )),
            Some(_) => {}
            None => {
                if let Some(copies) = ledger.copies.get_mut(index(number)) {
                    *copies += 1;
                }
            }
        }
    }

    /// Everything stored, read once more from the beginning.
    pub(crate) fn read_again(&self, events: &[Event]) {
        let known = self.lock().positions.clone();
        for event in events {
            let known = known.get(&event.partition);
            if known.is_none_or(|known| !known.contains_key(&event.sequence)) {
                let (partition, sequence) = (&event.partition, event.sequence);
                self.violation(format_args!(
                    "a reader was not given {partition}/{sequence}"
                ));
            }
            self.read(event);
        }
        let mut known = known;
        for event in events {
            if let Some(known) = known.get_mut(&event.partition) {
                known.remove(&event.sequence);
            }
        }
        for (partition, gone) in known {
            for (sequence, seen) in gone {
                self.violation(format_args!("{partition}/{sequence} is gone: {seen:?}"));
            }
        }
    }

    /// A service is about to send a command.
    pub(crate) fn command_sent(&self, command: SentCommand) {
        let SentCommand {
            id,
            device,
            ack,
            expires,
            ..
        } = &command;
        self.note(format_args!(
            "command {id} for {device} sent, {ack:?}, until {expires:?}"
        ));
        self.lock().commands.sent(command);
    }

    /// The hub has answered for a command.
    pub(crate) fn command_answered(&self, id: &str, answer: Answer) {
        self.note(format_args!("command {id} answered: {answer:?}"));
        let found = self.lock().commands.answered(id, answer);
        self.report(found);
    }

    /// A device was given a command.
    pub(crate) fn command_delivered(&self, device: &str, id: &str) {
        self.note(format_args!("command {id} delivered to {device}"));
        let found = self.lock().commands.delivered(device, id);
        self.report(found);
    }

    /// A device is about to acknowledge a command.
    pub(crate) fn command_acknowledged(&self, id: &str) {
        self.note(format_args!("command {id} acknowledged"));
        self.lock().commands.acknowledged(id);
    }

    /// A device is about to reject a command.
    pub(crate) fn command_rejected(&self, id: &str) {
        self.note(format_args!("command {id} rejected"));
        self.lock().commands.rejected(id);
    }

    /// What the hub keeps as dead letters, each by its message id. Says what is missing among them.
    pub(crate) fn dead_letters(&self, letters: &[(String, Cause)]) -> Vec<String> {
        let mut state = self.lock();
        let (wrong, missing) = state.commands.dead_letters(letters);
        for violation in wrong {
            state.violation(violation);
        }
        missing
    }

    /// The hub has acknowledged something that the device sent after its acknowledgement of the
    /// command, and has not fallen: the command is completed for good.
    pub(crate) fn command_completed(&self, id: &str) {
        self.note(format_args!("command {id} completed"));
        self.lock().commands.completed(id);
    }

    /// A service was given feedback.
    pub(crate) fn feedback(&self, record: &FeedbackRecord) {
        let id = record.original_message_id.as_deref().unwrap_or_default();
        let status = record.status_code;
        self.note(format_args!("feedback for {id}: {status:?}"));
        let found = self.lock().commands.feedback(record);
        self.report(found);
    }

    /// What is still to come before everything that was promised is kept; a few of each kind.
    pub(crate) fn open_ends(&self) -> Vec<String> {
        let state = self.lock();
        let mut open = Vec::new();
        for (device, ledger) in &state.devices {
            let unacknowledged = ledger.acknowledged.iter().filter(|known| !**known).count();
            if unacknowledged > 0 {
                open.push(format!("{device}: {unacknowledged} not acknowledged"));
            }
            let lost: Vec<usize> = (0..ledger.sent.len())
                .filter(|&at| ledger.acknowledged[at] && ledger.copies[at] == 0)
                .take(5)
                .collect();
            if !lost.is_empty() {
                open.push(format!(
                    "{device}: acknowledged and not read back: {lost:?}"
                ));
            }
        }
        state.commands.open_ends(&mut open);
        open
    }

    /// Looks at what can only be seen when all is over.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        let mut found = Vec::new();
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for (partition, events) in &state.positions {
            let mut newest = None;
            for (sequence, seen) in events {
                if newest > Some(seen.enqueued) {
                    found.push(format!("time goes back at {partition}/{sequence}"));
                }
                newest = Some(seen.enqueued);
                let next = next.entry(&seen.device).or_default();
                if seen.number > *next {
                    let Seen { device, number, .. } = seen;
                    found.push(format!(
                        "{device} {number} stands before {next} at {partition}/{sequence}"
                    ));
                }
                *next = (*next).max(seen.number + 1);
            }
        }
        state.commands.close(&mut found);
        for violation in found {
            state.violation(violation);
        }
    }

    /// What happened so far.
    pub(crate) fn figures(&self) -> Figures {
        let state = self.lock();
        let mut figures = Figures::default();
        for ledger in state.devices.values() {
            figures.sent += ledger.sent.len() as u64;
            figures.acknowledged +=
                ledger.acknowledged.iter().filter(|known| **known).count() as u64;
        }
        figures.read = state.positions.values().map(|p| p.len() as u64).sum();
        state.commands.count(&mut figures);
        figures
    }

    /// The promises that were broken.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    fn report(&self, found: Option<String>) {
        if let Some(found) = found {
            self.violation(format_args!("{found}"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn violation(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
