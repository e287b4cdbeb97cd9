//! What the auditor knows of messages to devices.
//!
//! Every accepted command reaches its device, unless its time was over; commands of one back end
//! reach a device in the order of their sending; a command that is known to be completed does not
//! return; every feedback record that is owed arrives, and none that contradicts what happened;
//! whatever no device took is a dead letter, with its cause, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};

use fieldpost_client::service::{FeedbackRecord, FeedbackStatus};
use fieldpost_hub::c2d::Cause;
use fieldpost_model::{Ack, Timestamp};

use crate::auditor::Figures;

/// A command as its sender knows it.
#[derive(Clone, Debug)]
pub(crate) struct SentCommand {
    pub(crate) id: String,
    pub(crate) device: String,
    /// The connection on which it was sent, one number for each.
    pub(crate) connection: String,
    pub(crate) ack: Ack,
    pub(crate) expires: Option<Timestamp>,
}

/// What the hub said of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is durable.
    Accepted,
    /// It was not taken.
    Refused(String),
    /// Nobody knows: the connection was lost, or the store failed.
    Unknown(String),
}

/// All commands of a run.
#[derive(Default)]
pub(crate) struct CommandLedger {
    commands: BTreeMap<String, Command>,
    /// Numbers what happened to commands.
    moments: u64,
}

struct Command {
    sent: SentCommand,
    sent_at: u64,
    answer: Option<Answer>,
    answered_at: u64,
    first_delivery: Option<u64>,
    deliveries: u64,
    acknowledged: bool,
    completed: bool,
    /// Its device has rejected it, or tried to.
    rejected: bool,
    feedback: BTreeSet<&'static str>,
}

impl CommandLedger {
    pub(crate) fn sent(&mut self, sent: SentCommand) {
        let sent_at = self.moment();
        let command = Command {
            sent_at,
            answer: None,
            answered_at: 0,
            first_delivery: None,
            deliveries: 0,
            acknowledged: false,
            completed: false,
            rejected: false,
            feedback: BTreeSet::new(),
            sent,
        };
        self.commands.insert(command.sent.id.clone(), command);
    }

    pub(crate) fn answered(&mut self, id: &str, answer: Answer) -> Option<String> {
        let answered_at = self.moment();
        let command = self.commands.get_mut(id)?;
        let refused = matches!(answer, Answer::Refused(_));
        command.answer = Some(answer);
        command.answered_at = answered_at;
        (refused && command.deliveries > 0)
            .then(|| format!("command {id} was refused and delivered"))
    }

    pub(crate) fn delivered(&mut self, device: &str, id: &str) -> Option<String> {
        let moment = self.moment();
        let Some(command) = self.commands.get_mut(id) else {
            return Some(format!("{device} was given {id:?}, which nobody sent"));
        };
        command.deliveries += 1;
        command.first_delivery.get_or_insert(moment);
        if command.sent.device != device {
            return Some(format!("{device} was given {id}, which is not for it"));
        }
        if matches!(command.answer, Some(Answer::Refused(_))) {
            return Some(format!("command {id} was refused and delivered"));
        }
        if command.completed || command.feedback.contains("Success") {
            return Some(format!("command {id} came back after it was completed"));
        }
        if command.feedback.contains("Rejected") {
            return Some(format!("command {id} came back after it was rejected"));
        }
        None
    }

    pub(crate) fn acknowledged(&mut self, id: &str) {
        if let Some(command) = self.commands.get_mut(id) {
            command.acknowledged = true;
        }
    }

    pub(crate) fn completed(&mut self, id: &str) {
        if let Some(command) = self.commands.get_mut(id) {
            command.completed = true;
        }
    }

    pub(crate) fn rejected(&mut self, id: &str) {
        if let Some(command) = self.commands.get_mut(id) {
            command.rejected = true;
        }
    }

    pub(crate) fn feedback(&mut self, record: &FeedbackRecord) -> Option<String> {
        let id = record.original_message_id.as_deref().unwrap_or_default();
        let Some(command) = self.commands.get_mut(id) else {
            return Some(format!("feedback for {id:?}, which nobody sent"));
        };
        let ack = command.sent.ack;
        let (status, fits) = match record.status_code {
            FeedbackStatus::Success => (
                "Success",
                command.acknowledged && matches!(ack, Ack::Full | Ack::Positive),
            ),
            FeedbackStatus::Expired => (
                "Expired",
                command.sent.expires.is_some()
                    && !command.completed
                    && matches!(ack, Ack::Full | Ack::Negative),
            ),
            FeedbackStatus::DeliveryCountExceeded => ("DeliveryCountExceeded", false),
            FeedbackStatus::Rejected => (
                "Rejected",
                command.rejected && matches!(ack, Ack::Full | Ack::Negative),
            ),
            FeedbackStatus::Purged => ("Purged", false),
        };
        command.feedback.insert(status);
        if !fits || record.device_id != command.sent.device {
            return Some(format!("feedback for {id} does not fit: {record:?}"));
        }
        if matches!(command.answer, Some(Answer::Refused(_))) {
            return Some(format!(
                "command {id} was refused, and feedback came for it"
            ));
        }
        (command.feedback.len() > 1).then(|| {
            format!(
                "feedback for {id} contradicts itself: {:?}",
                command.feedback
            )
        })
    }

    /// Adds what is owed and has not come yet.
    pub(crate) fn open_ends(&self, open: &mut Vec<String>) {
        for (id, command) in &self.commands {
            if command.answer.is_none() {
                open.push(format!("command {id} is not answered"));
            }
            if command.answer != Some(Answer::Accepted) {
                continue;
            }
            if command.deliveries == 0 && command.sent.expires.is_none() {
                open.push(format!("command {id} was accepted and not delivered"));
            }
            if command.owes_feedback() && command.feedback.is_empty() {
                open.push(format!("no feedback for command {id}"));
            }
        }
    }

    /// What is wrong with the dead letters, and what is missing among them.
    pub(crate) fn dead_letters(&self, letters: &[(String, Cause)]) -> (Vec<String>, Vec<String>) {
        let mut wrong = Vec::new();
        let mut causes = BTreeMap::new();
        for (id, cause) in letters {
            if causes.insert(id.as_str(), *cause).is_some() {
                wrong.push(format!("command {id} is a dead letter twice"));
            }
            let Some(command) = self.commands.get(id) else {
                wrong.push(format!("{id:?} is a dead letter, and nobody sent it"));
                continue;
            };
            let fits = match cause {
                Cause::Expired => command.sent.expires.is_some(),
                Cause::Rejected => command.rejected,
                Cause::Completed | Cause::DeliveryCountExceeded | Cause::Purged => false,
            };
            let refused = matches!(command.answer, Some(Answer::Refused(_)));
            if !fits || refused || command.completed || command.feedback.contains("Success") {
                wrong.push(format!("command {id} must not be a dead letter: {cause:?}"));
            }
        }
        let mut missing = Vec::new();
        for (id, command) in &self.commands {
            let cause = causes.get(id.as_str()).map(|cause| cause.feedback_status());
            let told = command.feedback.first().filter(|told| **told != "Success");
            if told.is_some_and(|told| cause != Some(told)) {
                missing.push(format!(
                    "command {id} is no dead letter, and was told of as {told:?}"
                ));
            }
            let is_over = command.answer == Some(Answer::Accepted) && !command.acknowledged;
            if is_over && cause.is_none() {
                missing.push(format!(
                    "command {id} was not acknowledged and is no dead letter"
                ));
            }
        }
        (wrong, missing)
    }

    /// Adds what is wrong with the order of deliveries.
    pub(crate) fn close(&self, found: &mut Vec<String>) {
        let mut by_device: BTreeMap<&str, Vec<&Command>> = BTreeMap::new();
        for command in self.commands.values() {
            if command.answer == Some(Answer::Accepted) && command.deliveries > 0 {
                by_device
                    .entry(&command.sent.device)
                    .or_default()
                    .push(command);
            }
        }
        for (device, commands) in by_device {
            for one in &commands {
                for other in commands.iter().filter(|other| one.is_before(other)) {
                    if one.first_delivery > other.first_delivery {
                        let (one, other) = (&one.sent.id, &other.sent.id);
                        found.push(format!("{device} was given {other} before {one}"));
                    }
                }
            }
        }
    }

    pub(crate) fn count(&self, figures: &mut Figures) {
        for command in self.commands.values() {
            figures.accepted += u64::from(command.answer == Some(Answer::Accepted));
            figures.delivered += command.deliveries;
            figures.answered += u64::from(!command.feedback.is_empty());
        }
    }

    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }
}

impl Command {
    /// Whether the hub had this one first: both came over one connection, or it was answered before
    /// the other one was sent.
    fn is_before(&self, other: &Self) -> bool {
        let in_line = self.sent.connection == other.sent.connection && self.sent_at < other.sent_at;
        in_line || self.answered_at < other.sent_at
    }

    /// Whether a record must come, whatever the chances were.
    fn owes_feedback(&self) -> bool {
        match (self.sent.ack, self.sent.expires) {
            (Ack::None, _) => false,
            (Ack::Full, _) => true,
            (Ack::Positive, None) => self.completed || !self.rejected,
            (Ack::Positive, Some(_)) => self.completed,
            // It was rejected in the end, or its time was over.
            (Ack::Negative, _) => {
                !self.acknowledged && (self.rejected || self.sent.expires.is_some())
            }
        }
    }
}
