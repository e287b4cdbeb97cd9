use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::{Cause, DeadLetterPage, RequeueError, SendRefused, Settlement};
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::settings::HubSettings;
use fieldpost_hub::{Hub, c2d::AttemptEnd, c2d::AttemptReceiver};
use fieldpost_model::{Ack, Timestamp};
use fieldpost_record::CommandView;

use crate::bench::{Bench, identity, settle};
use crate::commands::{DyingQueues, body, complete, lane, send, stop, take};

const DEAD_LETTERS: u8 = 2;
const HISTORY: u8 = 3;

async fn reject(hub: &Hub, device: &DevicePrincipal, id: &str) {
    let name = device.identity.device.as_str();
    send(hub, name, id, Ack::None).await.unwrap();
    take(hub, device, Settlement::Reject).await;
}

fn ids(page: &DeadLetterPage) -> Vec<String> {
    let id = |message| {
        let view = CommandView::parse(message).unwrap();
        view.message_id().unwrap().to_owned()
    };
    page.letters.iter().map(|l| id(&l.message)).collect()
}

#[tokio::test]
async fn a_dead_letter_says_what_happened_and_keeps_the_message() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let start = bench.clock.now();
    let accepted = send(hub, "dev1", "m", Ack::Full).await.unwrap();
    bench.clock.advance(Duration::from_secs(1));
    take(hub, &device, Settlement::Abandon).await;
    bench.clock.advance(Duration::from_secs(1));
    take(hub, &device, Settlement::Reject).await;
    let page = hub.c2d().dead_letters(0, 10, None).await.unwrap();
    let [letter] = &page.letters[..] else {
        panic!("{page:?}");
    };
    assert_eq!(letter.identity, device.identity);
    assert_eq!(letter.generation, *device.generation_id);
    assert_eq!(letter.sequence, accepted.sequence);
    assert_eq!((letter.cause, letter.is_told), (Cause::Rejected, true));
    assert_eq!(letter.delivery_count, 1);
    let at = |seconds| start.saturating_add(Duration::from_secs(seconds));
    assert_eq!(letter.at, at(2));
    let attempts: Vec<_> = letter
        .attempts
        .kept()
        .iter()
        .map(|attempt| (attempt.at, attempt.receiver, attempt.end))
        .collect();
    let expected = [
        (at(1), AttemptReceiver::Request, AttemptEnd::Abandoned),
        (at(2), AttemptReceiver::Request, AttemptEnd::Rejected),
    ];
    assert_eq!(attempts, expected);
    assert_eq!(body(&letter.message), b"on");
    assert_eq!(page.next, None);

    let one = hub.c2d().dead_letter(letter.number).await.unwrap();
    assert_eq!(one.as_ref(), Some(letter));
    for other in [0, letter.number + 1, u64::MAX] {
        assert_eq!(hub.c2d().dead_letter(other).await.unwrap(), None);
    }
}

#[tokio::test]
async fn dead_letters_are_paged_and_told_apart_by_device() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let (one, two) = (bench.principal("dev1").await, bench.principal("dev2").await);
    for n in 0..5 {
        reject(hub, &one, &format!("a{n}")).await;
        reject(hub, &two, &format!("b{n}")).await;
    }
    let c2d = hub.c2d();
    let all = c2d.dead_letters(0, 100, None).await.unwrap();
    assert_eq!((all.letters.len(), all.next), (10, None));
    let only = identity("dev2");
    let mut found = Vec::new();
    let mut after = Some(0);
    while let Some(start) = after {
        let page = c2d.dead_letters(start, 2, Some(&only)).await.unwrap();
        assert!(page.letters.len() <= 2);
        found.extend(ids(&page));
        after = page.next;
    }
    assert_eq!(found, ["b0", "b1", "b2", "b3", "b4"]);
    let stranger = identity("dev3");
    let none = c2d.dead_letters(0, 2, Some(&stranger)).await.unwrap();
    assert_eq!(none, DeadLetterPage::default());

    let first = all.letters[0].number;
    assert!(c2d.remove_dead_letter(first).await.unwrap());
    assert!(!c2d.remove_dead_letter(first).await.unwrap());
    let rest = c2d.dead_letters(0, 100, None).await.unwrap();
    assert_eq!(rest.letters[..], all.letters[1..]);
}

#[tokio::test]
async fn a_dead_letter_that_is_sent_anew_arrives_as_a_new_message() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    reject(hub, &device, "m").await;
    let number = lane(&bench.memory.queues, DEAD_LETTERS).last;
    bench.clock.advance(Duration::from_secs(24 * 3600));
    let accepted = hub.c2d().requeue(number).await.unwrap();
    let now = bench.clock.now();
    let hour = Duration::from_secs(3600);
    assert_eq!(accepted.enqueued, now);
    assert_eq!(accepted.expires, now.saturating_add(hour));
    assert_eq!(lane(&bench.memory.queues, DEAD_LETTERS).count, 0);
    let delivery = take(hub, &device, Settlement::Complete).await;
    assert_eq!(delivery.sequence, accepted.sequence);
    assert_eq!(delivery.delivery_count, 0);
    let view = CommandView::parse(&delivery.message).unwrap();
    assert_eq!((view.message_id(), view.sender()), (Some("m"), "service"));
    assert_eq!(view.body(), Some(&b"on"[..]));
    assert_eq!(view.to(), "/devices/dev1/messages/deviceBound");
    assert_eq!(view.expires(), accepted.expires);

    let again = hub.c2d().requeue(number).await;
    assert!(matches!(again, Err(RequeueError::NotFound)), "{again:?}");
}

#[tokio::test]
async fn two_operators_send_a_dead_letter_anew_once() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    reject(hub, &device, "m").await;
    let number = lane(&bench.memory.queues, DEAD_LETTERS).last;
    bench.memory.queues.withhold(true);
    let tasks = [(); 2].map(|()| {
        let hub = hub.clone();
        tokio::spawn(async move { hub.c2d().requeue(number).await.is_ok() })
    });
    settle().await;
    bench.memory.queues.withhold(false);
    let mut sent = 0;
    for task in tasks {
        sent += u32::from(task.await.unwrap());
    }
    assert_eq!(sent, 1);
    take(hub, &device, Settlement::Complete).await;
    let more = hub.c2d().receive_one(&device, None).await.unwrap();
    assert!(more.is_none());
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_sent_anew_stays() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    reject(hub, &device, "m").await;
    let number = lane(&bench.memory.queues, DEAD_LETTERS).last;
    for n in 0..50 {
        let sent = send(hub, "dev1", &n.to_string(), Ack::None).await;
        sent.unwrap();
    }
    let full = hub.c2d().requeue(number).await;
    let is_full = matches!(
        full,
        Err(RequeueError::Refused(SendRefused::QueueFull { max: 50 }))
    );
    assert!(is_full, "{full:?}");
    let id = &device.identity.device;
    hub.registry().delete(id, Default::default()).await.unwrap();
    let gone = hub.c2d().requeue(number).await;
    let is_gone = matches!(gone, Err(RequeueError::Refused(SendRefused::UnknownDevice)));
    assert!(is_gone, "{gone:?}");
    assert_eq!(lane(&bench.memory.queues, DEAD_LETTERS).count, 1);

    // To the device as it is now.
    let new = bench.principal("dev1").await;
    hub.c2d().requeue(number).await.unwrap();
    take(hub, &new, Settlement::Complete).await;
    assert_eq!(lane(&bench.memory.queues, DEAD_LETTERS).count, 0);
}

#[tokio::test]
async fn a_hub_that_dies_while_a_letter_is_sent_anew_has_it_at_least_once() {
    let mut places = Vec::new();
    for lives in 1..20 {
        let bench = Bench::start().await;
        let device = bench.principal("dev1").await;
        reject(&bench.hub, &device, "m").await;
        let number = lane(&bench.memory.queues, DEAD_LETTERS).last;
        let stopped = stop(bench).await;
        let dying = Arc::new(DyingQueues::new(&stopped.memory.queues));
        let hub = stopped.start(Arc::clone(&dying) as _).await;
        settle().await;
        dying.die_after(lives);
        let requeueing = hub.clone();
        let task = tokio::spawn(async move { requeueing.c2d().requeue(number).await });
        settle().await;
        let is_dead = dying.is_dead();
        task.abort();
        drop(hub);
        settle().await;

        let hub = stopped.start(Arc::clone(&stopped.memory.queues) as _).await;
        let letters = lane(&stopped.memory.queues, DEAD_LETTERS).count;
        let delivery = hub.c2d().receive_one(&device, None).await.unwrap();
        let place = (letters, delivery.is_some());
        assert_ne!(place, (0, false), "{lives}");
        places.push(place);
        if !is_dead {
            break;
        }
    }
    // Once in both places, and at last where it belongs.
    assert!(places.contains(&(1, true)), "{places:?}");
    assert_eq!(places.last(), Some(&(0, true)), "{places:?}");
}

/// Lets the keeper look, often enough for everything that is due.
async fn let_keep(bench: &Bench) {
    for _ in 0..20 {
        bench.clock.advance(Duration::from_secs(1));
        settle().await;
    }
}

#[tokio::test]
async fn dead_letters_go_when_they_are_old_or_too_many() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let kept = async || ids(&hub.c2d().dead_letters(0, 100, None).await.unwrap());
    let day = Duration::from_secs(24 * 3600);
    reject(hub, &device, "old").await;
    bench.clock.advance(3 * day);
    reject(hub, &device, "young").await;
    let_keep(&bench).await;
    assert_eq!(kept().await, ["old", "young"]);
    bench.clock.advance(4 * day);
    let_keep(&bench).await;
    assert_eq!(kept().await, ["young"]);
    bench.clock.advance(3 * day);
    let_keep(&bench).await;
    assert_eq!(kept().await, Vec::<String>::new());

    for n in 0..10 {
        reject(hub, &device, &n.to_string()).await;
    }
    let bytes = lane(&bench.memory.queues, DEAD_LETTERS).bytes;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.dead_letters.bytes_max = bytes / 2;
    hub.settings().apply(settings.clone()).await.unwrap();
    let_keep(&bench).await;
    assert_eq!(kept().await, ["5", "6", "7", "8", "9"]);
    // None at all: neither those that there are nor new ones.
    settings.cloud_to_device.dead_letters.keep = Duration::ZERO;
    hub.settings().apply(settings).await.unwrap();
    reject(hub, &device, "x").await;
    let_keep(&bench).await;
    assert_eq!(kept().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_history_keeps_its_newest_within_the_bounds() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    for n in 0..10 {
        complete(hub, &device, &n.to_string(), Ack::None).await;
    }
    let_keep(&bench).await;
    let figures = lane(&bench.memory.queues, HISTORY);
    assert_eq!(figures.count, 10);
    let mut settings = HubSettings::default();
    settings.cloud_to_device.history.messages_max = 7;
    hub.settings().apply(settings.clone()).await.unwrap();
    let_keep(&bench).await;
    assert_eq!(lane(&bench.memory.queues, HISTORY).count, 7);
    settings.cloud_to_device.history.bytes_max = figures.bytes / 10 * 2;
    hub.settings().apply(settings.clone()).await.unwrap();
    let_keep(&bench).await;
    let left = lane(&bench.memory.queues, HISTORY);
    assert_eq!((left.count, left.last), (2, figures.last));
    settings.cloud_to_device.history.enabled = false;
    hub.settings().apply(settings).await.unwrap();
    complete(hub, &device, "untold", Ack::None).await;
    assert_eq!(lane(&bench.memory.queues, HISTORY).last, figures.last);
    let_keep(&bench).await;
    assert_eq!(lane(&bench.memory.queues, HISTORY).count, 0);
}

#[tokio::test]
async fn a_letter_that_expired_counts_from_when_it_left() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    bench.device("dev1").await;
    let accepted = send(hub, "dev1", "m", Ack::None).await.unwrap();
    for _ in 0..8 {
        bench.clock.advance(Duration::from_secs(600));
        settle().await;
    }
    let page = hub.c2d().dead_letters(0, 10, None).await.unwrap();
    let letter = &page.letters[0];
    assert_eq!((letter.cause, letter.delivery_count), (Cause::Expired, 0));
    assert_eq!(letter.attempts.count(), 0);
    let at: Timestamp = letter.at;
    assert!(at >= accepted.expires, "{at}");
}
