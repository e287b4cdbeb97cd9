//! As much HTTP/1.1 as a device that only sends needs.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::connection::{Count, Dialect};
use super::content::Content;

/// A device's requests as far as they never change.
pub(crate) struct HttpLogin {
    /// The request line and the header lines, without the last one, which says how long the body is.
    pub(crate) head: Vec<u8>,
}

pub(super) struct Http {
    login: Arc<HttpLogin>,
}

impl Http {
    pub(super) fn new(login: Arc<HttpLogin>) -> Self {
        Self { login }
    }
}

/// What the answer to a message that was taken begins with.
const TAKEN: &[u8] = b"HTTP/1.1 204 ";

const HEAD_END: &[u8] = b"\r\n\r\n";

impl Dialect for Http {
    fn is_ready(&self) -> bool {
        true
    }

    fn greet(&mut self, _output: &mut Vec<u8>) {}

    fn hear(&mut self, bytes: &[u8], count: &mut Count, _output: &mut Vec<u8>) -> Result<usize> {
        let mut rest = bytes;
        let end = |bytes: &[u8]| bytes.windows(HEAD_END.len()).position(|it| it == HEAD_END);
        while let Some(end) = end(rest) {
            let (head, behind) = rest.split_at(end + HEAD_END.len());
            ensure!(
                head.starts_with(TAKEN),
                "answered with {}",
                String::from_utf8_lossy(rest)
            );
            ensure!(count.in_flight() > 0, "an answer to nothing");
            count.acknowledged += 1;
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
            output.extend_from_slice(&self.login.head);
            write!(output, "Content-Length: {}\r\n\r\n", content.bytes())
                .context("memory takes everything")?;
            let (mark, noise) = content.payload(count.sent);
            output.extend_from_slice(&mark);
            output.extend_from_slice(noise);
            count.sent += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_answers_count_and_refusals_end_the_run() {
        let login = HttpLogin {
            head: b"POST /devices/d/messages/events HTTP/1.1\r\nHost: h\r\n".to_vec(),
        };
        let mut http = Http::new(Arc::new(login));
        let (mut count, mut output) = (Count::default(), Vec::new());
        http.send(2, &Content::new(16, 0), &mut count, &mut output)
            .unwrap();
        let text = String::from_utf8_lossy(&output);
        assert_eq!(text.matches("\r\nContent-Length: 16\r\n\r\n").count(), 2);
        let answer = b"HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n";
        let heard = [answer.as_slice(), b"HTTP/1.1 204 No"].concat();
        let used = http.hear(&heard, &mut count, &mut output).unwrap();
        assert_eq!((used, count.acknowledged), (answer.len(), 1));
        let refused = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
        assert!(http.hear(refused, &mut count, &mut output).is_err());
    }
}
