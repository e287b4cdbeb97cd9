//! `fieldpost ca`: the certificate authorities that may vouch for devices.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Format, OutputArgs, PlaceArgs, encoded, output, with_hub};
use crate::admin::NoStore;

pub(super) const EXAMPLES: &str = "Examples:
  fieldpost ca add factory factory-root.pem
  fieldpost ca challenge factory            # prints a code
  fieldpost ca verify factory proof.pem     # signed by the authority, the code is its common name
  fieldpost device create dev1 --auth certificate-authority";

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Register an authority: a root, or one in the middle of a chain.
    Add(AddArgs),
    /// Ask for a code; a certificate that carries it shows that you hold the authority's key.
    Challenge(NameArgs),
    /// Hand in the certificate that a challenge asked for.
    Verify(VerifyArgs),
    /// List the authorities.
    List(ListArgs),
    /// Remove an authority; its devices are not let in again.
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
pub(super) struct AddArgs {
    /// What to call it.
    name: String,
    /// Its certificate, PEM or DER.
    file: PathBuf,
    /// Trust it without a proof that you hold its key.
    #[arg(long)]
    verified: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct NameArgs {
    /// The authority.
    name: String,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// The authority.
    name: String,
    /// The certificate with the code as its common name, PEM or DER.
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    /// The authority.
    name: String,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) fn run(command: &CaCommand) -> anyhow::Result<ExitCode> {
    match command {
        CaCommand::Add(args) => add(args),
        CaCommand::Challenge(args) => challenge(args),
        CaCommand::Verify(args) => verify(args),
        CaCommand::List(args) => list(args),
        CaCommand::Remove(args) => remove(args),
    }
}

fn add(args: &AddArgs) -> anyhow::Result<ExitCode> {
    let body = json!({"certificate": read(&args.file)?, "isVerified": args.verified});
    let path = path_of(&args.name);
    let authority = with_hub(&args.place, NoStore::Create, async |client| {
        client.call(Method::PUT, &path, &[], Some(&body)).await
    })?;
    show(&authority, args.output.output)?;
    if args.output.output == Format::Text && !args.verified {
        output::note(&format!(
            "it vouches for nobody yet; next: fieldpost ca challenge {}",
            args.name
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn challenge(args: &NameArgs) -> anyhow::Result<ExitCode> {
    let path = format!("{}/challenge", path_of(&args.name));
    let authority = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.call(Method::POST, &path, &[], None).await
    })?;
    if args.output.output == Format::Json {
        output::json(&authority)?;
        return Ok(ExitCode::SUCCESS);
    }
    let code = authority.get("verificationCode").and_then(Value::as_str);
    let code = code.context("the hub gave no code")?;
    output::line(code)?;
    output::note(&format!(
        "have the authority sign a certificate with this code as its common name, and hand it in:
  openssl req -new -newkey rsa:2048 -nodes -keyout proof.key -subj /CN={code} -out proof.csr
  openssl x509 -req -in proof.csr -CA CA.pem -CAkey CA.key -CAcreateserial -days 30 -out proof.pem
  fieldpost ca verify {} proof.pem",
        args.name
    ));
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let body = json!({"certificate": read(&args.file)?});
    let path = format!("{}/verify", path_of(&args.name));
    let authority = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.call(Method::POST, &path, &[], Some(&body)).await
    })?;
    show(&authority, args.output.output)?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let answer = with_hub(&args.place, NoStore::Refuse, async |client| {
        client.get("/api/ca").await
    })?;
    let authorities = answer.get("authorities").and_then(Value::as_array);
    let authorities = authorities.map(Vec::as_slice).unwrap_or_default();
    match args.output.output {
        Format::Json => output::json(&answer)?,
        Format::Text => {
            let rows: Vec<_> = authorities.iter().map(row).collect();
            output::print(&output::table(&COLUMNS, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let path = path_of(&args.name);
    with_hub(&args.place, NoStore::Refuse, async |client| {
        client.call(Method::DELETE, &path, &[], None).await
    })?;
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: [&str; 5] = ["NAME", "VERIFIED", "UNTIL", "SUBJECT", "THUMBPRINT"];

fn row(authority: &Value) -> Vec<String> {
    let text = |member: &str| {
        let text = authority.get(member).and_then(Value::as_str);
        output::printable(text.unwrap_or_default())
    };
    let is_verified = authority.get("isVerified") == Some(&Value::Bool(true));
    vec![
        text("name"),
        if is_verified { "yes" } else { "no" }.to_owned(),
        text("notAfter"),
        text("subject"),
        text("thumbprint"),
    ]
}

fn show(authority: &Value, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::json(authority)?,
        Format::Text => {
            for (name, value) in COLUMNS.iter().zip(row(authority)) {
                let name = format!("{:<10}", name.to_lowercase());
                output::line(&format!("{} {value}", output::heading(&name)))?;
            }
        }
    }
    Ok(())
}

fn path_of(name: &str) -> String {
    format!("/api/ca/{}", encoded(name))
}

/// A certificate as the admin API takes it, whatever the file holds.
fn read(file: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(STANDARD.encode(bytes))
}
