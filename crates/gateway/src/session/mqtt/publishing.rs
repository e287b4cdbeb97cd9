//! What a client publishes, and what the hub makes of it.

use std::time::Duration;

use fieldpost_hub::c2d::Settlement;
use fieldpost_hub::ingest::{MessageRefused, Sender};
use fieldpost_model::{DeviceMessage, Identity};
use fieldpost_mqtt::Publish;

use super::ending::Ending;
use crate::dialect::mqtt::{DeliveryName, Marks, Topic, decode};

/// How long a connection lasts at least, and at most, on which a message was refused.
const REFUSING_MIN: Duration = Duration::from_secs(1);
const REFUSING_MAX: Duration = Duration::from_secs(10);

/// The hub has refused a message, and the connection will end: there is no negative PUBACK.
///
/// Not at once. Libraries come back within milliseconds and send the same again, and to hold an idle
/// connection costs less than to let one in. Meanwhile the client gets its acknowledgements of what was
/// taken before, and messages to the device; what it publishes is dropped, and it will send that again.
pub(super) struct Refusing {
    pub(super) refused: MessageRefused,
    /// When the connection ends, in monotonic time.
    pub(super) until: Duration,
}

impl Refusing {
    pub(super) fn new(refused: MessageRefused, now: Duration) -> Self {
        let pause = match &refused {
            MessageRefused::Throttled(throttled) => throttled.retry_after,
            // For the rest of the day, maybe.
            MessageRefused::QuotaExceeded | MessageRefused::TooLarge { .. } => REFUSING_MAX,
        };
        Self {
            refused,
            until: now.saturating_add(pause.clamp(REFUSING_MIN, REFUSING_MAX)),
        }
    }
}

/// What became of it.
pub(super) enum Published<'a> {
    /// It is a message, and the hub has taken it.
    Accepted,
    /// It is a message, and the hub does not take it now.
    Refused(MessageRefused),
    /// It is a request about the twin, of that id.
    TwinRequest(String),
    /// It settles a message to the device.
    Verdict(Settlement, DeliveryName<'a>),
    /// It means nothing here.
    Ignored,
}

/// Does with a PUBLISH what its topic asks for.
///
/// # Errors
/// The end of the connection: MQTT 3.1.1 has no other way to say no.
pub(super) fn publish_to_hub<'a>(
    identity: &Identity,
    sender: &mut Sender,
    publish: &Publish<'a>,
) -> Result<Published<'a>, Ending> {
    match Topic::parse(identity, publish.topic).ok_or(Ending::ForeignTopic)? {
        Topic::Events { bag } => {
            let marks = Marks {
                from_module: identity.module.is_some(),
                retain: publish.retain,
                will: false,
            };
            let message: DeviceMessage<'_> = decode(bag, publish.payload, marks);
            match sender.accept(&message) {
                Ok(()) => Ok(Published::Accepted),
                Err(refused @ (MessageRefused::Throttled(_) | MessageRefused::QuotaExceeded)) => {
                    Ok(Published::Refused(refused))
                }
                Err(MessageRefused::TooLarge { size, max }) => {
                    Err(Ending::MessageTooLarge { size, max })
                }
            }
        }
        Topic::Twin(request) => Ok(Published::TwinRequest(request.request_id.to_owned())),
        Topic::Settle {
            settlement,
            delivery,
        } => Ok(Published::Verdict(settlement, delivery)),
        // Nobody calls methods yet, so this answers nothing; late answers are ignored anyway.
        Topic::MethodResponse => Ok(Published::Ignored),
    }
}
