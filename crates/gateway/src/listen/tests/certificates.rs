//! Devices whose only credential is the certificate that TLS begins with.

use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};

use super::*;

/// Of version 1, as `openssl x509 -req` makes them, until the year 2126. Its key is nobody's.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBGTCBvwIUIbtr2F0H0yOQS26LFdf0IRKHTcswCgYIKoZIzj0EAwIwDjEMMAoG
A1UEAwwDb2xkMCAXDTI2MTEyMzIxNTMxMVoYDzIxMjYxMDMwMjE1MzExWjAOMQww
CgYDVQQDDANvbGQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQPNPx6jveBB1pV
jcSkk3StKxD9UL+SImUB4dl9og+ZCeFTxRBi8ZFRlTjgtR2YiOR0rUXtTyaZJ1jN
rKeRyBC5MAoGCCqGSM49BAMCA0kAMEYCIQC7AGjUJ56+uQNuq9yrigC/z8+AjQt+
Ly6DdCyRXuHwSwIhAMnC+YUN0Q+QKxkjXS/WD5nRp9OYoNKPmNBLXg0xF7eo
-----END CERTIFICATE-----";

const ITS_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgBy6KfY+Dqndx3CsZ
LU0iKFhajxDODqllc/JI4M5t3w2hRANCAAQPNPx6jveBB1pVjcSkk3StKxD9UL+S
ImUB4dl9og+ZCeFTxRBi8ZFRlTjgtR2YiOR0rUXtTyaZJ1jNrKeRyBC5
-----END PRIVATE KEY-----";

type Own = (CertificateDer<'static>, PrivateKeyDer<'static>);
type Make = fn() -> Own;

fn version_1() -> Own {
    (
        CertificateDer::from_pem_slice(VERSION_1.as_bytes()).unwrap(),
        PrivateKeyDer::from_pem_slice(ITS_KEY.as_bytes()).unwrap(),
    )
}

fn ed25519() -> Own {
    let names = vec!["device".to_owned()];
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(names).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (
        certificate,
        PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    )
}

fn connect(device: &str, password: Option<&[u8]>) -> Vec<u8> {
    let user_name = format!("localhost/{device}/?api-version=2021-04-12");
    let connect = Connect {
        client_id: device,
        clean_session: false,
        keep_alive_s: 60,
        will: None,
        user_name: Some(&user_name),
        password,
    };
    let client = ClientConnection::new(&connect, ClientOptions::default(), Duration::ZERO);
    client.unwrap().output().to_vec()
}

async fn connack(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), connect: &[u8]) -> u8 {
    stream.write_all(connect).await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    answer[3]
}

#[tokio::test]
async fn a_certificate_alone_opens_mqtt_and_https_over_both_versions_of_tls() {
    let served = Served::start().await;
    let certificates: [(&str, Make); 3] =
        [("v3", certificate), ("v1", version_1), ("ed25519", ed25519)];
    for (name, make) in certificates {
        let own = make();
        served.hub.device_with_certificate(name, &own.0).await;
        for version in [&TLS12, &TLS13] {
            let shown = || Some((own.0.clone(), own.1.clone_key()));
            let mut stream = served.tls_as(ListenerKind::Mqtts, version, shown()).await;
            assert_eq!(
                connack(&mut stream, &connect(name, None)).await,
                0,
                "{name}"
            );
            let mut stream = served.tls_as(ListenerKind::Mqtts, version, shown()).await;
            assert_eq!(
                connack(&mut stream, &connect(name, Some(b""))).await,
                0,
                "{name}"
            );
            // A token counts more, and this is none.
            let mut stream = served.tls_as(ListenerKind::Mqtts, version, shown()).await;
            assert_eq!(
                connack(&mut stream, &connect(name, Some(b"x"))).await,
                5,
                "{name}"
            );
            let stranger = Some(certificate());
            let mut stream = served.tls_as(ListenerKind::Mqtts, version, stranger).await;
            assert_eq!(
                connack(&mut stream, &connect(name, None)).await,
                5,
                "{name}"
            );
            let mut stream = served.tls_as(ListenerKind::Mqtts, version, None).await;
            assert_eq!(
                connack(&mut stream, &connect(name, None)).await,
                5,
                "{name}"
            );

            let post = format!(
                "POST /devices/{name}/messages/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nm"
            );
            for (own, status) in [
                (shown(), "204"),
                (Some(certificate()), "401"),
                (None, "401"),
            ] {
                let mut stream = served.tls_as(ListenerKind::Https, version, own).await;
                stream.write_all(post.as_bytes()).await.unwrap();
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer[9..], *status.as_bytes(), "{name}");
            }
        }
    }
}

/// A browser sends a certificate for any page that asks, and says which page it was.
#[tokio::test]
async fn a_page_from_elsewhere_has_no_use_of_a_certificate() {
    let served = Served::start().await;
    let own = certificate();
    served.hub.device_with_certificate("dev1", &own.0).await;
    for (origin, expected) in [
        (None, 0),
        (Some("https://localhost:443"), 0),
        (Some("https://HUB.localhost"), 0),
        (Some("https://elsewhere.example"), 5),
        (Some("null"), 5),
    ] {
        let shown = Some((own.0.clone(), own.1.clone_key()));
        let stream = served.tls_as(ListenerKind::Https, &TLS13, shown).await;
        let mut request = "ws://localhost/$iothub/websocket"
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", "mqtt".parse().unwrap());
        if let Some(origin) = origin {
            headers.insert("origin", origin.parse().unwrap());
        }
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        socket
            .send(Message::binary(connect("dev1", None)))
            .await
            .unwrap();
        let answer = socket.next().await.unwrap().unwrap().into_data();
        assert_eq!(answer[3], expected, "{origin:?}");

        let shown = Some((own.0.clone(), own.1.clone_key()));
        let mut stream = served.tls_as(ListenerKind::Https, &TLS13, shown).await;
        let origin = origin.map_or_else(String::new, |origin| format!("Origin: {origin}\r\n"));
        let post = format!(
            "POST /devices/dev1/messages/events HTTP/1.1\r\nHost: localhost\r\n{origin}Content-Length: 0\r\n\r\n"
        );
        stream.write_all(post.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        let status = if expected == 0 { b"204" } else { b"401" };
        assert_eq!(answer[9..], *status, "{origin:?}");
    }
}
