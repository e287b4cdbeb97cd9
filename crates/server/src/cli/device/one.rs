//! Commands on single devices, and the list.

use std::process::ExitCode;

use axum::http::{Method, header};
use serde_json::{Value, json};

use super::super::{Format, encoded, output, with_hub};
use super::{Auth, CreateArgs, CredentialArgs, DeleteArgs, ListArgs, ShowArgs, Status, UpdateArgs};
use crate::admin::NoStore;

/// Devices asked for in one call.
const PAGE_DEVICES: usize = 1000;

pub(super) fn create(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let mut document = json!({"status": args.status.as_str()});
    set(
        &mut document,
        "statusReason",
        args.reason.clone().map(Value::from),
    );
    set(&mut document, "authentication", args.credential.document());
    let path = device_path(&args.id);
    let device = with_hub(&args.place, NoStore::Create, async |client| {
        client.call(Method::PUT, &path, &[], Some(&document)).await
    })?;
    print_device(&device, args.output.output)
}

pub(super) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let path = device_path(&args.id);
    let device = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.get(&path).await
    })?;
    print_device(&device, args.output.output)
}

pub(super) fn update(args: &UpdateArgs) -> anyhow::Result<ExitCode> {
    let path = device_path(&args.id);
    let device = with_hub(&args.place, NoStore::Refuse, async |client| {
        // What is not named stays: the whole device is read, changed and written, on condition
        // that nobody else changes it meanwhile.
        let mut document = client.get(&path).await?;
        let etag = document.get("etag").and_then(Value::as_str).unwrap_or("*");
        let etag = args.if_match.clone().unwrap_or_else(|| etag.to_owned());
        set(
            &mut document,
            "status",
            args.status.map(|status| json!(status.as_str())),
        );
        if let Some(reason) = &args.reason {
            let reason = Some(reason.as_str()).filter(|reason| !reason.is_empty());
            set(&mut document, "statusReason", Some(json!(reason)));
        }
        if args.new_keys {
            set(&mut document, "authentication", Some(new_keys()));
        } else {
            set(&mut document, "authentication", args.credential.document());
        }
        let condition = [(header::IF_MATCH, etag.as_str())];
        client
            .call(Method::PUT, &path, &condition, Some(&document))
            .await
    })?;
    print_device(&device, args.output.output)
}

pub(super) fn delete(args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    with_hub(&args.place, NoStore::Refuse, async |client| {
        let condition = args.if_match.as_deref().unwrap_or("*");
        for id in &args.ids {
            let condition = [(header::IF_MATCH, condition)];
            client
                .call(Method::DELETE, &device_path(id), &condition, None)
                .await?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    with_hub(&args.place, NoStore::Refuse, async |client| {
        let mut printer = output::PagePrinter::new(args.output.output, &COLUMNS);
        let mut after = args.after.clone();
        let mut left = args.limit.unwrap_or(usize::MAX);
        while left > 0 {
            let mut path = format!("/api/devices?limit={}", left.min(PAGE_DEVICES));
            if let Some(after) = &after {
                path.push_str(&format!("&after={}", encoded(after)));
            }
            let page = client.get(&path).await?;
            let devices = page.get("devices").and_then(Value::as_array);
            let devices = devices.map(Vec::as_slice).unwrap_or_default();
            printer.page(devices, row)?;
            left = left.saturating_sub(devices.len());
            match page.get("continuation").and_then(Value::as_str) {
                Some(last) => after = Some(last.to_owned()),
                None => break,
            }
        }
        printer.end()
    })?;
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: [&str; 5] = [
    "DEVICE",
    "STATUS",
    "CONNECTION",
    "AUTHENTICATION",
    "LAST ACTIVITY",
];

fn row(device: &Value) -> Vec<String> {
    let pointers = [
        "/deviceId",
        "/status",
        "/connectionState",
        "/authentication/type",
        "/lastActivityTime",
    ];
    let cell = |pointer: &&str| {
        let text = device
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default();
        if text.starts_with("0001-") {
            "never".to_owned()
        } else {
            text.to_owned()
        }
    };
    pointers.iter().map(cell).collect()
}

fn print_device(device: &Value, format: Format) -> anyhow::Result<ExitCode> {
    match format {
        Format::Json => output::json(device)?,
        Format::Text => {
            let values = row(device);
            for (name, value) in COLUMNS.iter().zip(&values) {
                let name = name.to_lowercase();
                output::line(&format!(
                    "{} {value}",
                    output::heading(&format!("{name:<15}"))
                ))?;
            }
            if let Some(reason) = device.get("statusReason").and_then(Value::as_str) {
                output::line(&format!("{} {reason}", output::heading("status reason  ")))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl CredentialArgs {
    /// The `authentication` member; `None` when nothing about it was said.
    fn document(&self) -> Option<Value> {
        let has_thumbprint = self.primary_thumbprint.is_some();
        let kind = match self.auth {
            Some(auth) => auth,
            None if has_thumbprint => Auth::SelfSigned,
            None if self.primary_key.is_some() => Auth::Sas,
            None => return None,
        };
        Some(match kind {
            Auth::Sas => json!({
                "type": "sas",
                "symmetricKey": {
                    "primaryKey": self.primary_key,
                    "secondaryKey": self.secondary_key,
                },
            }),
            Auth::SelfSigned => json!({
                "type": "selfSigned",
                "x509Thumbprint": {
                    "primaryThumbprint": self.primary_thumbprint,
                    "secondaryThumbprint": self.secondary_thumbprint,
                },
            }),
            Auth::CertificateAuthority => json!({"type": "certificateAuthority"}),
            Auth::None => json!({"type": "none"}),
        })
    }
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }
}

/// Two keys of 32 random bytes, as the hub makes them for a new device.
fn new_keys() -> Value {
    use base64::Engine as _;
    use fieldpost_hub::clock::Chance as _;
    let key = || {
        let mut key = [0; 32];
        crate::clock::SystemChance::default().fill(&mut key);
        base64::engine::general_purpose::STANDARD.encode(key)
    };
    json!({"type": "sas", "symmetricKey": {"primaryKey": key(), "secondaryKey": key()}})
}

fn set(document: &mut Value, member: &str, value: Option<Value>) {
    if let (Some(members), Some(value)) = (document.as_object_mut(), value) {
        members.insert(member.to_owned(), value);
    }
}

fn device_path(id: &str) -> String {
    format!("/api/devices/{}", encoded(id))
}
