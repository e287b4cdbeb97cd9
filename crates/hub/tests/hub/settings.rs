use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::OpenError;
use fieldpost_hub::events::{OpenReceiver, ReceiverEnd, ReceiverRefused};
use fieldpost_hub::settings::{
    ApplyError, CloudToDeviceSetting, DeliveryCountMode, HubSettings, InvalidSettings,
};
use fieldpost_model::PartitionId;
use fieldpost_store::StoreError;

use crate::bench::{Bench, settle};

fn receiver(group: &str) -> OpenReceiver {
    OpenReceiver {
        group: group.to_owned(),
        partition: PartitionId(0),
        owner_level: None,
        receiver_name: None,
        bell: Arc::default(),
    }
}

#[tokio::test]
async fn a_seed_counts_once_and_what_was_applied_lasts() {
    let bench = Bench::start().await;
    let seeded = bench
        .reopen(|config| config.seed.retention_days = 7)
        .await
        .unwrap();
    assert_eq!(seeded.settings().get().retention_days, 1);

    let settings = HubSettings {
        retention_days: 3,
        consumer_groups: vec!["reports".to_owned()],
        ..HubSettings::default()
    };
    let applied = seeded.settings().apply(settings).await.unwrap();
    assert_eq!(applied.consumer_groups, ["$Default", "reports"]);
    assert_eq!(seeded.settings().get(), applied);
    let reopened = bench.reopen(|_| {}).await.unwrap();
    assert_eq!(reopened.settings().get(), applied);
    assert_eq!(reopened.events().consumer_groups(), ["$Default", "reports"]);
}

#[tokio::test]
async fn settings_of_messages_to_devices_last_and_have_their_ranges() {
    let bench = Bench::start().await;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.max_delivery_count = 3;
    settings.cloud_to_device.delivery_count_mode = DeliveryCountMode::EveryLock;
    settings.cloud_to_device.feedback.lock = Duration::from_secs(300);
    let applied = bench.hub.settings().apply(settings.clone()).await.unwrap();
    assert_eq!(applied.cloud_to_device, settings.cloud_to_device);
    settings.cloud_to_device.feedback.lock = Duration::from_secs(301);
    let outcome = bench.hub.settings().apply(settings).await;
    let expected = InvalidSettings::CloudToDevice {
        setting: CloudToDeviceSetting::FeedbackLock,
        given: 301_000,
    };
    assert!(
        matches!(&outcome, Err(ApplyError::Invalid(e)) if *e == expected),
        "{outcome:?}"
    );
    let reopened = bench.reopen(|_| {}).await.unwrap();
    assert_eq!(reopened.settings().get(), applied);
}

#[tokio::test]
async fn a_seed_that_cannot_be_taken_stops_the_start() {
    let bench = Bench::with(fieldpost_store::memory::MemoryStore::automatic, |config| {
        config.seed.partition_count = 32;
        config.seed.retention_days = 5;
    })
    .await;
    // The number of partitions is the store's.
    let settings = bench.hub.settings().get();
    assert_eq!((settings.partition_count, settings.retention_days), (4, 5));

    let empty = Bench::start().await;
    let key = bytes::Bytes::from_static(b"hub");
    let delete = fieldpost_store::documents::Change {
        collection: fieldpost_store::documents::Collection(3),
        key,
        condition: fieldpost_store::documents::Condition::Present,
        action: fieldpost_store::documents::Action::Delete,
    };
    empty
        .memory
        .store()
        .documents
        .apply(vec![delete])
        .await
        .unwrap();
    let outcome = empty.reopen(|config| config.seed.retention_days = 8).await;
    let error = outcome.err().unwrap();
    let expected = InvalidSettings::Retention { given: 8 };
    assert!(
        matches!(&error, OpenError::Settings(e) if *e == expected),
        "{error}"
    );
}

#[tokio::test]
async fn consumer_groups_come_and_go_at_once() {
    let bench = Bench::start().await;
    let (events, settings) = (bench.hub.events(), bench.hub.settings());
    let unknown = events.open_receiver(receiver("reports")).err();
    assert_eq!(unknown, Some(ReceiverRefused::UnknownGroup));
    let with_group = HubSettings {
        consumer_groups: vec!["Reports".to_owned()],
        ..HubSettings::default()
    };
    settings.apply(with_group).await.unwrap();
    let reader = events.open_receiver(receiver("reports")).unwrap();
    settings.apply(HubSettings::default()).await.unwrap();
    assert_eq!(reader.ended(), Some(&ReceiverEnd::GroupDeleted));
    assert!(events.open_receiver(receiver("reports")).is_err());
}

#[tokio::test]
async fn settings_that_cannot_be_taken_or_stored_change_nothing() {
    let bench = Bench::start().await;
    let settings = bench.hub.settings();
    let before = settings.get();
    let wrong = HubSettings {
        partition_count: 5,
        ..HubSettings::default()
    };
    let outcome = settings.apply(wrong).await;
    let expected = InvalidSettings::PartitionCount { given: 5, fixed: 4 };
    assert!(
        matches!(&outcome, Err(ApplyError::Invalid(e)) if *e == expected),
        "{outcome:?}"
    );

    bench.memory.documents.fail_next();
    let good = HubSettings {
        retention_days: 2,
        ..HubSettings::default()
    };
    let outcome = settings.apply(good).await;
    assert!(
        matches!(outcome, Err(ApplyError::Store(StoreError::ReadOnly { .. }))),
        "{outcome:?}"
    );
    settle().await;
    assert_eq!(settings.get(), before);
}
