//! Values and performatives: what is written is read back, and hostile bytes are refused.

use std::sync::Arc;

use bytes::BytesMut;
use fieldpost_amqp::message::{Message, Sections};
use fieldpost_amqp::performative::{
    Attach, Begin, Close, DeliveryState, DeliveryTag, Detach, Disposition, End, Flow, Modified,
    Open, Performative, RcvSettleMode, Received, Role, SndSettleMode, Source, Target, Transfer,
};
use fieldpost_amqp::sasl::{SaslFrame, SaslInit, Secret};
use fieldpost_amqp::value::{Array, Described, Descriptor};
use fieldpost_amqp::{DecodeError, Decoder, Encoder, Error, Map, Symbol, Value, ValueRef};
use proptest::option::of;
use proptest::prelude::*;

fn encode(value: &Value) -> BytesMut {
    let mut buffer = BytesMut::new();
    Encoder::new(&mut buffer).value(value);
    buffer
}

fn decode(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.value()?.to_value()?;
    assert!(decoder.is_empty(), "bytes are left");
    Ok(value)
}

#[test]
fn bytes_of_values() {
    let check = |value: Value, bytes: &[u8]| {
        assert_eq!(encode(&value), bytes, "{value:?}");
        assert_eq!(decode(bytes), Ok(value));
    };
    check(Value::Null, b"\x40");
    check(Value::Bool(true), b"\x41");
    check(Value::Bool(false), b"\x42");
    check(Value::UByte(7), b"\x50\x07");
    check(Value::UShort(0x1387), b"\x60\x13\x87");
    check(Value::UInt(0), b"\x43");
    check(Value::UInt(255), b"\x52\xff");
    check(Value::UInt(256), b"\x70\x00\x00\x01\x00");
    check(Value::ULong(0), b"\x44");
    check(Value::ULong(5), b"\x53\x05");
    check(Value::ULong(256), b"\x80\x00\x00\x00\x00\x00\x00\x01\x00");
    check(Value::Byte(-1), b"\x51\xff");
    check(Value::Short(-2), b"\x61\xff\xfe");
    check(Value::Int(-128), b"\x54\x80");
    check(Value::Int(200), b"\x71\x00\x00\x00\xc8");
    check(Value::Long(5), b"\x55\x05");
    check(Value::Long(-129), b"\x81\xff\xff\xff\xff\xff\xff\xff\x7f");
    check(Value::Float(1.5), b"\x72\x3f\xc0\x00\x00");
    check(Value::Double(-2.0), b"\x82\xc0\x00\x00\x00\x00\x00\x00\x00");
    check(Value::Char('é'), b"\x73\x00\x00\x00\xe9");
    check(Value::Timestamp(1), b"\x83\x00\x00\x00\x00\x00\x00\x00\x01");
    check(
        Value::Uuid([1; 16]),
        b"\x98\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01",
    );
    check(Value::Binary(b"ab".to_vec()), b"\xa0\x02ab");
    check(Value::from("é"), b"\xa1\x02\xc3\xa9");
    check(Value::Symbol(Symbol::from("s")), b"\xa3\x01s");
    check(Value::List(vec![]), b"\xc0\x01\x00");
    check(Value::List(vec![Value::Null]), b"\xc0\x02\x01\x40");
    check(
        Value::Map(Map::new().with("k", 1)),
        b"\xc1\x06\x02\xa3\x01k\x54\x01",
    );
    check(
        Value::Array(Array::of_strings(["a", "b"])),
        b"\xe0\x0c\x02\xb1\x00\x00\x00\x01a\x00\x00\x00\x01b",
    );
    check(Value::Array(Array::default()), b"\xe0\x02\x00\x40");
    check(
        Value::Described(Box::new(Described {
            descriptor: Descriptor::Code(0x468C_0000_0004),
            value: Value::from("x"),
        })),
        b"\x00\x80\x00\x00\x46\x8c\x00\x00\x00\x04\xa1\x01x",
    );
}

/// Forms that we do not write, but others do.
#[test]
fn other_forms_of_the_same() {
    let check = |bytes: &[u8], value: Value| assert_eq!(decode(bytes), Ok(value), "{bytes:02x?}");
    check(b"\x56\x01", Value::Bool(true));
    check(b"\x56\x00", Value::Bool(false));
    check(b"\x70\x00\x00\x00\x00", Value::UInt(0));
    check(b"\x45", Value::List(vec![]));
    check(b"\xb1\x00\x00\x00\x01x", Value::from("x"));
    check(
        b"\xd0\x00\x00\x00\x05\x00\x00\x00\x01\x40",
        Value::List(vec![Value::Null]),
    );
    check(
        b"\x00\xa3\x01d\x40",
        Value::Described(Box::new(Described {
            descriptor: Descriptor::Name(Symbol::from("d")),
            value: Value::Null,
        })),
    );
    check(
        b"\xe0\x04\x02\x50\x01\x02",
        Value::Array(Array::new(vec![Value::UByte(1), Value::UByte(2)]).unwrap()),
    );
}

#[test]
fn sizes_around_the_short_forms() {
    for length in [250, 251, 252, 253, 254, 255, 256, 70_000] {
        let text = Value::String("x".repeat(length));
        let binary = Value::Binary(vec![7; length]);
        let list = Value::List(vec![Value::Null; length.min(1_000)]);
        let wrapped = Value::List(vec![binary.clone()]);
        for value in [text, binary, list, wrapped] {
            assert_eq!(decode(&encode(&value)), Ok(value));
        }
    }
}

#[test]
fn what_is_refused() {
    let check = |bytes: &[u8], error: DecodeError| {
        assert_eq!(decode(bytes), Err(error), "{bytes:02x?}");
    };
    check(b"", DecodeError::Truncated);
    check(b"\x70\x00\x00", DecodeError::Truncated);
    check(b"\xa1\x05abc", DecodeError::Truncated);
    check(b"\xb1\xff\xff\xff\xffabc", DecodeError::Truncated);
    check(b"\xc0\x00", DecodeError::Truncated);
    check(b"\xd0\x00\x00\x00\x03\x00\x00\x00", DecodeError::Truncated);
    check(b"\xc0\x01\x01", DecodeError::CountTooLarge(1));
    check(b"\xc0\x02\xff\x40", DecodeError::CountTooLarge(255));
    check(
        b"\xd0\x00\x00\x00\x05\xff\xff\xff\xf0\x40",
        DecodeError::CountTooLarge(0xffff_fff0),
    );
    // An array of four billion nulls takes no bytes at all.
    check(
        b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40",
        DecodeError::CountTooLarge(0xffff_ffff),
    );
    // Found by the fuzzer: six empty lists under one descriptor.
    check(
        b"\xe0\x07\x06\x00\x53\x00\x45\x61\x34",
        DecodeError::CountTooLarge(6),
    );
    check(b"\xc1\x02\x01\x40", DecodeError::InvalidValue("map"));
    check(b"\x56\x02", DecodeError::InvalidValue("boolean"));
    check(b"\x73\x00\x11\x00\x00", DecodeError::InvalidValue("char"));
    check(b"\x00\x40\x40", DecodeError::InvalidValue("descriptor"));
    check(b"\xa1\x01\xff", DecodeError::InvalidUtf8);
    check(b"\x3f", DecodeError::UnknownConstructor(0x3f));
    check(b"\x46", DecodeError::UnknownConstructor(0x46));
    check(b"\xe0\x04\x01\x00\x53\x01", DecodeError::Truncated);
}

#[test]
fn depth_is_limited() {
    let nested = |levels: usize| (0..levels).fold(Value::Null, |inner, _| Value::List(vec![inner]));
    let fits = nested(32);
    assert_eq!(decode(&encode(&fits)), Ok(fits));
    assert_eq!(decode(&encode(&nested(33))), Err(DecodeError::TooDeep));
}

#[test]
fn owned_values_are_limited() {
    let many = Value::List(vec![Value::Null; 20_000]);
    assert_eq!(decode(&encode(&many)), Err(DecodeError::TooManyValues));
}

#[test]
fn arrays_are_of_one_type() {
    assert!(Array::new(vec![Value::UInt(1), Value::Int(1)]).is_err());
    assert!(Array::new(vec![Value::Null]).is_err());
    let described = |code, value| {
        Value::Described(Box::new(Described {
            descriptor: Descriptor::Code(code),
            value,
        }))
    };
    let same = vec![
        described(1, Value::from("a")),
        described(1, Value::from("b")),
    ];
    let array = Value::Array(Array::new(same).unwrap());
    assert_eq!(decode(&encode(&array)), Ok(array));
    assert!(Array::new(vec![described(1, 1.into()), described(2, 1.into())]).is_err());
}

#[test]
fn maps_are_searched_without_decoding_the_rest() {
    let bytes = b"\xc1\x0d\x04\xa1\x01a\x54\x01\xa3\x01b\x3f\x00\x00\x00";
    let ValueRef::Map(map) = Decoder::new(bytes).value().unwrap() else {
        panic!("not a map");
    };
    assert_eq!(map.get("a"), Ok(Some(ValueRef::Int(1))));
    assert_eq!(map.get("b"), Err(DecodeError::UnknownConstructor(0x3f)));
}

/// Peers may name performatives by symbol, leave trailing fields out and use wider numbers.
#[test]
fn lenient_performatives() {
    let bytes = b"\x00\xa3\x10amqp:detach:list\xc0\x03\x01\x53\x05rest";
    let expected = Performative::Detach(Detach {
        handle: 5,
        closed: false,
        error: None,
    });
    assert_eq!(
        Performative::decode(bytes),
        Ok((expected, b"rest".as_slice()))
    );
}

/// Field counts that the strictest client relies on: it indexes fields by position.
#[test]
fn every_field_is_written() {
    let check = |performative: Performative, fields: u32| {
        let mut buffer = BytesMut::new();
        performative.encode(&mut Encoder::new(&mut buffer));
        assert_eq!(buffer[..2], [0x00, 0x53], "a small descriptor");
        assert!(matches!(buffer[3], 0xc0 | 0xd0));
        let mut decoder = Decoder::new(&buffer);
        decoder.descriptor().unwrap();
        assert_eq!(decoder.list().unwrap().len(), fields, "{performative:?}");
    };
    check(Performative::Open(Box::default()), 10);
    check(Performative::Begin(Box::default()), 8);
    check(Performative::Attach(Box::default()), 14);
    check(Performative::Flow(Box::default()), 11);
    check(Performative::Transfer(Transfer::default()), 11);
    check(Performative::Disposition(Disposition::default()), 6);
    check(Performative::Detach(Detach::default()), 3);
    check(Performative::End(End::default()), 1);
    check(Performative::Close(Close::default()), 1);
    let error = Error {
        condition: Symbol::from("c"),
        description: None,
        info: Map::new(),
    };
    let mut buffer = BytesMut::new();
    error.encode(&mut Encoder::new(&mut buffer));
    assert_eq!(buffer[..], *b"\x00\x53\x1d\xc0\x06\x03\xa3\x01c\x40\x40");
}

fn symbol() -> impl Strategy<Value = Symbol> {
    "[a-z:-]{0,12}".prop_map(Symbol::from)
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<u8>().prop_map(Value::UByte),
        any::<u16>().prop_map(Value::UShort),
        any::<u32>().prop_map(Value::UInt),
        any::<u64>().prop_map(Value::ULong),
        any::<i8>().prop_map(Value::Byte),
        any::<i16>().prop_map(Value::Short),
        any::<i32>().prop_map(Value::Int),
        any::<i64>().prop_map(Value::Long),
        (-300_i64..300).prop_map(Value::Long),
        prop::num::f32::NORMAL.prop_map(Value::Float),
        prop::num::f64::NORMAL.prop_map(Value::Double),
        any::<[u8; 4]>().prop_map(Value::Decimal32),
        any::<[u8; 8]>().prop_map(Value::Decimal64),
        any::<[u8; 16]>().prop_map(Value::Decimal128),
        any::<char>().prop_map(Value::Char),
        any::<i64>().prop_map(Value::Timestamp),
        any::<[u8; 16]>().prop_map(Value::Uuid),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Binary),
        ".{0,80}".prop_map(Value::String),
        symbol().prop_map(Value::Symbol),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    prop_oneof![
        any::<u64>().prop_map(Descriptor::Code),
        symbol().prop_map(Descriptor::Name),
    ]
}

/// Any value, arrays of any type among them.
fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::List),
            prop::collection::vec((inner.clone(), inner.clone()), 0..5)
                .prop_map(|entries| Value::Map(Map(entries))),
            (descriptor(), inner.clone()).prop_map(|(descriptor, value)| {
                Value::Described(Box::new(Described { descriptor, value }))
            }),
            prop::collection::vec(inner, 0..8).prop_map(|mut values| {
                // Those of the first one's type; nothing when an array cannot hold it.
                if let Some(first) = values.first().cloned() {
                    values.retain(|v| Array::new(vec![first.clone(), v.clone()]).is_ok());
                }
                Value::Array(Array::new(values).expect("all of one type"))
            }),
        ]
    })
}

fn map() -> impl Strategy<Value = Map> {
    prop::collection::vec((symbol(), value()), 0..4).prop_map(|entries| {
        Map(entries
            .into_iter()
            .map(|(key, value)| (Value::Symbol(key), value))
            .collect())
    })
}

fn symbols() -> impl Strategy<Value = Vec<Symbol>> {
    prop::collection::vec(symbol(), 0..4)
}

fn error() -> impl Strategy<Value = Error> {
    (symbol(), of(".{0,40}"), map()).prop_map(|(condition, description, info)| Error {
        condition,
        description,
        info,
    })
}

fn tag() -> impl Strategy<Value = DeliveryTag> {
    prop::collection::vec(any::<u8>(), 0..=32)
        .prop_map(|tag| DeliveryTag::new(&tag).expect("32 bytes at most"))
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Sender), Just(Role::Receiver)]
}

fn snd_mode() -> impl Strategy<Value = SndSettleMode> {
    prop_oneof![
        Just(SndSettleMode::Unsettled),
        Just(SndSettleMode::Settled),
        Just(SndSettleMode::Mixed),
    ]
}

fn rcv_mode() -> impl Strategy<Value = RcvSettleMode> {
    prop_oneof![Just(RcvSettleMode::First), Just(RcvSettleMode::Second)]
}

fn state() -> impl Strategy<Value = DeliveryState> {
    prop_oneof![
        any::<(u32, u64)>().prop_map(|(section_number, section_offset)| {
            DeliveryState::Received(Received {
                section_number,
                section_offset,
            })
        }),
        Just(DeliveryState::Accepted),
        Just(DeliveryState::Released),
        Just(DeliveryState::Rejected(None)),
        error().prop_map(DeliveryState::rejected),
        (any::<bool>(), any::<bool>(), of(map())).prop_map(|(failed, undeliverable, map)| {
            DeliveryState::Modified(Arc::new(Modified {
                delivery_failed: failed,
                undeliverable_here: undeliverable,
                message_annotations: map,
            }))
        }),
        (0x33_u64..0x35, value()).prop_map(|(code, value)| {
            DeliveryState::Other(Arc::new(Value::Described(Box::new(Described {
                descriptor: Descriptor::Code(code),
                value,
            }))))
        }),
    ]
}

fn source() -> impl Strategy<Value = Source> {
    (
        (
            of(".{0,40}"),
            of(any::<u32>()),
            of(symbol()),
            of(any::<u32>()),
            of(any::<bool>()),
        ),
        (of(map()), of(symbol()), of(map()), symbols(), symbols()),
    )
        .prop_map(
            |(
                (address, durable, expiry_policy, timeout, dynamic),
                (properties, distribution_mode, filter, outcomes, capabilities),
            )| Source {
                address,
                durable,
                expiry_policy,
                timeout,
                dynamic,
                dynamic_node_properties: properties,
                distribution_mode,
                filter,
                default_outcome: None,
                outcomes,
                capabilities,
            },
        )
}

fn target() -> impl Strategy<Value = Target> {
    let coordinator = symbols().prop_map(|capabilities| Target {
        capabilities,
        coordinator: true,
        ..Target::default()
    });
    let plain = (
        of(".{0,40}"),
        of(any::<u32>()),
        of(symbol()),
        of(map()),
        symbols(),
    )
        .prop_map(
            |(address, durable, expiry_policy, properties, capabilities)| Target {
                address,
                durable,
                expiry_policy,
                timeout: durable,
                dynamic: durable.map(|n| n > 9),
                dynamic_node_properties: properties,
                capabilities,
                coordinator: false,
            },
        );
    prop_oneof![plain, coordinator]
}

fn open() -> impl Strategy<Value = Open> {
    (
        (
            ".{0,20}",
            of(".{0,20}"),
            any::<u32>(),
            any::<u16>(),
            of(any::<u32>()),
        ),
        (symbols(), symbols(), symbols(), symbols(), of(map())),
    )
        .prop_map(
            |(
                (container_id, hostname, max_frame_size, channel_max, idle_time_out),
                (outgoing_locales, incoming_locales, offered, desired, properties),
            )| Open {
                container_id,
                hostname,
                max_frame_size,
                channel_max,
                idle_time_out,
                outgoing_locales,
                incoming_locales,
                offered_capabilities: offered,
                desired_capabilities: desired,
                properties,
            },
        )
}

fn attach() -> impl Strategy<Value = Attach> {
    (
        (
            ".{0,20}",
            any::<u32>(),
            role(),
            snd_mode(),
            rcv_mode(),
            of(source()),
            of(target()),
        ),
        (
            of(map()),
            any::<bool>(),
            of(any::<u32>()),
            of(any::<u64>()),
            symbols(),
            of(map()),
        ),
    )
        .prop_map(
            |(
                (name, handle, role, snd_settle_mode, rcv_settle_mode, source, target),
                (unsettled, incomplete, count, size, capabilities, properties),
            )| Attach {
                name,
                handle,
                role,
                snd_settle_mode,
                rcv_settle_mode,
                source,
                target,
                unsettled,
                incomplete_unsettled: incomplete,
                initial_delivery_count: count,
                max_message_size: size,
                offered_capabilities: capabilities.clone(),
                desired_capabilities: capabilities,
                properties,
            },
        )
}

fn flow() -> impl Strategy<Value = Flow> {
    (
        (
            of(any::<u32>()),
            any::<u32>(),
            any::<u32>(),
            any::<u32>(),
            of(any::<u32>()),
        ),
        (of(any::<u32>()), of(any::<u32>()), of(any::<u32>())),
        (any::<bool>(), any::<bool>(), of(map())),
    )
        .prop_map(
            |(
                (next_incoming_id, incoming_window, next_outgoing_id, outgoing_window, handle),
                (delivery_count, link_credit, available),
                (drain, echo, properties),
            )| Flow {
                next_incoming_id,
                incoming_window,
                next_outgoing_id,
                outgoing_window,
                handle,
                delivery_count,
                link_credit,
                available,
                drain,
                echo,
                properties,
            },
        )
}

fn transfer() -> impl Strategy<Value = Transfer> {
    (
        (
            any::<u32>(),
            of(any::<u32>()),
            of(tag()),
            of(any::<u32>()),
            of(any::<bool>()),
        ),
        (
            any::<bool>(),
            of(rcv_mode()),
            of(state()),
            any::<[bool; 3]>(),
        ),
    )
        .prop_map(
            |(
                (handle, delivery_id, delivery_tag, message_format, settled),
                (more, rcv_settle_mode, state, [resume, aborted, batchable]),
            )| Transfer {
                handle,
                delivery_id,
                delivery_tag,
                message_format,
                settled,
                more,
                rcv_settle_mode,
                state,
                resume,
                aborted,
                batchable,
            },
        )
}

fn performative() -> impl Strategy<Value = Performative> {
    prop_oneof![
        open().prop_map(|open| Performative::Open(Box::new(open))),
        (
            of(any::<u16>()),
            any::<[u32; 4]>(),
            symbols(),
            symbols(),
            of(map())
        )
            .prop_map(
                |(
                    remote_channel,
                    [next, incoming, outgoing, handles],
                    offered,
                    desired,
                    properties,
                )| {
                    Performative::Begin(Box::new(Begin {
                        remote_channel,
                        next_outgoing_id: next,
                        incoming_window: incoming,
                        outgoing_window: outgoing,
                        handle_max: handles,
                        offered_capabilities: offered,
                        desired_capabilities: desired,
                        properties,
                    }))
                }
            ),
        attach().prop_map(|attach| Performative::Attach(Box::new(attach))),
        flow().prop_map(|flow| Performative::Flow(Box::new(flow))),
        transfer().prop_map(Performative::Transfer),
        (
            role(),
            any::<u32>(),
            of(any::<u32>()),
            any::<bool>(),
            of(state()),
            any::<bool>()
        )
            .prop_map(|(role, first, last, settled, state, batchable)| {
                Performative::Disposition(Disposition {
                    role,
                    first,
                    last,
                    settled,
                    state,
                    batchable,
                })
            }),
        (any::<u32>(), any::<bool>(), of(error())).prop_map(|(handle, closed, error)| {
            Performative::Detach(Detach {
                handle,
                closed,
                error,
            })
        }),
        of(error()).prop_map(|error| Performative::End(End { error })),
        of(error()).prop_map(|error| Performative::Close(Close { error })),
    ]
}

proptest! {
    #[test]
    fn values_round_trip(value in value()) {
        let bytes = encode(&value);
        prop_assert_eq!(decode(&bytes), Ok(value));
        prop_assert_eq!(Decoder::new(&bytes).skip(), Ok(&bytes[..]));
    }

    /// A borrowed value that is written again is the same value.
    #[test]
    fn borrowed_values_round_trip(value in value()) {
        let bytes = encode(&value);
        let borrowed = Decoder::new(&bytes).value().unwrap();
        let mut again = BytesMut::new();
        Encoder::new(&mut again).value_ref(&borrowed);
        prop_assert_eq!(decode(&again), Ok(value));
    }

    #[test]
    fn performatives_round_trip(
        performative in performative(),
        payload in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = BytesMut::new();
        performative.encode(&mut Encoder::new(&mut bytes));
        bytes.extend_from_slice(&payload);
        let (decoded, rest) = Performative::decode(&bytes).unwrap();
        prop_assert_eq!(decoded, performative);
        prop_assert_eq!(rest, &payload[..]);
    }

    #[test]
    fn sasl_init_round_trips(
        mechanism in symbol(),
        initial_response in of(prop::collection::vec(any::<u8>(), 0..300)),
        hostname in of(".{0,20}"),
    ) {
        let initial_response = initial_response.map(Secret);
        let init = SaslInit { mechanism, initial_response, hostname };
        let mut bytes = BytesMut::new();
        init.encode(&mut Encoder::new(&mut bytes));
        prop_assert_eq!(SaslFrame::decode(&bytes), Ok(SaslFrame::Init(init)));
    }

    /// A value cut short is never taken for a value, and never panics.
    #[test]
    fn cut_values_are_refused(value in value(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&value);
        let cut = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(Decoder::new(cut).skip(), Err(DecodeError::Truncated));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(value) = Decoder::new(&bytes).value() {
            let _ = value.to_value();
        }
        let _ = Performative::decode(&bytes);
        let _ = SaslFrame::decode(&bytes);
        for section in Sections::new(&bytes) {
            let _ = section.map(|section| section.value());
        }
        if let Ok(message) = Message::parse(&bytes) {
            let _ = message.properties();
            let _ = message.data().count();
        }
    }

    /// The same with bytes that look more like values.
    #[test]
    fn damaged_values_never_panic(
        value in value(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode(&value);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(borrowed) = Decoder::new(&bytes).value() {
            let _ = borrowed.to_value();
            let mut again = BytesMut::new();
            Encoder::new(&mut again).value_ref(&borrowed);
            prop_assert!(again.len() <= bytes.len() + 12);
        }
    }
}
