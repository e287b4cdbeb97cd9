//! Devices that send over HTTPS, beside a handler that reads what they send and keeps nothing.

use anyhow::Result;
use serde_json::json;

use super::{AIM, Arguments, Medians, Ratio, logins, measure};
use crate::telemetry::Report;
use crate::telemetry::hub::{Hub, Null};

/// Runs the row and says how many messages the hub has acknowledged.
pub(super) async fn run(arguments: &Arguments, hub: &Hub, report: &mut Report) -> Result<u64> {
    let (null, null_target) = Null::start_https(hub.folder()).await?;
    let target = hub.https()?;
    let logins = logins::https(hub, arguments.https_devices);
    let (mut nulls, mut hubs) = (Vec::new(), Vec::new());
    let mut acknowledged = 0;
    for _ in 0..arguments.rounds {
        let (round, _) = measure(arguments, (&null_target, null.pid()?), &logins, 1)?;
        nulls.push(round);
        let (round, count) = measure(arguments, (&target, hub.pid()?), &logins, 1)?;
        hubs.push(round);
        acknowledged += count;
    }
    let ratio = Ratio::of(&hubs, &nulls);
    let (beside, hub) = (Medians::of(&nulls), Medians::of(&hubs));
    report.row(
        "https",
        &format!(
            "{} kept HTTPS connections x 1 in flight, {} B, medians of {} rounds: null axum handler {beside}, hub, durable, \
             {hub}, {ratio}; {:.2} cores taken by others",
            arguments.https_devices, arguments.bytes, arguments.rounds, hub.disturbed_cores
        ),
        json!({
            "null_per_second": beside.per_second, "null_cpu_us": beside.cpu_us,
            "hub_per_second": hub.per_second, "hub_cpu_us": hub.cpu_us,
            "generator_cpu_us": hub.generator_cpu_us,
            "ratio": ratio.median, "ratio_least": ratio.least, "ratio_most": ratio.most, "aim": AIM,
            "disturbed_cores": hub.disturbed_cores,
        }),
    );
    Ok(acknowledged)
}
