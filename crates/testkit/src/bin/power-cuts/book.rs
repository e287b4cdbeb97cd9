//! What a hub has answered, and what was asked of it.

use std::collections::{BTreeMap, BTreeSet};

use fieldpost_client::service::FeedbackStatus;
use fieldpost_testkit::ledger::Ledger;
use fieldpost_testkit::power;

/// Everything that was said so far.
#[derive(Default)]
pub(crate) struct Book {
    /// The CA certificate and the key of the policy for services, once clients have them.
    pub(crate) identity: Option<(String, String)>,
    /// The hub's settings were changed.
    pub(crate) has_settings: bool,
    /// Devices that were made and are never changed.
    pub(crate) devices: BTreeSet<String>,
    /// Devices that are changed all the time.
    pub(crate) changing: BTreeMap<String, Changing>,
    /// Telemetry that was acknowledged.
    pub(crate) telemetry: Ledger,
    /// How many messages each device sent.
    pub(crate) sent: BTreeMap<String, u64>,
    /// Devices that subscribed to their messages for good.
    pub(crate) subscribed: BTreeSet<String>,
    /// Messages to devices in the order of their sending, by device.
    pub(crate) queues: BTreeMap<String, Vec<Message>>,
    /// The device whose queue is being purged, and the messages that were accepted before.
    purging: Option<(String, BTreeSet<String>)>,
    accepted: u32,
}

/// A device that is changed all the time.
#[derive(Default)]
pub(crate) struct Changing {
    /// The state that was answered last.
    pub(crate) is: State,
    /// The state that was asked for and not answered.
    pub(crate) maybe: Option<State>,
}

/// The state of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Absent,
    /// With this reason for its status.
    Here(String),
}

/// A message to a device.
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) accepted: bool,
    pub(crate) end: End,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nobody asked for its end.
    None,
    /// Its end was asked for and not answered.
    Maybe(FeedbackStatus),
    Sure(FeedbackStatus),
}

impl power::Ledger for Book {
    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words {
            ["identity", ca, key] => self.identity = Some((ca.to_owned(), key.to_owned())),
            ["settings"] => self.has_settings = true,
            ["device", device] => drop(self.devices.insert(device.to_owned())),
            ["change?", device, state] => {
                self.changing.entry(device.to_owned()).or_default().maybe = Some(state_of(state));
            }
            ["changed", device, state] => {
                let changing = Changing {
                    is: state_of(state),
                    maybe: None,
                };
                self.changing.insert(device.to_owned(), changing);
            }
            ["telemetry?", device, count] => {
                self.sent.insert(device.to_owned(), number(count));
            }
            ["telemetry", device, last] => self.telemetry.acknowledge(device, number(last)),
            ["subscribed", device] => drop(self.subscribed.insert(device.to_owned())),
            ["send?", id, device] => {
                let is_purging = self.purging.as_ref().is_some_and(|(of, _)| of == device);
                let end = if is_purging {
                    End::Maybe(FeedbackStatus::Purged)
                } else {
                    End::None
                };
                self.queue(device).push(Message {
                    id: id.to_owned(),
                    accepted: false,
                    end,
                });
            }
            ["accepted", id, device] => {
                self.accepted += 1;
                self.message(device, id).accepted = true;
            }
            ["end?", id, device, how] => self.message(device, id).end = End::Maybe(status_of(how)),
            ["ended", id, device, how] => self.message(device, id).end = End::Sure(status_of(how)),
            ["purge?", device] => {
                let waiting = self.queue(device).iter_mut().filter(|m| !m.is_over());
                let mut accepted = BTreeSet::new();
                for message in waiting {
                    message.end = End::Maybe(FeedbackStatus::Purged);
                    if message.accepted {
                        accepted.insert(message.id.clone());
                    }
                }
                self.purging = Some((device.to_owned(), accepted));
            }
            ["purged", device] => {
                let (_, accepted) = self.purging.take().expect("it was asked for");
                for message in self.queue(device) {
                    if accepted.contains(&message.id) {
                        message.end = End::Sure(FeedbackStatus::Purged);
                    }
                }
            }
            _ => panic!("nobody says `{line}`"),
        }
    }

    fn is_rich(&self) -> bool {
        self.accepted > 50
    }
}

impl Book {
    /// Whether the hub has been told all that is told once.
    pub(crate) fn is_set_up(&self) -> bool {
        self.accepted > 0
    }

    fn queue(&mut self, device: &str) -> &mut Vec<Message> {
        self.queues.entry(device.to_owned()).or_default()
    }

    fn message(&mut self, device: &str, id: &str) -> &mut Message {
        let mut messages = self.queue(device).iter_mut().rev();
        let found = messages.find(|message| message.id == id);
        found.unwrap_or_else(|| panic!("nobody sent {id} to {device}"))
    }
}

impl Message {
    fn is_over(&self) -> bool {
        matches!(self.end, End::Sure(_))
    }
}

fn state_of(word: &str) -> State {
    match word {
        "-" => State::Absent,
        reason => State::Here(reason.to_owned()),
    }
}

/// The word for an end of a message.
pub(crate) fn word_of(status: FeedbackStatus) -> &'static str {
    match status {
        FeedbackStatus::Success => "success",
        FeedbackStatus::Rejected => "rejected",
        FeedbackStatus::Purged => "purged",
        FeedbackStatus::Expired | FeedbackStatus::DeliveryCountExceeded => {
            panic!("no message ends so here")
        }
    }
}

fn status_of(word: &str) -> FeedbackStatus {
    let all = [
        FeedbackStatus::Success,
        FeedbackStatus::Rejected,
        FeedbackStatus::Purged,
    ];
    let found = all.into_iter().find(|status| word_of(*status) == word);
    found.unwrap_or_else(|| panic!("`{word}` is no end of a message"))
}

fn number(word: &str) -> u64 {
    word.parse()
        .unwrap_or_else(|_| panic!("`{word}` is no number"))
}
