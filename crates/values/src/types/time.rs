//! Text forms of dates and times. PostgreSQL counts days and microseconds from 2000-01-01. Its
//! range begins in 4713 BC and ends in the years 5874897 (dates) and 294276 (timestamps), beyond
//! the range of date libraries.

use bytes::Buf;

use super::{CellProblem, digits, wire};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;

/// The format of a date and a time together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TimestampStyle {
    /// ISO 8601, as in PostgreSQL's JSON: `2000-01-01T00:00:00+00:00`.
    Iso,
    /// PostgreSQL's text form: `2000-01-01 00:00:00+00`.
    Text,
}

pub(super) fn date(input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    match i32::from_be_bytes(wire::exactly(input)?) {
        i32::MAX => to.extend(b"infinity"),
        i32::MIN => to.extend(b"-infinity"),
        days => {
            let suffix = push_date(to, days.into());
            to.extend(suffix);
        }
    }
    Ok(())
}

/// Appends a timestamp, with the time zone UTC if it is `zoned`.
pub(super) fn timestamp(input: &[u8], style: TimestampStyle, zoned: bool, to: &mut Vec<u8>) -> Result<(), CellProblem> {
    match i64::from_be_bytes(wire::exactly(input)?) {
        i64::MAX => to.extend(b"infinity"),
        i64::MIN => to.extend(b"-infinity"),
        micros => {
            let suffix = push_date(to, micros.div_euclid(DAY_US));
            to.push(if style == TimestampStyle::Iso { b'T' } else { b' ' });
            push_time(to, micros.rem_euclid(DAY_US));
            if zoned {
                push_offset(to, 0, style);
            }
            to.extend(suffix);
        }
    }
    Ok(())
}

pub(super) fn time(input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    push_time(to, time_of_day(i64::from_be_bytes(wire::exactly(input)?))?);
    Ok(())
}

pub(super) fn time_with_zone(mut input: &[u8], style: TimestampStyle, to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let time = time_of_day(input.try_get_i64()?)?;
    let seconds_west = input.try_get_i32()?;
    wire::end(input)?;
    if seconds_west.unsigned_abs() >= 16 * 3600 {
        return Err(CellProblem::Impossible("time zone"));
    }
    push_time(to, time);
    push_offset(to, -seconds_west, style);
    Ok(())
}

/// Appends an ISO 8601 duration as PostgreSQL writes it under `IntervalStyle = iso_8601`. Each part
/// has its own sign, because months, days and microseconds cannot be converted to one another.
pub(super) fn interval(mut input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
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

/// Appends year, month and day in the Gregorian calendar. Returns the suffix that ends the whole
/// text for a date before year 1.
fn push_date(to: &mut Vec<u8>, days_since_2000: i64) -> &'static [u8] {
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
fn time_of_day(micros: i64) -> Result<i64, CellProblem> {
    match micros {
        0..=DAY_US => Ok(micros),
        _ => Err(CellProblem::Impossible("time of day")),
    }
}

fn push_time(to: &mut Vec<u8>, micros: i64) {
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

fn push_part(to: &mut Vec<u8>, amount: i64, unit: u8) {
    if amount != 0 {
        digits::push_signed(to, amount);
        to.push(unit);
    }
}
