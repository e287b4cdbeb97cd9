//! As much MQTT as a device that only sends needs.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::connection::{Count, Dialect};
use super::content::Content;

/// Who a device is, and its packets as far as they never change.
pub(crate) struct MqttLogin {
    /// The CONNECT packet.
    pub(crate) connect: Vec<u8>,
    /// The topic that it sends to, behind its length.
    pub(crate) topic: Vec<u8>,
    /// A SUBSCRIBE packet, where it shall subscribe.
    pub(crate) subscribe: Option<Vec<u8>>,
}

/// Packet ids go from 1 to this and begin anew.
const PACKET_IDS: u64 = 65_535;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Subscribing,
    Ready,
}

pub(super) struct Mqtt {
    state: State,
    login: Arc<MqttLogin>,
}

impl Mqtt {
    pub(super) fn new(login: Arc<MqttLogin>) -> Self {
        Self {
            state: State::Greeting,
            login,
        }
    }

    fn greeted(&mut self, output: &mut Vec<u8>) {
        match &self.login.subscribe {
            None => self.state = State::Ready,
            Some(packet) => {
                output.extend_from_slice(packet);
                self.state = State::Subscribing;
            }
        }
    }
}

impl Dialect for Mqtt {
    fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    fn greet(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.login.connect);
    }

    fn hear(&mut self, bytes: &[u8], count: &mut Count, output: &mut Vec<u8>) -> Result<usize> {
        let mut rest = bytes;
        while let &[first, length, ref behind @ ..] = rest {
            let Some((body, behind)) = behind.split_at_checked(usize::from(length)) else {
                break;
            };
            match (first, body) {
                (0x40, &[high, low]) => {
                    let id = u16::from_be_bytes([high, low]);
                    ensure!(count.in_flight() > 0, "a PUBACK for nothing");
                    ensure!(
                        id == packet_id(count.acknowledged),
                        "a PUBACK out of its order"
                    );
                    count.acknowledged += 1;
                }
                (0x20, &[_, 0]) => self.greeted(output),
                (0x20, &[_, code]) => bail!("refused with CONNACK code {code}"),
                (0x90, &[_, _, code]) => {
                    ensure!(code < 3, "refused with SUBACK code {code}");
                    self.state = State::Ready;
                }
                _ => bail!("an answer that begins with {first:#x}"),
            }
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    fn send(
        &mut self,
        messages: u64,
        content: &Content,
        count: &mut Count,
        output: &mut Vec<u8>,
    ) -> Result<()> {
        for _ in 0..messages {
            publish(content, &self.login.topic, count.sent, output);
            count.sent += 1;
        }
        Ok(())
    }
}

fn publish(content: &Content, topic: &[u8], number: u64, output: &mut Vec<u8>) {
    output.push(0x32);
    push_length(output, topic.len() + 2 + content.bytes());
    output.extend_from_slice(topic);
    output.extend_from_slice(&packet_id(number).to_be_bytes());
    let (mark, noise) = content.payload(number);
    output.extend_from_slice(&mark);
    output.extend_from_slice(noise);
}

fn packet_id(number: u64) -> u16 {
    u16::try_from(number % PACKET_IDS + 1).unwrap_or(1)
}

/// Appends a packet's remaining length.
pub(crate) fn push_length(output: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = u8::try_from(length & 127).unwrap_or(0);
        length >>= 7;
        if length == 0 {
            return output.push(low);
        }
        output.push(low | 128);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_phase_and_number_and_fills_its_length() {
        let content = Content::new(256, 3);
        let mut output = Vec::new();
        publish(&content, &[0, 1, b't'], 65_535, &mut output);
        assert_eq!(output[..3], [0x32, 0x85, 2]);
        assert_eq!(output[3..8], [0, 1, b't', 0, 1]);
        assert_eq!(output.len(), 3 + 3 + 2 + 256);
        assert_eq!(Content::read(&output[8..]), Some((3, 65_535)));
        assert_eq!(Content::read(&[1, 2]), None);
    }
}
