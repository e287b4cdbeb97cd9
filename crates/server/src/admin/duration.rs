//! Spans of time in the form of ISO 8601, as Azure's hub resource has them (`PT1H`).

use std::time::Duration;

const MINUTE_S: u64 = 60;
const HOUR_S: u64 = 60 * MINUTE_S;
const DAY_S: u64 = 24 * HOUR_S;

/// Why a text is no span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidDuration {
    #[error("expected a duration of ISO 8601 such as PT1H, PT90S or P2D")]
    Form,
    #[error("years and months have no fixed length; give days or less")]
    Calendar,
}

/// Reads a span: weeks, days, hours, minutes and seconds, the seconds with a fraction or without.
pub(super) fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let rest = text.strip_prefix('P').ok_or(InvalidDuration::Form)?;
    let (date, time) = match rest.split_once('T') {
        Some((_, "")) => return Err(InvalidDuration::Form),
        Some((date, time)) => (date, time),
        None => (rest, ""),
    };
    if date.contains(['Y', 'M']) {
        return Err(InvalidDuration::Calendar);
    }
    if date.is_empty() && time.is_empty() {
        return Err(InvalidDuration::Form);
    }
    let days = parts(date, &[('W', 7 * DAY_S), ('D', DAY_S)])?;
    let rest = parts(time, &[('H', HOUR_S), ('M', MINUTE_S), ('S', 1)])?;
    days.checked_add(rest).ok_or(InvalidDuration::Form)
}

/// Writes a span with the fewest parts, to the millisecond.
pub(super) fn shown(span: Duration) -> String {
    let seconds = span.as_secs();
    let parts = [
        (seconds / DAY_S, 'D'),
        (seconds % DAY_S / HOUR_S, 'H'),
        (seconds % HOUR_S / MINUTE_S, 'M'),
    ];
    let (mut date, mut time) = (String::new(), String::new());
    for (count, unit) in parts {
        if count > 0 {
            let part = if unit == 'D' { &mut date } else { &mut time };
            part.push_str(&format!("{count}{unit}"));
        }
    }
    match (seconds % MINUTE_S, span.subsec_millis()) {
        (0, 0) if seconds > 0 => {}
        (rest, 0) => time.push_str(&format!("{rest}S")),
        (rest, millis) => {
            let fraction = format!("{millis:03}");
            time.push_str(&format!("{rest}.{}S", fraction.trim_end_matches('0')));
        }
    }
    if time.is_empty() {
        format!("P{date}")
    } else {
        format!("P{date}T{time}")
    }
}

/// Numbers with units, each unit at most once and in order.
fn parts(mut text: &str, units: &[(char, u64)]) -> Result<Duration, InvalidDuration> {
    let mut units = units.iter();
    let mut sum = Duration::ZERO;
    while !text.is_empty() {
        let at = text
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or(InvalidDuration::Form)?;
        let (number, rest) = text.split_at(at);
        let mut rest = rest.chars();
        let unit = rest.next().ok_or(InvalidDuration::Form)?;
        text = rest.as_str();
        let (_, seconds) = units
            .find(|(known, _)| *known == unit)
            .ok_or(InvalidDuration::Form)?;
        let (whole, fraction) = match number.split_once(['.', ',']) {
            // Only the smallest unit may have a fraction, and seconds are that.
            Some(_) if unit != 'S' => return Err(InvalidDuration::Form),
            Some((whole, fraction)) => (whole, nanos(fraction)?),
            None => (number, 0),
        };
        if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidDuration::Form);
        }
        let whole: u64 = whole.parse().map_err(|_| InvalidDuration::Form)?;
        let whole = whole.checked_mul(*seconds).ok_or(InvalidDuration::Form)?;
        sum = sum
            .checked_add(Duration::new(whole, fraction))
            .ok_or(InvalidDuration::Form)?;
    }
    Ok(sum)
}

fn nanos(fraction: &str) -> Result<u32, InvalidDuration> {
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidDuration::Form);
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    digits.parse().map_err(|_| InvalidDuration::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        let check = |text: &str, millis: u64, expected: &str| {
            let span = parse(text).unwrap();
            assert_eq!(span, Duration::from_millis(millis), "{text}");
            assert_eq!(shown(span), expected, "{text}");
        };
        check("PT1H", 3_600_000, "PT1H");
        check("PT60S", 60_000, "PT1M");
        check("PT1H0M0S", 3_600_000, "PT1H");
        check("P2D", 172_800_000, "P2D");
        check("PT48H", 172_800_000, "P2D");
        check("P1W", 604_800_000, "P7D");
        check("P1DT2H3M4.5S", 93_784_500, "P1DT2H3M4.5S");
        check("PT90S", 90_000, "PT1M30S");
        check("PT0,25S", 250, "PT0.25S");
        check("PT0S", 0, "PT0S");
        check("P1DT1S", 86_401_000, "P1DT1S");
    }

    #[test]
    fn what_is_no_span_is_refused() {
        let check = |text: &str, expected: InvalidDuration| {
            assert_eq!(parse(text), Err(expected), "{text}");
        };
        for text in [
            "",
            "P",
            "PT",
            "1H",
            "PT1",
            "PTH",
            "PT1X",
            "PT1S1M",
            "PT1H1H",
            "P1H",
            "PT-1S",
            "-PT1S",
            "PT1.5H",
            "PT1.S",
            "PT.5S",
            "P1DT",
            "pt1h",
            "PT+1S",
            "PT 1S",
            "3600",
            "PT18446744073709551615H",
            "PT99999999999999999999S",
        ] {
            check(text, InvalidDuration::Form);
        }
        check("P1M", InvalidDuration::Calendar);
        check("P1YT1H", InvalidDuration::Calendar);
    }
}
