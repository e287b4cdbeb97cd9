//! The user name of a CONNECT: `{host}/{device}[/{module}][/?query]`.

use std::borrow::Cow;

use fieldpost_model::{DeviceId, Identity, InvalidId, ModuleId};

use super::{EmptyValues, percent_decoded};

/// Longest digital twin model id that is kept (DTDL: a DTMI has at most 128 characters).
const MODEL_ID_CHARS_MAX: usize = 128;

/// How the device SDK for Java calls itself, in this package name or an older one (Azure IoT Hub
/// documentation, names of SDK versions in its logs).
const JAVA_CLIENT_PREFIX: &str = "com.microsoft.azure.";

/// What the user name of a CONNECT says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserName<'a> {
    /// The hub's host name, as the client calls it.
    pub(crate) host: &'a str,
    /// Who connects.
    pub(crate) identity: Identity,
    /// The digital twin model that the device follows.
    pub(crate) model_id: Option<String>,
    /// How the client's SDK takes property values that are empty.
    pub(crate) empty_values: EmptyValues,
}

/// Why a text is not a user name of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidUserName {
    #[error("the user name holds no device id")]
    NoDevice,
    #[error("the user name holds more than a device and a module id")]
    TooManySegments,
    #[error("the user name holds an unusable id: {0}")]
    Id(#[from] InvalidId),
}

impl<'a> UserName<'a> {
    /// Reads a user name in any of the forms that SDKs and hand-made clients write.
    ///
    /// The query begins at the first segment behind the device id that starts with `?` or, from old
    /// clients, holds one of its parameters. It goes to the end, slashes included: Node does not
    /// encode its model id.
    pub(crate) fn parse(text: &'a str) -> Result<Self, InvalidUserName> {
        let (host, rest) = text.split_once('/').ok_or(InvalidUserName::NoDevice)?;
        let (device, mut rest) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || device.is_empty() {
            return Err(InvalidUserName::NoDevice);
        }
        let mut module = None;
        let mut query = "";
        while !rest.is_empty() {
            let (segment, behind) = rest.split_once('/').unwrap_or((rest, ""));
            if begins_query(segment) {
                query = rest.strip_prefix('?').unwrap_or(rest);
                break;
            }
            // An empty segment is no module: most clients write `/?` behind the device id.
            if !segment.is_empty() && module.replace(segment).is_some() {
                return Err(InvalidUserName::TooManySegments);
            }
            rest = behind;
        }
        Ok(Self {
            host,
            identity: Identity {
                device: DeviceId::new(device)?,
                module: module.map(ModuleId::new).transpose()?,
            },
            model_id: model_id(query),
            empty_values: empty_values(query),
        })
    }

    /// Whether a CONNECT with this user name may have this client id: `{device}` or
    /// `{device}/{module}`.
    pub(crate) fn fits_client_id(&self, client_id: &str) -> bool {
        match (&self.identity.module, client_id.split_once('/')) {
            (None, None) => client_id == self.identity.device.as_str(),
            (Some(module), Some((device, named))) => {
                device == self.identity.device.as_str() && named == module.as_str()
            }
            _ => false,
        }
    }
}

fn begins_query(segment: &str) -> bool {
    segment.starts_with('?')
        || segment.contains("api-version=")
        || segment.contains("DeviceClientType=")
}

fn model_id(query: &str) -> Option<String> {
    parameter(query, "model-id")
        .map(Cow::into_owned)
        .filter(|id| !id.is_empty() && id.chars().count() <= MODEL_ID_CHARS_MAX)
}

fn empty_values(query: &str) -> EmptyValues {
    match parameter(query, "DeviceClientType") {
        Some(client) if client.starts_with(JAVA_CLIENT_PREFIX) => EmptyValues::LeftOut,
        _ => EmptyValues::Kept,
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| percent_decoded(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_documented_form_is_read() {
        let check = |text: &str, device: &str, module: Option<&str>, model: Option<&str>| {
            let name = UserName::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(name.host, "hub.localhost", "{text}");
            assert_eq!(name.identity.device.as_str(), device, "{text}");
            let named = name.identity.module.as_ref().map(ModuleId::as_str);
            assert_eq!(named, module, "{text}");
            assert_eq!(name.model_id.as_deref(), model, "{text}");
        };
        check(
            "hub.localhost/dev1/?api-version=2021-04-12",
            "dev1",
            None,
            None,
        );
        check(
            "hub.localhost/dev1/mod1/?api-version=2021-04-12&DeviceClientType=py%2F2",
            "dev1",
            Some("mod1"),
            None,
        );
        check(
            "hub.localhost/dev1/api-version=2016-11-14",
            "dev1",
            None,
            None,
        );
        check(
            "hub.localhost/dev1/mod1/DeviceClientType=x/1&api-version=2018-06-30",
            "dev1",
            Some("mod1"),
            None,
        );
        check("hub.localhost/dev1", "dev1", None, None);
        check("hub.localhost/dev1/", "dev1", None, None);
        check(
            "hub.localhost/dev1//?api-version=2021-04-12",
            "dev1",
            None,
            None,
        );
        check("hub.localhost/dev1/mod1", "dev1", Some("mod1"), None);
        // Node: the model id comes first and is not encoded.
        check(
            "hub.localhost/dev1/?api-version=2021-04-12&model-id=dtmi:com:ex;1&DeviceClientType=a/b",
            "dev1",
            None,
            Some("dtmi:com:ex;1"),
        );
        check(
            "hub.localhost/dev1/?model-id=dtmi%3Acom%3Aex%3B1&api-version=2020-09-30",
            "dev1",
            None,
            Some("dtmi:com:ex;1"),
        );
        // Ids as raw text, whatever they hold.
        check(
            "hub.localhost/?d%41#+/?api-version=2021-04-12",
            "?d%41#+",
            None,
            None,
        );
        check(
            "hub.localhost/d?x=1/?api-version=2021-04-12",
            "d?x=1",
            None,
            None,
        );
    }

    #[test]
    fn the_java_sdk_is_known_by_its_name() {
        let check = |query: &str, expected: EmptyValues| {
            let text = format!("h/d/?{query}");
            let name = UserName::parse(&text).unwrap();
            assert_eq!(name.empty_values, expected, "{query}");
        };
        let (kept, left_out) = (EmptyValues::Kept, EmptyValues::LeftOut);
        check(
            "api-version=2020-09-30&DeviceClientType=com.microsoft.azure.sdk.iot.iot-device-client%2F2.5.0%20(JRE)",
            left_out,
        );
        check(
            "api-version=2016-11-14&DeviceClientType=com.microsoft.azure.iothub-java-client%2F1.0",
            left_out,
        );
        check("DeviceClientType=azure-iot-device%2F1.18.4", kept);
        check("DeviceClientType=azure-iot-device-iothub-py%2F2.14.0", kept);
        check("DeviceClientType=.NET%2F1.42.0", kept);
        check("DeviceClientType=iothubclient%2F1.14.0", kept);
        check("model-id=com.microsoft.azure.x", kept);
        check("api-version=2021-04-12", kept);
    }

    #[test]
    fn what_names_no_device_is_refused() {
        let check = |text: &str, error: InvalidUserName| {
            assert_eq!(UserName::parse(text), Err(error), "{text}");
        };
        check("", InvalidUserName::NoDevice);
        check("hub.localhost", InvalidUserName::NoDevice);
        check("hub.localhost/", InvalidUserName::NoDevice);
        check("/dev1/?api-version=2021-04-12", InvalidUserName::NoDevice);
        check(
            "h/d/m/more/?api-version=2021-04-12",
            InvalidUserName::TooManySegments,
        );
        check(
            "h/d e/",
            InvalidUserName::Id(InvalidId::Character { character: ' ' }),
        );
    }

    #[test]
    fn the_client_id_is_the_identity() {
        let check = |user_name: &str, client_id: &str, fits: bool| {
            let name = UserName::parse(user_name).unwrap();
            assert_eq!(
                name.fits_client_id(client_id),
                fits,
                "{user_name} {client_id}"
            );
        };
        check("h/dev1/?api-version=2021-04-12", "dev1", true);
        check("h/dev1/?api-version=2021-04-12", "Dev1", false);
        check("h/dev1/?api-version=2021-04-12", "dev1/", false);
        check("h/dev1/?api-version=2021-04-12", "dev1/mod1", false);
        check("h/dev1/mod1/?api-version=2021-04-12", "dev1/mod1", true);
        check("h/dev1/mod1/?api-version=2021-04-12", "dev1", false);
        check("h/dev1/mod1/?api-version=2021-04-12", "dev2/mod1", false);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a/?&=%#.+é-]{0,40}") {
            let _ = UserName::parse(&text);
        }
    }
}
