//! Conversations between a session and the client role of the AMQP engine, over a stream in memory
//! and a clock that the tests move.

mod clients;
mod devices;
mod feedback;
mod peer;
mod service;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use fieldpost_amqp::frame::{FrameType, put_frame};
use fieldpost_amqp::message::{Body, Message};
use fieldpost_amqp::performative::{Attach, Flow, Role, SndSettleMode, Source, Target};
use fieldpost_amqp::sasl::{Plain, mechanism};
use fieldpost_amqp::value::{Symbol, Value, ValueRef};
use fieldpost_amqp::{ClientSasl, Config, Connection, Event, condition};
use fieldpost_hub::Hub;
use fieldpost_hub::auth::{CbsGrant, ClientCertificate};
use fieldpost_hub::clock::Clock;
use fieldpost_model::Timestamp;
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::context::Transport;
use crate::testing::{TestHub, expiry, sas_token};

use self::peer::*;
use self::requests::ANSWERS_IN_ALL_MAX;

const READ: (&str, &str) = ("operation", "READ");
const ABOUT_HUB: (&str, &str) = ("type", "com.microsoft:eventhub");

#[tokio::test]
async fn the_endpoint_describes_itself_to_whom_it_may() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    let links = peer.request_links("$management").await;
    let id = ValueRef::Uuid([9; 16]);
    let properties = [READ, ABOUT_HUB, ("name", "HUB")];
    let answer = peer.ask(links, id, &properties, "").await;
    assert_eq!(status(&answer).0, 200);
    let message = Message::parse(&answer).unwrap();
    let Body::Value(ValueRef::Map(map)) = message.body else {
        panic!("{:?}", message.body)
    };
    let map = map.to_map().unwrap();
    assert_eq!(map.get("partition_count"), Some(&Value::Int(4)));
    let about_partition = ("type", "com.microsoft:partition");
    let properties = [READ, about_partition, ("name", "hub"), ("partition", "3")];
    let answer = peer.ask(links, id, &properties, "").await;
    assert_eq!(status(&answer).0, 200);
    let properties = [READ, about_partition, ("name", "hub"), ("partition", "4")];
    let answer = peer.ask(links, id, &properties, "").await;
    assert_eq!(status(&answer).0, 404);
    let properties = [READ, ABOUT_HUB, ("name", "other")];
    let answer = peer.ask(links, id, &properties, "").await;
    let (code, description) = status(&answer);
    assert_eq!(code, 404);
    assert!(
        description.starts_with("The messaging entity"),
        "{description}"
    );
}

#[tokio::test]
async fn a_question_may_bring_its_own_token() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::anonymous(&hub).await;
    let links = peer.request_links("$management").await;
    let properties = [READ, ABOUT_HUB, ("name", "hub")];
    let answer = peer.ask(links, ValueRef::ULong(1), &properties, "").await;
    assert_eq!(status(&answer).0, 401);
    let token = hub.policy_token("service");
    let security_token = ("security_token", token.as_str());
    let properties = [READ, ABOUT_HUB, ("name", "hub"), security_token];
    let answer = peer.ask(links, ValueRef::ULong(2), &properties, "").await;
    assert_eq!(status(&answer).0, 200);
    // A policy that may only connect devices has no business here.
    let token = hub.policy_token("device");
    let security_token = ("security_token", token.as_str());
    let properties = [READ, ABOUT_HUB, ("name", "hub"), security_token];
    let answer = peer.ask(links, ValueRef::ULong(3), &properties, "").await;
    assert_eq!(status(&answer).0, 401);
}

#[tokio::test]
async fn a_reader_starts_where_it_asks_to() {
    let hub = TestHub::automatic().await;
    store(&hub, &["a", "b", "c"]);
    hub.clock.advance(Duration::from_secs(10));
    let middle = hub.clock.now();
    hub.clock.advance(Duration::from_secs(10));
    store(&hub, &["d", "e"]);

    let after_middle = format!(
        "amqp.annotation.x-opt-enqueued-time > '{}'",
        middle.as_millis()
    );
    for (selector, expected) in [
        ("amqp.annotation.x-opt-offset > '-1'", "abcde"),
        ("amqp.annotation.x-opt-offset > '1'", "cde"),
        ("amqp.annotation.x-opt-offset >= '1'", "bcde"),
        ("amqp.annotation.x-opt-sequence-number > '3'", "e"),
        // The last event handed out is a good position, also when nothing came after it.
        ("amqp.annotation.x-opt-offset > '4'", ""),
        ("amqp.annotation.x-opt-offset > '@latest'", ""),
        (after_middle.as_str(), "de"),
    ] {
        let mut peer = Peer::with_token(&hub).await;
        let link = peer.read_from(selector, 100).await;
        let bodies = peer.bodies(expected.len()).await;
        assert_eq!(bodies.concat(), expected, "{selector}");
        // Nothing follows: the hub has used the credit for what there was and says so on a drain.
        peer.engine.drain(link).unwrap();
        assert_eq!(peer.event().await, Event::Drained(link), "{selector}");
    }
}

#[tokio::test]
async fn events_carry_what_the_hub_knows_about_them() {
    let hub = TestHub::automatic().await;
    store(&hub, &["a"]);
    let mut peer = Peer::with_token(&hub).await;
    peer.read_from("amqp.annotation.x-opt-offset > '-1'", 1)
        .await;
    let (_, bytes) = peer.message().await;
    let check = |key: &str, expected: Value| assert_eq!(annotation(&bytes, key), expected, "{key}");
    check("x-opt-sequence-number", Value::Long(0));
    check("x-opt-offset", Value::from("0"));
    let now = Value::Timestamp(hub.clock.now().as_millis());
    check("x-opt-enqueued-time", now.clone());
    check("iothub-enqueuedtime", now);
    check("iothub-connection-device-id", Value::from("dev1"));
    check("iothub-message-source", Value::from("Telemetry"));
    let message = Message::parse(&bytes).unwrap();
    let to = message.properties().unwrap().to;
    assert_eq!(to, Some(ValueRef::String("/devices/dev1/messages/events")));
    assert!(message.delivery_annotations.is_none());
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_new_events_and_keeps_to_its_credit() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer
        .read_from("amqp.annotation.x-opt-offset > '@latest'", 2)
        .await;
    // The answer to a drain shows that the hub has seen the credit.
    peer.engine.drain(link).unwrap();
    assert_eq!(peer.event().await, Event::Drained(link));
    peer.engine.set_credit(link, 2).unwrap();
    store(&hub, &["a", "b", "c"]);
    assert_eq!(peer.bodies(2).await, ["a", "b"]);
    store(&hub, &["d"]);
    peer.engine.set_credit(link, 10).unwrap();
    assert_eq!(peer.bodies(2).await, ["c", "d"]);
}

#[tokio::test]
async fn the_state_of_the_partition_comes_with_each_event_if_wanted() {
    let hub = TestHub::automatic().await;
    store(&hub, &["a", "b"]);
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.receiver(DEFAULT_GROUP, |attach| {
        let capability = "com.microsoft:enable-receiver-runtime-metric";
        attach.desired_capabilities = vec![Symbol::from_static(capability)];
    });
    peer.accepted(link).await;
    peer.engine.set_credit(link, 1).unwrap();
    let (_, bytes) = peer.message().await;
    let message = Message::parse(&bytes).unwrap();
    let map = message.delivery_annotations.unwrap().to_map().unwrap();
    let now = Value::Timestamp(hub.clock.now().as_millis());
    for (key, expected) in [
        ("last_enqueued_sequence_number", Value::Long(1)),
        ("last_enqueued_offset", Value::from("1")),
        ("last_enqueued_time_utc", now.clone()),
        ("runtime_info_retrieval_time_utc", now),
    ] {
        assert_eq!(map.get(key), Some(&expected), "{key}");
    }
}

#[tokio::test]
async fn an_equal_owner_level_takes_the_partition_and_a_lower_one_is_refused() {
    let hub = TestHub::automatic().await;
    let mut first = Peer::with_token(&hub).await;
    let held = first.receiver(DEFAULT_GROUP, |attach| own(attach, 0, "one"));
    let reply = first.accepted(held).await;
    assert_eq!(reply.snd_settle_mode, SndSettleMode::Settled);

    let mut second = Peer::with_token(&hub).await;
    let stealing = second.receiver(DEFAULT_GROUP, |attach| own(attach, 0, "two"));
    second.accepted(stealing).await;
    let error = first.detached(held).await;
    assert_eq!(error.condition, condition::STOLEN);
    let description = error.description.unwrap();
    assert!(
        description.contains("'two'") && description.contains("'one'"),
        "{description}"
    );

    // Refusals of this kind are not kept back: the clock stands still.
    let plain = first.receiver(DEFAULT_GROUP, |_| ());
    let error = first.detached(plain).await;
    assert_eq!(error.condition, condition::STOLEN);
    let higher = first.receiver(DEFAULT_GROUP, |attach| own(attach, 5, "one"));
    first.accepted(higher).await;
    second.detached(stealing).await;
    let lower = second.receiver(DEFAULT_GROUP, |attach| own(attach, 4, "two"));
    let error = second.detached(lower).await;
    assert_eq!(error.condition, condition::STOLEN);
    // Another group is another world.
    drop(first);
    let after = second.receiver(DEFAULT_GROUP, |attach| own(attach, 6, "two"));
    second.accepted(after).await;
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused_with_its_reason_after_a_pause() {
    let hub = TestHub::automatic().await;
    store(&hub, &["a"]);
    let mut peer = Peer::with_token(&hub).await;
    let offset = "amqp.annotation.x-opt-offset > '-1'";
    for (address, selector, expected) in [
        (
            "hub/ConsumerGroups/typo/Partitions/0",
            offset,
            condition::NOT_FOUND,
        ),
        (
            "hub/ConsumerGroups/$Default/Partitions/9",
            offset,
            condition::NOT_FOUND,
        ),
        (
            "other/ConsumerGroups/$Default/Partitions/0",
            offset,
            condition::NOT_FOUND,
        ),
        ("messages/nowhere", offset, condition::NOT_FOUND),
        (
            DEFAULT_GROUP,
            "colour = 'red'",
            "com.microsoft:argument-error",
        ),
        (
            DEFAULT_GROUP,
            "amqp.annotation.x-opt-offset > '1'",
            "com.microsoft:argument-error",
        ),
    ] {
        let link = peer.reader(address, selector, 1);
        // A question and its answer show that the hub has seen the attach.
        let status = peer.put_token(&hub.policy_token("service")).await;
        assert_eq!(status.0, 200);
        hub.clock.advance(Duration::from_secs(1));
        let error = peer.detached(link).await;
        assert_eq!(error.condition, expected, "{address} {selector}");
    }
    let sender = peer.sender("hub");
    let status = peer.put_token(&hub.policy_token("service")).await;
    assert_eq!(status.0, 200);
    hub.clock.advance(Duration::from_secs(1));
    let error = peer.detached(sender).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

#[tokio::test]
async fn without_a_token_that_covers_it_nothing_is_read() {
    let hub = TestHub::automatic().await;
    let key = hub.hub.access().policy("service").unwrap().primary;
    let other_group = "sb://localhost/hub/consumergroups/other";
    let narrow = sas_token(other_group, &key, expiry(3600)) + "&skn=service";
    let expired = sas_token("localhost", &key, expiry(-3600)) + "&skn=service";
    for (token, code) in [
        ("SharedAccessSignature nonsense", 401),
        (expired.as_str(), 401),
        (narrow.as_str(), 200),
        (&hub.policy_token("device"), 200),
    ] {
        let mut peer = Peer::anonymous(&hub).await;
        let status = peer.put_token(token).await;
        assert_eq!(status.0, code, "{token}");
        let link = peer.reader(DEFAULT_GROUP, "amqp.annotation.x-opt-offset > '-1'", 1);
        peer.put_token("again").await;
        hub.clock.advance(Duration::from_secs(1));
        let error = peer.detached(link).await;
        assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS, "{token}");
    }
}

#[tokio::test]
async fn a_reader_is_detached_when_its_token_expires_unless_it_was_renewed() {
    let hub = TestHub::automatic().await;
    let key = hub.hub.access().policy("service").unwrap().primary;
    let token = |after_s| sas_token("localhost", &key, expiry(after_s)) + "&skn=service";
    let mut peer = Peer::anonymous(&hub).await;
    assert_eq!(peer.put_token(&token(600)).await.0, 200);
    let link = peer
        .read_from("amqp.annotation.x-opt-offset > '-1'", 10)
        .await;
    assert_eq!(peer.put_token(&token(6000)).await.0, 200);
    // Beyond the first expiry and the tolerated difference of clocks, in steps that heartbeats
    // would fill.
    for _ in 0..10 {
        hub.clock.advance(Duration::from_secs(100));
        peer.put_token("keeps the connection from being idle").await;
    }
    store(&hub, &["a"]);
    assert_eq!(peer.bodies(1).await, ["a"]);
    for _ in 0..52 {
        hub.clock.advance(Duration::from_secs(100));
        peer.put_token("keeps the connection from being idle").await;
    }
    hub.clock.advance(Duration::from_secs(161));
    let error = peer.detached(link).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

#[tokio::test]
async fn a_connection_holds_a_bounded_number_of_tokens() {
    let hub = TestHub::automatic().await;
    let token = hub.policy_token("service");
    let grant = hub.hub.access().verify_policy_token(&token).unwrap();
    let now = hub.clock.now();
    let mut grants = Grants::default();
    let mut kept = 0;
    while grants
        .put(
            &format!("name-{kept}"),
            CbsGrant::Policy(grant.clone()),
            now,
        )
        .is_ok()
    {
        kept += 1;
        assert!(kept < 10_000);
    }
    // Renewing one of them is always possible, and so is a new one when others have expired.
    assert!(
        grants
            .put("name-0", CbsGrant::Policy(grant.clone()), now)
            .is_ok()
    );
    let later = now.saturating_add(Duration::from_secs(7200));
    assert!(
        grants
            .put("another", CbsGrant::Policy(grant.clone()), later)
            .is_ok()
    );
    assert!(
        grants
            .put(&"x".repeat(100_000), CbsGrant::Policy(grant), later)
            .is_err()
    );
}

#[tokio::test]
async fn a_login_is_good_for_the_whole_connection_and_ends_with_its_token() {
    let hub = TestHub::automatic().await;
    let login = |password: &str| ClientSasl {
        mechanism: Symbol::from_static(mechanism::PLAIN),
        initial_response: Some(
            Plain {
                authzid: "",
                authcid: "service@sas.root.hub",
                password,
            }
            .to_initial_response(),
        ),
    };
    assert!(Peer::connect(&hub, Some(login("wrong"))).await.is_none());

    store(&hub, &["a"]);
    let token = hub.policy_token("service");
    let mut peer = Peer::connect(&hub, Some(login(&token))).await.unwrap();
    peer.read_from("amqp.annotation.x-opt-offset > '-1'", 10)
        .await;
    assert_eq!(peer.bodies(1).await, ["a"]);
    hub.clock
        .set_wall(Timestamp::from_millis(expiry(7200) * 1000));
    hub.clock.advance(Duration::from_secs(60));
    let event = peer.event().await;
    let Event::Closed(Some(error)) = event else {
        panic!("{event:?}")
    };
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

#[tokio::test]
async fn a_certificate_opens_the_connection_to_those_who_have_one_and_grants_nothing() {
    let hub = TestHub::automatic().await;
    let external = || {
        Some(ClientSasl {
            mechanism: Symbol::from_static(mechanism::EXTERNAL),
            initial_response: None,
        })
    };
    assert!(Peer::connect(&hub, external()).await.is_none());
    let certified = |context: &mut ConnectionContext| {
        context.client_certificate = ClientCertificate::new([&b"anybody's"[..]]).map(Arc::new);
    };
    let peer = Peer::connect_with(&hub, external(), certified).await;
    let mut peer = peer.expect("a connection");
    let link = peer.reader(DEFAULT_GROUP, "amqp.annotation.x-opt-offset > '-1'", 1);
    peer.put_token("nonsense").await;
    hub.clock.advance(Duration::from_secs(1));
    let error = peer.detached(link).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

#[tokio::test]
async fn clients_without_a_sasl_layer_are_served() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::connect(&hub, None).await.unwrap();
    let status = peer.put_token(&hub.policy_token("service")).await;
    assert_eq!(status.0, 200);
}

#[tokio::test]
async fn who_proves_nothing_in_time_is_closed() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::anonymous(&hub).await;
    peer.put_token("nonsense").await;
    hub.clock.advance(Duration::from_secs(61));
    let event = peer.event().await;
    let Event::Closed(Some(error)) = event else {
        panic!("{event:?}")
    };
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
    drop(peer.stream);
    peer.served.await.unwrap();
}

#[tokio::test]
async fn a_drain_detaches_the_links_and_closes() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer
        .read_from("amqp.annotation.x-opt-offset > '-1'", 10)
        .await;
    let mut conditions = Vec::new();
    peer.drain.begin();
    let closed = loop {
        match peer.event().await {
            Event::Detached {
                link: of, error, ..
            } => {
                conditions.push((of, error.unwrap().condition.clone()));
            }
            Event::Closed(error) => break error.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert!(conditions.contains(&(link, Symbol::from_static(condition::DETACH_FORCED))));
    assert_eq!(closed.condition, condition::CONNECTION_FORCED);
    // The client's own close is all that the session waits for.
    let end = next_event(&mut peer.engine, &mut peer.stream, &hub.clock).await;
    assert_eq!(end, None);
    peer.served.await.unwrap();
}

#[tokio::test]
async fn readers_of_one_connection_take_turns() {
    let hub = TestHub::automatic().await;
    let large = "x".repeat(30_000);
    store(&hub, &vec![large.as_str(); 40]);
    let mut peer = Peer::with_token(&hub).await;
    let first = peer
        .read_from("amqp.annotation.x-opt-offset > '-1'", 1000)
        .await;
    let second = peer
        .read_from("amqp.annotation.x-opt-offset > '-1'", 1000)
        .await;
    let mut order = Vec::new();
    for _ in 0..80 {
        order.push(peer.message().await.0);
    }
    let last_first = order.iter().rposition(|link| *link == first).unwrap();
    let first_second = order.iter().position(|link| *link == second).unwrap();
    assert!(first_second < last_first, "{order:?}");
}

#[tokio::test]
async fn a_start_that_cannot_be_used_takes_the_partition_from_nobody() {
    let hub = TestHub::automatic().await;
    let mut owner = Peer::with_token(&hub).await;
    let held = owner.receiver(DEFAULT_GROUP, |attach| own(attach, 0, "owner"));
    owner.accepted(held).await;
    owner.engine.set_credit(held, 10).unwrap();
    let mut other = Peer::with_token(&hub).await;
    let refused = other.receiver(DEFAULT_GROUP, |attach| {
        own(attach, 0, "other");
        select(attach, "amqp.annotation.x-opt-offset > '1000'");
    });
    assert_eq!(other.put_token(&hub.policy_token("service")).await.0, 200);
    hub.clock.advance(Duration::from_secs(1));
    let error = other.detached(refused).await;
    assert_eq!(error.condition, "com.microsoft:argument-error");
    store(&hub, &["a"]);
    assert_eq!(owner.bodies(1).await, ["a"]);
}

/// Clients that drain wait to be told, also when the events used all of the credit up.
#[tokio::test]
async fn a_drain_ends_when_events_have_used_the_credit_up() {
    let hub = TestHub::automatic().await;
    store(&hub, &["a", "b", "c"]);
    let mut peer = Peer::with_token(&hub).await;
    let link = peer
        .read_from("amqp.annotation.x-opt-offset > '-1'", 2)
        .await;
    peer.engine.drain(link).unwrap();
    assert_eq!(peer.bodies(2).await, ["a", "b"]);
    assert_eq!(peer.event().await, Event::Drained(link));
    peer.engine.set_credit(link, 10).unwrap();
    assert_eq!(peer.bodies(1).await, ["c"]);
}

/// The Python Event Hubs client confirms a close only when it looks at that connection again, and
/// kept a stopping hub waiting for seconds.
#[tokio::test]
async fn a_hub_that_stops_does_not_wait_long_for_a_peer_to_confirm() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    peer.drain.begin();
    while !matches!(peer.event().await, Event::Closed(Some(_))) {}
    assert!(!peer.served.is_finished());
    hub.clock.advance(STOP_LINGER);
    peer.served.await.unwrap();
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_over_all_links() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    let requests = peer.sender("$cbs");
    peer.accepted(requests).await;
    let mut asked = 0;
    let ended = loop {
        // The hub says so while the client asks for more.
        assert!(asked <= ANSWERS_IN_ALL_MAX + 100, "{asked}");
        match peer.answers_without_credit(requests).await {
            Ok(count) => asked += count,
            Err(error) => break error,
        }
    };
    assert_eq!(ended.condition, condition::RESOURCE_LIMIT_EXCEEDED);
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_no_more_than_the_output_bound() {
    let hub = TestHub::automatic().await;
    let large = "x".repeat(30_000);
    store(&hub, &vec![large.as_str(); 100]);
    let mut pair = Pair::new(&hub, 1024);
    by_hand(|| {
        let link = pair.reader();
        pair.client.set_credit(link, 100_000).unwrap();
        pair.run(false);
        assert_eq!(pair.events, 0);
        let waiting = pair.session.engine.output_len();
        assert!(
            (OUTPUT_BYTES_MAX..OUTPUT_BYTES_MAX + 96 * 1024).contains(&waiting),
            "{waiting}"
        );
        pair.run(true);
        assert_eq!(pair.events, 100);
    })
    .await;
}

/// The socket took all of a full output at once, so that nothing was left to wait for, and the
/// readers that the full output had held back got no turn before the next alarm.
#[tokio::test]
async fn readers_go_on_when_a_full_output_was_written_at_once() {
    let hub = TestHub::automatic().await;
    let large = "x".repeat(200_000);
    store(&hub, &[large.as_str(); 10]);
    let mut pair = Pair::new(&hub, 220 * 1024);
    by_hand(|| {
        let link = pair.reader();
        pair.client.set_credit(link, 100).unwrap();
        pair.run(false);
        assert!(pair.session.engine.output_len() >= OUTPUT_BYTES_MAX);
        pair.run(true);
        assert_eq!(pair.events, 10);
    })
    .await;
}

/// As above, with the peer's own bytes held back.
#[tokio::test]
async fn input_goes_on_when_a_full_output_was_written_at_once() {
    let hub = TestHub::automatic().await;
    let mut pair = Pair::new(&hub, 300 * 1024);
    by_hand(|| {
        pair.reader();
        let echo = Flow {
            echo: true,
            ..Flow::default()
        };
        let mut flow = BytesMut::new();
        put_frame(&mut flow, FrameType::Amqp, 0, |e| echo.encode(e));
        pair.raw.extend_from_slice(&flow.repeat(40_000));
        pair.run(false);
        assert!(pair.session.engine.output_full());
        assert!(!pair.raw.is_empty());
        pair.run(true);
        assert!(pair.raw.is_empty());
        assert!(pair.session.leftover.is_empty());
        // And what comes after the flood is heard.
        pair.reader();
    })
    .await;
}

/// Runs a conversation that is polled by hand, far beyond what the runtime grants one task at a
/// time. A runtime that stops granting lets streams be pending for no reason.
async fn by_hand(conversation: impl FnOnce()) {
    tokio::task::unconstrained(async { conversation() }).await;
}

/// A client and a session that is polled when it is woken and not otherwise, as tasks are.
struct Pair {
    client: Connection,
    near: DuplexStream,
    session: Session,
    far: DuplexStream,
    wakes: Arc<Wakes>,
    /// What the client sends besides what its engine does.
    raw: BytesMut,
    /// Messages that the client got.
    events: usize,
    attached: usize,
}

struct Wakes(AtomicBool);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Pair {
    /// An authenticated connection over a stream that takes so many bytes each way.
    fn new(hub: &TestHub, stream_bytes: usize) -> Self {
        let (context, _drain) = ConnectionContext::of_test(hub.hub.clone(), Transport::Tls);
        let token = hub.policy_token("service");
        let grant = hub.hub.access().verify_policy_token(&token).unwrap();
        let mut session = Session::new(context);
        session.drained = true;
        let grant = CbsGrant::Policy(grant);
        session.grants.put("all", grant, hub.clock.now()).unwrap();
        session.granted(hub.clock.monotonic());
        let (near, far) = duplex(stream_bytes);
        Self {
            client: Connection::client(Arc::new(Config::default()), None),
            near,
            session,
            far,
            wakes: Arc::new(Wakes(AtomicBool::new(true))),
            raw: BytesMut::new(),
            events: 0,
            attached: 0,
        }
    }

    /// Begins a session and attaches a reader in it.
    fn reader(&mut self) -> LinkId {
        self.run(true);
        let begun = self.client.begin().unwrap();
        self.run(true);
        let attach = Attach {
            name: "reader".to_owned(),
            role: Role::Receiver,
            source: Some(Source::from_address(DEFAULT_GROUP)),
            target: Some(Target::to("here")),
            ..Attach::default()
        };
        let before = self.attached;
        let link = self.client.attach(begun, attach).unwrap();
        self.run(true);
        assert_eq!(self.attached, before + 1);
        link
    }

    /// Moves bytes until nobody has anything to do any more. The client reads or does not.
    fn run(&mut self, reading: bool) {
        let waker = Waker::from(Arc::clone(&self.wakes));
        let mut client_cx = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            let mut moved = false;
            for output in [self.client.output(), &mut self.raw] {
                let before = output.len();
                let _ = poll_write_all(&mut self.near, &mut client_cx, output);
                moved |= output.len() < before;
            }
            if self.wakes.0.swap(false, Ordering::Relaxed) {
                let mut cx = Context::from_waker(&waker);
                assert!(self.session.poll(&mut cx, &mut self.far).is_pending());
                moved = true;
            }
            while reading && self.read(&mut client_cx) {
                moved = true;
            }
            if !moved {
                return;
            }
        }
        panic!("the session wakes itself for ever");
    }

    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let client = &mut self.client;
        let read = poll_read_scratch_up_to(&mut self.near, cx, SCRATCH_BYTES, |bytes| {
            assert_eq!(client.feed(bytes, Duration::ZERO), Ok(bytes.len()));
        });
        while let Some(event) = self.client.next_event() {
            self.events += usize::from(matches!(event, Event::Message(_)));
            self.attached += usize::from(matches!(event, Event::Attached { .. }));
        }
        read.is_ready()
    }
}
