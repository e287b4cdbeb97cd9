//! Logging in: what the SASL layer asks and is told.

use std::task::{Context, Poll};

use fieldpost_amqp::sasl::{Plain, SaslCode, SaslInit, mechanism};
use fieldpost_hub::auth::{AuthError, PlainLogin};

use super::Session;
use crate::listen::limits::counted_address;

impl Session {
    pub(super) fn on_sasl_init(&mut self, init: &SaslInit) {
        let name = init.mechanism.as_str();
        let is_good = match name {
            mechanism::MSSBCBS | mechanism::ANONYMOUS => true,
            // What the certificate opens is asked when a link is attached.
            mechanism::EXTERNAL => self.context.client_certificate.is_some(),
            _ => false,
        };
        if is_good {
            self.sasl_outcome(SaslCode::Ok);
            return;
        }
        let plain = init
            .initial_response
            .as_deref()
            .filter(|_| name == mechanism::PLAIN)
            .and_then(Plain::parse);
        let Some(plain) = plain else {
            self.sasl_outcome(SaslCode::Auth);
            return;
        };
        let hub = self.context.hub.clone();
        let address = counted_address(self.context.peer.ip());
        let (authcid, password) = (plain.authcid.to_owned(), plain.password.to_owned());
        self.login = Some(Box::pin(async move {
            let access = hub.access().from(address);
            access.verify_plain(&authcid, &password).await
        }));
    }

    pub(super) fn poll_login(&mut self, cx: &mut Context<'_>) {
        let Some(login) = &mut self.login else { return };
        let Poll::Ready(verified) = login.as_mut().poll(cx) else {
            return;
        };
        self.login = None;
        match verified {
            Ok(PlainLogin::Policy(grant)) => {
                self.grants.log_in(grant);
                self.sasl_outcome(SaslCode::Ok);
                self.granted(self.context.monotonic());
            }
            Ok(PlainLogin::Device(principal)) => {
                self.grants.log_in_device(principal);
                self.sasl_outcome(SaslCode::Ok);
                self.granted(self.context.monotonic());
            }
            Err(AuthError::Unauthorized(denial)) => {
                tracing::debug!(reason = denial.as_str(), "login refused");
                self.sasl_outcome(SaslCode::Auth);
            }
            Err(AuthError::TooManyFailures | AuthError::Unavailable(_)) => {
                self.sasl_outcome(SaslCode::SysTemp);
            }
        }
    }

    fn sasl_outcome(&mut self, code: SaslCode) {
        // It is only ever called while the engine waits for it.
        let _ = self.engine.sasl_outcome(code);
    }
}
