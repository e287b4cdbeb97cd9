//! Connection strings: `Name=value` pairs joined by `;`.

use std::fmt;

/// The parts of an IoT Hub or Event Hubs connection string that these clients use.
///
/// Printing one shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString {
    /// `HostName`, or the host of `Endpoint`.
    pub host_name: String,
    /// `DeviceId`, of a device.
    pub device_id: Option<String>,
    /// `SharedAccessKeyName`, of a service.
    pub policy: Option<String>,
    /// `SharedAccessKey` as text; of a device that shows a certificate instead (`x509=true`), none.
    pub key: Option<String>,
    /// `EntityPath`, of an Event Hubs endpoint.
    pub entity_path: Option<String>,
}

/// Why a text is not a usable connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConnectionString {
    /// A part has no `=`.
    #[error("a part of the connection string has no '='")]
    Part,
    /// A part that is needed is missing.
    #[error("the connection string has no {0}")]
    Missing(&'static str),
}

impl std::str::FromStr for ConnectionString {
    type Err = InvalidConnectionString;

    fn from_str(text: &str) -> Result<Self, InvalidConnectionString> {
        let mut host_name = None;
        let mut device_id = None;
        let mut policy = None;
        let mut key = None;
        let mut entity_path = None;
        let mut shows_certificate = false;
        for part in text.trim().split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or(InvalidConnectionString::Part)?;
            let value = value.to_owned();
            match name.to_ascii_lowercase().as_str() {
                "hostname" => host_name = Some(value),
                "endpoint" => host_name = Some(host_of(&value).to_owned()),
                "deviceid" => device_id = Some(value),
                "sharedaccesskeyname" => policy = Some(value),
                "sharedaccesskey" => key = Some(value),
                "entitypath" => entity_path = Some(value),
                "x509" => shows_certificate = value.eq_ignore_ascii_case("true"),
                // Whatever else there is means nothing to these clients.
                _ => {}
            }
        }
        if key.is_none() && !shows_certificate {
            return Err(InvalidConnectionString::Missing("SharedAccessKey"));
        }
        Ok(Self {
            host_name: host_name.ok_or(InvalidConnectionString::Missing("HostName"))?,
            key,
            device_id,
            policy,
            entity_path,
        })
    }
}

/// `sb://host:port/` without scheme, port and path.
fn host_of(endpoint: &str) -> &str {
    let authority = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    match authority.rsplit_once(':') {
        // The colons of an IPv6 literal stand inside brackets.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("host_name", &self.host_name)
            .field("device_id", &self.device_id)
            .field("policy", &self.policy)
            .field("key", &self.key.as_ref().map(|_| "***"))
            .field("entity_path", &self.entity_path)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read() {
        let device: ConnectionString =
            "HostName=hub.localhost;DeviceId=d=1;SharedAccessKey=a2V5PQ=="
                .parse()
                .unwrap();
        assert_eq!(device.device_id.as_deref(), Some("d=1"));
        assert_eq!(device.key.as_deref(), Some("a2V5PQ=="));
        let with_certificate: ConnectionString = "HostName=h;DeviceId=d;x509=true".parse().unwrap();
        assert_eq!(with_certificate.key, None);
        let events: ConnectionString =
            "Endpoint=sb://hub.localhost:5671/;SharedAccessKeyName=service;SharedAccessKey=k;EntityPath=hub"
                .parse()
                .unwrap();
        assert_eq!(events.host_name, "hub.localhost");
        assert_eq!(events.entity_path.as_deref(), Some("hub"));
        assert!(!format!("{events:?}").contains("\"k\""));
        assert_eq!(
            "HostName=h".parse::<ConnectionString>(),
            Err(InvalidConnectionString::Missing("SharedAccessKey"))
        );
        assert_eq!(
            "rubbish".parse::<ConnectionString>(),
            Err(InvalidConnectionString::Part)
        );
    }
}
