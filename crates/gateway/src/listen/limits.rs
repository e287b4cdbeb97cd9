//! Bounds of the gateway and the count of connections that nobody has authenticated on.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
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
