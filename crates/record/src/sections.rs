//! The few AMQP 1.0 encodings that records and annotations are made of (AMQP 1.0, parts 1.6 and
//! 3.2).

use bytes::{Buf, BufMut, BytesMut};

/// Descriptor codes of message sections (AMQP 1.0, part 3.2).
pub(crate) const MESSAGE_ANNOTATIONS: u8 = 0x72;
pub(crate) const PROPERTIES: u8 = 0x73;
pub(crate) const APPLICATION_PROPERTIES: u8 = 0x74;
pub(crate) const DATA: u8 = 0x75;

/// Bytes of a section's descriptor: described type, small ulong, code.
pub(crate) const SECTION_HEADER_BYTES: usize = 3;

/// Constructors (AMQP 1.0, part 1.6).
pub(crate) mod code {
    /// The two widths of a variable-width type.
    #[derive(Clone, Copy)]
    pub(crate) struct Variable {
        pub(crate) short: u8,
        pub(crate) long: u8,
    }

    /// The two widths of a compound type.
    #[derive(Clone, Copy)]
    pub(crate) struct Compound {
        pub(crate) short: u8,
        pub(crate) long: u8,
    }

    pub(crate) const NULL: u8 = 0x40;
    pub(crate) const LONG: u8 = 0x81;
    pub(crate) const TIMESTAMP: u8 = 0x83;
    pub(crate) const BINARY: Variable = Variable {
        short: 0xA0,
        long: 0xB0,
    };
    pub(crate) const STRING: Variable = Variable {
        short: 0xA1,
        long: 0xB1,
    };
    pub(crate) const SYMBOL: Variable = Variable {
        short: 0xA3,
        long: 0xB3,
    };
    pub(crate) const LIST: Compound = Compound {
        short: 0xC0,
        long: 0xD0,
    };
    pub(crate) const MAP: Compound = Compound {
        short: 0xC1,
        long: 0xD1,
    };
}

/// A length or count as the four bytes that formats have for it.
pub(crate) fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("a message is bounded by its size limit, far below 4 GiB")
}

/// Overwrites the four bytes at `at` with the number of bytes after them.
pub(crate) fn patch_length32(out: &mut BytesMut, at: usize, bytes: impl Fn(u32) -> [u8; 4]) {
    let length = length32(out.len().saturating_sub(at + 4));
    if let Some(slot) = out.get_mut(at..at + 4) {
        slot.copy_from_slice(&bytes(length));
    }
}

pub(crate) fn put_descriptor(out: &mut BytesMut, section: u8) {
    out.put_slice(&[0x00, 0x53, section]);
}

/// Bytes of a variable-width value with `length` bytes of content.
pub(crate) fn variable_size(length: usize) -> usize {
    if length <= usize::from(u8::MAX) {
        1 + 1 + length
    } else {
        1 + 4 + length
    }
}

pub(crate) fn put_variable(out: &mut BytesMut, constructor: code::Variable, value: &[u8]) {
    put_variable_header(out, constructor, value.len());
    out.put_slice(value);
}

pub(crate) fn put_variable_header(out: &mut BytesMut, constructor: code::Variable, length: usize) {
    match u8::try_from(length) {
        Ok(length) => out.put_slice(&[constructor.short, length]),
        Err(_) => {
            out.put_u8(constructor.long);
            out.put_u32(length32(length));
        }
    }
}

/// An upper bound on the bytes of a section that is a list or map of `size` bytes of content.
pub(crate) fn compound_size(size: usize) -> usize {
    SECTION_HEADER_BYTES + 1 + 4 + 4 + size
}

/// The header of a list or map whose items take `size` bytes. Never the empty-list constructor,
/// which some clients cannot read.
pub(crate) fn put_compound(
    out: &mut BytesMut,
    constructor: code::Compound,
    size: usize,
    count: usize,
) {
    match (u8::try_from(size + 1), u8::try_from(count)) {
        (Ok(size), Ok(count)) => out.put_slice(&[constructor.short, size, count]),
        _ => {
            out.put_u8(constructor.long);
            out.put_u32(length32(size + 4));
            out.put_u32(length32(count));
        }
    }
}

/// Takes the section `section` off the front of `bytes`: everything behind its descriptor, up to
/// the end of `bytes`. `None` when another one stands there.
pub(crate) fn after_descriptor(bytes: &[u8], section: u8) -> Option<&[u8]> {
    bytes.strip_prefix(&[0x00, 0x53, section])
}

/// Takes a list or map off the front of `bytes`: the bytes of its items.
pub(crate) fn take_compound<'a>(
    bytes: &mut &'a [u8],
    constructor: code::Compound,
) -> Option<&'a [u8]> {
    let found = bytes.try_get_u8().ok()?;
    if found == constructor.short {
        let size = usize::from(bytes.try_get_u8().ok()?);
        take(bytes, size)?.get(1..)
    } else if found == constructor.long {
        let size = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        take(bytes, size)?.get(4..)
    } else {
        None
    }
}

/// Takes a variable-width value off the front of `bytes`; the outer `None` when something else
/// stands there, the inner one for null.
pub(crate) fn take_variable<'a>(
    bytes: &mut &'a [u8],
    constructor: code::Variable,
) -> Option<Option<&'a [u8]>> {
    let found = bytes.try_get_u8().ok()?;
    if found == code::NULL {
        return Some(None);
    }
    let length = if found == constructor.short {
        usize::from(bytes.try_get_u8().ok()?)
    } else if found == constructor.long {
        usize::try_from(bytes.try_get_u32().ok()?).ok()?
    } else {
        return None;
    };
    take(bytes, length).map(Some)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}
