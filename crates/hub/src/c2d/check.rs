//! Whether a message can be taken at all.

use fieldpost_model::limits::{C2D_EXPIRY_MAX, C2D_MESSAGE_BYTES_MAX};
use fieldpost_model::{CloudMessage, Identity, Timestamp};

use super::SendRefused;
use super::wall::Reading;

/// The longest MQTT topic (MQTT 3.1.1, 1.5.3: a string has at most 65,535 bytes).
const TOPIC_BYTES_MAX: usize = 65_535;

/// What stands in the topic besides percent-encoded texts: fixed words, names of system
/// properties, an expiry and an acknowledgement, all with their separators. An upper bound.
const TOPIC_FIXED_BYTES: usize = 256;

/// The longest head of an HTTP answer: what .NET's client takes unless told otherwise (.NET,
/// `HttpClientHandler.MaxResponseHeadersLength`). Node's takes a quarter of it by default, which is no
/// reason to refuse what a device can have over MQTT.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What stands in the head besides texts: the status, and the names of all headers but those of
/// application properties, with times, numbers and the lock. An upper bound.
const HEAD_FIXED_BYTES: usize = 1024;

/// What an application property adds to its name and value in the head: a prefix, a colon, a blank
/// and the end of the line.
const HEADER_BYTES: usize = 15;

/// Checks a message, and says when it expires.
pub(super) fn check(
    message: &CloudMessage<'_>,
    target: &Identity,
    now: Reading,
    default_ttl: std::time::Duration,
) -> Result<Timestamp, SendRefused> {
    let size = message.metered_size();
    if size > C2D_MESSAGE_BYTES_MAX {
        return Err(SendRefused::TooLarge {
            size,
            max: C2D_MESSAGE_BYTES_MAX,
        });
    }
    let expires = match message.expires {
        None => now.latest.saturating_add(default_ttl),
        // While the hub's own clock is doubted, a sender's may be right by either time.
        Some(expires)
            if expires <= now.earliest || expires > now.latest.saturating_add(C2D_EXPIRY_MAX) =>
        {
            return Err(SendRefused::InvalidExpiry);
        }
        Some(expires) => expires,
    };
    can_be_delivered(message, target)?;
    Ok(expires)
}

/// Refuses what could never be delivered over some protocol: better its sender hears of it now.
fn can_be_delivered(message: &CloudMessage<'_>, target: &Identity) -> Result<(), SendRefused> {
    let undeliverable = |what: &str| {
        Err(SendRefused::Undeliverable {
            what: what.to_owned(),
        })
    };
    let texts = [
        Some(&message.to),
        message.message_id.as_ref(),
        message.correlation_id.as_ref(),
        message.content_type.as_ref(),
        message.content_encoding.as_ref(),
        message.creation_time.as_ref(),
        message.message_schema.as_ref(),
    ];
    let mut topic_bytes = TOPIC_FIXED_BYTES
        + target.device.as_str().len()
        + target
            .module
            .as_ref()
            .map_or(0, |module| module.as_str().len());
    let mut head_bytes = HEAD_FIXED_BYTES;
    for text in texts.into_iter().flatten() {
        if has_control(text) {
            return undeliverable("a system property holds a control character");
        }
        topic_bytes += encoded_bytes(text.as_bytes());
        head_bytes += printed_bytes(text);
    }
    if let Some(user_id) = message.user_id.as_deref() {
        // Bytes that are no text are written as a replacement character each time.
        let user_id = String::from_utf8_lossy(user_id);
        topic_bytes += encoded_bytes(user_id.as_bytes());
        head_bytes += printed_bytes(&user_id);
    }
    for (name, value) in message.properties.iter() {
        let value = value.unwrap_or_default();
        if name.is_empty() {
            return undeliverable("a property has no name");
        }
        if has_control(name) || has_control(value) {
            return undeliverable("an application property holds a control character");
        }
        // With an ampersand and an equals sign.
        topic_bytes += 2 + encoded_bytes(name.as_bytes()) + encoded_bytes(value.as_bytes());
        // A name is percent-encoded, a value where it must be.
        head_bytes += HEADER_BYTES + encoded_bytes(name.as_bytes()) + printed_bytes(value);
    }
    if topic_bytes > TOPIC_BYTES_MAX {
        return undeliverable(
            "its properties do not fit an MQTT topic once they are percent-encoded",
        );
    }
    if head_bytes > HEAD_BYTES_MAX {
        return undeliverable("its properties do not fit the head of an HTTP answer");
    }
    Ok(())
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// Bytes of a text in a property bag, where everything but unreserved characters takes three.
fn encoded_bytes(text: &[u8]) -> usize {
    let unreserved = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let plain = text.iter().filter(|byte| unreserved(byte)).count();
    plain + 3 * (text.len() - plain)
}

/// Bytes of a text in a header's value, where everything but printable ASCII takes three, and the
/// escape sign and blanks may. An upper bound.
fn printed_bytes(text: &str) -> usize {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%';
    let blanks = text.len() - text.trim_matches(' ').len();
    let within = text.bytes().filter(|byte| *byte == b' ').count();
    let plain = text.as_bytes().iter().filter(|byte| is_plain(byte)).count();
    // At the ends a blank would be lost, and then all are encoded.
    let plain = plain + if blanks == 0 { within } else { 0 };
    plain + 3 * (text.len() - plain)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_can_be_sent_and_what_not() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let hour = Duration::from_secs(3600);
        let target = Identity::of_device("d".parse().unwrap());
        let verdict = |change: &dyn Fn(&mut CloudMessage<'_>)| {
            let mut message = CloudMessage::default();
            change(&mut message);
            check(&message, &target, Reading::certain(now), hour)
        };
        let is_undeliverable = |change: &dyn Fn(&mut CloudMessage<'_>)| {
            matches!(verdict(change), Err(SendRefused::Undeliverable { .. }))
        };
        assert_eq!(verdict(&|_| {}).unwrap(), now.saturating_add(hour));

        let half_minute = now.saturating_add(Duration::from_secs(30));
        assert_eq!(
            verdict(&|m| m.expires = Some(half_minute)).unwrap(),
            half_minute
        );
        let last = now.saturating_add(C2D_EXPIRY_MAX);
        assert_eq!(verdict(&|m| m.expires = Some(last)).unwrap(), last);
        for wrong in [
            now,
            now.saturating_sub(hour),
            last.saturating_add(Duration::from_millis(1)),
        ] {
            let refused = verdict(&|m| m.expires = Some(wrong));
            assert!(matches!(refused, Err(SendRefused::InvalidExpiry)));
        }

        let bytes = |count: usize| vec![7; count].into();
        assert!(verdict(&|m| m.body = bytes(65_536)).is_ok());
        let refused = verdict(&|m| m.body = bytes(65_537));
        assert!(matches!(
            refused,
            Err(SendRefused::TooLarge {
                size: 65_537,
                max: 65_536
            })
        ));

        let set = |m: &mut CloudMessage<'_>, name: &str, value: &str| {
            m.properties
                .set(name.to_owned().into(), Some(value.to_owned().into()));
        };
        assert!(verdict(&|m| set(m, "\u{65e5}", "\u{1f680}")).is_ok());
        assert!(is_undeliverable(&|m| set(m, "a\n", "b")));
        assert!(is_undeliverable(&|m| set(m, "a", "b\0")));
        assert!(is_undeliverable(&|m| set(m, "", "b")));
        assert!(is_undeliverable(&|m| m.message_id = Some("\u{7f}".into())));
        // Within 64 KB as it is, beyond a topic once it is encoded.
        assert!(verdict(&|m| set(m, "a", &"b".repeat(60_000))).is_ok());
        assert!(is_undeliverable(&|m| set(m, "a", &"/".repeat(22_000))));
        // A header is longer than what the same property takes in a topic.
        let many = |m: &mut CloudMessage<'_>, count: usize| {
            (0..count).for_each(|n| set(m, &format!("p{n:04}"), "v"));
        };
        assert!(verdict(&|m| many(m, 3_000)).is_ok());
        assert!(is_undeliverable(&|m| many(m, 3_100)));
        // Each byte that is no text becomes three, of three each.
        let of_no_text = |count: usize| Some(vec![0xff; count].into());
        assert!(verdict(&|m| m.user_id = of_no_text(7_000)).is_ok());
        assert!(is_undeliverable(&|m| m.user_id = of_no_text(7_300)));
    }

    #[test]
    fn an_expiry_that_is_right_by_one_of_two_times_is_taken() {
        let hour = Duration::from_secs(3600);
        let target = Identity::of_device("d".parse().unwrap());
        let earliest = Timestamp::from_millis(1_800_000_000_000);
        let latest = earliest.saturating_add(hour);
        let check = |expires: Option<Timestamp>, expected: Option<Timestamp>| {
            let message = CloudMessage {
                expires,
                ..CloudMessage::default()
            };
            let now = Reading { earliest, latest };
            let found = check(&message, &target, now, 2 * hour);
            assert_eq!(found.ok(), expected, "{expires:?}");
        };
        check(None, Some(latest.saturating_add(2 * hour)));
        let soon = earliest.saturating_add(Duration::from_millis(1));
        check(Some(soon), Some(soon));
        check(Some(earliest), None);
        let last = latest.saturating_add(C2D_EXPIRY_MAX);
        check(Some(last), Some(last));
        check(Some(last.saturating_add(Duration::from_millis(1))), None);
    }

    #[test]
    fn texts_in_headers_take_as_much_at_most() {
        let check = |text: &str, bytes: usize| assert_eq!(printed_bytes(text), bytes, "{text:?}");
        check("", 0);
        check("a b", 3);
        check(" a b", 8);
        check("50%", 5);
        check("\u{e9}", 6);
    }
}
