use std::sync::Arc;

use fieldpost_model::{CloudMessage, Identity, Partitioning, Timestamp};
use fieldpost_store::memory::MemoryStore;

use super::super::names::{Named, QueueKey};
use super::super::queue::ReceiverId;
use super::super::receiver::Inbox;
use super::super::{Inner, Target};
use super::*;
use crate::clock::{ManualClock, SeededChance};
use crate::identity::DeviceSpec;
use crate::secrets::Keyring;
use crate::{Hub, HubConfig, HubParts};

async fn hub() -> Hub {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_798_859_045_000)));
    let partitioning = Partitioning::new(4).unwrap();
    let store = MemoryStore::automatic(partitioning, Arc::clone(&clock) as _);
    Hub::open(HubParts {
        store: store.store(),
        timer: clock,
        chance: Arc::new(SeededChance::new(1)),
        keyring: Keyring::new(1, [7; 32]),
        config: HubConfig::default(),
    })
    .await
    .unwrap()
}

async fn queue(hub: &Hub, id: &str) -> Arc<Named> {
    let spec = DeviceSpec::new(id.parse().unwrap());
    let device = hub.registry().create(spec).await.unwrap();
    let identity = Identity::of_device(device.device_id.clone());
    Named::new(QueueKey::of(identity, Arc::clone(&device.generation_id)))
}

async fn send(hub: &Hub, id: &str) -> Accepted {
    let target = Target {
        identity: Identity::of_device(id.parse().unwrap()),
        fallback: None,
    };
    let mut sender = hub.c2d().sender("service");
    let sent = sender.send_one(target, &CloudMessage::default()).await;
    sent.unwrap()
}

fn attach(
    inner: &Inner,
    queue: &Arc<Named>,
    window: usize,
    resume: bool,
) -> (ReceiverId, Arc<Inbox>) {
    let (id, inbox) = (inner.next_receiver(), Arc::new(Inbox::default()));
    inner.command(Command::Attach {
        queue: Arc::clone(queue),
        id,
        epoch: 1,
        is_timed: false,
        resume,
        inbox: Arc::clone(&inbox),
    });
    let queue = Arc::clone(queue);
    inner.command(Command::Window { queue, id, window });
    (id, inbox)
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// The receiver closes its window and looks no more while its owner is at work on a delivery.
#[tokio::test]
async fn what_is_delivered_into_a_window_that_is_being_closed_is_taken_back() {
    let hub = hub().await;
    let inner = hub.c2d().inner();
    let queue = queue(&hub, "dev1").await;
    let (id, inbox) = attach(inner, &queue, 1, false);
    send(&hub, "dev1").await;
    settle().await;
    inner.command(Command::Window {
        queue: Arc::clone(&queue),
        id,
        window: 0,
    });
    settle().await;
    let found = inner.receive_one(Arc::clone(&queue), None).await.unwrap();
    assert_eq!(found.map(|delivery| delivery.delivery_count), Some(0));
    assert!(inbox.take_back().is_empty());
}

#[tokio::test]
async fn a_device_that_comes_and_goes_makes_nobody_elses_session_forgotten() {
    let hub = hub().await;
    let inner = hub.c2d().inner();
    let quiet = queue(&hub, "dev1").await;
    // Another device of the same owner.
    let mut restless = queue(&hub, "dev2").await;
    for n in 3.. {
        if Inner::lane_of(&restless.key) == Inner::lane_of(&quiet.key) {
            break;
        }
        restless = queue(&hub, &format!("dev{n}")).await;
    }
    let come_and_go = async |queue: &Arc<Named>| {
        let (id, _) = attach(inner, queue, 0, false);
        let (queue, in_flight) = (Arc::clone(queue), vec![(1, 7)]);
        inner.command(Command::Detach {
            queue,
            id,
            in_flight,
        });
        tokio::task::yield_now().await;
    };
    come_and_go(&quiet).await;
    for _ in 0..remembered::REMEMBERED_MAX + 10 {
        come_and_go(&restless).await;
    }
    let (_, inbox) = attach(inner, &quiet, 1, true);
    settle().await;
    assert_eq!(inbox.take_expected(), [7]);
}
