//! The devices: over which protocol they come, how they prove who they are, and how they are made known.

use std::collections::BTreeMap;

use anyhow::Result;
use fieldpost_client::device::DeviceOptions;
use fieldpost_client::{OwnCertificate, Trust};
use fieldpost_testkit::hub::{HubProcess, now};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use ring::digest;
use serde_json::{Value, json};

/// What a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Mqtt,
    Amqp,
    Https,
}

/// How a device proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Credential {
    Key,
    /// A certificate that vouches for itself, whose thumbprint the hub knows.
    Thumbprint,
    /// A certificate of an authority that the hub knows.
    Authority,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) protocol: Protocol,
    pub(crate) credential: Credential,
}

impl Protocol {
    /// The port of its listener.
    fn port(self) -> u16 {
        match self {
            Self::Mqtt => 8883,
            Self::Amqp => 5671,
            Self::Https => 443,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "MQTT",
            Self::Amqp => "AMQP",
            Self::Https => "HTTPS",
        }
    }
}

impl Credential {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Thumbprint => "thumbprint",
            Self::Authority => "authority",
        }
    }

    /// Of four devices in a row two have keys, and one each kind of certificate.
    pub(crate) fn of(place: u64) -> Self {
        match place % 4 {
            1 => Self::Thumbprint,
            3 => Self::Authority,
            _ => Self::Key,
        }
    }
}

impl Member {
    /// One of the devices that send all the time: of four in a row two over MQTT, and each of the four
    /// by another credential than the four after it.
    pub(crate) fn sender(number: u32) -> Self {
        let protocol = match number % 4 {
            2 => Protocol::Amqp,
            3 => Protocol::Https,
            _ => Protocol::Mqtt,
        };
        Self {
            id: format!("raw-{number}"),
            protocol,
            credential: Credential::of(u64::from(number / 4)),
        }
    }
}

/// Makes devices known to a hub, and the certificates of those that have some.
pub(crate) struct Registrar<'a> {
    hub: &'a HubProcess,
    authority: Issuer<'static, KeyPair>,
    hub_ca: String,
}

impl<'a> Registrar<'a> {
    /// Also makes an authority known that signs devices' certificates.
    pub(crate) async fn new(hub: &'a HubProcess) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Kill rounds");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let file = hub.data().with_file_name("authority.pem");
        std::fs::write(&file, params.self_signed(&key)?.pem())?;
        let file = file.display().to_string();
        hub.run(&["ca", "add", "kill-rounds", &file, "--verified"])
            .await?;
        Ok(Self {
            hub,
            authority: Issuer::new(params, key),
            hub_ca: std::fs::read_to_string(hub.ca_file())?,
        })
    }

    /// Makes a device known, and gives what it needs to connect.
    pub(crate) async fn register(&self, member: &Member) -> Result<DeviceOptions> {
        let Member { id, .. } = member;
        let create = ["device", "create", id, "--auth"];
        let trust = match member.credential {
            Credential::Key => {
                self.hub.run(&[&create[..], &["sas"]].concat()).await?;
                self.hub.trust()?
            }
            Credential::Thumbprint => {
                let key = KeyPair::generate()?;
                let certificate = params(id).self_signed(&key)?;
                let thumbprint = digest::digest(&digest::SHA256, certificate.der());
                let thumbprint: String = thumbprint
                    .as_ref()
                    .iter()
                    .map(|byte| format!("{byte:02X}"))
                    .collect();
                let how = ["self-signed", "--primary-thumbprint", &thumbprint];
                self.hub.run(&[&create[..], &how].concat()).await?;
                self.showing(&certificate, &key)?
            }
            Credential::Authority => {
                let key = KeyPair::generate()?;
                let certificate = params(id).signed_by(&key, &self.authority)?;
                let how = ["certificate-authority"];
                self.hub.run(&[&create[..], &how].concat()).await?;
                self.showing(&certificate, &key)?
            }
        };
        let (_, connection_string) = self.hub.connection_string(Some(id)).await?;
        Ok(DeviceOptions {
            connection_string,
            address: Some(self.hub.at(member.protocol.port())),
            trust,
            keep_alive_s: 30,
            now: now(),
        })
    }

    fn showing(&self, certificate: &rcgen::Certificate, key: &KeyPair) -> Result<Trust> {
        let own = OwnCertificate {
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        };
        Ok(Trust::in_pem_showing(&self.hub_ca, &own)?)
    }
}

/// A certificate of a device: its name is the device's id.
fn params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(id);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Counts by protocol and credential.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<(Protocol, Credential), u64>);

impl Tally {
    pub(crate) fn add(&mut self, protocol: Protocol, credential: Credential, count: u64) {
        *self.0.entry((protocol, credential)).or_default() += count;
    }

    /// For programs: `{"MQTT": {"key": 1, …}, …}`.
    pub(crate) fn to_json(&self) -> Value {
        let mut protocols = BTreeMap::<_, BTreeMap<_, _>>::new();
        for ((protocol, credential), count) in &self.0 {
            let counts = protocols.entry(protocol.name()).or_default();
            counts.insert(credential.name(), *count);
        }
        json!(protocols)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn senders_are_of_every_protocol_with_every_credential() {
        let senders: HashSet<_> = (0..16)
            .map(Member::sender)
            .map(|member| (member.protocol.name(), member.credential.name()))
            .collect();
        assert_eq!(senders.len(), 9);
    }

    #[test]
    fn counts_are_summed_by_protocol_and_credential() {
        let mut tally = Tally::default();
        tally.add(Protocol::Mqtt, Credential::Key, 1);
        tally.add(Protocol::Https, Credential::Authority, 2);
        tally.add(Protocol::Mqtt, Credential::Key, 3);
        assert_eq!(
            tally.to_json(),
            json!({"MQTT": {"key": 4}, "HTTPS": {"authority": 2}})
        );
    }
}
