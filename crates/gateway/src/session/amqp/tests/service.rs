//! The service endpoint: messages for devices, what became of them, and who may ask.

use fieldpost_amqp::frame::{FrameType, put_frame};
use fieldpost_amqp::message::{Message, Properties, put_data, put_map, put_properties, section};
use fieldpost_amqp::performative::{DeliveryState, Role, Transfer};
use fieldpost_amqp::value::{Value, ValueRef};
use fieldpost_amqp::{Delivery, Outcome};
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::{Settlement, Target};
use fieldpost_model::{Ack, CloudMessage, Identity};
use fieldpost_record::command::CommandView;
use fieldpost_store::{Health, HealthLevel};

use super::wire::Wire;
use super::*;
use crate::listen::limits::GatewayLimits;

pub(super) const DEVICE_BOUND: &str = "/messages/devicebound";
pub(super) const FEEDBACK: &str = "/messages/serviceBound/feedback";
const TO_DEV1: &str = "/devices/dev1/messages/devicebound";

/// A device that receives over HTTPS.
pub(super) struct Device {
    hub: Hub,
    principal: DevicePrincipal,
}

/// What a device finds in a message.
pub(super) struct SeenCommand {
    pub(super) to: String,
    pub(super) message_id: Option<String>,
    pub(super) creation_time: Option<String>,
    pub(super) message_schema: Option<String>,
    pub(super) properties: Vec<(String, Option<String>)>,
    pub(super) body: Vec<u8>,
}

impl Device {
    /// A device with this id, which is registered if it is new.
    pub(super) async fn new(hub: &TestHub, id: &str) -> Self {
        let identity = Identity::of_device(id.parse().unwrap());
        let known = hub.hub.registry().get(&identity.device).await.unwrap();
        if known.is_none() {
            hub.device(id).await;
        }
        let principal = hub.principal(&identity).await;
        Self {
            hub: hub.hub.clone(),
            principal,
        }
    }

    /// Takes the next message, which must be there, and completes it.
    pub(super) async fn take(&self) -> SeenCommand {
        let c2d = self.hub.c2d();
        let received = c2d.receive_one(&self.principal, None).await.unwrap();
        let delivery = received.expect("a message waits");
        let settled = c2d.settle(&self.principal, delivery.lock, Settlement::Complete);
        settled.await.unwrap();
        let view = CommandView::parse(&delivery.message).unwrap();
        let text = |value: Option<&str>| value.map(str::to_owned);
        SeenCommand {
            to: view.to().to_owned(),
            message_id: text(view.message_id()),
            creation_time: text(view.creation_time()),
            message_schema: text(view.message_schema()),
            properties: view
                .properties()
                .map(|(name, value)| (name.to_owned(), text(value)))
                .collect(),
            body: view.body().unwrap_or_default().to_vec(),
        }
    }

    /// How many messages wait.
    async fn waiting(&self) -> u64 {
        let identity = self.principal.identity.clone();
        let generation = Arc::clone(&self.principal.generation_id);
        let asked = [(identity, generation)];
        self.hub.c2d().message_counts(&asked).await.unwrap()[0]
    }
}

/// Lets `device` complete a message whose sender wants to know, so that the hub owes feedback.
pub(super) async fn feedback_owed(hub: &TestHub, device: &Device) {
    let identity = device.principal.identity.clone();
    let message = CloudMessage {
        to: TO_DEV1.into(),
        message_id: Some("mm".into()),
        ack: Ack::Full,
        ..CloudMessage::default()
    };
    let target = Target {
        identity,
        fallback: None,
    };
    let mut sender = hub.hub.c2d().sender("service");
    sender.send_one(target, &message).await.unwrap();
    device.take().await;
}

/// The records of a feedback message.
pub(super) fn records(bytes: &[u8]) -> Vec<serde_json::Value> {
    let message = Message::parse(bytes).unwrap();
    serde_json::from_slice(&message.joined_data()).unwrap()
}

/// A message for `to`, completed by `shape`, with a body.
fn command(to: &str, shape: impl FnOnce(&mut Properties<'_>), body: &[u8]) -> BytesMut {
    let mut properties = Properties {
        to: Some(ValueRef::String(to)),
        ..Properties::default()
    };
    shape(&mut properties);
    let mut bytes = BytesMut::new();
    put_properties(&mut bytes, &properties);
    put_data(&mut bytes, body);
    bytes
}

impl Peer {
    /// A link that sends to devices.
    pub(super) async fn commands(&mut self) -> LinkId {
        let link = self.sender(DEVICE_BOUND);
        self.accepted(link).await;
        while self.engine.sendable(link) == 0 {
            match next_event(&mut self.engine, &mut self.stream, &self.clock).await {
                Some(Event::Credit(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        link
    }

    fn send(&mut self, link: LinkId, message: &[u8], settled: bool) -> u32 {
        let delivery = Delivery {
            tag: b"t",
            settled,
            message_format: 0,
            payload: &[message],
        };
        self.engine.send(link, &delivery).unwrap()
    }

    /// The next answer to a message.
    async fn outcome(&mut self) -> Outcome {
        match self.event().await {
            Event::Outcome(outcome) => {
                assert!(outcome.settled);
                outcome
            }
            other => panic!("{other:?}"),
        }
    }

    /// The condition and description of the next answer, which must be a refusal.
    async fn refusal(&mut self) -> (Symbol, String) {
        match self.outcome().await.state {
            Some(DeliveryState::Rejected(Some(error))) => (
                error.condition.clone(),
                error.description.clone().unwrap_or_default(),
            ),
            other => panic!("{other:?}"),
        }
    }

    /// Shows that the hub has done all that it was asked for so far.
    pub(super) async fn in_step(&mut self, hub: &TestHub) {
        let status = self.put_token(&hub.policy_token("service")).await;
        assert_eq!(status.0, 200);
    }
}

#[tokio::test]
async fn a_message_is_accepted_when_it_is_durable_and_not_before() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    hub.store.queues.withhold(true);
    let id = |properties: &mut Properties<'_>| {
        properties.message_id = Some(ValueRef::Uuid([0x11; 16]));
    };
    let sent = peer.send(link, &command(TO_DEV1, id, b"hello"), false);
    peer.in_step(&hub).await;
    hub.store.queues.withhold(false);
    let outcome = peer.outcome().await;
    assert_eq!(outcome.delivery_id, sent);
    assert_eq!(outcome.state, Some(DeliveryState::Accepted));
    let seen = device.take().await;
    assert_eq!(seen.to, TO_DEV1);
    assert_eq!(
        seen.message_id.as_deref(),
        Some("11111111-1111-1111-1111-111111111111")
    );
    assert_eq!(seen.body, b"hello");
}

/// A service that is not answered sends again, and the device would get the message twice.
#[tokio::test]
async fn a_hub_that_stops_answers_for_what_it_has_taken_and_takes_nothing_more() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    hub.store.queues.withhold(true);
    let sent = peer.send(link, &command(TO_DEV1, |_| (), b"taken"), false);
    peer.in_step(&hub).await;
    peer.drain.begin();
    nudge().await;
    assert!(!peer.served.is_finished());
    peer.send(link, &command(TO_DEV1, |_| (), b"too late"), false);
    peer.hears_nothing().await;
    hub.store.queues.withhold(false);
    let outcome = peer.outcome().await;
    assert_eq!(outcome.delivery_id, sent);
    assert_eq!(outcome.state, Some(DeliveryState::Accepted));
    while !matches!(peer.event().await, Event::Closed(Some(_))) {}
    assert_eq!(device.take().await.body, b"taken");
    assert_eq!(device.waiting().await, 0);
}

#[tokio::test]
async fn a_hub_that_stops_waits_for_a_store_only_so_long() {
    let hub = TestHub::automatic().await;
    Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    hub.store.queues.withhold(true);
    peer.send(link, &command(TO_DEV1, |_| (), b"hello"), false);
    peer.in_step(&hub).await;
    peer.drain.begin();
    nudge().await;
    hub.clock.advance(GatewayLimits::default().linger);
    while !matches!(peer.event().await, Event::Closed(Some(_))) {}
}

#[tokio::test]
async fn consecutive_messages_are_answered_in_one_frame() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", DEVICE_BOUND).await;
    hub.store.queues.withhold(true);
    let good = command(TO_DEV1, |_| (), b"hello");
    let unknown = command("/devices/nobody/messages/devicebound", |_| (), b"hello");
    for id in 10..20 {
        let message = if id == 16 { &unknown } else { &good };
        wire.transfer(handle, id, message).await;
    }
    wire.put_token(0, "3", &hub.policy_token("service")).await;
    hub.store.queues.withhold(false);
    let mut answers = Vec::new();
    while answers.len() < 3 {
        let answer = wire.disposition().await;
        let accepted = answer.state == Some(DeliveryState::Accepted);
        answers.push((answer.first, answer.last, accepted));
    }
    answers.sort_unstable();
    assert_eq!(
        answers,
        [
            (10, Some(15), true),
            (16, Some(16), false),
            (17, Some(19), true)
        ]
    );
    assert_eq!(device.waiting().await, 9);
}

#[tokio::test]
async fn what_the_hub_does_not_take_is_rejected_with_its_reason_and_the_link_stays() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    let none = |_: &mut Properties<'_>| ();
    let expiry = |at: Timestamp| {
        move |properties: &mut Properties<'_>| {
            properties.absolute_expiry_time = Some(ValueRef::Timestamp(at.as_millis()));
        }
    };
    let now = hub.clock.now();
    let day = Duration::from_secs(24 * 3600);
    let too_large = vec![b'x'; 64 * 1024];
    let mut no_sections = BytesMut::new();
    fieldpost_amqp::Encoder::new(&mut no_sections).string("no message");
    for (message, condition, code) in [
        (
            command("/devices/nobody/messages/devicebound", none, b""),
            "amqp:not-found",
            "DeviceNotFound",
        ),
        (
            command("/devices/no body/messages/devicebound", none, b""),
            "amqp:not-found",
            "DeviceNotFound",
        ),
        (
            command("/devices/dev1", none, b""),
            "amqp:not-allowed",
            "InvalidOperation",
        ),
        (
            command(TO_DEV1, none, &too_large),
            "amqp:link:message-size-exceeded",
            "MessageTooLarge",
        ),
        (
            command(TO_DEV1, expiry(now.saturating_sub(day)), b""),
            "com.microsoft:argument-out-of-range",
            "InvalidMessageExpiryTime",
        ),
        (
            command(TO_DEV1, expiry(now.saturating_add(3 * day)), b""),
            "com.microsoft:argument-out-of-range",
            "InvalidMessageExpiryTime",
        ),
        (no_sections, "amqp:decode-error", "DeserializationError"),
    ] {
        peer.send(link, &message, false);
        let refused = peer.refusal().await;
        assert_eq!(refused.0, condition, "{code}");
        let code = format!("ErrorCode:{code};");
        assert!(refused.1.starts_with(&code), "{}", refused.1);
    }
    let good = command(TO_DEV1, expiry(now.saturating_add(day)), b"x");
    for _ in 0..50 {
        peer.send(link, &good, false);
        let state = peer.outcome().await.state;
        assert_eq!(state, Some(DeliveryState::Accepted));
    }
    peer.send(link, &good, false);
    let refused = peer.refusal().await;
    assert_eq!(refused.0, condition::RESOURCE_LIMIT_EXCEEDED);
    let code = "ErrorCode:DeviceMaximumQueueDepthExceeded;";
    assert!(refused.1.starts_with(code), "{}", refused.1);
    assert_eq!(device.waiting().await, 50);
}

#[tokio::test]
async fn one_transfer_holds_one_message() {
    let hub = TestHub::automatic().await;
    Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    let message = command(TO_DEV1, |_| (), b"");
    let batch = Delivery {
        tag: b"t",
        settled: false,
        // A batch of the Event Hubs clients.
        message_format: 0x8001_3700,
        payload: &[&message[..]],
    };
    peer.engine.send(link, &batch).unwrap();
    assert_eq!(peer.refusal().await.0, condition::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn messages_sent_settled_are_taken_and_not_answered() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    peer.send(link, &command("nowhere", |_| (), b"lost"), true);
    peer.send(link, &command(TO_DEV1, |_| (), b"a"), true);
    let sent = peer.send(link, &command(TO_DEV1, |_| (), b"b"), false);
    // The only answer is the one that was asked for.
    assert_eq!(peer.outcome().await.delivery_id, sent);
    peer.in_step(&hub).await;
    assert_eq!(device.take().await.body, b"a");
    assert_eq!(device.take().await.body, b"b");
}

/// A client that has used its credit up gets more as the hub answers, and none before.
#[tokio::test]
async fn credit_comes_back_with_the_answers() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    let unknown = command("/devices/nobody/messages/devicebound", |_| (), b"");
    let mut sent = 0;
    let mut answered = 0;
    while answered < 2000 {
        while sent < 2000 && peer.engine.sendable(link) > 0 {
            peer.send(link, &unknown, false);
            sent += 1;
        }
        assert!(sent - answered <= 500, "{sent} {answered}");
        peer.outcome().await;
        answered += 1;
    }
}

/// Beyond the first mark of the disk nothing is taken: clients are granted nothing and wait.
#[tokio::test]
async fn a_hub_without_room_on_its_disk_grants_no_credit_until_there_is_some() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    let set = |level| {
        let reason = Some("a test".into());
        hub.store.log.set_health(Health { level, reason });
    };
    set(HealthLevel::HoldMessages);
    // What was granted before is refused and not lost without a word, and what is left is revoked.
    peer.send(link, &command(TO_DEV1, |_| (), b"a"), false);
    let refused = peer.refusal().await;
    assert_eq!(refused.0, "com.microsoft:server-busy");
    peer.in_step(&hub).await;
    assert_eq!(peer.engine.sendable(link), 0);
    let late = peer.sender(DEVICE_BOUND);
    peer.accepted(late).await;
    peer.in_step(&hub).await;
    assert_eq!(peer.engine.sendable(late), 0);
    set(HealthLevel::Ok);
    hub.clock.advance(Duration::from_secs(1));
    while peer.engine.sendable(link) == 0 || peer.engine.sendable(late) == 0 {
        let event = next_event(&mut peer.engine, &mut peer.stream, &peer.clock).await;
        assert!(matches!(event, Some(Event::Credit(_))), "{event:?}");
    }
    peer.send(link, &command(TO_DEV1, |_| (), b"a"), false);
    assert_eq!(peer.outcome().await.state, Some(DeliveryState::Accepted));
    assert_eq!(device.take().await.body, b"a");
}

/// What a store that takes nothing more refuses is told; nobody waits for credit that never comes.
#[tokio::test]
async fn a_hub_whose_store_is_read_only_refuses_messages_and_says_so() {
    let hub = TestHub::automatic().await;
    Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let before = peer.commands().await;
    let reason = Some("a test".into());
    let level = HealthLevel::ReadOnly;
    hub.store.log.set_health(Health { level, reason });
    let after = peer.commands().await;
    for link in [before, after] {
        peer.send(link, &command(TO_DEV1, |_| (), b"a"), false);
        let refused = peer.refusal().await;
        assert_eq!(refused.0, "com.microsoft:server-busy");
        assert!(peer.engine.sendable(link) > 0);
    }
}

/// The bound of the event log is none of the queues' business.
#[tokio::test]
async fn an_event_log_at_its_bound_holds_no_messages_to_devices_back() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    hub.store.log.hold(true);
    assert_eq!(hub.hub.health().borrow().level, HealthLevel::HoldMessages);
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    peer.send(link, &command(TO_DEV1, |_| (), b"a"), false);
    assert_eq!(peer.outcome().await.state, Some(DeliveryState::Accepted));
    assert_eq!(device.take().await.body, b"a");
}

/// What the hub has no room for waits at the client: nothing is read until there is room.
#[tokio::test]
async fn messages_beyond_the_hubs_room_wait_and_none_is_lost() {
    let hub = TestHub::automatic().await;
    let devices = 10;
    for n in 0..devices {
        Device::new(&hub, &format!("dev{n}")).await;
    }
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    hub.store.queues.withhold(true);
    let body = vec![b'x'; 60_000];
    for n in 0..200 {
        let to = format!("/devices/dev{}/messages/devicebound", n % devices);
        peer.send(link, &command(&to, |_| (), &body), false);
    }
    let release = async {
        for _ in 0..100 {
            nudge().await;
        }
        hub.store.queues.withhold(false);
    };
    let answers = async {
        for _ in 0..200 {
            let state = peer.outcome().await.state;
            assert_eq!(state, Some(DeliveryState::Accepted));
        }
    };
    tokio::join!(answers, release);
}

#[tokio::test]
async fn who_may_not_connect_services_gets_no_link() {
    let hub = TestHub::automatic().await;
    for token in [None, Some(hub.policy_token("device"))] {
        for (sends, address) in [
            (true, DEVICE_BOUND),
            (false, FEEDBACK),
            (false, "/messages/serviceBound/filenotifications"),
            (false, "/messages/events/$management"),
            (true, "/messages/events/$management"),
        ] {
            let mut peer = Peer::anonymous(&hub).await;
            if let Some(token) = &token {
                assert_eq!(peer.put_token(token).await.0, 200);
            }
            let link = if sends {
                peer.sender(address)
            } else {
                peer.receiver(address, |_| ())
            };
            peer.put_token("again").await;
            hub.clock.advance(Duration::from_secs(1));
            let error = peer.detached(link).await;
            assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS, "{address}");
        }
    }
}

#[tokio::test]
async fn links_end_with_the_token_that_opened_them() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::anonymous(&hub).await;
    let token = hub.policy_token_for("service", 600);
    assert_eq!(peer.put_token(&token).await.0, 200);
    let commands = peer.commands().await;
    let feedback = peer.feedback(10, |_| ()).await;
    hub.clock
        .set_wall(Timestamp::from_millis(expiry(1000) * 1000));
    hub.clock.advance(Duration::from_secs(60));
    let mut ended = Vec::new();
    while ended.len() < 2 {
        match peer.event().await {
            Event::Detached { link, error, .. } => {
                let condition = error.unwrap().condition.clone();
                assert_eq!(condition, condition::UNAUTHORIZED_ACCESS);
                ended.push(link);
            }
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [commands, feedback]);
}

#[tokio::test]
async fn addresses_of_the_hub_are_not_served_to_event_hubs_clients_on_the_loopback() {
    let hub = TestHub::automatic().await;
    let shape = |context: &mut ConnectionContext| context.over = Transport::LoopbackEventHubs;
    let mut peer = Peer::connect_with(&hub, None, shape).await.unwrap();
    let token = hub.policy_token("service");
    assert_eq!(peer.put_token(&token).await.0, 200);
    let link = peer.sender(DEVICE_BOUND);
    peer.in_step(&hub).await;
    hub.clock.advance(Duration::from_secs(1));
    assert_eq!(peer.detached(link).await.condition, condition::NOT_FOUND);
}

#[tokio::test]
async fn links_to_the_service_endpoint_are_bounded() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    for _ in 0..64 {
        peer.commands().await;
    }
    let link = peer.receiver(FEEDBACK, |_| ());
    peer.in_step(&hub).await;
    hub.clock.advance(Duration::from_secs(1));
    let error = peer.detached(link).await;
    assert_eq!(error.condition, condition::RESOURCE_LIMIT_EXCEEDED);
}

#[tokio::test]
async fn who_looks_for_events_is_sent_on_under_the_name_that_he_used() {
    let hub = TestHub::automatic().await;
    let check = async |hostname: Option<&str>, address: &str, expected: &str| {
        let mut peer = Peer::connect_as(&hub, hostname).await;
        let token = hub.policy_token("service");
        assert_eq!(peer.put_token(&token).await.0, 200);
        for role in [Role::Sender, Role::Receiver] {
            let link = match role {
                Role::Sender => peer.sender(address),
                Role::Receiver => peer.receiver(address, |_| ()),
            };
            // At once: the clock stands still.
            let error = peer.detached(link).await;
            assert_eq!(error.condition, condition::LINK_REDIRECT);
            let found = error.info.get("address").and_then(Value::as_str);
            assert_eq!(found, Some(expected), "{address}");
            let host = error.info.get("hostname").and_then(Value::as_str);
            assert!(host.is_some_and(|host| expected.contains(&format!("//{host}:5671/"))));
        }
    };
    check(
        Some("hub.localhost"),
        "amqps://hub.localhost/messages/events/$management",
        "amqps://hub.localhost:5671/hub/$management",
    )
    .await;
    check(
        Some("localhost:5671"),
        "/messages/events/ConsumerGroups/$Default/Partitions/0",
        "amqps://localhost:5671/hub/ConsumerGroups/$Default/Partitions/0",
    )
    .await;
    check(
        None,
        "amqps://10.0.0.7/messages/events/$management",
        "amqps://10.0.0.7:5671/hub/$management",
    )
    .await;
    check(
        None,
        "messages/events/$management",
        "amqps://hub:5671/hub/$management",
    )
    .await;
}

/// A message in several frames is one message.
#[tokio::test]
async fn a_message_in_several_frames_is_put_together() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", DEVICE_BOUND).await;
    let message = command(TO_DEV1, |_| (), &[7; 3000]);
    for (n, piece) in message.chunks(1000).enumerate() {
        let transfer = Transfer {
            handle,
            delivery_id: (n == 0).then_some(5),
            delivery_tag: (n == 0).then(fieldpost_amqp::performative::DeliveryTag::default),
            message_format: (n == 0).then_some(0),
            more: (n + 1) * 1000 < message.len(),
            ..Transfer::default()
        };
        let mut frame = BytesMut::new();
        put_frame(&mut frame, FrameType::Amqp, 0, |e| {
            transfer.encode(e);
            e.raw(piece);
        });
        wire.say(&frame).await;
    }
    let answer = wire.disposition().await;
    assert_eq!(answer.first, 5);
    assert_eq!(answer.state, Some(DeliveryState::Accepted));
    assert_eq!(device.take().await.body, [7; 3000]);
}

#[tokio::test]
async fn application_properties_reach_the_device_as_text() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.commands().await;
    let mut message = BytesMut::new();
    let properties = Properties {
        to: Some(ValueRef::String(TO_DEV1)),
        ..Properties::default()
    };
    put_properties(&mut message, &properties);
    put_map(&mut message, section::APPLICATION_PROPERTIES, |e| {
        e.string("n");
        e.int(7);
        e.string("on");
        e.bool(true);
        e.string("none");
        e.null();
    });
    peer.send(link, &message, false);
    assert_eq!(peer.outcome().await.state, Some(DeliveryState::Accepted));
    let seen = device.take().await;
    let text = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    assert_eq!(
        seen.properties,
        [
            text("n", Some("7")),
            text("on", Some("true")),
            text("none", None)
        ]
    );
    assert!(seen.body.is_empty());
}
