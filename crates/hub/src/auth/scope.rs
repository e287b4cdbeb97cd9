//! What the resource of a token covers.

use std::borrow::Cow;

use fieldpost_model::Identity;
use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use crate::names::HostNames;

/// The path part of a token's resource at this hub, in segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    path: String,
}

impl Scope {
    /// Reads `sr` as it stands in a token; `None` when it is not text or names another host.
    pub(super) fn of_resource(resource: &str, names: &HostNames) -> Option<Self> {
        let decoded = percent_decode_str(resource).decode_utf8().ok()?;
        Self::of_decoded(&decoded, names)
    }

    /// The same for an `sr` that its writer did not encode, so that an id may hold `%`.
    pub(super) fn of_raw_resource(resource: &str, names: &HostNames) -> Option<Self> {
        Self::of_decoded(resource, names)
    }

    fn of_decoded(resource: &str, names: &HostNames) -> Option<Self> {
        let resource = resource
            .split_once("://")
            .map_or(resource, |(_scheme, rest)| rest);
        let (host, path) = resource.split_once('/').unwrap_or((resource, ""));
        names.contains(host).then(|| Self {
            path: without_api_version(path.trim_matches('/')).to_owned(),
        })
    }

    /// Whether `path` is this resource or lies below it, by whole segments.
    ///
    /// Ids compare exactly; fixed words and the names of entities and groups without case, because
    /// clients lower-case them before they sign.
    pub(super) fn covers(&self, path: &str) -> bool {
        let mut wanted = segments(path);
        let mut after_id_word = false;
        for own in segments(&self.path) {
            let Some(found) = wanted.next() else {
                return false;
            };
            let same = if after_id_word {
                own == found
            } else {
                own.eq_ignore_ascii_case(found)
            };
            if !same {
                return false;
            }
            after_id_word = !after_id_word && is_id_word(own);
        }
        true
    }

    /// Whether a key of the identity itself opens the identity with this resource: exactly its own
    /// address, or something below that belongs to no module.
    pub(super) fn is_of(&self, identity: &Identity) -> bool {
        let parts: SmallVec<[&str; 8]> = segments(&self.path).collect();
        match (&identity.module, parts.as_slice()) {
            (None, [word, device, rest @ ..]) => {
                word.eq_ignore_ascii_case("devices")
                    && *device == identity.device.as_str()
                    && !rest
                        .first()
                        .is_some_and(|word| word.eq_ignore_ascii_case("modules"))
            }
            (Some(module), [devices, device, modules, id, ..]) => {
                devices.eq_ignore_ascii_case("devices")
                    && *device == identity.device.as_str()
                    && modules.eq_ignore_ascii_case("modules")
                    && *id == module.as_str()
            }
            _ => false,
        }
    }

    /// Whether a policy with the right to speak for devices may speak for this one. The hub, all
    /// devices, the device, or an address below the device will do.
    pub(super) fn admits(&self, identity: &Identity) -> bool {
        let path: Cow<'_, str> = match &identity.module {
            None => format!("devices/{}", identity.device).into(),
            Some(module) => format!("devices/{}/modules/{module}", identity.device).into(),
        };
        self.covers(&path) || self.is_of(identity)
    }

    /// The device, and module, that the resource names, if it names one.
    pub(super) fn names_identity(&self) -> Option<Identity> {
        let mut parts = segments(&self.path);
        if !parts.next()?.eq_ignore_ascii_case("devices") {
            return None;
        }
        let device = parts.next()?.parse().ok()?;
        let module = match (parts.next(), parts.next()) {
            (Some(word), Some(id)) if word.eq_ignore_ascii_case("modules") => {
                Some(id.parse().ok()?)
            }
            _ => None,
        };
        Some(Identity { device, module })
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_matches('/');
    let empty = path.is_empty();
    path.split('/').filter(move |_| !empty)
}

fn is_id_word(word: &str) -> bool {
    word.eq_ignore_ascii_case("devices") || word.eq_ignore_ascii_case("modules")
}

/// Very old samples sign `…/api-version=…`; what stands there may also be an id.
fn without_api_version(path: &str) -> &str {
    let (front, last) = path.rsplit_once('/').unwrap_or(("", path));
    let before = front.rsplit('/').next().unwrap_or_default();
    if last.trim_start_matches('?').starts_with("api-version=") && !is_id_word(before) {
        front
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> HostNames {
        HostNames::new("hub", &["hub1.example.test".to_owned()])
    }

    #[test]
    fn a_resource_covers_what_lies_below_it_by_whole_segments() {
        let check = |sr: &str, path: &str, expected: bool| {
            let scope = Scope::of_resource(sr, &names());
            assert_eq!(
                scope.is_some_and(|s| s.covers(path)),
                expected,
                "{sr} {path}"
            );
        };
        check("hub1.example.test", "/devices/dev1", true);
        check("hub1.example.test/", "/", true);
        check("HUB1.example.test:443", "/devices/dev1", true);
        check("other.example.test", "/devices/dev1", false);
        check("", "/devices/dev1", false);
        check("hub1.example.test%2fdevices", "/devices/dev1", true);
        check("hub1.example.test%2Fdevices%2F", "devices/dev1", true);
        check("hub1/Devices/dev1", "/devices/dev1/messages/events", true);
        check("hub1/devices/dev1", "/devices/dev10", false);
        check("hub1/devices/dev1", "/devices/DEV1", false);
        check("hub1/devices/dev1", "/devices", false);
        check("hub1/devices/dev1", "/", false);
        check("hub1/devices/devices", "/devices/Devices", false);
        check("hub1/devices/d/modules/m", "/devices/d/modules/M", false);
        check("hub1/devices/d/modules/m", "/devices/d/modules/m/x", true);
        check(
            "sb://hub1.example.test/Hub",
            "/hub/ConsumerGroups/$Default",
            true,
        );
        check(
            "amqps://hub1.example.test:5671/hub/consumergroups/a",
            "/hub/ConsumerGroups/A/Partitions/0",
            true,
        );
        check("sb%3A%2F%2Fhub1.example.test%2Fhub", "/hub2", false);
        check("hub1/api-version=2016-11-14", "/devices/dev1", true);
        check("hub1/devices/api-version=1", "/devices/dev1", false);
        check("hub1/%ff", "/devices/dev1", false);
    }

    #[test]
    fn keys_of_an_identity_open_that_identity_alone() {
        let identity = |device: &str, module: Option<&str>| Identity {
            device: device.parse().unwrap(),
            module: module.map(|m| m.parse().unwrap()),
        };
        let check = |sr: &str, device: &str, module, own: bool, policy: bool| {
            let scope = Scope::of_resource(sr, &names()).unwrap();
            let identity = identity(device, module);
            assert_eq!(scope.is_of(&identity), own, "own key: {sr} {identity}");
            assert_eq!(scope.admits(&identity), policy, "policy: {sr} {identity}");
        };
        check("hub/devices/d", "d", None, true, true);
        check("hub/devices/d", "d", Some("m"), false, true);
        check("hub/devices/d", "d1", None, false, false);
        check("hub/devices/d/", "d", None, true, true);
        check("hub/devices/d/messages/events", "d", None, true, true);
        check(
            "hub/devices/d/api-version=2016-11-14",
            "d",
            None,
            true,
            true,
        );
        check("hub/devices/d/modules/m", "d", None, false, false);
        check("hub/devices/d/modules/m", "d", Some("m"), true, true);
        check("hub/devices/d/modules/m", "d", Some("m1"), false, false);
        check(
            "hub/devices/d/modules/m/messages",
            "d",
            Some("m"),
            true,
            true,
        );
        check("hub", "d", None, false, true);
        check("hub/devices", "d", Some("m"), false, true);
        check("hub/messages/events", "d", None, false, false);
        check("hub/devices/a%2541b", "a%41b", None, true, true);
        check("hub/devices/a%41b", "aAb", None, true, true);

        let raw = Scope::of_raw_resource("hub/devices/a%41b", &names()).unwrap();
        assert!(raw.is_of(&identity("a%41b", None)));
    }
}
