//! The hub's settings in the JSON shape of Azure's hub resource.

use axum::Json;
use axum::extract::State;
use fieldpost_hub::settings::{ApplyError, HubSettings};
use fieldpost_store::log::AtBytesMax;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Problem, invalid, problem};
use super::devices::store_status;

/// The settings as they stand.
pub(super) async fn show(State(parts): State<AdminParts>) -> Json<Value> {
    Json(document(&parts, &parts.hub.settings().get()))
}

/// Changes the settings that the document names and leaves the others.
pub(super) async fn apply(
    State(parts): State<AdminParts>,
    Json(document_given): Json<Value>,
) -> Result<Json<Value>, Problem> {
    let given: Resource = serde_json::from_value(document_given)
        .map_err(|error| invalid(format!("the document is not a hub resource: {error}")))?;
    let mut settings = HubSettings::clone(&parts.hub.settings().get());
    if let Some(events) = given.properties.event_hub_endpoints.and_then(|e| e.events) {
        events.change(&mut settings)?;
    }
    let applied = parts.hub.settings().apply(settings).await;
    let applied = applied.map_err(|error| match error {
        ApplyError::Invalid(reason) => invalid(reason.to_string()),
        ApplyError::Store(error) => problem(
            store_status(&error),
            "ServiceUnavailable",
            error.to_string(),
        ),
    })?;
    tracing::info!("the hub's settings were changed through the admin API");
    Ok(Json(document(&parts, &applied)))
}

/// Members of Azure's resource around `properties` are taken and not looked at, so that a resource
/// that was exported there can be applied here; inside, a member that this hub does not know is an
/// error, because its setting would silently not apply.
#[derive(Deserialize)]
struct Resource {
    properties: Properties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Properties {
    event_hub_endpoints: Option<EventHubEndpoints>,
    /// Shown, and not changed here.
    #[serde(rename = "hostName")]
    _host_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventHubEndpoints {
    events: Option<Events>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Events {
    retention_time_in_days: Option<u32>,
    partition_count: Option<u16>,
    consumer_groups: Option<Vec<String>>,
    /// Absent: unchanged. Null: no bound.
    #[serde(default, deserialize_with = "present")]
    retention_bytes_max: Option<Option<u64>>,
    at_retention_bytes_max: Option<String>,
    /// Shown, and not changed here.
    #[serde(rename = "partitionIds")]
    _partition_ids: Option<Vec<String>>,
    #[serde(rename = "path")]
    _path: Option<String>,
    #[serde(rename = "endpoint")]
    _endpoint: Option<String>,
}

impl Events {
    fn change(self, settings: &mut HubSettings) -> Result<(), Problem> {
        if let Some(days) = self.retention_time_in_days {
            settings.retention_days = days;
        }
        if let Some(count) = self.partition_count {
            // The hub refuses another count than its own and says so.
            settings.partition_count = count;
        }
        if let Some(groups) = self.consumer_groups {
            settings.consumer_groups = groups;
        }
        if let Some(bound) = self.retention_bytes_max {
            settings.bytes_max = bound;
        }
        settings.at_bytes_max = match self.at_retention_bytes_max.as_deref() {
            None => settings.at_bytes_max,
            Some("hold") => AtBytesMax::HoldMessages,
            Some("dropOldest") => AtBytesMax::DropOldest,
            Some(other) => {
                return Err(invalid(format!(
                    "atRetentionBytesMax: `{other}` is neither hold nor dropOldest"
                )));
            }
        };
        Ok(())
    }
}

fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<u64>>, D::Error> {
    Option::<u64>::deserialize(deserializer).map(Some)
}

fn document(parts: &AdminParts, settings: &HubSettings) -> Value {
    let partition_ids: Vec<_> = (0..settings.partition_count)
        .map(|id| id.to_string())
        .collect();
    let at_bytes_max = match settings.at_bytes_max {
        AtBytesMax::HoldMessages => "hold",
        AtBytesMax::DropOldest => "dropOldest",
    };
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
                    "atRetentionBytesMax": at_bytes_max,
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn change(document: Value) -> Result<HubSettings, String> {
        let resource: Resource =
            serde_json::from_value(document).map_err(|error| error.to_string())?;
        let mut settings = HubSettings {
            bytes_max: Some(5),
            ..HubSettings::default()
        };
        if let Some(events) = resource
            .properties
            .event_hub_endpoints
            .and_then(|e| e.events)
        {
            events.change(&mut settings).map_err(|problem| {
                assert_eq!(problem.status, StatusCode::BAD_REQUEST);
                problem.message
            })?;
        }
        Ok(settings)
    }

    fn events(events: Value) -> Value {
        json!({"sku": {"name": "S1"}, "properties": {"eventHubEndpoints": {"events": events}}})
    }

    #[test]
    fn only_what_is_named_changes() {
        let settings = change(events(json!({"retentionTimeInDays": 3}))).unwrap();
        assert_eq!((settings.retention_days, settings.bytes_max), (3, Some(5)));
        let settings = change(events(json!({"retentionBytesMax": null}))).unwrap();
        assert_eq!(settings.bytes_max, None);
        let settings = change(events(json!({"atRetentionBytesMax": "dropOldest"}))).unwrap();
        assert_eq!(settings.at_bytes_max, AtBytesMax::DropOldest);
        let settings = change(events(json!({"consumerGroups": ["$Default", "a"]}))).unwrap();
        assert_eq!(settings.consumer_groups, ["$Default", "a"]);
    }

    #[test]
    fn a_setting_that_this_hub_does_not_have_is_refused_by_name() {
        let check = |document: Value, expected: &str| {
            let error = change(document.clone()).unwrap_err();
            assert!(error.contains(expected), "{document}: {error}");
        };
        check(
            json!({"properties": {"cloudToDevice": {}}}),
            "cloudToDevice",
        );
        check(events(json!({"retentionInDays": 3})), "retentionInDays");
        check(
            events(json!({"atRetentionBytesMax": "x"})),
            "neither hold nor dropOldest",
        );
        check(json!({"eventHubEndpoints": {}}), "properties");
    }
}
