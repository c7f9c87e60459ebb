//! The type `interval`: months, days and microseconds.

use bytes::Buf;

use super::literal::{microseconds, split_digits};
use super::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, push_fraction, seconds};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::parse_number;
use crate::{digits, wire};

const INTERVAL: ValueMismatch = ValueMismatch::Text("an interval (P1DT2H3M4S, or 1 day 02:03:04)");

/// Appends an ISO 8601 duration as PostgreSQL writes it under `IntervalStyle = iso_8601`. Each part
/// has its own sign, because months, days and microseconds cannot be converted to one another.
pub(super) fn push(mut input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let micros = input.try_get_i64()?;
    let days = input.try_get_i32()?;
    let months = input.try_get_i32()?;
    wire::end(input)?;
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => to.extend(b"infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => to.extend(b"-infinity"),
        (0, 0, 0) => to.extend(b"PT0S"),
        _ => push_interval(to, micros, days, months),
    }
    Ok(())
}

fn push_interval(to: &mut Vec<u8>, micros: i64, days: i32, months: i32) {
    to.push(b'P');
    push_part(to, (months / 12).into(), b'Y');
    push_part(to, (months % 12).into(), b'M');
    push_part(to, days.into(), b'D');
    if micros != 0 {
        to.push(b'T');
    }
    push_part(to, micros / HOUR_US, b'H');
    push_part(to, micros % HOUR_US / MINUTE_US, b'M');
    let seconds_us = micros % MINUTE_US;
    if seconds_us != 0 {
        if seconds_us < 0 {
            to.push(b'-');
        }
        digits::push(to, seconds_us.unsigned_abs() / SECOND_US.unsigned_abs());
        push_fraction(to, seconds_us.abs());
        to.push(b'S');
    }
}

fn push_part(to: &mut Vec<u8>, amount: i64, unit: u8) {
    if amount != 0 {
        digits::push_signed(to, amount);
        to.push(unit);
    }
}

/// Reads an ISO 8601 duration, each part with its own sign.
pub(super) fn parse(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    match input {
        "infinity" => return Ok(cell_of(i64::MAX, i32::MAX, i32::MAX)),
        "-infinity" => return Ok(cell_of(i64::MIN, i32::MIN, i32::MIN)),
        _ => {}
    }
    let wrong = || ValueMismatch::Text("an ISO 8601 duration");
    let (mut rest, mut in_time) = (input.strip_prefix('P').ok_or_else(wrong)?, false);
    // No sum of parts overflows 128 bits.
    let (mut months, mut days, mut micros) = (0_i128, 0_i128, 0_i128);
    while !rest.is_empty() {
        if let Some(time) = rest.strip_prefix('T') {
            (rest, in_time) = (time, true);
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (amount, unit) = (&rest[..end], rest.as_bytes().get(end).copied().unwrap_or(0));
        rest = &rest[end + 1..];
        let count = || parse_number::<i64>(amount).map(i128::from);
        match (in_time, unit) {
            (false, b'Y') => months += count()? * 12,
            (false, b'M') => months += count()?,
            (false, b'D') => days += count()?,
            (true, b'H') => micros += count()? * i128::from(HOUR_US),
            (true, b'M') => micros += count()? * i128::from(MINUTE_US),
            (true, b'S') => micros += i128::from(seconds(amount)?),
            _ => return Err(wrong()),
        }
    }
    let narrow = |value: i128| i32::try_from(value).map_err(|_| ValueMismatch::Range);
    Ok(cell_of(i64::try_from(micros).map_err(|_| ValueMismatch::Range)?, narrow(days)?, narrow(months)?))
}

fn cell_of(micros: i64, days: i32, months: i32) -> Vec<u8> {
    [micros.to_be_bytes().as_slice(), &days.to_be_bytes(), &months.to_be_bytes()].concat()
}

pub(super) fn parse_literal(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let text = input.trim().to_ascii_lowercase();
    if matches!(text.as_str(), "infinity" | "-infinity") {
        return parse(&text);
    }
    if text.starts_with('p') {
        return parse(&text.to_ascii_uppercase()).map_err(|_| INTERVAL);
    }
    let (text, sign) = match text.strip_suffix("ago") {
        Some(text) => (text.trim_end(), -1),
        None => (text.as_str(), 1),
    };
    let mut sum = IntervalSum::default();
    let mut rest = text.strip_prefix('@').unwrap_or(text).trim_start();
    if rest.is_empty() {
        return Err(INTERVAL);
    }
    while !rest.is_empty() {
        rest = part(rest, &mut sum).ok_or(INTERVAL)?.trim_start();
    }
    let narrow = |value: i128| i32::try_from(sign * value).map_err(|_| ValueMismatch::Range);
    let micros = i64::try_from(sign * sum.micros).map_err(|_| ValueMismatch::Range)?;
    Ok(cell_of(micros, narrow(sum.days)?, narrow(sum.months)?))
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
    let (whole, rest) = split_digits(unsigned);
    let number: i128 = i128::from(whole.parse::<i64>().ok()?);
    if let Some(rest) = rest.strip_prefix(':') {
        let (clock, rest) = clock_time(number, rest)?;
        sum.micros += sign * clock;
        return Some(rest);
    }
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
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
fn clock_time(hours: i128, text: &str) -> Option<(i128, &str)> {
    let (minutes, rest) = split_digits(text);
    let (seconds, rest) = match rest.strip_prefix(':') {
        Some(rest) => split_digits(rest),
        None => ("0", rest),
    };
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    let (minutes, seconds) = (minutes.parse::<i64>().ok()?, seconds.parse::<i64>().ok()?);
    let micros = minutes * MINUTE_US + seconds * SECOND_US + microseconds(fraction)?;
    let is_clock = minutes < 60 && seconds < 60 && (rest.is_empty() || rest.starts_with(' '));
    is_clock.then(|| (hours * i128::from(HOUR_US) + i128::from(micros), rest))
}

/// Returns the length of an interval in microseconds, where a month has 30 days and a day has 24
/// hours.
pub(super) fn span(mut bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
    const DAY_US: i128 = 24 * 60 * 60 * 1_000_000;
    let (micros, days, months) = (bytes.try_get_i64()?, bytes.try_get_i32()?, bytes.try_get_i32()?);
    wire::end(bytes)?;
    let days = i128::from(months) * 30 + i128::from(days);
    Ok((days * DAY_US + i128::from(micros)).to_be_bytes().to_vec())
}
