//! The admin API of a running hub.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::http::{self, Response};
use crate::hub::HubProcess;

/// Where it is, and what opens it.
#[derive(Clone)]
pub struct Admin {
    address: SocketAddr,
    authorization: String,
}

impl Admin {
    /// That of a hub which is ready.
    ///
    /// # Errors
    /// When the hub has left no token in its data directory.
    pub fn of(hub: &HubProcess) -> Result<Self> {
        let token = std::fs::read_to_string(hub.data().join("admin-token"));
        Ok(Self {
            address: hub.at(9640),
            authorization: format!("Bearer {}", token.context("read the admin token")?.trim()),
        })
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When there is no answer in HTTP; a refusal is an answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Response> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let mut all = vec![
            ("Authorization", self.authorization.as_str()),
            ("Content-Type", "application/json"),
        ];
        all.extend_from_slice(headers);
        http::request(self.address, method, path, &all, body.as_bytes()).await
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// When there is no answer, or it is anything but 200 with JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.request("GET", path, &[], None).await?;
        ensure!(
            response.status == 200,
            "GET {path} was answered {}: {}",
            response.status,
            String::from_utf8_lossy(&response.body)
        );
        serde_json::from_slice(&response.body).with_context(|| format!("the answer to GET {path}"))
    }
}
