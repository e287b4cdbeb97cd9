//! Where clients are sent that look for events under the hub's own address.
//!
//! Tools that hold an IoT Hub connection string attach to `messages/events/…` and take the Event
//! Hubs endpoint from the refusal. Some read the entity from between `5671/` and `/$management` in
//! the address and connect to the host on the default port, so that the port is written out
//! everywhere, and is always that one.

use fieldpost_amqp::{Error, Map, condition};

/// The port of AMQP over TLS (IANA `amqps`), which is also the one that clients of Event Hubs use.
const PORT: i32 = 5671;

/// Longest host name that is given back to the client that wrote it (RFC 1035).
const HOST_BYTES_MAX: usize = 255;

/// Longest rest of an address that is given back.
const BELOW_BYTES_MAX: usize = 512;

/// Sends a client on to the Event Hubs endpoint: the address that it wanted, below `entity` of
/// `host`. `None` when what it wanted is too long to be anything.
pub(crate) fn to_events(host: &str, entity: &str, below: &str) -> Option<Error> {
    if host.len() > HOST_BYTES_MAX || below.len() > BELOW_BYTES_MAX {
        return None;
    }
    // An IPv6 literal is bracketed in an address only.
    let authority = if host.contains(':') {
        format!("[{host}]:{PORT}")
    } else {
        format!("{host}:{PORT}")
    };
    let separator = if below.is_empty() { "" } else { "/" };
    let address = format!("amqps://{authority}/{entity}{separator}{below}");
    let info = Map::new()
        .with("hostname", host)
        .with("network-host", host)
        .with("port", PORT)
        .with("address", address.as_str());
    let description = format!("Events are read at {address}");
    Some(Error::new(condition::LINK_REDIRECT, description).with_info(info))
}

/// The host of `host`, `host:port`, `[address]` or `[address]:port`.
pub(crate) fn without_port(authority: &str) -> &str {
    if let Some((address, _)) = authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        return address;
    }
    match authority.rsplit_once(':') {
        // A bare IPv6 address is whole.
        Some((host, _)) if !host.contains(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_amqp::Value;

    use super::*;

    #[test]
    fn the_address_says_where_what_was_wanted_is() {
        let check = |host: &str, below: &str, address: &str| {
            let error = to_events(host, "hub1", below).unwrap();
            assert_eq!(error.condition, condition::LINK_REDIRECT);
            let info = &error.info;
            assert_eq!(info.get("address"), Some(&Value::from(address)));
            assert_eq!(info.get("hostname"), Some(&Value::from(host)));
            assert_eq!(info.get("network-host"), Some(&Value::from(host)));
            // uamqp reads nothing but an int.
            assert_eq!(info.get("port"), Some(&Value::Int(5671)));
            assert!(
                info.0
                    .iter()
                    .all(|(key, _)| matches!(key, Value::Symbol(_)))
            );
        };
        check(
            "hub1.example.test",
            "$management",
            "amqps://hub1.example.test:5671/hub1/$management",
        );
        check(
            "127.0.0.1",
            "ConsumerGroups/$Default/Partitions/0",
            "amqps://127.0.0.1:5671/hub1/ConsumerGroups/$Default/Partitions/0",
        );
        check("::1", "", "amqps://[::1]:5671/hub1");
        assert!(to_events("h", "hub1", &"x".repeat(BELOW_BYTES_MAX + 1)).is_none());
        assert!(to_events(&"x".repeat(HOST_BYTES_MAX + 1), "hub1", "").is_none());
    }

    #[test]
    fn ports_are_cut_off() {
        let check = |authority: &str, host: &str| {
            assert_eq!(without_port(authority), host, "{authority}");
        };
        check("hub1.example.test", "hub1.example.test");
        check("hub1.example.test:443", "hub1.example.test");
        check("[::1]:5671", "::1");
        check("[::1]", "::1");
        check("::1", "::1");
        check("", "");
    }
}
