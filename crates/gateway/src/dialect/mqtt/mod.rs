//! The words of Azure IoT Hub's MQTT dialect: user names, topics, filters and property bags.
//!
//! Source of every form: Azure IoT Hub's documentation of its MQTT support, and what the device
//! SDKs send beyond it. Ids are compared as raw text everywhere: no SDK encodes them in MQTT, and
//! an id may hold `%`, `#`, `+` and `?`.

mod bag;
mod command;
mod filter;
mod topic;
mod user_name;

pub(crate) use bag::{Marks, decode};
pub(crate) use command::{EmptyValues, put_topic};
pub(crate) use filter::{Feature, features};
pub(crate) use topic::{DeliveryName, Topic};
pub(crate) use user_name::UserName;

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Decodes one side of a `key=value` pair; text that does not decode stays as it is.
///
/// The C device SDK encodes nothing by default, so a broken escape is text and not an error. A `+`
/// is a plus and never a space.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    let mut escapes = text.split('%');
    let Some(_before_the_first) = escapes.next() else {
        return Cow::Borrowed(text);
    };
    let mut any = false;
    for escape in escapes {
        any = true;
        let digits = escape.as_bytes().get(..2).unwrap_or_default();
        if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Cow::Borrowed(text);
        }
    }
    if !any {
        return Cow::Borrowed(text);
    }
    percent_decode_str(text)
        .decode_utf8()
        .unwrap_or(Cow::Borrowed(text))
}
