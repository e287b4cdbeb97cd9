//! Shared access signatures: reading tokens, the scope they grant, and what a verified one is
//! worth.

mod access;
mod access_from;
pub(crate) mod certificate;
mod guesses;
mod scope;
mod token;

use std::sync::Arc;

use fieldpost_model::{AuthStamp, Identity, PartitionId, Timestamp};
use fieldpost_store::StoreError;

pub use access::{Access, CbsGrant, PlainLogin};
pub use access_from::AccessFrom;
pub use certificate::ClientCertificate;
pub use token::{MalformedSas, SasToken, TOKEN_BYTES_MAX, parse_sas};

use crate::names::HostNames;
use crate::policies::Rights;
use scope::Scope;

/// An authenticated device or module: what a session needs to know about who it speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePrincipal {
    /// Who.
    pub identity: Identity,
    /// The generation of the identity that was authenticated.
    pub generation_id: Arc<str>,
    /// How; stamped on every message.
    pub stamp: AuthStamp,
    /// Where the identity's messages go.
    pub partition: PartitionId,
    /// When the credential ends. The session ends with it unless it is renewed.
    pub expires: Timestamp,
}

/// What a verified policy token allows.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The policy.
    pub policy: &'static str,
    /// The policy's rights.
    pub rights: Rights,
    /// When the token ends.
    pub expires: Timestamp,
    scope: Scope,
    names: Arc<HostNames>,
}

impl Grant {
    /// Whether the holder has `rights` at a resource.
    ///
    /// `host` is the name by which the client called the hub. `path` is the resource's path,
    /// percent-decoded, such as `/devices/dev1`. The token covers what its own resource is a prefix
    /// of, by whole segments.
    #[must_use]
    pub fn allows(&self, rights: Rights, host: &str, path: &str) -> bool {
        self.rights.contains(rights) && self.names.contains(host) && self.scope.covers(path)
    }
}

impl Grant {
    /// Whether the holder may speak for a device or module, whom the registry is yet to know: the token
    /// is for the hub, for all devices, for this one, or for something below it.
    #[must_use]
    pub fn speaks_for(&self, host: &str, identity: &Identity) -> bool {
        self.rights.contains(Rights::DEVICE_CONNECT)
            && self.names.contains(host)
            && self.scope.admits(identity)
    }
}

/// Why somebody is not let in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthError {
    /// The credential is not good. Clients are told no more than that.
    #[error("unauthorised: {}", .0.as_str())]
    Unauthorized(Denial),
    /// He has failed so often lately that he is not looked at. The credential may be good.
    #[error("too many failures of late")]
    TooManyFailures,
    /// The hub cannot tell at the moment. Clients must be told so, because some give up for good
    /// when told that they are unauthorised.
    #[error("the identity registry does not answer")]
    Unavailable(#[source] StoreError),
}

/// Why a credential is not good; for metrics and debug logs, never for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// The token cannot be read.
    Malformed,
    /// The client named a host that is not this hub.
    ForeignHost,
    /// There is no such device or module.
    UnknownIdentity,
    /// The device is disabled.
    Disabled,
    /// The device does not sign in with keys.
    NoKeys,
    /// There is no such policy, or the token names none.
    UnknownPolicy,
    /// The policy lacks the right.
    MissingRight,
    /// Signed with another key.
    WrongSignature,
    /// The token has ended.
    Expired,
    /// The token is for another resource.
    OutOfScope,
    /// The device does not sign in with certificates.
    NoCertificates,
    /// The certificate cannot be read.
    UnreadableCertificate,
    /// The certificate is not one of the device's, or names another one.
    ForeignCertificate,
    /// It is too early or too late for the certificate, or for one that vouches for it.
    CertificateNotValid,
    /// No authority that the hub knows vouches for the certificate.
    UnknownAuthority,
    /// A test of the hub's user asked for it.
    OnDemand,
}

impl Denial {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::ForeignHost => "foreign_host",
            Self::UnknownIdentity => "unknown_identity",
            Self::Disabled => "disabled",
            Self::NoKeys => "no_keys",
            Self::UnknownPolicy => "unknown_policy",
            Self::MissingRight => "missing_right",
            Self::WrongSignature => "wrong_signature",
            Self::Expired => "expired",
            Self::OutOfScope => "out_of_scope",
            Self::NoCertificates => "no_certificates",
            Self::UnreadableCertificate => "unreadable_certificate",
            Self::ForeignCertificate => "foreign_certificate",
            Self::CertificateNotValid => "certificate_not_valid",
            Self::UnknownAuthority => "unknown_authority",
            Self::OnDemand => "on_demand",
        }
    }
}

impl From<Denial> for AuthError {
    fn from(denial: Denial) -> Self {
        Self::Unauthorized(denial)
    }
}
