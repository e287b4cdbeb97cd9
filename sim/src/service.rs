//! A back end that sends commands to devices and takes feedback.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_client::service::address_of;
use fieldpost_client::{ConnectionString, Service, ServiceEvent, ServiceOptions, Trust};
use fieldpost_hub::clock::Clock;
use fieldpost_model::{Ack, CloudMessage, DeviceId};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::commands::{Answer, SentCommand};
use crate::phase::{Phase, Phases};
use crate::random::Random;
use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(20);

/// The hub's word for a queue that holds as many commands as it may. The only refusal that says for
/// sure that nothing was stored.
const QUEUE_FULL: &str = "DeviceMaximumQueueDepthExceeded";

/// One back end.
pub(crate) struct SimService {
    pub(crate) name: String,
    pub(crate) connection_string: ConnectionString,
    pub(crate) devices: Vec<DeviceId>,
    pub(crate) world: Arc<World>,
    pub(crate) phases: Phases,
    pub(crate) random: Random,
    pub(crate) connections: u64,
    pub(crate) sent: u64,
}

impl SimService {
    /// Runs until the world ends.
    pub(crate) async fn run(mut self) {
        let mut phases = self.phases.clone();
        tokio::select! {
            biased;
            () = phases.until(Phase::Over) => {}
            () = async {
                loop {
                    self.connect().await;
                    let wait = self.random.within(&(Duration::ZERO..Duration::from_secs(1)));
                    sleep(wait).await;
                }
            } => {}
        }
    }

    async fn connect(&mut self) {
        let options = ServiceOptions {
            connection_string: self.connection_string.clone(),
            address: None,
            trust: Trust::Network(Arc::new(self.world.network.clone())),
            now: self.world.timer.now(),
        };
        self.connections += 1;
        let opened = timeout(PATIENCE, async {
            let mut service = Service::connect(&options)
                .await
                .map_err(|e| e.to_string())?;
            let receiving = service.receive_feedback().await;
            receiving.map_err(|e| e.to_string()).map(|()| service)
        });
        let mut waiting = HashMap::new();
        let why = match opened.await {
            Ok(Ok(mut service)) => self.serve(&mut service, &mut waiting).await,
            Ok(Err(why)) => why,
            Err(_) => "no answer".to_owned(),
        };
        let auditor = &self.world.auditor;
        auditor.note(format_args!("{} lost its connection: {why}", self.name));
        let mut unknown: Vec<String> = waiting.into_values().collect();
        unknown.sort();
        for id in unknown {
            auditor.command_answered(&id, Answer::Unknown(why.clone()));
        }
    }

    /// Sends and receives until something breaks, and says what.
    async fn serve(&mut self, service: &mut Service, waiting: &mut HashMap<u64, String>) -> String {
        let mut send_at = Instant::now();
        loop {
            let now = Instant::now();
            if self.sent < self.world.scenario.commands && now >= send_at && service.can_send() {
                send_at = now + self.random.within(&self.world.scenario.command_every);
                if let Err(why) = self.send(service, waiting) {
                    return why;
                }
            }
            let wake = if self.sent < self.world.scenario.commands && service.can_send() {
                send_at
            } else {
                now + PATIENCE
            };
            let event = tokio::select! {
                biased;
                event = service.next() => event,
                () = sleep_until(wake) => continue,
            };
            match event {
                Ok(ServiceEvent::Answered { ticket, outcome }) => {
                    let Some(id) = waiting.remove(&ticket) else {
                        return format!("an answer for ticket {ticket}, which is not open");
                    };
                    let answer = match outcome {
                        Ok(()) => Answer::Accepted,
                        Err(refused) if refused.code() == Some(QUEUE_FULL) => {
                            Answer::Refused(refused.to_string())
                        }
                        Err(refused) => Answer::Unknown(refused.to_string()),
                    };
                    self.world.auditor.command_answered(&id, answer);
                }
                Ok(ServiceEvent::Feedback(batch)) => {
                    for record in &batch.records {
                        self.world.auditor.feedback(record);
                    }
                    // Few enough that none is given back as often as the hub allows.
                    let settled = if self.random.percent(10) && self.phases.is(Phase::Load) {
                        service.abandon(&batch)
                    } else {
                        service.complete(&batch)
                    };
                    if let Err(error) = settled {
                        return error.to_string();
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    fn send(
        &mut self,
        service: &mut Service,
        waiting: &mut HashMap<u64, String>,
    ) -> Result<(), String> {
        let at = self.random.below(self.devices.len() as u64);
        let device = &self.devices[usize::try_from(at).unwrap_or(0)];
        let id = format!("{}-{}", self.name, self.sent);
        let ack = Ack::ALL[usize::try_from(self.random.below(4)).unwrap_or(0)];
        let span = self
            .random
            .within(&(Duration::from_secs(1)..Duration::from_secs(30)));
        let expires =
            (self.random.percent(30)).then(|| self.world.timer.now().saturating_add(span));
        let padding = usize::try_from(self.random.below(2000)).unwrap_or(0);
        let body = format!("{id} {}", "x".repeat(padding));
        let message = CloudMessage {
            to: address_of(device, None).into(),
            message_id: Some(id.as_str().into()),
            expires,
            ack,
            body: body.as_bytes().into(),
            ..CloudMessage::default()
        };
        let ticket = service.send(&message).map_err(|error| error.to_string())?;
        self.sent += 1;
        self.world.did_one();
        waiting.insert(ticket, id.clone());
        self.world.auditor.command_sent(SentCommand {
            id: id.clone(),
            device: device.as_str().to_owned(),
            connection: format!("{}/{}", self.name, self.connections),
            ack,
            expires,
        });
        Ok(())
    }
}
