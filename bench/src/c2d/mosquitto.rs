//! mosquitto, keeping everything in memory: the peer that pays for no durability.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use fieldpost_mqtt::{ClientConnection, ClientEvent, ClientOptions, Connack, Connect, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::Load;
use super::devices::Login;

/// Longest wait until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker of our own on a free port. Dropping it ends it.
pub(crate) struct Mosquitto {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Mosquitto {
    /// Starts the broker with its settings in `folder`.
    pub(crate) async fn start(binary: &Path, folder: &Path) -> Result<Self> {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let settings = folder.join("mosquitto.conf");
        let port = free.port();
        // Nothing in it holds messages back or drops them, and nothing is written to disk.
        std::fs::write(
            &settings,
            format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n\
                 max_queued_messages 0\nset_tcp_nodelay true\nlog_dest none\nuser root\n"
            ),
        )?;
        let child = Command::new(binary)
            .arg("-c")
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let listening = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            while TcpStream::connect(free).await.is_err() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, listening)
            .await
            .context("mosquitto does not listen")?;
        Ok(Self {
            child,
            address: free,
        })
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("mosquitto has ended")
    }

    pub(crate) fn login(device: &str) -> Login {
        Login {
            client_id: device.to_owned(),
            user_name: None,
            password: None,
            filter: topic(device),
        }
    }

    /// Publishes all messages at QoS 1 and returns when the last one is acknowledged.
    pub(crate) async fn command(&self, load: &Load) -> Result<()> {
        let connect = Connect {
            client_id: "commander",
            clean_session: true,
            keep_alive_s: 0,
            will: None,
            user_name: None,
            password: None,
        };
        let options = ClientOptions {
            in_flight_max: load.in_flight,
            ..ClientOptions::default()
        };
        let mut engine = ClientConnection::new(&connect, options, Duration::ZERO)?;
        let mut socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let mut input = BytesMut::new();
        let mut payload = load.payload();
        let (mut sent, mut acknowledged) = (0, 0);
        while acknowledged < load.messages {
            while sent < load.messages && engine.in_flight() < usize::from(load.in_flight) {
                let message = Message {
                    topic: &topic(load.device_of(sent)?),
                    payload: payload.numbered(sent),
                    retain: false,
                };
                engine.publish_at_least_once(message, Duration::ZERO)?;
                sent += 1;
            }
            socket.write_all_buf(&mut engine.take_output()).await?;
            let count = socket.read_buf(&mut input).await?;
            ensure!(count > 0, "mosquitto closed the commander's connection");
            let mut rest: &[u8] = &input;
            while let Some(event) = engine.next(&mut rest)? {
                match event {
                    ClientEvent::Puback { .. } => acknowledged += 1,
                    ClientEvent::Connack(Connack::Accepted { .. }) => {}
                    other => bail!("mosquitto said {other:?}"),
                }
            }
            let used = input.len() - rest.len();
            input.advance(used);
        }
        Ok(())
    }
}

fn topic(device: &str) -> String {
    format!("c2d/{device}")
}
