//! Whether a message can be taken at all.

use fieldpost_model::limits::{C2D_EXPIRY_MAX, C2D_MESSAGE_BYTES_MAX};
use fieldpost_model::{CloudMessage, Identity, Timestamp};

use super::SendRefused;

/// The longest MQTT topic (MQTT 3.1.1, 1.5.3: a string has at most 65,535 bytes).
const TOPIC_BYTES_MAX: usize = 65_535;

/// What stands in the topic besides percent-encoded texts: fixed words, names of system
/// properties, an expiry and an acknowledgement, all with their separators. An upper bound.
const TOPIC_FIXED_BYTES: usize = 256;

/// Checks a message, and says when it expires.
pub(super) fn check(
    message: &CloudMessage<'_>,
    target: &Identity,
    now: Timestamp,
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
        None => now.saturating_add(default_ttl),
        Some(expires) if expires <= now || expires > now.saturating_add(C2D_EXPIRY_MAX) => {
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
    for text in texts.into_iter().flatten() {
        if has_control(text) {
            return undeliverable("a system property holds a control character");
        }
        topic_bytes += encoded_bytes(text.as_bytes());
    }
    topic_bytes += message.user_id.as_deref().map_or(0, encoded_bytes);
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
    }
    if topic_bytes > TOPIC_BYTES_MAX {
        return undeliverable(
            "its properties do not fit an MQTT topic once they are percent-encoded",
        );
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
            check(&message, &target, now, hour)
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
    }
}
