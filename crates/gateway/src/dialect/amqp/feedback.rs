//! Feedback messages in the form that service SDKs read.
//!
//! The .NET service client dereferences the user id, casts the enqueued time to a time, compares the
//! content type and makes a GUID of the delivery tag; none of them may be missing or of another type.

use bytes::BytesMut;
use fieldpost_amqp::message::{
    Header, Properties, put_data, put_header, put_map, put_properties, section,
};
use fieldpost_amqp::value::ValueRef;
use fieldpost_hub::c2d::{FeedbackMessage, LockToken};

/// Media type of a batch of feedback records (Azure IoT Hub, service endpoints).
const CONTENT_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";

/// Appends a feedback message. `failed_deliveries` is how often it was delivered and given back.
pub(crate) fn put_feedback(
    out: &mut BytesMut,
    hub: &str,
    sequence: u64,
    failed_deliveries: u32,
    message: &FeedbackMessage,
) {
    put_header(
        out,
        &Header {
            delivery_count: Some(failed_deliveries),
            ..Header::default()
        },
    );
    put_map(out, section::MESSAGE_ANNOTATIONS, |e| {
        e.symbol("iothub-enqueuedtime");
        e.timestamp(message.enqueued.as_millis());
        e.symbol("x-opt-sequence-number");
        e.ulong(sequence);
    });
    put_properties(
        out,
        &Properties {
            user_id: Some(ValueRef::Binary(hub.as_bytes())),
            content_type: Some(ValueRef::Symbol(CONTENT_TYPE)),
            ..Properties::default()
        },
    );
    put_data(out, &message.json);
}

/// The delivery tag of a locked message: the token as .NET's GUIDs lie in memory, the first three
/// groups of their text in little-endian order. So the text that a .NET client makes of the tag is
/// the token's own.
pub(crate) fn delivery_tag(lock: LockToken) -> [u8; 16] {
    let LockToken([a3, a2, a1, a0, b1, b0, c1, c0, rest @ ..]) = lock;
    let mut tag = [a0, a1, a2, a3, b0, b1, c0, c1, 0, 0, 0, 0, 0, 0, 0, 0];
    if let Some(end) = tag.last_chunk_mut() {
        *end = rest;
    }
    tag
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fieldpost_model::Timestamp;

    use super::*;

    /// What .NET's `new Guid(byte[]).ToString()` gives.
    fn guid_text(bytes: [u8; 16]) -> String {
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut text = String::new();
        for (n, at) in order.into_iter().enumerate() {
            if [4, 6, 8, 10].contains(&n) {
                text.push('-');
            }
            text += &format!("{:02x}", bytes[at]);
        }
        text
    }

    #[test]
    fn net_iot_reads_the_lock_token_from_the_tag() {
        let lock = LockToken(*b"0123456789abcdef");
        assert_eq!(guid_text(delivery_tag(lock)), lock.to_string());
    }

    #[test]
    fn a_feedback_message_has_these_bytes() {
        let message = FeedbackMessage {
            enqueued: Timestamp::from_millis(1),
            records: 1,
            json: Bytes::from_static(b"[]"),
        };
        let mut out = BytesMut::new();
        put_feedback(&mut out, "hub", 7, 2, &message);
        let mut expected = b"\x00\x53\x70\xc0\x07\x05\x40\x40\x40\x40\x52\x02".to_vec();
        expected.extend_from_slice(b"\x00\x53\x72\xc1\x38\x04");
        expected.extend_from_slice(b"\xa3\x13iothub-enqueuedtime\x83\0\0\0\0\0\0\0\x01");
        expected.extend_from_slice(b"\xa3\x15x-opt-sequence-number\x53\x07");
        expected.extend_from_slice(b"\x00\x53\x73\xc0\x3b\x07\x40\xa0\x03hub\x40\x40\x40\x40");
        expected.extend_from_slice(b"\xa3\x2eapplication/vnd.microsoft.iothub.feedback.json");
        expected.extend_from_slice(b"\x00\x53\x75\xa0\x02[]");
        assert_eq!(out[..], expected);
    }
}
