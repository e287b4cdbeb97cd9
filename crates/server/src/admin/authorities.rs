//! The certificate authorities that may vouch for devices.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fieldpost_hub::authorities::{Authority, AuthorityError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Body, Problem, Segment, invalid, problem};
use super::devices::store_status;

/// A certificate to register.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Registration {
    /// PEM, or base64 of PEM or DER.
    certificate: String,
    /// Whether the operator vouches for it without proof.
    #[serde(default)]
    is_verified: bool,
}

/// A certificate that proves possession of an authority's key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Proof {
    /// As in [`Registration`].
    certificate: String,
}

/// All of them: `{"authorities": [...]}`.
pub(super) async fn list(State(parts): State<AdminParts>) -> Json<Value> {
    let all = parts.hub.authorities().all();
    let documents: Vec<_> = all.iter().map(document).collect();
    Json(json!({ "authorities": documents }))
}

/// One of them.
pub(super) async fn show(
    State(parts): State<AdminParts>,
    Segment(name): Segment<String>,
) -> Result<Json<Value>, Problem> {
    let found = parts.hub.authorities().get(&name);
    let authority = found.ok_or_else(|| refused(&AuthorityError::NotFound))?;
    Ok(Json(document(&authority)))
}

/// Registers one.
pub(super) async fn add(
    State(parts): State<AdminParts>,
    Segment(name): Segment<String>,
    Body(given): Body<Registration>,
) -> Result<Json<Value>, Problem> {
    let certificate = der(&given.certificate)?;
    let authorities = parts.hub.authorities();
    let added = authorities.add(&name, &certificate, given.is_verified);
    answered(added.await)
}

/// Makes a new verification code.
pub(super) async fn challenge(
    State(parts): State<AdminParts>,
    Segment(name): Segment<String>,
) -> Result<Json<Value>, Problem> {
    answered(parts.hub.authorities().challenge(&name).await)
}

/// Takes the proof that the code asked for.
pub(super) async fn verify(
    State(parts): State<AdminParts>,
    Segment(name): Segment<String>,
    Body(given): Body<Proof>,
) -> Result<Json<Value>, Problem> {
    let certificate = der(&given.certificate)?;
    answered(parts.hub.authorities().verify(&name, &certificate).await)
}

/// Removes one.
pub(super) async fn remove(
    State(parts): State<AdminParts>,
    Segment(name): Segment<String>,
) -> Result<StatusCode, Problem> {
    let removed = parts.hub.authorities().remove(&name).await;
    removed.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn answered(outcome: Result<Authority, AuthorityError>) -> Result<Json<Value>, Problem> {
    let authority = outcome.map_err(|error| refused(&error))?;
    Ok(Json(document(&authority)))
}

fn document(authority: &Authority) -> Value {
    json!({
        "name": authority.name,
        "subject": authority.subject,
        "thumbprint": authority.thumbprint,
        "notBefore": authority.not_before.to_string(),
        "notAfter": authority.not_after.to_string(),
        "isVerified": authority.is_verified,
        "verificationCode": authority.verification_code,
        "created": authority.created.to_string(),
        "updated": authority.updated.to_string(),
    })
}

/// The one certificate in a text.
fn der(text: &str) -> Result<Vec<u8>, Problem> {
    const BEGIN: &str = "-----BEGIN";

    if text.contains(BEGIN) {
        return of_pem(text.as_bytes());
    }
    let compact: String = text.split_whitespace().collect();
    let decoded = STANDARD
        .decode(compact)
        .map_err(|_| invalid("the certificate is neither PEM nor base64"))?;
    if decoded.starts_with(BEGIN.as_bytes()) {
        of_pem(&decoded)
    } else {
        Ok(decoded)
    }
}

fn of_pem(pem: &[u8]) -> Result<Vec<u8>, Problem> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|_| invalid("the PEM cannot be read"))?;
    match all.as_slice() {
        [one] => Ok(one.to_vec()),
        several => Err(invalid(format!(
            "one certificate is expected, and the PEM holds {}",
            several.len()
        ))),
    }
}

fn refused(error: &AuthorityError) -> Problem {
    let message = error.to_string();
    match error {
        AuthorityError::Name
        | AuthorityError::NoCertificate
        | AuthorityError::NoAuthority
        | AuthorityError::Expired
        | AuthorityError::WrongCode
        | AuthorityError::WrongSignature => invalid(message),
        AuthorityError::NotFound => problem(StatusCode::NOT_FOUND, "NotFound", message),
        AuthorityError::AlreadyExists
        | AuthorityError::KnownAs { .. }
        | AuthorityError::TooMany
        | AuthorityError::NoCode => problem(StatusCode::CONFLICT, "Conflict", message),
        AuthorityError::Store(error) => problem(store_status(error), "ServiceUnavailable", message),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body as HttpBody;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use tower::ServiceExt as _;

    use super::*;
    use crate::admin::{routes, testing_parts};

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    async fn call(parts: &AdminParts, method: &str, path: &str, body: Value) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(HttpBody::from(body.to_string()))
            .unwrap();
        let response = routes(parts.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn an_authority_is_added_verified_listed_and_removed() {
        let (parts, _) = testing_parts().await;
        let key = KeyPair::generate().unwrap();
        let mut ca = params("factory root");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = ca.self_signed(&key).unwrap();
        let issuer = Issuer::new(ca, key);
        let body = json!({"certificate": certificate.pem()});
        let (status, added) = call(&parts, "PUT", "/api/ca/factory", body.clone()).await;
        assert_eq!(
            (status, &added["isVerified"]),
            (200, &json!(false)),
            "{added}"
        );
        assert_eq!(call(&parts, "PUT", "/api/ca/factory", body).await.0, 409);
        // The same in the other spellings is known already.
        for text in [
            STANDARD.encode(certificate.der()),
            STANDARD.encode(certificate.pem()),
        ] {
            let again = call(&parts, "PUT", "/api/ca/again", json!({"certificate": text})).await;
            assert_eq!(again.0, 409, "{}", again.1);
        }
        let proof = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let proof = params(name).signed_by(&key, &issuer).unwrap();
            json!({"certificate": proof.pem()})
        };
        let early = call(&parts, "POST", "/api/ca/factory/verify", proof("x")).await;
        assert_eq!(early.0, 409, "{}", early.1);
        let (status, challenged) =
            call(&parts, "POST", "/api/ca/factory/challenge", Value::Null).await;
        let code = challenged["verificationCode"].as_str().unwrap().to_owned();
        assert_eq!((status, code.len()), (200, 48));
        let wrong = call(&parts, "POST", "/api/ca/factory/verify", proof("x")).await;
        assert_eq!(wrong.0, 400, "{}", wrong.1);
        let (status, verified) = call(&parts, "POST", "/api/ca/factory/verify", proof(&code)).await;
        assert_eq!((status, &verified["isVerified"]), (200, &json!(true)));
        let (_, listed) = call(&parts, "GET", "/api/ca", Value::Null).await;
        assert_eq!(listed, json!({"authorities": [verified]}));
        assert_eq!(listed["authorities"][0]["subject"], "CN=factory root");
        assert_eq!(
            call(&parts, "GET", "/api/ca/factory", Value::Null).await.1,
            verified
        );
        assert_eq!(
            call(&parts, "DELETE", "/api/ca/factory", Value::Null)
                .await
                .0,
            204
        );
        assert_eq!(
            call(&parts, "DELETE", "/api/ca/factory", Value::Null)
                .await
                .0,
            404
        );
        assert_eq!(
            call(&parts, "GET", "/api/ca/factory", Value::Null).await.0,
            404
        );
    }

    #[tokio::test]
    async fn what_is_not_one_certificate_is_refused() {
        let (parts, _) = testing_parts().await;
        let key = KeyPair::generate().unwrap();
        let pem = params("x").self_signed(&key).unwrap().pem();
        for text in [
            "",
            "rubbish!",
            "cnViYmlzaA==",
            "-----BEGIN CERTIFICATE-----\nAA\n",
            &format!("{pem}{pem}"),
            &key.serialize_pem(),
            // No authority's.
            &pem,
        ] {
            let body = json!({"certificate": text});
            let (status, answer) = call(&parts, "PUT", "/api/ca/x", body).await;
            assert_eq!(status, 400, "{text}: {answer}");
        }
        let body = json!({"certificate": pem, "verified": true});
        assert_eq!(call(&parts, "PUT", "/api/ca/x", body).await.0, 422);
    }
}
