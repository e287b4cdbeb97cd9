//! Who is let in: devices by their own keys or through a policy, services by a policy.

use std::sync::Arc;

use fieldpost_model::{AuthKind, AuthScope, AuthStamp, Identity, Partitioning, Timestamp};

use super::guesses::Guesses;
use super::scope::Scope;
use super::token::{SasToken, parse_sas};
use super::{AuthError, ClientCertificate, Denial, DevicePrincipal, Grant};
use crate::authorities::Authorities;
use crate::clock::Timer;
use crate::faults::Faults;
use crate::identity::{Authentication, Registered, Registry};
use crate::names::HostNames;
use crate::policies::{Policies, Policy, Rights, SetKeysError};
use crate::secrets::Secret;

/// Checks credentials against the registry and the policies.
pub struct Access {
    policies: Arc<Policies>,
    registry: Registry,
    authorities: Authorities,
    names: Arc<HostNames>,
    timer: Arc<dyn Timer>,
    partitioning: Partitioning,
    /// Of a hub in test mode.
    faults: Option<Arc<Faults>>,
    guesses: Guesses,
}

/// What a token put on a CBS link is worth.
#[derive(Clone, Debug)]
pub enum CbsGrant {
    /// A policy's token; see also [`Access::authorize_device`].
    Policy(Grant),
    /// A device's or module's own token.
    Device(DevicePrincipal),
}

/// Who signed in with a user name and a token as password.
#[derive(Clone, Debug)]
pub enum PlainLogin {
    /// `{policy}@sas.root.{hub}`
    Policy(Grant),
    /// `{device}@sas.{hub}` or `{device}/modules/{module}@sas.{hub}`
    Device(DevicePrincipal),
}

impl Access {
    pub(crate) fn new(
        policies: Arc<Policies>,
        registry: Registry,
        authorities: Authorities,
        names: Arc<HostNames>,
        timer: Arc<dyn Timer>,
        partitioning: Partitioning,
        faults: Option<Arc<Faults>>,
    ) -> Self {
        Self {
            policies,
            registry,
            authorities,
            names,
            timer,
            partitioning,
            faults,
            guesses: Guesses::default(),
        }
    }

    pub(super) fn guesses(&self) -> &Guesses {
        &self.guesses
    }

    pub(super) fn timer(&self) -> &Arc<dyn Timer> {
        &self.timer
    }

    /// The identity that the resource of a device's token names; nothing when it names none.
    pub(super) fn identity_of_resource(&self, token: &str) -> String {
        let token = parse_sas(token).ok();
        let scope = token.and_then(|token| Scope::of_resource(token.resource, &self.names));
        let identity = scope.and_then(|scope| scope.names_identity());
        identity.map_or_else(String::new, |identity| identity.to_string())
    }

    /// All policies in the order of [`crate::policies::POLICY_NAMES`].
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        self.policies.all()
    }

    /// A policy by its name, without regard to ASCII case.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<Policy> {
        self.policies.find(name)
    }

    /// Replaces both keys of a policy; durable when it returns. Any text may be a key.
    ///
    /// # Errors
    /// When there is no such policy, a key is empty or too long, or the store does not take it.
    pub async fn set_policy_keys(
        &self,
        name: &str,
        primary: Secret,
        secondary: Secret,
    ) -> Result<(), SetKeysError> {
        let (policies, name) = (Arc::clone(&self.policies), name.to_owned());
        self.registry
            .run_to_end(async move { policies.set_keys(&name, primary, secondary).await })
            .await
    }

    /// Authenticates a device or module by a token: one of its own keys, or a policy that may speak
    /// for it. `host` is the name by which the client called the hub.
    ///
    /// Costs one read of the registry at most.
    ///
    /// # Errors
    /// [`AuthError::Unauthorized`] when the token is not good for this identity now.
    pub async fn authenticate_device(
        &self,
        identity: &Identity,
        host: &str,
        token: &str,
    ) -> Result<DevicePrincipal, AuthError> {
        let outcome = if self.names.contains(host) {
            self.device_by_text(identity, token).await
        } else {
            Err(Denial::ForeignHost.into())
        };
        counted(outcome)
    }

    /// Authenticates a device by the certificate that it showed. `host` is the name by which the client
    /// called the hub.
    ///
    /// # Errors
    /// [`AuthError::Unauthorized`] when the certificate is not good for this identity now.
    pub async fn authenticate_certificate(
        &self,
        identity: &Identity,
        host: &str,
        certificate: &ClientCertificate,
    ) -> Result<DevicePrincipal, AuthError> {
        let outcome = if self.names.contains(host) {
            self.device_by_certificate(identity, certificate).await
        } else {
            Err(Denial::ForeignHost.into())
        };
        counted(outcome)
    }

    /// Verifies a policy's token. Both ways of using a key count, each with both keys: clients of
    /// IoT Hub decode it, clients of Event Hubs use its text.
    ///
    /// # Errors
    /// [`AuthError::Unauthorized`] when the token is not a policy's, or not good now.
    pub fn verify_policy_token(&self, token: &str) -> Result<Grant, AuthError> {
        let outcome = parse(token).and_then(|token| self.policy_grant(&token, None));
        counted(outcome.map_err(AuthError::from))
    }

    /// Checks a token that came over a CBS link. Its own resource says whom it is for; what the
    /// client calls it does not count.
    ///
    /// # Errors
    /// As [`Access::authenticate_device`].
    pub async fn authenticate_cbs(&self, token: &str) -> Result<CbsGrant, AuthError> {
        counted(self.cbs_grant(token).await)
    }

    /// Lets the holder of a policy's token speak for a device or module, on a connection that
    /// carries many.
    ///
    /// # Errors
    /// [`AuthError::Unauthorized`] when the token does not cover it or the device cannot connect.
    pub async fn authorize_device(
        &self,
        grant: &Grant,
        identity: &Identity,
    ) -> Result<DevicePrincipal, AuthError> {
        counted(self.device_by_grant(grant, identity).await)
    }

    /// Checks user name and password of SASL PLAIN; the password is a token.
    ///
    /// # Errors
    /// As [`Access::authenticate_device`].
    pub async fn verify_plain(
        &self,
        authcid: &str,
        password: &str,
    ) -> Result<PlainLogin, AuthError> {
        counted(self.plain_login(authcid, password).await)
    }

    async fn plain_login(&self, authcid: &str, password: &str) -> Result<PlainLogin, AuthError> {
        // Ids may hold `@`, host names do not.
        let (user, host) = authcid.rsplit_once("@sas.").ok_or(Denial::Malformed)?;
        if let Some(hub) = host.strip_prefix("root.")
            && self.names.contains(hub)
        {
            let grant = self.policy_grant(&parse(password)?, Some(user))?;
            return Ok(PlainLogin::Policy(grant));
        }
        if !self.names.contains(host) {
            return Err(Denial::ForeignHost.into());
        }
        let (device, module) = match user.split_once("/modules/") {
            None => (user, None),
            Some((device, module)) => (device, Some(module)),
        };
        let unknown = |_| Denial::UnknownIdentity;
        let identity = Identity {
            device: device.parse().map_err(unknown)?,
            module: module.map(str::parse).transpose().map_err(unknown)?,
        };
        let principal = self.device_by_text(&identity, password).await?;
        Ok(PlainLogin::Device(principal))
    }

    async fn cbs_grant(&self, token: &str) -> Result<CbsGrant, AuthError> {
        let token = parse(token)?;
        if token.policy.is_some() {
            return Ok(CbsGrant::Policy(self.policy_grant(&token, None)?));
        }
        let mut denial = AuthError::from(Denial::OutOfScope);
        // An `sr` that was not encoded may name an id with `%` in it.
        for scope in [
            Scope::of_resource(token.resource, &self.names),
            Scope::of_raw_resource(token.resource, &self.names),
        ] {
            let Some(identity) = scope.and_then(|scope| scope.names_identity()) else {
                continue;
            };
            match self.device_by_own_key(&identity, &token).await {
                Ok(principal) => return Ok(CbsGrant::Device(principal)),
                Err(error @ AuthError::Unavailable(_)) => return Err(error),
                Err(error) => denial = error,
            }
        }
        Err(denial)
    }

    async fn device_by_text(
        &self,
        identity: &Identity,
        token: &str,
    ) -> Result<DevicePrincipal, AuthError> {
        let token = parse(token)?;
        if token.policy.is_some() {
            let grant = self.policy_grant(&token, None)?;
            self.device_by_grant(&grant, identity).await
        } else {
            self.device_by_own_key(identity, &token).await
        }
    }

    async fn device_by_own_key(
        &self,
        identity: &Identity,
        token: &SasToken<'_>,
    ) -> Result<DevicePrincipal, AuthError> {
        if token.is_expired(self.timer.now()) {
            return Err(Denial::Expired.into());
        }
        let in_scope = [
            Scope::of_resource(token.resource, &self.names),
            Scope::of_raw_resource(token.resource, &self.names),
        ]
        .into_iter()
        .flatten()
        .any(|scope| scope.is_of(identity));
        if !in_scope {
            return Err(Denial::OutOfScope.into());
        }
        let found = self.enabled(identity).await?;
        let Authentication::Sas(keys) = found.authentication() else {
            return Err(Denial::NoKeys.into());
        };
        let signed = token.is_signed_by_decoded(&keys.primary)
            || token.is_signed_by_decoded(&keys.secondary);
        if !signed {
            return Err(Denial::WrongSignature.into());
        }
        let stamp = AuthStamp {
            scope: own_scope(identity),
            kind: AuthKind::Sas,
        };
        Ok(self.principal(&found, stamp, token.expires))
    }

    async fn device_by_certificate(
        &self,
        identity: &Identity,
        certificate: &ClientCertificate,
    ) -> Result<DevicePrincipal, AuthError> {
        let found = self.enabled(identity).await?;
        let now = self.timer.now();
        let expires = match found.authentication() {
            Authentication::SelfSigned(thumbprints) => {
                certificate.check_thumbprint(thumbprints, now)?
            }
            Authentication::CertificateAuthority => {
                certificate.check_chain(identity, &self.authorities.anchors(), now)?
            }
            Authentication::Sas(_) | Authentication::None => {
                return Err(Denial::NoCertificates.into());
            }
        };
        let stamp = AuthStamp {
            scope: own_scope(identity),
            kind: AuthKind::X509,
        };
        Ok(self.principal(&found, stamp, expires))
    }

    async fn device_by_grant(
        &self,
        grant: &Grant,
        identity: &Identity,
    ) -> Result<DevicePrincipal, AuthError> {
        if !grant.rights.contains(Rights::DEVICE_CONNECT) {
            return Err(Denial::MissingRight.into());
        }
        if !grant.scope.admits(identity) {
            return Err(Denial::OutOfScope.into());
        }
        let found = self.enabled(identity).await?;
        let stamp = AuthStamp {
            scope: AuthScope::Hub,
            kind: AuthKind::Sas,
        };
        Ok(self.principal(&found, stamp, grant.expires))
    }

    async fn enabled(&self, identity: &Identity) -> Result<Registered, AuthError> {
        if let Some(denial) = self.faults.as_ref().and_then(|f| f.denial(identity)) {
            return Err(denial.into());
        }
        let found = self
            .registry
            .find(identity)
            .await
            .map_err(AuthError::Unavailable)?
            .ok_or(Denial::UnknownIdentity)?;
        if !found.is_enabled() {
            return Err(Denial::Disabled.into());
        }
        Ok(found)
    }

    fn principal(
        &self,
        found: &Registered,
        stamp: AuthStamp,
        expires: Timestamp,
    ) -> DevicePrincipal {
        let identity = found.identity();
        DevicePrincipal {
            generation_id: Arc::clone(found.generation_id()),
            stamp,
            partition: self.partitioning.partition_of(&identity.device),
            expires,
            identity,
        }
    }

    /// `login` is the policy that the client signs in as, when it says so beside the token.
    fn policy_grant(&self, token: &SasToken<'_>, login: Option<&str>) -> Result<Grant, Denial> {
        let name = match (token.policy.as_deref(), login) {
            (Some(named), Some(login)) if !named.eq_ignore_ascii_case(login) => {
                return Err(Denial::UnknownPolicy);
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => return Err(Denial::UnknownPolicy),
        };
        let policy = self.policies.find(name).ok_or(Denial::UnknownPolicy)?;
        if token.is_expired(self.timer.now()) {
            return Err(Denial::Expired);
        }
        let signed = [&policy.primary, &policy.secondary]
            .into_iter()
            .any(|key| token.is_signed_by_decoded(key) || token.is_signed_by_text(key));
        if !signed {
            return Err(Denial::WrongSignature);
        }
        let scope = Scope::of_resource(token.resource, &self.names).ok_or(Denial::OutOfScope)?;
        Ok(Grant {
            policy: policy.name,
            rights: policy.rights,
            expires: token.expires,
            scope,
            names: Arc::clone(&self.names),
        })
    }
}

/// The scope of an identity's own credential.
fn own_scope(identity: &Identity) -> AuthScope {
    match identity.module {
        None => AuthScope::Device,
        Some(_) => AuthScope::Module,
    }
}

fn parse(token: &str) -> Result<SasToken<'_>, Denial> {
    parse_sas(token).map_err(|_| Denial::Malformed)
}

fn counted<T>(outcome: Result<T, AuthError>) -> Result<T, AuthError> {
    if let Err(error) = &outcome {
        let reason = match error {
            AuthError::Unauthorized(denial) => denial.as_str(),
            AuthError::TooManyFailures => "too_many_failures",
            AuthError::Unavailable(_) => "unavailable",
        };
        metrics::counter!("fieldpost_authentication_failures_total", "reason" => reason)
            .increment(1);
    }
    outcome
}
