//! Telemetry of devices over HTTPS: no bytes panic, what is taken is stored and read again unchanged, and the
//! spelling of headers that is found is that of the request that was parsed.
//!
//! Input: a byte whose lowest bit says that a batch follows, else the bytes of a request.
#![no_main]

use bytes::BytesMut;
use fieldpost_fuzz::NOW;
use fieldpost_gateway::fuzzing::{http_batch, http_headers_sent, http_message};
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, DeviceMessage};
use fieldpost_record::{Envelope, RecordView, Source, encode};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&options, bytes)) = input.split_first() else {
        return;
    };
    if options & 1 == 1 {
        http_batch(bytes).unwrap_or_default().iter().for_each(store);
        return;
    }
    let mut lines = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut lines);
    let Ok(httparse::Status::Complete(body)) = request.parse(bytes) else {
        return;
    };
    let mut parsed = HeaderMap::new();
    for line in &*request.headers {
        let (Ok(name), Ok(value)) = (
            HeaderName::try_from(line.name),
            HeaderValue::from_bytes(line.value),
        ) else {
            return;
        };
        parsed.append(name, value);
    }
    let method = request.method.unwrap_or_default();
    // A request that stands first is found first, whatever stands behind it.
    let sent = http_headers_sent(bytes, method, &parsed).expect("it was parsed");
    assert_eq!(sent.len(), parsed.len());
    for (name, value) in &sent {
        assert!(
            parsed
                .get_all(name)
                .iter()
                .any(|known| known == value.as_slice())
        );
    }
    let sent: Vec<_> = sent
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .collect();
    store(&http_message(&sent, &bytes[body..]));
});

fn store(message: &DeviceMessage<'_>) {
    let envelope = Envelope {
        source: Source::Telemetry,
        accepted: NOW,
        auth: AuthStamp {
            scope: AuthScope::Device,
            kind: AuthKind::Sas,
        },
        device_id: "dev1",
        module_id: None,
        generation_id: "1",
        model_id: None,
    };
    let mut stored = BytesMut::new();
    encode(&mut stored, &envelope, message);
    let view = RecordView::parse(&stored).expect("what we write is valid");
    assert_eq!(view.body().unwrap_or_default(), &*message.body);
}
