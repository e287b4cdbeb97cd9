//! How connections end when there is still something to say, and what becomes of that.

use futures_util::FutureExt;

use super::*;

const WILL: Will<'static> = Will {
    topic: "devices/dev1/messages/events/",
    payload: b"good bye",
    qos: Qos::AtLeastOnce,
    retain: false,
};

/// QoS 1 publishes to one's own events with the packet ids 1 to `count`.
fn publishes(count: u16) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    for n in 1..=count {
        let publish = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: EVENTS,
            packet_id: std::num::NonZeroU16::new(n),
            payload: b"x",
        };
        publish.encode(&mut bytes).unwrap();
    }
    bytes.to_vec()
}

async fn yield_often() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Commits whatever comes until `done` is.
async fn stepping<T>(hub: &TestHub, done: impl Future<Output = T>) -> T {
    let step = async {
        loop {
            yield_often().await;
            hub.store.log.step();
        }
    };
    let both = async {
        tokio::select! {
            never = step => never,
            outcome = done => outcome,
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(20), both).await;
    outcome.expect("it must come to an end")
}

/// A window full of messages left no room for the will, and waiting for room alone made none.
#[tokio::test]
async fn a_will_finds_room_behind_a_full_window() {
    let fleet = Fleet::stepped().await;
    let hello = Connect {
        will: Some(WILL),
        ..fleet.hello()
    };
    let mut old = fleet.connected_as(&hello).await;
    old.raw(&publishes(400)).await;
    yield_often().await;
    let mut new = Device::connect(&fleet.hub, &fleet.hello());
    new.flush().await;
    yield_often().await;
    stepping(&fleet.hub, new.expect(OLD_SESSION)).await;
    fleet.hub.store.log.step();
    let events = fleet.hub.events("dev1").await;
    assert_eq!(events.last().unwrap().body, "good bye");
    assert!(events.len() >= 256, "{}", events.len());
}

/// A device that sends, says DISCONNECT and goes without waiting for its acknowledgements was
/// ended by the failure to write the first of them: half of it unheard, and its will published.
#[tokio::test]
async fn a_device_that_left_is_heard_out() {
    let fleet = Fleet::stepped().await;
    let hello = Connect {
        will: Some(WILL),
        ..fleet.hello()
    };
    let mut device = fleet.connected_as(&hello).await;
    let mut bytes = publishes(900);
    bytes.extend_from_slice(&[0xe0, 0]);
    device.raw(&bytes).await;
    stepping(&fleet.hub, device.ended()).await;
    fleet.hub.store.log.step();
    let events = fleet.hub.events("dev1").await;
    assert_eq!(events.len(), 900);
    assert!(events.iter().all(|event| event.body == "x"));
}

/// A full window stops the clock that watches the client's silence. When the next thing in the way
/// was the client's own unwillingness to read, that clock stayed stopped.
#[tokio::test]
async fn a_client_that_does_not_read_its_answers_falls_silent() {
    let fleet = Fleet::stepped().await;
    let (near, mut far) = duplex(8 * 1024);
    let (context, _drain) = ConnectionContext::of_test(fleet.hub.hub.clone(), Transport::Tls);
    let task = tokio::spawn(serve(near, context));
    let now = fleet.hub.clock.monotonic();
    let mut hello = ClientConnection::new(&fleet.hello(), ClientOptions::default(), now).unwrap();
    far.write_all(&hello.take_output()).await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();

    // A window at a time, so that it is full when the last answers that fit are given.
    let bytes = publishes(256);
    let mut at = 0;
    let mut rounds_without_progress = 0;
    while rounds_without_progress < 3 {
        rounds_without_progress += 1;
        yield_often().await;
        while let Some(written) = far.write(&bytes[at..]).now_or_never() {
            at = (at + written.unwrap()) % bytes.len();
            rounds_without_progress = 0;
            yield_often().await;
        }
        fleet.hub.store.log.step();
    }
    fleet.hub.clock.advance(Duration::from_secs(91));
    let ended = tokio::time::timeout(Duration::from_secs(20), task).await;
    ended.expect("it must be let go").unwrap();
}

#[tokio::test]
async fn ids_of_full_length_and_of_any_character_are_at_home() {
    let fleet = Fleet::automatic().await;
    let long = format!("{}%2F#+", "x".repeat(123));
    assert_eq!(long.len(), 128);
    let key = fleet.hub.device(&long).await;
    let token = sas_token(&format!("localhost/devices/{long}"), &key, expiry(3600));
    let user_name = format!("localhost/{long}/?api-version=2021-04-12");
    let hello = Connect {
        client_id: &long,
        user_name: Some(&user_name),
        password: Some(token.as_bytes()),
        ..fleet.hello()
    };
    let mut device = fleet.connected_as(&hello).await;
    let filter = format!("devices/{long}/messages/devicebound/#");
    device.subscribe(&[(&filter, Qos::AtLeastOnce)]);
    device
        .expect(Seen::Suback(vec![SubackCode::Granted(Qos::AtLeastOnce)]))
        .await;
    let event = device.publish(&format!("devices/{long}/messages/events/"), b"one");
    device.expect(Seen::Puback(event)).await;
    assert_eq!(fleet.hub.events(&long).await.len(), 1);
}

/// A connection that waits for its place and loses it to a newer one was never accepted: it has no
/// will, and a clean session that it asked for ends nobody else's.
#[tokio::test]
async fn a_connection_that_never_got_its_place_leaves_no_trace() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.connected().await;
    device.subscribe(&[("$iothub/methods/POST/#", Qos::AtMostOnce)]);
    device
        .expect(Seen::Suback(vec![SubackCode::Granted(Qos::AtMostOnce)]))
        .await;
    device.client.disconnect();
    device.flush().await;
    device.ended().await;
    // Somebody who does not let go.
    let id = DeviceId::new("dev1").unwrap();
    let registry = fleet.hub.hub.registry();
    let generation = registry.get(&id).await.unwrap().unwrap();
    let generation = Arc::clone(&generation.generation_id);
    let presence = fleet.hub.hub.presence();
    let identity = fieldpost_model::Identity::of_device(id);
    let held = presence.connect(identity, generation).await;

    let waiting = Connect {
        clean_session: true,
        will: Some(WILL),
        ..fleet.hello()
    };
    let mut waiting = Device::connect(&fleet.hub, &waiting);
    waiting.flush().await;
    yield_often().await;
    let mut newest = Device::connect(&fleet.hub, &fleet.hello());
    newest.flush().await;
    waiting.expect(Seen::Closed).await;
    waiting.ended().await;
    drop(held);
    newest.expect(OLD_SESSION).await;
    assert_eq!(fleet.hub.events("dev1").await, []);
}

/// Sends what the libraries' end-to-end suites send, and lets its time come.
async fn ask_for_fault(fleet: &Fleet, device: &mut Device, kind: &str) {
    let topic = format!(
        "{EVENTS}AzIoTHub_FaultOperationType={kind}&AzIoTHub_FaultOperationCloseReason=boom\
         &AzIoTHub_FaultOperationDelayInSecs=2&AzIoTHub_FaultOperationDurationInSecs=20"
    );
    let id = device.publish(&topic, b"boom");
    device.expect(Seen::Puback(id)).await;
    tokio::task::yield_now().await;
    fleet.hub.clock.advance(Duration::from_secs(2));
}

#[tokio::test]
async fn a_device_in_test_mode_can_ask_for_faults() {
    let fleet = Fleet::of(TestHub::in_test_mode().await).await;
    for kind in ["KillTcp", "ShutDownMqtt"] {
        let mut device = fleet.connected().await;
        ask_for_fault(&fleet, &mut device, kind).await;
        device.expect(Seen::Closed).await;
    }
    // Faults of AMQP alone.
    let mut device = fleet.connected().await;
    ask_for_fault(&fleet, &mut device, "KillAmqpSession").await;
    device.ping().await;

    // What is not taken has no answer over MQTT but the end.
    for kind in ["InvokeThrottling", "InvokeMaxMessageQuota"] {
        let mut device = fleet.connected().await;
        ask_for_fault(&fleet, &mut device, kind).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        device.publish(EVENTS, b"too much");
        // And not at once: it would be back at once.
        device.ping().await;
        // Nothing more is taken, and a later acknowledgement would be one of the first as well.
        let topic = "$iothub/methods/res/200/?$rid=1";
        device.publish(topic, b"");
        device.publish(EVENTS, b"behind it");
        device.ping().await;
        fleet.hub.clock.advance(Duration::from_millis(999));
        device.ping().await;
        fleet.hub.clock.advance(Duration::from_secs(10));
        device.expect(Seen::Closed).await;
        fleet.hub.clock.advance(Duration::from_secs(10));
    }

    let mut device = fleet.connected().await;
    ask_for_fault(&fleet, &mut device, "InvokeAuthError").await;
    device.expect(Seen::Closed).await;
    let mut refused = Device::connect(&fleet.hub, &fleet.hello());
    refused.expect(UNAUTHORIZED).await;
    fleet.hub.clock.advance(Duration::from_secs(20));
    fleet.connected().await;
    let events = fleet.hub.events("dev1").await;
    assert!(events.iter().all(|event| event.body == "boom"));
    assert_eq!(events.len(), 6);
}

#[tokio::test]
async fn whoever_guesses_is_slowed_and_nobody_else() {
    let fleet = Fleet::automatic().await;
    let guess = Connect {
        password: Some(b"SharedAccessSignature sr=localhost%2Fdevices%2Fdev1&sig=x&se=9999999999"),
        ..fleet.hello()
    };
    let from = |address: &str| format!("{address}:1").parse().unwrap();
    let connect = |connect: &Connect<'_>, address: &str| {
        Device::connect_from(&fleet.hub, connect, 1 << 16, from(address))
    };
    for _ in 0..10 {
        connect(&guess, "10.0.0.1").expect(UNAUTHORIZED).await;
    }
    // The tenth failure costs a quarter of a second.
    let mut waits = connect(&guess, "10.0.0.1");
    waits.flush().await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let mut byte = [0; 1];
    assert!(waits.stream.read(&mut byte).now_or_never().is_none());
    fleet.hub.clock.advance(Duration::from_millis(250));
    waits.expect(UNAUTHORIZED).await;
    // Somebody else is not slowed, nor is anybody on this machine.
    connect(&fleet.hello(), "10.0.0.2")
        .expect(NEW_SESSION)
        .await;
    for _ in 0..20 {
        connect(&guess, "127.0.0.1").expect(UNAUTHORIZED).await;
    }
    // Guessed at faster than anybody is answered, it is not looked at, and not called wrong either.
    let mut others: Vec<_> = (0..40).map(|_| connect(&guess, "10.0.0.1")).collect();
    for other in &mut others {
        other.flush().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    connect(&fleet.hello(), "10.0.0.1").expect(NOT_READY).await;
    // Whoever has the key gets in when it is quiet again.
    drop(others);
    for pause_s in [20, 700] {
        fleet.hub.clock.advance(Duration::from_secs(pause_s));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    connect(&fleet.hello(), "10.0.0.1")
        .expect(OLD_SESSION)
        .await;
}
