//! Intervals: ISO 8601 durations, and numbers with their units.

use super::super::ValueMismatch;
use super::super::time::{self, DAY_US, HOUR_US, MINUTE_US, SECOND_US, sent_interval};
use super::datetime::{digits, microseconds};

const WRONG: ValueMismatch = ValueMismatch::Text("an interval (P1DT2H3M4S, or 1 day 02:03:04)");

pub(super) fn interval(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let text = input.trim().to_ascii_lowercase();
    if matches!(text.as_str(), "infinity" | "-infinity") {
        return time::interval(&text);
    }
    if text.starts_with('p') {
        return time::interval(&text.to_ascii_uppercase()).map_err(|_| WRONG);
    }
    let (text, sign) = match text.strip_suffix("ago") {
        Some(text) => (text.trim_end(), -1),
        None => (text.as_str(), 1),
    };
    let mut sum = IntervalSum::default();
    let mut rest = text.strip_prefix('@').unwrap_or(text).trim_start();
    if rest.is_empty() {
        return Err(WRONG);
    }
    while !rest.is_empty() {
        rest = part(rest, &mut sum).ok_or(WRONG)?.trim_start();
    }
    let narrow = |value: i128| i32::try_from(sign * value).map_err(|_| ValueMismatch::Range);
    let micros = i64::try_from(sign * sum.micros).map_err(|_| ValueMismatch::Range)?;
    Ok(sent_interval(micros, narrow(sum.days)?, narrow(sum.months)?))
}

/// The sum of an interval's parts. No sum of parts overflows 128 bits.
#[derive(Default)]
struct IntervalSum {
    months: i128,
    days: i128,
    micros: i128,
}

/// Adds `-3 days`, `1.5 hours` or `-04:05:06.789`, and returns the rest.
fn part<'a>(text: &'a str, sum: &mut IntervalSum) -> Option<&'a str> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, rest) = digits(unsigned);
    let number: i128 = i128::from(whole.parse::<i64>().ok()?);
    if let Some(rest) = rest.strip_prefix(':') {
        let (clock, rest) = clock(number, rest)?;
        sum.micros += sign * clock;
        return Some(rest);
    }
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    // More digits would be rounded differently than in PostgreSQL.
    if fraction.len() > 6 {
        return None;
    }
    let rest = rest.trim_start();
    let (unit, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len()));
    let millionths = sign * (number * 1_000_000 + i128::from(microseconds(fraction)?));
    let whole = || (millionths % 1_000_000 == 0).then_some(millionths / 1_000_000);
    let mut time = |unit_us: i64| sum.micros += millionths * i128::from(unit_us) / 1_000_000;
    match unit {
        "millennium" | "millennia" | "mil" | "mils" => sum.months += whole()? * 12_000,
        "century" | "centuries" | "cent" | "c" => sum.months += whole()? * 1200,
        "decade" | "decades" | "dec" | "decs" => sum.months += whole()? * 120,
        "year" | "years" | "yr" | "yrs" | "y" => sum.months += whole()? * 12,
        "month" | "months" | "mon" | "mons" => sum.months += whole()?,
        "week" | "weeks" | "w" => sum.days += whole()? * 7,
        "day" | "days" | "d" => {
            sum.days += millionths / 1_000_000;
            sum.micros += millionths % 1_000_000 * i128::from(DAY_US) / 1_000_000;
        }
        "hour" | "hours" | "hr" | "hrs" | "h" => time(HOUR_US),
        "minute" | "minutes" | "min" | "mins" | "m" => time(MINUTE_US),
        "second" | "seconds" | "sec" | "secs" | "s" => time(SECOND_US),
        "millisecond" | "milliseconds" | "msec" | "msecs" | "ms" => time(1000),
        "microsecond" | "microseconds" | "usec" | "usecs" | "us" => time(1),
        _ => return None,
    }
    Some(rest)
}

/// Reads the rest of `04:05:06.789` after its hours. Returns the whole time in microseconds, and
/// the rest of the text.
fn clock(hours: i128, text: &str) -> Option<(i128, &str)> {
    let (minutes, rest) = digits(text);
    let (seconds, rest) = match rest.strip_prefix(':') {
        Some(rest) => digits(rest),
        None => ("0", rest),
    };
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    let (minutes, seconds) = (minutes.parse::<i64>().ok()?, seconds.parse::<i64>().ok()?);
    let micros = minutes * MINUTE_US + seconds * SECOND_US + microseconds(fraction)?;
    let is_clock = minutes < 60 && seconds < 60 && (rest.is_empty() || rest.starts_with(' '));
    is_clock.then(|| (hours * i128::from(HOUR_US) + i128::from(micros), rest))
}
