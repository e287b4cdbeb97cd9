//! The auditor: what was accepted, what came where, and what feedback said. It lives outside the hub's
//! process.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Result, ensure};
use fieldpost_client::service::FeedbackStatus;
use serde_json::{Value, json};

use super::plan::{DELIVERIES_MAX, Fate, Plan, takers};
use crate::fleet::Tally;

#[derive(Default)]
pub(super) struct Book {
    /// The last message that was sent.
    last_sent: u64,
    /// No more messages are sent.
    pub(super) is_ending: bool,
    accepted: BTreeSet<u64>,
    /// Accepted messages that must come to their device and have not.
    undelivered: BTreeSet<u64>,
    /// Accepted messages about which nothing was told that is owed.
    untold: BTreeSet<u64>,
    /// Deliveries by message.
    delivered: BTreeMap<u64, u32>,
    /// Per device, the last message that came to it for the first time.
    last: HashMap<String, u64>,
    /// Messages whose end the hub has confirmed over HTTPS, each with the word for it.
    confirmed: BTreeMap<u64, &'static str>,
    /// What feedback said of a message, and how often.
    told: BTreeMap<u64, (FeedbackStatus, u64)>,
    wrong: Option<String>,
}

impl Book {
    /// The number of the next message to send.
    pub(super) fn send(&mut self) -> u64 {
        self.last_sent += 1;
        self.last_sent
    }

    /// The hub has accepted a message.
    pub(super) fn accept(&mut self, number: u64) {
        self.accepted.insert(number);
        let plan = Plan::of(number);
        if plan.must_come() && !self.delivered.contains_key(&number) {
            self.undelivered.insert(number);
        }
        if plan.is_told() && !self.told.contains_key(&number) {
            self.untold.insert(number);
        }
    }

    /// A message came to a device. Returns what the device is to do.
    pub(super) fn deliver(&mut self, device: &str, body: &[u8]) -> Option<(u64, Fate)> {
        let text = String::from_utf8_lossy(body).into_owned();
        let number = text
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        let Some(number) = number.filter(|number| *number <= self.last_sent) else {
            self.fail(format!("{device} got {text:?}, which nobody sent"));
            return None;
        };
        let plan = Plan::of(number);
        if plan.device != device || plan.body(number) != text {
            self.fail(format!(
                "{device} got {text:?}, which is not for it: {plan:?}"
            ));
        }
        if let Some(how) = self.confirmed.get(&number) {
            self.fail(format!(
                "{device} got message {number}, which was confirmed as {how} before"
            ));
        }
        let deliveries = self.delivered.entry(number).or_default();
        *deliveries += 1;
        self.undelivered.remove(&number);
        if *deliveries == 1 {
            let last = self.last.insert(device.to_owned(), number);
            if let Some(last) = last.filter(|last| *last > number) {
                self.fail(format!("{device} got message {number} after {last}"));
            }
        }
        Some((number, plan.fate))
    }

    /// The hub has answered a device over HTTPS that a message is done with.
    pub(super) fn confirm(&mut self, number: u64, how: &'static str) {
        self.confirmed.insert(number, how);
    }

    /// A record of feedback came.
    pub(super) fn tell(&mut self, number: u64, status: FeedbackStatus) {
        let plan = Plan::of(number);
        if number == 0 || number > self.last_sent || !plan.may_be_told(status) {
            self.fail(format!(
                "feedback about message {number} says {status:?}, which is not owed: {plan:?}"
            ));
        }
        let (before, times) = *self.told.entry(number).or_insert((status, 0));
        if before != status {
            self.fail(format!(
                "feedback about message {number} says {before:?} and then {status:?}"
            ));
        }
        self.told.insert(number, (before, times + 1));
        self.untold.remove(&number);
    }

    /// The first thing that goes wrong counts.
    pub(super) fn fail(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    /// What has gone wrong.
    pub(super) fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    /// How many messages were accepted, and how many came.
    pub(super) fn so_far(&self) -> (usize, usize) {
        (self.accepted.len(), self.delivered.len())
    }

    /// What is owed still: messages that must come to their device, and records of feedback. Asked
    /// often, of a book that clients wait for, so that it is kept and not counted.
    pub(super) fn owed(&self) -> (&BTreeSet<u64>, &BTreeSet<u64>) {
        (&self.undelivered, &self.untold)
    }

    /// Whether everything that feedback told can be true. Not before the end: what the poller prints
    /// takes its time.
    pub(super) fn check_told(&self) -> Result<()> {
        for (number, (status, _)) in &self.told {
            let deliveries = self.delivered.get(number).copied().unwrap_or_default();
            let least = match status {
                FeedbackStatus::Success | FeedbackStatus::Rejected => 1,
                FeedbackStatus::DeliveryCountExceeded => DELIVERIES_MAX,
                FeedbackStatus::Expired | FeedbackStatus::Purged => 0,
            };
            ensure!(
                deliveries >= least,
                "feedback says {status:?} of message {number}, which came {deliveries} times"
            );
        }
        Ok(())
    }

    /// Messages that came, by how their devices take them.
    fn delivered_over(&self) -> Tally {
        let mut by_device = BTreeMap::<_, u64>::new();
        for number in self.delivered.keys() {
            *by_device.entry(Plan::of(*number).device).or_default() += 1;
        }
        let mut over = Tally::default();
        for taker in takers() {
            let count = by_device.get(&taker.id).copied().unwrap_or_default();
            over.add(taker.protocol, taker.credential, count);
        }
        over
    }

    /// The counts, for programs.
    pub(super) fn counts(&self) -> Value {
        let mut causes = BTreeMap::<String, (u64, u64)>::new();
        for (status, times) in self.told.values() {
            let (messages, records) = causes.entry(format!("{status:?}")).or_default();
            *messages += 1;
            *records += times;
        }
        let causes: BTreeMap<_, _> = causes
            .into_iter()
            .map(|(status, (messages, records))| {
                (status, json!({"messages": messages, "records": records}))
            })
            .collect();
        let untold = |number: &&u64| !Plan::of(**number).is_told();
        // An abandoned message has to come again.
        let again = |(number, deliveries): &(&u64, &u32)| {
            **deliveries > 1 && Plan::of(**number).fate != Fate::Abandon
        };
        json!({
            "accepted": self.accepted.len(),
            "delivered": self.delivered.len(),
            "deliveredOver": self.delivered_over().to_json(),
            "deliveredAgain": self.delivered.iter().filter(again).count(),
            "confirmedOverHttps": self.confirmed.len(),
            "feedback": causes,
            "noFeedbackOwed": self.accepted.iter().filter(untold).count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::plan::POLLER;
    use fieldpost_model::Ack;

    /// The first message with such a fate and ack, and a book in which it and all before are sent.
    fn sent(fate: Fate, ack: Ack) -> (Book, u64, Plan) {
        let mut book = Book::default();
        loop {
            let number = book.send();
            let plan = Plan::of(number);
            if plan.fate == fate && plan.ack == ack {
                book.accept(number);
                return (book, number, plan);
            }
        }
    }

    fn deliver(book: &mut Book, number: u64, plan: &Plan) {
        book.deliver(&plan.device, plan.body(number).as_bytes());
    }

    #[test]
    fn an_auditor_notices_what_is_missing() {
        let (mut book, number, plan) = sent(Fate::Reject, Ack::Full);
        let (none, one) = (BTreeSet::new(), BTreeSet::from([number]));
        assert_eq!(book.owed(), (&one, &one));
        deliver(&mut book, number, &plan);
        assert_eq!(book.owed(), (&none, &one));
        book.tell(number, FeedbackStatus::Rejected);
        book.tell(number, FeedbackStatus::Rejected);
        assert_eq!(book.owed(), (&none, &none));
        // That it was accepted may be heard after all that.
        book.accept(number);
        assert_eq!(book.owed(), (&none, &none));
        assert_eq!(book.wrong(), None);
        book.check_told().unwrap();
        let record = &book.counts()["feedback"]["Rejected"];
        assert_eq!(*record, json!({"messages": 1, "records": 2}));
    }

    #[test]
    fn an_auditor_notices_feedback_that_is_not_owed_or_not_true() {
        let check = |fate, ack, statuses: &[FeedbackStatus], is_right| {
            let (mut book, number, plan) = sent(fate, ack);
            deliver(&mut book, number, &plan);
            for status in statuses {
                book.tell(number, *status);
            }
            let found = book.wrong().is_none() && book.check_told().is_ok();
            assert_eq!(found, is_right, "{fate:?} {ack:?} {statuses:?}");
        };
        use FeedbackStatus::{DeliveryCountExceeded, Expired, Purged, Rejected, Success};
        check(Fate::Complete, Ack::Positive, &[Success], true);
        check(Fate::Complete, Ack::Negative, &[Success], false);
        check(Fate::Complete, Ack::None, &[Success], false);
        check(Fate::Reject, Ack::Full, &[Success], false);
        check(Fate::Reject, Ack::Positive, &[Rejected], false);
        // Delivered only once.
        check(Fate::Abandon, Ack::Full, &[DeliveryCountExceeded], false);
        check(Fate::Purge, Ack::Negative, &[Purged], true);
        check(Fate::Purge, Ack::Negative, &[Expired], false);
        check(Fate::Hurry, Ack::Full, &[Expired], true);
        check(Fate::Hurry, Ack::Full, &[Success, Expired], false);
    }

    #[test]
    fn an_auditor_notices_success_without_a_delivery_and_what_comes_back_or_astray() {
        let (mut book, number, _) = sent(Fate::Complete, Ack::Full);
        book.tell(number, FeedbackStatus::Success);
        assert!(book.wrong().is_none() && book.check_told().is_err());

        let (mut book, number, plan) = sent(Fate::Complete, Ack::Full);
        book.confirm(number, "completed");
        deliver(&mut book, number, &plan);
        assert!(book.wrong().is_some(), "it came back");

        let (mut book, number, plan) = sent(Fate::Complete, Ack::Full);
        assert_ne!(plan.device, POLLER);
        book.deliver(POLLER, plan.body(number).as_bytes());
        assert!(book.wrong().is_some(), "it went astray");

        let (mut book, number, _) = sent(Fate::Complete, Ack::Full);
        let next = Plan::of(number + 1);
        deliver(&mut book, number + 1, &next);
        assert!(book.wrong().is_some(), "nobody sent it");
    }
}
