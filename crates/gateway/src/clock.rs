//! Waiting by the hub's timer instead of the runtime's.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fieldpost_hub::clock::{Sleep, Timer};

/// A wake-up call whose time moves often, as that of a keep-alive does.
///
/// The timer is asked again only when an earlier call has come, so that moving the time further
/// into the future, as every packet does, costs nothing.
#[derive(Default)]
pub(crate) struct Alarm {
    armed: Option<(Duration, Sleep)>,
}

impl Alarm {
    /// Ready when the monotonic time `due` has come; never without one. The timer is the same at every
    /// call.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        timer: &Arc<dyn Timer>,
        due: Option<Duration>,
    ) -> Poll<()> {
        self.poll_at(cx, timer, timer.monotonic(), due)
    }

    /// The same for a caller who has just looked at the clock.
    pub(crate) fn poll_at(
        &mut self,
        cx: &mut Context<'_>,
        timer: &Arc<dyn Timer>,
        mut now: Duration,
        due: Option<Duration>,
    ) -> Poll<()> {
        let Some(due) = due else {
            return Poll::Pending;
        };
        loop {
            if now >= due {
                return Poll::Ready(());
            }
            if self.armed.as_ref().is_none_or(|(at, _)| *at > due) {
                self.armed = Some((due, timer.sleep_until(due)));
            }
            let Some((_, sleep)) = &mut self.armed else {
                return Poll::Pending;
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            now = timer.monotonic();
        }
    }
}

/// Runs `work` for at most `limit`; `None` when the time was over first.
///
/// `work` is dropped at whatever await it stands then.
pub(crate) async fn within<F: Future>(
    timer: &Arc<dyn Timer>,
    limit: Duration,
    work: F,
) -> Option<F::Output> {
    let due = timer.monotonic().saturating_add(limit);
    let mut alarm = Alarm::default();
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        alarm.poll(cx, timer, Some(due)).map(|()| None)
    })
    .await
}
