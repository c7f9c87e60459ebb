//! Dates and times: PostgreSQL counts days and microseconds from 2000-01-01 and reaches from 4713 BC to the years
//! 5874897 (dates) and 294276 (timestamps), beyond what date libraries hold.

use std::fmt::Write;

use bytes::Buf;

use super::{Problem, wire};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;

/// How a date and time are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// ISO 8601, as PostgreSQL's own JSON has it: `2000-01-01T00:00:00+00:00`.
    Iso,
    /// PostgreSQL's text form: `2000-01-01 00:00:00+00`.
    Text,
}

pub(super) fn date(input: &[u8]) -> Result<String, Problem> {
    Ok(match i32::from_be_bytes(wire::exactly(input)?) {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (mut text, suffix) = civil_date(days.into());
            text.push_str(suffix);
            text
        }
    })
}

/// A timestamp, and with `zoned` one with its time zone, which is always UTC.
pub(super) fn timestamp(input: &[u8], style: Style, zoned: bool) -> Result<String, Problem> {
    Ok(match i64::from_be_bytes(wire::exactly(input)?) {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => {
            let (mut text, suffix) = civil_date(micros.div_euclid(DAY_US));
            text.push(if style == Style::Iso { 'T' } else { ' ' });
            push_time(&mut text, micros.rem_euclid(DAY_US));
            if zoned {
                push_offset(&mut text, 0, style);
            }
            text.push_str(suffix);
            text
        }
    })
}

pub(super) fn time(input: &[u8]) -> Result<String, Problem> {
    let mut text = String::new();
    push_time(&mut text, time_of_day(i64::from_be_bytes(wire::exactly(input)?))?);
    Ok(text)
}

pub(super) fn time_with_zone(mut input: &[u8], style: Style) -> Result<String, Problem> {
    let time = time_of_day(input.try_get_i64()?)?;
    let seconds_west = input.try_get_i32()?;
    wire::end(input)?;
    if seconds_west.unsigned_abs() >= 16 * 3600 {
        return Err(Problem::Impossible("time zone"));
    }
    let mut text = String::new();
    push_time(&mut text, time);
    push_offset(&mut text, -seconds_west, style);
    Ok(text)
}

/// An ISO 8601 duration as PostgreSQL writes it under `IntervalStyle = iso_8601`: each part with its own sign, because
/// months, days and microseconds do not add up to one another.
pub(super) fn interval(mut input: &[u8]) -> Result<String, Problem> {
    let micros = input.try_get_i64()?;
    let days = input.try_get_i32()?;
    let months = input.try_get_i32()?;
    wire::end(input)?;
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => return Ok("infinity".to_owned()),
        (i64::MIN, i32::MIN, i32::MIN) => return Ok("-infinity".to_owned()),
        (0, 0, 0) => return Ok("PT0S".to_owned()),
        _ => {}
    }
    let mut text = "P".to_owned();
    push_part(&mut text, (months / 12).into(), 'Y');
    push_part(&mut text, (months % 12).into(), 'M');
    push_part(&mut text, days.into(), 'D');
    if micros != 0 {
        text.push('T');
    }
    push_part(&mut text, micros / HOUR_US, 'H');
    push_part(&mut text, micros % HOUR_US / MINUTE_US, 'M');
    let seconds_us = micros % MINUTE_US;
    if seconds_us != 0 {
        let sign = if seconds_us < 0 { "-" } else { "" };
        let _ = write!(text, "{sign}{}", seconds_us.abs() / SECOND_US);
        push_fraction(&mut text, seconds_us.abs());
        text.push('S');
    }
    Ok(text)
}

/// Year, month and day in the Gregorian calendar, and what comes at the very end of a date before year 1.
fn civil_date(days_since_2000: i64) -> (String, &'static str) {
    // Years that start in March put the leap day at their end; 730,425 days lie between 0000-03-01 and 2000-01-01.
    let days = days_since_2000 + 730_425;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    // There is no year 0: it is 1 BC.
    let (year, suffix) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), suffix)
}

/// 24:00:00 is a time of day.
fn time_of_day(micros: i64) -> Result<i64, Problem> {
    match micros {
        0..=DAY_US => Ok(micros),
        _ => Err(Problem::Impossible("time of day")),
    }
}

fn push_time(text: &mut String, micros: i64) {
    let (hours, minutes) = (micros / HOUR_US, micros % HOUR_US / MINUTE_US);
    let _ = write!(text, "{hours:02}:{minutes:02}:{:02}", micros % MINUTE_US / SECOND_US);
    push_fraction(text, micros);
}

fn push_fraction(text: &mut String, micros: i64) {
    let fraction = micros % SECOND_US;
    if fraction != 0 {
        let digits = format!(".{fraction:06}");
        text.push_str(digits.trim_end_matches('0'));
    }
}

fn push_offset(text: &mut String, seconds_east: i32, style: Style) {
    let sign = if seconds_east < 0 { '-' } else { '+' };
    let seconds = seconds_east.abs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let _ = write!(text, "{sign}{hours:02}");
    if minutes != 0 || seconds != 0 || style == Style::Iso {
        let _ = write!(text, ":{minutes:02}");
    }
    if seconds != 0 {
        let _ = write!(text, ":{seconds:02}");
    }
}

fn push_part(text: &mut String, amount: i64, unit: char) {
    if amount != 0 {
        let _ = write!(text, "{amount}{unit}");
    }
}
