//! The envelope: what the hub knows about a message besides what its sender wrote.

use bytes::{Buf, BufMut, BytesMut};
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, SystemProperties, Timestamp};

use crate::view::RecordError;

/// The version of the record format that this crate writes, and the only one it reads.
pub(crate) const VERSION: u8 = 1;

/// What the hub states about a message: the stamps that no sender can forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What made the message.
    pub source: Source,
    /// When the hub accepted it; consumers see `iothub-enqueuedtime`.
    pub accepted: Timestamp,
    /// How the sender's connection was authenticated.
    pub auth: AuthStamp,
    /// The sending device.
    pub device_id: &'a str,
    /// The sending module, when it is a module's message.
    pub module_id: Option<&'a str>,
    /// The generation of the identity at the time of sending.
    pub generation_id: &'a str,
    /// The plug-and-play model that the device named when it connected.
    pub model_id: Option<&'a str>,
}

/// What made a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A device or module.
    Telemetry,
}

impl Source {
    /// The text that consumers find in `iothub-message-source`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "Telemetry",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Telemetry => 1,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Telemetry),
            _ => None,
        }
    }
}

/// Stamps that stand in the envelope although the sender sets them, because consumers get them as
/// annotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SenderStamps<'a> {
    pub(crate) component: Option<&'a str>,
    pub(crate) interface_id: Option<&'a str>,
    pub(crate) output_name: Option<&'a str>,
}

impl<'a> SenderStamps<'a> {
    pub(crate) fn of(system: &'a SystemProperties<'_>) -> Self {
        Self {
            component: system.component.as_deref(),
            interface_id: system.interface_id.as_deref(),
            output_name: system.output_name.as_deref(),
        }
    }
}

/// Bytes before the fields: version, source, scope, kind, accepted time, length of the fields.
pub(crate) const FIXED_BYTES: usize = 1 + 1 + 1 + 1 + 8 + 4;

const DEVICE_ID: u8 = 1;
const MODULE_ID: u8 = 2;
const GENERATION_ID: u8 = 3;
const MODEL_ID: u8 = 4;
const COMPONENT: u8 = 5;
const INTERFACE_ID: u8 = 6;
const OUTPUT_NAME: u8 = 7;

/// The most that tag and length of one field take.
const FIELD_OVERHEAD_MAX: usize = 1 + 5;

/// An upper bound on the bytes that [`write`] appends.
pub(crate) fn size_max(envelope: &Envelope<'_>, stamps: &SenderStamps<'_>) -> usize {
    let texts: usize = fields(envelope, stamps)
        .into_iter()
        .map(|(_, value)| field_size_max(value))
        .sum();
    FIXED_BYTES + texts
}

pub(crate) fn write(out: &mut BytesMut, envelope: &Envelope<'_>, stamps: &SenderStamps<'_>) {
    out.put_u8(VERSION);
    out.put_u8(envelope.source.code());
    out.put_u8(match envelope.auth.scope {
        AuthScope::Hub => 1,
        AuthScope::Device => 2,
        AuthScope::Module => 3,
    });
    out.put_u8(match envelope.auth.kind {
        AuthKind::Sas => 1,
        AuthKind::X509 => 2,
    });
    out.put_i64_le(envelope.accepted.as_millis());
    let length_at = out.len();
    out.put_u32_le(0);
    for (tag, value) in fields(envelope, stamps) {
        put_field(out, tag, value);
    }
    let length = length32(out.len() - length_at - 4).to_le_bytes();
    if let Some(slot) = out.get_mut(length_at..length_at + 4) {
        slot.copy_from_slice(&length);
    }
}

/// Reads an envelope; what follows it in `bytes` are the sections.
pub(crate) fn read(
    mut bytes: &[u8],
) -> Result<(Envelope<'_>, SenderStamps<'_>, &[u8]), RecordError> {
    let version = bytes.try_get_u8().map_err(|_| RecordError::Truncated)?;
    if version != VERSION {
        return Err(RecordError::Version { version });
    }
    if bytes.len() < FIXED_BYTES - 1 {
        return Err(RecordError::Truncated);
    }
    let source =
        Source::from_code(bytes.get_u8()).ok_or(RecordError::Malformed { part: "source" })?;
    let scope = match bytes.get_u8() {
        1 => AuthScope::Hub,
        2 => AuthScope::Device,
        3 => AuthScope::Module,
        _ => return Err(RecordError::Malformed { part: "scope" }),
    };
    let kind = match bytes.get_u8() {
        1 => AuthKind::Sas,
        2 => AuthKind::X509,
        _ => return Err(RecordError::Malformed { part: "credential" }),
    };
    let accepted = Timestamp::from_millis(bytes.get_i64_le());
    let fields_length = usize::try_from(bytes.get_u32_le()).unwrap_or(usize::MAX);
    let (mut fields, sections) = bytes
        .split_at_checked(fields_length)
        .ok_or(RecordError::Truncated)?;

    let mut device_id = None;
    let mut module_id = None;
    let mut generation_id = None;
    let mut model_id = None;
    let mut stamps = SenderStamps::default();
    let mut last_tag = 0;
    while !fields.is_empty() {
        let (tag, value, rest) = read_field(fields, last_tag)?;
        (last_tag, fields) = (tag, rest);
        let slot = match tag {
            DEVICE_ID => &mut device_id,
            MODULE_ID => &mut module_id,
            GENERATION_ID => &mut generation_id,
            MODEL_ID => &mut model_id,
            COMPONENT => &mut stamps.component,
            INTERFACE_ID => &mut stamps.interface_id,
            OUTPUT_NAME => &mut stamps.output_name,
            _ => return Err(RecordError::Malformed { part: "field tag" }),
        };
        *slot = Some(value);
    }
    let envelope = Envelope {
        source,
        accepted,
        auth: AuthStamp { scope, kind },
        device_id: device_id.ok_or(RecordError::Malformed { part: "device id" })?,
        module_id,
        generation_id: generation_id.ok_or(RecordError::Malformed {
            part: "generation id",
        })?,
        model_id,
    };
    Ok((envelope, stamps, sections))
}

fn fields<'a>(envelope: &Envelope<'a>, stamps: &SenderStamps<'a>) -> [(u8, Option<&'a str>); 7] {
    [
        (DEVICE_ID, Some(envelope.device_id)),
        (MODULE_ID, envelope.module_id),
        (GENERATION_ID, Some(envelope.generation_id)),
        (MODEL_ID, envelope.model_id),
        (COMPONENT, stamps.component),
        (INTERFACE_ID, stamps.interface_id),
        (OUTPUT_NAME, stamps.output_name),
    ]
}

/// The most bytes that [`put_field`] writes.
pub(crate) fn field_size_max(value: Option<&str>) -> usize {
    value.map_or(0, |value| FIELD_OVERHEAD_MAX + value.len())
}

/// Writes a field that has a value: tag, length, text.
pub(crate) fn put_field(out: &mut BytesMut, tag: u8, value: Option<&str>) {
    if let Some(value) = value {
        out.put_u8(tag);
        put_varint(out, length32(value.len()));
        out.put_slice(value.as_bytes());
    }
}

/// Reads the field behind the one with the tag `last_tag`: tag, text, what follows.
pub(crate) fn read_field(
    mut fields: &[u8],
    last_tag: u8,
) -> Result<(u8, &str, &[u8]), RecordError> {
    let tag = fields.try_get_u8().map_err(|_| RecordError::Truncated)?;
    if tag <= last_tag {
        return Err(RecordError::Malformed {
            part: "field order",
        });
    }
    let length = usize::try_from(get_varint(&mut fields)?).unwrap_or(usize::MAX);
    let (value, rest) = fields
        .split_at_checked(length)
        .ok_or(RecordError::Truncated)?;
    let value = str::from_utf8(value).map_err(|_| RecordError::Malformed { part: "field text" })?;
    Ok((tag, value, rest))
}

/// A length as the four bytes that formats have for it.
pub(crate) fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("a message is bounded by its size limit, far below 4 GiB")
}

/// Unsigned LEB128.
fn put_varint(out: &mut BytesMut, mut value: u32) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.put_u8(low & 0x7F);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

fn get_varint(bytes: &mut &[u8]) -> Result<u32, RecordError> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = bytes.try_get_u8().map_err(|_| RecordError::Truncated)?;
        let bits = u32::from(byte & 0x7F);
        if shift == 28 && bits > 0x0F {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(RecordError::Malformed {
        part: "field length",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lengths_of_every_size_are_read_back(value in any::<u32>()) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            let mut rest = &out[..];
            prop_assert_eq!(get_varint(&mut rest), Ok(value));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn lengths_beyond_32_bits_are_refused() {
        let check = |bytes: &[u8], expected: Result<u32, RecordError>| {
            assert_eq!(get_varint(&mut { bytes }), expected, "{bytes:x?}");
        };
        let malformed = Err(RecordError::Malformed {
            part: "field length",
        });
        check(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F], Ok(u32::MAX));
        check(&[0xFF, 0xFF, 0xFF, 0xFF, 0x1F], malformed);
        check(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00], malformed);
        check(&[0x80], Err(RecordError::Truncated));
        check(&[], Err(RecordError::Truncated));
    }
}
