use std::time::Duration;

use fieldpost_hub::Hub;
use fieldpost_hub::c2d::{
    AttemptEnd, Cause, FeedbackState, MessageQuery, MessageTrace, Settlement, TraceState,
};
use fieldpost_hub::clock::Clock as _;
use fieldpost_model::Ack;

use crate::bench::{Bench, identity, settle};
use crate::commands::{complete, send, take};

async fn by_id(hub: &Hub, device: &str, id: &str) -> Vec<MessageTrace> {
    let query = MessageQuery::Id(id.to_owned());
    hub.c2d().show(&identity(device), &query).await.unwrap()
}

/// The one message of an id.
async fn one(hub: &Hub, device: &str, id: &str) -> MessageTrace {
    let traces = by_id(hub, device, id).await;
    let [trace] = &traces[..] else {
        panic!("{traces:?}");
    };
    trace.clone()
}

#[tokio::test]
async fn a_message_can_be_followed_from_the_queue_to_its_end() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let start = bench.clock.now();
    let second = Duration::from_secs(1);
    let accepted = send(hub, "dev1", "m", Ack::Full).await.unwrap();
    let waiting = one(hub, "dev1", "m").await;
    let expected = MessageTrace {
        sequence: accepted.sequence,
        generation: device.generation_id.to_string(),
        message_id: Some("m".to_owned()),
        sender: "service".to_owned(),
        enqueued: start,
        expires: accepted.expires,
        size: waiting.size,
        delivery_count: 0,
        attempts: Default::default(),
        state: TraceState::Waiting,
        feedback: FeedbackState::None,
    };
    assert_eq!(waiting, expected);
    assert!(waiting.size > 10, "{}", waiting.size);

    bench.clock.advance(second);
    let c2d = hub.c2d();
    let delivery = c2d.receive_one(&device, None).await.unwrap().unwrap();
    let locked = one(hub, "dev1", "m").await;
    let until = Some(start.saturating_add(61 * second));
    assert_eq!(locked.state, TraceState::Locked { until });
    bench.clock.advance(second);
    let lock = delivery.lock;
    c2d.settle(&device, lock, Settlement::Abandon)
        .await
        .unwrap();
    let back = one(hub, "dev1", "m").await;
    assert_eq!((back.state, back.delivery_count), (TraceState::Waiting, 1));
    assert_eq!(back.attempts.kept()[0].end, AttemptEnd::Abandoned);

    take(hub, &device, Settlement::Complete).await;
    settle().await;
    let done = one(hub, "dev1", "m").await;
    let at = start.saturating_add(2 * second);
    let ends: Vec<_> = done.attempts.kept().iter().map(|a| (a.at, a.end)).collect();
    let first = start.saturating_add(second);
    let expected_ends = [(first, AttemptEnd::Abandoned), (at, AttemptEnd::Completed)];
    assert_eq!(ends, expected_ends);
    let expected = MessageTrace {
        state: TraceState::Completed { at },
        delivery_count: 1,
        attempts: done.attempts.clone(),
        feedback: FeedbackState::Sent { at: Some(at) },
        ..expected
    };
    assert_eq!(done, expected);

    let query = MessageQuery::Sequence(accepted.sequence);
    let traces = c2d.show(&identity("dev1"), &query).await.unwrap();
    assert_eq!(traces, [done]);
    for (device, sequence) in [("dev2", accepted.sequence), ("dev1", 99_999)] {
        let query = MessageQuery::Sequence(sequence);
        let traces = c2d.show(&identity(device), &query).await.unwrap();
        assert_eq!(traces, []);
    }
    assert_eq!(by_id(hub, "dev1", "M").await, []);
}

#[tokio::test]
async fn it_shows_whether_the_sender_is_told_yet() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    complete(hub, &device, "first", Ack::Full).await;
    settle().await;
    complete(hub, &device, "second", Ack::Full).await;
    complete(hub, &device, "untold", Ack::Negative).await;
    settle().await;
    let start = bench.clock.now();
    let state = async |id: &str| one(hub, "dev1", id).await.feedback;
    assert_eq!(
        state("first").await,
        FeedbackState::Sent { at: Some(start) }
    );
    assert_eq!(state("second").await, FeedbackState::Pending);
    assert_eq!(state("untold").await, FeedbackState::None);
    bench.clock.advance(Duration::from_secs(15));
    settle().await;
    let at = Some(bench.clock.now());
    assert_eq!(state("second").await, FeedbackState::Sent { at });

    send(hub, "dev1", "purged", Ack::Full).await.unwrap();
    let purged = bench.clock.now();
    let id = &device.identity.device;
    assert_eq!(hub.c2d().purge(id, None).await.unwrap(), 1);
    bench.clock.advance(Duration::from_secs(15));
    settle().await;
    let told = Some(bench.clock.now());

    // All of that outlives the hub.
    let stopped = crate::commands::stop(bench).await;
    let hub = stopped.start(stopped.memory.queues.clone()).await;
    let trace = one(&hub, "dev1", "second").await;
    assert_eq!(trace.feedback, FeedbackState::Sent { at });
    let trace = one(&hub, "dev1", "purged").await;
    assert_eq!(trace.state, TraceState::Purged { at: purged });
    assert_eq!(trace.feedback, FeedbackState::Sent { at: told });
}

#[tokio::test]
async fn an_id_that_was_used_often_shows_all_that_is_known_in_order() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let old = bench.principal("dev1").await;
    complete(hub, &old, "m", Ack::None).await;
    let id = &old.identity.device;
    hub.registry().delete(id, Default::default()).await.unwrap();
    bench.clock.advance(Duration::from_secs(1));
    let device = bench.principal("dev1").await;
    send(hub, "dev1", "m", Ack::None).await.unwrap();
    take(hub, &device, Settlement::Reject).await;
    complete(hub, &device, "other", Ack::None).await;
    complete(hub, &device, "m", Ack::None).await;
    send(hub, "dev1", "m", Ack::None).await.unwrap();
    let traces = by_id(hub, "dev1", "m").await;
    assert!(traces.is_sorted_by(|a, b| a.sequence < b.sequence));
    let states: Vec<_> = traces.iter().map(|trace| trace.state).collect();
    let now = bench.clock.now();
    let before = now.saturating_sub(Duration::from_secs(1));
    let number = 1;
    let expected = [
        TraceState::Completed { at: before },
        TraceState::DeadLettered {
            number,
            cause: Cause::Rejected,
            at: now,
        },
        TraceState::Completed { at: now },
        TraceState::Waiting,
    ];
    assert_eq!(states, expected);
    assert_eq!(traces[0].generation, *old.generation_id);
    assert_eq!(traces[1].generation, *device.generation_id);

    for _ in 0..250 {
        complete(hub, &device, "busy", Ack::None).await;
    }
    let last = send(hub, "dev1", "busy", Ack::None).await.unwrap();
    let traces = by_id(hub, "dev1", "busy").await;
    assert_eq!(traces.len(), 100);
    assert_eq!(traces[99].sequence, last.sequence);
    assert!(traces.is_sorted_by(|a, b| a.sequence < b.sequence));
}
