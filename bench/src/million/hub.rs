//! The hub: a process in test mode with a store of its own on the disk of the temporary folder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fieldpost_client::token::{KeyRule, sign};
use fieldpost_client::{ConnectionString, DeviceOptions, Service, ServiceOptions};
use fieldpost_model::Timestamp;
use fieldpost_testkit::admin::Admin;
use fieldpost_testkit::hub::{HubProcess, now};
use serde_json::{Value, json};

use crate::process::{cpu_time, peak_resident_bytes, resident_bytes};
use crate::registration::{KEY, import};
use fieldpost_testkit::http::{self, Response};

/// A hub process whose clock can be moved.
pub(super) struct Hub {
    process: HubProcess,
    host: String,
    /// How far its clock was moved since it was started.
    moved: Duration,
}

/// Resident memory, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident: u64,
    /// The most since the process was started.
    pub(super) peak: u64,
}

/// How a hub ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// As by a crash: SIGKILL.
    Killed,
    /// As an operator ends it: SIGTERM.
    Stopped,
}

impl Hub {
    /// Starts a hub with a new store in `folder`.
    pub(super) async fn start(binary: &Path, folder: &Path) -> Result<Self> {
        let mut process = HubProcess::new(binary, folder);
        let host = process.at(0).ip().to_string();
        process.set("run.test_mode=true");
        process.set("listeners.http.enabled=true");
        process.set(&format!("listeners.http.address={host}"));
        process.start().await?;
        Ok(Self {
            process,
            host,
            moved: Duration::ZERO,
        })
    }

    pub(super) async fn register(
        &self,
        folder: &Path,
        names: impl Iterator<Item = String>,
    ) -> Result<()> {
        import(&self.process, folder, names).await
    }

    /// Ends the process and starts it anew. How long it was from the launch until every listener
    /// was up, to 2 ms.
    pub(super) async fn restart(&mut self, end: End) -> Result<Duration> {
        match end {
            End::Killed => self.process.kill().await?,
            End::Stopped => {
                let status = self.process.stop().await?;
                ensure!(status.success(), "the hub stopped with {status}");
            }
        }
        self.moved = Duration::ZERO;
        let launched = Instant::now();
        self.process.start().await?;
        Ok(launched.elapsed())
    }

    /// The time by the hub's clock.
    pub(super) fn now(&self) -> Timestamp {
        now().saturating_add(self.moved)
    }

    /// Moves the hub's clock ahead until it shows `until`, if it does not yet.
    pub(super) async fn advance(&mut self, until: Timestamp) -> Result<()> {
        let span = until.since(self.now());
        let body = json!({"advanceSeconds": span.as_secs_f64()});
        let response = self.admin("POST", "/api/test/clock", &[], Some(body));
        ensure!(response.await?.status == 200, "the clock was not moved");
        self.moved += span;
        Ok(())
    }

    /// Processor time that the process has used since it was started.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cpu_time(self.pid()?)
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let pid = self.pid()?;
        Ok(Memory {
            resident: resident_bytes(pid)?,
            peak: peak_resident_bytes(pid)?,
        })
    }

    fn pid(&self) -> Result<u32> {
        self.process.pid().context("the hub has ended")
    }

    /// A back end's connection, with a token that is good for an hour from `now`.
    pub(super) async fn service(&self, now: Timestamp) -> Result<Service> {
        let text = self
            .process
            .run(&["connection-string", "--policy", "service"]);
        let options = ServiceOptions {
            connection_string: text.await?.parse()?,
            address: Some(self.process.at(5671)),
            trust: self.process.trust()?,
            now,
        };
        Ok(Service::connect(&options).await?)
    }

    /// What an MQTT device needs to connect, with a token that is good for an hour from `now`.
    pub(super) fn device(&self, name: &str, now: Timestamp) -> Result<DeviceOptions> {
        Ok(DeviceOptions {
            connection_string: ConnectionString {
                host_name: self.host.clone(),
                device_id: Some(name.to_owned()),
                policy: None,
                key: Some(KEY.to_owned()),
                entity_path: None,
            },
            address: Some(self.process.at(8883)),
            trust: self.process.trust()?,
            keep_alive_s: 0,
            now,
        })
    }

    /// A token of a device for HTTP, good for an hour from `now`.
    pub(super) fn token(&self, name: &str, now: Timestamp) -> String {
        let resource = format!("{}/devices/{name}", self.host);
        let expiry = now.saturating_add(Duration::from_secs(3600));
        sign(&resource, KEY, KeyRule::Decoded, None, expiry)
    }

    /// The listener of plain HTTP for devices.
    pub(super) fn http(&self) -> SocketAddr {
        self.process.at(80)
    }

    /// How many messages wait for a device, in the registry's words.
    pub(super) async fn waiting(&self, name: &str) -> Result<u64> {
        let path = format!("/api/devices/{name}");
        let response = self.admin("GET", &path, &[], None).await?;
        let device: Value = serde_json::from_slice(&response.body)?;
        let count = device.get("cloudToDeviceMessageCount");
        count
            .and_then(Value::as_u64)
            .context("no count of messages")
    }

    /// What the admin API takes to update devices, for a task of its own.
    pub(super) fn registry(&self) -> Result<Registry> {
        Ok(Registry(Admin::of(&self.process)?))
    }

    /// The causes of all dead letters, and how many there are of each.
    pub(super) async fn dead_letters(&self) -> Result<BTreeMap<String, u64>> {
        let mut causes = BTreeMap::new();
        let mut after = 0;
        loop {
            let path = format!("/api/c2d/dead-letters?after={after}&limit=1000");
            let response = self.admin("GET", &path, &[], None).await?;
            let page: Value = serde_json::from_slice(&response.body)?;
            let letters = page.get("deadLetters").and_then(Value::as_array);
            for letter in letters.context("no list of dead letters")? {
                let cause = letter.get("cause").and_then(Value::as_str);
                *causes
                    .entry(cause.context("no cause")?.to_owned())
                    .or_default() += 1;
            }
            match page.get("continuation").and_then(Value::as_u64) {
                Some(next) => after = next,
                None => return Ok(causes),
            }
        }
    }

    pub(super) async fn metric(&self, name: &str) -> Result<u64> {
        http::metric(self.process.at(9640), name).await
    }

    async fn admin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Response> {
        Admin::of(&self.process)?
            .request(method, path, headers, body)
            .await
    }
}

/// The registry of a running hub.
#[derive(Clone)]
pub(super) struct Registry(Admin);

impl Registry {
    /// Updates a device, durably.
    pub(super) async fn update(&self, name: &str) -> Result<()> {
        let keys = json!({"primaryKey": KEY, "secondaryKey": KEY});
        let body = json!({
            "deviceId": name,
            "status": "enabled",
            "authentication": {"type": "sas", "symmetricKey": keys},
        });
        let path = format!("/api/devices/{name}");
        let any = [("If-Match", "*")];
        let response = self.0.request("PUT", &path, &any, Some(body)).await?;
        ensure!(
            response.status == 200,
            "an update was answered {}",
            response.status
        );
        Ok(())
    }
}
