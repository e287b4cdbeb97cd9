//! Devices for a hub, put in with its own bulk import.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use fieldpost_testkit::hub::HubProcess;

/// The key of every device: what is measured is not the choosing of keys.
pub(crate) const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Registers devices with a running hub. The file for that is left in `folder`.
///
/// # Errors
/// When the file cannot be written, or the hub does not take every device.
pub(crate) async fn import(
    hub: &HubProcess,
    folder: &Path,
    names: impl Iterator<Item = String>,
) -> Result<()> {
    let path = folder.join("devices.ndjson");
    let mut file = BufWriter::new(std::fs::File::create(&path)?);
    for name in names {
        writeln!(
            file,
            r#"{{"id":"{name}","importMode":"create","authentication":{{"symmetricKey":{{"primaryKey":"{KEY}","secondaryKey":"{KEY}"}}}}}}"#
        )?;
    }
    file.into_inner()?;
    let path = path.to_str().context("the folder's name is text")?;
    hub.run(&["device", "import", path]).await?;
    Ok(())
}
