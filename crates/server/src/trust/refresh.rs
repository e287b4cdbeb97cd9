//! Keeps the certificate that is shown up to date while the hub runs.

use std::time::{Duration, SystemTime};

use fieldpost_gateway::TlsIdentity;
use rustls::pki_types::CertificateDer;
use tokio::signal::unix::Signal;

use super::Trust;

/// How often files and ends are looked at. Both are cheap to look at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Watches where the certificate comes from and shows a new one from the next handshake on.
pub(crate) struct Refresher {
    trust: Trust,
    identity: TlsIdentity,
    shown: Vec<CertificateDer<'static>>,
    /// The last failure logged, so that one lasting failure is one line.
    failure: Option<String>,
}

impl Refresher {
    /// The first certificate, ready to be shown.
    pub(crate) fn new(trust: Trust) -> anyhow::Result<Self> {
        let presented = trust.present(SystemTime::now())?;
        let mut refresher = Self {
            shown: presented.chain.clone(),
            identity: TlsIdentity::new(presented.chain, presented.key)?,
            trust,
            failure: None,
        };
        refresher.tell(presented.outdated);
        Ok(refresher)
    }

    /// What the listeners show.
    pub(crate) fn identity(&self) -> TlsIdentity {
        self.identity.clone()
    }

    /// Looks once a minute and whenever `hang_up` comes. Never ends; may be dropped at any await.
    pub(crate) async fn run(mut self, mut hang_up: Signal) {
        loop {
            tokio::select! {
                _ = hang_up.recv() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let failure = match self.refresh() {
            Ok(outdated) => outdated,
            Err(error) => Some(format!("{error:#}")),
        };
        self.tell(failure);
    }

    /// Logs a failure once, however long it lasts.
    fn tell(&mut self, failure: Option<String>) {
        if let Some(error) = &failure
            && self.failure != failure
        {
            tracing::error!(%error, "the certificate could not be renewed; the old one is still shown");
        }
        self.failure = failure;
    }

    /// Shows a new certificate, if there is one. Why there is none, though there should be.
    fn refresh(&mut self) -> anyhow::Result<Option<String>> {
        let presented = self.trust.present(SystemTime::now())?;
        if presented.chain == self.shown {
            return Ok(presented.outdated);
        }
        self.identity
            .replace(presented.chain.clone(), presented.key)?;
        self.shown = presented.chain;
        tracing::info!("a new certificate is shown from now on");
        Ok(presented.outdated)
    }
}
