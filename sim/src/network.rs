//! A network whose links delay, fill up and break as a seed says.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use fieldpost_client::{Dialing, NetworkStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use xxhash_rust::xxh3::xxh3_64;

use crate::journal::Journal;
use crate::random::Random;

/// Bytes that a link holds in one direction; a writer waits beyond it.
const WINDOW_BYTES: usize = 64 * 1024;

/// Takes the server's end of a new link to a port.
pub(crate) type Accept = Arc<dyn Fn(u16, End) + Send + Sync>;

/// The network between clients and one host. Clones are the same network.
#[derive(Clone)]
pub(crate) struct Network(Arc<Shared>);

struct Shared {
    journal: Journal,
    state: Mutex<NetworkState>,
}

struct NetworkState {
    random: Random,
    accept: Option<Accept>,
    last_link: u64,
    /// The mean life of a link, if they are cut.
    cut_every: Option<Duration>,
    links: Vec<Arc<Link>>,
}

/// How a link ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Both ends are told at once, but for the delay.
    Reset,
    /// Nothing arrives any more, and each end finds out by itself after a while.
    Silent,
}

struct Link {
    number: u64,
    journal: Journal,
    state: Mutex<LinkState>,
}

struct LinkState {
    random: Random,
    delay: Range<Duration>,
    /// From the client to the hub, and back.
    pipes: [Pipe; 2],
    /// From when on an end is told that the link is broken: the client's, the hub's.
    broken_at: [Option<Instant>; 2],
    /// Nothing that is written arrives.
    lost: bool,
    /// How many of both ends are gone.
    ends_gone: u8,
}

#[derive(Default)]
struct Pipe {
    chunks: VecDeque<(Instant, Bytes)>,
    /// Bytes that were written and not yet read.
    bytes: usize,
    /// When the last byte written arrives.
    arrived_at: Option<Instant>,
    /// When the reader learns that no more will come.
    end_at: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One end of a link.
pub(crate) struct End {
    link: Arc<Link>,
    /// 0 at the client, 1 at the hub.
    side: usize,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Network {
    pub(crate) fn new(journal: Journal, random: Random, cut_every: Option<Duration>) -> Self {
        Self(Arc::new(Shared {
            journal,
            state: Mutex::new(NetworkState {
                random,
                accept: None,
                last_link: 0,
                cut_every,
                links: Vec::new(),
            }),
        }))
    }

    /// Sends new links to `accept`; without one they are refused.
    pub(crate) fn listen(&self, accept: Option<Accept>) {
        self.lock().accept = accept;
    }

    /// Lets the links be from now on.
    pub(crate) fn heal(&self) {
        self.lock().cut_every = None;
    }

    /// Breaks every link because the hub's machine is gone. Nothing that it has written and that
    /// has not arrived does.
    pub(crate) fn host_down(&self) {
        let links = std::mem::take(&mut self.lock().links);
        for link in links {
            let silent = link.lock().random.percent(25);
            link.cut(if silent { Cut::Silent } else { Cut::Reset });
            let mut state = link.lock();
            state.broken_at[1] = Some(Instant::now());
            state.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, NetworkState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, port: u16, delay: Range<Duration>) -> io::Result<End> {
        let mut state = self.lock();
        let Some(accept) = state.accept.clone() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        state.last_link += 1;
        let number = state.last_link;
        let link = Arc::new(Link {
            number,
            journal: self.0.journal.clone(),
            state: Mutex::new(LinkState {
                random: state.random.fork(),
                delay,
                pipes: Default::default(),
                broken_at: [None; 2],
                lost: false,
                ends_gone: 0,
            }),
        });
        state.links.retain(|link| link.lock().ends_gone < 2);
        state.links.push(Arc::clone(&link));
        if let Some(mean) = state.cut_every {
            let (life, silent) = (state.random.around(mean), state.random.percent(30));
            let (network, link) = (self.clone(), Arc::downgrade(&link));
            tokio::spawn(async move {
                tokio::time::sleep(life).await;
                if let Some(link) = link.upgrade()
                    && network.lock().cut_every.is_some()
                {
                    link.cut(if silent { Cut::Silent } else { Cut::Reset });
                }
            });
        }
        drop(state);
        self.0
            .journal
            .note(format_args!("link {number} opened to port {port}"));
        let end = |side| End {
            link: Arc::clone(&link),
            side,
            alarm: None,
        };
        accept(port, end(1));
        Ok(end(0))
    }
}

impl fieldpost_client::Network for Network {
    fn connect(&self, _host: &str, port: u16) -> Dialing {
        let network = self.clone();
        let delay = {
            let random = &mut self.lock().random;
            let millis = Duration::from_millis;
            // Most links are near, some are far, a few are bad.
            let base = match random.below(100) {
                0..80 => random.within(&(Duration::from_micros(200)..millis(20))),
                80..96 => random.within(&(millis(20)..millis(200))),
                _ => random.within(&(millis(200)..millis(1500))),
            };
            base..base + base / 2 + Duration::from_micros(200)
        };
        Box::pin(async move {
            tokio::time::sleep(delay.start * 2).await;
            let end = network.open(port, delay)?;
            Ok(Box::new(end) as Box<dyn NetworkStream>)
        })
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, cut: Cut) {
        let mut state = self.lock();
        if state.lost || state.ends_gone > 0 {
            return;
        }
        self.journal
            .note(format_args!("link {} cut: {cut:?}", self.number));
        let now = Instant::now();
        state.lost = true;
        for pipe in &mut state.pipes {
            // What has arrived can still be read; what is on its way is lost, and so is the end.
            pipe.chunks.retain(|(at, _)| *at <= now);
            pipe.end_at = pipe.end_at.filter(|at| *at <= now);
        }
        for side in 0..2 {
            let noticed = match cut {
                Cut::Reset => {
                    let delay = state.delay.clone();
                    state.random.within(&delay)
                }
                Cut::Silent => state.random.around(Duration::from_secs(15)),
            };
            state.broken_at[side] = Some(now + noticed);
        }
        state.wake();
    }
}

impl LinkState {
    /// Lets both ends look again.
    fn wake(&mut self) {
        for pipe in &mut self.pipes {
            for waker in [pipe.reader.take(), pipe.writer.take()] {
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }

    /// When what is written now arrives.
    fn arrival(&mut self, side: usize, now: Instant) -> Instant {
        let delay = self.delay.clone();
        let at = now + self.random.within(&delay);
        let pipe = &mut self.pipes[side];
        let at = pipe.arrived_at.map_or(at, |before| before.max(at));
        pipe.arrived_at = Some(at);
        at
    }

    fn is_broken(&self, side: usize, now: Instant) -> bool {
        self.broken_at[side].is_some_and(|at| at <= now)
    }

    /// Tells the peer of `side` that no more comes, in order behind what was written.
    fn end(&mut self, side: usize, now: Instant) {
        if self.lost || self.pipes[side].end_at.is_some() {
            return;
        }
        self.pipes[side].end_at = Some(self.arrival(side, now));
        let reader = self.pipes[side].reader.take();
        reader.into_iter().for_each(Waker::wake);
    }
}

impl End {
    /// Wakes the task at `at` if it sleeps until then.
    fn arm(&mut self, cx: &mut Context<'_>, at: Option<Instant>) {
        let Some(at) = at else { return };
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if alarm.deadline() != at {
            alarm.as_mut().reset(at);
        }
        if alarm.as_mut().poll(cx).is_ready() {
            // The timer's steps are coarser than the instants: look again at once.
            cx.waker().wake_by_ref();
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let now = Instant::now();
        let link = Arc::clone(&this.link);
        let mut state = link.lock();
        if state.is_broken(this.side, now) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let broken_at = state.broken_at[this.side];
        let pipe = &mut state.pipes[1 - this.side];
        let mut read = 0;
        while let Some((at, chunk)) = pipe.chunks.front_mut()
            && *at <= now
            && out.remaining() > 0
        {
            let part = chunk.len().min(out.remaining());
            out.put_slice(&chunk[..part]);
            chunk.advance(part);
            read += part;
            if chunk.is_empty() {
                pipe.chunks.pop_front();
            }
        }
        if read > 0 {
            pipe.bytes -= read;
            pipe.writer.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        let next = pipe.chunks.front().map(|(at, _)| *at);
        if next.is_none() && pipe.end_at.is_some_and(|at| at <= now) {
            return Poll::Ready(Ok(()));
        }
        let soonest = [next, pipe.end_at, broken_at].into_iter().flatten().min();
        pipe.reader = Some(cx.waker().clone());
        drop(state);
        this.arm(cx, soonest);
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let now = Instant::now();
        let link = Arc::clone(&this.link);
        let mut state = link.lock();
        if state.is_broken(this.side, now) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW_BYTES - state.pipes[this.side].bytes;
        if room == 0 {
            let broken_at = state.broken_at[this.side];
            state.pipes[this.side].writer = Some(cx.waker().clone());
            drop(state);
            this.arm(cx, broken_at);
            return Poll::Pending;
        }
        // Now and then a write is taken in part, and packets are cut anywhere.
        let most = if state.random.percent(10) {
            1 + state.random.below(2000)
        } else {
            u64::MAX
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let taken = &bytes[..bytes.len().min(room).min(most)];
        if !state.lost {
            let at = state.arrival(this.side, now);
            let chunk = Bytes::copy_from_slice(taken);
            state.pipes[this.side].chunks.push_back((at, chunk));
        }
        let pipe = &mut state.pipes[this.side];
        pipe.bytes += taken.len();
        let reader = pipe.reader.take();
        drop(state);
        let arrow = ["->", "<-"][this.side];
        link.journal.note(format_args!(
            "link {} {arrow} {} bytes {:016x}",
            link.number,
            taken.len(),
            xxh3_64(taken)
        ));
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.lock().end(self.side, Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        let now = Instant::now();
        state.ends_gone += 1;
        state.end(self.side, now);
        if !state.lost {
            // What the other end still writes is answered with a reset, behind the end of the stream.
            let at = state.arrival(self.side, now) + Duration::from_millis(1);
            state.broken_at[1 - self.side].get_or_insert(at);
        }
        state.wake();
    }
}
