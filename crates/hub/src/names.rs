//! The names by which clients may call this hub.

use std::net::IpAddr;

/// Host names that mean this hub: those configured, the hub's own name, and the first label of
/// each name that is not an address.
#[derive(Debug)]
pub(crate) struct HostNames {
    accepted: Vec<String>,
}

impl HostNames {
    pub(crate) fn new(hub: &str, configured: &[String]) -> Self {
        let mut accepted = vec![hub.to_ascii_lowercase()];
        for name in configured {
            let name = without_port(name).to_ascii_lowercase();
            if name.parse::<IpAddr>().is_err()
                && let Some((label, _)) = name.split_once('.')
            {
                accepted.push(label.to_owned());
            }
            accepted.push(name);
        }
        accepted.retain(|name| !name.is_empty());
        accepted.sort_unstable();
        accepted.dedup();
        Self { accepted }
    }

    /// Compares without case; a port does not matter.
    pub(crate) fn contains(&self, host: &str) -> bool {
        let host = without_port(host);
        self.accepted
            .iter()
            .any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// The host of `host`, `host:port`, `[address]` or `[address]:port`; a bare IPv6 address is whole.
fn without_port(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_knows_its_names_without_case_and_with_any_port() {
        let configured = ["Hub1.Example.Test", "localhost", "127.0.0.1", "::1"];
        let names = HostNames::new("hub", &configured.map(str::to_owned));
        let check = |host: &str, expected: bool| {
            assert_eq!(names.contains(host), expected, "{host:?}");
        };
        check("hub1.example.test", true);
        check("HUB1.EXAMPLE.TEST:443", true);
        check("hub1", true);
        check("hub", true);
        check("localhost:8883", true);
        check("127.0.0.1:5671", true);
        check("[::1]:5671", true);
        check("::1", true);
        check("127", false);
        check("example.test", false);
        check("hub1.example.test.evil", false);
        check("hub2", false);
        check("", false);
        check(":443", false);
        check("hub1:", true);
        check("hub1:x", false);
    }
}
