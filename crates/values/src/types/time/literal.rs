//! Literals of dates and times, with the year first, and with time zones as offsets.

use super::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, days_of};
use crate::problem::ValueMismatch;

const DATE: ValueMismatch = ValueMismatch::Text("a date (2024-01-31)");
const TIME: ValueMismatch = ValueMismatch::Text("a time of day (04:05:06)");
const TIME_ZONE: ValueMismatch = ValueMismatch::Text("a time of day with its zone (04:05:06+02)");
const TIMESTAMP: ValueMismatch = ValueMismatch::Text("a timestamp (2024-01-31T04:05:06)");
const TIMESTAMP_ZONE: ValueMismatch = ValueMismatch::Text("a timestamp with its zone (2024-01-31T04:05:06Z)");

/// The last year of a date. The dates beyond it are near the number that represents infinity.
const YEAR_MAX: i64 = 5_874_897;

/// A date, a time of day, or both.
struct DateTimeParts {
    /// The days since 2000-01-01.
    days: Option<i64>,
    micros: Option<i64>,
    /// The seconds west of Greenwich.
    west: Option<i32>,
}

pub(super) fn date(input: &str) -> Result<i32, ValueMismatch> {
    if let Some(is_later) = infinity(input) {
        return Ok(if is_later { i32::MAX } else { i32::MIN });
    }
    let days = moment(input).and_then(|moment| moment.days).ok_or(DATE)?;
    i32::try_from(days).map_err(|_| ValueMismatch::Range)
}

pub(super) fn time(input: &str) -> Result<i64, ValueMismatch> {
    moment(input).and_then(|moment| moment.micros).ok_or(TIME)
}

pub(super) fn time_with_zone(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let Some(DateTimeParts { micros: Some(micros), west: Some(west), .. }) = moment(input) else {
        return Err(TIME_ZONE);
    };
    Ok([micros.to_be_bytes().as_slice(), &west.to_be_bytes()].concat())
}

/// Reads a timestamp. A time zone is ignored, as in PostgreSQL.
pub(super) fn timestamp(input: &str) -> Result<i64, ValueMismatch> {
    let since = |moment: DateTimeParts| Some((moment.days?, moment.micros.unwrap_or(0)));
    instant(input, since, TIMESTAMP)
}

pub(super) fn timestamp_with_zone(input: &str) -> Result<i64, ValueMismatch> {
    let since = |moment: DateTimeParts| {
        let west = i64::from(moment.west?) * SECOND_US;
        Some((moment.days?, moment.micros.unwrap_or(0) + west))
    };
    instant(input, since, TIMESTAMP_ZONE)
}

fn instant(
    input: &str,
    since: impl Fn(DateTimeParts) -> Option<(i64, i64)>,
    wrong: ValueMismatch,
) -> Result<i64, ValueMismatch> {
    if let Some(is_later) = infinity(input) {
        return Ok(if is_later { i64::MAX } else { i64::MIN });
    }
    let (days, micros) = moment(input).and_then(since).ok_or(wrong)?;
    let micros = i128::from(days) * i128::from(DAY_US) + i128::from(micros);
    match i64::try_from(micros) {
        Ok(micros) if micros < i64::MAX => Ok(micros),
        _ => Err(ValueMismatch::Range),
    }
}

/// Returns true for `infinity`, false for `-infinity`, and `None` for any other time.
fn infinity(input: &str) -> Option<bool> {
    match input.trim().to_ascii_lowercase().as_str() {
        "infinity" | "+infinity" => Some(true),
        "-infinity" => Some(false),
        _ => None,
    }
}

fn moment(input: &str) -> Option<DateTimeParts> {
    let (text, is_bc) = without_era(input.trim());
    let (days, rest) = match day(text, is_bc) {
        Some((days, rest)) => (Some(days), rest),
        None => (None, text),
    };
    let after = rest.strip_prefix(['T', 't']).unwrap_or(rest).trim_start();
    let (micros, rest) = match time_of_day(after) {
        Some((micros, rest)) => (Some(micros), rest),
        // A date may have a time zone without a time.
        None => (None, rest),
    };
    let zone = rest.trim_start();
    let west = if zone.is_empty() { None } else { Some(seconds_west(zone)?) };
    (days.is_some() || micros.is_some()).then_some(DateTimeParts { days, micros, west })
}

fn without_era(text: &str) -> (&str, bool) {
    let split = text.len().checked_sub(2).and_then(|at| text.split_at_checked(at));
    match split {
        Some((before, era)) if era.eq_ignore_ascii_case("bc") => (before.trim_end(), true),
        Some((before, era)) if era.eq_ignore_ascii_case("ad") => (before.trim_end(), false),
        _ => (text, false),
    }
}

/// Reads `2024-1-31` or `20240131`, and returns the rest too. A year of two digits is rejected,
/// because it could be a day.
fn day(text: &str, is_bc: bool) -> Option<(i64, &str)> {
    let (year, rest) = split_digits(text);
    let (year, month, day, rest) = match (year.len(), rest.strip_prefix('-')) {
        (3..=7, Some(rest)) => {
            let (month, rest) = split_digits(rest);
            let (day, rest) = split_digits(rest.strip_prefix('-')?);
            (year, month, day, rest)
        }
        (8, None) => (&year[..4], &year[4..6], &year[6..], rest),
        _ => return None,
    };
    if !(1..=2).contains(&month.len()) || !(1..=2).contains(&day.len()) {
        return None;
    }
    let (year, month, day) = (year.parse::<i64>().ok()?, month.parse::<i64>().ok()?, day.parse::<i64>().ok()?);
    let astronomical = if is_bc { 1 - year } else { year };
    let is_leap = astronomical % 4 == 0 && (astronomical % 100 != 0 || astronomical % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let is_day = (1..=YEAR_MAX).contains(&year) && (1..=length).contains(&day);
    is_day.then(|| (days_of(year, month, day, is_bc), rest))
}

/// Reads `4:05`, `04:05:06.789` or `04:05 PM`, and returns the rest too.
fn time_of_day(text: &str) -> Option<(i64, &str)> {
    let (hours, rest) = split_digits(text);
    let (minutes, rest) = split_digits(rest.strip_prefix(':')?);
    let (seconds, rest) = match rest.strip_prefix(':') {
        Some(rest) => split_digits(rest),
        None => ("00", rest),
    };
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if !(1..=2).contains(&hours.len()) || minutes.len() != 2 || seconds.len() != 2 {
        return None;
    }
    let (mut hours, minutes, seconds) =
        (hours.parse::<i64>().ok()?, minutes.parse::<i64>().ok()?, seconds.parse::<i64>().ok()?);
    let mut rest = rest;
    if let Some((word, after)) = rest.trim_start().split_at_checked(2)
        && (word.eq_ignore_ascii_case("am") || word.eq_ignore_ascii_case("pm"))
    {
        hours = match (1..=12).contains(&hours) {
            true => hours % 12 + if word.eq_ignore_ascii_case("pm") { 12 } else { 0 },
            false => return None,
        };
        rest = after;
    }
    let micros = hours * HOUR_US + minutes * MINUTE_US + seconds * SECOND_US + microseconds(fraction)?;
    (minutes < 60 && seconds < 60 && micros <= DAY_US).then_some((micros, rest))
}

/// Converts a fraction of a second to microseconds, rounded as in PostgreSQL.
pub(super) fn microseconds(fraction: &str) -> Option<i64> {
    let fraction: f64 = format!("0.{fraction}0").parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "it is at most a million")]
    Some((fraction * 1e6).round_ties_even() as i64)
}

/// Reads `Z`, `UTC`, `+02`, `+0230` or `-02:30:15`. Returns the seconds west of Greenwich.
fn seconds_west(zone: &str) -> Option<i32> {
    if ["z", "utc", "gmt"].iter().any(|word| zone.eq_ignore_ascii_case(word)) {
        return Some(0);
    }
    let (sign, offset) = match zone.split_at_checked(1)? {
        ("+", offset) => (-1, offset),
        ("-", offset) => (1, offset),
        _ => return None,
    };
    let (first, rest) = split_digits(offset);
    let parts: Vec<&str> = match (first.len(), rest) {
        (4, "") => vec![&first[..2], &first[2..]],
        (1..=2, rest) => [first].into_iter().chain(rest.split(':').skip(1)).collect(),
        _ => return None,
    };
    let is_clean = rest.is_empty() || rest.starts_with(':');
    let mut numbers = parts.iter().map(|part| match split_digits(part) {
        (number, "") if (1..=2).contains(&number.len()) => number.parse::<i32>().ok(),
        _ => None,
    });
    let (hours, minutes, seconds) =
        (numbers.next()??, numbers.next().unwrap_or(Some(0))?, numbers.next().unwrap_or(Some(0))?);
    let is_offset = is_clean && parts.len() <= 3 && hours <= 15 && minutes < 60 && seconds < 60;
    is_offset.then_some(sign * (hours * 3600 + minutes * 60 + seconds))
}

/// Splits a text after its leading digits.
pub(super) fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}
