//! A real hub process on an address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::{ConnectionString, Trust};
use fieldpost_model::Timestamp;
use tokio::process::{Child, Command};

/// Longest wait for a hub to become ready or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A hub process and where its parts are.
pub struct HubProcess {
    binary: PathBuf,
    data: PathBuf,
    log_file: PathBuf,
    address: IpAddr,
    settings: Vec<String>,
    child: Option<Child>,
}

impl HubProcess {
    /// A hub, not started yet, with its data and log in `folder`.
    #[must_use]
    pub fn new(binary: &Path, folder: &Path) -> Self {
        Self::numbered(binary, &folder.join("data"), &folder.join("hub.log"), 0)
    }

    /// A hub, not started yet, with its own number among those of this process that run at a time.
    ///
    /// SDKs have their ports compiled in, so every hub needs an address of its own: it is made from
    /// this process's id and the number.
    #[must_use]
    pub fn numbered(binary: &Path, data: &Path, log_file: &Path, number: u8) -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        Self {
            binary: binary.to_owned(),
            data: data.to_owned(),
            log_file: log_file.to_owned(),
            address: Ipv4Addr::new(127, 192 | (high & 63), low, number.saturating_add(1)).into(),
            settings: Vec::new(),
            child: None,
        }
    }

    /// Has the hub started with a setting of its configuration, `key=value`.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// The id of the hub's process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// Where `listener` of this hub is.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// The CA certificate's file.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.data().join("ca.pem")
    }

    /// Trusts this hub's CA and no other.
    ///
    /// # Errors
    /// Before the first start.
    pub fn trust(&self) -> Result<Trust> {
        let pem = std::fs::read_to_string(self.ca_file()).context("read the CA certificate")?;
        Ok(Trust::in_pem(&pem)?)
    }

    /// Starts the hub and returns when it is ready.
    ///
    /// # Errors
    /// When it ends before it is ready, or takes too long; with its log.
    pub async fn start(&mut self) -> Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log_file)?;
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--data").arg(self.data());
        command.arg("--host-name").arg(self.address.to_string());
        for listener in ["mqtts", "amqps", "https", "amqp", "admin"] {
            command
                .arg("--set")
                .arg(format!("listeners.{listener}.address={}", self.address));
        }
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        let ready = async {
            // Short, because how long a start takes is measured too.
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            // A stale endpoints.json is deleted before anything else; a new one is written when
            // every listener is up.
            loop {
                tick.tick().await;
                if self.endpoints_are_of(child.id()) {
                    return Ok(());
                }
                if let Some(status) = child.try_wait()? {
                    bail!("the hub ended with {status}");
                }
            }
        };
        let result = tokio::time::timeout(PATIENCE, ready).await;
        if let Err(error) = result
            .context("the hub is not ready")
            .and_then(|ready| ready)
        {
            bail!("{error:#}\n{}", self.log());
        }
        self.child = Some(child);
        Ok(())
    }

    /// Whether `endpoints.json` was written after the process was started and a listener answers.
    fn endpoints_are_of(&self, pid: Option<u32>) -> bool {
        pid.is_some()
            && self.data().join("endpoints.json").exists()
            && std::net::TcpStream::connect(self.at(8883)).is_ok()
    }

    /// Ends the hub as a crash would, at once.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the hub is not running")?;
        child.kill().await.context("kill the hub")
    }

    /// Stops the hub as an operator would.
    ///
    /// # Errors
    /// When it is not running, or does not stop within its ten seconds.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the hub is not running")?;
        let pid = child.id().context("the hub has ended")?;
        let status = Command::new("kill").arg(pid.to_string()).status().await?;
        ensure!(status.success(), "cannot signal the hub");
        tokio::time::timeout(PATIENCE, child.wait())
            .await
            .context("the hub does not stop")?
            .map_err(Into::into)
    }

    /// Runs a command of the binary on this hub's data and returns its standard output.
    ///
    /// # Errors
    /// When it fails; with its standard error.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .arg("--data")
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "{arguments:?} failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The connection string of a device, or of the built-in endpoint for `None`.
    ///
    /// # Errors
    /// When the hub does not give one.
    pub async fn connection_string(
        &self,
        device: Option<&str>,
    ) -> Result<(String, ConnectionString)> {
        let text = match device {
            Some(device) => self.run(&["connection-string", "--device", device]).await?,
            None => self.run(&["connection-string", "--event-hub"]).await?,
        };
        let parsed = text.parse()?;
        Ok((text, parsed))
    }

    /// What the hub has printed and logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }
}

/// The present.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
