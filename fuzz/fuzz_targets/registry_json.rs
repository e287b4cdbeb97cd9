//! The registry's documents: whatever JSON is taken makes a device whose own document is taken back
//! and changes nothing.
//!
//! Input: lines of an `If-Match` value and a path; the rest is JSON, one document or a list of them.
#![no_main]

use fieldpost_fuzz::{hub, lines};
use fieldpost_gateway::fuzzing::{device_at_path, if_match, normalised_path};
use fieldpost_gateway::http::document::{bulk_item_from_json, device_document, device_from_json};
use fieldpost_hub::Hub;
use fieldpost_hub::identity::{BulkItem, DeviceSpec, Precondition};
use fieldpost_hub::presence::ConnectionState;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::runtime::Runtime;

thread_local! {
    static HUB: (Runtime, Hub) = hub();
}

fuzz_target!(|text: &str| {
    let [condition, path, json] = lines(text);
    let condition = if_match(condition.as_bytes());
    if let Some(normal) = normalised_path(path) {
        assert_eq!(normalised_path(&normal), None, "{normal}");
    }
    let Ok(document) = serde_json::from_str(json) else {
        return;
    };
    let devices = match document {
        Value::Array(entries) => {
            let items = entries
                .into_iter()
                .filter_map(|entry| bulk_item_from_json(entry).ok());
            let items: Vec<BulkItem> = items.take(10).collect();
            let devices = items.iter().map(|item| item.device.clone()).collect();
            HUB.with(|(runtime, hub)| {
                let count = items.len();
                let results = runtime.block_on(hub.registry().bulk(items));
                assert_eq!(results.len(), count);
            });
            devices
        }
        document => Vec::from_iter(device_from_json(document.clone()).inspect(|spec| {
            let same = device_at_path(&spec.device_id, document).expect("it was taken without");
            assert_eq!(format!("{same:?}"), format!("{spec:?}"));
        })),
    };
    HUB.with(|(runtime, hub)| {
        for device in devices {
            runtime.block_on(check_stored(hub, device, condition.clone()));
        }
    });
});

async fn check_stored(hub: &Hub, spec: DeviceSpec, condition: Option<Precondition>) {
    let registry = hub.registry();
    let id = spec.device_id.clone();
    // What a bulk request left.
    let _ = registry.delete(&id, Precondition::Any).await;
    let Ok(created) = registry.create(spec.clone()).await else {
        return;
    };
    let read = registry.get(&id).await.expect("it was stored");
    assert_eq!(read.as_ref(), Some(&created));

    let document = device_document(&created, &ConnectionState::UNKNOWN, 7);
    let document = serde_json::to_value(&document).expect("plain values");
    let again = device_from_json(document).expect("what we show is valid");
    let updated = registry.update(again, Precondition::ETag(created.etag()));
    let updated = updated.await.expect("nothing changed since");
    assert_eq!(created.authentication, updated.authentication);
    assert_eq!(created.status, updated.status);
    assert_eq!(created.status_reason, updated.status_reason);
    assert_eq!(created.device_scope, updated.device_scope);
    assert_eq!(created.parent_scopes, updated.parent_scopes);

    if let Some(condition) = condition {
        let _ = registry.update(spec, condition).await;
    }
    let deleted = registry.delete(&id, Precondition::Any).await;
    deleted.expect("it was there");
}
