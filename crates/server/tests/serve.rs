//! The life of a hub process, seen from outside.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::Signal;
use support::{Hub, LISTENERS, Place, ask, exists, fieldpost, stderr_of_failure};

#[test]
fn a_hub_starts_tells_where_it_is_and_stops_when_told_to() {
    let place = Place::new();
    let hub = place.serve(&["--host-name", "hub.example"]);
    let endpoints = hub.endpoints();
    assert_eq!(endpoints["hostName"], "hub.example");
    let ca = place.data().join("ca.pem");
    assert_eq!(endpoints["caCertificate"], ca.to_str().unwrap());
    for listener in LISTENERS {
        assert_eq!(
            endpoints["listeners"][listener]["address"], "127.0.0.1",
            "{endpoints}"
        );
        assert_ne!(endpoints["listeners"][listener]["port"], 0, "{endpoints}");
    }
    for part in [
        "hub.example",
        "connection-string",
        "NODE_EXTRA_CA_CERTS",
        ca.to_str().unwrap(),
    ] {
        assert!(hub.welcome.contains(part), "{part}: {}", hub.welcome);
    }
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(
            hub.ask(&format!("GET {path}"), &[("Host", "localhost")], "")
                .status,
            200
        );
    }
    let metrics = hub.ask("GET /metrics", &[("Host", "localhost")], "").body;
    assert!(
        metrics.contains("fieldpost_devices{status=\"enabled\"} 0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("# TYPE fieldpost_log_sync_seconds_total counter"),
        "{metrics}"
    );
    for (file, mode) in [
        ("admin-token", 0o600),
        ("key", 0o600),
        ("ca-key.pem", 0o600),
    ] {
        let metadata = std::fs::metadata(place.data().join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{file}");
    }

    let (status, log) = hub.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!exists(&place.data().join("endpoints.json")));
    assert!(!exists(&place.data().join("admin-token")));
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}

#[test]
fn what_was_made_on_first_start_stays_and_the_token_does_not() {
    let place = Place::new();
    let hub = place.serve(&[]);
    let owner = place.run(&["connection-string"]);
    let ca = std::fs::read(place.data().join("ca.pem")).unwrap();
    let token = hub.token();
    hub.kill();
    // A killed hub leaves its files; commands and the next start are not misled by them.
    assert!(exists(&place.data().join("endpoints.json")));
    assert_eq!(place.run(&["connection-string"]), owner);
    let hub = place.serve(&[]);
    assert_eq!(place.run(&["connection-string"]), owner);
    assert_eq!(std::fs::read(place.data().join("ca.pem")).unwrap(), ca);
    assert_ne!(hub.token(), token);
}

#[test]
fn only_one_process_uses_a_data_directory() {
    let place = Place::new();
    let hub = place.serve(&[]);
    let text = stderr_of_failure(&place.serve_command(&[]).output().unwrap());
    assert!(text.contains("in use by another process"), "{text}");
    let text = place.fail(&["verify"]);
    assert!(text.contains("in use by another process"), "{text}");
    // The first hub has not noticed.
    assert_eq!(hub.admin("GET /api/hub", "").status, 200);
}

#[test]
fn a_data_directory_that_others_can_read_is_refused() {
    let place = Place::new();
    std::fs::create_dir(place.data()).unwrap();
    std::fs::set_permissions(place.data(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = stderr_of_failure(&place.serve_command(&[]).output().unwrap());
    assert!(text.contains("chmod 700"), "{text}");
    assert_eq!(std::fs::read_dir(place.data()).unwrap().count(), 0);
}

#[test]
fn a_port_that_is_taken_is_named_and_can_be_gone_without() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let taken = format!("listeners.https.port={port}");
    let place = Place::new();
    let text = stderr_of_failure(&place.serve_command(&["--set", &taken]).output().unwrap());
    let line = text
        .lines()
        .find(|line| line.contains("listener https"))
        .unwrap();
    assert!(
        line.contains(&format!("127.0.0.1:{port}")) && line.contains("ss -ltnp"),
        "{text}"
    );

    let hub = place.serve(&["--set", &taken, "--allow-missing-ports"]);
    assert!(hub.endpoints()["listeners"]["https"].is_null());
    drop(hub);
    // The emulator's port is often another broker's.
    let hub = place.serve(&["--set", &format!("listeners.amqp.port={port}")]);
    assert!(hub.endpoints()["listeners"]["amqp"].is_null());
}

#[test]
fn the_admin_api_wants_the_token_a_local_host_and_no_foreign_origin() {
    let place = Place::new();
    let hub = place.serve(&[]);
    let authorization = format!("Bearer {}", hub.token());
    let right = ("Authorization", authorization.as_str());
    let local = ("Host", "localhost");
    let check = |headers: &[(&str, &str)], expected: u16| {
        let answer = hub.ask("GET /api/hub", headers, "");
        assert_eq!(answer.status, expected, "{headers:?}: {answer:?}");
    };
    check(&[local, right], 200);
    check(&[local], 401);
    check(&[local, ("Authorization", "Bearer wrong")], 401);
    check(&[("Host", "evil.example"), right], 403);
    check(&[local, right, ("Origin", "http://evil.example")], 403);
    // What nobody understands is refused in the same form as everything else: a misspelt name would
    // otherwise export keys, or give away the key with the most rights.
    for path in [
        "/api/registry/export?excludekeys=true",
        "/api/connection-string?polcy=device",
    ] {
        let answer = hub.admin(&format!("GET {path}"), "");
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.contains("ArgumentInvalid"), "{answer:?}");
    }
    assert!(
        hub.admin("DELETE /api/hub", "")
            .body
            .contains("MethodNotAllowed")
    );
    assert!(
        hub.admin("PUT /api/hub", "{")
            .body
            .contains("ArgumentInvalid")
    );
    // Outside test mode nobody moves the clock.
    assert_eq!(
        hub.admin("POST /api/test/clock", "{\"advanceSeconds\": 1}")
            .status,
        404
    );
}

#[test]
fn a_test_store_lets_its_clock_be_moved_and_is_never_served_otherwise() {
    let place = Place::new();
    let hub = place.serve(&["--test-mode"]);
    let now = |answer: support::Answer| {
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["now"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let before = now(hub.admin("POST /api/test/clock", "{\"advanceSeconds\": 0}"));
    let after = now(hub.admin("POST /api/test/clock", "{\"advanceSeconds\": 31536000}"));
    assert!(after[..4].parse::<u32>().unwrap() > before[..4].parse::<u32>().unwrap());
    place.run(&["device", "create", "dev1"]);
    let answer = hub.admin("POST /api/test/connections/cut", "{\"deviceId\": \"dev1\"}");
    assert_eq!(answer.body, "{\"cut\":false}");
    hub.stop();
    let text = stderr_of_failure(&place.serve_command(&[]).output().unwrap());
    assert!(text.contains("test"), "{text}");
    place.run(&["device", "show", "dev1"]);
    place.serve(&["--test-mode"]);
}

/// `--test-mode` by mistake would have taken a hub in use out of service for good, with the keys of
/// all its devices.
#[test]
fn a_store_that_holds_anything_does_not_become_a_test_store() {
    let place = Place::new();
    place.serve(&[]).stop();
    // There is nothing in it but what every hub puts there.
    place.serve(&["--test-mode"]).stop();
    let place = Place::new();
    place.serve(&[]).stop();
    place.run(&["device", "create", "dev1"]);
    let mut command = place.serve_command(&["--test-mode"]);
    let text = stderr_of_failure(&command.output().unwrap());
    assert!(text.contains("another data directory for tests"), "{text}");
    place.serve(&[]);
}

/// Commands made their tokens by the system's clock, and a hub whose clock was ahead of it took them
/// for expired.
#[test]
fn commands_go_by_the_clock_of_a_hub_in_test_mode() {
    let place = Place::new();
    let hub = place.serve(&["--test-mode"]);
    place.run(&["device", "create", "dev1"]);
    let moved = hub.admin("POST /api/test/clock", "{\"advanceSeconds\": 864000}");
    assert_eq!(moved.status, 200, "{moved:?}");
    place.run(&["send", "dev1", "x"]);
    place.run(&["monitor", "--from", "earliest", "--count", "1"]);
    let far = hub.admin("POST /api/test/clock", "{\"advanceSeconds\": 1e17}");
    assert_eq!(far.status, 400, "{far:?}");
}

#[test]
fn a_certificate_of_the_operators_own_is_shown_and_reloaded() {
    let place = Place::new();
    let (certificate, key) = (place.path("own.pem"), place.path("own-key.pem"));
    let make = || {
        let key_pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        let pem = params.self_signed(&key_pair).unwrap().pem();
        std::fs::write(&key, key_pair.serialize_pem()).unwrap();
        std::fs::write(&certificate, &pem).unwrap();
        pem
    };
    let first = make();
    let settings = [
        format!("tls.certificate={}", certificate.display()),
        format!("tls.private_key={}", key.display()),
    ];
    let mut hub = place.serve(&["--set", &settings[0], "--set", &settings[1]]);
    assert!(hub.endpoints()["caCertificate"].is_null());
    assert!(!exists(&place.data().join("ca.pem")));
    let port = hub.port("mqtts");
    assert_eq!(shown_certificate(port), first.trim());
    let second = make();
    hub.signal(Signal::HUP);
    hub.wait_for_log("a new certificate is shown");
    assert_eq!(shown_certificate(port), second.trim());
}

/// The leaf that a TLS listener shows, as PEM.
fn shown_certificate(port: u16) -> String {
    let output = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{port}"),
            "-showcerts",
        ])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed wherever the tests run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let end = "-----END CERTIFICATE-----";
    let start = text
        .find("-----BEGIN CERTIFICATE-----")
        .expect("a certificate is shown");
    let stop = text.find(end).unwrap() + end.len();
    text[start..stop].to_owned()
}

#[test]
fn sockets_of_a_service_manager_are_used_by_name() {
    let place = Place::new();
    // Python does what systemd does: it binds, puts the sockets at descriptors 3 and 4, and names
    // them.
    let script = "
import os, socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
kept = [os.dup2(s.fileno(), 20 + n) for n, s in enumerate(sockets)]
for n, fd in enumerate(kept):
    os.dup2(fd, 3 + n, inheritable=True)
print(*[s.getsockname()[1] for s in sockets], flush=True)
os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='mqtts:admin')
os.execv(sys.argv[1], sys.argv[1:])
";
    let serve = place.serve_command(&[]);
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(serve.get_program())
        .args(serve.get_args());
    let hub = Hub::start(command, place.data());
    let ports = hub.welcome.lines().next().unwrap();
    assert_eq!(
        ports,
        format!("{} {}", hub.port("mqtts"), hub.port("admin"))
    );
    let admin = hub.port("admin");
    assert_eq!(
        ask(admin, "GET /health/ready", &[("Host", "localhost")], "").status,
        200
    );
}

#[test]
fn a_second_signal_ends_the_process_at_once_and_a_start_can_be_interrupted() {
    let place = Place::new();
    let hub = place.serve(&[]);
    hub.signal(Signal::INT);
    hub.signal(Signal::INT);
    let (status, _) = hub.stop();
    // Whichever came first: the orderly end or the second signal.
    assert!([Some(0), Some(130)].contains(&status.code()), "{status:?}");
}

#[test]
fn a_wrong_configuration_is_reported_before_anything_is_touched() {
    let place = Place::new();
    let file = place.path("fieldpost.toml");
    std::fs::write(
        &file,
        "[listeners.mqtts]\nprot = 1\n[hub]\nretention_days = 8\n",
    )
    .unwrap();
    let mut command = place.serve_command(&["--config", file.to_str().unwrap()]);
    let text = stderr_of_failure(&command.output().unwrap());
    assert!(
        text.contains("line 2") && text.contains("did you mean `listeners.mqtts.port`?"),
        "{text}"
    );
    assert!(
        text.contains("line 4") && text.contains("range 1 to 7"),
        "{text}"
    );
    assert!(!exists(&place.data()));
    let check = fieldpost()
        .args(["config", "check", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(stderr_of_failure(&check).contains("listeners.mqtts.port"));
}
