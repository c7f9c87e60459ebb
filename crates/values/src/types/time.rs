//! Dates, times and intervals.
//!
//! PostgreSQL counts days and microseconds from 2000-01-01. Its range begins in 4713 BC and ends in
//! the years 5874897 (dates) and 294276 (timestamps), beyond the range of date libraries.

mod interval;
mod literal;

use std::borrow::Cow;

use bytes::Buf;
use laredo_core::Oid;

use super::{CellContext, TypeFamily, ValueEquality, push_quoted, text_of};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::parse_number;
use crate::value::{Value, string};
use crate::{digits, wire};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeType {
    Date,
    Time,
    TimeWithZone,
    Timestamp,
    TimestampWithZone,
    Interval,
}

/// The format of a date and a time together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TimestampStyle {
    /// ISO 8601, as in PostgreSQL's JSON: `2000-01-01T00:00:00+00:00`.
    Iso,
    /// PostgreSQL's text form: `2000-01-01 00:00:00+00`.
    Text,
}

impl TypeFamily for TimeType {
    const BUILTIN: &'static [(Oid, TimeType)] = &[
        (1082, TimeType::Date),
        (1083, TimeType::Time),
        (1114, TimeType::Timestamp),
        (1184, TimeType::TimestampWithZone),
        (1186, TimeType::Interval),
        (1266, TimeType::TimeWithZone),
    ];

    fn project(self, _context: &mut CellContext, cell: &[u8]) -> Result<Value, CellProblem> {
        text_of(|to| self.push(cell, TimestampStyle::Iso, to)).map(Value::String)
    }

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        text_of(|to| self.push(cell, TimestampStyle::Text, to))
    }

    fn push_json(self, _context: &mut CellContext, cell: &[u8], to: &mut Vec<u8>) -> Result<bool, CellProblem> {
        push_quoted(to, |to| self.push(cell, TimestampStyle::Iso, to))
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            TimeType::Date => parse_date(text).map(|days| days.to_be_bytes().to_vec()),
            TimeType::Time => parse_time_of_day(text).map(|micros| micros.to_be_bytes().to_vec()),
            TimeType::TimeWithZone => parse_time_with_zone(text),
            TimeType::Timestamp => parse_timestamp(text, false).map(|micros| micros.to_be_bytes().to_vec()),
            TimeType::TimestampWithZone => parse_timestamp(text, true).map(|micros| micros.to_be_bytes().to_vec()),
            TimeType::Interval => interval::parse(text),
        }
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        let text = string(value)?;
        match self {
            TimeType::Date => literal::date(text).map(|days| days.to_be_bytes().to_vec()),
            TimeType::Time => literal::time(text).map(|micros| micros.to_be_bytes().to_vec()),
            TimeType::TimeWithZone => literal::time_with_zone(text),
            TimeType::Timestamp => literal::timestamp(text).map(|micros| micros.to_be_bytes().to_vec()),
            TimeType::TimestampWithZone => {
                literal::timestamp_with_zone(text).map(|micros| micros.to_be_bytes().to_vec())
            }
            TimeType::Interval => interval::parse_literal(text),
        }
    }

    fn equality(self) -> ValueEquality {
        match self {
            TimeType::Interval => ValueEquality::OfCanonicalForms,
            TimeType::Date
            | TimeType::Time
            | TimeType::TimeWithZone
            | TimeType::Timestamp
            | TimeType::TimestampWithZone => ValueEquality::OfCells,
        }
    }

    fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
        match self {
            TimeType::Interval => Ok(interval::span(cell)?.into()),
            TimeType::Date
            | TimeType::Time
            | TimeType::TimeWithZone
            | TimeType::Timestamp
            | TimeType::TimestampWithZone => Ok(cell.into()),
        }
    }

    fn is_exact(self) -> bool {
        match self {
            TimeType::Date | TimeType::Time | TimeType::Timestamp | TimeType::TimestampWithZone => true,
            TimeType::TimeWithZone | TimeType::Interval => false,
        }
    }
}

impl TimeType {
    /// Appends the text of a cell. It has no characters that JSON escapes.
    fn push(self, cell: &[u8], style: TimestampStyle, to: &mut Vec<u8>) -> Result<(), CellProblem> {
        match self {
            TimeType::Date => push_date(cell, to),
            TimeType::Time => push_time(cell, to),
            TimeType::TimeWithZone => push_time_with_zone(cell, style, to),
            TimeType::Timestamp => push_timestamp(cell, style, false, to),
            TimeType::TimestampWithZone => push_timestamp(cell, style, true, to),
            TimeType::Interval => interval::push(cell, to),
        }
    }
}

fn push_date(input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    match i32::from_be_bytes(wire::exactly(input)?) {
        i32::MAX => to.extend(b"infinity"),
        i32::MIN => to.extend(b"-infinity"),
        days => {
            let suffix = push_day(to, days.into());
            to.extend(suffix);
        }
    }
    Ok(())
}

/// Appends a timestamp, with the time zone UTC if it is `zoned`.
fn push_timestamp(input: &[u8], style: TimestampStyle, zoned: bool, to: &mut Vec<u8>) -> Result<(), CellProblem> {
    match i64::from_be_bytes(wire::exactly(input)?) {
        i64::MAX => to.extend(b"infinity"),
        i64::MIN => to.extend(b"-infinity"),
        micros => {
            let suffix = push_day(to, micros.div_euclid(DAY_US));
            to.push(if style == TimestampStyle::Iso { b'T' } else { b' ' });
            push_time_of_day(to, micros.rem_euclid(DAY_US));
            if zoned {
                push_offset(to, 0, style);
            }
            to.extend(suffix);
        }
    }
    Ok(())
}

fn push_time(input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    push_time_of_day(to, check_time_of_day(i64::from_be_bytes(wire::exactly(input)?))?);
    Ok(())
}

fn push_time_with_zone(mut input: &[u8], style: TimestampStyle, to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let time = check_time_of_day(input.try_get_i64()?)?;
    let seconds_west = input.try_get_i32()?;
    wire::end(input)?;
    if seconds_west.unsigned_abs() >= 16 * 3600 {
        return Err(CellProblem::Impossible("time zone"));
    }
    push_time_of_day(to, time);
    push_offset(to, -seconds_west, style);
    Ok(())
}

/// Appends year, month and day in the Gregorian calendar. Returns the suffix that ends the whole
/// text for a date before year 1.
fn push_day(to: &mut Vec<u8>, days_since_2000: i64) -> &'static [u8] {
    // Years that start in March put the leap day at their end. There are 730,425 days between
    // 0000-03-01 and 2000-01-01.
    let days = days_since_2000 + 730_425;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    // There is no year 0. The year before 1 is 1 BC.
    let (year, suffix): (_, &[u8]) = if year > 0 { (year, b"") } else { (1 - year, b" BC") };
    digits::push_four(to, year.unsigned_abs());
    let ([m, n], [d, e]) = (digits::pair(month.unsigned_abs()), digits::pair(day.unsigned_abs()));
    to.extend_from_slice(&[b'-', m, n, b'-', d, e]);
    suffix
}

/// Checks a time of day, which may be 24:00:00.
fn check_time_of_day(micros: i64) -> Result<i64, CellProblem> {
    match micros {
        0..=DAY_US => Ok(micros),
        _ => Err(CellProblem::Impossible("time of day")),
    }
}

fn push_time_of_day(to: &mut Vec<u8>, micros: i64) {
    to.extend_from_slice(&clock(micros.unsigned_abs() / SECOND_US.unsigned_abs()));
    push_fraction(to, micros);
}

/// Returns hours, minutes and seconds with colons between them, for at most 99 hours.
fn clock(seconds: u64) -> [u8; 8] {
    let parts = [seconds / 3600, seconds / 60 % 60, seconds % 60];
    let [[h, i], [m, n], [s, t]] = parts.map(digits::pair);
    [h, i, b':', m, n, b':', s, t]
}

fn push_fraction(to: &mut Vec<u8>, micros: i64) {
    let fraction = (micros % SECOND_US).unsigned_abs();
    if fraction != 0 {
        to.push(b'.');
        to.extend_from_slice(&digits::pair(fraction / 10_000));
        digits::push_four(to, fraction % 10_000);
        while to.last() == Some(&b'0') {
            to.pop();
        }
    }
}

fn push_offset(to: &mut Vec<u8>, seconds_east: i32, style: TimestampStyle) {
    to.push(if seconds_east < 0 { b'-' } else { b'+' });
    let seconds = u64::from(seconds_east.unsigned_abs());
    let shown = match (seconds % 3600, seconds % 60) {
        (0, _) if style == TimestampStyle::Text => "00".len(),
        (_, 0) => "00:00".len(),
        _ => "00:00:00".len(),
    };
    to.extend_from_slice(&clock(seconds)[..shown]);
}

fn parse_date(input: &str) -> Result<i32, ValueMismatch> {
    match input {
        "infinity" => Ok(i32::MAX),
        "-infinity" => Ok(i32::MIN),
        _ => {
            let (text, is_bc) = without_era(input);
            i32::try_from(days(text, is_bc)?).map_err(|_| ValueMismatch::Range)
        }
    }
}

/// Reads a timestamp, with its time zone if it is `zoned`. The date and the time may be separated
/// as in ISO 8601 or as in PostgreSQL's text form.
fn parse_timestamp(input: &str, zoned: bool) -> Result<i64, ValueMismatch> {
    match input {
        "infinity" => return Ok(i64::MAX),
        "-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (text, is_bc) = without_era(input);
    let (date, time) = text.split_once(['T', ' ']).ok_or(ValueMismatch::Text("a timestamp"))?;
    let (time, west) = if zoned { without_zone(time)? } else { (time, 0) };
    let micros = i128::from(days(date, is_bc)?) * i128::from(DAY_US)
        + i128::from(parse_time_of_day(time)? + i64::from(west) * SECOND_US);
    i64::try_from(micros).map_err(|_| ValueMismatch::Range)
}

fn parse_time_with_zone(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (time, west) = without_zone(input)?;
    Ok([parse_time_of_day(time)?.to_be_bytes().as_slice(), &west.to_be_bytes()].concat())
}

fn without_era(input: &str) -> (&str, bool) {
    match input.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (input, false),
    }
}

/// Returns the days since 2000-01-01 of a date in the Gregorian calendar.
fn days(input: &str, is_bc: bool) -> Result<i64, ValueMismatch> {
    let mut parts = input.splitn(3, '-').map(parse_unsigned::<i64>);
    let (Some(year), Some(month), Some(day)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ValueMismatch::Text("a date"));
    };
    let (year, month, day) = (year?, month?, day?);
    if !(1..=10_000_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(ValueMismatch::Range);
    }
    Ok(days_of(year, month, day, is_bc))
}

/// Returns the days since 2000-01-01.
fn days_of(year: i64, month: i64, day: i64, is_bc: bool) -> i64 {
    // There is no year 0. The year before 1 is 1 BC. Years that start in March put the leap day at
    // their end.
    let year = if is_bc { 1 - year } else { year } - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 730_425
}

/// Reads `HH:MM:SS` with up to six decimals. 24:00:00 is a valid time of day.
fn parse_time_of_day(input: &str) -> Result<i64, ValueMismatch> {
    let mut parts = input.splitn(3, ':');
    let (Some(hours), Some(minutes), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ValueMismatch::Text("a time of day"));
    };
    if rest.starts_with('-') {
        return Err(ValueMismatch::Text("a time of day"));
    }
    let (hours, minutes, rest) = (parse_unsigned::<i64>(hours)?, parse_unsigned::<i64>(minutes)?, seconds(rest)?);
    match hours.checked_mul(HOUR_US).and_then(|hours| hours.checked_add(minutes.checked_mul(MINUTE_US)? + rest)) {
        Some(micros @ 0..=DAY_US) if minutes < 60 && rest < MINUTE_US => Ok(micros),
        _ => Err(ValueMismatch::Range),
    }
}

/// Reads seconds with up to six decimals and a sign. Returns microseconds.
fn seconds(input: &str) -> Result<i64, ValueMismatch> {
    let (sign, digits) = match input.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, input),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
    if !(1..=6).contains(&decimals.len()) {
        return Err(ValueMismatch::Text("seconds"));
    }
    let micros = parse_unsigned::<i64>(&format!("{decimals:0<6}"))?;
    let micros = parse_unsigned::<i64>(whole)?.checked_mul(SECOND_US).and_then(|whole| whole.checked_add(micros));
    micros.map(|micros| sign * micros).ok_or(ValueMismatch::Range)
}

/// Splits a time from its time zone. Returns the zone in seconds west of Greenwich.
fn without_zone(input: &str) -> Result<(&str, i32), ValueMismatch> {
    let at = input.find(['+', '-']).ok_or(ValueMismatch::Text("a time with its zone"))?;
    let (time, zone) = input.split_at(at);
    let mut parts = zone[1..].split(':').map(parse_unsigned::<i32>);
    let mut next = || parts.next().unwrap_or(Ok(0));
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(ValueMismatch::Range);
    }
    let seconds = hours * 3600 + minutes * 60 + seconds;
    Ok((time, if zone.starts_with('-') { seconds } else { -seconds }))
}

/// Reads a number without a sign.
fn parse_unsigned<T: std::str::FromStr>(input: &str) -> Result<T, ValueMismatch> {
    if input.starts_with('-') { Err(ValueMismatch::Text("a number")) } else { parse_number(input) }
}
