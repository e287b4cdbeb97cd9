//! Values and performatives: no input panics; what decodes is written and read back the same.
#![no_main]

use bytes::BytesMut;
use fieldpost_amqp::performative::Performative;
use fieldpost_amqp::sasl::SaslFrame;
use fieldpost_amqp::{Decoder, Encoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut decoder = Decoder::new(input);
    if let Ok(borrowed) = decoder.value() {
        let mut copied = BytesMut::new();
        Encoder::new(&mut copied).value_ref(&borrowed);
        if let Ok(owned) = borrowed.to_value() {
            let mut written = BytesMut::new();
            Encoder::new(&mut written).value(&owned);
            let again = Decoder::new(&written)
                .value()
                .and_then(|value| value.to_value())
                .expect("what we write is valid");
            // By text: a NaN is not equal to itself.
            assert_eq!(format!("{owned:?}"), format!("{again:?}"));
            let copy = Decoder::new(&copied)
                .value()
                .and_then(|value| value.to_value())
                .expect("what we copy is valid");
            assert_eq!(format!("{owned:?}"), format!("{copy:?}"));
        }
    }
    if let Ok((performative, _)) = Performative::decode(input) {
        let mut written = BytesMut::new();
        performative.encode(&mut Encoder::new(&mut written));
        let (again, rest) = Performative::decode(&written).expect("what we write is valid");
        assert!(rest.is_empty());
        assert_eq!(format!("{performative:?}"), format!("{again:?}"));
    }
    let _ = SaslFrame::decode(input);
});
