use std::collections::HashSet;
use std::time::Duration;

use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::identity::{
    Authentication, AuthenticationSpec, BulkDone, BulkItem, BulkMode, Device, DeviceSpec,
    DeviceStatistics, DeviceStatus, InvalidDevice, Precondition, RegistryError, Thumbprints,
};
use fieldpost_hub::secrets::Secret;
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::documents::{Collection, ListRequest};

use crate::bench::{Bench, context, id, keys, settle, spec};

#[tokio::test]
async fn a_device_is_created_once_with_keys_of_its_own() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let device = bench.device("dev1").await;
    assert_eq!(device.status, DeviceStatus::Enabled);
    assert_eq!(device.status_updated, Timestamp::NEVER);
    let (primary, secondary) = keys(&device);
    assert_eq!(primary.expose().len(), 44);
    assert_ne!(primary, secondary);

    let again = registry.create(spec("dev1")).await;
    assert!(
        matches!(again, Err(RegistryError::AlreadyExists)),
        "{again:?}"
    );
    assert_eq!(registry.get(&id("dev1")).await.unwrap(), Some(device));
    assert_eq!(registry.get(&id("DEV1")).await.unwrap(), None);
}

#[tokio::test]
async fn an_update_replaces_what_is_given_and_keeps_keys_status_and_generation() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let created = bench.device("dev1").await;

    bench.clock.advance(Duration::from_secs(10));
    let disable = DeviceSpec {
        status: Some(DeviceStatus::Disabled),
        status_reason: Some("lost".to_owned()),
        iot_edge: true,
        device_scope: Some("scope".to_owned()),
        parent_scopes: vec!["parent".to_owned()],
        ..spec("dev1")
    };
    let disabled = registry.update(disable, Precondition::Any).await.unwrap();
    let expected = Device {
        revision: disabled.revision,
        status: DeviceStatus::Disabled,
        status_reason: Some("lost".to_owned()),
        status_updated: bench.clock.now(),
        iot_edge: true,
        device_scope: Some("scope".to_owned()),
        parent_scopes: vec!["parent".to_owned()],
        ..Device::clone(&created)
    };
    assert_eq!(*disabled, expected);
    assert_ne!(disabled.etag(), created.etag());

    bench.clock.advance(Duration::from_secs(10));
    let unchanged = registry
        .update(spec("dev1"), Precondition::None)
        .await
        .unwrap();
    assert_eq!(unchanged.status, DeviceStatus::Disabled);
    assert_eq!(unchanged.status_updated, disabled.status_updated);
    assert_eq!(unchanged.status_reason, None);
    assert_eq!(keys(&unchanged), keys(&created));

    let rolled = DeviceSpec {
        authentication: AuthenticationSpec::Sas {
            primary: Some(keys(&created).1),
            secondary: Some(Secret::new("MDEyMzQ1Njc4OWFiY2RlZg==")),
        },
        ..spec("dev1")
    };
    let rolled = registry.update(rolled, Precondition::None).await.unwrap();
    assert_eq!(keys(&rolled).0, keys(&created).1);
}

#[tokio::test]
async fn preconditions_decide_whether_a_change_is_made() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let first = bench.device("dev1").await;
    let second = registry
        .update(spec("dev1"), Precondition::None)
        .await
        .unwrap();
    let failed = |result: Result<(), RegistryError>| match result {
        Err(RegistryError::PreconditionFailed) => "changed",
        Err(RegistryError::NotFound) => "unknown",
        other => panic!("{other:?}"),
    };
    for etag in [first.etag(), "nonsense".to_owned(), String::new()] {
        let stale = Precondition::matching(&etag);
        let update = registry.update(spec("dev1"), stale.clone()).await;
        assert_eq!(failed(update.map(|_| ())), "changed", "{etag}");
        let delete = registry.delete(&id("dev1"), stale.clone()).await;
        assert_eq!(failed(delete), "changed", "{etag}");
        let update = registry.update(spec("dev2"), stale.clone()).await;
        assert_eq!(failed(update.map(|_| ())), "unknown", "{etag}");
        assert_eq!(
            failed(registry.delete(&id("dev2"), stale).await),
            "unknown",
            "{etag}"
        );
    }
    assert_eq!(
        failed(registry.delete(&id("dev2"), Precondition::Any).await),
        "unknown"
    );

    let matching = Precondition::matching(&second.etag());
    let third = registry.update(spec("dev1"), matching).await.unwrap();
    registry
        .delete(&id("dev1"), Precondition::matching(&third.etag()))
        .await
        .unwrap();
    assert_eq!(registry.get(&id("dev1")).await.unwrap(), None);
    bench.device("dev1").await;
    registry
        .delete(&id("dev1"), Precondition::matching("*"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_device_created_again_is_another_one() {
    let bench = Bench::start().await;
    let mut generations = HashSet::new();
    let mut all_keys = HashSet::new();
    for _ in 0..50 {
        let device = bench.device("dev1").await;
        assert!(generations.insert(device.generation_id.clone()));
        assert!(all_keys.insert(keys(&device).0.expose().to_owned()));
        assert_eq!(device.generation_id.len(), 27, "{}", device.generation_id);
        let gone = bench
            .hub
            .registry()
            .delete(&id("dev1"), Precondition::None)
            .await;
        gone.unwrap();
    }
}

#[tokio::test]
async fn what_a_device_must_not_be_is_refused_before_it_is_stored() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    bench.device("known").await;
    let check = async |authentication: AuthenticationSpec, expected: InvalidDevice| {
        for name in ["new", "known"] {
            let wanted = DeviceSpec {
                authentication: authentication.clone(),
                ..spec(name)
            };
            let outcome = match name {
                "new" => registry.create(wanted).await,
                _ => registry.update(wanted, Precondition::Any).await,
            };
            assert!(
                matches!(&outcome, Err(RegistryError::InvalidArgument(e)) if *e == expected),
                "{outcome:?}"
            );
        }
    };
    check(
        AuthenticationSpec::Sas {
            primary: Some(Secret::new("MDEyMzQ1Njc4OWFiY2RlZg==")),
            secondary: None,
        },
        InvalidDevice::OneKey {
            missing: "secondary",
        },
    )
    .await;
    check(
        AuthenticationSpec::SelfSigned(Thumbprints::default()),
        InvalidDevice::NoThumbprint,
    )
    .await;
    assert_eq!(registry.get(&id("new")).await.unwrap(), None);
    let reason = DeviceSpec {
        status_reason: Some("x".repeat(129)),
        ..spec("new")
    };
    let outcome = registry.create(reason).await;
    assert!(
        matches!(outcome, Err(RegistryError::InvalidArgument(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn other_ways_to_sign_in_are_kept() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    for (name, given, expected) in [
        (
            "self-signed",
            AuthenticationSpec::SelfSigned(Thumbprints {
                primary: Some("aB".repeat(32)),
                secondary: None,
            }),
            Authentication::SelfSigned(Thumbprints {
                primary: Some("aB".repeat(32)),
                secondary: None,
            }),
        ),
        (
            "ca",
            AuthenticationSpec::CertificateAuthority,
            Authentication::CertificateAuthority,
        ),
        ("none", AuthenticationSpec::None, Authentication::None),
    ] {
        let wanted = DeviceSpec {
            authentication: given,
            ..spec(name)
        };
        let created = registry.create(wanted).await.unwrap();
        assert_eq!(created.authentication, expected);
        assert_eq!(registry.get(&id(name)).await.unwrap(), Some(created));
        let unchanged = registry.update(spec(name), Precondition::Any).await;
        assert_eq!(unchanged.unwrap().authentication, expected);
        let asks_for_keys = DeviceSpec {
            authentication: AuthenticationSpec::Sas {
                primary: None,
                secondary: None,
            },
            ..spec(name)
        };
        let with_keys = registry.update(asks_for_keys, Precondition::Any).await;
        keys(&with_keys.unwrap());
    }
}

#[tokio::test]
async fn devices_are_listed_in_pages_and_counted() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let items = (0..2500)
        .map(|n| BulkItem {
            mode: BulkMode::Create,
            device: DeviceSpec {
                status: (n % 5 == 0).then_some(DeviceStatus::Disabled),
                ..spec(&format!("device-{n}"))
            },
            etag: None,
        })
        .collect();
    for result in registry.bulk(items).await {
        assert!(matches!(result, Ok(BulkDone::Created(_))), "{result:?}");
    }
    let expected = DeviceStatistics {
        total: 2500,
        enabled: 2000,
        disabled: 500,
    };
    assert_eq!(registry.statistics(), expected);

    let mut seen = Vec::new();
    loop {
        let after = seen.last().cloned();
        let page = registry.list(after.as_ref(), 5000).await.unwrap();
        assert!(page.devices.len() <= 1000);
        seen.extend(page.devices.into_iter().map(|device| device.device_id));
        if !page.more {
            break;
        }
    }
    assert_eq!(seen.len(), 2500);
    assert!(seen.is_sorted_by(|a, b| a < b));
    let page = registry.list(None, 0).await.unwrap();
    assert_eq!((page.devices.len(), page.more), (1, true));
}

#[tokio::test]
async fn each_item_of_a_bulk_request_stands_alone() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let known = bench.device("known").await;
    let other = bench.device("other").await;
    let doomed = bench.device("doomed").await;
    bench.device("doomed2").await;
    let item = |mode: &str, name: &str, etag: Option<&str>| BulkItem {
        mode: mode.parse().unwrap(),
        device: spec(name),
        etag: etag.map(str::to_owned),
    };
    let invalid = BulkItem {
        device: DeviceSpec {
            status_reason: Some("x".repeat(200)),
            ..spec("invalid")
        },
        ..item("CREATE", "invalid", None)
    };
    let stale = known.etag();
    let results = registry
        .bulk(vec![
            item("create", "new", None),
            item("Create", "known", None),
            item("Update", "unknown", None),
            item("UpdateIfMatchETag", "other", Some(&other.etag())),
            item("updateIfMatchETag", "doomed", Some(&stale)),
            invalid,
            item("create", "new", None),
            item("createorupdate", "fresh", None),
            item("createOrUpdateIfMatchETag", "fresh2", Some(&stale)),
            item("Delete", "doomed2", None),
            item("DeleteIfMatchETag", "gone", Some(&stale)),
        ])
        .await;
    let words: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(BulkDone::Created(_)) => "created",
            Ok(BulkDone::Updated(_)) => "updated",
            Ok(BulkDone::Deleted) => "deleted",
            Err(RegistryError::AlreadyExists) => "exists",
            Err(RegistryError::NotFound) => "unknown",
            Err(RegistryError::PreconditionFailed) => "changed",
            Err(RegistryError::DefinedTwice) => "twice",
            Err(RegistryError::InvalidArgument(_)) => "invalid",
            Err(error) => panic!("{error}"),
        })
        .collect();
    assert_eq!(
        words,
        [
            "created", "exists", "unknown", "updated", "changed", "invalid", "twice", "created",
            "created", "deleted", "unknown"
        ]
    );
    assert_eq!(registry.get(&id("doomed")).await.unwrap(), Some(doomed));
    assert_eq!(registry.statistics().total, 6);
    assert!("updateTwin".parse::<BulkMode>().is_err());
}

#[tokio::test]
async fn keys_are_not_to_be_found_in_the_store() {
    let bench = Bench::start().await;
    let device = bench.device("dev1").await;
    let mut secrets = vec![keys(&device).0, keys(&device).1];
    for policy in bench.hub.access().policies() {
        secrets.extend([policy.primary, policy.secondary]);
    }
    let mut documents = 0;
    for collection in 0..=255 {
        let request = ListRequest {
            collection: Collection(collection),
            prefix: bytes::Bytes::new(),
            after: None,
            limit: 100,
        };
        let store = bench.memory.store();
        for document in store.documents.list(request).await.unwrap().documents {
            documents += 1;
            let text = String::from_utf8_lossy(&document.value).into_owned();
            for secret in &secrets {
                assert!(!text.contains(secret.expose()), "{text}");
            }
        }
    }
    // The device, the policies, the settings, and what time it was.
    assert_eq!(documents, 1 + 5 + 1 + 1);
}

#[tokio::test]
async fn a_registry_without_a_store_says_so_and_changes_nothing() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    let device = bench.device("dev1").await;
    bench.memory.documents.fail_next();
    let outcome = registry.delete(&id("dev1"), Precondition::Any).await;
    assert!(
        matches!(
            outcome,
            Err(RegistryError::Store(StoreError::ReadOnly { .. }))
        ),
        "{outcome:?}"
    );
    assert_eq!(registry.get(&id("dev1")).await.unwrap(), Some(device));
}

#[tokio::test]
async fn a_change_is_carried_out_although_its_caller_went_away() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry().clone();
    let device = bench.device("dev1").await;
    let identity = crate::bench::identity("dev1");
    let generation = device.generation_id.clone();
    let mut session = bench.hub.presence().connect(identity, generation).await;

    bench.memory.documents.withhold(true);
    {
        let dev1 = id("dev1");
        let mut abandoned = Box::pin(registry.delete(&dev1, Precondition::Any));
        assert!(abandoned.as_mut().poll(&mut context()).is_pending());
        settle().await;
        assert!(abandoned.as_mut().poll(&mut context()).is_pending());
    }
    assert!(session.poll_evicted(&mut context()).is_pending());
    bench.memory.documents.withhold(false);
    settle().await;
    assert!(session.poll_evicted(&mut context()).is_ready());
    assert_eq!(registry.get(&id("dev1")).await.unwrap(), None);
}

#[tokio::test]
async fn concurrent_changes_of_one_device_all_find_their_turn() {
    let bench = Bench::start().await;
    bench.device("dev1").await;
    let updates = (0..10).map(|n| {
        let registry = bench.hub.registry().clone();
        tokio::spawn(async move {
            let wanted = DeviceSpec {
                status_reason: Some(format!("{n}")),
                ..spec("dev1")
            };
            registry.update(wanted, Precondition::Any).await
        })
    });
    let mut revisions = HashSet::new();
    for update in updates.collect::<Vec<_>>() {
        let device = update.await.unwrap().unwrap();
        assert!(revisions.insert(device.revision));
    }
    let newest = bench
        .hub
        .registry()
        .get(&id("dev1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(Some(&newest.revision), revisions.iter().max());
}
