//! The same devices over MQTT and over AMQP, on connections of their own and all on one.

use anyhow::Result;
use serde_json::{Value, json};

use super::{AIM, Arguments, Medians, Ratio, logins, measure};
use crate::telemetry::Report;
use crate::telemetry::generator::Measured;
use crate::telemetry::hub::Hub;

/// Runs the rows and says how many messages were acknowledged.
pub(super) fn run(arguments: &Arguments, hub: &Hub, report: &mut Report) -> Result<u64> {
    let Arguments {
        devices,
        in_flight,
        bytes,
        rounds,
        ..
    } = *arguments;
    let (mqtt, amqp) = (hub.tls()?, hub.amqps()?);
    let contenders = [
        (&mqtt, hub.logins(devices, false)?),
        (&amqp, logins::amqp(hub, devices, devices)),
        (&amqp, logins::amqp(hub, devices, 1)),
    ];
    let mut measured: [Vec<Measured>; 3] = [const { Vec::new() }; 3];
    let mut acknowledged = 0;
    for _ in 0..rounds {
        for ((target, logins), rounds) in contenders.iter().zip(&mut measured) {
            let (round, count) = measure(arguments, (target, hub.pid()?), logins, in_flight)?;
            rounds.push(round);
            acknowledged += count;
        }
    }
    let [mqtt, one, many] = &measured;
    let beside = Medians::of(mqtt);
    report.row(
        "mqtt",
        &format!(
            "{devices} devices x {in_flight} in flight, {bytes} B, durable, TLS, medians of {rounds} rounds: MQTT \
             on a connection each {beside}; {:.2} cores taken by others",
            beside.disturbed_cores
        ),
        figures(&beside),
    );
    for (name, connections, rounds) in [
        ("amqp-multiplexed", "all on one connection", one),
        ("amqp-connections", "on a connection each", many),
    ] {
        let (amqp, ratio) = (Medians::of(rounds), Ratio::of(rounds, mqtt));
        let mut figures = figures(&amqp);
        for (key, value) in [
            ("ratio_to_mqtt", ratio.median),
            ("ratio_least", ratio.least),
            ("ratio_most", ratio.most),
            ("aim", AIM),
        ] {
            if let Value::Object(figures) = &mut figures {
                figures.insert(key.to_owned(), json!(value));
            }
        }
        report.row(
            name,
            &format!(
                "  AMQP {connections} {amqp}, {ratio}; {:.2} cores taken by others",
                amqp.disturbed_cores
            ),
            figures,
        );
    }
    Ok(acknowledged)
}

fn figures(medians: &Medians) -> Value {
    json!({
        "per_second": medians.per_second, "cpu_us": medians.cpu_us,
        "generator_cpu_us": medians.generator_cpu_us, "disturbed_cores": medians.disturbed_cores,
    })
}
