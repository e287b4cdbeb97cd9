//! What a client publishes, and what the hub makes of it.

use fieldpost_hub::c2d::Settlement;
use fieldpost_hub::ingest::{MessageRefused, Sender};
use fieldpost_model::{DeviceMessage, Identity};
use fieldpost_mqtt::Publish;

use super::ending::Ending;
use crate::dialect::mqtt::{DeliveryName, Marks, Topic, decode};

/// What became of it.
pub(super) enum Published<'a> {
    /// It is a message, and the hub has taken it.
    Accepted,
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
                // There is no negative PUBACK.
                Err(refused @ (MessageRefused::Throttled(_) | MessageRefused::QuotaExceeded)) => {
                    Err(Ending::NotTaken(refused))
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
