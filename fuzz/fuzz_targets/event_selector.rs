//! Link addresses and selector filters: no text panics, and what is read has one plain spelling that
//! is read the same.
//!
//! Input: a line of the address; the rest is the selector.
#![no_main]

use fieldpost_fuzz::lines;
use fieldpost_gateway::fuzzing::{amqp_partition, amqp_selector};
use fieldpost_hub::events::StartPosition;
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

fuzz_target!(|text: &str| {
    let [address, selector] = lines(text);
    if let Some(parts) = amqp_partition(address) {
        let [entity, group, partition] = parts
            .each_ref()
            .map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC));
        let plain = format!("{entity}/ConsumerGroups/{group}/Partitions/{partition}");
        assert_eq!(amqp_partition(&plain), Some(parts.clone()), "{plain}");
        let url = format!("amqps://hub.localhost:5671/{plain}");
        assert_eq!(amqp_partition(&url), Some(parts), "{url}");
    }
    for selector in [
        selector,
        &format!("amqp.annotation.x-opt-offset > '{selector}'"),
        &format!("amqp.annotation.x-opt-enqueued-time {selector}"),
    ] {
        if let Some(position) = amqp_selector(selector) {
            let plain = spelling(position);
            assert_eq!(amqp_selector(&plain), Some(position), "{plain}");
        }
    }
});

fn spelling(position: StartPosition) -> String {
    let (name, number, inclusive) = match position {
        StartPosition::Earliest => ("offset", "-1".to_owned(), false),
        StartPosition::Latest => ("offset", "@latest".to_owned(), false),
        StartPosition::Offset { number, inclusive } => ("offset", number.to_string(), inclusive),
        StartPosition::Sequence { number, inclusive } => {
            ("sequence-number", number.to_string(), inclusive)
        }
        StartPosition::EnqueuedAfter(after) => {
            ("enqueued-time", after.as_millis().to_string(), false)
        }
    };
    let comparison = if inclusive { ">=" } else { ">" };
    format!("amqp.annotation.x-opt-{name} {comparison} '{number}'")
}
