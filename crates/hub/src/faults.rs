//! Faults on demand, of a hub in test mode alone: a device asks for one by a message that Azure's own
//! end-to-end suites send, and finds out what its library makes of it.
//!
//! Such a message is telemetry like any other, stored and acknowledged. When its delay is over the fault
//! happens: a connection or link is ended, or for some time everything that the device sends is refused.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fieldpost_model::{DeviceMessage, Identity};

use crate::auth::Denial;
use crate::clock::Timer;
use crate::ingest::MessageRefused;
use crate::presence::Owners;
use crate::throttles::Throttled;

const TYPE: &str = "AzIoTHub_FaultOperationType";
const DELAY: &str = "AzIoTHub_FaultOperationDelayInSecs";
const DURATION: &str = "AzIoTHub_FaultOperationDurationInSecs";

/// The shortest delay: the acknowledgement of the message that asks must get through, or it is sent again
/// after each fault.
const DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest delay and duration.
const TIME_MAX: Duration = Duration::from_secs(3600);

/// How long a state lasts when the message does not say; what the suites ask for.
const DURATION_DEFAULT: Duration = Duration::from_secs(5);

/// Faults that wait for their time, at most. Further ones do not happen.
const WAITING_MAX: usize = 1024;

/// What happens to a device's connection. Those that end a link or a session of AMQP mean nothing to a
/// connection of another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The connection is cut without a word.
    KillTcp,
    /// The AMQP connection is closed with an error.
    KillConnection,
    /// The device's AMQP session is ended with an error.
    KillSession,
    /// The link to `$cbs` is detached on which requests come.
    KillCbsRequestLink,
    /// The link from `$cbs` is detached on which answers go.
    KillCbsResponseLink,
    /// The link on which telemetry comes is detached.
    KillTelemetryLink,
    /// The link on which messages to the device go is detached.
    KillDeviceBoundLink,
    /// The connection is closed in good order.
    ShutDown,
    /// The credential is good no longer, for some time.
    AuthError,
}

/// Their order is that of their codes in a connection's cell.
pub(crate) const FAULTS: [Fault; 9] = [
    Fault::KillTcp,
    Fault::KillConnection,
    Fault::KillSession,
    Fault::KillCbsRequestLink,
    Fault::KillCbsResponseLink,
    Fault::KillTelemetryLink,
    Fault::KillDeviceBoundLink,
    Fault::ShutDown,
    Fault::AuthError,
];

/// What is refused for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Throttled,
    OverQuota,
    Unauthorized,
}

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    fault: Option<Fault>,
    state: Option<State>,
    delay: Duration,
    duration: Duration,
}

/// Faults of the hub's devices.
pub(crate) struct Faults {
    owners: Owners,
    timer: Arc<dyn Timer>,
    /// Until when what is refused to whom. Nothing else is taken while it is held.
    states: Mutex<HashMap<Identity, Vec<(Duration, State)>>>,
    waiting: AtomicUsize,
}

impl Faults {
    pub(crate) fn new(owners: Owners, timer: Arc<dyn Timer>) -> Self {
        Self {
            owners,
            timer,
            states: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Has happen what messages of a device ask for.
    pub(crate) fn look(self: &Arc<Self>, identity: &Identity, messages: &[DeviceMessage<'_>]) {
        for order in messages.iter().filter_map(Order::of) {
            if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!("too many faults wait for their time; one more does not happen");
                continue;
            }
            tracing::info!(device_id = %identity, ?order, "a fault was asked for");
            let (faults, identity) = (Arc::clone(self), identity.clone());
            let due = self.timer.monotonic().saturating_add(order.delay);
            tokio::spawn(async move {
                faults.timer.sleep_until(due).await;
                faults.waiting.fetch_sub(1, Ordering::Relaxed);
                faults.happen(identity, order).await;
            });
        }
    }

    /// Why nothing is taken from a device at the moment, if so.
    pub(crate) fn refusal(&self, identity: &Identity) -> Option<MessageRefused> {
        let now = self.timer.monotonic();
        self.states_of(identity)
            .find_map(|(until, state)| match state {
                State::Throttled => Some(MessageRefused::Throttled(Throttled {
                    is_backlog_full: false,
                    retry_after: until.saturating_sub(now),
                })),
                State::OverQuota => Some(MessageRefused::QuotaExceeded),
                State::Unauthorized => None,
            })
    }

    /// Why a device is not let in at the moment, if so.
    pub(crate) fn denial(&self, identity: &Identity) -> Option<Denial> {
        self.states_of(identity)
            .any(|(_, state)| state == State::Unauthorized)
            .then_some(Denial::OnDemand)
    }

    async fn happen(&self, identity: Identity, order: Order) {
        tracing::info!(device_id = %identity, fault = ?order.fault, "a fault happens");
        if let Some(state) = order.state {
            let until = self.timer.monotonic().saturating_add(order.duration);
            self.lock()
                .entry(identity.clone())
                .or_default()
                .push((until, state));
        }
        if let Some(fault) = order.fault {
            self.owners.disturb(identity, fault).await;
        }
    }

    fn states_of(&self, identity: &Identity) -> impl Iterator<Item = (Duration, State)> + use<> {
        let now = self.timer.monotonic();
        let mut all = self.lock();
        let states = all.get_mut(identity).map(|states| {
            states.retain(|(until, _)| *until > now);
            states.clone()
        });
        if states.as_ref().is_some_and(Vec::is_empty) {
            all.remove(identity);
        }
        drop(all);
        states.unwrap_or_default().into_iter()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Vec<(Duration, State)>>> {
        // Nothing under the lock panics half way through a change.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order {
    /// What a message asks for. A fault that the hub does not know, and one of what it does not serve,
    /// does not happen.
    fn of(message: &DeviceMessage<'_>) -> Option<Self> {
        let property = |name: &str| {
            let mut all = message.properties.iter();
            let found = all.find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.and_then(|(_, value)| value)
        };
        let seconds = |name: &str| {
            // .NET may write a fraction.
            let seconds: f64 = property(name)?.trim().parse().ok()?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        let (fault, state) = match property(TYPE)?.to_ascii_lowercase().as_str() {
            "killtcp" => (Some(Fault::KillTcp), None),
            "killamqpconnection" => (Some(Fault::KillConnection), None),
            "killamqpsession" => (Some(Fault::KillSession), None),
            "killamqpcbslinkreq" => (Some(Fault::KillCbsRequestLink), None),
            "killamqpcbslinkresp" => (Some(Fault::KillCbsResponseLink), None),
            "killamqpd2clink" => (Some(Fault::KillTelemetryLink), None),
            "killamqpc2dlink" => (Some(Fault::KillDeviceBoundLink), None),
            "shutdownamqp" | "shutdownmqtt" => (Some(Fault::ShutDown), None),
            "invokethrottling" => (None, Some(State::Throttled)),
            "invokemaxmessagequota" => (None, Some(State::OverQuota)),
            "invokeautherror" => (Some(Fault::AuthError), Some(State::Unauthorized)),
            other => {
                tracing::info!(fault = %other.chars().take(64).collect::<String>(), "an unknown fault was asked for");
                return None;
            }
        };
        Some(Self {
            fault,
            state,
            delay: seconds(DELAY)
                .unwrap_or_default()
                .clamp(DELAY_MIN, TIME_MAX),
            duration: seconds(DURATION).unwrap_or(DURATION_DEFAULT).min(TIME_MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_the_suites_write_them() {
        let check = |properties: &[(&str, &str)], expected: Option<Order>| {
            let mut message = DeviceMessage::default();
            for (name, value) in properties {
                let (name, value) = ((*name).to_owned(), (*value).to_owned());
                message.properties.set(name.into(), Some(value.into()));
            }
            assert_eq!(Order::of(&message), expected, "{properties:?}");
        };
        let order = |fault, state, delay: u64, duration: u64| {
            Some(Order {
                fault,
                state,
                delay: Duration::from_secs(delay),
                duration: Duration::from_secs(duration),
            })
        };
        check(&[("other", "KillTcp")], None);
        check(&[(TYPE, "KillNothing")], None);
        let reason = ("AzIoTHub_FaultOperationCloseReason", "boom");
        check(
            &[(TYPE, "KillTcp"), reason, (DELAY, "2")],
            order(Some(Fault::KillTcp), None, 2, 5),
        );
        check(
            &[(TYPE, "InvokeThrottling"), (DELAY, "0"), (DURATION, "20")],
            order(None, Some(State::Throttled), 1, 20),
        );
        check(
            &[
                ("aziothub_faultoperationtype", "INVOKEAUTHERROR"),
                (DELAY, "x"),
                (DURATION, "-1"),
            ],
            order(Some(Fault::AuthError), Some(State::Unauthorized), 1, 5),
        );
        check(
            &[(TYPE, "ShutDownMqtt"), (DELAY, "1e9"), (DURATION, "NaN")],
            order(Some(Fault::ShutDown), None, 3600, 5),
        );
    }
}
