//! The end of all messages at one instant, with other work beside.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fieldpost_client::service::FeedbackStatus;
use tokio::time::Instant;

use super::beside::{Beside, Sample, Work};
use super::hub::Hub;
use super::messages::{Messages, Owed, PATIENCE, name, sample};
use super::{CHECKED, note};

/// The hub's own counts, since it was started.
const EXPIRED: &str = r#"fieldpost_queue_messages_settled_total{queue="device",cause="expired"}"#;
const DEAD_LETTERS: &str = "fieldpost_dead_letters";

/// How often the first of them is asked for, before the instant as after it.
const LOOK: Duration = Duration::from_millis(100);

/// Time to connect before the clock is put close to the instant.
const CONNECTING: Duration = Duration::from_secs(60);

/// The other work goes on for so long before it is measured.
const WARMING_UP: Duration = Duration::from_secs(3);

/// The last move of the clock is no longer than about this: nobody's other time-outs pass with it.
const LAST_MOVE: Duration = Duration::from_secs(1);

/// What the end of all messages came to.
pub(super) struct Figures {
    /// From the instant until the hub had ended the last message, durably.
    pub(super) took: Duration,
    pub(super) ended: u64,
    /// Processor time of the hub for one of them, without that of the other work, as measured before.
    pub(super) cpu: Duration,
    /// Share of one processor that the other work takes of the hub.
    pub(super) beside_cpu: f64,
    /// Dead letters afterwards whose cause is expiry.
    pub(super) dead_letters: u64,
    /// Feedback owed, and how long after the instant the last of it came.
    pub(super) feedback: usize,
    pub(super) feedback_took: Duration,
    pub(super) feedback_again: u64,
    /// How long other work is compared: before the instant, and from it on.
    pub(super) compared: Duration,
    pub(super) beside: Vec<Compared>,
}

/// Latencies of one kind of other work.
pub(super) struct Compared {
    pub(super) work: Work,
    pub(super) before: Latency,
    /// From the instant on, for as long as before it.
    pub(super) during: Latency,
    /// The worst until all messages were gone.
    pub(super) worst: Duration,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Latency {
    pub(super) count: usize,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) max: Duration,
}

/// Ends all messages but those that were fetched. Gives what was lost as well.
pub(super) async fn run(
    hub: &mut Hub,
    messages: &Messages,
    fetched: &BTreeSet<u64>,
    baseline: Duration,
) -> Result<(Figures, Vec<String>)> {
    let instant = messages.expires;
    let before = |span: Duration| instant.saturating_sub(span);
    hub.advance(before(CONNECTING + WARMING_UP + baseline))
        .await?;
    let beside = Beside::connect(hub, instant).await?;
    let mut service = hub.service(instant).await?;
    service.receive_feedback().await?;
    hub.advance(before(LAST_MOVE + WARMING_UP + baseline))
        .await?;

    let left = (0..messages.count).filter(|number| !fetched.contains(number));
    let owed = Owed::of(left, FeedbackStatus::Expired);
    let feedback = owed.len();
    let hearing = tokio::spawn(async move {
        owed.hear(&mut service, PATIENCE + WARMING_UP + baseline)
            .await
    });
    let mut working = beside.start();
    let waiting = async |span| {
        let end = Instant::now() + span;
        while Instant::now() < end {
            tokio::time::sleep(LOOK).await;
            ensure!(
                hub.metric(EXPIRED).await? == 0,
                "messages end before their time"
            );
        }
        Ok(())
    };
    working.until(waiting(WARMING_UP)).await?;
    note("measuring other work as it is without the end of so many messages");
    let (began, cpu) = (Instant::now(), hub.cpu()?);
    working.until(waiting(baseline)).await?;
    let beside_cpu = hub
        .cpu()?
        .saturating_sub(cpu)
        .div_f64(began.elapsed().as_secs_f64());

    note("the instant");
    let expected = messages.count - fetched.len() as u64;
    let (struck, cpu) = (Instant::now(), hub.cpu()?);
    working.until(hub.advance(instant)).await?;
    let gone = async {
        let (mut last, mut ended) = (Instant::now(), 0);
        while ended < expected {
            tokio::time::sleep(LOOK).await;
            let now = hub.metric(EXPIRED).await?;
            if now > ended {
                (last, ended) = (Instant::now(), now);
            }
            if last.elapsed() > PATIENCE {
                break;
            }
        }
        Ok((last, ended))
    };
    let (last, ended) = working.until(gone).await?;
    let took = last.duration_since(struck);
    let cpu = hub.cpu()?.saturating_sub(cpu);
    let cpu = cpu.saturating_sub(beside_cpu.mul_f64(struck.elapsed().as_secs_f64()));
    note("all messages have ended");
    let samples = working.finish().await?;
    let heard = hearing.await.context("the task that hears feedback")??;

    let mut lost = heard.lost;
    if ended != expected {
        lost.push(format!("{ended} messages ended, not {expected}"));
    }
    for number in sample(messages.count, CHECKED, fetched) {
        let count = hub.waiting(&name(number)).await?;
        if count != 0 {
            lost.push(format!(
                "{count} messages are still counted for {}",
                name(number)
            ));
        }
    }
    let dead_letters = dead_letters(hub, expected, &mut lost).await?;
    let compared = baseline.min(took);
    let figures = Figures {
        took,
        ended,
        cpu: cpu.div_f64(ended.max(1) as f64),
        beside_cpu: beside_cpu.as_secs_f64(),
        dead_letters,
        feedback,
        feedback_took: heard.last.saturating_duration_since(struck.into_std()),
        feedback_again: heard.again,
        compared,
        beside: compare(&samples, struck, compared, took),
    };
    Ok((figures, lost))
}

/// How many there are, by the list as by the count, and all of them because of expiry.
async fn dead_letters(hub: &Hub, expected: u64, lost: &mut Vec<String>) -> Result<u64> {
    let counted = hub.metric(DEAD_LETTERS).await?;
    let causes = hub.dead_letters().await?;
    let expired = causes.get("Expired").copied().unwrap_or_default();
    if causes.len() > 1 || expired != expected || counted != expected {
        lost.push(format!(
            "dead letters: {counted} counted, {causes:?} listed, {expected} expected"
        ));
    }
    Ok(expired)
}

fn compare(samples: &[Sample], struck: Instant, span: Duration, whole: Duration) -> Vec<Compared> {
    let latency = |work, from: Instant, span| {
        let is_meant = |sample: &&Sample| {
            sample.work == work && sample.due >= from && sample.due < from + span
        };
        let meant = samples.iter().filter(is_meant);
        Latency::of(meant.map(|sample| sample.took).collect())
    };
    let compared = |work| Compared {
        work,
        before: latency(work, struck - span, span),
        during: latency(work, struck, span),
        worst: latency(work, struck, whole).max,
    };
    Work::ALL.into_iter().map(compared).collect()
}

impl Latency {
    fn of(mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let count = latencies.len();
        let at = |hundredths: usize| {
            let place = (count * hundredths).div_ceil(100).saturating_sub(1);
            latencies.get(place).copied().unwrap_or_default()
        };
        Self {
            count,
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_were_seen() {
        let check = |count: u64, p50, p99, max| {
            // Backwards, for they come in any order.
            let latencies = (1..=count).rev().map(Duration::from_millis).collect();
            let latency = Latency::of(latencies);
            let millis = [latency.p50, latency.p99, latency.max].map(|span| span.as_millis());
            assert_eq!(millis, [p50, p99, max], "of {count}");
        };
        check(0, 0, 0, 0);
        check(1, 1, 1, 1);
        check(2, 1, 2, 2);
        check(100, 50, 99, 100);
        check(1000, 500, 990, 1000);
    }

    #[test]
    fn work_counts_for_the_span_in_which_it_was_due() {
        let second = Duration::from_secs(1);
        let struck = Instant::now() + 10 * second;
        let sample = |due, took_s: u32| Sample {
            work: Work::Telemetry,
            due,
            took: took_s * second,
        };
        let samples = [
            sample(struck - 3 * second, 9),
            sample(struck - 2 * second, 1),
            // Due before the instant and done behind it.
            sample(struck - second / 2, 5),
            sample(struck, 2),
            sample(struck + second, 3),
            sample(struck + 2 * second, 7),
            sample(struck + 4 * second, 8),
        ];
        let compared = compare(&samples, struck, 2 * second, 4 * second);
        let telemetry = compared.iter().find(|of| of.work == Work::Telemetry);
        let telemetry = telemetry.expect("every kind of work is compared");
        assert_eq!(
            (telemetry.before.count, telemetry.before.max),
            (2, 5 * second)
        );
        assert_eq!(
            (telemetry.during.count, telemetry.during.max),
            (2, 3 * second)
        );
        assert_eq!(telemetry.worst, 7 * second);
    }
}
