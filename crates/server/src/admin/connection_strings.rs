//! Connection strings for SDKs.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fieldpost_hub::auth::Access;
use fieldpost_hub::identity::Authentication;
use fieldpost_hub::policies::Policy;
use fieldpost_model::ModuleId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Parameters, Problem, invalid, problem};
use super::{AdminParts, Reach, devices};

/// The port of AMQP over TLS that every SDK assumes.
pub(crate) const AMQPS_PORT: u16 = 5671;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConnectionStringQuery {
    policy: Option<String>,
    device: Option<String>,
    module: Option<String>,
    #[serde(default)]
    event_hub: bool,
    #[serde(default)]
    emulator: bool,
}

/// `{"connectionString": TEXT, "now": TIME}` for a device, for Event Hubs clients, or for service
/// clients. The time is the hub's own, which tokens made from the string are checked by.
pub(super) async fn show(
    State(parts): State<AdminParts>,
    Parameters(query): Parameters<ConnectionStringQuery>,
) -> Result<Json<Value>, Problem> {
    let reach = &parts.reach;
    if query.module.is_some() && query.device.is_none() {
        return Err(invalid("a module goes with its device"));
    }
    let text = match (query.device, query.event_hub) {
        (Some(_), true) => return Err(invalid("a device has no Event Hubs connection string")),
        (Some(id), false) => {
            let device = devices::find(&parts, &id).await?;
            let (named, authentication) = match &query.module {
                None => (format!("DeviceId={id}"), device.authentication.clone()),
                Some(module) => {
                    let module_id = ModuleId::new(module)
                        .map_err(|error| invalid(format!("module: {error}")))?;
                    let module = devices::find_module(&parts, &id, &module_id).await?;
                    let named = format!("DeviceId={id};ModuleId={module_id}");
                    (named, module.authentication)
                }
            };
            let credential = match &authentication {
                Authentication::Sas(keys) => format!("SharedAccessKey={}", keys.primary.expose()),
                Authentication::SelfSigned(_) | Authentication::CertificateAuthority => {
                    "x509=true".to_owned()
                }
                Authentication::None => {
                    return Err(problem(
                        StatusCode::CONFLICT,
                        "DeviceWithoutCredential",
                        format!("{named} has no credential of its own"),
                    ));
                }
            };
            format!("HostName={};{named};{credential}", reach.host_name)
        }
        (None, true) => {
            let policy = policy(
                parts.hub.access(),
                query.policy.as_deref().unwrap_or("service"),
            )?;
            let (endpoint, end) = if query.emulator {
                (reach.emulator_endpoint()?, ";UseDevelopmentEmulator=true")
            } else {
                (reach.event_hubs_endpoint(), "")
            };
            format!(
                "Endpoint={endpoint};SharedAccessKeyName={};SharedAccessKey={};EntityPath={}{end}",
                policy.name,
                policy.primary.expose(),
                parts.hub.name(),
            )
        }
        (None, false) => {
            let name = query.policy.as_deref().unwrap_or("iothubowner");
            let policy = policy(parts.hub.access(), name)?;
            format!(
                "HostName={};SharedAccessKeyName={};SharedAccessKey={}",
                reach.host_name,
                policy.name,
                policy.primary.expose(),
            )
        }
    };
    let now = parts.hub.timer().now().to_string();
    Ok(Json(json!({"connectionString": text, "now": now})))
}

impl Reach {
    /// The address of the Event Hubs-compatible endpoint, as a connection string has it.
    pub(super) fn event_hubs_endpoint(&self) -> String {
        // An IPv6 address needs its brackets here.
        let host = match self.host_name.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host_name.clone(),
        };
        match self.amqps_port {
            None => format!("sb://{host}/"),
            Some(port) => format!("sb://{host}:{port}/"),
        }
    }

    fn emulator_endpoint(&self) -> Result<String, Problem> {
        let address = self.emulator.ok_or_else(|| {
            problem(
                StatusCode::CONFLICT,
                "ListenerOff",
                "the listener `amqp` is off or its port was taken",
            )
        })?;
        let host = if address.ip() == std::net::Ipv4Addr::LOCALHOST {
            format!("localhost:{}", address.port())
        } else {
            address.to_string()
        };
        Ok(format!("sb://{host}/"))
    }
}

fn policy(access: &Access, name: &str) -> Result<Policy, Problem> {
    access.policy(name).ok_or_else(|| {
        let names: Vec<_> = access.policies().iter().map(|policy| policy.name).collect();
        problem(
            StatusCode::NOT_FOUND,
            "PolicyNotFound",
            format!(
                "there is no policy `{name}`; there are {}",
                names.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_name_a_port_only_where_it_is_not_the_standard_one() {
        let check = |host_name: &str, amqps_port, expected: &str| {
            let reach = Reach {
                host_name: host_name.to_owned(),
                amqps_port,
                emulator: None,
            };
            assert_eq!(reach.event_hubs_endpoint(), expected);
            assert!(reach.emulator_endpoint().is_err());
        };
        check("localhost", None, "sb://localhost/");
        check("hub.example", Some(5700), "sb://hub.example:5700/");
        check("::1", Some(5700), "sb://[::1]:5700/");
        let reach = Reach {
            host_name: "localhost".to_owned(),
            amqps_port: None,
            emulator: Some("127.0.0.1:5672".parse().unwrap()),
        };
        assert_eq!(reach.emulator_endpoint().unwrap(), "sb://localhost:5672/");
    }
}
