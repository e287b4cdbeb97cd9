//! Stored rows that cannot be read: what is behind them does not wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fieldpost_hub::c2d::{Cause, MessageQuery, SettleError, Settlement, TraceState};
use fieldpost_hub::settings::HubSettings;
use fieldpost_model::Ack;
use fieldpost_store::StoreError;
use fieldpost_store::queues::Lane;
use tracing::field::{Field, Visit};
use tracing::span;

use crate::bench::{Bench, settle};
use crate::commands::{
    complete, count, dead, feedback, ids, lane, message_id, next, records, seconds, send,
    send_many, stop, take, taken,
};
use crate::watched::WatchedQueues;

const FEEDBACK: Lane = Lane(1);
const DEAD_LETTERS: Lane = Lane(2);
const HISTORY: Lane = Lane(3);

/// Keeps the lines of level `error` that this thread writes.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<String>>>);

impl Errors {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl tracing::Subscriber for Errors {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_damaged_message_is_stepped_over_and_told_once() {
    let errors = Errors::default();
    let _guard = tracing::subscriber::set_default(errors.clone());
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let sent = send_many(hub, "dev1", &["a", "b", "c", "d", "e"]).await;
    for damaged in [0, 2, 3] {
        bench.memory.queues.damage_message(sent[damaged].sequence);
    }
    assert_eq!(count(hub, &device).await, 5);
    // Each connection reads the queue anew.
    for epoch in 0..3 {
        let mut receiver = hub.c2d().receiver(&device, epoch);
        receiver.set_window(10);
        assert_eq!(ids(&taken(&mut receiver).await), ["b", "e"]);
    }
    settle().await;
    assert_eq!(
        take(hub, &device, Settlement::Complete).await.sequence,
        sent[1].sequence
    );
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "e");
    assert!(next(hub, &device).await.is_none());
    // What is there is what is counted, whether it can be read or not.
    assert_eq!(count(hub, &device).await, 4);
    let listed = hub.c2d().list(&device.identity, 0, 10).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|message| message.sequence).collect();
    assert_eq!(listed, [sent[4].sequence]);
    let purged = hub.c2d().purge(&device.identity.device, None).await;
    assert_eq!(purged.unwrap(), 0);
    // New messages come as if nothing were wrong.
    send_many(hub, "dev1", &["f"]).await;
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "f");
    let lines = errors.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, damaged) in lines.iter().zip([0, 2, 3]) {
        let sequence = format!("sequence={} ", sent[damaged].sequence);
        assert!(
            line.contains("device=dev1 ") && line.contains(&sequence),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_message_that_is_damaged_in_one_queue_refuses_nothing_of_the_others() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let names: Vec<_> = (0..8).map(|n| format!("dev{n}")).collect();
    let mut receivers = Vec::new();
    for name in &names {
        let device = bench.principal(name).await;
        let mut receiver = hub.c2d().receiver(&device, 1);
        receiver.set_window(1);
        send_many(hub, name, &["a"]).await;
        let delivery = taken(&mut receiver).await.remove(0);
        receivers.push((device, receiver, delivery.sequence));
    }
    let (_, _, damaged) = &receivers[3];
    bench.memory.queues.damage_message(*damaged);
    // All in one batch, of each owner.
    for (_, receiver, sequence) in &mut receivers {
        assert!(receiver.settle_and_tell(*sequence, Settlement::Complete));
    }
    settle().await;
    for (n, (device, receiver, sequence)) in receivers.iter_mut().enumerate() {
        let told = std::future::poll_fn(|cx| receiver.poll_settled(cx)).await;
        assert_eq!(told.0, *sequence);
        let is_damaged = matches!(told.1, Err(SettleError::Store(StoreError::Damaged { .. })));
        assert_eq!(is_damaged, n == 3, "{n}: {told:?}");
        assert_eq!(count(hub, device).await, u64::from(n == 3), "{n}");
    }
    assert_eq!(lane(&bench.memory.queues, HISTORY.0).count, 7);
}

#[tokio::test]
async fn an_enqueue_beside_damage_is_carried_out_once() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    send_many(hub, "dev1", &["a"]).await;
    let held = taken(&mut receiver).await.remove(0);
    bench.memory.queues.damage_message(held.sequence);
    // One batch: the settlement that fails, and a message behind it.
    receiver.settle_and_tell(held.sequence, Settlement::Reject);
    send(hub, "dev1", "b", Ack::None).await.unwrap();
    settle().await;
    assert_eq!(ids(&taken(&mut receiver).await), Vec::<String>::new());
    // The damaged queue is left alone for a moment.
    bench.clock.advance(seconds(10));
    assert_eq!(ids(&taken(&mut receiver).await), ["b"]);
    assert_eq!(count(hub, &device).await, 2);
}

#[tokio::test]
async fn damaged_feedback_is_left_out_and_all_else_is_told() {
    let errors = Errors::default();
    let _guard = tracing::subscriber::set_default(errors.clone());
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let queues = &bench.memory.queues;
    complete(hub, &device, "first", Ack::Full).await;
    settle().await;
    assert_eq!(feedback(hub).await.unwrap().records, 1);
    for n in 0..6 {
        complete(hub, &device, &n.to_string(), Ack::Full).await;
    }
    let last = lane(queues, FEEDBACK.0).last;
    for damaged in [last - 5, last - 3, last - 2] {
        queues.damage_outcome(FEEDBACK, damaged);
    }
    bench.clock.advance(seconds(15));
    settle().await;
    let told = records(&feedback(hub).await.unwrap());
    let told: Vec<_> = told.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(told, ["1", "4", "5"]);
    assert_eq!(lane(queues, FEEDBACK.0).count, 0);
    assert_eq!(errors.lines().len(), 3, "{:#?}", errors.lines());

    // Nothing but damage: it goes, and does not keep anything busy.
    complete(hub, &device, "6", Ack::Full).await;
    queues.damage_outcome(FEEDBACK, last + 1);
    bench.clock.advance(seconds(15));
    settle().await;
    assert_eq!(feedback(hub).await, None);
    assert_eq!(lane(queues, FEEDBACK.0).count, 0);
    complete(hub, &device, "7", Ack::Full).await;
    settle().await;
    assert_eq!(records(&feedback(hub).await.unwrap())[0].1, "7");
    assert_eq!(errors.lines().len(), 4, "{:#?}", errors.lines());
}

/// The lane counts what cannot be read: 64 records seem to wait, and fewer do.
#[tokio::test]
async fn feedback_waits_for_its_time_although_the_lane_counts_more() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let watched = Arc::new(WatchedQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&watched) as _).await;
    complete(&hub, &device, "first", Ack::Full).await;
    settle().await;
    assert_eq!(feedback(&hub).await.unwrap().records, 1);
    let before = lane(&stopped.memory.queues, FEEDBACK.0).last;
    for n in 0..20 {
        stopped
            .memory
            .queues
            .damage_outcome(FEEDBACK, before + 3 * n + 1);
    }
    for n in 0..70 {
        complete(&hub, &device, &n.to_string(), Ack::Full).await;
    }
    settle().await;
    watched.take_reads();
    for _ in 0..14 {
        stopped.clock.advance(seconds(1));
        settle().await;
    }
    // It has been looked at, and found to be too little.
    assert_eq!(watched.take_reads(), 0);
    assert_eq!(feedback(&hub).await, None);
    stopped.clock.advance(seconds(1));
    settle().await;
    assert_eq!(feedback(&hub).await.unwrap().records, 50);
    let reads = watched.take_reads();
    assert!(reads < 100, "{reads}");
    assert_eq!(lane(&stopped.memory.queues, FEEDBACK.0).count, 0);
}

/// The store refuses whatever asks for a mark that is damaged, and does so for ever.
#[tokio::test]
async fn senders_are_told_although_the_mark_of_what_was_told_is_damaged() {
    let errors = Errors::default();
    let _guard = tracing::subscriber::set_default(errors.clone());
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let watched = Arc::new(WatchedQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&watched) as _).await;
    watched.damage_marks();
    for id in ["a", "b"] {
        complete(&hub, &device, id, Ack::Full).await;
        settle().await;
        assert_eq!(records(&feedback(&hub).await.unwrap())[0].1, id);
        assert_eq!(lane(&stopped.memory.queues, FEEDBACK.0).count, 0);
        stopped.clock.advance(seconds(15));
        settle().await;
    }
    assert_eq!(errors.lines().len(), 1, "{:#?}", errors.lines());
    // What waits when a hub stops is told by the next one, which asks for the mark when it starts.
    complete(&hub, &device, "c", Ack::Full).await;
    settle().await;
    assert_eq!(records(&feedback(&hub).await.unwrap())[0].1, "c");
    complete(&hub, &device, "d", Ack::Full).await;
    settle().await;
    assert_eq!(lane(&stopped.memory.queues, FEEDBACK.0).count, 1);
    drop(hub);
    settle().await;
    let hub = stopped.start(Arc::clone(&watched) as _).await;
    settle().await;
    assert_eq!(records(&feedback(&hub).await.unwrap())[0].1, "d");
    assert_eq!(lane(&stopped.memory.queues, FEEDBACK.0).count, 0);
    assert_eq!(errors.lines().len(), 2, "{:#?}", errors.lines());
}

#[tokio::test]
async fn damaged_outcomes_stop_neither_trimming_nor_questions() {
    let errors = Errors::default();
    let _guard = tracing::subscriber::set_default(errors.clone());
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let queues = &bench.memory.queues;
    for n in 0..6 {
        complete(hub, &device, &format!("done{n}"), Ack::None).await;
        send(hub, "dev1", &format!("dead{n}"), Ack::None)
            .await
            .unwrap();
        take(hub, &device, Settlement::Reject).await;
    }
    for lane in [DEAD_LETTERS, HISTORY] {
        for damaged in [1, 2, 4] {
            queues.damage_outcome(lane, damaged);
        }
    }
    assert_eq!(dead(hub).await, [(Cause::Rejected, 0); 3]);
    for (id, expected) in [
        ("done0", 0),
        ("done2", 1),
        ("done5", 1),
        ("dead1", 0),
        ("dead4", 1),
    ] {
        let query = MessageQuery::Id(id.to_owned());
        let traces = hub.c2d().show(&device.identity, &query).await.unwrap();
        assert_eq!(traces.len(), expected, "{id}");
        let is_done = |state| matches!(state, TraceState::Completed { .. });
        assert!(
            traces
                .iter()
                .all(|t| is_done(t.state) == id.starts_with("done"))
        );
    }
    let mut settings = HubSettings::default();
    settings.cloud_to_device.history.messages_max = 1;
    settings.cloud_to_device.dead_letters.keep = seconds(60);
    hub.settings().apply(settings).await.unwrap();
    let trimmed = async |by: u64| {
        for _ in 0..by {
            bench.clock.advance(seconds(10));
            settle().await;
        }
        [DEAD_LETTERS, HISTORY].map(|of| lane(queues, of.0).count)
    };
    assert_eq!(trimmed(10).await, [0, 1]);
    // Damage alone goes when there is no room for it.
    queues.damage_outcome(HISTORY, 6);
    queues.damage_outcome(HISTORY, 7);
    complete(hub, &device, "more", Ack::None).await;
    assert_eq!(trimmed(10).await, [0, 0]);
    complete(hub, &device, "last", Ack::None).await;
    assert_eq!(trimmed(10).await, [0, 1]);
    let lines = errors.lines();
    // Each damage once, however often it was met.
    assert!((4..=8).contains(&lines.len()), "{lines:#?}");
}

#[tokio::test]
async fn a_message_that_cannot_be_taken_out_does_not_keep_the_others_from_ending() {
    let errors = Errors::default();
    let _guard = tracing::subscriber::set_default(errors.clone());
    let bench = Bench::start().await;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.queue_depth_max = 2000;
    bench.hub.settings().apply(settings).await.unwrap();
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let watched = Arc::new(WatchedQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&watched) as _).await;
    let stuck = send_many(&hub, "dev1", &["stuck"]).await.remove(0);
    for _ in 0..1200 {
        send_many(&hub, "dev1", &["m"]).await;
    }
    watched.stick(stuck.sequence);
    // All pages of them, at the first try.
    for _ in 0..4 {
        stopped.clock.advance(seconds(900));
        for _ in 0..100 {
            settle().await;
        }
    }
    assert_eq!(count(&hub, &device).await, 1);
    assert_eq!(lane(&stopped.memory.queues, DEAD_LETTERS.0).count, 1200);
    // It is not tried again and again.
    watched.take_batches();
    for _ in 0..60 {
        stopped.clock.advance(seconds(1));
        settle().await;
    }
    let batches = watched.take_batches();
    assert!(batches <= 10, "{batches}");
    assert_eq!(errors.lines().len(), 1, "{:#?}", errors.lines());
}

/// So many queues of one owner are read at a time.
const LOADS_MAX: u64 = 64;

#[tokio::test]
async fn a_storm_of_connections_reads_so_many_queues_at_a_time() {
    let bench = Bench::start().await;
    let mut devices = Vec::new();
    for n in 0..700 {
        devices.push(bench.principal(&format!("dev{n}")).await);
    }
    for device in &devices {
        send_many(&bench.hub, device.identity.device.as_str(), &["a"]).await;
    }
    let stopped = stop(bench).await;
    let watched = Arc::new(WatchedQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&watched) as _).await;
    watched.hold_lists();
    let mut receivers = Vec::new();
    for device in &devices {
        let mut receiver = hub.c2d().receiver(device, 1);
        receiver.set_window(1);
        receivers.push(receiver);
    }
    settle().await;
    // Four owners, of each the most.
    assert_eq!(watched.lists_held(), 4 * LOADS_MAX);
    let most = AtomicU64::new(0);
    while watched.lists_held() > 0 {
        most.fetch_max(watched.lists_held(), Ordering::Relaxed);
        watched.release_list();
        settle().await;
    }
    assert_eq!(most.into_inner(), 4 * LOADS_MAX);
    for (n, receiver) in receivers.iter_mut().enumerate() {
        assert_eq!(taken(receiver).await.len(), 1, "{n}");
    }
}
