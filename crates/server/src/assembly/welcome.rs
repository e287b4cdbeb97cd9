//! What `serve` tells a person once the hub is up.

use std::fmt::Write as _;
use std::path::Path;

use super::endpoints::Endpoints;

/// The text: endpoints, the CA, connection strings, and how each SDK is made to trust the CA.
pub(super) fn text(endpoints: &Endpoints, data: &Path, version: &str) -> String {
    let mut text = format!(
        "\nFieldpost {version} is ready as {}\n\n",
        endpoints.host_name
    );
    for (name, endpoint) in &endpoints.listeners {
        let what = match name.as_str() {
            "mqtts" => "devices over MQTT",
            "amqps" => "devices, services and Event Hubs clients over AMQP",
            "https" => "registry; MQTT and AMQP over WebSocket",
            "amqp" => "Event Hubs clients with UseDevelopmentEmulator=true, no TLS",
            "admin" => "health, metrics, admin API",
            "mqtt" => "MQTT, no TLS",
            "http" => "HTTP and WebSocket, no TLS",
            _ => "",
        };
        let address = std::net::SocketAddr::new(endpoint.address, endpoint.port).to_string();
        let _ = writeln!(text, "  {name:<6} {address:<22} {what}");
    }
    let data_flag = if data == Path::new("./fieldpost-data") {
        String::new()
    } else {
        format!(" --data {}", data.display())
    };
    let _ = write!(
        text,
        "
Connect:
  fieldpost device create{data_flag} my-device
  fieldpost connection-string{data_flag} --device my-device   # device SDKs
  fieldpost connection-string{data_flag}                      # service SDKs
  fieldpost connection-string{data_flag} --event-hub          # Event Hubs SDKs
"
    );
    if let Some(ca) = &endpoints.ca_certificate {
        let ca = ca.display();
        let _ = write!(
            text,
            "
Trust the CA certificate {ca}
  Python azure-iot-device   server_verification_cert=open(\"{ca}\").read()
  Python azure-eventhub     connection_verify=\"{ca}\"
  Python azure-iot-hub      REQUESTS_CA_BUNDLE={ca} SSL_CERT_FILE={ca}
  Node azure-iot-device     client.setOptions({{ca: fs.readFileSync(\"{ca}\", \"utf8\")}})
  Node, everything          NODE_EXTRA_CA_CERTS={ca}
  C azure-iot-sdk-c         IoTHubDeviceClient_SetOption(client, OPTION_TRUSTED_CERT, pem_text)
  Java                      ClientOptions with IotHubSSLContext.getSSLContextFromString(pem_text)
  .NET                      install it in the system's store of trusted roots
"
        );
    }
    text.push_str("\nCtrl-C stops the hub.\n");
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::endpoints::Endpoint;
    use super::*;

    #[test]
    fn the_text_names_every_endpoint_and_how_to_trust_the_ca() {
        let endpoint = Endpoint {
            address: [127, 0, 0, 1].into(),
            port: 8884,
        };
        let mut endpoints = Endpoints {
            host_name: "hub.example".to_owned(),
            ca_certificate: Some("/data/ca.pem".into()),
            listeners: BTreeMap::from([("mqtts".to_owned(), endpoint)]),
        };
        let with_ca = text(&endpoints, Path::new("/data"), "1.2.3");
        for part in [
            "hub.example",
            "127.0.0.1:8884",
            "server_verification_cert",
            "--data /data",
        ] {
            assert!(with_ca.contains(part), "{part}: {with_ca}");
        }
        endpoints.ca_certificate = None;
        assert!(!text(&endpoints, Path::new("./fieldpost-data"), "1.2.3").contains("Trust"));
    }
}
