use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::transport::Trust;

/// A device and the hub's end of its connection.
async fn connected(credential: &str) -> (HttpsDevice, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = DeviceOptions {
        connection_string: format!("HostName=h;DeviceId=d#1;{credential}")
            .parse()
            .unwrap(),
        address: Some(listener.local_addr().unwrap()),
        trust: Trust::Plain,
        keep_alive_s: 0,
        now: fieldpost_model::Timestamp::UNIX_EPOCH,
    };
    let (device, accepted) = tokio::join!(HttpsDevice::connect(&options), listener.accept());
    (device.unwrap(), accepted.unwrap().0)
}

/// What the device asked for, and so that it is whole its last bytes.
async fn asked(hub: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut bytes = [0; 1024];
        let count = hub.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the device is gone after {text:?}");
        text.push_str(str::from_utf8(&bytes[..count]).unwrap());
    }
    text
}

#[tokio::test]
async fn messages_are_sent_on_one_connection_and_acknowledged_one_by_one() {
    let (mut device, mut hub) = connected("SharedAccessKey=k").await;
    for body in ["first", "second"] {
        let (sent, ()) = tokio::join!(device.send(body.as_bytes()), async {
            let request = asked(&mut hub, body).await;
            let line = "POST /devices/d%231/messages/events?api-version=2020-03-13 HTTP/1.1\r\n";
            assert!(request.starts_with(line), "{request}");
            assert!(request.contains("\r\nAuthorization: SharedAccessSignature sr=h%2Fdevices"));
            assert!(request.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
            // It comes in pieces.
            for piece in ["HTTP/1.1 204 No ", "Content\r\ndate: now\r\n\r\n"] {
                hub.write_all(piece.as_bytes()).await.unwrap();
            }
        });
        sent.unwrap();
    }
    let (refused, ()) = tokio::join!(device.send(b"third"), async {
        asked(&mut hub, "third").await;
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nlate";
        hub.write_all(answer).await.unwrap();
    });
    assert!(matches!(refused, Err(HttpsError::Refused(503, why)) if why == "late"));
}

#[tokio::test]
async fn a_device_with_a_certificate_shows_no_token_and_settles_what_it_fetched() {
    let (mut device, mut hub) = connected("x509=true").await;
    let (got, ()) = tokio::join!(device.receive(), async {
        let request = asked(&mut hub, "\r\n\r\n").await;
        assert!(request.starts_with("GET /devices/d%231/messages/deviceBound?"));
        assert!(!request.contains("Authorization"));
        let answer = b"HTTP/1.1 200 OK\r\netag: \"lock-1\"\r\ncontent-length: 4\r\n\r\nbody";
        hub.write_all(answer).await.unwrap();
    });
    let command = got.unwrap().unwrap();
    assert_eq!(command.payload, "body");
    let bound = "/devices/d%231/messages/deviceBound/lock-1";
    for (how, line) in [
        ("complete", format!("DELETE {bound}?{API} HTTP/1.1\r\n")),
        (
            "reject",
            format!("DELETE {bound}?{API}&reject HTTP/1.1\r\n"),
        ),
        (
            "abandon",
            format!("POST {bound}/abandon?{API} HTTP/1.1\r\n"),
        ),
    ] {
        let settle = async {
            match how {
                "complete" => device.complete_command(&command).await,
                "reject" => device.reject_command(&command).await,
                _ => device.abandon_command(&command).await,
            }
        };
        let (settled, ()) = tokio::join!(settle, async {
            let request = asked(&mut hub, "\r\n\r\n").await;
            assert!(request.starts_with(&line), "{request}");
            hub.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
        });
        settled.unwrap();
    }
    let (nothing, ()) = tokio::join!(device.receive(), async {
        asked(&mut hub, "\r\n\r\n").await;
        hub.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
    });
    assert_eq!(nothing.unwrap(), None);
}

#[test]
fn an_answer_is_taken_when_it_is_whole_and_not_when_it_has_no_bound() {
    let take = |text: &str| take_answer(&mut BytesMut::from(text));
    assert!(matches!(take("HTTP/1.1 200 OK\r\nEtag: x\r\n"), Ok(None)));
    assert!(matches!(
        take("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1"),
        Ok(None)
    ));
    for wrong in [
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "SSH-2.0\r\n\r\n",
        &"x".repeat(HEAD_BYTES_MAX + 1),
    ] {
        assert!(matches!(take(wrong), Err(HttpsError::Protocol(_))));
    }
    let mut two =
        BytesMut::from("HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1");
    assert_eq!(take_answer(&mut two).unwrap().unwrap().status, 204);
    assert_eq!(take_answer(&mut two).unwrap().unwrap().body, "1");
}
