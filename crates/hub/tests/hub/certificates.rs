//! Devices that sign in with certificates, and the authorities that vouch for them.

use std::time::Duration;

use fieldpost_hub::auth::{AuthError, ClientCertificate, Denial, DevicePrincipal};
use fieldpost_hub::authorities::{AUTHORITIES_MAX, AuthorityError};
use fieldpost_hub::identity::{
    AuthenticationSpec, DeviceSpec, DeviceStatus, Precondition, Thumbprints,
};
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use ring::digest;

use crate::bench::{Bench, HOST, NOW_SECONDS, identity, spec};

/// An authority, and what it signs.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

/// Good from 2020 to 2040, and of nobody yet.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Signer {
    fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    fn sign(&self, params: &CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}

fn self_signed(params: &CertificateParams) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn shown(chain: &[&[u8]]) -> ClientCertificate {
    ClientCertificate::new(chain.iter().copied()).unwrap()
}

fn thumbprint(algorithm: &'static digest::Algorithm, der: &[u8]) -> String {
    let digest = digest::digest(algorithm, der);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(der: &[u8]) -> String {
    thumbprint(&digest::SHA256, der)
}

fn denial(outcome: Result<DevicePrincipal, AuthError>) -> Option<Denial> {
    match outcome {
        Ok(_) => None,
        Err(AuthError::Unauthorized(denial)) => Some(denial),
        Err(error) => panic!("{error}"),
    }
}

impl Bench {
    async fn by_certificate(
        &self,
        device: &str,
        certificate: &ClientCertificate,
    ) -> Result<DevicePrincipal, AuthError> {
        let access = self.hub.access();
        let identity = identity(device);
        access
            .authenticate_certificate(&identity, HOST, certificate)
            .await
    }

    async fn check_certificate(
        &self,
        device: &str,
        certificate: &ClientCertificate,
        expected: Option<Denial>,
    ) {
        let outcome = denial(self.by_certificate(device, certificate).await);
        assert_eq!(outcome, expected, "{device} {certificate:?}");
    }

    async fn with_thumbprints(&self, device: &str, primary: &str, secondary: Option<&str>) {
        let of = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let spec = DeviceSpec {
            authentication: AuthenticationSpec::SelfSigned(Thumbprints {
                primary: of(primary),
                secondary: secondary.and_then(of),
            }),
            ..spec(device)
        };
        let registry = self.hub.registry();
        if registry.get(&spec.device_id).await.unwrap().is_some() {
            registry.update(spec, Precondition::Any).await.unwrap();
        } else {
            registry.create(spec).await.unwrap();
        }
    }

    async fn with_authority(&self, device: &str) {
        let spec = DeviceSpec {
            authentication: AuthenticationSpec::CertificateAuthority,
            ..spec(device)
        };
        self.hub.registry().create(spec).await.unwrap();
    }
}

#[tokio::test]
async fn a_registered_certificate_signs_in_and_can_be_rolled() {
    let bench = Bench::start().await;
    let [first, second, third] = ["a", "b", "c"].map(|name| self_signed(&params(name)));
    let sha1 = thumbprint(&digest::SHA1_FOR_LEGACY_USE_ONLY, &first);
    bench
        .with_thumbprints("dev1", &sha1.to_uppercase(), Some(&sha256(&second)))
        .await;
    bench
        .with_thumbprints("dev2", "", Some(&sha256(&third)))
        .await;
    bench.device("keys").await;
    let principal = bench
        .by_certificate("dev1", &shown(&[&first]))
        .await
        .unwrap();
    let stamp = AuthStamp {
        scope: AuthScope::Device,
        kind: AuthKind::X509,
    };
    assert_eq!(
        (principal.stamp, &principal.identity),
        (stamp, &identity("dev1"))
    );
    let end_of_2039 = Timestamp::parse("2040-01-01T00:00:01Z").unwrap();
    assert_eq!(principal.expires, end_of_2039);

    use Denial as D;
    let check = async |device: &str, chain: &[&[u8]], expected| {
        bench
            .check_certificate(device, &shown(chain), expected)
            .await;
    };
    check("dev1", &[&second], None).await;
    check("dev1", &[&second, &first], None).await;
    check("dev1", &[&third], Some(D::ForeignCertificate)).await;
    // The one whose key was shown counts, not those that came along.
    check("dev1", &[&third, &first], Some(D::ForeignCertificate)).await;
    check("dev2", &[&third], None).await;
    check("keys", &[&first], Some(D::NoCertificates)).await;
    check("stranger", &[&first], Some(D::UnknownIdentity)).await;
    check("dev1", &[b"no certificate"], Some(D::UnreadableCertificate)).await;
    let mut longer = first.clone();
    longer.push(0);
    check("dev1", &[&longer], Some(D::UnreadableCertificate)).await;

    let access = bench.hub.access();
    let (dev1, certificate) = (identity("dev1"), shown(&[&first]));
    let elsewhere = access
        .authenticate_certificate(&dev1, "other.example.test", &certificate)
        .await;
    assert_eq!(denial(elsewhere), Some(D::ForeignHost));

    bench
        .with_thumbprints("dev1", &sha256(&third), Some(&sha256(&second)))
        .await;
    check("dev1", &[&first], Some(D::ForeignCertificate)).await;
    check("dev1", &[&second], None).await;
    check("dev1", &[&third], None).await;
    let disabled = DeviceSpec {
        status: Some(DeviceStatus::Disabled),
        ..spec("dev1")
    };
    bench
        .hub
        .registry()
        .update(disabled, Precondition::Any)
        .await
        .unwrap();
    check("dev1", &[&second], Some(D::Disabled)).await;
}

#[tokio::test]
async fn a_certificate_is_good_in_its_time_alone() {
    let bench = Bench::start().await;
    let now = Timestamp::from_millis(i64::try_from(NOW_SECONDS).unwrap() * 1000);
    let year = |year| date_time_ymd(year, 1, 1);
    let this_year: i32 = now.to_string().get(..4).unwrap().parse().unwrap();
    for (from, to, expected) in [
        (this_year - 1, this_year + 2, None),
        (this_year - 2, this_year, Some(Denial::CertificateNotValid)),
        (
            this_year + 1,
            this_year + 2,
            Some(Denial::CertificateNotValid),
        ),
    ] {
        let mut params = params("dev1");
        (params.not_before, params.not_after) = (year(from), year(to));
        let certificate = self_signed(&params);
        bench
            .with_thumbprints("dev1", &sha256(&certificate), None)
            .await;
        bench
            .check_certificate("dev1", &shown(&[&certificate]), expected)
            .await;
    }
}

#[tokio::test]
async fn a_verified_authority_vouches_for_devices_by_their_common_name() {
    let bench = Bench::start().await;
    let (root, other) = (Signer::root("root"), Signer::root("other"));
    let middle = root.intermediate("middle");
    let authorities = bench.hub.authorities();
    for device in ["dev1", "Dev1", "dev2"] {
        bench.with_authority(device).await;
    }
    bench.device("keys").await;
    let mine = root.sign(&params("dev1"));
    let through = middle.sign(&params("dev1"));
    let foreign = other.sign(&params("dev1"));

    use Denial as D;
    let check = async |device: &str, chain: &[&[u8]], expected| {
        bench
            .check_certificate(device, &shown(chain), expected)
            .await;
    };
    check("dev1", &[&mine], Some(D::UnknownAuthority)).await;
    authorities.add("factory", &root.der, false).await.unwrap();
    check("dev1", &[&mine], Some(D::UnknownAuthority)).await;
    prove(&bench, "factory", &root).await.unwrap();
    check("dev1", &[&mine], None).await;
    check("dev1", &[&through, &middle.der], None).await;
    check("dev1", &[&through, &middle.der, &root.der], None).await;
    check("dev1", &[&mine, &other.der], None).await;
    check("dev1", &[&through], Some(D::UnknownAuthority)).await;
    check("dev1", &[&foreign, &other.der], Some(D::UnknownAuthority)).await;
    check("Dev1", &[&mine], Some(D::ForeignCertificate)).await;
    check("dev2", &[&mine], Some(D::ForeignCertificate)).await;
    check(
        "keys",
        &[&root.sign(&params("keys"))],
        Some(D::NoCertificates),
    )
    .await;
    check(
        "dev1",
        &[&self_signed(&params("dev1"))],
        Some(D::UnknownAuthority),
    )
    .await;
    // An authority is no device, whatever it is called.
    check(
        "dev1",
        &[&root.intermediate("dev1").der],
        Some(D::UnknownAuthority),
    )
    .await;

    let mut server = params("dev1");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut client = params("dev1");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut old = params("dev1");
    old.not_after = date_time_ymd(2021, 1, 1);
    let mut nobody = params("dev1");
    nobody.distinguished_name = DistinguishedName::new();
    check("dev1", &[&root.sign(&server)], Some(D::UnknownAuthority)).await;
    check("dev1", &[&root.sign(&client)], None).await;
    check("dev1", &[&root.sign(&old)], Some(D::CertificateNotValid)).await;
    check("dev1", &[&root.sign(&nobody)], Some(D::ForeignCertificate)).await;

    authorities.remove("factory").await.unwrap();
    check("dev1", &[&mine], Some(D::UnknownAuthority)).await;
    // One in the middle of a chain will do.
    authorities.add("line", &middle.der, true).await.unwrap();
    check("dev1", &[&through], None).await;
    check("dev1", &[&mine], Some(D::UnknownAuthority)).await;
}

/// Shows possession of an authority's key as its operator does.
async fn prove(bench: &Bench, name: &str, signer: &Signer) -> Result<(), AuthorityError> {
    let authorities = bench.hub.authorities();
    let challenged = authorities.challenge(name).await?;
    let code = challenged.verification_code.unwrap();
    let proof = signer.sign(&params(&code));
    let verified = authorities.verify(name, &proof).await?;
    assert!(verified.is_verified && verified.verification_code.is_none());
    Ok(())
}

#[tokio::test]
async fn an_authority_that_has_expired_vouches_for_nobody() {
    let bench = Bench::start().await;
    let key = KeyPair::generate().unwrap();
    let mut ca = ca_params("short");
    let start = i64::try_from(NOW_SECONDS).unwrap();
    ca.not_after = time::OffsetDateTime::from_unix_timestamp(start + 3600).unwrap();
    let der = ca.self_signed(&key).unwrap().der().to_vec();
    let signer = Signer {
        issuer: Issuer::new(ca, key),
        der: der.clone(),
    };
    bench.with_authority("dev1").await;
    bench
        .hub
        .authorities()
        .add("short", &der, true)
        .await
        .unwrap();
    let mine = shown(&[&signer.sign(&params("dev1"))]);
    bench.check_certificate("dev1", &mine, None).await;
    bench.clock.advance(Duration::from_secs(3602));
    bench
        .check_certificate("dev1", &mine, Some(Denial::UnknownAuthority))
        .await;
    let again = bench.hub.authorities().add("again", &der, true).await;
    assert!(matches!(
        again,
        Err(AuthorityError::KnownAs { .. } | AuthorityError::Expired)
    ));
}

#[tokio::test]
async fn authorities_are_listed_and_outlive_a_restart() {
    let bench = Bench::start().await;
    let signers = ["one", "two"].map(Signer::root);
    for (name, signer) in ["one", "two"].iter().zip(&signers) {
        bench
            .hub
            .authorities()
            .add(name, &signer.der, false)
            .await
            .unwrap();
    }
    prove(&bench, "two", &signers[1]).await.unwrap();
    let challenged = bench.hub.authorities().challenge("one").await.unwrap();
    assert_eq!(
        challenged.thumbprint,
        sha256(&signers[0].der).to_uppercase()
    );
    assert_eq!(challenged.subject, "CN=one");
    let before = bench.hub.authorities().all();
    assert_eq!(
        before.iter().map(|a| a.is_verified).collect::<Vec<_>>(),
        [false, true]
    );
    bench.with_authority("dev1").await;
    let hub = bench.reopen(|_| {}).await.unwrap();
    assert_eq!(hub.authorities().all(), before);
    assert_eq!(hub.authorities().get("one"), Some(challenged));
    let mine = shown(&[&signers[1].sign(&params("dev1"))]);
    let access = hub.access();
    let dev1 = identity("dev1");
    let outcome = access.authenticate_certificate(&dev1, HOST, &mine).await;
    assert_eq!(denial(outcome), None);
}

#[tokio::test]
async fn what_is_no_authority_or_proves_nothing_is_refused() {
    let bench = Bench::start().await;
    let authorities = bench.hub.authorities();
    let (root, other) = (Signer::root("root"), Signer::root("other"));
    authorities.add("root", &root.der, false).await.unwrap();
    use AuthorityError as E;
    let add = async |name: &str, der: &[u8]| {
        let added = authorities.add(name, der, false).await;
        added.unwrap_err().to_string()
    };
    let text = |error: E| error.to_string();
    assert_eq!(add("", &other.der).await, text(E::Name));
    assert_eq!(add("a/b", &other.der).await, text(E::Name));
    assert_eq!(add(&"x".repeat(65), &other.der).await, text(E::Name));
    assert_eq!(add("root", &other.der).await, text(E::AlreadyExists));
    let name = "root".to_owned();
    assert_eq!(add("again", &root.der).await, text(E::KnownAs { name }));
    assert_eq!(add("x", b"rubbish").await, text(E::NoCertificate));
    assert_eq!(add("x", &[0; 20_000]).await, text(E::NoCertificate));
    assert_eq!(
        add("x", &self_signed(&params("dev1"))).await,
        text(E::NoAuthority)
    );
    let mut old = ca_params("old");
    old.not_after = date_time_ymd(2021, 1, 1);
    assert_eq!(add("x", &self_signed(&old)).await, text(E::Expired));

    let verify = async |proof: &[u8]| {
        let verified = authorities.verify("root", proof).await;
        verified.unwrap_err().to_string()
    };
    assert_eq!(verify(&root.sign(&params("x"))).await, text(E::NoCode));
    let first = authorities
        .challenge("root")
        .await
        .unwrap()
        .verification_code
        .unwrap();
    let second = authorities
        .challenge("root")
        .await
        .unwrap()
        .verification_code
        .unwrap();
    assert_ne!(first, second);
    assert_eq!(
        verify(&root.sign(&params(&first))).await,
        text(E::WrongCode)
    );
    assert_eq!(
        verify(&other.sign(&params(&second))).await,
        text(E::WrongSignature)
    );
    assert_eq!(
        verify(&self_signed(&params(&second))).await,
        text(E::WrongSignature)
    );
    assert_eq!(verify(b"rubbish").await, text(E::NoCertificate));
    assert!(!authorities.get("root").unwrap().is_verified);
    let proof = root.sign(&params(&second.to_lowercase()));
    assert!(
        authorities
            .verify("root", &proof)
            .await
            .unwrap()
            .is_verified
    );

    let absent = authorities.challenge("absent").await.unwrap_err();
    assert!(matches!(absent, E::NotFound), "{absent}");
    let absent = authorities.remove("absent").await.unwrap_err();
    assert!(matches!(absent, E::NotFound), "{absent}");
    for n in 1..AUTHORITIES_MAX {
        let der = Signer::root(&format!("root {n}")).der;
        authorities.add(&format!("n{n}"), &der, true).await.unwrap();
    }
    assert_eq!(add("more", &other.der).await, text(E::TooMany));
}
