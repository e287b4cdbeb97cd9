//! Purging, counts and feedback as services see them over REST.

use std::time::Duration;

use fieldpost_hub::c2d::Settlement;
use fieldpost_model::Ack;

use super::*;

const FEEDBACK: &str = "/messages/serviceBound/feedback";

impl Service {
    async fn text(&self, device: &str, id: &str) {
        let message = CloudMessage {
            to: format!("/devices/{device}/messages/devicebound").into(),
            message_id: Some(id.to_owned().into()),
            ack: Ack::Full,
            ..CloudMessage::default()
        };
        self.command(device, &message).await.unwrap();
    }

    /// Completes the next message of a device.
    async fn complete_next(&self, device: &str) {
        let principal = self.hub.principal(&identity(device)).await;
        let c2d = self.hub.hub.c2d();
        let delivery = c2d.receive_one(&principal, None).await.unwrap().unwrap();
        let done = c2d.settle(&principal, delivery.lock, Settlement::Complete);
        done.await.unwrap();
    }

    async fn rest(&self, method: &str, path: &str) -> (StatusCode, HeaderMap, Bytes) {
        let token = self.hub.policy_token("service");
        let headers = [("authorization", token.as_str())];
        let path = format!("{path}?api-version=2021-04-12");
        self.send_raw(method, &path, &headers, String::new()).await
    }

    /// The next feedback message, as soon as the hub has made it: its lock, headers, records.
    async fn feedback_soon(&self) -> (String, HeaderMap, Vec<Value>) {
        let there = async {
            loop {
                let (status, headers, body) = self.rest("GET", FEEDBACK).await;
                if status == StatusCode::OK {
                    return (headers, body);
                }
                assert_eq!((status.as_u16(), body.len()), (204, 0));
                tokio::task::yield_now().await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(20), there).await;
        let (headers, body) = came.expect("there is feedback");
        let lock = headers["etag"].to_str().unwrap().trim_matches('"');
        let records = serde_json::from_slice(&body).unwrap();
        (lock.to_owned(), headers, records)
    }
}

#[tokio::test]
async fn a_purge_says_how_many_there_were() {
    let service = Service::open().await;
    service.create("dev1").await;
    let purge = "/devices/dev1/commands";
    let purged = async |path: &str| service.call("DELETE", path, None, Value::Null).await;
    let document =
        |count: u64| json!({"deviceId": "dev1", "moduleId": "", "totalMessagesPurged": count});
    let answer = purged(purge).await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, document(0)));
    for n in 0..4 {
        service.text("dev1", &n.to_string()).await;
    }
    // A message that somebody has is left to him.
    let principal = service.hub.principal(&identity("dev1")).await;
    let c2d = service.hub.hub.c2d();
    let held = c2d.receive_one(&principal, None).await.unwrap().unwrap();
    let answer = purged("//Devices//dev1//Commands//").await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, document(3)));
    let done = c2d.settle(&principal, held.lock, Settlement::Complete);
    done.await.unwrap();

    check_refusal(
        &purged("/devices/dev9/commands").await,
        404,
        "DeviceNotFound",
    );
    let module = purged("/devices/dev1/modules/m/commands").await;
    check_refusal(&module, 404, "ModuleNotFound");
    let answer = service.call("GET", purge, None, Value::Null).await;
    check_refusal(&answer, 405, "GenericMethodNotAllowed");
    for (policy, allowed) in [
        ("service", true),
        ("registryReadWrite", false),
        ("device", false),
    ] {
        let call = ("DELETE", purge);
        let answer = service.call_as(policy, call, None, Value::Null).await;
        if allowed {
            assert_eq!(answer.body, document(0));
        } else {
            check_refusal(&answer, 401, "IotHubUnauthorizedAccess");
        }
    }

    service.text("dev1", "last").await;
    service.hub.store.queues.fail_next();
    let answer = purged(purge).await;
    check_refusal(&answer, 503, "ServiceUnavailable");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn documents_say_how_many_messages_wait() {
    let service = Service::open().await;
    service.create("a").await;
    service.create("b").await;
    let count = |document: &Value| document["cloudToDeviceMessageCount"].as_u64().unwrap();
    for n in 0..3 {
        service.text("b", &n.to_string()).await;
    }
    let get = async |path: &str| service.call("GET", path, None, Value::Null).await.body;
    assert_eq!(count(&get("/devices/a").await), 0);
    assert_eq!(count(&get("/devices/b").await), 3);
    let list = get("/devices").await;
    let counts: Vec<_> = list.as_array().unwrap().iter().map(count).collect();
    assert_eq!(counts, [0, 3]);
    service.complete_next("b").await;
    let body = json!({"deviceId": "b"});
    let updated = service.call("PUT", "/devices/b", Some("*"), body).await;
    assert_eq!(count(&updated.body), 2);
    // Another device of the same name has a queue of its own.
    service
        .call("DELETE", "/devices/b", None, Value::Null)
        .await;
    assert_eq!(count(&service.create("b").await.body), 0);
    assert_eq!(count(&get("/devices/b").await), 0);
}

#[tokio::test]
async fn feedback_is_taken_given_back_and_completed() {
    let service = Service::open().await;
    service.create("dev1").await;
    let (status, _, body) = service.rest("GET", FEEDBACK).await;
    assert_eq!((status.as_u16(), body.len()), (204, 0));
    service.text("dev1", "m1").await;
    service.complete_next("dev1").await;

    let (lock, headers, records) = service.feedback_soon().await;
    let kind = "application/vnd.microsoft.iothub.feedback.json";
    assert_eq!(headers["content-type"], kind);
    assert_eq!(headers["etag"], format!("\"{lock}\""));
    assert_eq!(headers["iothub-userid"], "hub");
    assert_eq!(headers["iothub-enqueuedtime"], "2027-01-15T08:00:00Z");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["originalMessageId"], "m1");
    assert_eq!(records[0]["deviceId"], "dev1");
    assert_eq!(records[0]["statusCode"], "Success");

    let settle = async |method: &str, tail: &str| {
        let (status, _, body) = service.rest(method, &format!("{FEEDBACK}/{tail}")).await;
        (status.as_u16(), body)
    };
    let done = (204, Bytes::new());
    assert_eq!(settle("POST", &format!("{lock}/abandon")).await, done);
    let (again, _, same) = service.feedback_soon().await;
    assert_eq!(same, records);
    assert_ne!(again, lock, "each delivery has a lock of its own");
    let lost = format!("{FEEDBACK}/{lock}");
    let lost = service.call("DELETE", &lost, None, Value::Null).await;
    check_refusal(&lost, 412, "DeviceMessageLockLost");
    assert_eq!(settle("DELETE", &again).await, done);
    let (status, _, _) = service.rest("GET", FEEDBACK).await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    // Feedback is for who may send.
    for policy in ["device", "registryReadWrite"] {
        for call in [("GET", FEEDBACK), ("DELETE", &format!("{FEEDBACK}/{lock}"))] {
            let answer = service.call_as(policy, call, None, Value::Null).await;
            check_refusal(&answer, 401, "IotHubUnauthorizedAccess");
        }
    }
    let token = service.hub.policy_token("service");
    let headers = [("authorization", token.as_str())];
    let answer = service.send("GET", FEEDBACK, &headers, String::new()).await;
    check_refusal(&answer, 400, "InvalidProtocolVersion");
}

#[tokio::test]
async fn feedback_waits_for_a_store_that_takes_no_writes() {
    let service = Service::open().await;
    service.create("dev1").await;
    service.text("dev1", "m1").await;
    service.complete_next("dev1").await;
    let (lock, _, _) = service.feedback_soon().await;
    service.hub.store.queues.fail_next();
    let path = format!("{FEEDBACK}/{lock}");
    let answer = service.call("DELETE", &path, None, Value::Null).await;
    check_refusal(&answer, 503, "ServiceUnavailable");
    assert!(answer.headers.contains_key("retry-after"));
}
