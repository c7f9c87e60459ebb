//! Dates and times, counted in days and microseconds from 2000-01-01.

use super::ValueMismatch;

pub(super) const SECOND_US: i64 = 1_000_000;
pub(super) const MINUTE_US: i64 = 60 * SECOND_US;
pub(super) const HOUR_US: i64 = 60 * MINUTE_US;
pub(super) const DAY_US: i64 = 24 * HOUR_US;

pub(super) fn date(input: &str) -> Result<i32, ValueMismatch> {
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
pub(super) fn timestamp(input: &str, zoned: bool) -> Result<i64, ValueMismatch> {
    match input {
        "infinity" => return Ok(i64::MAX),
        "-infinity" => return Ok(i64::MIN),
        _ => {}
    }
    let (text, is_bc) = without_era(input);
    let (date, time) = text.split_once(['T', ' ']).ok_or(ValueMismatch::Text("a timestamp"))?;
    let (time, west) = if zoned { without_zone(time)? } else { (time, 0) };
    let micros = i128::from(days(date, is_bc)?) * i128::from(DAY_US)
        + i128::from(time_of_day(time)? + i64::from(west) * SECOND_US);
    i64::try_from(micros).map_err(|_| ValueMismatch::Range)
}

pub(super) fn time(input: &str) -> Result<i64, ValueMismatch> {
    time_of_day(input)
}

pub(super) fn time_with_zone(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (time, west) = without_zone(input)?;
    Ok([time_of_day(time)?.to_be_bytes().as_slice(), &west.to_be_bytes()].concat())
}

/// Reads an ISO 8601 duration, each part with its own sign.
pub(super) fn interval(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    match input {
        "infinity" => return Ok(sent_interval(i64::MAX, i32::MAX, i32::MAX)),
        "-infinity" => return Ok(sent_interval(i64::MIN, i32::MIN, i32::MIN)),
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
        let count = || super::text::number::<i64>(amount).map(i128::from);
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
    Ok(sent_interval(i64::try_from(micros).map_err(|_| ValueMismatch::Range)?, narrow(days)?, narrow(months)?))
}

pub(super) fn sent_interval(micros: i64, days: i32, months: i32) -> Vec<u8> {
    [micros.to_be_bytes().as_slice(), &days.to_be_bytes(), &months.to_be_bytes()].concat()
}

fn without_era(input: &str) -> (&str, bool) {
    match input.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (input, false),
    }
}

/// Returns the days since 2000-01-01 of a date in the Gregorian calendar.
fn days(input: &str, is_bc: bool) -> Result<i64, ValueMismatch> {
    let mut parts = input.splitn(3, '-').map(plain::<i64>);
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
pub(super) fn days_of(year: i64, month: i64, day: i64, is_bc: bool) -> i64 {
    // There is no year 0. The year before 1 is 1 BC. Years that start in March put the leap day at
    // their end.
    let year = if is_bc { 1 - year } else { year } - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 730_425
}

/// Reads `HH:MM:SS` with up to six decimals. 24:00:00 is a valid time of day.
fn time_of_day(input: &str) -> Result<i64, ValueMismatch> {
    let mut parts = input.splitn(3, ':');
    let (Some(hours), Some(minutes), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ValueMismatch::Text("a time of day"));
    };
    if rest.starts_with('-') {
        return Err(ValueMismatch::Text("a time of day"));
    }
    let (hours, minutes, rest) = (plain::<i64>(hours)?, plain::<i64>(minutes)?, seconds(rest)?);
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
    let micros = plain::<i64>(&format!("{decimals:0<6}"))?;
    let micros = plain::<i64>(whole)?.checked_mul(SECOND_US).and_then(|whole| whole.checked_add(micros));
    micros.map(|micros| sign * micros).ok_or(ValueMismatch::Range)
}

/// Splits a time from its time zone. Returns the zone in seconds west of Greenwich.
fn without_zone(input: &str) -> Result<(&str, i32), ValueMismatch> {
    let at = input.find(['+', '-']).ok_or(ValueMismatch::Text("a time with its zone"))?;
    let (time, zone) = input.split_at(at);
    let mut parts = zone[1..].split(':').map(plain::<i32>);
    let mut next = || parts.next().unwrap_or(Ok(0));
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(ValueMismatch::Range);
    }
    let seconds = hours * 3600 + minutes * 60 + seconds;
    Ok((time, if zone.starts_with('-') { seconds } else { -seconds }))
}

/// Reads a number without a sign.
fn plain<T: std::str::FromStr>(input: &str) -> Result<T, ValueMismatch> {
    if input.starts_with('-') { Err(ValueMismatch::Text("a number")) } else { super::text::number(input) }
}
