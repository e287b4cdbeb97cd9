//! Modules: identities below a device.

use std::sync::Arc;

use fieldpost_hub::auth::{AuthError, Denial, DevicePrincipal};
use fieldpost_hub::c2d::{PurgeError, SendRefused, Target};
use fieldpost_hub::identity::{
    Authentication, AuthenticationSpec, DeviceSpec, DeviceStatus, MODULES_MAX, Module, ModuleSpec,
    Precondition, RegistryError,
};
use fieldpost_hub::presence::Eviction;
use fieldpost_hub::secrets::Secret;
use fieldpost_hub::subscriptions::Features;
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, CloudMessage};

use crate::bench::{
    Bench, HOST, NOW_SECONDS, device_token, id, identity, keys, policy_token, spec,
};
use crate::commands::next;

fn module_spec(name: &str) -> ModuleSpec {
    let identity = identity(name);
    ModuleSpec {
        device_id: identity.device,
        module_id: identity.module.unwrap(),
        authentication: AuthenticationSpec::Unchanged,
        managed_by: None,
    }
}

fn keys_of(module: &Module) -> (Secret, Secret) {
    match &module.authentication {
        Authentication::Sas(keys) => (keys.primary.clone(), keys.secondary.clone()),
        other => panic!("{other:?}"),
    }
}

/// The path of an identity in a token.
fn resource(name: &str) -> String {
    name.replacen('/', "/modules/", 1)
}

fn denial(outcome: Result<DevicePrincipal, AuthError>) -> Option<Denial> {
    match outcome {
        Ok(_) => None,
        Err(AuthError::Unauthorized(denial)) => Some(denial),
        Err(error) => panic!("{error}"),
    }
}

impl Bench {
    async fn module(&self, name: &str) -> Module {
        self.hub
            .registry()
            .create_module(module_spec(name))
            .await
            .unwrap()
    }

    /// As `name` with a token for `token_of`, signed by `key`.
    async fn sign_in(
        &self,
        name: &str,
        token_of: &str,
        key: &Secret,
    ) -> Result<DevicePrincipal, AuthError> {
        let token = device_token(&resource(token_of), key, NOW_SECONDS + 60);
        let access = self.hub.access();
        access
            .authenticate_device(&identity(name), HOST, &token)
            .await
    }

    async fn module_ids(&self, device: &str) -> Vec<String> {
        let modules = self.hub.registry().modules(&id(device)).await.unwrap();
        modules
            .iter()
            .map(|module| module.module_id.to_string())
            .collect()
    }

    async fn send_to(&self, name: &str, text: &str) -> Result<(), SendRefused> {
        let message = CloudMessage {
            to: format!("/devices/{}/messages/devicebound", resource(name)).into(),
            body: text.as_bytes().to_vec().into(),
            ..CloudMessage::default()
        };
        let target = Target {
            identity: identity(name),
            fallback: None,
        };
        let mut sender = self.hub.c2d().sender("service");
        sender.send_one(target, &message).await.map(|_| ())
    }
}

#[tokio::test]
async fn a_module_is_registered_changed_and_removed() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    bench.device("dev1").await;
    bench.device("dev10").await;
    let missing = registry.create_module(module_spec("nobody/m")).await;
    assert!(
        matches!(missing, Err(RegistryError::NotFound)),
        "{missing:?}"
    );

    let created = bench.module("dev1/m").await;
    let twice = registry.create_module(module_spec("dev1/m")).await;
    assert!(
        matches!(twice, Err(RegistryError::AlreadyExists)),
        "{twice:?}"
    );
    bench.module("dev1/a").await;
    bench.module("dev10/z").await;
    assert_eq!(bench.module_ids("dev1").await, ["a", "m"]);
    assert_eq!(bench.module_ids("dev10").await, ["z"]);
    let read = registry
        .module(&id("dev1"), &created.module_id)
        .await
        .unwrap();
    assert_eq!(read.as_ref(), Some(&created));

    // What is not said of keys stays; the manager is as it is given.
    let managed = ModuleSpec {
        managed_by: Some("IotEdge".to_owned()),
        ..module_spec("dev1/m")
    };
    let stale = Precondition::ETag("MQ==".to_owned());
    let refused = registry.update_module(managed.clone(), stale.clone()).await;
    assert!(
        matches!(refused, Err(RegistryError::PreconditionFailed)),
        "{refused:?}"
    );
    let current = Precondition::ETag(created.etag());
    let updated = registry.update_module(managed, current).await.unwrap();
    assert_eq!(updated.authentication, created.authentication);
    assert_eq!(updated.generation_id, created.generation_id);
    assert_eq!(updated.managed_by.as_deref(), Some("IotEdge"));
    assert_ne!(updated.etag(), created.etag());
    let long = ModuleSpec {
        managed_by: Some("x".repeat(129)),
        ..module_spec("dev1/m")
    };
    let refused = registry.update_module(long, Precondition::Any).await;
    assert!(
        matches!(refused, Err(RegistryError::InvalidArgument(_))),
        "{refused:?}"
    );
    let absent = registry
        .update_module(module_spec("dev1/x"), Precondition::Any)
        .await;
    assert!(
        matches!(absent, Err(RegistryError::ModuleNotFound)),
        "{absent:?}"
    );

    let (device, module) = (id("dev1"), created.module_id.clone());
    let refused = registry.delete_module(&device, &module, stale).await;
    assert!(
        matches!(refused, Err(RegistryError::PreconditionFailed)),
        "{refused:?}"
    );
    registry
        .delete_module(&device, &module, Precondition::Any)
        .await
        .unwrap();
    let again = registry
        .delete_module(&device, &module, Precondition::Any)
        .await;
    assert!(
        matches!(again, Err(RegistryError::ModuleNotFound)),
        "{again:?}"
    );
    assert_eq!(bench.module_ids("dev1").await, ["a"]);
    assert_eq!(registry.statistics().total, 2);
    let anew = bench.module("dev1/m").await;
    assert_ne!(anew.generation_id, created.generation_id);
}

#[tokio::test]
async fn a_device_has_fifty_modules_at_most_and_takes_them_with_it() {
    let bench = Bench::start().await;
    let registry = bench.hub.registry();
    for life in 0..3 {
        bench.device("dev1").await;
        assert_eq!(bench.module_ids("dev1").await, [""; 0]);
        for n in 0..MODULES_MAX {
            bench.module(&format!("dev1/m{life}-{n}")).await;
        }
        let more = registry.create_module(module_spec("dev1/more")).await;
        assert!(
            matches!(more, Err(RegistryError::TooManyModules)),
            "{more:?}"
        );
        assert_eq!(bench.module_ids("dev1").await.len(), MODULES_MAX);
        registry
            .delete(&id("dev1"), Precondition::Any)
            .await
            .unwrap();
        let none = registry.modules(&id("dev1")).await;
        assert!(matches!(none, Err(RegistryError::NotFound)), "{none:?}");
    }
}

/// As a crash between the two writes of a deletion leaves it.
#[tokio::test]
async fn a_module_of_an_earlier_life_of_its_device_is_none() {
    use fieldpost_store::documents::{Action, Change, Collection, Condition, Documents as _};

    let bench = Bench::start().await;
    bench.device("dev1").await;
    let module = bench.module("dev1/m").await;
    let key = keys_of(&module).0;
    let delete = Change {
        collection: Collection(1),
        key: "dev1".into(),
        condition: Condition::Any,
        action: Action::Delete,
    };
    bench.documents.apply(vec![delete]).await.unwrap();
    let hub = bench.reopen(|_| {}).await.unwrap();
    hub.registry().create(spec("dev1")).await.unwrap();
    assert!(
        hub.registry()
            .modules(&id("dev1"))
            .await
            .unwrap()
            .is_empty()
    );
    let found = hub.registry().module(&id("dev1"), &module.module_id).await;
    assert_eq!(found.unwrap(), None);
    let token = device_token(&resource("dev1/m"), &key, NOW_SECONDS + 60);
    let of_old = identity("dev1/m");
    let outcome = hub.access().authenticate_device(&of_old, HOST, &token);
    assert_eq!(denial(outcome.await), Some(Denial::UnknownIdentity));
    let anew = hub
        .registry()
        .create_module(module_spec("dev1/m"))
        .await
        .unwrap();
    assert_ne!(anew.generation_id, module.generation_id);
}

#[tokio::test]
async fn a_module_signs_in_with_its_own_keys_and_no_others() {
    let bench = Bench::start().await;
    let device_key = keys(&*bench.device("dev1").await).0;
    let (primary, secondary) = keys_of(&bench.module("dev1/m").await);
    let other = keys_of(&bench.module("dev1/other").await).0;
    use Denial as D;
    let check = async |name: &str, token_of: &str, key: &Secret, expected| {
        let outcome = denial(bench.sign_in(name, token_of, key).await);
        assert_eq!(outcome, expected, "{name} with a token for {token_of}");
    };
    let principal = bench.sign_in("dev1/m", "dev1/m", &primary).await.unwrap();
    let stamp = AuthStamp {
        scope: AuthScope::Module,
        kind: AuthKind::Sas,
    };
    assert_eq!(
        (principal.stamp, &principal.identity),
        (stamp, &identity("dev1/m"))
    );
    check("dev1/m", "dev1/m", &secondary, None).await;
    check("dev1/m", "dev1/m", &other, Some(D::WrongSignature)).await;
    check("dev1/m", "dev1/m", &device_key, Some(D::WrongSignature)).await;
    check("dev1/m", "dev1", &device_key, Some(D::OutOfScope)).await;
    check("dev1", "dev1/m", &primary, Some(D::OutOfScope)).await;
    check("dev1/other", "dev1/m", &primary, Some(D::OutOfScope)).await;
    check("dev1/none", "dev1/none", &primary, Some(D::UnknownIdentity)).await;
    let access = bench.hub.access();
    let policy = access.policy("device").unwrap();
    let expires = NOW_SECONDS + 60;
    let token = policy_token(
        &format!("{HOST}/devices/dev1"),
        "device",
        &policy.primary,
        expires,
    );
    let outcome = access
        .authenticate_device(&identity("dev1/m"), HOST, &token)
        .await;
    assert_eq!(outcome.unwrap().stamp.scope, AuthScope::Hub);

    // It goes with its device.
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
    check("dev1/m", "dev1/m", &primary, Some(D::Disabled)).await;
}

#[tokio::test]
async fn a_module_has_a_connection_a_session_and_a_queue_of_its_own() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    bench.device("dev1").await;
    let key = keys_of(&bench.module("dev1/m").await).0;
    let module = bench.sign_in("dev1/m", "dev1/m", &key).await.unwrap();
    hub.subscriptions()
        .store(&module, Features::default())
        .await
        .unwrap();
    bench.send_to("dev1/m", "for the module").await.unwrap();
    bench.send_to("dev1", "for the device").await.unwrap();
    let nobody = bench.send_to("dev1/none", "lost").await;
    assert!(
        matches!(nobody, Err(SendRefused::UnknownDevice)),
        "{nobody:?}"
    );
    let delivery = next(hub, &module).await.unwrap();
    let view = fieldpost_record::CommandView::parse(&delivery.message).unwrap();
    assert_eq!(view.body(), Some(&b"for the module"[..]));
    assert!(next(hub, &module).await.is_none());

    let generation = Arc::clone(&module.generation_id);
    let mut session = hub
        .presence()
        .connect(module.identity.clone(), generation)
        .await;
    let state = hub.presence().state(&identity("dev1/m")).await;
    assert!(state.connected);
    assert_eq!(hub.presence().connected_devices(), 0);
    let device = &module.identity.device;
    let id = module.identity.module.clone().unwrap();
    hub.registry()
        .delete_module(device, &id, Precondition::Any)
        .await
        .unwrap();
    assert_eq!(session.evicted().await, Eviction::Deleted);
    drop(session);
    assert_eq!(hub.subscriptions().load(&module).await.unwrap(), None);
    let purged = hub.c2d().purge(device, Some(&id)).await;
    assert!(
        matches!(purged, Err(PurgeError::UnknownDevice)),
        "{purged:?}"
    );
    // A connection that authenticated before it was deleted gets no place.
    let generation = Arc::clone(&module.generation_id);
    let mut late = hub
        .presence()
        .connect(module.identity.clone(), generation)
        .await;
    assert_eq!(late.evicted().await, Eviction::Deleted);

    // A module of the same name finds nothing of the old one's.
    let anew = keys_of(&bench.module("dev1/m").await).0;
    let anew = bench.sign_in("dev1/m", "dev1/m", &anew).await.unwrap();
    assert!(next(hub, &anew).await.is_none());
    assert_eq!(hub.c2d().purge(device, None).await.unwrap(), 1);
}
