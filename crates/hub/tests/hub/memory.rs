//! How much of messages to devices is in memory.

use std::task::Poll;

use fieldpost_hub::Hub;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::{Delivery, Receiver, Settlement, Target};
use fieldpost_model::CloudMessage;
use fieldpost_store::memory::MemoryStore;
use fieldpost_store::{Health, HealthLevel};

use crate::bench::{Bench, context, identity, settle};
use crate::commands::{count, next};

const BUDGET: usize = 500_000;
const BODY: usize = 20_000;
const DEVICES: usize = 20;
const MESSAGES: usize = 20;

/// What one page of a queue may have beyond the budget, and one message of each queue.
const BEYOND: usize = 256 * 1024 + (DEVICES + 1) * (BODY + 500);

fn held_bytes(hub: &Hub) -> usize {
    hub.c2d().figures().held_bytes
}

async fn filled() -> (Bench, Vec<DevicePrincipal>) {
    let bench = Bench::with(MemoryStore::automatic, |config| {
        config.device_bound_bytes = BUDGET;
    })
    .await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let name = format!("dev{n}");
        devices.push(bench.principal(&name).await);
        let mut sender = bench.hub.c2d().sender("service");
        for _ in 0..MESSAGES {
            let target = Target {
                identity: identity(&name),
                fallback: None,
            };
            let message = CloudMessage {
                body: vec![0; BODY].into(),
                ..CloudMessage::default()
            };
            sender.send_one(target, &message).await.unwrap();
        }
    }
    (bench, devices)
}

fn take_all(receiver: &mut Receiver) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while let Poll::Ready(delivery) = receiver.poll_delivery(&mut context()) {
        taken.push(delivery);
    }
    taken
}

#[tokio::test]
async fn slow_devices_share_a_budget_and_all_of_them_get_on() {
    let (bench, devices) = filled().await;
    let hub = &bench.hub;
    assert_eq!(held_bytes(hub), 0);
    let mut receivers = Vec::new();
    for device in &devices {
        let mut receiver = hub.c2d().receiver(device, 1);
        receiver.set_window(16);
        receivers.push(receiver);
    }
    settle().await;
    let mut flying: Vec<Vec<Delivery>> = receivers.iter_mut().map(take_all).collect();
    // Nobody answers, and nobody is left without anything.
    assert!(flying.iter().all(|taken| !taken.is_empty()));
    assert!(held_bytes(hub) <= BUDGET + BEYOND, "{}", held_bytes(hub));
    let mut last = [0; DEVICES];
    let mut done = [0; DEVICES];
    while flying.iter().any(|taken| !taken.is_empty()) {
        for (n, receiver) in receivers.iter_mut().enumerate() {
            for delivery in std::mem::take(&mut flying[n]) {
                assert!(delivery.sequence > last[n]);
                last[n] = delivery.sequence;
                done[n] += 1;
                assert!(receiver.settle(delivery.sequence, Settlement::Complete));
            }
        }
        settle().await;
        for (taken, receiver) in flying.iter_mut().zip(&mut receivers) {
            taken.append(&mut take_all(receiver));
        }
        assert!(held_bytes(hub) <= BUDGET + BEYOND, "{}", held_bytes(hub));
    }
    assert_eq!(done, [MESSAGES; DEVICES]);
    assert_eq!(held_bytes(hub), 0);
}

#[tokio::test]
async fn whoever_waits_for_room_goes_on_when_somebody_else_gives_it_back() {
    let (bench, devices) = filled().await;
    let hub = &bench.hub;
    let mut greedy: Vec<Receiver> = Vec::new();
    for device in &devices[1..] {
        let mut receiver = hub.c2d().receiver(device, 1);
        receiver.set_window(16);
        settle().await;
        greedy.push(receiver);
    }
    let mut late = hub.c2d().receiver(&devices[0], 1);
    late.set_window(16);
    settle().await;
    assert_eq!(take_all(&mut late).len(), 1);
    // Requests are answered: what waits is for later.
    let first = next(hub, &devices[DEVICES - 1]).await;
    assert!(first.is_none());
    drop(greedy);
    settle().await;
    assert_eq!(take_all(&mut late).len(), 15);
    assert_eq!(late.holds(), 16);
    assert_eq!(count(hub, &devices[0]).await, MESSAGES as u64);
    drop(late);
    settle().await;
    assert_eq!(held_bytes(hub), 0);
}

/// Before this was so, the owner of the queue never came to an end of its round.
#[tokio::test]
async fn whoever_waits_for_room_keeps_nobody_busy_while_nothing_is_delivered() {
    let (bench, devices) = filled().await;
    let hub = &bench.hub;
    let mut greedy: Vec<Receiver> = Vec::new();
    for device in &devices[1..] {
        let mut receiver = hub.c2d().receiver(device, 1);
        receiver.set_window(16);
        settle().await;
        greedy.push(receiver);
    }
    let mut late = hub.c2d().receiver(&devices[0], 1);
    late.set_window(16);
    settle().await;
    assert_eq!(take_all(&mut late).len(), 1);
    bench.memory.log.set_health(Health {
        level: HealthLevel::HoldAll,
        reason: None,
    });
    settle().await;
    drop(greedy);
    settle().await;
    assert!(take_all(&mut late).is_empty());
    bench.memory.log.set_health(Health::OK);
    settle().await;
    assert_eq!(take_all(&mut late).len(), 15);
}

#[tokio::test]
async fn a_message_that_comes_without_room_is_read_when_there_is_some() {
    let (bench, devices) = filled().await;
    let hub = &bench.hub;
    let name = devices[0].identity.device.as_str();
    let mut receivers: Vec<Receiver> = Vec::new();
    for device in &devices {
        let mut receiver = hub.c2d().receiver(device, 1);
        receiver.set_window(16);
        settle().await;
        receivers.push(receiver);
    }
    let before = held_bytes(hub);
    let accepted = crate::commands::send_many(hub, name, &["late"]).await;
    settle().await;
    assert_eq!(held_bytes(hub), before);
    receivers.truncate(1);
    let receiver = &mut receivers[0];
    receiver.set_window(100);
    settle().await;
    let last = take_all(receiver).last().map(|last| last.sequence);
    assert_eq!(last, Some(accepted[0].sequence));
}
