//! Modules as the service SDKs register them and the device SDKs speak for them.

use axum::http::StatusCode;

use super::*;
use crate::testing::SeenEvent;

fn sas() -> Value {
    json!({"type": "sas", "symmetricKey": {"primaryKey": null, "secondaryKey": null}})
}

async fn create(service: &Service, device: &str, module: &str) -> Answer {
    let path = format!("/devices/{device}/modules/{module}");
    let body =
        json!({"deviceId": device, "moduleId": module, "managedBy": "me", "authentication": sas()});
    service.call("PUT", &path, None, body).await
}

#[tokio::test]
async fn a_module_is_created_read_changed_and_deleted() {
    let service = Service::open().await;
    service.create("dev1").await;
    let nobody = create(&service, "dev2", "m").await;
    check_refusal(&nobody, 404, "DeviceNotFound");
    let created = create(&service, "dev1", "m").await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    let document = &created.body;
    assert_eq!(document["deviceId"], "dev1");
    assert_eq!(document["moduleId"], "m");
    assert_eq!(document["managedBy"], "me");
    assert_eq!(document["connectionState"], "Disconnected");
    assert_eq!(document["cloudToDeviceMessageCount"], 0);
    assert_eq!(document["authentication"]["type"], "sas");
    let key = document["authentication"]["symmetricKey"]["primaryKey"].as_str();
    assert_eq!(key.unwrap().len(), 44);
    assert_eq!(document.get("status"), None);
    let etag = document["etag"].as_str().unwrap().to_owned();
    assert_eq!(created.headers["etag"], format!("\"{etag}\""));
    let twice = create(&service, "dev1", "m").await;
    check_refusal(&twice, 409, "ModuleAlreadyExistsOnDevice");

    let path = "/devices/dev1/modules/m";
    let read = service.call("GET", path, None, Value::Null).await;
    assert_eq!(read.body, created.body);
    let listed = service
        .call("GET", "/devices/dev1/modules", None, Value::Null)
        .await;
    assert_eq!(listed.body, json!([created.body]));
    let changed = json!({"deviceId": "dev1", "moduleId": "m", "managedBy": "you"});
    let stale = service
        .call("PUT", path, Some("\"MQ==\""), changed.clone())
        .await;
    check_refusal(&stale, 412, "PreconditionFailed");
    let updated = service
        .call("PUT", path, Some(&format!("\"{etag}\"")), changed)
        .await;
    assert_eq!(updated.body["managedBy"], "you");
    assert_eq!(
        updated.body["authentication"],
        created.body["authentication"]
    );
    let other = json!({"deviceId": "dev1", "moduleId": "n"});
    let other = service.call("PUT", path, Some("*"), other).await;
    check_refusal(&other, 400, "ArgumentInvalid");
    let absent = service
        .call("PUT", "/devices/dev1/modules/x", Some("*"), json!({}))
        .await;
    check_refusal(&absent, 404, "ModuleNotFound");

    let stale = service
        .call("DELETE", path, Some("\"MQ==\""), Value::Null)
        .await;
    check_refusal(&stale, 412, "PreconditionFailed");
    let deleted = service.call("DELETE", path, Some("*"), Value::Null).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    let gone = service.call("GET", path, None, Value::Null).await;
    check_refusal(&gone, 404, "ModuleNotFound");
    let gone = service.call("DELETE", path, None, Value::Null).await;
    check_refusal(&gone, 404, "ModuleNotFound");
}

#[tokio::test]
async fn reading_and_writing_need_their_rights() {
    let service = Service::open().await;
    service.create("dev1").await;
    create(&service, "dev1", "m").await;
    let path = "/devices/dev1/modules/m";
    for (policy, reads, writes) in [
        ("registryReadWrite", true, true),
        ("registryRead", true, false),
        ("service", false, false),
        ("device", false, false),
    ] {
        for (method, path, allowed) in [
            ("GET", path, reads),
            ("GET", "/devices/dev1/modules", reads),
            ("PUT", path, writes),
        ] {
            let body = if method == "PUT" {
                json!({})
            } else {
                Value::Null
            };
            let answer = service
                .call_as(policy, (method, path), Some("*"), body)
                .await;
            let expected = if allowed { 200 } else { 401 };
            assert_eq!(answer.status.as_u16(), expected, "{policy} {method} {path}");
        }
    }
}

#[tokio::test]
async fn the_fifty_first_module_is_one_too_many() {
    let service = Service::open().await;
    service.create("dev1").await;
    for n in 0..50 {
        assert_eq!(
            create(&service, "dev1", &format!("m{n}")).await.status,
            StatusCode::OK
        );
    }
    let more = create(&service, "dev1", "more").await;
    check_refusal(&more, 413, "TooManyModulesOnDevice");
}

#[tokio::test]
async fn a_module_sends_and_polls_under_its_own_path() {
    let service = Service::open().await;
    service.create("dev1").await;
    let created = create(&service, "dev1", "m").await;
    let key = &created.body["authentication"]["symmetricKey"]["primaryKey"];
    let key = Secret::new(key.as_str().unwrap());
    let token = sas_token("localhost/devices/dev1/modules/m", &key, expiry(3600));
    let headers = [("host", "localhost"), ("authorization", token.as_str())];
    let ask = async |method: &str, path: &str, body: &str| {
        service
            .send_raw(method, path, &headers, body.to_owned())
            .await
    };
    // Java's spelling.
    let (status, ..) = ask("POST", "/devices/dev1/modules/m//messages/events", "mine").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let events = service.hub.events("dev1").await;
    let expected = SeenEvent {
        body: "mine".to_owned(),
        properties: Vec::new(),
    };
    assert_eq!(events, [expected]);
    let (status, ..) = ask("POST", "/devices/dev1/messages/events", "not mine").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);

    let message = CloudMessage {
        to: "/devices/dev1/modules/m/messages/devicebound".into(),
        body: b"yours"[..].into(),
        ..CloudMessage::default()
    };
    let target = Target {
        identity: Identity {
            device: "dev1".parse().unwrap(),
            module: Some("m".parse().unwrap()),
        },
        fallback: None,
    };
    let mut sender = service.hub.hub.c2d().sender("service");
    sender.send_one(target, &message).await.unwrap();
    let read = service
        .call("GET", "/devices/dev1/modules/m", None, Value::Null)
        .await;
    assert_eq!(read.body["cloudToDeviceMessageCount"], 1);
    let path = "/devices/dev1/modules/m/messages/devicebound";
    let (status, answered, body) = ask("GET", path, "").await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"yours"[..]));
    let lock = answered["etag"]
        .to_str()
        .unwrap()
        .trim_matches('"')
        .to_owned();
    let (status, ..) = ask("DELETE", &format!("{path}/{lock}"), "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}
