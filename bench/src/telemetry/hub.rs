//! The hub under load, and the null server beside it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fieldpost_client::reader::{Reader, ReaderOptions, Start};
use fieldpost_client::token::{KeyRule, sign};
use fieldpost_client::{ConnectionString, Trust};
use fieldpost_mqtt::{ClientConnection, ClientOptions, Connect};
use fieldpost_testkit::hub::{HubProcess, now};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::block_in_place;

use super::generator::{Content, Fleet, Load, Login, MqttLogin, Pace, Target, push_length};
use crate::process::cpu_time;
use crate::registration::{KEY, import};

/// Devices that fill a log.
const FILLERS: usize = 200;

/// A hub of its own, in a folder that goes with it.
pub(crate) struct Hub {
    process: HubProcess,
    folder: TempDir,
}

impl Hub {
    /// Starts a hub with a new store and so many devices.
    pub(crate) async fn start(binary: &Path, devices: usize) -> Result<Self> {
        Self::start_with(binary, devices, &[]).await
    }

    /// The same, with settings of its configuration, `key=value`.
    pub(crate) async fn start_with(
        binary: &Path,
        devices: usize,
        settings: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("fieldpost-bench-")
            .tempdir()?;
        let mut process = HubProcess::new(binary, folder.path());
        process.set("listeners.mqtt.enabled=true");
        process.set(&format!("listeners.mqtt.address={}", process.at(0).ip()));
        for setting in settings {
            process.set(setting);
        }
        process.start().await?;
        if devices > 0 {
            import(&process, folder.path(), (0..devices).map(name)).await?;
        }
        Ok(Self { process, folder })
    }

    /// Stops the hub; its store remains.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.process.stop().await?;
        Ok(())
    }

    /// Ends the hub as a crash would, and returns when its ports are free.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it anew, with its store.
    pub(crate) async fn start_again(&mut self) -> Result<()> {
        self.process.start().await
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends large messages until the event log has so many gigabytes.
    pub(crate) fn fill_log(&self, gigabytes: f64, threads: usize) -> Result<()> {
        let logins = self.logins(FILLERS, false)?;
        let load = Load {
            pace: Pace::InFlight(16),
            bytes: 4096,
            phase: 0,
            warm: Duration::ZERO,
            measured: Duration::from_millis(500),
        };
        block_in_place(|| {
            let mut fleet = Fleet::connect(&self.plain(), &logins, threads, FILLERS)?;
            while (self.log_bytes()? as f64) < gigabytes * 1e9 {
                fleet.run(&load, || cpu_time(self.pid()?))?;
            }
            Ok(())
        })
    }

    fn log_bytes(&self) -> Result<u64> {
        let sizes = self.segments()?.into_iter().map(|segment| {
            let bytes = std::fs::metadata(segment)?.len();
            anyhow::Ok(bytes)
        });
        sizes.sum()
    }

    /// The files of the event log.
    pub(crate) fn segments(&self) -> Result<Vec<PathBuf>> {
        let folder = self.process.data().join("store/log");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "segment") {
                files.push(path);
            }
        }
        Ok(files)
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.process.pid().context("the hub has ended")
    }

    pub(crate) fn plain(&self) -> Target {
        Target {
            address: self.process.at(1883),
            tls: None,
        }
    }

    /// The listener of MQTT over TLS. Every connection makes a whole handshake, none resumes.
    pub(crate) fn tls(&self) -> Result<Target> {
        self.over_tls(8883)
    }

    /// The same, where each connection resumes what an earlier one began. TLS 1.2: a ticket of that is good for
    /// all, and it is all that the device libraries of Python and Java speak.
    pub(crate) fn tls_resumed(&self) -> Result<Target> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.process.ca_file())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Target {
            address: self.process.at(8883),
            tls: Some(Arc::new(config)),
        })
    }

    /// Where metrics are.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.process.at(9640)
    }

    /// The listener of AMQP, which there is over TLS alone for devices.
    pub(crate) fn amqps(&self) -> Result<Target> {
        self.over_tls(5671)
    }

    pub(crate) fn https(&self) -> Result<Target> {
        self.over_tls(443)
    }

    fn over_tls(&self, port: u16) -> Result<Target> {
        let Trust::Tls(config) = self.process.trust()? else {
            anyhow::bail!("no TLS");
        };
        Ok(Target {
            address: self.process.at(port),
            tls: Some(without_resumption(config)),
        })
    }

    /// The name under which clients know it.
    pub(crate) fn host(&self) -> String {
        self.process.at(0).ip().to_string()
    }

    /// A device's token, good for a day.
    pub(crate) fn token(&self, device: &str) -> String {
        let resource = format!("{}/devices/{device}", self.host());
        let expiry = now().saturating_add(Duration::from_secs(24 * 3600));
        sign(&resource, KEY, KeyRule::Decoded, None, expiry)
    }

    /// What `devices` devices say of themselves: tokens of their own, and what they subscribe to if they do.
    pub(crate) fn logins(&self, devices: usize, subscribing: bool) -> Result<Vec<Login>> {
        let host = self.host();
        let login = |number| -> Result<_> {
            let device = name(number);
            let password = self.token(&device);
            let user_name = format!("{host}/{device}/?api-version=2021-04-12");
            let connect = Connect {
                client_id: &device,
                clean_session: true,
                keep_alive_s: 0,
                will: None,
                user_name: Some(&user_name),
                password: Some(password.as_bytes()),
            };
            let mut engine =
                ClientConnection::new(&connect, ClientOptions::default(), Duration::ZERO)?;
            let text = |text: &str| -> Result<Vec<u8>> {
                let length = u16::try_from(text.len())?.to_be_bytes();
                Ok([length.as_slice(), text.as_bytes()].concat())
            };
            let filter = text(&format!("devices/{device}/messages/devicebound/#"))?;
            let subscribe = subscribing.then(|| {
                let mut packet = vec![0x82];
                push_length(&mut packet, 2 + filter.len() + 1);
                packet.extend_from_slice(&[0, 1]);
                packet.extend_from_slice(&filter);
                packet.push(1);
                packet
            });
            Ok(Login::Mqtt(Arc::new(MqttLogin {
                connect: engine.take_output().to_vec(),
                topic: text(&format!("devices/{device}/messages/events/"))?,
                subscribe,
            })))
        };
        (0..devices).map(login).collect()
    }

    /// How many events the log has ever taken, by the sequence numbers of its partitions.
    pub(crate) async fn stored(&self) -> Result<u64> {
        let mut reader = self.reader().await?;
        let mut stored = 0;
        for partition in reader.partitions().await? {
            stored += reader.next_sequence(&partition).await?;
        }
        Ok(stored)
    }

    /// Reads every event back and compares with what was acknowledged: for each phase, the number of
    /// messages of each device, which must be there, once, in their order. Says how many events it read.
    pub(crate) async fn read_back(&self, acknowledged: &HashMap<u16, Vec<u64>>) -> Result<u64> {
        let owed: u64 = acknowledged.values().flatten().sum();
        let mut next: HashMap<u16, Vec<u64>> = acknowledged
            .iter()
            .map(|(phase, devices)| (*phase, vec![0; devices.len()]))
            .collect();
        let mut reader = self.reader().await?;
        for partition in reader.partitions().await? {
            reader.receive(&partition, Start::Earliest).await?;
        }
        let mut read = 0;
        while read < owed {
            let first = tokio::time::timeout(Duration::from_secs(30), reader.next());
            let first = first.await.with_context(|| {
                format!(
                    "{} of {owed} acknowledged messages are missing",
                    owed - read
                )
            })??;
            let mut event = Some(first);
            while let Some(found) = event {
                let (phase, number) = Content::read(&found.body).context("a short payload")?;
                let device = found.device_id.as_deref().unwrap_or_default();
                let place = self::number(device).context("an unknown device")?;
                let devices = next.get_mut(&phase).context("an unknown phase")?;
                let expected = devices.get_mut(place).context("an unknown device")?;
                ensure!(
                    number == *expected,
                    "{device} of phase {phase}: message {number} where {expected} belongs"
                );
                *expected += 1;
                read += 1;
                event = reader.next_ready();
            }
        }
        ensure!(next == *acknowledged, "not what was acknowledged");
        Ok(read)
    }

    /// A reader over plain TCP.
    pub(crate) async fn reader(&self) -> Result<Reader> {
        let (_, connection_string): (_, ConnectionString) =
            self.process.connection_string(None).await?;
        let options = ReaderOptions {
            connection_string,
            address: Some(self.process.at(5672)),
            trust: Trust::Plain,
            consumer_group: "$Default".to_owned(),
            now: now(),
        };
        Ok(Reader::connect(&options).await?)
    }
}

/// The null server's process. Dropping it ends it.
pub(crate) struct Null {
    child: Child,
    address: SocketAddr,
}

impl Null {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one that speaks TLS, with a certificate like a hub's, and says how to reach it.
    pub(crate) async fn start_tls(folder: &Path) -> Result<(Self, Target)> {
        Self::start_identified(folder, &[]).await
    }

    /// The same for HTTPS.
    pub(crate) async fn start_https(folder: &Path) -> Result<(Self, Target)> {
        Self::start_identified(folder, &["--http"]).await
    }

    async fn start_identified(folder: &Path, arguments: &[&str]) -> Result<(Self, Target)> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let identity = folder.join("null.pem");
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        std::fs::write(&identity, pem)?;
        let identity = identity.to_str().context("the folder's name is text")?;
        let identity = ["--identity", identity];
        let null = Self::start_with(&[&identity, arguments].concat()).await?;
        let Trust::Tls(config) = Trust::in_pem(&made.cert.pem())? else {
            anyhow::bail!("no TLS");
        };
        let target = Target {
            address: null.address,
            tls: Some(without_resumption(config)),
        };
        Ok((null, target))
    }

    async fn start_with(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("null")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("standard output")?;
        let line = BufReader::new(output).lines().next_line().await?;
        let address = line.context("the null server says nothing")?.parse()?;
        Ok(Self { child, address })
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            address: self.address,
            tls: None,
        }
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("the null server has ended")
    }

    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_time(self.pid()?)
    }
}

fn without_resumption(config: Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut config = Arc::unwrap_or_clone(config);
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The name of a device.
pub(crate) fn name(number: usize) -> String {
    format!("device-{number}")
}

/// The number in a device's name.
pub(crate) fn number(name: &str) -> Option<usize> {
    name.strip_prefix("device-")?.parse().ok()
}
