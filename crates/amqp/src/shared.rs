//! What all sessions of a connection share: output, events, counts.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use crate::config::Config;
use crate::error::Error;
use crate::event::Event;
use crate::frame::{FrameType, put_frame};
use crate::value::Encoder;

pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) output: BytesMut,
    pub(crate) events: VecDeque<Event>,
    /// Largest frame that the peer accepts; 512 until it has told.
    pub(crate) peer_frame_size: usize,
    pub(crate) authenticated: bool,
    /// Links over all sessions, those being detached included.
    pub(crate) links: usize,
    /// Bytes of attaches that the caller has not answered.
    pub(crate) asked_bytes: usize,
    pub(crate) next_serial: u32,
    /// Bytes of messages of which frames are still to come.
    pub(crate) assembling: usize,
}

impl Shared {
    /// Writes a frame that is small by its nature.
    pub(crate) fn frame(&mut self, channel: u16, body: impl FnOnce(&mut Encoder<'_>)) {
        put_frame(&mut self.output, FrameType::Amqp, channel, body);
    }

    /// Writes a frame unless it is larger than what the peer accepts; false if it is.
    pub(crate) fn frame_that_fits(
        &mut self,
        channel: u16,
        body: impl FnOnce(&mut Encoder<'_>),
    ) -> bool {
        let start = self.output.len();
        self.frame(channel, body);
        let fits = self.output.len() - start <= self.peer_frame_size;
        if !fits {
            self.output.truncate(start);
        }
        fits
    }

    /// Writes a frame that tells an error, with less of the error where the peer's limit leaves no
    /// room for all.
    pub(crate) fn error_frame(
        &mut self,
        channel: u16,
        error: Option<&Error>,
        body: impl Fn(&mut Encoder<'_>, Option<&Error>),
    ) {
        if !self.frame_that_fits(channel, |e| body(e, error)) {
            let short = error.map(Error::shortened);
            self.frame(channel, |e| body(e, short.as_ref()));
        }
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn serial(&mut self) -> u32 {
        self.next_serial = self.next_serial.wrapping_add(1);
        self.next_serial
    }

    pub(crate) fn links_max(&self) -> usize {
        let limits = &self.config.limits;
        if self.authenticated {
            limits.links
        } else {
            limits.links_unauthenticated
        }
    }

    pub(crate) fn asked_bytes_max(&self) -> usize {
        let limits = &self.config.limits;
        if self.authenticated {
            limits.asked_bytes
        } else {
            limits.asked_bytes_unauthenticated
        }
    }

    pub(crate) fn sessions_max(&self) -> usize {
        let limits = &self.config.limits;
        if self.authenticated {
            limits.sessions
        } else {
            limits.sessions_unauthenticated
        }
    }

    pub(crate) fn frame_limit(&self) -> usize {
        let limit = if self.authenticated {
            self.config.max_frame_size
        } else {
            self.config
                .max_frame_size
                .min(self.config.limits.frame_bytes_unauthenticated)
        };
        usize::try_from(limit.max(512)).unwrap_or(usize::MAX)
    }

    pub(crate) fn output_full(&self) -> bool {
        let limits = &self.config.limits;
        let limit = if self.authenticated {
            limits.output_bytes
        } else {
            limits.output_bytes_unauthenticated.min(limits.output_bytes)
        };
        self.output.len() >= limit
    }
}
