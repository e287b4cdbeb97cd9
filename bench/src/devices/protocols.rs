//! The same devices over MQTT and over AMQP, on connections of their own and all on one.

use anyhow::Result;
use serde_json::json;

use super::{AIM, Arguments, Contender, Medians, Ratio, Rounds, logins};
use crate::telemetry::Report;
use crate::telemetry::hub::Hub;

/// Runs the rows and says how many messages were acknowledged.
pub(super) fn run(arguments: &Arguments, hub: &Hub, report: &mut Report) -> Result<u64> {
    let Arguments {
        devices,
        in_flight,
        bytes,
        ..
    } = *arguments;
    let pid = hub.pid()?;
    let contender = |target, logins| Contender {
        target,
        pid,
        logins,
        in_flight,
    };
    let contenders = [
        contender(hub.tls()?, hub.logins(devices, false)?),
        contender(hub.amqps()?, logins::amqp(hub, devices, devices)),
        contender(hub.amqps()?, logins::amqp(hub, devices, 1)),
    ];
    let rounds = Rounds::run(arguments, &contenders)?;
    let mqtt = rounds.of(0);
    let beside = Medians::of(&mqtt);
    report.row(
        "mqtt",
        &format!(
            "{devices} devices x {in_flight} in flight, {bytes} B, durable, TLS, {rounds}: MQTT on a connection each {beside}"
        ),
        json!({ "mqtt": beside.json() }),
    );
    for (contender, name, connections) in [
        (1, "amqp-multiplexed", "all on one connection"),
        (2, "amqp-connections", "on a connection each"),
    ] {
        let amqp = rounds.of(contender);
        let (amqp, ratio) = (Medians::of(&amqp), Ratio::of(&amqp, &mqtt));
        report.row(
            name,
            &format!("  AMQP {connections} {amqp}, {ratio}"),
            json!({ "amqp": amqp.json(), "ratio": ratio.json(), "aim": AIM }),
        );
    }
    Ok(rounds.acknowledged.iter().sum())
}
