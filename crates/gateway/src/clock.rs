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
pub(crate) struct Alarm {
    timer: Arc<dyn Timer>,
    armed: Option<(Duration, Sleep)>,
}

impl Alarm {
    /// An alarm that is not set.
    pub(crate) fn new(timer: Arc<dyn Timer>) -> Self {
        Self { timer, armed: None }
    }

    /// Ready when the monotonic time `due` has come; never without one.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, due: Option<Duration>) -> Poll<()> {
        let Some(due) = due else {
            return Poll::Pending;
        };
        loop {
            if self.timer.monotonic() >= due {
                return Poll::Ready(());
            }
            if self.armed.as_ref().is_none_or(|(at, _)| *at > due) {
                self.armed = Some((due, self.timer.sleep_until(due)));
            }
            let Some((_, sleep)) = &mut self.armed else {
                return Poll::Pending;
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
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
    let mut alarm = Alarm::new(Arc::clone(timer));
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        alarm.poll(cx, Some(due)).map(|()| None)
    })
    .await
}
