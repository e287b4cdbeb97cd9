//! Real sockets and real TLS on the loopback interface.

mod certificates;

use std::sync::Arc;
use std::time::Duration;

use fieldpost_mqtt::{ClientConnection, ClientOptions, Connect};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::{Listener, ListenerKind};
use crate::testing::{TestHub, expiry, sas_token};
use crate::{Gateway, GatewayLimits, TlsIdentity};

const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

struct Served {
    hub: TestHub,
    gateway: Gateway,
    identity: TlsIdentity,
    certificate: CertificateDer<'static>,
}

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    (made.cert.der().clone(), key)
}

impl Served {
    async fn start() -> Self {
        let hub = TestHub::automatic().await;
        let (certificate, key) = certificate();
        let identity = TlsIdentity::new(vec![certificate.clone()], key).unwrap();
        let kinds = [
            ListenerKind::Mqtts,
            ListenerKind::Amqps,
            ListenerKind::Https,
            ListenerKind::Http,
        ];
        let listeners = kinds.map(|kind| Listener {
            kind,
            socket: std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap(),
        });
        let gateway = Gateway::start(
            hub.hub.clone(),
            listeners.into(),
            &identity,
            GatewayLimits::default(),
        )
        .unwrap();
        Self {
            hub,
            gateway,
            identity,
            certificate,
        }
    }

    async fn tcp(&self, kind: ListenerKind) -> TcpStream {
        let mut addresses = self.gateway.addresses().iter();
        let (_, address) = addresses.find(|(k, _)| *k == kind).unwrap();
        TcpStream::connect(address).await.unwrap()
    }

    /// As a client that was given an IP address and therefore sends no server name.
    async fn tls(
        &self,
        kind: ListenerKind,
        version: &'static SupportedProtocolVersion,
        with_certificate: bool,
    ) -> TlsStream<TcpStream> {
        let own = with_certificate.then(certificate);
        self.tls_as(kind, version, own).await
    }

    /// As a client with that certificate and key.
    async fn tls_as(
        &self,
        kind: ListenerKind,
        version: &'static SupportedProtocolVersion,
        own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            Some((own, key)) => {
                // The other way to it looks at the certificate, and takes only version 3.
                let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
                let own = CertifiedKey::new(vec![own], key);
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
            }
            None => config.with_no_client_auth(),
        };
        let name = ServerName::IpAddress(IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
        let stream = self.tcp(kind).await;
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.unwrap()
    }

    async fn mqtt_connect(&self, device: &str) -> Vec<u8> {
        let key = self.hub.device(device).await;
        let resource = format!("localhost/devices/{device}");
        let token = sas_token(&resource, &key, expiry(3600));
        let user_name = format!("localhost/{device}/?api-version=2021-04-12");
        let connect = Connect {
            client_id: device,
            clean_session: false,
            keep_alive_s: 60,
            will: None,
            user_name: Some(&user_name),
            password: Some(token.as_bytes()),
        };
        let options = ClientOptions::default();
        let client = ClientConnection::new(&connect, options, Duration::ZERO).unwrap();
        client.output().to_vec()
    }
}

#[tokio::test]
async fn mqtt_over_both_versions_of_tls_with_and_without_a_certificate() {
    let served = Served::start().await;
    let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
    for (n, version) in versions.into_iter().enumerate() {
        for with_certificate in [false, true] {
            let device = format!("dev{n}{with_certificate}");
            let mut stream = served
                .tls(ListenerKind::Mqtts, version, with_certificate)
                .await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), None);
            let connect = served.mqtt_connect(&device).await;
            stream.write_all(&connect).await.unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, CONNACK, "{device}");
        }
    }
}

#[tokio::test]
async fn mqtt_over_websocket_beside_rest_on_one_port() {
    let served = Served::start().await;
    let connect = served.mqtt_connect("dev1").await;
    for (kind, offered, session_present) in [
        (ListenerKind::Https, "MQTT", 0),
        (ListenerKind::Http, "mqtt", 1),
    ] {
        let mut request = "ws://localhost/$iothub/websocket?iothub-no-client-cert=true"
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", offered.parse().unwrap());
        let stream: Box<dyn Duplex> = match kind {
            ListenerKind::Https => Box::new(served.tls(kind, &rustls::version::TLS12, false).await),
            _ => Box::new(served.tcp(kind).await),
        };
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], offered);
        // One packet over several messages.
        for piece in connect.chunks(50) {
            let message = Message::binary(piece.to_vec());
            socket.send(message).await.unwrap();
        }
        let answer = socket.next().await.unwrap().unwrap();
        let connack = answer.into_data();
        assert_eq!(connack.as_ref(), [0x20, 2, session_present, 0]);
        socket.send(Message::text("hello")).await.unwrap();
        let farewell = socket.next().await.unwrap().unwrap();
        let Message::Close(Some(frame)) = farewell else {
            panic!("a text frame must close: {farewell:?}");
        };
        assert_eq!(u16::from(frame.code), 1003);
    }
}

#[tokio::test]
async fn amqp_offers_external_to_a_client_with_a_certificate() {
    let served = Served::start().await;
    for with_certificate in [false, true] {
        let mut stream = served
            .tls(
                ListenerKind::Amqps,
                &rustls::version::TLS13,
                with_certificate,
            )
            .await;
        let header = *b"AMQP\x03\x01\x00\x00";
        stream.write_all(&header).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(start[..8], header);
        let length = u32::from_be_bytes([start[8], start[9], start[10], start[11]]);
        let mut mechanisms = vec![0; length as usize - 4];
        stream.read_exact(&mut mechanisms).await.unwrap();
        let offered = mechanisms.windows(8).any(|name| name == b"EXTERNAL");
        assert_eq!(offered, with_certificate);
        let init = b"\0\0\0\x18\x02\x01\0\0\0\x53\x41\xc0\x0b\x01\xa3\x08EXTERNAL";
        stream.write_all(init).await.unwrap();
        let mut outcome = [0; 16];
        stream.read_exact(&mut outcome).await.unwrap();
        let code = if with_certificate { 0 } else { 1 };
        // A code is a ubyte, and this encoder's only form of it.
        assert_eq!(outcome[14..], [0x50, code], "{outcome:?}");
    }
}

#[tokio::test]
async fn tls_sessions_are_resumed_over_both_versions() {
    let served = Served::start().await;
    for (device, version) in [
        ("dev1", &rustls::version::TLS12),
        ("dev2", &rustls::version::TLS13),
    ] {
        let mut roots = RootCertStore::empty();
        roots.add(served.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let connect = served.mqtt_connect(device).await;
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let name = ServerName::try_from("localhost").unwrap();
            let stream = served.tcp(ListenerKind::Mqtts).await;
            let mut stream = connector.connect(name, stream).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
            // Tickets come with the first bytes.
            stream.write_all(&connect).await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
        }
    }
}

trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Duplex for T {}

#[tokio::test]
async fn rest_takes_chunked_bodies_on_a_connection_that_is_kept() {
    let served = Served::start().await;
    let mut stream = served
        .tls(ListenerKind::Https, &rustls::version::TLS13, false)
        .await;
    let token = served.hub.policy_token("iothubowner");
    let body = r#"{"deviceId":"dev1"}"#;
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let requests = [
        (
            "PUT",
            "transfer-encoding: chunked\r\n",
            chunked.as_str(),
            "200 OK",
        ),
        ("GET", "", "", "200 OK"),
        (
            "DELETE",
            "if-match: \"*\"\r\ncontent-length: 0\r\n",
            "",
            "204 No Content",
        ),
        ("GET", "", "", "404 Not Found"),
    ];
    for (method, headers, body, status) in requests {
        let request = format!(
            "{method} /devices/dev1?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost:443\r\n\
             Authorization: {token}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{answer}"
        );
    }
    // A WebSocket nowhere.
    let request = "GET /elsewhere HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("ErrorCode:GenericNotFound;"), "{answer}");
}

/// One answer with its body, by its length.
async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let head = loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed");
        let text = String::from_utf8(bytes.clone()).unwrap();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            break head.to_ascii_lowercase();
        }
    };
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head.len() + 4 + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed");
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let mut served = Served::start().await;
    let version = &rustls::version::TLS13;
    let shown = |stream: &TlsStream<TcpStream>| {
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        chain[0].clone().into_owned()
    };
    let old = served.tls(ListenerKind::Mqtts, version, false).await;
    assert_eq!(shown(&old), served.certificate);
    let (new, key) = certificate();
    served.identity.replace(vec![new.clone()], key).unwrap();
    served.certificate = new.clone();
    let stream = served.tls(ListenerKind::Mqtts, version, false).await;
    assert_eq!(shown(&stream), new);
    let (_, other_key) = certificate();
    assert!(served.identity.replace(vec![new], other_key).is_err());
}

#[tokio::test]
async fn a_drain_ends_every_connection() {
    let served = Served::start().await;
    let version = &rustls::version::TLS13;
    let mut device = served.tls(ListenerKind::Mqtts, version, false).await;
    let connect = served.mqtt_connect("dev1").await;
    device.write_all(&connect).await.unwrap();
    device.read_exact(&mut [0; 4]).await.unwrap();
    let mut silent = served.tls(ListenerKind::Https, version, false).await;
    // The hub's time stands still, so the limit of the handshake does not end this one.
    let mut before_tls = served.tcp(ListenerKind::Mqtts).await;
    served.gateway.drain().await;
    assert_eq!(device.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(before_tls.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_drain_waits_for_the_answer_to_a_request() {
    let served = Served::start().await;
    let mut stream = served.tcp(ListenerKind::Http).await;
    served.hub.store.documents.withhold(true);
    let token = served.hub.policy_token("registryReadWrite");
    let body = r#"{"deviceId":"dev1"}"#;
    let request = format!(
        "PUT /devices/dev1?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\n\
         Authorization: {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // What is made can be read before it is durable.
    let id = "dev1".parse().unwrap();
    let registry = served.hub.hub.registry();
    while registry.get(&id).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let drained = tokio::spawn(served.gateway.drain());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!drained.is_finished());
    served.hub.store.documents.withhold(false);
    let answer = read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    drained.await.unwrap();
}

#[tokio::test]
async fn peers_that_say_nothing_are_let_go() {
    let served = Served::start().await;
    for (kind, said) in [
        (ListenerKind::Mqtts, ""),
        (ListenerKind::Http, ""),
        (ListenerKind::Http, "GET /devices HTTP/1.1\r\nHost: loc"),
    ] {
        let mut stream = served.tcp(kind).await;
        stream.write_all(said.as_bytes()).await.unwrap();
        // When the connection is taken up cannot be seen, so time goes on until it is let go.
        let time = async {
            loop {
                tokio::task::yield_now().await;
                served.hub.clock.advance(Duration::from_millis(100));
            }
        };
        let mut byte = [0];
        tokio::select! {
            read = stream.read(&mut byte) => assert_eq!(read.unwrap_or(0), 0, "{kind}"),
            never = time => never,
        }
    }
}

/// Every refused request earned another fifteen seconds, for as long as the client liked.
#[tokio::test]
async fn refused_requests_earn_no_time() {
    let served = Served::start().await;
    let mut stream = served.tcp(ListenerKind::Http).await;
    for _ in 0..2 {
        let request = b"GET /devices?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        served.hub.clock.advance(Duration::from_millis(7500));
    }
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}
