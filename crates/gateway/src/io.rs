//! Reading without a buffer per connection, writing, and the budget for incomplete packets.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one read takes from a socket at most.
pub(crate) const SCRATCH_BYTES: usize = 64 * 1024;

thread_local! {
    /// One per worker thread, shared by all connections that it polls.
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input<R> {
    /// Bytes.
    Bytes {
        /// What the caller made of them.
        made: R,
        /// The stream has no more at present, and has the caller's waker: to read again before that
        /// is called is of no use.
        is_all: bool,
    },
    /// The peer will send nothing more.
    End,
}

/// Reads what is there, at most `bytes_max` and [`SCRATCH_BYTES`], into a buffer of the thread and
/// shows it to `consume`. Peers that are not trusted yet get a low bound.
///
/// An idle connection therefore holds no read buffer: the scratch is borrowed for the poll alone,
/// and whatever is not a whole packet is the protocol engine's to keep.
pub(crate) fn poll_read_scratch_up_to<S, R>(
    stream: &mut S,
    cx: &mut Context<'_>,
    bytes_max: usize,
    consume: impl FnOnce(&[u8]) -> R,
) -> Poll<io::Result<Input<R>>>
where
    S: AsyncRead + Unpin,
{
    // Taken out for the time of the poll: a nested call would simply make a second one.
    let mut scratch = SCRATCH
        .take()
        .unwrap_or_else(|| vec![0; SCRATCH_BYTES].into());
    let room = bytes_max.clamp(1, SCRATCH_BYTES);
    let read = poll_fill(stream, cx, scratch.get_mut(..room).unwrap_or_default());
    let result = read.map_ok(|(count, is_all)| match scratch.get(..count) {
        None | Some([]) => Input::End,
        Some(bytes) => Input::Bytes {
            made: consume(bytes),
            is_all,
        },
    });
    SCRATCH.set(Some(scratch));
    result
}

/// Fills `scratch` as far as the stream gives bytes without waiting. TLS hands out one record at a
/// time, and what arrives together should be submitted together. Gives the bytes, and whether the
/// stream has no more at present.
fn poll_fill<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    scratch: &mut [u8],
) -> Poll<io::Result<(usize, bool)>> {
    let mut buffer = ReadBuf::new(scratch);
    let mut is_all = false;
    while buffer.remaining() > 0 {
        let before = buffer.filled().len();
        match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() == before => break,
            Poll::Ready(Ok(())) => {}
            Poll::Pending if before == 0 => return Poll::Pending,
            Poll::Pending => {
                is_all = true;
                break;
            }
            // What was read counts; the error shows itself again at the next read.
            Poll::Ready(Err(_)) if before > 0 => break,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok((buffer.filled().len(), is_all)))
}

/// Writes and flushes all of `output`, which reports what was written by `advance`.
///
/// Ready when everything handed over is on its way.
pub(crate) fn poll_write_all<S, O>(
    stream: &mut S,
    cx: &mut Context<'_>,
    output: &mut O,
) -> Poll<io::Result<()>>
where
    S: AsyncWrite + Unpin,
    O: bytes::Buf,
{
    while output.has_remaining() {
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, output.chunk()))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        output.advance(written);
    }
    Pin::new(stream).poll_flush(cx)
}

/// Bytes of incomplete packets that all connections together may make the gateway hold.
///
/// Bytes count as they are received, never as they are announced. When the bound is passed, the
/// connection whose packet has been incomplete for longest is told to close.
#[derive(Debug)]
pub struct IncompleteBudget {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// Guards the list of members only; it is taken when a connection starts or ends and when the
    /// bound is passed, never for a read.
    members: Mutex<Vec<Weak<Member>>>,
}

/// One connection's part of an [`IncompleteBudget`]. Given back on drop.
#[derive(Debug)]
pub struct IncompleteShare {
    budget: Arc<IncompleteBudget>,
    member: Arc<Member>,
}

#[derive(Debug, Default)]
struct Member {
    bytes: AtomicUsize,
    /// Since when the present packet is incomplete, in monotonic microseconds.
    since_us: AtomicU64,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

impl IncompleteBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            bytes: AtomicUsize::new(0),
            members: Mutex::default(),
        })
    }

    /// A share for a new connection.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> IncompleteShare {
        let member = Arc::new(Member::default());
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.len() == members.capacity() {
            members.retain(|member| member.strong_count() > 0);
        }
        members.push(Arc::downgrade(&member));
        drop(members);
        IncompleteShare {
            budget: Arc::clone(self),
            member,
        }
    }

    /// Bytes held at the moment.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Wakes the tasks of all connections, for something that they find elsewhere.
    pub(crate) fn wake_all(&self) {
        let members: Vec<_> = {
            let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.iter().filter_map(Weak::upgrade).collect()
        };
        members.iter().for_each(|member| member.waker.wake());
    }

    fn evict_oldest(&self) {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        while self.bytes() > self.bytes_max {
            let oldest = members
                .iter()
                .filter_map(Weak::upgrade)
                .filter(|member| member.bytes.load(Ordering::Relaxed) > 0)
                .filter(|member| !member.evicted.load(Ordering::Relaxed))
                .min_by_key(|member| member.since_us.load(Ordering::Relaxed));
            let Some(oldest) = oldest else { return };
            oldest.evicted.store(true, Ordering::Release);
            // It is about to let go of these bytes; to wait for that would evict others for them.
            let bytes = oldest.bytes.swap(0, Ordering::Relaxed);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            oldest.waker.wake();
        }
    }
}

impl IncompleteShare {
    /// Reports that the connection holds `bytes` of an incomplete packet.
    ///
    /// `fresh` says that the packet began with what was just read, because the one before it is
    /// complete.
    pub fn hold(&self, bytes: usize, fresh: bool, now: Duration) {
        let member = &*self.member;
        if member.evicted.load(Ordering::Acquire) {
            return;
        }
        if bytes == 0 && member.bytes.load(Ordering::Relaxed) == 0 {
            return;
        }
        let before = member.bytes.swap(bytes, Ordering::Relaxed);
        if before == 0 || fresh {
            let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
            member.since_us.store(micros, Ordering::Relaxed);
        }
        if bytes > before {
            let added = bytes - before;
            let total = self.budget.bytes.fetch_add(added, Ordering::Relaxed) + added;
            if total > self.budget.bytes_max {
                self.budget.evict_oldest();
            }
        } else if before > bytes {
            self.budget
                .bytes
                .fetch_sub(before - bytes, Ordering::Relaxed);
        }
    }

    /// Ready when this connection must close to make room. Leaves a waker that
    /// [`IncompleteBudget::wake_all`] wakes as well.
    pub fn poll_evicted(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.member.evicted.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.member.waker.register(cx.waker());
        if self.member.evicted.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for IncompleteShare {
    fn drop(&mut self) {
        let bytes = self.member.bytes.swap(0, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_read_takes_what_is_there_and_then_sees_the_end() {
        let (mut near, mut far) = duplex(200_000);
        far.write_all(&[7; 100_000]).await.unwrap();
        drop(far);
        let mut lengths = Vec::new();
        loop {
            let input =
                poll_fn(|cx| poll_read_scratch_up_to(&mut near, cx, usize::MAX, <[u8]>::len)).await;
            match input.unwrap() {
                Input::Bytes { made, is_all } => {
                    // The end is yet to be seen.
                    assert!(!is_all);
                    lengths.push(made);
                }
                Input::End => break,
            }
        }
        assert_eq!(lengths, [SCRATCH_BYTES, 100_000 - SCRATCH_BYTES]);
    }

    #[test]
    fn the_connection_incomplete_for_longest_goes_when_the_budget_is_full() {
        let budget = IncompleteBudget::new(100);
        let at = Duration::from_secs;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (first, second, third) = (budget.share(), budget.share(), budget.share());
        first.hold(40, false, at(1));
        second.hold(40, false, at(2));
        // The first one's packet was completed and another begun: it is the youngest now.
        first.hold(50, true, at(3));
        assert_eq!(budget.bytes(), 90);
        third.hold(20, false, at(4));
        assert!(second.poll_evicted(&mut cx).is_ready());
        assert!(first.poll_evicted(&mut cx).is_pending());
        assert!(third.poll_evicted(&mut cx).is_pending());
        assert_eq!(budget.bytes(), 70);
        // What an evicted connection still reports changes nothing.
        second.hold(90, false, at(5));
        drop(second);
        assert_eq!(budget.bytes(), 70);
        drop(first);
        drop(third);
        assert_eq!(budget.bytes(), 0);
    }
}
