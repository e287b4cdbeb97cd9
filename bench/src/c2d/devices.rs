//! Many devices that take messages over MQTT, QoS 1, in sessions that persist.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use fieldpost_mqtt::{ClientConnection, ClientEvent, ClientOptions, Connack, Connect, Qos};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections opened at a time.
const OPENED_AT_ONCE: usize = 64;

/// Who a device is, in the words of its broker.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) client_id: String,
    pub(crate) user_name: Option<String>,
    pub(crate) password: Option<String>,
    /// What it subscribes to.
    pub(crate) filter: String,
}

/// Which messages have come, and how often.
///
/// A message's payload begins with its number, eight bytes, little-endian.
pub(crate) struct Tally {
    seen: Vec<AtomicU8>,
    different: AtomicU64,
    again: AtomicU64,
    target: u64,
    reached: watch::Sender<bool>,
}

impl Tally {
    pub(crate) fn of(messages: u64) -> Arc<Self> {
        let count = usize::try_from(messages).unwrap_or(usize::MAX);
        Arc::new(Self {
            seen: (0..count).map(|_| AtomicU8::new(0)).collect(),
            different: AtomicU64::new(0),
            again: AtomicU64::new(0),
            target: messages,
            reached: watch::Sender::new(false),
        })
    }

    /// Returns when every message has come.
    pub(crate) async fn complete(&self) {
        let mut reached = self.reached.subscribe();
        // The sender is this very object.
        let _ = reached.wait_for(|reached| *reached).await;
    }

    /// How many have come, and how many of them more than once.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        (
            self.different.load(Ordering::Relaxed),
            self.again.load(Ordering::Relaxed),
        )
    }

    fn count(&self, payload: &[u8]) -> Result<()> {
        let number = payload
            .first_chunk()
            .context("a payload without a number")?;
        let number = u64::from_le_bytes(*number);
        let place = usize::try_from(number)?;
        let seen = self.seen.get(place).context("a number that nobody sent")?;
        if seen.fetch_add(1, Ordering::Relaxed) > 0 {
            self.again.fetch_add(1, Ordering::Relaxed);
        } else if self.different.fetch_add(1, Ordering::Relaxed) + 1 == self.target {
            self.reached.send_replace(true);
        }
        Ok(())
    }
}

/// Connected devices. Dropping them cuts their connections; their sessions remain.
pub(crate) struct Devices(JoinSet<Result<()>>);

impl Devices {
    /// Connects and subscribes all of them, and returns when the last SUBACK has come.
    pub(crate) async fn connect(
        address: SocketAddr,
        logins: &[Login],
        tally: &Arc<Tally>,
    ) -> Result<Self> {
        let opened: Vec<Device> = stream::iter(logins)
            .map(|login| Device::open(address, login, Arc::clone(tally)))
            .buffer_unordered(OPENED_AT_ONCE)
            .try_collect()
            .await?;
        let mut tasks = JoinSet::new();
        for device in opened {
            tasks.spawn(device.run());
        }
        Ok(Self(tasks))
    }

    /// Returns when `wanted` does, or with the error of the first device that failed.
    pub(crate) async fn until(&mut self, wanted: impl Future<Output = ()>) -> Result<()> {
        tokio::select! {
            () = wanted => Ok(()),
            Some(ended) = self.0.join_next() => {
                ended.context("a device's task")??;
                bail!("a device ended by itself")
            }
        }
    }
}

struct Device {
    socket: TcpStream,
    engine: ClientConnection,
    input: BytesMut,
    tally: Arc<Tally>,
}

impl Device {
    async fn open(address: SocketAddr, login: &Login, tally: Arc<Tally>) -> Result<Self> {
        let connect = Connect {
            client_id: &login.client_id,
            clean_session: false,
            keep_alive_s: 0,
            will: None,
            user_name: login.user_name.as_deref(),
            password: login.password.as_deref().map(str::as_bytes),
        };
        let engine = ClientConnection::new(&connect, ClientOptions::default(), Duration::ZERO)?;
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut device = Self {
            socket,
            engine,
            input: BytesMut::new(),
            tally,
        };
        let filter = [(login.filter.as_str(), Qos::AtLeastOnce)];
        device.engine.subscribe(&filter, Duration::ZERO)?;
        while !device.exchange().await? {}
        Ok(device)
    }

    async fn run(mut self) -> Result<()> {
        loop {
            self.exchange().await?;
        }
    }

    /// Writes what is to be written and works off one read. Whether a SUBACK was in it.
    async fn exchange(&mut self) -> Result<bool> {
        let mut output = self.engine.take_output();
        self.socket.write_all_buf(&mut output).await?;
        self.input.reserve(4096);
        let count = self.socket.read_buf(&mut self.input).await?;
        ensure!(count > 0, "the broker closed a device's connection");
        let mut subscribed = false;
        let mut rest: &[u8] = &self.input;
        let mut to_acknowledge = Vec::new();
        while let Some(event) = self.engine.next(&mut rest)? {
            match event {
                ClientEvent::Connack(Connack::Accepted { .. }) => {}
                ClientEvent::Connack(refused) => bail!("a device was refused: {refused:?}"),
                ClientEvent::Suback(_) => subscribed = true,
                ClientEvent::Publish(publish) => {
                    self.tally.count(publish.payload)?;
                    to_acknowledge.extend(publish.packet_id);
                }
                ClientEvent::Puback { .. }
                | ClientEvent::Unsuback { .. }
                | ClientEvent::Pingresp => {}
            }
        }
        let used = self.input.len() - rest.len();
        self.input.advance(used);
        for packet_id in to_acknowledge {
            self.engine.acknowledge(packet_id, Duration::ZERO)?;
        }
        Ok(subscribed)
    }
}
