//! The routes as SDKs call them.

mod device_bound;
mod feedback;
mod modules;
mod telemetry;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use fieldpost_hub::c2d::{Accepted, SendRefused, Target};
use fieldpost_hub::secrets::Secret;
use fieldpost_model::{CloudMessage, Identity};
use serde_json::{Value, json};

use super::Routes;
use crate::listen::limits::GatewayLimits;
use crate::testing::{TestHub, expiry, sas_token};

struct Service {
    hub: TestHub,
    routes: Routes,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Service {
    async fn open() -> Self {
        Self::of(TestHub::automatic().await)
    }

    fn of(hub: TestHub) -> Self {
        let limits = Arc::new(GatewayLimits {
            http_body_bytes_max: 64 * 1024,
            ..GatewayLimits::default()
        });
        let routes = Routes::new(hub.hub.clone(), limits);
        Self { hub, routes }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        let (status, answered, body) = self.send_raw(method, path, headers, body).await;
        if !body.is_empty() {
            let kind = &answered["content-type"];
            assert_eq!(kind, "application/json; charset=utf-8");
        }
        Answer {
            status,
            headers: answered,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        }
    }

    async fn send_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let response = self.routes.clone().answer(request).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, parts.headers, body)
    }

    /// Sends a message to a device.
    async fn command(
        &self,
        device: &str,
        message: &CloudMessage<'_>,
    ) -> Result<Accepted, SendRefused> {
        let target = Target {
            identity: identity(device),
            fallback: None,
        };
        let mut sender = self.hub.hub.c2d().sender("service");
        sender.send_one(target, message).await
    }

    /// As a policy, with the usual API version.
    async fn call_as(
        &self,
        policy: &str,
        call: (&str, &str),
        if_match: Option<&str>,
        body: Value,
    ) -> Answer {
        let token = self.hub.policy_token(policy);
        let mut headers = vec![("authorization", token.as_str())];
        headers.extend(if_match.map(|value| ("if-match", value)));
        let (method, path) = call;
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}api-version=2021-04-12");
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(method, &path, &headers, body).await
    }

    async fn call(&self, method: &str, path: &str, if_match: Option<&str>, body: Value) -> Answer {
        self.call_as("iothubowner", (method, path), if_match, body)
            .await
    }

    async fn create(&self, id: &str) -> Answer {
        let body = json!({"deviceId": id, "status": "enabled", "authentication":
            {"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": ""}}});
        self.call("PUT", &format!("/devices/{id}"), None, body)
            .await
    }
}

fn identity(device: &str) -> Identity {
    Identity::of_device(device.parse().unwrap())
}

/// A token of a device's own key, as the device SDKs make them.
fn own_token(device: &str, key: &Secret) -> String {
    sas_token(&format!("localhost/devices/{device}"), key, expiry(3600))
}

fn check_refusal(answer: &Answer, status: u16, name: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.headers["iothub-errorcode"], name);
    let message = answer.body["Message"].as_str().unwrap();
    let (code, text) = message.split_once(';').unwrap();
    assert_eq!(code, format!("ErrorCode:{name}"));
    assert!(!text.is_empty());
    let tracking = answer.body["ExceptionMessage"].as_str().unwrap();
    assert!(tracking.starts_with("Tracking ID:"), "{tracking}");
    assert!(
        tracking.ends_with("-G:0-TimeStamp:01/15/2027 08:00:00"),
        "{tracking}"
    );
}

#[tokio::test]
async fn a_device_lives_from_its_creation_to_its_deletion() {
    let service = Service::open().await;
    let created = service.create("dev1").await;
    assert_eq!(created.status, 200, "{}", created.body);
    let etag = created.body["etag"].as_str().unwrap().to_owned();
    assert_eq!(created.headers["etag"], format!("\"{etag}\""));
    let document = &created.body;
    assert_eq!(document["deviceId"], "dev1");
    assert_eq!(document["connectionState"], "Disconnected");
    assert_eq!(document["lastActivityTime"], "0001-01-01T00:00:00Z");
    assert_eq!(document["authentication"]["type"], "sas");
    let key = document["authentication"]["symmetricKey"]["primaryKey"].as_str();
    assert_eq!(key.unwrap().len(), 44);
    assert_eq!(document["capabilities"], json!({"iotEdge": false}));
    assert_eq!(document["cloudToDeviceMessageCount"], 0);
    check_refusal(&service.create("dev1").await, 409, "DeviceAlreadyExists");

    let read = service
        .call("GET", "/devices/dev1", None, Value::Null)
        .await;
    assert_eq!(read.body, created.body);

    let disabled = json!({"deviceId": "dev1", "status": "disabled", "statusReason": "broken"});
    let answer = service
        .call("PUT", "/devices/dev1", Some("\"other\""), disabled.clone())
        .await;
    check_refusal(&answer, 412, "PreconditionFailed");
    let quoted = format!("\"{etag}\"");
    let updated = service
        .call("PUT", "/devices/dev1", Some(&quoted), disabled.clone())
        .await;
    assert_eq!(updated.status, 200);
    assert_eq!(updated.body["status"], "disabled");
    assert_eq!(updated.body["statusReason"], "broken");
    assert_ne!(updated.body["etag"], etag);
    assert_eq!(
        updated.body["authentication"], created.body["authentication"],
        "keys that are not given are kept"
    );
    let updated = service
        .call("PUT", "/devices/dev1", Some("\"*\""), disabled.clone())
        .await;
    assert_eq!(updated.status, 200);
    let statistics = service
        .call("GET", "/statistics/devices", None, Value::Null)
        .await;
    let expected =
        json!({"totalDeviceCount": 1, "enabledDeviceCount": 0, "disabledDeviceCount": 1});
    assert_eq!(statistics.body, expected);

    let answer = service
        .call("DELETE", "/devices/dev1", Some(&quoted), Value::Null)
        .await;
    check_refusal(&answer, 412, "PreconditionFailed");
    let answer = service
        .call("DELETE", "/devices/dev1", Some("\"*\""), Value::Null)
        .await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.body, Value::Null);
    let answer = service
        .call("DELETE", "/devices/dev1", Some("*"), Value::Null)
        .await;
    check_refusal(&answer, 404, "DeviceNotFound");
    let answer = service
        .call("GET", "/devices/dev1", None, Value::Null)
        .await;
    check_refusal(&answer, 404, "DeviceNotFound");
    let answer = service
        .call("PUT", "/devices/dev1", Some("\"*\""), disabled)
        .await;
    check_refusal(&answer, 404, "DeviceNotFound");
}

/// Whoever is told of a failure does it again, and with an entity tag cannot.
#[tokio::test]
async fn a_change_that_is_durable_is_answered_when_messages_cannot_be_counted() {
    let service = Service::open().await;
    service.hub.store.queues.fail_depths();
    assert_eq!(service.create("dev1").await.status, 200);
    let disabled = json!({"deviceId": "dev1", "status": "disabled"});
    let updated = service
        .call("PUT", "/devices/dev1", Some("*"), disabled)
        .await;
    assert_eq!(updated.status, 200, "{}", updated.body);
    assert_eq!(updated.body["status"], "disabled");
    assert_eq!(updated.body["cloudToDeviceMessageCount"], 0);
    let read = service
        .call("GET", "/devices/dev1", None, Value::Null)
        .await;
    assert_eq!(read.status, 500);
}

#[tokio::test]
async fn lists_and_modules_are_arrays() {
    let service = Service::open().await;
    for id in ["a", "b", "c"] {
        service.create(id).await;
    }
    let ids = async |path: &str| {
        let answer = service.call("GET", path, None, Value::Null).await;
        let list = answer.body.as_array().unwrap().clone();
        list.iter()
            .map(|d| d["deviceId"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids("/devices/").await, ["a", "b", "c"]);
    assert_eq!(ids("/Devices?top=2").await, ["a", "b"]);
    assert_eq!(ids("/devices?top=0").await, ["a", "b", "c"]);
    let modules = service
        .call("GET", "/devices/a/modules", None, Value::Null)
        .await;
    assert_eq!((modules.status.as_u16(), modules.body), (200, json!([])));
    let modules = service
        .call("GET", "/devices/z/modules", None, Value::Null)
        .await;
    check_refusal(&modules, 404, "DeviceNotFound");
    let module = service
        .call("GET", "/devices/a/modules/m", None, Value::Null)
        .await;
    check_refusal(&module, 404, "ModuleNotFound");
    let answer = service
        .call("GET", "/statistics/service", None, Value::Null)
        .await;
    assert_eq!(answer.body, json!({"connectedDeviceCount": 0}));
}

#[tokio::test]
async fn ids_are_decoded_after_the_path_is_split() {
    let service = Service::open().await;
    let put = async |path: &str, id: &str| {
        service
            .call("PUT", path, None, json!({"deviceId": id}))
            .await
    };
    assert_eq!(put("/devices/a%25%23b", "a%#b").await.status, 200);
    let read = service
        .call("GET", "/devices//a%25%23b/", None, Value::Null)
        .await;
    assert_eq!(read.body["deviceId"], "a%#b");
    check_refusal(&put("/devices/a%2Fb", "a/b").await, 400, "ArgumentInvalid");
    check_refusal(&put("/devices/x", "y").await, 400, "ArgumentInvalid");
    check_refusal(&put("/devices/%ff", "x").await, 400, "ArgumentInvalid");
}

#[tokio::test]
async fn many_devices_are_changed_for_themselves() {
    let service = Service::open().await;
    service.create("old").await;
    let body = json!([
        {"id": "new", "importMode": "Create", "eTag": "*",
         "authentication": {"type": "sas", "symmetricKey": {}}},
        {"id": "old", "importMode": "createOrUpdate", "status": "disabled"},
    ]);
    let answer = service.call("POST", "/devices/", None, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.body,
        json!({"isSuccessful": true, "errors": [], "warnings": []})
    );

    let body = json!([
        {"id": "old", "importMode": "create"},
        {"id": "new", "importMode": "delete"},
        {"id": "gone", "importMode": "Update"},
        {"id": "a/b", "importMode": "create"},
        {"id": "old2", "importMode": "burn"},
    ]);
    let answer = service.call("POST", "/devices", None, body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.headers["iothuberrorcode"],
        "BulkRegistryOperationFailure"
    );
    assert_eq!(answer.body["isSuccessful"], false);
    let errors = answer.body["errors"].as_array().unwrap();
    let mut errors: Vec<_> = errors
        .iter()
        .map(|e| {
            (
                e["deviceId"].as_str().unwrap(),
                e["errorCode"].as_str().unwrap(),
            )
        })
        .collect();
    errors.sort_unstable();
    let expected = [
        ("a/b", "ArgumentInvalid"),
        ("gone", "DeviceNotFound"),
        ("old", "DeviceAlreadyExists"),
        ("old2", "ArgumentInvalid"),
    ];
    assert_eq!(errors, expected);
    let gone = service.call("GET", "/devices/new", None, Value::Null).await;
    check_refusal(&gone, 404, "DeviceNotFound");
    let item = json!({"id": "x", "importMode": "create"});
    let answer = service
        .call("POST", "/devices", None, json!(vec![item; 101]))
        .await;
    check_refusal(&answer, 400, "ArgumentInvalid");
    let answer = service.call("POST", "/devices", None, json!([])).await;
    check_refusal(&answer, 400, "ArgumentInvalid");
}

#[tokio::test]
async fn rights_decide_what_a_policy_may_do() {
    let service = Service::open().await;
    service.create("dev1").await;
    let check = async |policy: &str, method: &str, allowed: bool| {
        let body = json!({"deviceId": "dev1"});
        let answer = service
            .call_as(policy, (method, "/devices/dev1"), Some("*"), body)
            .await;
        if allowed {
            assert!(
                answer.status.is_success(),
                "{policy} {method}: {}",
                answer.body
            );
        } else {
            check_refusal(&answer, 401, "IotHubUnauthorizedAccess");
        }
    };
    check("registryRead", "GET", true).await;
    check("registryRead", "PUT", false).await;
    check("service", "GET", false).await;
    check("device", "GET", false).await;
    check("registryReadWrite", "GET", true).await;
    check("registryReadWrite", "PUT", true).await;
    let path = "/devices/dev1?api-version=2021-04-12";
    let answer = service.send("GET", path, &[], String::new()).await;
    check_refusal(&answer, 401, "IotHubUnauthorizedAccess");
    let forged = service
        .hub
        .policy_token("iothubowner")
        .replace("sig=", "sig=A");
    let headers = [("authorization", forged.as_str())];
    let answer = service.send("GET", path, &headers, String::new()).await;
    check_refusal(&answer, 401, "IotHubUnauthorizedAccess");
}

#[tokio::test]
async fn requests_that_are_not_understood_say_why() {
    let service = Service::open().await;
    let token = service.hub.policy_token("iothubowner");
    let headers = [("authorization", token.as_str())];
    for path in ["/devices/dev1", "/devices/dev1?api-version=latest"] {
        let answer = service.send("GET", path, &headers, String::new()).await;
        check_refusal(&answer, 400, "InvalidProtocolVersion");
    }
    let put = "/devices/dev1?api-version=2021-04-12";
    let answer = service.send("PUT", put, &headers, "{".to_owned()).await;
    check_refusal(&answer, 400, "IotHubFormatError");
    let answer = service
        .send("PUT", put, &headers, " ".repeat(64 * 1024 + 1))
        .await;
    check_refusal(&answer, 413, "MessageTooLarge");
    let answer = service
        .call("GET", "/nothing/here", None, Value::Null)
        .await;
    check_refusal(&answer, 404, "GenericNotFound");
    let answer = service
        .call("PATCH", "/devices/dev1", None, Value::Null)
        .await;
    check_refusal(&answer, 405, "GenericMethodNotAllowed");
    let answer = service
        .call("PUT", "/statistics/devices", None, Value::Null)
        .await;
    check_refusal(&answer, 405, "GenericMethodNotAllowed");
}

#[tokio::test]
async fn a_store_that_takes_no_writes_is_a_reason_to_come_back() {
    let service = Service::open().await;
    service.hub.store.documents.fail_next();
    let answer = service.create("dev1").await;
    check_refusal(&answer, 503, "ServiceUnavailable");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn methods_without_a_meaning_of_their_own_get_the_documented_answer() {
    let service = Service::open().await;
    service.create("dev1").await;
    let head = service
        .call("HEAD", "/devices/dev1", None, Value::Null)
        .await;
    assert_eq!((head.status.as_u16(), head.body), (200, Value::Null));
    assert!(head.headers.contains_key("etag"));
    for (method, path) in [
        ("OPTIONS", "/devices/dev1"),
        ("PATCH", "/devices"),
        ("TRACE", "/statistics/service"),
    ] {
        let answer = service.call(method, path, None, Value::Null).await;
        check_refusal(&answer, 405, "GenericMethodNotAllowed");
        // RFC 9110, section 15.5.6.
        let allowed = answer.headers["allow"].to_str().unwrap();
        assert!(allowed.contains("GET"), "{allowed}");
    }
    for (method, target) in [("OPTIONS", "*"), ("CONNECT", "elsewhere:443")] {
        let answer = service.send(method, target, &[], String::new()).await;
        check_refusal(&answer, 404, "GenericNotFound");
    }
}

#[tokio::test]
async fn an_escaped_slash_is_no_end_of_an_id() {
    let service = Service::open().await;
    for path in [
        "/devices/a%2Fb",
        "/devices/a%2fmodules%2fb",
        "/devices/%ff",
        "/devices/a%00",
    ] {
        let answer = service.call("GET", path, None, Value::Null).await;
        check_refusal(&answer, 400, "ArgumentInvalid");
    }
    // An id may hold what looks like an escape.
    let body = json!({"deviceId": "a%2Fb"});
    let created = service.call("PUT", "/devices/a%252Fb", None, body).await;
    assert_eq!(created.body["deviceId"], "a%2Fb");
    let read = service
        .call("GET", "/devices/a%252Fb", None, Value::Null)
        .await;
    assert_eq!(read.body, created.body);
}

/// An update that said nothing of authentication gave a device with a certificate of its own two
/// keys in its place.
#[tokio::test]
async fn an_update_without_authentication_leaves_it_alone() {
    let service = Service::open().await;
    let thumbprint = "AB".repeat(20);
    let body = json!({"deviceId": "dev1", "authentication": {"type": "selfSigned",
        "x509Thumbprint": {"primaryThumbprint": thumbprint}}});
    let created = service.call("PUT", "/devices/dev1", None, body).await;
    assert_eq!(created.status, 200, "{}", created.body);
    let body = json!({"deviceId": "dev1", "status": "disabled", "authentication": null});
    let updated = service.call("PUT", "/devices/dev1", Some("*"), body).await;
    assert_eq!(
        updated.body["authentication"],
        created.body["authentication"]
    );
    assert_eq!(updated.body["authentication"]["type"], "selfSigned");
}
