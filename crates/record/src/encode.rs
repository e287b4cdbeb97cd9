//! From an accepted message to its record.

use bytes::BytesMut;
use fieldpost_model::DeviceMessage;

use crate::envelope::{self, Envelope, SenderStamps};
use crate::sections::{Sections, To};

/// Appends the record of `message` to `out`.
///
/// Grows `out` at most once and allocates nothing else. The caller has checked the message's size;
/// anything below 4 GiB in all can be encoded.
pub fn encode(out: &mut BytesMut, envelope: &Envelope<'_>, message: &DeviceMessage<'_>) {
    let stamps = SenderStamps::of(&message.system);
    let sections = Sections {
        message_id: message.system.message_id.as_deref(),
        user_id: message.system.user_id.as_deref(),
        to: to_of(envelope, message),
        correlation_id: message.system.correlation_id.as_deref(),
        content_type: message.system.content_type.as_deref(),
        content_encoding: message.system.content_encoding.as_deref(),
        expiry: message.system.absolute_expiry_time,
        properties: &message.properties,
        body: &message.body,
    };
    out.reserve(envelope::size_max(envelope, &stamps) + sections.size_max());
    envelope::write(out, envelope, &stamps);
    sections.write(out);
}

/// What the sender wrote, else the address it sent to.
fn to_of<'a>(envelope: &Envelope<'a>, message: &'a DeviceMessage<'_>) -> To<'a> {
    match message.system.to.as_deref() {
        Some(to) => To::Given(to),
        None => To::Endpoint {
            device: envelope.device_id,
            module: envelope.module_id,
        },
    }
}
