//! Random histories of the registry, compared with a simple model.

use std::collections::{BTreeMap, HashSet};

use fieldpost_hub::identity::{
    BulkDone, BulkItem, BulkMode, DeviceSpec, DeviceStatus, Precondition, RegistryError,
};
use proptest::prelude::*;

use crate::bench::{Bench, id, spec};

#[derive(Clone, Copy, Debug)]
enum Tag {
    Current,
    Stale,
    Any,
}

#[derive(Clone, Debug)]
enum Step {
    Single(BulkMode, usize, Option<bool>, Tag),
    Bulk(Vec<(BulkMode, usize, Option<bool>, Tag)>),
    Restart,
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    enabled: bool,
    reason: Option<String>,
    etag: String,
    generation: String,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Created,
    Updated,
    Deleted,
    Exists,
    Unknown,
    Changed,
    Twice,
}

fn mode() -> impl Strategy<Value = BulkMode> {
    prop_oneof![
        3 => Just(BulkMode::Create),
        2 => Just(BulkMode::Update),
        2 => Just(BulkMode::UpdateIfMatchETag),
        1 => Just(BulkMode::CreateOrUpdate),
        1 => Just(BulkMode::CreateOrUpdateIfMatchETag),
        1 => Just(BulkMode::Delete),
        2 => Just(BulkMode::DeleteIfMatchETag),
    ]
}

fn operation() -> impl Strategy<Value = (BulkMode, usize, Option<bool>, Tag)> {
    let tag = prop_oneof![3 => Just(Tag::Current), 1 => Just(Tag::Stale), 1 => Just(Tag::Any)];
    (mode(), 0..6usize, any::<Option<bool>>(), tag)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => operation().prop_map(|(mode, device, on, tag)| Step::Single(mode, device, on, tag)),
        4 => prop::collection::vec(operation(), 0..8).prop_map(Step::Bulk),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_registry_behaves_like_a_map_with_conditions(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps));
    }
}

async fn run(steps: Vec<Step>) {
    let bench = Bench::start().await;
    let mut hub = bench.hub.clone();
    let mut model: BTreeMap<String, Known> = BTreeMap::new();
    let mut generations = HashSet::new();
    for (number, step) in steps.into_iter().enumerate() {
        let (operations, is_bulk) = match step {
            Step::Restart => {
                hub = bench.reopen(|_| {}).await.unwrap();
                continue;
            }
            Step::Single(mode, device, on, tag) => (vec![(mode, device, on, tag)], false),
            Step::Bulk(operations) => (operations, true),
        };
        let reason = format!("step {number}");
        let before = model.clone();
        let items: Vec<BulkItem> = operations
            .iter()
            .map(|&(mode, device, on, tag)| BulkItem {
                mode,
                device: DeviceSpec {
                    status: on.map(|on| match on {
                        true => DeviceStatus::Enabled,
                        false => DeviceStatus::Disabled,
                    }),
                    status_reason: Some(reason.clone()),
                    ..spec(&format!("d{device}"))
                },
                etag: match tag {
                    Tag::Current => before.get(&format!("d{device}")).map(|d| d.etag.clone()),
                    Tag::Stale => Some("c3RhbGU=".to_owned()),
                    Tag::Any => Some("*".to_owned()),
                },
            })
            .collect();
        let results = match items.as_slice() {
            [item] if !is_bulk => vec![single(&hub, item.clone()).await],
            _ => hub.registry().bulk(items.clone()).await,
        };
        assert_eq!(results.len(), items.len());
        let mut seen = HashSet::new();
        for (item, result) in items.iter().zip(results) {
            let name = item.device.device_id.to_string();
            let expected = if seen.insert(name.clone()) {
                expected(&before, item)
            } else {
                Outcome::Twice
            };
            let outcome = match result {
                Ok(BulkDone::Created(device)) => {
                    assert!(generations.insert(device.generation_id.to_string()));
                    model.insert(name.clone(), known(&device));
                    Outcome::Created
                }
                Ok(BulkDone::Updated(device)) => {
                    let old = model.insert(name.clone(), known(&device)).unwrap();
                    assert_eq!(old.generation, *device.generation_id);
                    assert_ne!(old.etag, device.etag());
                    Outcome::Updated
                }
                Ok(BulkDone::Deleted) => {
                    model.remove(&name);
                    Outcome::Deleted
                }
                Err(RegistryError::AlreadyExists) => Outcome::Exists,
                Err(RegistryError::NotFound) => Outcome::Unknown,
                Err(RegistryError::PreconditionFailed) => Outcome::Changed,
                Err(RegistryError::DefinedTwice) => Outcome::Twice,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(outcome, expected, "{item:?} on {before:?}");
            if let Some(now) = model.get(&name)
                && matches!(outcome, Outcome::Created | Outcome::Updated)
            {
                let kept = before.get(&name).is_none_or(|old| old.enabled);
                let wanted = item.device.status.map(|s| s == DeviceStatus::Enabled);
                assert_eq!(now.enabled, wanted.unwrap_or(kept));
                assert_eq!(now.reason.as_deref(), Some(&*reason));
            }
        }
        compare(&hub, &model).await;
    }
}

/// The same through the calls for one device.
async fn single(hub: &fieldpost_hub::Hub, item: BulkItem) -> Result<BulkDone, RegistryError> {
    let registry = hub.registry();
    let etag = item.etag.as_deref().map(Precondition::matching);
    match item.mode {
        BulkMode::Create => registry.create(item.device).await.map(BulkDone::Created),
        BulkMode::Update => {
            let outcome = registry.update(item.device, Precondition::Any).await;
            outcome.map(BulkDone::Updated)
        }
        BulkMode::UpdateIfMatchETag => {
            let outcome = registry.update(item.device, etag.unwrap_or_default()).await;
            outcome.map(BulkDone::Updated)
        }
        BulkMode::DeleteIfMatchETag => {
            let outcome = registry
                .delete(&item.device.device_id, etag.unwrap_or_default())
                .await;
            outcome.map(|()| BulkDone::Deleted)
        }
        _ => registry.bulk(vec![item]).await.pop().unwrap(),
    }
}

fn expected(model: &BTreeMap<String, Known>, item: &BulkItem) -> Outcome {
    let known = model.get(item.device.device_id.as_str());
    let etag_is_good = match (&item.etag, known) {
        (None, _) | (_, None) => true,
        (Some(etag), Some(known)) => etag == "*" || *etag == known.etag,
    };
    match (item.mode, known) {
        (BulkMode::Create, None) => Outcome::Created,
        (BulkMode::Create, Some(_)) => Outcome::Exists,
        (BulkMode::CreateOrUpdate | BulkMode::CreateOrUpdateIfMatchETag, None) => Outcome::Created,
        (_, None) => Outcome::Unknown,
        (BulkMode::Update | BulkMode::CreateOrUpdate, Some(_)) => Outcome::Updated,
        (BulkMode::Delete, Some(_)) => Outcome::Deleted,
        (_, Some(_)) if !etag_is_good => Outcome::Changed,
        (BulkMode::DeleteIfMatchETag, Some(_)) => Outcome::Deleted,
        (_, Some(_)) => Outcome::Updated,
    }
}

fn known(device: &fieldpost_hub::identity::Device) -> Known {
    Known {
        enabled: device.status == DeviceStatus::Enabled,
        reason: device.status_reason.clone(),
        etag: device.etag(),
        generation: device.generation_id.to_string(),
    }
}

async fn compare(hub: &fieldpost_hub::Hub, model: &BTreeMap<String, Known>) {
    let registry = hub.registry();
    let page = registry.list(None, 100).await.unwrap();
    let listed: BTreeMap<String, Known> = page
        .devices
        .iter()
        .map(|device| (device.device_id.to_string(), known(device)))
        .collect();
    assert_eq!(listed, *model);
    for n in 0..6 {
        let name = format!("d{n}");
        let device = registry.get(&id(&name)).await.unwrap();
        assert_eq!(device.as_deref().map(known), model.get(&name).cloned());
    }
    let statistics = registry.statistics();
    let enabled = model.values().filter(|device| device.enabled).count() as u64;
    let total = model.len() as u64;
    assert_eq!(
        (statistics.total, statistics.enabled, statistics.disabled),
        (total, enabled, total - enabled)
    );
}
