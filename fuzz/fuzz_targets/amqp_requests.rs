//! Requests to `$cbs` and `$management`, and attaches of receivers: no bytes panic, and every request
//! gets an answer that clients can read.
#![no_main]

use fieldpost_amqp::message::Message;
use fieldpost_amqp::performative::Performative;
use fieldpost_amqp::value::ValueRef;
use fieldpost_gateway::fuzzing::{amqp_answers, amqp_receiver};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok((Performative::Attach(attach), _)) = Performative::decode(input)
        && let Some((_, Some(owner_level))) = amqp_receiver(&attach)
    {
        assert!(owner_level >= 0);
    }
    let Ok(request) = Message::parse(input) else {
        return;
    };
    let asked = request.properties().unwrap_or_default();
    // What no client uses as an id is not given back.
    let expected = asked
        .message_id
        .or(asked.correlation_id)
        .filter(|id| match id {
            ValueRef::List(_) | ValueRef::Map(_) | ValueRef::Array(_) | ValueRef::Described(_) => {
                false
            }
            id => id.as_bytes().is_none_or(|bytes| bytes.len() <= 512),
        });
    for answer in amqp_answers(&request) {
        let answer = Message::parse(&answer).expect("what we write is valid");
        let properties = answer.properties().expect("what we write is valid");
        // Clients find their request by value and type. By text: a NaN is not equal to itself.
        assert_eq!(
            format!("{:?}", properties.correlation_id),
            format!("{expected:?}")
        );
        let status = answer.application_properties.expect("a status");
        let code = status.get("status-code").expect("what we write is valid");
        assert!(code.is_some_and(|code| code.as_i64().is_some()));
    }
});
