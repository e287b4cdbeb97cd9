//! Bounds of the gateway and the count of connections that nobody has authenticated on.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of a gateway. The defaults suit a small machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Connections on which nobody has authenticated yet, over all listeners. Beyond it, new ones
    /// wait in the kernel's queue: a herd of devices is delayed and not refused.
    pub unauthenticated_max: usize,
    /// Of those, how many may come from one address (or one IPv6 /64) once half of
    /// [`Self::unauthenticated_max`] is in use. Loopback addresses are exempt.
    pub unauthenticated_per_address_max: usize,
    /// Time for a TLS handshake.
    pub tls_handshake: Duration,
    /// Time from the end of the TLS handshake to an MQTT client's CONNECT.
    pub mqtt_connect: Duration,
    /// Time from the end of the TLS handshake to an AMQP client's first successful authentication.
    pub amqp_authentication: Duration,
    /// Bytes of incomplete packets that a connection may hold before it is authenticated.
    pub unauthenticated_bytes_max: usize,
    /// Bytes of incomplete packets over all connections.
    pub incomplete_bytes_max: usize,
    /// How long a connection is kept whose messages the store holds back.
    pub held_max: Duration,
    /// Time that a peer has to take what is written to it before a closing connection is dropped.
    pub linger: Duration,
    /// Time that sessions have to end themselves when the gateway is drained.
    pub drain: Duration,
    /// Largest HTTP request body, in bytes.
    pub http_body_bytes_max: usize,
    /// Time for an HTTP client to send a request's body.
    pub http_body: Duration,
    /// Time for an HTTP client to show a valid credential, or to ask for a WebSocket, from the
    /// start of its connection.
    pub http_first_head: Duration,
    /// Time for an HTTP client to send the next request's head after that, idle time included.
    pub http_head: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            unauthenticated_max: 4096,
            unauthenticated_per_address_max: 256,
            tls_handshake: Duration::from_secs(15),
            mqtt_connect: Duration::from_secs(15),
            amqp_authentication: Duration::from_secs(60),
            unauthenticated_bytes_max: 16 * 1024,
            incomplete_bytes_max: 64 * 1024 * 1024,
            held_max: Duration::from_secs(20),
            linger: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            http_body_bytes_max: 4 * 1024 * 1024,
            http_body: Duration::from_secs(30),
            http_first_head: Duration::from_secs(15),
            http_head: Duration::from_secs(60),
        }
    }
}

/// Counts connections on which nobody has authenticated yet.
#[derive(Debug)]
pub(crate) struct Admissions {
    places: Arc<Semaphore>,
    places_max: usize,
    per_address_max: usize,
    /// For each step that one of them makes. Half the machine: those who are connected have the other
    /// half to themselves, and their turns between the steps.
    turns: Semaphore,
    /// Taken once when a connection comes and once when it is authenticated or gone.
    per_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among the unauthenticated connections. Given back on drop.
#[derive(Debug)]
pub(crate) struct Admission {
    admissions: Arc<Admissions>,
    address: Option<IpAddr>,
    _place: OwnedSemaphorePermit,
}

impl Admissions {
    /// Nobody is there yet. Each of `listeners` keeps a place for its next connection.
    pub(crate) fn new(limits: &GatewayLimits, listeners: usize) -> Arc<Self> {
        let places_max = limits.unauthenticated_max.saturating_add(listeners);
        let places_max = places_max.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            turns: Semaphore::new(
                available_parallelism()
                    .map_or(1, |cores| cores.get() / 2)
                    .max(1),
            ),
            per_address_max: limits.unauthenticated_per_address_max.max(1),
            per_address: Mutex::default(),
        })
    }

    /// Waits for a free place; to be called before a connection is accepted.
    ///
    /// May be dropped at its await.
    pub(crate) async fn place(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }

    /// Gives the place to a connection from `address`; `None` when that address has too many.
    pub(crate) fn admit(
        self: &Arc<Self>,
        place: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Option<Admission> {
        let address = counted_address(address);
        if let Some(address) = address {
            let used = self.places_max - self.places.available_permits();
            let mut counts = self
                .per_address
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(address).or_default();
            if *count >= self.per_address_max && used > self.places_max / 2 {
                return None;
            }
            *count += 1;
        }
        Some(Admission {
            admissions: Arc::clone(self),
            address,
            _place: place,
        })
    }
}

impl Admission {
    /// What is to be given to [`in_turn`].
    pub(crate) fn turns(&self) -> Arc<Admissions> {
        Arc::clone(&self.admissions)
    }
}

/// Runs what a connection does before anybody has authenticated on it, step by step, in turn with the
/// others that are so far.
///
/// Handshakes are work. When thousands of devices come at once, all of them would be ready all the time,
/// and everybody who is connected already would wait until each had made its step.
pub(crate) async fn in_turn<F: Future>(turns: Option<Arc<Admissions>>, future: F) -> F::Output {
    let mut future = pin!(future);
    let Some(admissions) = turns else {
        return future.await;
    };
    loop {
        let turn = admissions.turns.acquire().await;
        // Whoever is ready now goes first: so there are no more steps between two turns of a connected one
        // than there are turns for steps.
        end_of_queue().await;
        let step = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        drop(turn);
        match step {
            Poll::Ready(output) => return output,
            Poll::Pending => woken().await,
        }
    }
}

/// Ready when every task that is ready now has had its turn on this thread.
async fn end_of_queue() {
    let mut is_first = true;
    poll_fn(|cx| {
        if !std::mem::take(&mut is_first) {
            return Poll::Ready(());
        }
        // Unlike `yield_now` of tokio, which waits for the next look at the sockets as well.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Ready when the task is polled again, which it is when something wakes it that it polled before.
async fn woken() {
    let mut is_first = true;
    poll_fn(|_| {
        if std::mem::take(&mut is_first) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut counts = self
            .admissions
            .per_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// What connections are counted by: an IPv4 address or an IPv6 /64, which one host can fill at
/// will. `None` for the loopback interface, where tests and simulated devices live.
pub(crate) fn counted_address(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    if address.is_loopback() {
        return None;
    }
    Some(match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn admissions(places: usize, per_address: usize) -> Arc<Admissions> {
        Admissions::new(
            &GatewayLimits {
                unauthenticated_max: places,
                unauthenticated_per_address_max: per_address,
                ..Default::default()
            },
            0,
        )
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let admissions = admissions(8, 2);
        let busy: IpAddr = "10.0.0.1".parse().unwrap();
        let mut held = Vec::new();
        // Up to half of all places there is no need to be strict.
        for _ in 0..4 {
            held.push(admissions.admit(admissions.place().await, busy).unwrap());
        }
        assert!(admissions.admit(admissions.place().await, busy).is_none());
        let other = "10.0.0.2".parse().unwrap();
        held.push(admissions.admit(admissions.place().await, other).unwrap());
        let local = "::ffff:127.0.0.1".parse().unwrap();
        held.push(admissions.admit(admissions.place().await, local).unwrap());
        held.drain(..4);
        assert!(admissions.admit(admissions.place().await, busy).is_some());
    }

    /// Steps that those who come make between two of one who is connected.
    async fn steps_between(turns: Option<Arc<Admissions>>) -> usize {
        let steps = Arc::new(AtomicUsize::new(0));
        for _ in 0..200 {
            let steps = Arc::clone(&steps);
            let coming = async move {
                for _ in 0..20 {
                    steps.fetch_add(1, Ordering::Relaxed);
                    end_of_queue().await;
                }
            };
            tokio::spawn(in_turn(turns.clone(), coming));
        }
        let connected = async move {
            let mut most = 0;
            let mut now = 0;
            while now < 200 * 20 {
                end_of_queue().await;
                let before = std::mem::replace(&mut now, steps.load(Ordering::Relaxed));
                most = most.max(now - before);
            }
            most
        };
        tokio::spawn(connected).await.unwrap()
    }

    #[tokio::test]
    async fn who_is_connected_does_not_wait_for_all_who_come() {
        let admissions = admissions(4096, 256);
        let turns = admissions.turns.available_permits();
        assert!(steps_between(None).await > 20 * turns);
        let between = steps_between(Some(admissions)).await;
        assert!(between <= 2 * turns, "{between} with {turns} turns");
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let check = |address: &str, expected: Option<&str>| {
            let counted = counted_address(address.parse().unwrap());
            assert_eq!(counted, expected.map(|e| e.parse().unwrap()), "{address}");
        };
        check("2001:db8:1:2:3:4:5:6", Some("2001:db8:1:2::"));
        check("::ffff:10.1.2.3", Some("10.1.2.3"));
        check("10.1.2.3", Some("10.1.2.3"));
        check("::1", None);
        check("127.7.7.7", None);
    }
}
