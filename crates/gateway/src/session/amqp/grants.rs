//! The rights that a connection has been given.

use fieldpost_hub::auth::Grant;
use fieldpost_hub::policies::Rights;
use fieldpost_model::Timestamp;
use fieldpost_model::limits::TOKEN_CLOCK_SKEW;

/// Tokens that one connection may hold. A client that reads every partition under a token of its
/// own stays far below.
const GRANTS_MAX: usize = 512;

/// Longest name of a token, in bytes; names are resource addresses.
const NAME_BYTES_MAX: usize = 2048;

/// What the peer of a connection may do, by what it has proved so far.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// From the SASL layer, for the whole connection.
    login: Option<Grant>,
    /// From `$cbs`, by the name under which each was put.
    put: Vec<(Box<str>, Grant)>,
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

    /// When the connection's login expires, if it has one.
    pub(super) fn login_expires(&self) -> Option<Timestamp> {
        self.login.as_ref().map(end)
    }

    /// Keeps a grant, in place of the one put under the same name before.
    pub(super) fn put(&mut self, name: &str, grant: Grant, now: Timestamp) -> Result<(), NotKept> {
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

    /// Until when the peer may use `path` of `host`, as far as is known now.
    pub(super) fn allowed_until(
        &self,
        rights: Rights,
        host: &str,
        path: &str,
        now: Timestamp,
    ) -> Option<Timestamp> {
        self.all()
            .filter(|grant| end(grant) > now && grant.allows(rights, host, path))
            .map(end)
            .max()
    }

    /// When the last of all grants expires; `None` without any.
    pub(super) fn last_expiry(&self) -> Option<Timestamp> {
        self.all().map(end).max()
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
    grant.expires.saturating_add(TOKEN_CLOCK_SKEW)
}
