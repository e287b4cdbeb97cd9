use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus, Precondition};
use fieldpost_hub::presence::{ConnectionState, Eviction, Session, TAKE_OVER_MAX};
use fieldpost_model::Timestamp;

use crate::bench::{Bench, context, id, identity, settle, spec};

fn eviction(session: &mut Session) -> Option<Eviction> {
    match session.poll_evicted(&mut context()) {
        Poll::Ready(reason) => Some(reason),
        Poll::Pending => None,
    }
}

async fn connect(bench: &Bench, name: &str) -> Session {
    let identity = identity(name);
    let device = bench.hub.registry().get(&identity.device).await.unwrap();
    let generation = Arc::clone(&device.unwrap().generation_id);
    bench.hub.presence().connect(identity, generation).await
}

#[tokio::test]
async fn the_newest_connection_wins_after_the_older_one_has_let_go() {
    let bench = Bench::start().await;
    bench.device("dev1").await;
    let mut first = connect(&bench, "dev1").await;
    assert_eq!(eviction(&mut first), None);
    {
        let mut newer = Box::pin(connect(&bench, "dev1"));
        assert!(newer.as_mut().poll(&mut context()).is_pending());
        settle().await;
        assert!(newer.as_mut().poll(&mut context()).is_pending());
        assert_eq!(first.evicted().await, Eviction::Replaced);
        assert_eq!(bench.hub.presence().connected_devices(), 1);
        let epoch = first.epoch();
        drop(first);
        let mut second = newer.await;
        assert_eq!(eviction(&mut second), None);
        assert!(second.epoch() > epoch);
    }
    settle().await;
    assert_eq!(bench.hub.presence().connected_devices(), 0);
}

#[tokio::test]
async fn a_connection_that_does_not_let_go_is_passed_over_in_the_end() {
    let bench = Bench::start().await;
    bench.device("dev1").await;
    let first = connect(&bench, "dev1").await;
    let mut newer = Box::pin(connect(&bench, "dev1"));
    for _ in 0..2 {
        assert!(newer.as_mut().poll(&mut context()).is_pending());
        settle().await;
    }
    bench.clock.advance(TAKE_OVER_MAX);
    let mut second = newer.await;
    assert_eq!(eviction(&mut second), None);
    drop(first);
    settle().await;
    assert_eq!(eviction(&mut second), None);
    assert_eq!(bench.hub.presence().connected_devices(), 1);
}

#[tokio::test]
async fn of_several_that_wait_the_newest_gets_the_place() {
    let bench = Bench::start().await;
    bench.device("dev1").await;
    let first = connect(&bench, "dev1").await;
    let mut second = Box::pin(connect(&bench, "dev1"));
    assert!(second.as_mut().poll(&mut context()).is_pending());
    settle().await;
    let mut third = Box::pin(connect(&bench, "dev1"));
    assert!(third.as_mut().poll(&mut context()).is_pending());
    settle().await;
    let mut second = second.await;
    assert_eq!(eviction(&mut second), Some(Eviction::Replaced));
    drop(first);
    let mut third = third.await;
    assert_eq!(eviction(&mut third), None);
}

#[tokio::test]
async fn an_abandoned_attempt_takes_no_place() {
    let bench = Bench::start().await;
    bench.device("dev1").await;
    {
        let mut abandoned = Box::pin(connect(&bench, "dev1"));
        assert!(abandoned.as_mut().poll(&mut context()).is_pending());
    }
    settle().await;
    assert_eq!(bench.hub.presence().connected_devices(), 0);
    let first = connect(&bench, "dev1").await;
    {
        let mut abandoned = Box::pin(connect(&bench, "dev1"));
        assert!(abandoned.as_mut().poll(&mut context()).is_pending());
        settle().await;
    }
    drop(first);
    settle().await;
    assert_eq!(bench.hub.presence().connected_devices(), 0);
    let mut later = connect(&bench, "dev1").await;
    assert_eq!(eviction(&mut later), None);
}

#[tokio::test]
async fn a_device_that_is_disabled_or_deleted_loses_its_connection() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    for name in ["dev1", "dev2", "dev3"] {
        bench.device(name).await;
    }
    let mut first = connect(&bench, "dev1").await;
    let mut second = connect(&bench, "dev2").await;
    let mut third = connect(&bench, "dev3").await;
    let disabled = DeviceSpec {
        status: Some(DeviceStatus::Disabled),
        ..spec("dev1")
    };
    registry.update(disabled, Precondition::Any).await.unwrap();
    assert_eq!(eviction(&mut first), Some(Eviction::Disabled));
    registry
        .update(spec("dev2"), Precondition::Any)
        .await
        .unwrap();
    assert_eq!(eviction(&mut second), None);
    registry
        .delete(&id("dev2"), Precondition::Any)
        .await
        .unwrap();
    assert_eq!(eviction(&mut second), Some(Eviction::Deleted));
    assert_eq!(eviction(&mut third), None);
    assert!(bench.hub.presence().cut(&identity("dev3")).await);
    assert_eq!(eviction(&mut third), Some(Eviction::Cut));
    assert!(!bench.hub.presence().cut(&identity("dev4")).await);
}

/// Between the check of a credential and the connection, the device may change. Nobody is connected
/// then whom the change could evict.
#[tokio::test]
async fn a_device_that_changed_since_it_was_authenticated_is_evicted_at_once() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let presence = bench.hub.presence();
    let generation = Arc::clone(&bench.device("dev1").await.generation_id);
    let disabled = DeviceSpec {
        status: Some(DeviceStatus::Disabled),
        ..spec("dev1")
    };
    registry.update(disabled, Precondition::Any).await.unwrap();
    let mut session = presence
        .connect(identity("dev1"), Arc::clone(&generation))
        .await;
    assert_eq!(eviction(&mut session), Some(Eviction::Disabled));
    drop(session);
    registry
        .delete(&id("dev1"), Precondition::Any)
        .await
        .unwrap();
    let mut session = presence
        .connect(identity("dev1"), Arc::clone(&generation))
        .await;
    assert_eq!(eviction(&mut session), Some(Eviction::Deleted));
    drop(session);
    bench.device("dev1").await;
    let mut session = presence.connect(identity("dev1"), generation).await;
    assert_eq!(eviction(&mut session), Some(Eviction::Deleted));
}

#[tokio::test]
async fn the_state_of_connections_is_told() {
    let bench = Bench::start().await;
    let presence = bench.hub.presence();
    let names: Vec<_> = (0..20).map(|n| format!("dev{n}")).collect();
    for name in &names {
        bench.device(name).await;
    }
    let identities: Vec<_> = names.iter().map(|name| identity(name)).collect();
    let sessions = [
        connect(&bench, "dev3").await,
        connect(&bench, "dev17").await,
    ];
    let start = bench.clock.now();
    bench.clock.advance(Duration::from_secs(5));
    sessions[1].touch(bench.clock.now());
    let states = presence.states(&identities).await;
    for (n, state) in states.iter().enumerate() {
        let expected = match n {
            3 => ConnectionState {
                connected: true,
                state_updated: start,
                last_activity: start,
            },
            17 => ConnectionState {
                connected: true,
                state_updated: start,
                last_activity: bench.clock.now(),
            },
            _ => ConnectionState::UNKNOWN,
        };
        assert_eq!(*state, expected, "{n}");
    }
    assert_eq!(presence.connected_devices(), 2);
    drop(sessions);
    bench.clock.advance(Duration::from_secs(5));
    settle().await;
    let state = presence.state(&identity("dev3")).await;
    assert_eq!((state.connected, state.last_activity), (false, start));
    assert!(state.state_updated > start && state.state_updated != Timestamp::NEVER);
    assert_eq!(presence.connected_devices(), 0);
}

#[tokio::test]
async fn a_hub_that_closes_tells_its_sessions() {
    let bench = Bench::start().await;
    bench.device("dev1").await;
    let mut session = connect(&bench, "dev1").await;
    let waiting = Box::pin(connect(&bench, "dev1"));
    let mut waiting = waiting;
    assert!(waiting.as_mut().poll(&mut context()).is_pending());
    settle().await;
    bench.hub.close().await;
    assert_eq!(eviction(&mut session), Some(Eviction::Replaced));
    assert_eq!(eviction(&mut waiting.await), Some(Eviction::Closing));
    let mut late = connect(&bench, "dev1").await;
    assert_eq!(eviction(&mut late), Some(Eviction::Closing));
    bench.hub.close().await;
}
