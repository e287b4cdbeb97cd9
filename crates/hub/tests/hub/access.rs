use std::time::Duration;

use fieldpost_hub::auth::{AuthError, CbsGrant, Denial, DevicePrincipal, PlainLogin};
use fieldpost_hub::identity::{AuthenticationSpec, DeviceSpec, DeviceStatus, Precondition};
use fieldpost_hub::policies::Rights;
use fieldpost_hub::secrets::Secret;
use fieldpost_model::{AuthKind, AuthScope, AuthStamp};

use crate::bench::{
    Bench, HOST, NOW_SECONDS, device_token, event_hubs_token, id, identity, keys, policy_token,
    spec,
};

const SOON: u64 = NOW_SECONDS + 60;

fn denial<T: std::fmt::Debug>(outcome: Result<T, AuthError>) -> Option<Denial> {
    match outcome {
        Ok(_) => None,
        Err(AuthError::Unauthorized(denial)) => Some(denial),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_device_signs_in_with_either_of_its_keys_and_no_other() {
    let bench = Bench::start().await;
    let device = bench.device("dev1").await;
    let other = bench.device("dev10").await;
    let (primary, secondary) = keys(&device);
    for key in [&primary, &secondary] {
        let principal = bench.authenticate("dev1", key).await.unwrap();
        let stamp = AuthStamp {
            scope: AuthScope::Device,
            kind: AuthKind::Sas,
        };
        assert_eq!(principal.identity, identity("dev1"));
        assert_eq!(principal.stamp, stamp);
        assert_eq!(principal.generation_id, device.generation_id);
        let expires =
            fieldpost_model::Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(SOON));
        assert_eq!(principal.expires, expires);
    }
    let access = bench.hub.access();
    let check = async |name: &str, host: &str, token: &str, expected: Option<Denial>| {
        let identity = identity(name);
        let outcome = access.authenticate_device(&identity, host, token).await;
        assert_eq!(denial(outcome), expected, "{name} {host} {token}");
    };
    let good = device_token("dev1", &primary, SOON);
    check("dev1", HOST, &good, None).await;
    check("dev1", "HUB1", &good, None).await;
    check("dev1", "localhost:8883", &good, None).await;
    check(
        "dev1",
        "other.example.test",
        &good,
        Some(Denial::ForeignHost),
    )
    .await;
    check("dev10", HOST, &good, Some(Denial::OutOfScope)).await;
    check("dev", HOST, &good, Some(Denial::OutOfScope)).await;
    check("dev1/m", HOST, &good, Some(Denial::OutOfScope)).await;
    let wrong = device_token("dev1", &keys(&other).0, SOON);
    check("dev1", HOST, &wrong, Some(Denial::WrongSignature)).await;
    let tampered = good.replace(&format!("se={SOON}"), &format!("se={}", SOON + 1));
    check("dev1", HOST, &tampered, Some(Denial::WrongSignature)).await;
    let stranger = device_token("stranger", &primary, SOON);
    check("stranger", HOST, &stranger, Some(Denial::UnknownIdentity)).await;
    check("dev1", HOST, "", Some(Denial::Malformed)).await;
    let of_module = device_token("dev1/modules/m", &primary, SOON);
    check("dev1", HOST, &of_module, Some(Denial::OutOfScope)).await;
    check("dev1/m", HOST, &of_module, Some(Denial::UnknownIdentity)).await;
}

#[tokio::test]
async fn a_token_ends_with_five_minutes_of_grace() {
    let bench = Bench::start().await;
    let key = keys(&*bench.device("dev1").await).0;
    assert_eq!(denial(bench.authenticate("dev1", &key).await), None);
    bench.clock.advance(Duration::from_secs(60 + 300));
    assert_eq!(denial(bench.authenticate("dev1", &key).await), None);
    bench.clock.advance(Duration::from_millis(1));
    let ended = denial(bench.authenticate("dev1", &key).await);
    assert_eq!(ended, Some(Denial::Expired));
}

#[tokio::test]
async fn what_changes_in_the_registry_counts_at_once() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let key = keys(&*bench.device("dev1").await).0;
    let check = async |expected: Option<Denial>| {
        assert_eq!(denial(bench.authenticate("dev1", &key).await), expected);
    };
    let with_status = |status| DeviceSpec {
        status: Some(status),
        ..spec("dev1")
    };
    check(None).await;
    let disabled = with_status(DeviceStatus::Disabled);
    registry.update(disabled, Precondition::Any).await.unwrap();
    check(Some(Denial::Disabled)).await;
    let enabled = with_status(DeviceStatus::Enabled);
    registry.update(enabled, Precondition::Any).await.unwrap();
    check(None).await;
    let without_keys = DeviceSpec {
        authentication: AuthenticationSpec::CertificateAuthority,
        ..spec("dev1")
    };
    registry
        .update(without_keys, Precondition::Any)
        .await
        .unwrap();
    check(Some(Denial::NoKeys)).await;
    registry
        .delete(&id("dev1"), Precondition::Any)
        .await
        .unwrap();
    check(Some(Denial::UnknownIdentity)).await;
    bench.device("dev1").await;
    check(Some(Denial::WrongSignature)).await;
}

#[tokio::test]
async fn signing_in_costs_one_read_and_coming_back_none() {
    let bench = Bench::start().await;
    let device = bench.device("dev1").await;
    let hub = bench.reopen(|_| {}).await.unwrap();
    bench.documents.take_gets();
    let token = device_token("dev1", &keys(&device).0, SOON);
    for expected in [1, 0, 0] {
        let dev1 = identity("dev1");
        let principal = hub
            .access()
            .authenticate_device(&dev1, HOST, &token)
            .await
            .unwrap();
        let DevicePrincipal {
            identity,
            generation_id,
            ..
        } = principal;
        let mut session = hub.presence().connect(identity, generation_id).await;
        assert!(
            session
                .poll_evicted(&mut crate::bench::context())
                .is_pending()
        );
        assert_eq!(bench.documents.take_gets(), expected);
    }
}

#[tokio::test]
async fn policies_grant_their_rights_where_their_token_says() {
    let bench = Bench::start().await;
    let access = bench.hub.access();
    let names: Vec<_> = access.policies().iter().map(|policy| policy.name).collect();
    assert_eq!(
        names,
        [
            "iothubowner",
            "service",
            "device",
            "registryRead",
            "registryReadWrite"
        ]
    );
    let check = |policy: &str, resource: &str, rights: Rights, host: &str, path: &str, expected| {
        let keys = access.policy(policy).unwrap();
        for key in [&keys.primary, &keys.secondary] {
            for token in [
                policy_token(resource, policy, key, SOON),
                event_hubs_token(resource, policy, key, SOON),
            ] {
                let grant = access.verify_policy_token(&token).unwrap();
                assert_eq!(grant.policy, policy);
                let allowed = grant.allows(rights, host, path);
                assert_eq!(
                    allowed, expected,
                    "{policy} {resource} {rights} {host} {path}"
                );
            }
        }
    };
    let all = Rights::ALL;
    check("iothubowner", HOST, all, HOST, "/devices/dev1", true);
    check("iothubowner", HOST, all, "localhost", "/devices/dev1", true);
    check(
        "iothubowner",
        HOST,
        all,
        "other.example.test",
        "/devices/dev1",
        false,
    );
    check(
        "service",
        HOST,
        Rights::SERVICE_CONNECT,
        HOST,
        "/messages/events",
        true,
    );
    check(
        "service",
        HOST,
        Rights::REGISTRY_READ,
        HOST,
        "/devices/dev1",
        false,
    );
    check(
        "service",
        HOST,
        Rights::SERVICE_CONNECT | Rights::DEVICE_CONNECT,
        HOST,
        "/",
        false,
    );
    check(
        "device",
        HOST,
        Rights::DEVICE_CONNECT,
        HOST,
        "/devices/dev1",
        true,
    );
    check(
        "registryRead",
        HOST,
        Rights::REGISTRY_READ,
        HOST,
        "/devices",
        true,
    );
    check(
        "registryRead",
        HOST,
        Rights::REGISTRY_WRITE,
        HOST,
        "/devices",
        false,
    );
    check(
        "registryReadWrite",
        HOST,
        Rights::REGISTRY_READ,
        HOST,
        "/devices",
        true,
    );
    check(
        "registryReadWrite",
        HOST,
        Rights::REGISTRY_WRITE,
        HOST,
        "/devices",
        true,
    );
    let one = &*format!("{HOST}/devices/dev1");
    check(
        "registryRead",
        one,
        Rights::REGISTRY_READ,
        HOST,
        "/devices/dev1",
        true,
    );
    check(
        "registryRead",
        one,
        Rights::REGISTRY_READ,
        HOST,
        "/devices/dev10",
        false,
    );
    let entity = &*format!("sb://{HOST}/hub/consumergroups/$default");
    let partition = "/hub/ConsumerGroups/$Default/Partitions/0";
    check(
        "service",
        entity,
        Rights::SERVICE_CONNECT,
        HOST,
        partition,
        true,
    );
    check(
        "service",
        entity,
        Rights::SERVICE_CONNECT,
        HOST,
        "/hub/ConsumerGroups/b",
        false,
    );
}

#[tokio::test]
async fn tokens_that_are_no_policys_grant_nothing() {
    let bench = Bench::start().await;
    let access = bench.hub.access();
    let service = access.policy("service").unwrap();
    let owner = access.policy("iothubowner").unwrap();
    let check = |token: String, expected: Denial| {
        assert_eq!(
            denial(access.verify_policy_token(&token)),
            Some(expected),
            "{token}"
        );
    };
    let wrong = policy_token(HOST, "iothubowner", &service.primary, SOON);
    check(wrong, Denial::WrongSignature);
    let unknown = policy_token(HOST, "nobody", &service.primary, SOON);
    check(unknown, Denial::UnknownPolicy);
    let foreign = policy_token("other.example.test", "service", &service.primary, SOON);
    check(foreign, Denial::OutOfScope);
    let ended = policy_token(HOST, "service", &service.primary, NOW_SECONDS - 301);
    check(ended, Denial::Expired);
    let nameless = device_token("dev1", &owner.primary, SOON);
    check(nameless, Denial::UnknownPolicy);
}

#[tokio::test]
async fn a_policy_speaks_for_devices_if_it_has_the_right() {
    let bench = Bench::start().await;
    let device = bench.device("dev1").await;
    let access = bench.hub.access();
    let check = async |policy: &str, resource: &str, expected: Option<Denial>| {
        let key = access.policy(policy).unwrap().secondary;
        let token = policy_token(resource, policy, &key, SOON);
        let dev1 = identity("dev1");
        let outcome = access.authenticate_device(&dev1, HOST, &token).await;
        if let Ok(principal) = &outcome {
            assert_eq!(principal.stamp.scope, AuthScope::Hub);
            assert_eq!(principal.generation_id, device.generation_id);
        }
        assert_eq!(denial(outcome), expected, "{policy} {resource}");

        let CbsGrant::Policy(grant) = access.authenticate_cbs(&token).await.unwrap() else {
            panic!("a policy's token is a policy's");
        };
        let outcome = access.authorize_device(&grant, &dev1).await;
        assert_eq!(denial(outcome), expected, "{policy} {resource}");
    };
    check("device", HOST, None).await;
    check("device", &format!("{HOST}/devices"), None).await;
    check("iothubowner", &format!("{HOST}/devices/dev1"), None).await;
    check(
        "device",
        &format!("{HOST}/devices/dev1/messages/events"),
        None,
    )
    .await;
    check(
        "device",
        &format!("{HOST}/devices/dev10"),
        Some(Denial::OutOfScope),
    )
    .await;
    check(
        "device",
        &format!("{HOST}/messages"),
        Some(Denial::OutOfScope),
    )
    .await;
    check("service", HOST, Some(Denial::MissingRight)).await;
}

#[tokio::test]
async fn tokens_on_cbs_links_say_themselves_whom_they_are_for() {
    let bench = Bench::start().await;
    let access = bench.hub.access();
    let check = async |name: &str, resource: &str, expected: Result<&str, Denial>| {
        let device = match bench.hub.registry().get(&id(name)).await.unwrap() {
            Some(device) => device,
            None => bench.device(name).await,
        };
        let token = device_token(resource, &keys(&device).0, SOON);
        match (access.authenticate_cbs(&token).await, expected) {
            (Ok(CbsGrant::Device(principal)), Ok(expected)) => {
                assert_eq!(principal.identity, identity(expected));
            }
            (outcome, Err(expected)) => assert_eq!(denial(outcome), Some(expected)),
            (outcome, _) => panic!("{resource}: {outcome:?}"),
        }
    };
    check("dev1", "dev1", Ok("dev1")).await;
    check("dev1", "dev1/messages/events", Ok("dev1")).await;
    check("a%41b", "a%41b", Ok("a%41b")).await;
    check("dev2", "dev1", Err(Denial::WrongSignature)).await;
    check("dev1", "dev1/modules/m", Err(Denial::UnknownIdentity)).await;
    check("dev1", "", Err(Denial::OutOfScope)).await;
    check("dev1", "no such id \u{e9}", Err(Denial::OutOfScope)).await;
}

#[tokio::test]
async fn an_id_with_a_percent_sign_may_stand_raw_in_a_devices_own_token() {
    let bench = Bench::start().await;
    let device = bench.device("a%41b").await;
    let key = keys(&device).0;
    let encoded = device_token("a%41b", &key, SOON);
    let raw = sign_raw(&format!("{HOST}/devices/a%41b"), &key);
    for token in [encoded, raw] {
        let name = identity("a%41b");
        let outcome = bench
            .hub
            .access()
            .authenticate_device(&name, HOST, &token)
            .await;
        assert_eq!(denial(outcome), None, "{token}");
        let outcome = bench.hub.access().authenticate_cbs(&token).await;
        assert_eq!(denial(outcome), None, "{token}");
    }
}

/// Signs a resource as it stands, as the C SDK does.
fn sign_raw(resource: &str, key: &Secret) -> String {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let key = engine.decode(key.expose()).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let signature = ring::hmac::sign(&key, format!("{resource}\n{SOON}").as_bytes());
    let signature = engine.encode(signature);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={SOON}&skn=")
}

#[tokio::test]
async fn user_names_of_plain_name_a_policy_or_a_device() {
    let bench = Bench::start().await;
    let device = bench.device("dev@1").await;
    let access = bench.hub.access();
    let own = device_token("dev@1", &keys(&device).0, SOON);
    let key = access.policy("service").unwrap().primary;
    let service = policy_token(HOST, "service", &key, SOON);
    let nameless = sign_raw(HOST, &key);
    let check = async |user: &str, password: &str, expected: Result<&str, Denial>| {
        let outcome = access.verify_plain(user, password).await;
        let found = match &outcome {
            Ok(PlainLogin::Policy(grant)) => Ok(grant.policy.to_owned()),
            Ok(PlainLogin::Device(principal)) => Ok(principal.identity.to_string()),
            Err(AuthError::Unauthorized(denial)) => Err(*denial),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, expected.map(str::to_owned), "{user}");
    };
    check("service@sas.root.hub", &service, Ok("service")).await;
    check("service@sas.root.hub1", &service, Ok("service")).await;
    check(
        "service@sas.root.hub1.example.test",
        &nameless,
        Ok("service"),
    )
    .await;
    check("device@sas.root.hub", &service, Err(Denial::UnknownPolicy)).await;
    check(
        "device@sas.root.hub",
        &nameless,
        Err(Denial::WrongSignature),
    )
    .await;
    check("service@sas.root.other", &service, Err(Denial::ForeignHost)).await;
    check("dev@1@sas.hub", &own, Ok("dev@1")).await;
    check("dev@1@sas.other", &own, Err(Denial::ForeignHost)).await;
    check("dev2@sas.hub", &own, Err(Denial::OutOfScope)).await;
    check("dev@1/modules/m@sas.hub", &own, Err(Denial::OutOfScope)).await;
    check("dev@1", &own, Err(Denial::Malformed)).await;
    check("/@sas.hub", &own, Err(Denial::UnknownIdentity)).await;
}

#[tokio::test]
async fn keys_of_policies_last_and_can_be_any_text() {
    let bench = Bench::start().await;
    let hub = bench.reopen(|_| {}).await.unwrap();
    assert_eq!(hub.access().policies(), bench.hub.access().policies());

    let access = hub.access();
    let (first, second) = (
        Secret::new("any text, \0 too"),
        Secret::new("SAS_KEY_VALUE"),
    );
    access
        .set_policy_keys("Service", first, second.clone())
        .await
        .unwrap();
    let token = event_hubs_token(&format!("sb://{HOST}/hub"), "service", &second, SOON);
    access.verify_policy_token(&token).unwrap();
    let other = bench.reopen(|_| {}).await.unwrap();
    assert_eq!(other.access().policies(), access.policies());
    assert_ne!(other.access().policies(), bench.hub.access().policies());

    let unknown = access
        .set_policy_keys("x", second.clone(), second.clone())
        .await;
    assert!(unknown.is_err());
    let empty = access
        .set_policy_keys("service", Secret::new(""), second)
        .await;
    assert!(empty.is_err());
}
