//! Shared access signatures: no text panics, and none lets anybody in whose key did not sign it.
//!
//! Input: lines of a token as it is, then `sr`, `se`, `skn`, host and SASL user of one to be signed.
#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldpost_fuzz::{NOW, hub, lines};
use fieldpost_hub::Hub;
use fieldpost_hub::auth::{Access, CbsGrant, PlainLogin, parse_sas};
use fieldpost_hub::identity::{AuthenticationSpec, DeviceSpec};
use fieldpost_hub::policies::Rights;
use fieldpost_hub::secrets::Secret;
use fieldpost_model::limits::TOKEN_CLOCK_SKEW;
use fieldpost_model::{DeviceId, Identity, ModuleId};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;
use tokio::runtime::Runtime;

/// Signs for `dev1`.
const DEVICE_KEY: [u8; 32] = [1; 32];
/// Signs for nobody.
const OTHER_KEY: [u8; 32] = [2; 32];

static DEVICE: LazyLock<Identity> = LazyLock::new(|| device("dev1"));

thread_local! {
    static HUB: (Runtime, Hub) = hub_with_devices();
}

fuzz_target!(|text: &str| {
    let [raw, sr, se, skn, host, user] = lines(text);
    if let Ok(token) = parse_sas(raw) {
        assert!(raw.contains(token.resource));
    }
    let token = |key: &[u8]| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let signature = hmac::sign(&key, format!("{sr}\n{se}").as_bytes());
        let signature = STANDARD.encode(signature);
        let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
        let skn = if skn.is_empty() {
            String::new()
        } else {
            format!("&skn={skn}")
        };
        format!("SharedAccessSignature sr={sr}&sig={signature}&se={se}{skn}")
    };
    HUB.with(|(runtime, hub)| {
        let access = hub.access();
        runtime.block_on(async {
            let forged = token(&OTHER_KEY);
            assert!(access.verify_policy_token(&forged).is_err());
            assert!(access.authenticate_cbs(&forged).await.is_err());
            assert!(access.verify_plain(user, &forged).await.is_err());
            let device = access.authenticate_device(&DEVICE, host, &forged);
            assert!(device.await.is_err());

            check_own_key(access, &token(&DEVICE_KEY), sr, host, user).await;
            for policy in access.policies() {
                let key = STANDARD.decode(policy.primary.expose()).expect("base64");
                check_policy(access, &token(&key), skn, policy.rights, host, user).await;
                let key = policy.secondary.expose();
                check_policy(
                    access,
                    &token(key.as_bytes()),
                    skn,
                    policy.rights,
                    host,
                    user,
                )
                .await;
            }
        });
    });
});

/// The key of `dev1` speaks for `dev1`, when the resource names it, and for nobody else.
async fn check_own_key(access: &Access, token: &str, sr: &str, host: &str, user: &str) {
    let decoded = percent_decode_str(sr).decode_utf8_lossy();
    let names_it = [sr, &decoded].iter().any(|resource| {
        let resource = resource.to_ascii_lowercase();
        resource.contains("hub") && resource.contains("/devices/dev1")
    });
    if let Ok(principal) = access.authenticate_device(&DEVICE, host, token).await {
        assert_eq!(principal.identity, *DEVICE);
        assert!(names_it);
        assert!(principal.expires.saturating_add(TOKEN_CLOCK_SKEW) >= NOW);
    }
    match access.authenticate_cbs(token).await {
        Ok(CbsGrant::Device(principal)) => {
            assert_eq!(principal.identity, *DEVICE);
            assert!(names_it);
        }
        Ok(CbsGrant::Policy(_)) => panic!("a device's key is no policy's"),
        Err(_) => {}
    }
    match access.verify_plain(user, token).await {
        Ok(PlainLogin::Device(principal)) => assert_eq!(principal.identity, *DEVICE),
        Ok(PlainLogin::Policy(_)) => panic!("a device's key is no policy's"),
        Err(_) => {}
    }
    assert!(access.verify_policy_token(token).is_err());
    let module = Identity {
        module: Some(ModuleId::new("mod1").expect("an id")),
        ..DEVICE.clone()
    };
    for other in [device("dev2"), module] {
        let other = access.authenticate_device(&other, host, token);
        assert!(other.await.is_err());
    }
}

/// A policy's key gives the rights of that policy, under its name.
async fn check_policy(
    access: &Access,
    token: &str,
    skn: &str,
    rights: Rights,
    host: &str,
    user: &str,
) {
    if let Ok(grant) = access.verify_policy_token(token) {
        assert_eq!(grant.rights, rights);
        assert!(grant.expires.saturating_add(TOKEN_CLOCK_SKEW) >= NOW);
        let _ = grant.allows(Rights::REGISTRY_READ, host, user);
        if let Ok(principal) = access.authorize_device(&grant, &DEVICE).await {
            assert!(rights.contains(Rights::DEVICE_CONNECT));
            assert_eq!(principal.identity, *DEVICE);
        }
    }
    if let Ok(principal) = access.authenticate_device(&DEVICE, host, token).await {
        assert!(rights.contains(Rights::DEVICE_CONNECT) && !skn.is_empty());
        assert_eq!(principal.identity, *DEVICE);
    }
    if let Ok(login) = access.verify_plain(user, token).await {
        assert!(matches!(login, PlainLogin::Policy(_)) || !skn.is_empty());
    }
}

fn hub_with_devices() -> (Runtime, Hub) {
    let (runtime, hub) = hub();
    for (id, key) in [("dev1", DEVICE_KEY), ("dev2", [4; 32])] {
        let mut spec = DeviceSpec::new(DeviceId::new(id).expect("an id"));
        let key = Some(Secret::new(STANDARD.encode(key)));
        spec.authentication = AuthenticationSpec::Sas {
            primary: key.clone(),
            secondary: key,
        };
        let created = runtime.block_on(hub.registry().create(spec));
        created.expect("a new device");
    }
    (runtime, hub)
}

fn device(id: &str) -> Identity {
    Identity::of_device(DeviceId::new(id).expect("an id"))
}
