//! Telemetry as the device SDKs send it over HTTPS.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use axum::http::StatusCode;
use fieldpost_hub::clock::Clock;
use fieldpost_model::limits::D2C_MESSAGE_BYTES_MAX;
use fieldpost_store::{Health, HealthLevel};
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::device_bound::read_head;
use super::*;
use crate::context::{ConnectionContext, Transport};
use crate::http::connection;
use crate::testing::SeenEvent;

const EVENTS: &str = "/devices/dev1/messages/events?api-version=2021-04-12";
const BATCH: (&str, &str) = ("content-type", "application/vnd.microsoft.iothub.json");

/// A device that speaks HTTPS.
struct Sender {
    service: Service,
    token: String,
}

impl Sender {
    async fn of(hub: TestHub) -> Self {
        let service = Service::of(hub);
        let key = service.hub.device("dev1").await;
        let token = own_token("dev1", &key);
        Self { service, token }
    }

    async fn open() -> Self {
        Self::of(TestHub::automatic().await).await
    }

    async fn send(&self, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut all = vec![("host", "localhost:443"), ("authorization", &*self.token)];
        all.extend(headers);
        self.service.send("POST", path, &all, body).await
    }

    async fn check_sent(&self, path: &str, headers: &[(&str, &str)], body: &str) {
        let answer = self.send(path, headers, body.to_owned()).await;
        assert_eq!(
            answer.status,
            StatusCode::NO_CONTENT,
            "{path} {}",
            answer.body
        );
        assert_eq!(answer.body, Value::Null);
    }

    async fn bodies(&self) -> Vec<String> {
        let events = self.service.hub.events("dev1").await;
        events.into_iter().map(|event| event.body).collect()
    }

    /// A connection of the device; it ends with the client's end.
    async fn connect(&self) -> DuplexStream {
        let hub = self.service.hub.hub.clone();
        let (mut context, drain) = ConnectionContext::of_test(hub, Transport::Tls);
        let (server, client) = tokio::io::duplex(4096);
        let routes = self.service.routes.clone();
        tokio::spawn(async move {
            let _drain = drain;
            connection::serve(server, &mut context, routes).await;
        });
        client
    }

    /// A request as bytes.
    fn request(&self, headers: &str, body: &str) -> Vec<u8> {
        format!(
            "POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n{headers}\r\n{body}",
            self.token
        )
        .into_bytes()
    }
}

async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

fn event(body: &str, properties: &[(&str, &str)]) -> SeenEvent {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), Some((*value).to_owned()));
    SeenEvent {
        body: body.to_owned(),
        properties: properties.iter().map(owned).collect(),
    }
}

#[tokio::test]
async fn a_message_is_answered_when_it_is_durable() {
    let sender = Sender::of(TestHub::stepped().await).await;
    let headers = [("iothub-app-room", "attic")];
    let mut sent = std::pin::pin!(sender.check_sent(EVENTS, &headers, "body"));
    while sender.service.hub.store.log.waiting() == 0 {
        assert!(is_pending(&mut sent).await);
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        assert!(is_pending(&mut sent).await);
        tokio::task::yield_now().await;
    }
    sender.service.hub.store.log.step();
    sent.await;
    let events = sender.service.hub.events("dev1").await;
    assert_eq!(events, [event("body", &[("room", "attic")])]);
}

#[tokio::test]
async fn a_batch_is_stored_as_single_messages_or_not_at_all() {
    let sender = Sender::open().await;
    let two = r#"[{"body":"b25l","properties":{"iothub-app-n":"1"}},
        {"body":"two","base64Encoded":false,"properties":{"iothub-app-n":"2"}}]"#;
    sender.check_sent(EVENTS, &[BATCH], two).await;
    sender.check_sent(EVENTS, &[BATCH], "[]").await;
    for broken in ["", "{}", r#"[{"body":"b25l"},{"body":"?"}]"#] {
        let answer = sender.send(EVENTS, &[BATCH], broken.to_owned()).await;
        check_refusal(&answer, 400, "IotHubFormatError");
    }
    let events = sender.service.hub.events("dev1").await;
    assert_eq!(
        events,
        [event("one", &[("n", "1")]), event("two", &[("n", "2")])]
    );
    // What only looks like a batch is a body.
    let json = ("content-type", "application/json");
    sender.check_sent(EVENTS, &[json], "[]").await;
    assert_eq!(sender.bodies().await, ["one", "two", "[]"]);
}

#[tokio::test]
async fn every_form_of_the_path_leads_to_the_same_place() {
    let sender = Sender::open().await;
    for path in [
        "/devices/dev1/messages/events?api-version=2016-11-14",
        "/devices/dev1/messages/events/?api-version=2020-09-30",
        "//devices/dev1//messages/Events",
        "/devices/%64ev1/messages/events",
    ] {
        sender.check_sent(path, &[], "m").await;
    }
    assert_eq!(sender.bodies().await.len(), 4);
    let answer = sender
        .send("/devices/dev1/messages/event", &[], String::new())
        .await;
    check_refusal(&answer, 404, "GenericNotFound");
    let token = ("authorization", &*sender.token);
    let get = sender
        .service
        .send("GET", EVENTS, &[token], String::new())
        .await;
    check_refusal(&get, 405, "GenericMethodNotAllowed");
}

#[tokio::test]
async fn only_the_device_itself_may_send() {
    let sender = Sender::open().await;
    let key = sender.service.hub.device("dev2").await;
    let other = own_token("dev2", &key);
    let forged = own_token("dev1", &key);
    for token in [
        other.as_str(),
        forged.as_str(),
        "",
        "SharedAccessSignature sr=x",
    ] {
        let headers = [("host", "localhost"), ("authorization", token)];
        let answer = sender
            .service
            .send("POST", EVENTS, &headers, "m".into())
            .await;
        check_refusal(&answer, 401, "IotHubUnauthorizedAccess");
    }
    let policy = sender.service.hub.policy_token("device");
    let headers = [("host", "localhost"), ("authorization", &*policy)];
    let answer = sender
        .service
        .send("POST", EVENTS, &headers, "by policy".into())
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(sender.bodies().await, ["by policy"]);
}

#[tokio::test]
async fn a_message_of_256_kb_is_taken_and_one_byte_more_is_not() {
    let sender = Sender::open().await;
    let body = "x".repeat(D2C_MESSAGE_BYTES_MAX - "room".len() - "attic".len());
    let room = ("iothub-app-room", "attic");
    sender.check_sent(EVENTS, &[room], &body).await;
    for (headers, body) in [
        (&[room, ("iothub-messageid", "m")][..], body.clone()),
        (&[], "x".repeat(D2C_MESSAGE_BYTES_MAX + 1)),
        (
            &[BATCH],
            format!("[{{\"body\":\"{}\"}}]", "x".repeat(D2C_MESSAGE_BYTES_MAX)),
        ),
        (&[], "x".repeat(3_000_000)),
    ] {
        let answer = sender.send(EVENTS, headers, body).await;
        check_refusal(&answer, 413, "MessageTooLarge");
    }
    assert_eq!(sender.bodies().await, [body]);
}

#[tokio::test]
async fn a_full_disk_is_a_reason_to_come_back_and_what_was_accepted_is_there() {
    let sender = Sender::open().await;
    sender.check_sent(EVENTS, &[], "before").await;
    let set_health = |level| {
        let reason = Some("the disk fills".into());
        sender
            .service
            .hub
            .store
            .log
            .set_health(Health { level, reason });
    };
    for level in [
        HealthLevel::HoldMessages,
        HealthLevel::HoldAll,
        HealthLevel::ReadOnly,
    ] {
        set_health(level);
        while sender.service.hub.hub.ingest().hold() == fieldpost_hub::ingest::Hold::None {
            tokio::task::yield_now().await;
        }
        let answer = sender.send(EVENTS, &[], "refused".into()).await;
        check_refusal(&answer, 503, "ServiceUnavailable");
        assert!(answer.headers.contains_key("retry-after"));
    }
    sender.service.hub.store.log.set_health(Health::OK);
    while sender.service.hub.hub.ingest().hold() != fieldpost_hub::ingest::Hold::None {
        tokio::task::yield_now().await;
    }
    sender.check_sent(EVENTS, &[], "after").await;
    assert_eq!(sender.bodies().await, ["before", "after"]);
}

#[tokio::test]
async fn a_log_that_does_not_answer_is_not_waited_for_without_end() {
    let sender = Sender::of(TestHub::stepped().await).await;
    let mut sent = std::pin::pin!(sender.send(EVENTS, &[], "m".into()));
    while sender.service.hub.store.log.waiting() == 0 {
        assert!(is_pending(&mut sent).await);
        tokio::task::yield_now().await;
    }
    sender.service.hub.clock.advance(Duration::from_secs(21));
    assert_eq!(sent.await.status, StatusCode::SERVICE_UNAVAILABLE);
    // It was on its way all the same; the device sends it again.
    sender.service.hub.store.log.step();
    assert_eq!(sender.bodies().await, ["m"]);
}

#[tokio::test]
async fn what_a_device_did_is_known_and_it_is_not_connected() {
    let sender = Sender::open().await;
    let presence = sender.service.hub.hub.presence();
    let mut session = presence
        .connect(identity("dev1"), generation(&sender, "dev1").await)
        .await;
    sender.service.hub.clock.advance(Duration::from_secs(60));
    sender.check_sent(EVENTS, &[], "m").await;
    let now = sender.service.hub.clock.now();
    let state = presence.state(&identity("dev1")).await;
    assert_eq!((state.connected, state.last_activity), (true, now));
    assert!(is_pending(&mut std::pin::pin!(session.evicted())).await);
    drop(session);
    sender.service.hub.clock.advance(Duration::from_secs(60));
    sender.check_sent(EVENTS, &[], "m").await;
    let state = presence.state(&identity("dev1")).await;
    let now = sender.service.hub.clock.now();
    assert_eq!((state.connected, state.last_activity), (false, now));
}

async fn generation(sender: &Sender, device: &str) -> Arc<str> {
    let registry = sender.service.hub.hub.registry();
    let device = registry.get(&device.parse().unwrap()).await.unwrap();
    Arc::clone(&device.unwrap().generation_id)
}

/// The names of properties keep their case, in every request of a connection.
#[tokio::test]
async fn a_connection_carries_one_request_after_the_other() {
    let sender = Sender::open().await;
    let mut client = sender.connect().await;
    let big = "y".repeat(100_000);
    for (headers, body) in [
        (
            "iothub-app-Room: Attic\r\nContent-Length: 3\r\n".to_owned(),
            "one".to_owned(),
        ),
        (
            "iothub-app-ROOM: Attic\r\nTransfer-Encoding: chunked\r\n".to_owned(),
            "3\r\ntwo\r\n0\r\n\r\n".to_owned(),
        ),
        (
            format!("iothub-app-big: x\r\nContent-Length: {}\r\n", big.len()),
            big.clone(),
        ),
        (
            "iothub-app-LaSt: x\r\nContent-Length: 0\r\n".to_owned(),
            String::new(),
        ),
    ] {
        client
            .write_all(&sender.request(&headers, &body))
            .await
            .unwrap();
        let answer = read_head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        assert!(!answer.contains("content-length"), "{answer}");
    }
    let events = sender.service.hub.events("dev1").await;
    assert_eq!(
        events,
        [
            event("one", &[("Room", "Attic")]),
            event("two", &[("ROOM", "Attic")]),
            event(&big, &[("big", "x")]),
            event("", &[("LaSt", "x")]),
        ]
    );
}
