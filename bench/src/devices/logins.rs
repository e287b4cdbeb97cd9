//! What devices say of themselves, each with a token of its own.

use std::sync::Arc;

use crate::telemetry::generator::{AmqpDevice, AmqpLogin, HttpLogin, Login};
use crate::telemetry::hub::{Hub, name};

/// So many devices over AMQP, so many of them on each connection.
pub(super) fn amqp(hub: &Hub, devices: usize, on_each: usize) -> Vec<Login> {
    let host = hub.host();
    let device = |number: &usize| {
        let name = name(*number);
        AmqpDevice {
            resource: format!("{host}/devices/{name}"),
            token: hub.token(&name),
            address: format!("/devices/{name}/messages/events"),
        }
    };
    let numbers: Vec<usize> = (0..devices).collect();
    let login = |share: &[usize]| {
        let login = AmqpLogin {
            host: host.clone(),
            devices: share.iter().map(device).collect(),
        };
        Login::Amqp(Arc::new(login))
    };
    numbers.chunks(on_each.max(1)).map(login).collect()
}

/// So many devices over HTTPS, each on a connection of its own.
pub(super) fn https(hub: &Hub, devices: usize) -> Vec<Login> {
    let host = hub.host();
    let login = |number| {
        let device = name(number);
        let token = hub.token(&device);
        let head = format!(
            "POST /devices/{device}/messages/events?api-version=2020-09-30 HTTP/1.1\r\n\
             Host: {host}\r\nAuthorization: {token}\r\nContent-Type: application/octet-stream\r\n"
        );
        let head = head.into_bytes();
        Login::Http(Arc::new(HttpLogin { head }))
    };
    (0..devices).map(login).collect()
}
