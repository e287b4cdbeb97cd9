//! The certificate authorities that may vouch for devices.
//!
//! Whoever registers one shows that he holds its key: he gets a code and has the authority sign a
//! certificate with that code as its common name. Until then it vouches for nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::documents::{Action, Change, Condition, Documents, ListRequest};
use fieldpost_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::auth::certificate::{Facts, sha256_thumbprint};
use crate::clock::{Chance, Timer};
use crate::collections::AUTHORITIES;
use crate::identity::Registry;

/// Most authorities of a hub (Azure IoT Hub: 25 CA certificates).
pub const AUTHORITIES_MAX: usize = 25;

/// Longest name of an authority, in characters (Azure IoT Hub resource provider).
pub const AUTHORITY_NAME_CHARS_MAX: usize = 64;

/// Longest certificate of an authority, in bytes of DER; a bound of our own, far above any in use.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// Random bytes of a verification code.
const CODE_BYTES: usize = 24;

/// A registered authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// What its operator calls it.
    pub name: String,
    /// Its certificate, in DER.
    pub certificate: Bytes,
    /// The certificate's subject, for people.
    pub subject: String,
    /// SHA-256 of the certificate, in upper-case hexadecimal digits.
    pub thumbprint: String,
    /// The first moment at which the certificate is good.
    pub not_before: Timestamp,
    /// The moment at which it is no longer good.
    pub not_after: Timestamp,
    /// Whether possession of its key has been shown. It vouches for devices only then.
    pub is_verified: bool,
    /// What the common name of a certificate must be that shows it; `None` until one was asked for.
    pub verification_code: Option<String>,
    /// When it was registered.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
}

/// What vouches for devices: the certificate of a verified authority.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) certificate: Bytes,
    pub(crate) facts: Facts,
}

/// Why an authority is not registered, changed or removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The name is not one.
    #[error(
        "a name of an authority has 1 to {AUTHORITY_NAME_CHARS_MAX} ASCII letters, digits, `-`, `.` and `_`"
    )]
    Name,
    /// There is one of that name already.
    #[error("there is an authority of that name already")]
    AlreadyExists,
    /// The certificate is registered under another name.
    #[error("the certificate is registered already, as {name}")]
    KnownAs {
        /// That name.
        name: String,
    },
    /// There are [`AUTHORITIES_MAX`] already.
    #[error("a hub has at most {AUTHORITIES_MAX} authorities")]
    TooMany,
    /// There is none of that name.
    #[error("there is no authority of that name")]
    NotFound,
    /// It is no certificate.
    #[error("it is not one X.509 certificate in DER of at most {CERTIFICATE_BYTES_MAX} bytes")]
    NoCertificate,
    /// The certificate may not sign others.
    #[error("the certificate is not that of an authority: its basic constraints do not say so")]
    NoAuthority,
    /// The certificate is no longer good.
    #[error("the certificate has expired")]
    Expired,
    /// There is no code yet that a proof could carry.
    #[error("no verification code was asked for yet")]
    NoCode,
    /// The proof's common name is something else.
    #[error("the certificate's common name is not the verification code")]
    WrongCode,
    /// The proof is signed by somebody else.
    #[error("the certificate is not signed by the authority")]
    WrongSignature,
    /// The store did not take the change.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The registered authorities. Cloning is cheap.
#[derive(Clone)]
pub struct Authorities(Arc<Inner>);

struct Inner {
    documents: Arc<dyn Documents>,
    registry: Registry,
    timer: Arc<dyn Timer>,
    chance: Arc<dyn Chance>,
    /// Nothing else is taken while it is held.
    current: RwLock<Arc<Current>>,
    /// Held across a change, so that memory follows the order of the store.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    by_name: BTreeMap<String, Authority>,
    /// Of those that are verified.
    anchors: Vec<Anchor>,
}

impl Authorities {
    pub(crate) async fn open(
        store: &Store,
        registry: Registry,
        timer: Arc<dyn Timer>,
        chance: Arc<dyn Chance>,
    ) -> Result<Self, StoreError> {
        let request = ListRequest {
            collection: AUTHORITIES,
            prefix: Bytes::new(),
            after: None,
            limit: AUTHORITIES_MAX,
        };
        let page = store.documents.list(request).await?;
        let mut by_name = BTreeMap::new();
        for document in &page.documents {
            match decode(&document.key, &document.value) {
                Some(authority) => {
                    by_name.insert(authority.name.clone(), authority);
                }
                // The others, and all devices with keys, can do without it.
                None => tracing::error!(
                    authority = %String::from_utf8_lossy(&document.key),
                    "a stored certificate authority cannot be read and vouches for nobody; remove it or add it anew"
                ),
            }
        }
        Ok(Self(Arc::new(Inner {
            documents: Arc::clone(&store.documents),
            registry,
            timer,
            chance,
            current: RwLock::new(Arc::new(Current::of(by_name))),
            changing: tokio::sync::Mutex::new(()),
        })))
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Authority> {
        self.0.current().by_name.values().cloned().collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Authority> {
        self.0.current().by_name.get(name).cloned()
    }

    /// Registers the authority of a certificate in DER; durable when it returns.
    ///
    /// `is_verified` is for operators who know whose it is, and need no proof.
    ///
    /// # Errors
    /// When name or certificate are not what they must be, or taken, or the store fails.
    pub async fn add(
        &self,
        name: &str,
        certificate: &[u8],
        is_verified: bool,
    ) -> Result<Authority, AuthorityError> {
        let now = self.0.timer.now();
        let mut authority = read(name, Bytes::copy_from_slice(certificate), now)?;
        authority.is_verified = is_verified;
        self.change(move |current| {
            let authorities = &current.by_name;
            let mut others = authorities.values();
            if authorities.contains_key(&authority.name) {
                return Err(AuthorityError::AlreadyExists);
            }
            if let Some(other) = others.find(|other| other.certificate == authority.certificate) {
                return Err(AuthorityError::KnownAs {
                    name: other.name.clone(),
                });
            }
            if authorities.len() >= AUTHORITIES_MAX {
                return Err(AuthorityError::TooMany);
            }
            Ok(authority)
        })
        .await
    }

    /// Makes a new verification code; the one before is no longer good.
    ///
    /// # Errors
    /// When there is no such authority or the store fails.
    pub async fn challenge(&self, name: &str) -> Result<Authority, AuthorityError> {
        let mut code = [0; CODE_BYTES];
        self.0.chance.fill(&mut code);
        let code = code.iter().map(|byte| format!("{byte:02X}")).collect();
        let (name, now) = (name.to_owned(), self.0.timer.now());
        self.change(move |current| {
            let mut authority = current.named(&name)?;
            authority.verification_code = Some(code);
            authority.updated = now;
            Ok(authority)
        })
        .await
    }

    /// Takes a certificate in DER as proof that its signer, the authority, is in the hands of whoever
    /// asked for the code that is its common name.
    ///
    /// # Errors
    /// When it proves nothing of the kind, or the store fails.
    pub async fn verify(&self, name: &str, proof: &[u8]) -> Result<Authority, AuthorityError> {
        let (name, now) = (name.to_owned(), self.0.timer.now());
        let proof = Bytes::copy_from_slice(proof);
        self.change(move |current| {
            let mut authority = current.named(&name)?;
            check_proof(&authority, &proof)?;
            authority.is_verified = true;
            authority.verification_code = None;
            authority.updated = now;
            Ok(authority)
        })
        .await
    }

    /// Removes an authority. Devices that it vouches for are not let in again; connections that stand
    /// stay.
    ///
    /// # Errors
    /// When there is no such authority or the store fails.
    pub async fn remove(&self, name: &str) -> Result<(), AuthorityError> {
        let (inner, name) = (Arc::clone(&self.0), name.to_owned());
        let removal = async move {
            let _one_at_a_time = inner.changing.lock().await;
            // One that cannot be read is unknown in memory and can be removed all the same.
            let key = Bytes::copy_from_slice(name.as_bytes());
            let stored = inner.documents.get(AUTHORITIES, key.clone()).await?;
            stored.ok_or(AuthorityError::NotFound)?;
            let change = Change {
                collection: AUTHORITIES,
                key,
                condition: Condition::Any,
                action: Action::Delete,
            };
            inner.documents.apply(vec![change]).await?;
            tracing::info!(authority = name, "a certificate authority was removed");
            let mut by_name = inner.current().by_name.clone();
            by_name.remove(&name);
            inner.replace(by_name);
            Ok(())
        };
        self.0.registry.run_to_end(removal).await
    }

    /// What vouches for devices now.
    pub(crate) fn anchors(&self) -> Vec<Anchor> {
        self.0.current().anchors.clone()
    }

    /// Stores the authority that `changed` makes of what there is.
    async fn change(
        &self,
        changed: impl FnOnce(&Current) -> Result<Authority, AuthorityError> + Send + 'static,
    ) -> Result<Authority, AuthorityError> {
        let inner = Arc::clone(&self.0);
        let change = async move {
            let _one_at_a_time = inner.changing.lock().await;
            let current = inner.current();
            let authority = changed(&current)?;
            inner.documents.apply(vec![put(&authority)]).await?;
            tracing::info!(
                authority = authority.name,
                thumbprint = authority.thumbprint,
                verified = authority.is_verified,
                "a certificate authority was stored"
            );
            let mut by_name = current.by_name.clone();
            by_name.insert(authority.name.clone(), authority.clone());
            inner.replace(by_name);
            Ok(authority)
        };
        self.0.registry.run_to_end(change).await
    }
}

impl Inner {
    fn current(&self) -> Arc<Current> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn replace(&self, by_name: BTreeMap<String, Authority>) {
        let current = Arc::new(Current::of(by_name));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }
}

impl Current {
    fn of(by_name: BTreeMap<String, Authority>) -> Self {
        let verified = by_name.values().filter(|authority| authority.is_verified);
        let anchors = verified
            .filter_map(|authority| {
                Some(Anchor {
                    facts: Facts::of(&authority.certificate)?,
                    certificate: authority.certificate.clone(),
                })
            })
            .collect();
        Self { by_name, anchors }
    }

    fn named(&self, name: &str) -> Result<Authority, AuthorityError> {
        self.by_name
            .get(name)
            .cloned()
            .ok_or(AuthorityError::NotFound)
    }
}

/// Only what identifies it: certificates are long.
impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anchor")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// A new authority, not verified yet.
fn read(name: &str, certificate: Bytes, now: Timestamp) -> Result<Authority, AuthorityError> {
    let is_name = |name: &str| {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        (1..=AUTHORITY_NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_good)
    };
    if !is_name(name) {
        return Err(AuthorityError::Name);
    }
    if certificate.len() > CERTIFICATE_BYTES_MAX {
        return Err(AuthorityError::NoCertificate);
    }
    let authority = describe(name, certificate).ok_or(AuthorityError::NoCertificate)?;
    let (_, parsed) = X509Certificate::from_der(&authority.certificate)
        .map_err(|_| AuthorityError::NoCertificate)?;
    if !parsed.is_ca() {
        return Err(AuthorityError::NoAuthority);
    }
    if authority.not_after <= now {
        return Err(AuthorityError::Expired);
    }
    Ok(Authority {
        created: now,
        updated: now,
        ..authority
    })
}

/// What a certificate says of its authority.
fn describe(name: &str, certificate: Bytes) -> Option<Authority> {
    let (rest, parsed) = X509Certificate::from_der(&certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let facts = Facts::of_parsed(&parsed);
    Some(Authority {
        name: name.to_owned(),
        subject: parsed.subject().to_string(),
        thumbprint: sha256_thumbprint(&certificate),
        not_before: facts.not_before,
        not_after: facts.not_after,
        is_verified: false,
        verification_code: None,
        created: Timestamp::NEVER,
        updated: Timestamp::NEVER,
        certificate,
    })
}

fn check_proof(authority: &Authority, proof: &[u8]) -> Result<(), AuthorityError> {
    let code = authority.verification_code.as_deref();
    let code = code.ok_or(AuthorityError::NoCode)?;
    let parsed = X509Certificate::from_der(proof);
    let (_, proof) = parsed.map_err(|_| AuthorityError::NoCertificate)?;
    let name = Facts::of_parsed(&proof).common_name;
    // People copy codes in any case.
    if !name.is_some_and(|name| name.eq_ignore_ascii_case(code)) {
        return Err(AuthorityError::WrongCode);
    }
    let (_, signer) = X509Certificate::from_der(&authority.certificate)
        .map_err(|_| AuthorityError::NoCertificate)?;
    proof
        .verify_signature(Some(signer.public_key()))
        .map_err(|_| AuthorityError::WrongSignature)
}

const FORM_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    v: u8,
    /// DER in base64.
    certificate: String,
    is_verified: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    created: i64,
    updated: i64,
}

fn put(authority: &Authority) -> Change {
    let stored = Stored {
        v: FORM_VERSION,
        certificate: STANDARD.encode(&authority.certificate),
        is_verified: authority.is_verified,
        code: authority.verification_code.clone(),
        created: authority.created.as_millis(),
        updated: authority.updated.as_millis(),
    };
    Change {
        collection: AUTHORITIES,
        key: Bytes::copy_from_slice(authority.name.as_bytes()),
        condition: Condition::Any,
        action: Action::Put {
            class: 0,
            value: serde_json::to_vec(&stored)
                .expect("a struct of plain values is JSON")
                .into(),
        },
    }
}

/// `None` when it is not of a known form.
fn decode(key: &[u8], value: &[u8]) -> Option<Authority> {
    let name = std::str::from_utf8(key).ok()?;
    let stored: Stored = serde_json::from_slice(value).ok()?;
    let certificate = STANDARD.decode(&stored.certificate).ok()?;
    let authority = describe(name, certificate.into())?;
    (stored.v == FORM_VERSION).then_some(Authority {
        is_verified: stored.is_verified,
        verification_code: stored.code,
        created: Timestamp::from_millis(stored.created),
        updated: Timestamp::from_millis(stored.updated),
        ..authority
    })
}
