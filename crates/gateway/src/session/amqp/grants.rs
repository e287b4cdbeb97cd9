//! The rights that a connection has been given, and what ends with them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::auth::{CbsGrant, ClientCertificate, DevicePrincipal, Grant};
use fieldpost_hub::policies::Rights;
use fieldpost_model::limits::TOKEN_CLOCK_SKEW;
use fieldpost_model::{Identity, Timestamp};

use super::{Node, Session};
use crate::dialect::amqp::error;

/// How often, at the latest, the wall clock is compared with the expiry of grants: it may be set,
/// which no timer notices.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Tokens that one connection may hold. A client that reads every partition under a token of its
/// own stays far below.
const GRANTS_MAX: usize = 512;

/// Devices of which one connection may hold tokens: what some libraries multiplex, and as many again.
const DEVICES_MAX: usize = 2048;

/// Longest name of a token, in bytes; names are resource addresses.
const NAME_BYTES_MAX: usize = 2048;

/// What the peer of a connection may do, by what it has proved so far.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// From the SASL layer, for the whole connection.
    login: Option<Grant>,
    /// From `$cbs`, by the name under which each was put.
    put: Vec<(Box<str>, Grant)>,
    /// A device's from the SASL layer, for the whole connection.
    device_login: Option<DevicePrincipal>,
    /// Devices' own, from `$cbs`.
    devices: HashMap<Identity, DevicePrincipal>,
}

/// What lets a connection speak for a device.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// The device's own token.
    Own(DevicePrincipal),
    /// A policy's; whether there is such a device is yet to be seen.
    Policy(Grant),
    /// The certificate that TLS began with; whether it is the device's is yet to be seen.
    Certificate(Arc<ClientCertificate>),
}

impl Credential {
    /// Until when it is good, as far as is known yet.
    pub(super) fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Own(principal) => Some(after_skew(principal.expires)),
            Self::Policy(grant) => Some(end(grant)),
            Self::Certificate(_) => None,
        }
    }
}

/// What lets a link be there.
#[derive(Clone, Debug)]
pub(super) struct Permit {
    /// What rights are checked against.
    pub(super) path: String,
    /// The policy that grants it.
    pub(super) policy: &'static str,
    /// Until when, by the grants known at the last check.
    pub(super) until: Timestamp,
}

/// Why a token was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotKept {
    /// The connection holds as many as it may.
    TooMany,
    /// Its name is too long.
    Name,
}

impl Grants {
    /// Records that the peer logged in as a whole.
    pub(super) fn log_in(&mut self, grant: Grant) {
        self.login = Some(grant);
    }

    /// Whether the peer logged in as a device, by whatever means.
    pub(super) fn is_device_login(&self) -> bool {
        self.device_login.is_some()
    }

    /// Records that the peer logged in as a device.
    pub(super) fn log_in_device(&mut self, principal: DevicePrincipal) {
        self.device_login = Some(principal);
    }

    /// When the connection's login expires, if it has one.
    pub(super) fn login_expires(&self) -> Option<Timestamp> {
        let device = self.device_login.as_ref();
        let device = device.map(|principal| after_skew(principal.expires));
        self.login.as_ref().map(end).or(device)
    }

    /// Keeps what a token grants: a device's in place of its last one, a policy's in place of the one
    /// put under the same name before.
    pub(super) fn put(
        &mut self,
        name: &str,
        granted: CbsGrant,
        now: Timestamp,
    ) -> Result<(), NotKept> {
        match granted {
            CbsGrant::Policy(grant) => self.put_policy(name, grant, now),
            CbsGrant::Device(principal) => self.put_device(principal, now),
        }
    }

    fn put_device(&mut self, principal: DevicePrincipal, now: Timestamp) -> Result<(), NotKept> {
        let known = self.devices.contains_key(&principal.identity);
        if !known && self.devices.len() >= DEVICES_MAX {
            (self.devices).retain(|_, kept| after_skew(kept.expires) > now);
            if self.devices.len() >= DEVICES_MAX {
                return Err(NotKept::TooMany);
            }
        }
        self.devices.insert(principal.identity.clone(), principal);
        Ok(())
    }

    fn put_policy(&mut self, name: &str, grant: Grant, now: Timestamp) -> Result<(), NotKept> {
        if name.len() > NAME_BYTES_MAX {
            return Err(NotKept::Name);
        }
        if let Some((_, kept)) = self.put.iter_mut().find(|(kept, _)| **kept == *name) {
            *kept = grant;
            return Ok(());
        }
        if self.put.len() >= GRANTS_MAX {
            self.put.retain(|(_, kept)| end(kept) > now);
        }
        if self.put.len() >= GRANTS_MAX {
            return Err(NotKept::TooMany);
        }
        self.put.push((name.into(), grant));
        Ok(())
    }

    /// The permit for a service to use `path` of `host`, for as long as is known now.
    pub(super) fn permit(&self, host: &str, path: String, now: Timestamp) -> Option<Permit> {
        let grant = self.best(host, &path, now)?;
        Some(Permit {
            policy: grant.policy,
            until: end(grant),
            path,
        })
    }

    /// What lets the peer speak for a device now; the device's own credential rather than a policy's.
    pub(super) fn credential(
        &self,
        host: &str,
        identity: &Identity,
        now: Timestamp,
    ) -> Option<Credential> {
        let put = self.devices.get(identity);
        let login = self.device_login.iter();
        let mut own = login
            .filter(|principal| principal.identity == *identity)
            .chain(put);
        if let Some(own) = own.find(|principal| after_skew(principal.expires) > now) {
            return Some(Credential::Own(own.clone()));
        }
        let grant = self
            .all()
            .filter(|grant| end(grant) > now && grant.speaks_for(host, identity))
            .max_by_key(|grant| end(grant))?;
        Some(Credential::Policy(grant.clone()))
    }

    /// Whether a service may use `path` of `host`.
    pub(super) fn allow(&self, host: &str, path: &str, now: Timestamp) -> bool {
        self.best(host, path, now).is_some()
    }

    fn best(&self, host: &str, path: &str, now: Timestamp) -> Option<&Grant> {
        self.all()
            .filter(|grant| end(grant) > now && grant.allows(Rights::SERVICE_CONNECT, host, path))
            .max_by_key(|grant| end(grant))
    }

    /// When the last of all grants expires; `None` without any.
    pub(super) fn last_expiry(&self) -> Option<Timestamp> {
        let devices = self.devices.values().chain(&self.device_login);
        let devices = devices.map(|principal| after_skew(principal.expires));
        self.all().map(end).chain(devices).max()
    }

    fn all(&self) -> impl Iterator<Item = &Grant> {
        self.login
            .iter()
            .chain(self.put.iter().map(|(_, grant)| grant))
    }
}

/// When a grant ends here: a token is also taken for this much longer than it says, because clocks
/// differ, and what it granted must not end before it would be refused.
fn end(grant: &Grant) -> Timestamp {
    after_skew(grant.expires)
}

fn after_skew(expires: Timestamp) -> Timestamp {
    expires.saturating_add(TOKEN_CLOCK_SKEW)
}

impl Node {
    /// What lets the link be there; nobody needs a permit to put a token.
    fn permit(&mut self) -> Option<&mut Permit> {
        match self {
            Self::Reader(reader) => Some(&mut reader.permit),
            Self::Commands(commands) => Some(&mut commands.permit),
            Self::Feedback(_, permit) => Some(permit),
            // A device's credential is looked at for all its links at once.
            Self::Requests(_) | Self::Answers(_) | Self::Device(_) => None,
        }
    }
}

impl Session {
    /// Somebody has proved who he is.
    pub(super) fn granted(&mut self, now: Duration) {
        self.context.authenticated();
        self.engine.set_authenticated(true);
        self.authentication_due = None;
        let expiries = [self.grants.login_expires(), self.grants.last_expiry()];
        if let Some(expiry) = expiries.into_iter().flatten().min() {
            self.watch_expiry(expiry, now);
        }
    }

    /// Looks at the grants again when `expiry` has come.
    pub(super) fn watch_expiry(&mut self, expiry: Timestamp, now: Duration) {
        let due = now.saturating_add(until(expiry, self.context.timer().now()));
        self.grants_due = Some(self.grants_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Throws out links whose rights have expired, and a connection whose login has.
    pub(super) fn check_grants(&mut self, now: Duration) {
        self.grants_due = None;
        let wall = self.context.timer().now();
        if self
            .grants
            .login_expires()
            .is_some_and(|expires| expires <= wall)
        {
            self.close(error::connection_expired(), "login expiry", now);
            return;
        }
        let Some(last_expiry) = self.grants.last_expiry() else {
            return;
        };
        let mut next = last_expiry;
        if let Some(expires) = self.grants.login_expires() {
            next = next.min(expires);
        }
        let mut expired = Vec::new();
        for (link, node) in &mut self.nodes {
            let Some(permit) = node.permit() else {
                continue;
            };
            if permit.until <= wall {
                match self
                    .grants
                    .best(self.context.hub.name(), &permit.path, wall)
                {
                    Some(grant) => permit.until = end(grant),
                    None => {
                        expired.push(*link);
                        continue;
                    }
                }
            }
            next = next.min(permit.until);
        }
        for link in expired {
            self.detach(link, error::grant_expired());
        }
        if let Some(device) = self.check_devices(wall) {
            next = next.min(device);
        }
        if last_expiry <= wall {
            // Nothing that was proved holds any longer.
            let due = now.saturating_add(self.context.limits.amqp_authentication);
            self.authentication_due = Some(due);
            return;
        }
        self.grants_due = Some(now.saturating_add(until(next, wall)));
    }
}

/// How long to sleep until `moment` of the wall clock, at most [`EXPIRY_CHECK_INTERVAL`].
fn until(moment: Timestamp, wall: Timestamp) -> Duration {
    moment.since(wall).min(EXPIRY_CHECK_INTERVAL)
}
