//! Devices of a hub that plays a tier.

use fieldpost_model::DeviceMessage;

use super::*;

const THROTTLED: &str = "com.microsoft:device-container-throttled";

#[tokio::test]
async fn a_device_that_is_one_too_many_is_refused_and_later_waits_for_its_turn() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    hub.crowd_of_devices().await;
    let link = peer.sender(&events_of("dev1"));
    let error = refused(&mut peer, link).await;
    assert_eq!(error.condition.as_str(), THROTTLED);
    // A second has passed meanwhile: there is room in the line, of nearly ten seconds.
    let link = peer.sender(&events_of("dev1"));
    peer.hears_nothing().await;
    hub.clock.advance(Duration::from_secs(10));
    peer.accepted(link).await;
    assert_eq!(
        send(&mut peer, link, 0, &body("one")).await,
        DeliveryState::Accepted
    );
}

#[tokio::test]
async fn a_message_that_is_one_too_many_is_rejected_and_its_link_stays() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    await_credit(&mut peer, link).await;
    hub.crowd_of_devices().await;
    let principal = principal(&hub, "dev1").await;
    let others = || {
        let mut other = hub.hub.ingest().sender(&principal);
        other.accept(&DeviceMessage::default())
    };
    while others().is_ok() {}
    assert_eq!(
        condition_of(send(&mut peer, link, 0, &body("one")).await),
        THROTTLED
    );
    hub.clock.advance(Duration::from_secs(11));
    assert_eq!(
        send(&mut peer, link, 0, &body("two")).await,
        DeliveryState::Accepted
    );
    let bodies = hub.events("dev1").await;
    assert_eq!(bodies.len(), 1);
}
