//! Messages to devices as the device SDKs take and settle them over HTTPS.

use std::time::Duration;

use fieldpost_hub::c2d::{Cause, DeadLetter, Settlement};
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus, Precondition};
use fieldpost_model::{Ack, Timestamp};
use fieldpost_store::queues::{DeviceQueues, ListDue, Operation};
use fieldpost_store::{Health, HealthLevel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::context::{ConnectionContext, Transport};
use crate::http::connection;

const DEVICE_BOUND: &str = "/devices/dev1/messages/devicebound";

/// A service and one device that speaks HTTPS.
struct Poller {
    service: Service,
    key: Secret,
    token: String,
}

/// A message as it came.
struct Came {
    lock: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Poller {
    async fn open() -> Self {
        let service = Service::open().await;
        let key = service.hub.device("dev1").await;
        let token = own_token("dev1", &key);
        Self {
            service,
            key,
            token,
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let (status, headers, body) = self.ask_raw(method, path, headers).await;
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        }
    }

    async fn ask_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, Bytes) {
        let mut all = vec![("host", "localhost:443"), ("authorization", &self.token)];
        all.extend(headers);
        self.service
            .send_raw(method, path, &all, String::new())
            .await
    }

    /// The next message; `None` when there is none.
    async fn receive_with(&self, query: &str, headers: &[(&str, &str)]) -> Option<Came> {
        let path = format!("{DEVICE_BOUND}{query}");
        let (status, headers, body) = self.ask_raw("GET", &path, headers).await;
        if status == StatusCode::NO_CONTENT {
            assert!(body.is_empty());
            return None;
        }
        assert_eq!(status, StatusCode::OK, "{body:?}");
        let etag = headers["etag"].to_str().unwrap();
        let lock = etag.strip_prefix('"').and_then(|e| e.strip_suffix('"'));
        Some(Came {
            lock: lock.expect("it is quoted").to_owned(),
            headers,
            body,
        })
    }

    async fn receive(&self) -> Option<Came> {
        self.receive_with("?api-version=2021-04-12", &[]).await
    }

    /// The next message, as soon as the hub has done what the time asks for.
    async fn receive_soon(&self) -> Came {
        let there = async {
            loop {
                if let Some(came) = self.receive().await {
                    return came;
                }
                tokio::task::yield_now().await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(20), there).await;
        came.expect("there is a message")
    }

    async fn complete(&self, lock: &str) -> Answer {
        let path = format!("{DEVICE_BOUND}/{lock}?api-version=2021-04-12");
        self.ask("DELETE", &path, &[]).await
    }

    async fn text(&self, body: &str) {
        let message = CloudMessage {
            to: "/devices/dev1/messages/devicebound".into(),
            body: body.as_bytes().to_vec().into(),
            ..CloudMessage::default()
        };
        self.service.command("dev1", &message).await.unwrap();
    }

    /// Messages that are not settled.
    async fn waiting(&self) -> u64 {
        let answer = self
            .service
            .call("GET", "/devices/dev1", None, Value::Null)
            .await;
        answer.body["cloudToDeviceMessageCount"].as_u64().unwrap()
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let c2d = self.service.hub.hub.c2d();
        c2d.dead_letters(0, 100, None).await.unwrap().letters
    }

    fn set_health(&self, level: HealthLevel) {
        self.service.hub.store.log.set_health(Health {
            level,
            reason: Some("the disk fills".into()),
        });
    }
}

fn check_status(answer: &Answer, status: u16, name: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.headers["iothub-errorcode"], name);
}

#[tokio::test]
async fn a_message_is_taken_with_its_properties_and_completed() {
    let poller = Poller::open().await;
    assert!(poller.receive().await.is_none());
    let mut message = CloudMessage {
        to: "/devices/dev1/messages/deviceBound".into(),
        message_id: Some("m7".into()),
        correlation_id: Some("c 7".into()),
        user_id: Some(b"me"[..].into()),
        content_type: Some("text/plain".into()),
        content_encoding: Some("utf-8".into()),
        expires: Timestamp::parse("2027-01-15T09:00:00.5Z"),
        ack: Ack::Full,
        creation_time: Some("2027-01-15T07:59:59+00:00".into()),
        message_schema: Some("s1".into()),
        body: b"hel\0lo"[..].into(),
        ..CloudMessage::default()
    };
    message.properties.set("color".into(), Some("blue".into()));
    message.properties.set("Größe".into(), Some("50% ß".into()));
    message.properties.set("empty".into(), Some("".into()));
    message.properties.set("null".into(), None);
    poller.service.command("dev1", &message).await.unwrap();

    let came = poller.receive().await.unwrap();
    assert_eq!(came.body, &b"hel\0lo"[..]);
    let mut headers: Vec<_> = came
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .filter(|(name, _)| *name != "etag" && *name != "content-length")
        .collect();
    headers.sort_unstable();
    let expected = [
        ("iothub-ack", "full"),
        ("iothub-app-color", "blue"),
        ("iothub-app-empty", ""),
        ("iothub-app-gr%c3%b6%c3%9fe", "50%25 %C3%9F"),
        ("iothub-app-null", ""),
        ("iothub-contentencoding", "utf-8"),
        ("iothub-contenttype", "text/plain"),
        ("iothub-correlationid", "c 7"),
        ("iothub-creationtimeutc", "2027-01-15T07:59:59Z"),
        ("iothub-deliverycount", "0"),
        ("iothub-enqueuedtime", "2027-01-15T08:00:00Z"),
        ("iothub-expiry", "2027-01-15T09:00:00.5000000Z"),
        ("iothub-messageid", "m7"),
        ("iothub-messageschema", "s1"),
        ("iothub-sequencenumber", "1"),
        ("iothub-to", "/devices/dev1/messages/deviceBound"),
        ("iothub-userid", "me"),
    ];
    assert_eq!(headers, expected);
    // A GUID in its usual text.
    let shape: String = came
        .lock
        .chars()
        .map(|c| if c.is_ascii_hexdigit() { 'x' } else { c })
        .collect();
    assert_eq!(shape, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");

    assert!(poller.receive().await.is_none(), "it is locked");
    assert_eq!(poller.waiting().await, 1);
    let done = poller.complete(&came.lock).await;
    assert_eq!((done.status.as_u16(), done.body), (204, Value::Null));
    assert_eq!(poller.waiting().await, 0);
    let again = poller.complete(&came.lock).await;
    check_refusal(&again, 412, "DeviceMessageLockLost");
}

#[tokio::test]
async fn a_message_that_says_little_has_few_headers() {
    let poller = Poller::open().await;
    let message = CloudMessage {
        to: "/devices/dev1/messages/devicebound".into(),
        // Nobody could read it as a time.
        creation_time: Some("yesterday".into()),
        ..CloudMessage::default()
    };
    poller.service.command("dev1", &message).await.unwrap();
    let came = poller.receive().await.unwrap();
    assert!(came.body.is_empty());
    let mut names: Vec<_> = came.headers.keys().map(|name| name.as_str()).collect();
    names.retain(|name| *name != "content-length");
    names.sort_unstable();
    let expected = [
        "etag",
        "iothub-deliverycount",
        "iothub-enqueuedtime",
        "iothub-expiry",
        "iothub-sequencenumber",
        "iothub-to",
    ];
    assert_eq!(names, expected);
}

/// What a form of settling must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Completed,
    Rejected,
    Abandoned,
}

#[tokio::test]
async fn every_spelling_of_a_settlement_is_understood() {
    let poller = Poller::open().await;
    // Method, path and If-Match, in which LOCK stands for the lock.
    let check = async |method: &str, path: &str, if_match: Option<&str>, fate: Fate| {
        let form = format!("{method} {path} {if_match:?}");
        poller.text(&form).await;
        let came = poller.receive().await.unwrap();
        let letters = poller.dead_letters().await.len();
        let path = path.replace("LOCK", &came.lock);
        let path = path.replace("UPPER", &came.lock.to_uppercase());
        let if_match = if_match.map(|text| text.replace("LOCK", &came.lock));
        let headers: Vec<_> = if_match.iter().map(|v| ("if-match", v.as_str())).collect();
        let answer = poller.ask(method, &path, &headers).await;
        assert_eq!(
            answer.status,
            StatusCode::NO_CONTENT,
            "{form}: {}",
            answer.body
        );
        assert_eq!(answer.body, Value::Null);
        let found = if poller.waiting().await == 1 {
            let came = poller.receive().await.expect("it is free again");
            assert_eq!(came.headers["iothub-deliverycount"], "1", "{form}");
            assert_eq!(
                poller.complete(&came.lock).await.status,
                StatusCode::NO_CONTENT
            );
            Fate::Abandoned
        } else if let [.., last] = &poller.dead_letters().await[letters..] {
            assert_eq!(last.cause, Cause::Rejected, "{form}");
            Fate::Rejected
        } else {
            Fate::Completed
        };
        assert_eq!(found, fate, "{form}");
    };
    let message = "/devices/dev1/messages/devicebound/LOCK";
    let at = |tail: &str| format!("{message}{tail}");
    let version = "?api-version=2021-04-12";

    check("DELETE", &at(version), None, Fate::Completed).await;
    check("DELETE", &at(""), None, Fate::Completed).await;
    check(
        "DELETE",
        &at("/?api-version=2016-11-14"),
        Some("\"LOCK\""),
        Fate::Completed,
    )
    .await;
    check("DELETE", &at(version), Some("LOCK"), Fate::Completed).await;
    check("DELETE", &at(version), Some("*"), Fate::Completed).await;
    check(
        "DELETE",
        &at("?rejected=true&api-version=latest"),
        None,
        Fate::Completed,
    )
    .await;
    for path in [
        "/devices/dev1/messages/deviceBound/LOCK",
        "//devices//dev1//messages//devicebound//LOCK//",
        "/Devices/dev1/Messages/DEVICEBOUND/LOCK",
        "/devices/%64ev1/messages/devicebound/UPPER",
    ] {
        check("DELETE", path, None, Fate::Completed).await;
    }
    for query in [
        // Node, C and .NET.
        "?api-version=2021-04-12&reject",
        // Java.
        "?api-version=2020-09-30&%3Freject=true",
        "?reject",
        "?reject=",
        "?Reject=true&api-version=2021-04-12",
        "?api-version=2021-04-12&?reject",
    ] {
        check("DELETE", &at(query), Some("LOCK"), Fate::Rejected).await;
    }
    for tail in ["/abandon", "/Abandon/", "//abandon?api-version=2021-04-12"] {
        check("POST", &at(tail), Some("\"LOCK\""), Fate::Abandoned).await;
        check("POST", &at(tail), None, Fate::Abandoned).await;
    }
}

#[tokio::test]
async fn what_does_not_name_the_lock_settles_nothing() {
    let poller = Poller::open().await;
    poller.text("m").await;
    let came = poller.receive().await.unwrap();
    let other = "0f6b8a8e-6b1d-4c6e-9a51-2f1f1f0c9a77";
    let message = format!("{DEVICE_BOUND}/{}", came.lock);
    let check = async |method: &str, path: &str, if_match: Option<&str>| {
        let headers: Vec<_> = if_match.iter().map(|v| ("if-match", *v)).collect();
        let answer = poller.ask(method, path, &headers).await;
        check_refusal(&answer, 412, "DeviceMessageLockLost");
    };
    check("DELETE", &message, Some(other)).await;
    check("DELETE", &message, Some(&format!("\"{other}\""))).await;
    check("DELETE", &format!("{message}?reject"), Some("")).await;
    check("POST", &format!("{message}/abandon"), Some("nonsense")).await;
    check("DELETE", &format!("{DEVICE_BOUND}/{other}"), None).await;
    check(
        "DELETE",
        &format!("{DEVICE_BOUND}/{other}"),
        Some(&came.lock),
    )
    .await;
    check("DELETE", &format!("{DEVICE_BOUND}/%22%22"), None).await;
    check("POST", &format!("{DEVICE_BOUND}/abandon/abandon"), None).await;
    assert_eq!(poller.waiting().await, 1);
    assert!(poller.receive().await.is_none(), "it is locked still");
    // The lock of one device is none of another's.
    let key = poller.service.hub.device("dev2").await;
    let token = own_token("dev2", &key);
    let path = format!("/devices/dev2/messages/devicebound/{}", came.lock);
    let headers = [("host", "localhost"), ("authorization", token.as_str())];
    let answer = poller
        .service
        .send("DELETE", &path, &headers, String::new())
        .await;
    check_refusal(&answer, 412, "DeviceMessageLockLost");
    let done = poller.complete(&came.lock).await;
    assert_eq!(done.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_lock_lasts_as_long_as_was_asked_for() {
    let poller = Poller::open().await;
    let clock = &poller.service.hub.clock;
    let check = async |query: &str, header: Option<&str>, seconds: u64| {
        poller.text(query).await;
        let name = "IoTHub-MessageLockTimeout";
        let headers: Vec<_> = header.iter().map(|value| (name, *value)).collect();
        let came = poller.receive_with(query, &headers).await.unwrap();
        clock.advance(Duration::from_secs(seconds - 1));
        for _ in 0..20 {
            tokio::task::yield_now().await;
            let early = poller.receive().await.is_some();
            assert!(!early, "{query} {header:?}: too short");
        }
        clock.advance(Duration::from_secs(1));
        let again = poller.receive_soon().await;
        assert_eq!(again.headers["iothub-deliverycount"], "0");
        let late = poller.complete(&came.lock).await;
        check_status(&late, 412, "DeviceMessageLockLost");
        let done = poller.complete(&again.lock).await;
        assert_eq!(done.status, StatusCode::NO_CONTENT);
    };
    check("", None, 60).await;
    check("?api-version=2020-09-30", Some("180"), 180).await;
    check("?iothub-messagelocktimeout=30", None, 30).await;
    check(
        "?api-version=1&IotHub-MessageLockTimeout=10",
        Some("180"),
        10,
    )
    .await;
    check("?iothub-messagelocktimeout=0", None, 5).await;
    check("", Some(" 1 "), 5).await;
    check("?iothub-messagelocktimeout=99999999999", None, 300).await;
    check("?iothub-messagelocktimeout=-1", Some("soon"), 60).await;
    check("?iothub-messagelocktimeout=soon", Some("7"), 7).await;
}

#[tokio::test]
async fn nobody_else_gets_in() {
    let poller = Poller::open().await;
    let hub = &poller.service.hub;
    let other_key = hub.device("dev2").await;
    let ask_as = async |host: &str, token: Option<&str>, path: &str| {
        let mut headers = vec![("host", host)];
        headers.extend(token.map(|token| ("authorization", token)));
        poller
            .service
            .send("GET", path, &headers, String::new())
            .await
    };
    let check = async |token: &str, path: &str, status: u16, name: &str| {
        let answer = ask_as("localhost", Some(token), path).await;
        if name.is_empty() {
            assert_eq!(answer.status, status, "{token} {path}: {}", answer.body);
        } else {
            check_refusal(&answer, status, name);
        }
    };
    let unauthorized = "IotHubUnauthorizedAccess";
    let (dev1, dev9) = (DEVICE_BOUND, "/devices/dev9/messages/devicebound");
    let module = "/devices/dev1/modules/m/messages/devicebound";
    let own = poller.token.as_str();
    check(own, dev1, 204, "").await;
    check(&own_token("dev1", &other_key), dev1, 401, unauthorized).await;
    check(&own_token("dev2", &other_key), dev1, 401, unauthorized).await;
    check(&own_token("dev9", &poller.key), dev9, 401, unauthorized).await;
    check(own, module, 401, unauthorized).await;
    check("SharedAccessSignature", dev1, 401, unauthorized).await;
    check(
        own,
        "/devices/a%2Fb/messages/devicebound",
        400,
        "ArgumentInvalid",
    )
    .await;
    check(
        own,
        "/devices/dev1/modules/a%2Fb/messages/devicebound",
        400,
        "ArgumentInvalid",
    )
    .await;
    let expired = sas_token("localhost/devices/dev1", &poller.key, expiry(-301));
    check(&expired, dev1, 401, unauthorized).await;
    for (policy, allowed) in [
        ("device", true),
        ("iothubowner", true),
        ("service", false),
        ("registryReadWrite", false),
    ] {
        let token = hub.policy_token(policy);
        if allowed {
            check(&token, dev1, 204, "").await;
            // Who may speak for any device may know which there are.
            check(&token, dev9, 404, "DeviceNotFound").await;
            check(&token, module, 404, "ModuleNotFound").await;
        } else {
            check(&token, dev1, 401, unauthorized).await;
            check(&token, dev9, 401, unauthorized).await;
        }
    }
    let nobody = ask_as("localhost", None, dev1).await;
    check_refusal(&nobody, 401, unauthorized);
    let elsewhere = ask_as("elsewhere", Some(own), dev1).await;
    check_refusal(&elsewhere, 401, unauthorized);

    let mut spec = DeviceSpec::new("dev1".parse().unwrap());
    spec.status = Some(DeviceStatus::Disabled);
    let registry = hub.hub.registry();
    registry.update(spec, Precondition::Any).await.unwrap();
    check(own, dev1, 401, unauthorized).await;
    check(&hub.policy_token("device"), dev1, 401, unauthorized).await;
}

#[tokio::test]
async fn a_device_that_polls_leaves_its_connection_alone() {
    let poller = Poller::open().await;
    let hub = &poller.service.hub;
    let principal = hub.principal(&identity("dev1")).await;
    let presence = hub.hub.presence();
    let mut session = presence
        .connect(identity("dev1"), principal.generation_id.clone())
        .await;
    let mut receiver = hub.hub.c2d().receiver(&principal, session.epoch());
    receiver.set_window(1);
    poller.text("one").await;
    poller.text("two").await;
    let first = std::future::poll_fn(|cx| receiver.poll_delivery(cx)).await;
    // The two compete: each has one of the messages.
    let came = poller.receive().await.unwrap();
    assert_eq!(came.body, "two");
    assert_eq!(
        poller.complete(&came.lock).await.status,
        StatusCode::NO_CONTENT
    );
    assert!(receiver.settle(first.sequence, Settlement::Complete));
    let evicted = std::future::poll_fn(|cx| std::task::Poll::Ready(session.poll_evicted(cx))).await;
    assert!(evicted.is_pending(), "{evicted:?}");
    assert!(presence.state(&identity("dev1")).await.connected);
}

#[tokio::test]
async fn a_full_disk_is_a_reason_to_come_back() {
    let poller = Poller::open().await;
    poller.text("one").await;
    poller.text("two").await;
    let came = poller.receive().await.unwrap();
    // New messages find no room, but what is there can be taken and settled.
    poller.set_health(HealthLevel::HoldMessages);
    let done = poller.complete(&came.lock).await;
    assert_eq!(done.status, StatusCode::NO_CONTENT);
    let came = poller.receive().await.unwrap();

    poller.set_health(HealthLevel::HoldAll);
    let answer = poller.complete(&came.lock).await;
    check_refusal(&answer, 503, "ServiceUnavailable");
    assert!(answer.headers.contains_key("retry-after"));

    poller.service.hub.store.log.set_health(Health::OK);
    poller.service.hub.clock.advance(Duration::from_secs(61));
    let came = poller.receive_soon().await;
    assert_eq!(came.body, "two");
    let done = poller.complete(&came.lock).await;
    assert_eq!(done.status, StatusCode::NO_CONTENT);
    assert_eq!(poller.waiting().await, 0);
}

#[tokio::test]
async fn a_settlement_that_is_not_durable_is_not_confirmed() {
    let poller = Poller::open().await;
    poller.text("m").await;
    let came = poller.receive().await.unwrap();
    poller.service.hub.store.queues.fail_next();
    let answer = poller.complete(&came.lock).await;
    check_refusal(&answer, 503, "ServiceUnavailable");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(poller.waiting().await, 1);
}

#[tokio::test]
async fn other_methods_take_nothing() {
    let poller = Poller::open().await;
    poller.text("m").await;
    let lock = "0f6b8a8e-6b1d-4c6e-9a51-2f1f1f0c9a77";
    let message = format!("{DEVICE_BOUND}/{lock}");
    for (method, path) in [
        ("HEAD", DEVICE_BOUND.to_owned()),
        ("DELETE", DEVICE_BOUND.to_owned()),
        ("POST", DEVICE_BOUND.to_owned()),
        ("GET", message.clone()),
        ("POST", message.clone()),
        ("DELETE", format!("{message}/abandon")),
        ("HEAD", "/messages/serviceBound/feedback".to_owned()),
    ] {
        let answer = poller.ask(method, &path, &[]).await;
        let found = answer.status.as_u16();
        assert_eq!(found, 405, "{method} {path}");
    }
    let answer = poller.ask("POST", &format!("{message}/reject"), &[]).await;
    check_refusal(&answer, 404, "GenericNotFound");
    assert_eq!(poller.receive().await.unwrap().body, "m");
}

/// As a newer version or a damaged disk could leave it.
#[tokio::test]
async fn what_cannot_be_read_is_in_nobodys_way() {
    let poller = Poller::open().await;
    poller.text("first").await;
    let store = &poller.service.hub.store.queues;
    let due = ListDue {
        until: Timestamp::from_millis(i64::MAX),
        after: None,
        limit: 1,
        bytes_max: usize::MAX,
    };
    let page = store.due(due).await.unwrap();
    let (queue, first) = page.messages[0].clone();
    let unreadable = Operation::Enqueue {
        queue,
        message: b"\x09what is this"[..].into(),
        expires: first.expires,
        depth_max: 50,
        once: None,
    };
    store.apply(vec![unreadable]).await.unwrap();
    poller.text("third").await;
    for expected in ["first", "third"] {
        let came = poller.receive().await.unwrap();
        assert_eq!(came.body, expected);
        assert_eq!(
            poller.complete(&came.lock).await.status,
            StatusCode::NO_CONTENT
        );
    }
    assert!(poller.receive().await.is_none());
    let letters = poller.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].cause, Cause::Rejected);
}

/// One request after the other over one connection, as bytes.
#[tokio::test]
async fn a_connection_carries_chunked_bodies_and_large_heads() {
    let poller = Poller::open().await;
    let mut message = CloudMessage {
        to: "/devices/dev1/messages/devicebound".into(),
        body: b"body"[..].into(),
        ..CloudMessage::default()
    };
    // About as much as the hub takes for any device.
    for n in 0..1000 {
        let value = format!("{n:044}");
        message
            .properties
            .set(format!("p{n:04}").into(), Some(value.into()));
    }
    poller.service.command("dev1", &message).await.unwrap();
    let hub = poller.service.hub.hub.clone();
    let (mut context, _drain) = ConnectionContext::of_test(hub, Transport::Tls);
    let (server, mut client) = tokio::io::duplex(4096);
    let routes = poller.service.routes.clone();
    let served = tokio::spawn(async move {
        connection::serve(server, &mut context, routes).await;
    });
    let token = &poller.token;
    let head = |line: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n{more}\r\n")
    };

    let get = head(&format!("GET {DEVICE_BOUND}"), "");
    client.write_all(get.as_bytes()).await.unwrap();
    let mut answer = read_head(&mut client).await;
    while !answer.ends_with("\r\n\r\nbody") {
        answer.push(char::from(client.read_u8().await.unwrap()));
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(answer.matches("\r\niothub-app-p").count(), 1000);
    assert!(
        (64_000..=64 * 1024).contains(&answer.len()),
        "{}",
        answer.len()
    );
    let (_, etag) = answer.split_once("\r\netag: \"").unwrap();
    let lock = &etag[..36];

    let abandon = format!("POST {DEVICE_BOUND}/{lock}/abandon");
    let abandon = head(&abandon, "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n";
    client.write_all(abandon.as_bytes()).await.unwrap();
    let answer = read_head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");

    let get = head(&format!("GET {DEVICE_BOUND}"), "Connection: close\r\n");
    client.write_all(get.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("\r\niothub-deliverycount: 1\r\n"),
        "{answer}"
    );
    served.await.unwrap();
}

pub(super) async fn read_head(client: &mut tokio::io::DuplexStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(client.read_u8().await.unwrap()));
    }
    head
}
