//! Requests over HTTP: whatever is asked, there is an answer of a documented form, and without the right
//! nothing is done.
//!
//! Input: who asks (`owner`, `device`, or a token as it is), method and target, headers up to an empty
//! line, and the body.
#![no_main]

use std::cell::RefCell;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldpost_fuzz::{NOW, hub, lines};
use fieldpost_gateway::fuzzing::HttpRoutes;
use fieldpost_hub::Hub;
use fieldpost_hub::c2d::Target;
use fieldpost_hub::identity::{AuthenticationSpec, DeviceSpec};
use fieldpost_hub::secrets::Secret;
use fieldpost_model::{Ack, CloudMessage, DeviceId, Identity, Properties};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;
use serde_json::Value;
use tokio::runtime::Runtime;

const DEVICE_KEY: [u8; 32] = [1; 32];

/// Requests that one hub answers, so that what they leave there stays small.
const REQUESTS_MAX: u32 = 2000;

/// The largest body that is taken, and more than any answer of such a hub has.
const BODY_BYTES_MAX: usize = 16 * 1024;
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// All statuses that the routes are documented to answer with while the store is well.
const STATUSES: [u16; 10] = [200, 201, 204, 400, 401, 404, 405, 409, 412, 413];

struct World {
    runtime: Runtime,
    routes: HttpRoutes,
    owner: String,
    device: String,
    answered: u32,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(|text: &str| {
    let [who, start, rest] = lines(text);
    let Some((method, target)) = start.split_once(' ') else {
        return;
    };
    let (head, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
    WORLD.with_borrow_mut(|world| {
        if world.answered >= REQUESTS_MAX {
            *world = World::new();
        }
        world.answered += 1;
        let token = match who {
            "owner" => &world.owner,
            "device" => &world.device,
            other => other,
        };
        let mut headers = vec![("host", "hub.localhost"), ("authorization", token)];
        headers.extend(head.lines().filter_map(|line| line.split_once(": ")));
        let answer =
            world
                .routes
                .answer(method, target, &headers, body.as_bytes(), ANSWER_BYTES_MAX);
        let Some(answer) = world.runtime.block_on(answer) else {
            return;
        };
        let answer = answer.expect("answers are bounded");
        assert!(STATUSES.contains(&answer.status), "{answer:?}");
        if answer.status == 204 {
            assert!(answer.body.is_empty(), "{answer:?}");
        }
        if answer.status < 400 {
            assert!(matches!(who, "owner" | "device"), "{answer:?}");
            let path = percent_decode_str(target).decode_utf8_lossy();
            assert!(who == "owner" || path.contains("/dev1/"), "{answer:?}");
            return;
        }
        let refused: Value = serde_json::from_slice(&answer.body).expect("JSON");
        if answer.status == 400 && refused["isSuccessful"] == false {
            // A change of many devices says of each what is wrong.
            let errors = refused["errors"].as_array().expect("errors");
            assert!(!errors.is_empty(), "{answer:?}");
            return;
        }
        let code = answer.headers.get("iothub-errorcode");
        let code = code.and_then(|code| code.to_str().ok()).expect("a code");
        let message = refused["Message"].as_str().expect("a message");
        assert!(
            message.starts_with(&format!("ErrorCode:{code};")),
            "{answer:?}"
        );
    });
});

impl World {
    fn new() -> Self {
        let (runtime, hub) = hub();
        runtime.block_on(furnish(&hub));
        let owner = hub.access().policy("iothubowner").expect("it is built in");
        let owner = STANDARD.decode(owner.primary.expose()).expect("base64");
        Self {
            runtime,
            routes: HttpRoutes::new(hub, BODY_BYTES_MAX),
            owner: format!("{}&skn=iothubowner", sign("hub.localhost", &owner)),
            device: sign("hub.localhost/devices/dev1", &DEVICE_KEY),
            answered: 0,
        }
    }
}

/// Registers devices, and has messages wait for them.
async fn furnish(hub: &Hub) {
    let mut properties = Properties::default();
    properties.set("a b".into(), Some("\u{65e5}".into()));
    for id in ["dev1", "dev2"] {
        let id = DeviceId::new(id).expect("an id");
        let mut spec = DeviceSpec::new(id.clone());
        let key = Some(Secret::new(STANDARD.encode(DEVICE_KEY)));
        spec.authentication = AuthenticationSpec::Sas {
            primary: key.clone(),
            secondary: key,
        };
        (hub.registry().create(spec).await).expect("a new device");
        for number in 0..20 {
            let target = Target {
                identity: Identity::of_device(id.clone()),
                fallback: None,
            };
            let message = CloudMessage {
                message_id: Some(format!("m {number} \u{e9}").into()),
                ack: Ack::Full,
                properties: properties.clone(),
                body: (&b"on"[..]).into(),
                ..CloudMessage::default()
            };
            let sent = hub.c2d().sender("service").send_one(target, &message).await;
            sent.expect("it is accepted");
        }
    }
}

/// A token over `resource` for an hour.
fn sign(resource: &str, key: &[u8]) -> String {
    let resource = utf8_percent_encode(resource, NON_ALPHANUMERIC).to_string();
    let expires = NOW.as_millis() / 1000 + 3600;
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signature = hmac::sign(&key, format!("{resource}\n{expires}").as_bytes());
    let signature = STANDARD.encode(signature);
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}")
}
