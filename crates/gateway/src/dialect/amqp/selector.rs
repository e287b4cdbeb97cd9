//! The selector text with which Event Hubs clients say where they want to start.
//!
//! ```text
//! amqp.annotation.x-opt-offset          ( '>' | '>=' )  ['] offset | -1 | @latest [']
//! amqp.annotation.x-opt-sequence-number ( '>' | '>=' )  ['] integer [']
//! amqp.annotation.x-opt-enqueued-time   ( '>' | '>=' )  ['] milliseconds since 1970 [']
//! ```
//!
//! Space between the tokens is free, quotes are optional, names compare without case.

use fieldpost_hub::events::StartPosition;
use fieldpost_model::Timestamp;

/// Why a selector cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectorError {
    /// Not of the form above.
    #[error("the selector is not a comparison that this endpoint knows")]
    Syntax,
    /// The value is not one that the property can have.
    #[error("the selector compares {property} with a value that it cannot have")]
    Value {
        /// The property compared.
        property: &'static str,
    },
}

const OFFSET: &str = "x-opt-offset";
const SEQUENCE: &str = "x-opt-sequence-number";
const ENQUEUED: &str = "x-opt-enqueued-time";

/// Reads a selector.
pub(crate) fn parse(text: &str) -> Result<StartPosition, SelectorError> {
    let (name, comparison) = text
        .split_once('>')
        .map(|(name, rest)| (name.trim(), rest))
        .ok_or(SelectorError::Syntax)?;
    let (inclusive, value) = match comparison.strip_prefix('=') {
        Some(value) => (true, value),
        None => (false, comparison),
    };
    let value = unquoted(value.trim()).ok_or(SelectorError::Syntax)?;
    let property = property(name).ok_or(SelectorError::Syntax)?;
    let refused = SelectorError::Value { property };

    if property == ENQUEUED {
        let millis: i64 = value.parse().map_err(|_| refused)?;
        let after = if inclusive {
            millis.saturating_sub(1)
        } else {
            millis
        };
        return Ok(StartPosition::EnqueuedAfter(Timestamp::from_millis(after)));
    }
    if value.eq_ignore_ascii_case("@latest") {
        return Ok(StartPosition::Latest);
    }
    // -1 is the documented way to say "from the start"; nothing below it has another meaning.
    let number: i128 = value.parse().map_err(|_| refused)?;
    if number == -1 {
        return Ok(StartPosition::Earliest);
    }
    let number = u64::try_from(number).map_err(|_| refused)?;
    Ok(if property == OFFSET {
        StartPosition::Offset { number, inclusive }
    } else {
        StartPosition::Sequence { number, inclusive }
    })
}

fn property(name: &str) -> Option<&'static str> {
    const PREFIX: &str = "amqp.annotation.";
    let (prefix, name) = name.split_at_checked(PREFIX.len())?;
    if !prefix.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    [OFFSET, SEQUENCE, ENQUEUED]
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(name))
}

/// The value without its quotes; `None` when they do not pair.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('\'') {
        Some(rest) => rest.strip_suffix('\'').map(str::trim),
        None => (!value.ends_with('\'')).then_some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn selectors_of_all_clients_are_understood() {
        let check = |text: &str, expected: Result<StartPosition, SelectorError>| {
            assert_eq!(parse(text), expected, "{text}");
        };
        let offset = |number, inclusive| Ok(StartPosition::Offset { number, inclusive });
        let sequence = |number, inclusive| Ok(StartPosition::Sequence { number, inclusive });
        let enqueued = |millis| Ok(StartPosition::EnqueuedAfter(Timestamp::from_millis(millis)));
        let earliest = Ok(StartPosition::Earliest);
        let latest = Ok(StartPosition::Latest);
        check("amqp.annotation.x-opt-offset > '-1'", earliest);
        check("amqp.annotation.x-opt-offset > -1", earliest);
        check("amqp.annotation.x-opt-offset >= '-1'", earliest);
        check("amqp.annotation.x-opt-offset > '@latest'", latest);
        check("amqp.annotation.x-opt-offset > @latest", latest);
        check("amqp.annotation.x-opt-offset > '4200'", offset(4200, false));
        check("amqp.annotation.x-opt-offset >= '4200'", offset(4200, true));
        check("AMQP.Annotation.X-Opt-Offset>='0'", offset(0, true));
        check(
            "amqp.annotation.x-opt-sequence-number > '41'",
            sequence(41, false),
        );
        check(
            "amqp.annotation.x-opt-sequence-number > 2995",
            sequence(2995, false),
        );
        check(
            "  amqp.annotation.x-opt-sequence-number  >=  ' 7 ' ",
            sequence(7, true),
        );
        check("amqp.annotation.x-opt-sequence-number > '-1'", earliest);
        check(
            "amqp.annotation.x-opt-enqueued-time > '1795375773146'",
            enqueued(1_795_375_773_146),
        );
        check("amqp.annotation.x-opt-enqueued-time >= 1000", enqueued(999));
        check(
            "amqp.annotation.x-opt-enqueued-time > '-62135596800000'",
            enqueued(-62_135_596_800_000),
        );

        let syntax = Err(SelectorError::Syntax);
        let value = |property| Err(SelectorError::Value { property });
        check("", syntax);
        check("amqp.annotation.x-opt-offset", syntax);
        check("amqp.annotation.x-opt-offset < '3'", syntax);
        check("amqp.annotation.x-opt-offset > '3", syntax);
        check("amqp.annotation.x-opt-offset > 3'", syntax);
        check("amqp.annotation.x-opt-colour > '3'", syntax);
        check("x-opt-offset > '3'", syntax);
        check("amqp.annotation.x-opt-offset > ''", value(OFFSET));
        check("amqp.annotation.x-opt-offset > 'abc'", value(OFFSET));
        check("amqp.annotation.x-opt-offset > '-2'", value(OFFSET));
        check(
            "amqp.annotation.x-opt-sequence-number > '99999999999999999999999'",
            value(SEQUENCE),
        );
        check(
            "amqp.annotation.x-opt-enqueued-time > 'now'",
            value(ENQUEUED),
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(amqp\\.annotation\\.x-opt-offset)?[ >=']{0,4}\\PC{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn an_offset_that_was_handed_out_is_a_start_position(offset: u64) {
            let text = format!("amqp.annotation.x-opt-offset > '{offset}'");
            let expected = StartPosition::Offset { number: offset, inclusive: false };
            prop_assert_eq!(parse(&text), Ok(expected));
        }
    }
}
