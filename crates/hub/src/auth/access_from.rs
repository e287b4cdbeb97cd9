//! Access for somebody of whom it is known where he comes from.

use std::net::IpAddr;
use std::time::Duration;

use fieldpost_model::Identity;

use super::access::{Access, CbsGrant, PlainLogin};
use super::guesses::Guesser;
use super::token::parse_sas;
use super::{AuthError, ClientCertificate, DevicePrincipal, Grant};

/// Longest name that is remembered of somebody who is none of the hub's identities, in characters.
const NAME_CHARS_MAX: usize = 300;

/// [`Access`] as seen from an address: who has failed there often lately waits before he is looked at.
pub struct AccessFrom<'a> {
    access: &'a Access,
    /// None for addresses that are not slowed.
    address: Option<IpAddr>,
}

impl Access {
    /// Access for somebody at an address; without one nobody is slowed.
    #[must_use]
    pub fn from(&self, address: Option<IpAddr>) -> AccessFrom<'_> {
        AccessFrom {
            access: self,
            address,
        }
    }
}

impl AccessFrom<'_> {
    /// As [`Access::authenticate_device`].
    ///
    /// # Errors
    /// The same, and [`AuthError::TooManyFailures`].
    pub async fn authenticate_device(
        &self,
        identity: &Identity,
        host: &str,
        token: &str,
    ) -> Result<DevicePrincipal, AuthError> {
        let who = claimed(token, || identity.to_string());
        let attempt = self.access.authenticate_device(identity, host, token);
        self.look_at(who, attempt).await
    }

    /// As [`Access::authenticate_certificate`].
    ///
    /// # Errors
    /// The same, and [`AuthError::TooManyFailures`].
    pub async fn authenticate_certificate(
        &self,
        identity: &Identity,
        host: &str,
        certificate: &ClientCertificate,
    ) -> Result<DevicePrincipal, AuthError> {
        let attempt = self
            .access
            .authenticate_certificate(identity, host, certificate);
        self.look_at(identity.to_string(), attempt).await
    }

    /// As [`Access::verify_policy_token`].
    ///
    /// # Errors
    /// The same, and [`AuthError::TooManyFailures`].
    pub async fn verify_policy_token(&self, token: &str) -> Result<Grant, AuthError> {
        let who = claimed(token, String::new);
        let attempt = async { self.access.verify_policy_token(token) };
        self.look_at(who, attempt).await
    }

    /// As [`AccessFrom::verify_policy_token`], for callers that cannot wait: who would have to is not
    /// looked at.
    ///
    /// # Errors
    /// The same.
    pub fn verify_policy_token_now(&self, token: &str) -> Result<Grant, AuthError> {
        let Some(address) = self.address else {
            return self.access.verify_policy_token(token);
        };
        let (guesses, now) = (self.access.guesses(), self.access.timer().monotonic());
        let guesser = guesser(address, &claimed(token, String::new));
        if guesses.wait(&guesser, now) != Some(Duration::ZERO) {
            slowed("refused");
            return Err(AuthError::TooManyFailures);
        }
        let outcome = self.access.verify_policy_token(token);
        match &outcome {
            Ok(_) => guesses.succeeded(&guesser),
            Err(_) => guesses.failed(guesser, now),
        }
        outcome
    }

    /// As [`Access::authenticate_cbs`].
    ///
    /// # Errors
    /// The same, and [`AuthError::TooManyFailures`].
    pub async fn authenticate_cbs(&self, token: &str) -> Result<CbsGrant, AuthError> {
        let who = claimed(token, || self.access.identity_of_resource(token));
        let attempt = self.access.authenticate_cbs(token);
        self.look_at(who, attempt).await
    }

    /// As [`Access::verify_plain`].
    ///
    /// # Errors
    /// The same, and [`AuthError::TooManyFailures`].
    pub async fn verify_plain(
        &self,
        authcid: &str,
        password: &str,
    ) -> Result<PlainLogin, AuthError> {
        let who = claimed(password, || authcid.to_ascii_lowercase());
        let attempt = self.access.verify_plain(authcid, password);
        self.look_at(who, attempt).await
    }

    async fn look_at<T>(
        &self,
        who: String,
        attempt: impl Future<Output = Result<T, AuthError>>,
    ) -> Result<T, AuthError> {
        let Some(address) = self.address else {
            return attempt.await;
        };
        let (guesses, timer) = (self.access.guesses(), self.access.timer());
        let guesser = guesser(address, &who);
        let now = timer.monotonic();
        match guesses.wait(&guesser, now) {
            Some(Duration::ZERO) => {}
            Some(wait) => {
                slowed("waited");
                timer.sleep_until(now.saturating_add(wait)).await;
            }
            None => {
                slowed("refused");
                return Err(AuthError::TooManyFailures);
            }
        }
        let outcome = attempt.await;
        match &outcome {
            Ok(_) => guesses.succeeded(&guesser),
            Err(AuthError::Unauthorized(_)) => guesses.failed(guesser, timer.monotonic()),
            Err(AuthError::Unavailable(_) | AuthError::TooManyFailures) => {}
        }
        outcome
    }
}

fn guesser(address: IpAddr, who: &str) -> Guesser {
    (address, who.chars().take(NAME_CHARS_MAX).collect())
}

/// As whom somebody comes: the policy that his token names, else whom he says that he is. Ids do not begin
/// with a slash.
fn claimed(token: &str, otherwise: impl FnOnce() -> String) -> String {
    let policy = parse_sas(token).ok().and_then(|token| token.policy);
    match policy {
        Some(policy) => format!("/policy/{}", policy.to_ascii_lowercase()),
        None => otherwise(),
    }
}

fn slowed(outcome: &'static str) {
    metrics::counter!("fieldpost_authentications_slowed_total", "outcome" => outcome).increment(1);
}
