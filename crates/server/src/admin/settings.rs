//! The hub's settings in the JSON shape of Azure's hub resource.

use axum::Json;
use axum::extract::State;
use fieldpost_hub::settings::{
    ApplyError, CloudToDeviceSettings, DeliveryCountMode, FeedbackSettings, HubSettings,
};
use fieldpost_hub::throttles::{ThrottlingSettings, Tier};
use fieldpost_store::log::AtBytesMax;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Body, Problem, invalid, problem};
use super::devices::store_status;
use super::duration;
use super::members::Members;

const AT_BYTES_MAX: [(&str, AtBytesMax); 2] = [
    ("hold", AtBytesMax::HoldMessages),
    ("dropOldest", AtBytesMax::DropOldest),
];

const COUNT_MODES: [(&str, DeliveryCountMode); 2] = [
    ("abandon", DeliveryCountMode::Abandon),
    ("everyLock", DeliveryCountMode::EveryLock),
];

const TIERS: [(&str, Option<Tier>); 5] = [
    ("none", None),
    ("F1", Some(Tier::F1)),
    ("S1", Some(Tier::S1)),
    ("S2", Some(Tier::S2)),
    ("S3", Some(Tier::S3)),
];

/// The settings as they stand.
pub(super) async fn show(State(parts): State<AdminParts>) -> Json<Value> {
    Json(document(&parts, &parts.hub.settings().get()))
}

/// Changes the settings that the document names and leaves the others.
pub(super) async fn apply(
    State(parts): State<AdminParts>,
    Body(given): Body<Value>,
) -> Result<Json<Value>, Problem> {
    // What is not named is read and written back, so two changes must not be under way at once.
    let _one_at_a_time = parts.changing_settings.lock().await;
    let mut settings = HubSettings::clone(&parts.hub.settings().get());
    change(&mut settings, &given)?;
    let applied = parts.hub.settings().apply(settings).await;
    let applied = applied.map_err(|error| match error {
        ApplyError::Invalid(reason) => invalid(reason.to_string()),
        ApplyError::Store(error) => problem(
            store_status(&error),
            "ServiceUnavailable",
            error.to_string(),
        ),
    })?;
    Ok(Json(document(&parts, &applied)))
}

/// Takes over what a document names.
///
/// Members of Azure's resource around `properties` are taken and not looked at, so that a resource
/// that was exported there can be applied here; inside, a member that this hub does not know is an
/// error, because its setting would silently not apply.
fn change(settings: &mut HubSettings, document: &Value) -> Result<(), Problem> {
    let mut document = Members::of(document)?;
    let mut properties = document
        .object("properties")?
        .ok_or_else(|| invalid("the document is not a hub resource: it has no `properties`"))?;
    // What Azure's resource says of itself.
    properties.ignore(&["hostName", "state", "provisioningState", "locations"]);
    if let Some(mut endpoints) = properties.object("eventHubEndpoints")? {
        if let Some(events) = endpoints.object("events")? {
            change_events(settings, events)?;
        }
        endpoints.end()?;
    }
    if let Some(given) = properties.object("cloudToDevice")? {
        change_cloud_to_device(&mut settings.cloud_to_device, given)?;
    }
    if let Some(mut given) = properties.object("throttling")? {
        let throttling = &mut settings.throttling;
        set(&mut throttling.tier, given.choice("tier", &TIERS)?);
        set(&mut throttling.units, given.number("units")?);
        given.end()?;
    }
    properties.end()
}

fn change_events(settings: &mut HubSettings, mut given: Members<'_>) -> Result<(), Problem> {
    given.ignore(&["partitionIds", "path", "endpoint"]);
    set(
        &mut settings.retention_days,
        given.number("retentionTimeInDays")?,
    );
    // The hub refuses another count than its own and says so.
    set(
        &mut settings.partition_count,
        given.number("partitionCount")?,
    );
    set(
        &mut settings.consumer_groups,
        given.texts("consumerGroups")?,
    );
    if given.is_null("retentionBytesMax") {
        settings.bytes_max = None;
    }
    let bound = given.number("retentionBytesMax")?.map(Some);
    set(&mut settings.bytes_max, bound);
    set(
        &mut settings.at_bytes_max,
        given.choice("atRetentionBytesMax", &AT_BYTES_MAX)?,
    );
    given.end()
}

fn change_cloud_to_device(
    settings: &mut CloudToDeviceSettings,
    mut given: Members<'_>,
) -> Result<(), Problem> {
    set(
        &mut settings.max_delivery_count,
        given.number("maxDeliveryCount")?,
    );
    set(
        &mut settings.default_ttl,
        given.duration("defaultTtlAsIso8601")?,
    );
    if let Some(feedback) = given.object("feedback")? {
        change_feedback(&mut settings.feedback, feedback)?;
    }
    set(
        &mut settings.delivery_count_mode,
        given.choice("deliveryCountMode", &COUNT_MODES)?,
    );
    set(
        &mut settings.queue_depth_max,
        given.number("maxQueueDepth")?,
    );
    if let Some(mut letters) = given.object("deadLetters")? {
        set(
            &mut settings.dead_letters.keep,
            letters.duration("retentionAsIso8601")?,
        );
        set(
            &mut settings.dead_letters.bytes_max,
            letters.number("maxBytes")?,
        );
        letters.end()?;
    }
    if let Some(mut history) = given.object("history")? {
        set(&mut settings.history.enabled, history.bool("enabled")?);
        set(
            &mut settings.history.messages_max,
            history.number("maxMessages")?,
        );
        set(&mut settings.history.bytes_max, history.number("maxBytes")?);
        history.end()?;
    }
    given.end()
}

fn change_feedback(settings: &mut FeedbackSettings, mut given: Members<'_>) -> Result<(), Problem> {
    set(&mut settings.lock, given.duration("lockDurationAsIso8601")?);
    set(&mut settings.ttl, given.duration("ttlAsIso8601")?);
    set(
        &mut settings.max_delivery_count,
        given.number("maxDeliveryCount")?,
    );
    given.end()
}

fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *setting = value;
    }
}

fn document(parts: &AdminParts, settings: &HubSettings) -> Value {
    let partition_ids: Vec<_> = (0..settings.partition_count)
        .map(|id| id.to_string())
        .collect();
    json!({
        "name": parts.hub.name(),
        "properties": {
            "hostName": parts.reach.host_name,
            "eventHubEndpoints": {
                "events": {
                    "retentionTimeInDays": settings.retention_days,
                    "partitionCount": settings.partition_count,
                    "partitionIds": partition_ids,
                    "path": parts.hub.name(),
                    "endpoint": parts.reach.event_hubs_endpoint(),
                    "consumerGroups": settings.consumer_groups,
                    "retentionBytesMax": settings.bytes_max,
                    "atRetentionBytesMax": name_in(&AT_BYTES_MAX, settings.at_bytes_max),
                },
            },
            "cloudToDevice": cloud_to_device(&settings.cloud_to_device),
            "throttling": throttling(settings.throttling),
        },
    })
}

fn cloud_to_device(settings: &CloudToDeviceSettings) -> Value {
    let CloudToDeviceSettings {
        max_delivery_count,
        default_ttl,
        feedback,
        delivery_count_mode,
        queue_depth_max,
        dead_letters,
        history,
    } = settings;
    json!({
        "maxDeliveryCount": max_delivery_count,
        "defaultTtlAsIso8601": duration::shown(*default_ttl),
        "feedback": {
            "lockDurationAsIso8601": duration::shown(feedback.lock),
            "ttlAsIso8601": duration::shown(feedback.ttl),
            "maxDeliveryCount": feedback.max_delivery_count,
        },
        "deliveryCountMode": name_in(&COUNT_MODES, *delivery_count_mode),
        "maxQueueDepth": queue_depth_max,
        "deadLetters": {
            "retentionAsIso8601": duration::shown(dead_letters.keep),
            "maxBytes": dead_letters.bytes_max,
        },
        "history": {
            "enabled": history.enabled,
            "maxMessages": history.messages_max,
            "maxBytes": history.bytes_max,
        },
    })
}

fn throttling(settings: ThrottlingSettings) -> Value {
    json!({
        "tier": name_in(&TIERS, settings.tier),
        "units": settings.units,
    })
}

fn name_in<T: Copy + PartialEq>(names: &[(&'static str, T)], value: T) -> Option<&'static str> {
    let found = names.iter().find(|(_, known)| *known == value);
    found.map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;
    use fieldpost_hub::settings::{DeadLetterSettings, HistorySettings};

    use super::*;
    use crate::admin::testing_parts;

    fn changed(document: Value) -> Result<HubSettings, String> {
        let mut settings = HubSettings {
            bytes_max: Some(5),
            ..HubSettings::default()
        };
        match change(&mut settings, &document) {
            Ok(()) => Ok(settings),
            Err(problem) => {
                assert_eq!(problem.status, StatusCode::BAD_REQUEST);
                Err(problem.message)
            }
        }
    }

    fn events(events: Value) -> Value {
        json!({"sku": {"name": "S1"}, "properties": {"eventHubEndpoints": {"events": events}}})
    }

    fn to_device(settings: Value) -> Value {
        json!({"properties": {"cloudToDevice": settings}})
    }

    #[test]
    fn only_what_is_named_changes() {
        let settings = changed(events(json!({"retentionTimeInDays": 3}))).unwrap();
        assert_eq!((settings.retention_days, settings.bytes_max), (3, Some(5)));
        let settings = changed(events(json!({"retentionBytesMax": null}))).unwrap();
        assert_eq!(settings.bytes_max, None);
        let settings = changed(events(json!({"atRetentionBytesMax": "dropOldest"}))).unwrap();
        assert_eq!(settings.at_bytes_max, AtBytesMax::DropOldest);
        let settings = changed(events(json!({"consumerGroups": ["$Default", "a"]}))).unwrap();
        assert_eq!(settings.consumer_groups, ["$Default", "a"]);

        let given = to_device(json!({"feedback": {"ttlAsIso8601": "PT2H"}, "maxQueueDepth": 9}));
        let settings = changed(given).unwrap().cloud_to_device;
        let expected = CloudToDeviceSettings {
            feedback: FeedbackSettings {
                ttl: Duration::from_secs(7200),
                ..FeedbackSettings::default()
            },
            queue_depth_max: 9,
            ..CloudToDeviceSettings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_is_shown_of_cloud_to_device_is_taken_back() {
        let odd = CloudToDeviceSettings {
            max_delivery_count: 3,
            default_ttl: Duration::from_secs(90),
            feedback: FeedbackSettings {
                lock: Duration::from_secs(7),
                ttl: Duration::from_secs(172_800),
                max_delivery_count: 5,
            },
            delivery_count_mode: DeliveryCountMode::EveryLock,
            queue_depth_max: 9,
            dead_letters: DeadLetterSettings {
                keep: Duration::ZERO,
                bytes_max: 12,
            },
            history: HistorySettings {
                enabled: false,
                messages_max: 13,
                bytes_max: 14,
            },
        };
        for settings in [odd, CloudToDeviceSettings::default()] {
            let document = to_device(cloud_to_device(&settings));
            assert_eq!(changed(document).unwrap().cloud_to_device, settings);
        }
        let tier = ThrottlingSettings {
            tier: Some(Tier::S2),
            units: 3,
        };
        for settings in [tier, ThrottlingSettings::default()] {
            let document = json!({"properties": {"throttling": throttling(settings)}});
            assert_eq!(changed(document).unwrap().throttling, settings);
        }
        // The shape of Azure's resource, with its own members alone.
        let defaults = cloud_to_device(&CloudToDeviceSettings::default());
        assert_eq!(defaults["maxDeliveryCount"], 10);
        assert_eq!(defaults["defaultTtlAsIso8601"], "PT1H");
        let feedback = json!({
            "lockDurationAsIso8601": "PT1M",
            "ttlAsIso8601": "PT1H",
            "maxDeliveryCount": 10,
        });
        assert_eq!(defaults["feedback"], feedback);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path_with_what_was_meant() {
        let check = |document: Value, expected: &str| {
            let error = changed(document.clone()).unwrap_err();
            assert!(error.contains(expected), "{document}: {error}");
        };
        check(
            events(json!({"retentionInDays": 3})),
            "no setting `properties.eventHubEndpoints.events.retentionInDays`; did you mean `properties.eventHubEndpoints.events.retentionTimeInDays`?",
        );
        check(
            to_device(json!({"defaultTtl": "PT1H"})),
            "did you mean `properties.cloudToDevice.defaultTtlAsIso8601`?",
        );
        check(
            to_device(json!({"feedback": {"lockDuration": "PT1M"}})),
            "did you mean `properties.cloudToDevice.feedback.lockDurationAsIso8601`?",
        );
        check(
            json!({"properties": {"cloud2Device": {}}}),
            "did you mean `properties.cloudToDevice`?",
        );
        check(
            json!({"properties": {"ipFilterRules": {}}}),
            "no setting `properties.ipFilterRules`; there are",
        );
        check(
            to_device(json!({"defaultTtlAsIso8601": "1h"})),
            "properties.cloudToDevice.defaultTtlAsIso8601: `1h`: expected a duration of ISO 8601",
        );
        check(
            to_device(json!({"maxDeliveryCount": -1})),
            "properties.cloudToDevice.maxDeliveryCount: expected a whole number, found -1",
        );
        check(
            to_device(json!({"maxDeliveryCount": 4_294_967_296_u64})),
            "expected a whole number, found 4294967296",
        );
        check(
            to_device(json!({"history": {"enabled": "no"}})),
            "properties.cloudToDevice.history.enabled: expected true or false, found \"no\"",
        );
        check(
            to_device(json!({"deliveryCountMode": "always"})),
            "`always` is none of abandon, everyLock",
        );
        check(
            to_device(json!({"deadLetters": [1]})),
            "properties.cloudToDevice.deadLetters: expected an object, found [1]",
        );
        check(
            events(json!({"atRetentionBytesMax": "x"})),
            "`x` is none of hold, dropOldest",
        );
        check(
            json!({"properties": {"throttling": {"tier": "B1"}}}),
            "properties.throttling.tier: `B1` is none of none, F1, S1, S2, S3",
        );
        check(json!({"eventHubEndpoints": {}}), "properties");
        check(json!([]), "the document: expected an object, found []");
    }

    #[tokio::test]
    async fn two_changes_at_the_same_time_both_hold() {
        let (parts, _) = testing_parts().await;
        let first = apply(
            State(parts.clone()),
            Body(events(json!({"retentionTimeInDays": 7}))),
        );
        let second = apply(
            State(parts.clone()),
            Body(to_device(json!({"maxDeliveryCount": 7}))),
        );
        let (first, second) = tokio::join!(first, second);
        assert!(first.is_ok() && second.is_ok());
        let settings = parts.hub.settings().get();
        assert_eq!(settings.retention_days, 7);
        assert_eq!(settings.cloud_to_device.max_delivery_count, 7);
    }
}
