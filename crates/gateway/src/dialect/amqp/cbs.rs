//! Claims-based security: requests to put a token, and the answers.

use std::borrow::Cow;

use bytes::BytesMut;
use fieldpost_amqp::message::{
    Body, Message, Properties, put_map, put_properties, put_value, section,
};
use fieldpost_amqp::value::ValueRef;

use super::error::Status;

/// The token of a put-token request, or the status that refuses the request.
pub(crate) fn token<'a>(message: &Message<'a>) -> Result<Cow<'a, str>, Status> {
    let operation = message
        .application_properties
        .and_then(|map| map.get("operation").ok()?)
        .and_then(|value| value.as_str());
    if !operation.is_some_and(|operation| operation.eq_ignore_ascii_case("put-token")) {
        return Err(Status::bad_request("the operation must be put-token"));
    }
    // The type and the name are not looked at: clients spell both in many ways, and what counts is
    // what the token itself says.
    let text = match message.body {
        Body::Value(ValueRef::String(text) | ValueRef::Symbol(text)) => Cow::Borrowed(text),
        Body::Value(ValueRef::Binary(bytes)) => String::from_utf8_lossy(bytes),
        Body::Data => match message.joined_data() {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
        },
        _ => {
            return Err(Status::bad_request(
                "the body must be the token, as a string",
            ));
        }
    };
    Ok(text)
}

/// The name under which a token is put; a token put under the same name later replaces it.
pub(crate) fn name<'a>(message: &Message<'a>) -> Option<&'a str> {
    let map = message.application_properties?;
    map.get("name").ok()??.as_str()
}

/// Longest message id, in bytes, that is given back. Answers wait until their client takes them,
/// and the id is the one part of them whose size the client chooses.
const ID_BYTES_MAX: usize = 512;

/// The values that tell whom to answer: what the reply's correlation id is, and the address of the
/// link that it is wanted on. What is no message id by its type or size is not given back.
pub(crate) fn correlation<'a>(message: &Message<'a>) -> (Option<ValueRef<'a>>, Option<&'a str>) {
    let properties = message.properties().unwrap_or_default();
    let id = properties.message_id.or(properties.correlation_id);
    let id = id.filter(|id| match id {
        ValueRef::List(_) | ValueRef::Map(_) | ValueRef::Array(_) | ValueRef::Described(_) => false,
        scalar => scalar.as_bytes().map_or(0, <[u8]>::len) <= ID_BYTES_MAX,
    });
    (id, properties.reply_to.and_then(|value| value.as_str()))
}

/// Appends the answer to a put-token request.
///
/// The correlation id keeps the type that the request's message id had; clients look their request
/// up by value and type. There is no error condition: with one, the Python client loses the text.
pub(crate) fn put_reply(out: &mut BytesMut, correlation_id: Option<ValueRef<'_>>, status: &Status) {
    put_properties(
        out,
        &Properties {
            correlation_id,
            ..Properties::default()
        },
    );
    put_map(out, section::APPLICATION_PROPERTIES, |e| {
        e.string("status-code");
        e.int(status.code);
        e.string("status-description");
        e.string(&status.description);
    });
    put_value(out, |value| value.null());
}

#[cfg(test)]
mod tests {
    use fieldpost_amqp::message::put_data;
    use fieldpost_amqp::{Decoder, Encoder};

    use super::*;

    fn request(operation: &str, body: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        put_properties(
            &mut out,
            &Properties {
                message_id: Some(ValueRef::ULong(0)),
                reply_to: Some(ValueRef::String("cbs")),
                ..Properties::default()
            },
        );
        put_map(&mut out, section::APPLICATION_PROPERTIES, |e| {
            e.string("operation");
            e.string(operation);
            e.string("name");
            e.string("sb://localhost/hub");
        });
        body(&mut out);
        out
    }

    #[test]
    fn a_token_is_taken_from_each_form_of_body() {
        let check = |body: &dyn Fn(&mut BytesMut), expected: Result<&str, i32>| {
            let bytes = request("put-token", body);
            let message = Message::parse(&bytes).unwrap();
            let read = token(&message).map_err(|status| status.code);
            assert_eq!(read.as_deref().map_err(|code| *code), expected);
            assert_eq!(name(&message), Some("sb://localhost/hub"));
        };
        check(&|out| put_value(out, |e| e.string("t")), Ok("t"));
        check(&|out| put_value(out, |e| e.symbol("t")), Ok("t"));
        check(&|out| put_value(out, |e| e.binary(b"t")), Ok("t"));
        check(&|out| put_data(out, b"t"), Ok("t"));
        check(
            &|out| {
                put_data(out, b"to");
                put_data(out, b"k");
                put_data(out, b"en");
            },
            Ok("token"),
        );
        check(&|out| put_value(out, |e| e.int(7)), Err(400));
        check(&|_| {}, Err(400));
    }

    #[test]
    fn other_operations_are_refused() {
        let bytes = request("delete-token", |out| put_value(out, |e| e.string("t")));
        let refused = token(&Message::parse(&bytes).unwrap());
        assert_eq!(refused.map_err(|status| status.code), Err(400));
    }

    #[test]
    fn only_what_can_be_a_message_id_is_given_back() {
        let check = |id: ValueRef<'_>, given_back: bool| {
            let mut bytes = BytesMut::new();
            let properties = Properties {
                message_id: Some(id),
                ..Properties::default()
            };
            put_properties(&mut bytes, &properties);
            let (read, _) = correlation(&Message::parse(&bytes).unwrap());
            assert_eq!(read, given_back.then_some(id));
        };
        let long = "x".repeat(ID_BYTES_MAX + 1);
        check(ValueRef::Uuid([7; 16]), true);
        check(ValueRef::Int(-1), true);
        check(ValueRef::String(&long[1..]), true);
        check(ValueRef::String(&long), false);
        check(ValueRef::Binary(long.as_bytes()), false);
        let mut list = BytesMut::new();
        Encoder::new(&mut list).list(|e| e.string(&long));
        check(Decoder::new(&list).value().unwrap(), false);
    }

    #[test]
    fn the_answer_to_a_numeric_message_id_of_zero_is_what_the_c_client_expects() {
        let bytes = request("put-token", |out| put_value(out, |e| e.string("t")));
        let (id, reply_to) = correlation(&Message::parse(&bytes).unwrap());
        assert_eq!((id, reply_to), (Some(ValueRef::ULong(0)), Some("cbs")));
        let mut reply = BytesMut::new();
        put_reply(&mut reply, id, &Status::ok());
        let mut expected = b"\x00\x53\x73\xc0\x07\x06\x40\x40\x40\x40\x40\x44".to_vec();
        expected.extend_from_slice(b"\x00\x53\x74\xc1\x2b\x04\xa1\x0bstatus-code");
        expected.extend_from_slice(b"\x71\x00\x00\x00\xc8\xa1\x12status-description\xa1\x02OK");
        expected.extend_from_slice(b"\x00\x53\x77\x40");
        assert_eq!(reply[..], expected);
    }
}
