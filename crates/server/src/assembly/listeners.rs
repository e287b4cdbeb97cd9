//! Binds the configured ports, or takes them over from a service manager.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Config, ListenerConfig, ListenerName};

/// Connections that the kernel holds until they are accepted; a hub that restarts meets its whole
/// herd at once.
const BACKLOG: i32 = 4096;

/// A listener that has its port.
#[derive(Debug)]
pub(crate) struct BoundListener {
    /// Which one.
    pub(crate) name: ListenerName,
    /// The socket, not blocking.
    pub(crate) socket: TcpListener,
    /// Where clients reach it. All interfaces are written `0.0.0.0`, though IPv6 is served too.
    pub(crate) address: SocketAddr,
}

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("listener {}: cannot listen on {address}: {error}{}", name.as_str(), advice(*.name, .address, .error))]
pub(crate) struct BindError {
    pub(crate) name: ListenerName,
    pub(crate) address: SocketAddr,
    pub(crate) error: io::Error,
}

/// Sockets that a service manager handed over, by listener name.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    sockets: HashMap<ListenerName, TcpListener>,
}

impl Inherited {
    /// Takes the sockets of systemd's socket activation (`LISTEN_FDS`, `LISTEN_FDNAMES`).
    ///
    /// # Errors
    /// When a socket has the name of no listener, or of one that has a socket already, is no TCP
    /// socket, or has an address that the configuration would not take for its listener.
    pub(crate) fn from_environment(config: &Config) -> anyhow::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut handed_over = ListenFd::from_env();
        let mut inherited = Self::default();
        let mut names = names.split(':');
        for n in 0..handed_over.len() {
            let name = names.next().unwrap_or_default();
            let socket = handed_over
                .take_tcp_listener(n)
                .with_context(|| format!("take the socket `{name}` of the service manager"))?;
            if let Some(socket) = socket {
                inherited.add(config, name, socket)?;
            }
        }
        Ok(inherited)
    }

    fn add(&mut self, config: &Config, name: &str, socket: TcpListener) -> anyhow::Result<()> {
        let listener = ListenerName::ALL
            .into_iter()
            .find(|listener| listener.as_str() == name)
            .with_context(|| {
                let names = ListenerName::ALL.map(ListenerName::as_str).join(", ");
                format!(
                    "the service manager handed over a socket named `{name}`; set FileDescriptorName= to one of {names}"
                )
            })?;
        let address = socket.local_addr()?;
        if let Some(reason) = config.reason_against(listener, Some(address.ip())) {
            bail!("the service manager's socket for {name} listens on {address}: {reason}");
        }
        socket.set_nonblocking(true)?;
        if self.sockets.insert(listener, socket).is_some() {
            bail!(
                "the service manager handed over two sockets named `{name}`; a listener has one, which serves IPv4 and IPv6 with BindIPv6Only=both"
            );
        }
        Ok(())
    }
}

/// Binds every enabled listener. The second list names those that could not be had.
///
/// A listener whose socket was handed over is enabled, whatever the configuration says.
pub(crate) fn bind(
    config: &Config,
    mut inherited: Inherited,
) -> (Vec<BoundListener>, Vec<BindError>) {
    let mut bound = Vec::new();
    let mut missing = Vec::new();
    for listener in &config.listeners {
        let result = match inherited.sockets.remove(&listener.name) {
            Some(socket) => Ok(socket),
            None if listener.enabled => open(listener),
            None => continue,
        };
        let result = result.and_then(|socket| {
            let address = shown(socket.local_addr()?);
            Ok(BoundListener {
                name: listener.name,
                socket,
                address,
            })
        });
        match result {
            Ok(listener) => bound.push(listener),
            Err(error) => missing.push(BindError {
                name: listener.name,
                address: SocketAddr::new(
                    listener.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                    listener.port,
                ),
                error,
            }),
        }
    }
    (bound, missing)
}

fn open(listener: &ListenerConfig) -> io::Result<TcpListener> {
    match listener.address {
        Some(address) => open_at(SocketAddr::new(address, listener.port)),
        // One socket for both families, unless the machine has no IPv6.
        None => match open_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), listener.port)) {
            Err(error) if is_without_ipv6(&error) => {
                open_at(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listener.port))
            }
            result => result,
        },
    }
}

fn open_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of the last process in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn is_without_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn shown(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())
        }
        _ => address,
    }
}

fn advice(name: ListenerName, address: &SocketAddr, error: &io::Error) -> String {
    let key = format!("listeners.{}", name.as_str());
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "; ports below 1024 need a right: run `sudo setcap cap_net_bind_service=+ep $(command -v fieldpost)`, or `sudo sysctl net.ipv4.ip_unprivileged_port_start={}`, or use the shipped systemd unit, or set {key}.port",
            address.port()
        ),
        io::ErrorKind::AddrInUse => format!(
            "; another program has it (see `ss -ltnp 'sport = :{}'`): stop that one, or set {key}.port or {key}.address, or {key}.enabled = false",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("; this machine has no such address: set {key}.address")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(assignments: &[String]) -> Config {
        let mut all: Vec<String> = ListenerName::ALL
            .map(|name| format!("listeners.{}.enabled=false", name.as_str()))
            .into();
        all.extend(assignments.iter().cloned());
        let sources = Sources {
            assignments: all,
            ..Sources::default()
        };
        Config::load(&sources).unwrap().0
    }

    #[test]
    fn port_0_takes_a_free_port_and_all_interfaces_means_both_families() {
        let config = config(&[
            "listeners.mqtts.enabled=true".to_owned(),
            "listeners.mqtts.port=0".to_owned(),
        ]);
        let (bound, missing) = bind(&config, Inherited::default());
        assert!(missing.is_empty(), "{missing:?}");
        let address = bound[0].address;
        assert!(address.port() != 0 && address.ip() == Ipv4Addr::UNSPECIFIED);
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        let reached = std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, address.port()));
        assert_eq!(reached.is_ok(), has_ipv6);
    }

    #[test]
    fn a_handed_over_socket_has_to_be_one_that_could_be_configured() {
        let loopback = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let everywhere = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let check = |assignments: &[String], sockets: Vec<(&str, TcpListener)>, expected: &str| {
            let mut inherited = Inherited::default();
            let added = sockets
                .into_iter()
                .try_for_each(|(name, socket)| inherited.add(&config(assignments), name, socket));
            let error = added.map_or_else(|error| error.to_string(), |()| String::new());
            let is_right = if expected.is_empty() {
                error.is_empty()
            } else {
                error.contains(expected)
            };
            assert!(is_right, "{expected}: {error}");
        };
        let test_mode = ["run.test_mode=true".to_owned()];
        check(
            &[],
            vec![("mqtts", everywhere()), ("admin", loopback())],
            "",
        );
        check(&test_mode, vec![("mqtts", loopback())], "");
        check(&[], vec![("admin", everywhere())], "loopback address");
        check(&[], vec![("amqp", everywhere())], "loopback address");
        check(&test_mode, vec![("mqtts", everywhere())], "in test mode");
        check(&[], vec![("mqtt5", loopback())], "FileDescriptorName=");
        check(
            &[],
            vec![("mqtts", loopback()), ("mqtts", loopback())],
            "two sockets",
        );
    }

    #[test]
    fn a_taken_port_is_one_line_that_says_what_to_do() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let config = config(&[
            "listeners.https.enabled=true".to_owned(),
            "listeners.https.address=127.0.0.1".to_owned(),
            format!("listeners.https.port={port}"),
        ]);
        let (bound, missing) = bind(&config, Inherited::default());
        assert!(bound.is_empty());
        let text = missing[0].to_string();
        let expected = format!("listener https: cannot listen on 127.0.0.1:{port}: ");
        assert!(
            text.starts_with(&expected) && text.contains("listeners.https.port"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn a_port_without_the_right_names_the_ways_to_get_it() {
        let error = BindError {
            name: ListenerName::Https,
            address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 443),
            error: io::ErrorKind::PermissionDenied.into(),
        };
        let text = error.to_string();
        for way in ["setcap", "sysctl", "systemd unit", "listeners.https.port"] {
            assert!(text.contains(way), "{text}");
        }
    }
}
