//! Devices that send over HTTPS, beside a handler that reads what they send and keeps nothing.

use anyhow::Result;
use serde_json::json;

use super::{AIM, Arguments, Contender, Medians, Ratio, Rounds, logins};
use crate::telemetry::Report;
use crate::telemetry::generator::Target;
use crate::telemetry::hub::{Hub, Null};

/// Runs the rows and says how many messages the hub has acknowledged.
pub(super) async fn run(arguments: &Arguments, hub: &Hub, report: &mut Report) -> Result<u64> {
    let (null, null_target) = Null::start_https(hub.folder()).await?;
    let mut acknowledged = 0;
    for &devices in &arguments.https_devices {
        let contender = |target: &Target, pid| Contender {
            target: target.clone(),
            pid,
            logins: logins::https(hub, devices),
            in_flight: 1,
        };
        let contenders = [
            contender(&null_target, null.pid()?),
            contender(&hub.https()?, hub.pid()?),
        ];
        let rounds = Rounds::run(arguments, &contenders)?;
        let [_, durable] = rounds.acknowledged;
        acknowledged += durable;
        let (nulls, hubs) = (rounds.of(0), rounds.of(1));
        let ratio = Ratio::of(&hubs, &nulls);
        let (beside, hub) = (Medians::of(&nulls), Medians::of(&hubs));
        report.row(
            &format!("https-{devices}"),
            &format!(
                "{devices} kept HTTPS connections x 1 in flight, {} B, {rounds}: null axum handler {beside}; hub, durable, \
                 {hub}, {ratio}",
                arguments.bytes
            ),
            json!({
                "null": beside.json(), "hub": hub.json(), "ratio": ratio.json(), "aim": AIM,
            }),
        );
    }
    Ok(acknowledged)
}
