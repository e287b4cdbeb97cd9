//! Protocol headers, the SASL layer, and `open`.

use std::time::Duration;

use super::{Connection, HEARTBEAT_MIN, Heartbeat, Phase};
use crate::error::{Error, Fatal, Misuse, condition};
use crate::event::Event;
use crate::frame::{AMQP_HEADER, FrameType, SASL_HEADER, put_frame};
use crate::performative::Open;
use crate::sasl::{SaslCode, SaslFrame, SaslInit, SaslMechanisms, SaslOutcome, Secret};
use crate::value::{Encoder, Symbol};

impl Connection {
    /// Server: answers the client's [`Event::SaslInit`]. With another code than `Ok` the
    /// connection is over once the output is written.
    ///
    /// # Errors
    /// [`Misuse::WrongState`] when no answer is due.
    pub fn sasl_outcome(&mut self, code: SaslCode) -> Result<(), Misuse> {
        if !matches!(self.phase, Phase::ServerDecision) {
            return Err(Misuse::WrongState);
        }
        self.sasl_frame(|e| SaslOutcome { code }.encode(e));
        if code == SaslCode::Ok {
            self.phase = Phase::ServerHeaderAfterSasl;
        } else {
            self.finish(None);
        }
        Ok(())
    }

    pub(super) fn on_protocol_header(&mut self, header: [u8; 8]) -> Result<(), Fatal> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::ServerHeader { mechanisms }
                if header == SASL_HEADER && !mechanisms.is_empty() =>
            {
                self.write_protocol_header(SASL_HEADER);
                let mechanisms = SaslMechanisms {
                    mechanisms: mechanisms.iter().map(|name| Symbol::from(*name)).collect(),
                };
                self.sasl_frame(|e| mechanisms.encode(e));
                self.phase = Phase::ServerInit;
            }
            Phase::ServerHeader { .. } | Phase::ServerHeaderAfterSasl if header == AMQP_HEADER => {
                self.write_protocol_header(AMQP_HEADER);
                self.phase = Phase::ServerOpen;
            }
            Phase::ServerHeader { mechanisms } if !mechanisms.is_empty() => {
                self.write_protocol_header(SASL_HEADER);
                return Err(Fatal::UnsupportedHeader(header));
            }
            Phase::ServerHeader { .. } | Phase::ServerHeaderAfterSasl => {
                self.write_protocol_header(AMQP_HEADER);
                return Err(Fatal::UnsupportedHeader(header));
            }
            Phase::ClientSaslHeader(sasl) if header == SASL_HEADER => {
                self.phase = Phase::ClientMechanisms(sasl);
            }
            Phase::ClientHeader if header == AMQP_HEADER => self.phase = Phase::ClientOpen,
            _ => return Err(Fatal::UnsupportedHeader(header)),
        }
        Ok(())
    }

    pub(super) fn on_sasl_frame(&mut self, body: &[u8]) -> Result<(), Fatal> {
        let frame = match SaslFrame::decode(body) {
            Ok(frame) => frame,
            Err(error) => {
                return Err(self.fail(Error::new(condition::DECODE_ERROR, error.to_string())));
            }
        };
        match (std::mem::replace(&mut self.phase, Phase::Closed), frame) {
            (Phase::ServerInit, SaslFrame::Init(init)) => {
                self.phase = Phase::ServerDecision;
                self.shared.emit(Event::SaslInit(Box::new(init)));
            }
            (Phase::ClientMechanisms(sasl), SaslFrame::Mechanisms(offer)) => {
                if !offer.mechanisms.contains(&sasl.mechanism) {
                    return Err(Fatal::MechanismNotOffered(sasl.mechanism));
                }
                let init = SaslInit {
                    mechanism: sasl.mechanism,
                    initial_response: sasl.initial_response.map(Secret),
                    hostname: self.shared.config.hostname.clone(),
                };
                self.sasl_frame(|e| init.encode(e));
                self.phase = Phase::ClientOutcome;
            }
            (Phase::ClientOutcome, SaslFrame::Outcome(outcome)) => match outcome.code {
                SaslCode::Ok => self.start_client(),
                code => return Err(Fatal::Authentication(code)),
            },
            _ => {
                return Err(self.fail(Error::new(
                    condition::FRAMING_ERROR,
                    "this SASL frame does not belong here",
                )));
            }
        }
        Ok(())
    }

    pub(super) fn on_open(&mut self, open: Open, now: Duration) {
        if matches!(self.phase, Phase::ServerOpen) {
            self.write_open();
        }
        self.phase = Phase::Open;
        self.shared.peer_frame_size =
            usize::try_from(open.max_frame_size.max(512)).unwrap_or(usize::MAX);
        self.peer_channel_max = open.channel_max;
        if let Some(silence) = open.idle_time_out.filter(|ms| *ms > 0) {
            // Less than half, as the peer may measure generously or not.
            let every = Duration::from_millis(silence.into()) * 2 / 5;
            let every = every.max(HEARTBEAT_MIN);
            self.heartbeat = Some(Heartbeat {
                every,
                next: now + every,
            });
        }
        self.shared.emit(Event::Opened(Box::new(open)));
    }

    pub(super) fn write_open(&mut self) {
        let config = &self.shared.config;
        let open = Open {
            container_id: config.container_id.clone(),
            hostname: config.hostname.clone(),
            max_frame_size: config.max_frame_size,
            channel_max: config.channel_max,
            idle_time_out: config
                .idle_time_out
                .map(|silence| u32::try_from(silence.as_millis()).unwrap_or(u32::MAX)),
            properties: Some(config.properties.clone()).filter(|map| !map.is_empty()),
            ..Open::default()
        };
        self.shared.frame(0, |e| open.encode(e));
    }

    fn sasl_frame(&mut self, body: impl FnOnce(&mut Encoder<'_>)) {
        put_frame(&mut self.shared.output, FrameType::Sasl, 0, body);
    }
}
