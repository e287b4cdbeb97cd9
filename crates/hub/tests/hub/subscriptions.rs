use fieldpost_hub::identity::Precondition;
use fieldpost_hub::subscriptions::{Features, QoS};
use fieldpost_store::documents::Collection;

use crate::bench::{Bench, id, principal_of};

const SUBSCRIBED: Features = Features {
    device_bound: Some(QoS::AtLeastOnce),
    twin_responses: Some(QoS::AtMostOnce),
    desired_properties: None,
    methods: Some(QoS::AtMostOnce),
    inputs: None,
};

#[tokio::test]
async fn a_session_outlives_the_hub_until_it_is_removed() {
    let bench = Bench::start().await;
    let principal = bench.principal("dev1").await;
    let other = bench.principal("dev2").await;
    let subscriptions = bench.hub.subscriptions();
    assert_eq!(subscriptions.load(&principal).await.unwrap(), None);
    subscriptions.remove(&principal).await.unwrap();
    subscriptions
        .store(&principal, Features::default())
        .await
        .unwrap();
    assert_eq!(
        subscriptions.load(&principal).await.unwrap(),
        Some(Features::default())
    );
    subscriptions.store(&principal, SUBSCRIBED).await.unwrap();

    let hub = bench.reopen(|_| {}).await.unwrap();
    let loaded = hub.subscriptions().load(&principal).await.unwrap();
    assert_eq!(loaded, Some(SUBSCRIBED));
    assert_eq!(hub.subscriptions().load(&other).await.unwrap(), None);
    hub.subscriptions().remove(&principal).await.unwrap();
    assert_eq!(subscriptions.load(&principal).await.unwrap(), None);
}

#[tokio::test]
async fn a_session_is_written_when_it_changes_and_not_otherwise() {
    let bench = Bench::start().await;
    let principal = bench.principal("dev1").await;
    let documents = bench.memory.store().documents;
    let writes = async || {
        documents
            .changes(0, 100)
            .await
            .unwrap()
            .entries
            .last()
            .unwrap()
            .revision
    };
    let subscriptions = bench.hub.subscriptions();
    subscriptions.store(&principal, SUBSCRIBED).await.unwrap();
    let before = writes().await;
    subscriptions.store(&principal, SUBSCRIBED).await.unwrap();
    assert_eq!(writes().await, before);
    subscriptions
        .store(&principal, Features::default())
        .await
        .unwrap();
    assert_eq!(writes().await, before + 1);
}

#[tokio::test]
async fn a_session_goes_with_its_device_and_means_nothing_for_the_next_one() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let subscriptions = bench.hub.subscriptions();
    let sessions = || bench.memory.store().documents.counts(Collection(2));
    let old = bench.principal("dev1").await;
    subscriptions.store(&old, SUBSCRIBED).await.unwrap();
    assert_eq!(sessions(), [(0, 1)]);
    registry
        .delete(&id("dev1"), Precondition::Any)
        .await
        .unwrap();
    assert_eq!(sessions(), []);

    // A connection of the old device that is still ending may write after the deletion.
    subscriptions.store(&old, SUBSCRIBED).await.unwrap();
    let new = principal_of(&*bench.device("dev1").await);
    assert_eq!(subscriptions.load(&new).await.unwrap(), None);
}
