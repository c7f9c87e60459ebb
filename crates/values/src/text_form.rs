//! Built-in types from PostgreSQL's text forms.

use std::str::FromStr;

use postgres_types::Type;

use super::{ValueMismatch, geometry, network, numeric, search, time};
use crate::project::is_object_number;
use laredo_core::Lsn;

pub(super) fn builtin(builtin: &Type, input: &str) -> Result<Vec<u8>, ValueMismatch> {
    Ok(match *builtin {
        Type::BOOL => match input {
            "t" => vec![1],
            "f" => vec![0],
            _ => return Err(ValueMismatch::Text("a boolean")),
        },
        Type::INT2 => number::<i16>(input)?.to_be_bytes().to_vec(),
        Type::INT4 => number::<i32>(input)?.to_be_bytes().to_vec(),
        Type::INT8 => number::<i64>(input)?.to_be_bytes().to_vec(),
        Type::FLOAT4 => numeric::single(input)?.to_be_bytes().to_vec(),
        Type::FLOAT8 => numeric::double(input)?.to_be_bytes().to_vec(),
        Type::NUMERIC => numeric::numeric(input)?,
        Type::JSON => input.as_bytes().to_vec(),
        Type::JSONB | Type::JSONPATH => versioned(input),
        Type::CHAR => vec![single_byte(input)?],
        Type::DATE => time::date(input)?.to_be_bytes().to_vec(),
        Type::TIME => time::time(input)?.to_be_bytes().to_vec(),
        Type::TIMETZ => time::time_with_zone(input)?,
        Type::TIMESTAMP => time::timestamp(input, false)?.to_be_bytes().to_vec(),
        Type::TIMESTAMPTZ => time::timestamp(input, true)?.to_be_bytes().to_vec(),
        Type::INTERVAL => time::interval(input)?,
        Type::UUID => uuid(input)?,
        Type::INET => network::address(input, false)?,
        Type::CIDR => network::address(input, true)?,
        Type::MACADDR => network::hardware::<6>(input)?,
        Type::MACADDR8 => network::hardware::<8>(input)?,
        Type::BIT | Type::VARBIT => bits(input)?,
        Type::POINT => geometry::point(input)?,
        Type::LSEG => geometry::segment(input)?,
        Type::BOX => geometry::rectangle(input)?,
        Type::PATH => geometry::path(input)?,
        Type::POLYGON => geometry::polygon(input)?,
        Type::LINE => geometry::line(input)?,
        Type::CIRCLE => geometry::circle(input)?,
        Type::TS_VECTOR => search::document(input)?,
        Type::TSQUERY => search::query(input)?,
        Type::TID => tid(input)?,
        Type::PG_LSN => input.parse::<Lsn>().map_err(|_| ValueMismatch::Text("an LSN"))?.0.to_be_bytes().to_vec(),
        Type::TXID_SNAPSHOT | Type::PG_SNAPSHOT => visible_transactions(input)?,
        Type::XID8 => number::<u64>(input)?.to_be_bytes().to_vec(),
        _ if is_object_number(builtin) => number::<u32>(input)?.to_be_bytes().to_vec(),
        _ => escaped_hex(input)?,
    })
}

/// Reads a whole number written in decimal digits.
pub(super) fn number<T: FromStr>(input: &str) -> Result<T, ValueMismatch> {
    let digits = input.strip_prefix('-').unwrap_or(input);
    match !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) {
        true => input.parse().map_err(|_| ValueMismatch::Range),
        false => Err(ValueMismatch::Text("a whole number")),
    }
}

/// Returns the text after a version byte, which has always been 1.
pub(super) fn versioned(input: &str) -> Vec<u8> {
    [&[1], input.as_bytes()].concat()
}

/// Reads `\x` and hex digits.
pub(super) fn escaped_hex(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    hex(input.strip_prefix("\\x").ok_or(ValueMismatch::Text("bytes in hex"))?)
}

pub(super) fn hex(digits: &str) -> Result<Vec<u8>, ValueMismatch> {
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(ValueMismatch::Text("bytes in hex"));
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(ValueMismatch::Text("bytes in hex"));
    }
    pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).map_err(|_| ValueMismatch::Range))
        .collect()
}

/// Reads a `"char"`.
fn single_byte(input: &str) -> Result<u8, ValueMismatch> {
    let wrong = ValueMismatch::Text("a single byte");
    match input.as_bytes() {
        [] => Ok(0),
        [byte] if byte.is_ascii() => Ok(*byte),
        [b'\\', ..] if input.len() == 4 => u8::from_str_radix(input.get(1..).unwrap_or_default(), 8).map_err(|_| wrong),
        _ => Err(wrong),
    }
}

fn uuid(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = hex(&input.replace('-', ""))?;
    if bytes.len() == 16 { Ok(bytes) } else { Err(ValueMismatch::Text("a UUID")) }
}

fn bits(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let count = i32::try_from(input.len()).map_err(|_| ValueMismatch::Range)?;
    let mut bytes = vec![0; input.len().div_ceil(8)];
    for (number, digit) in input.bytes().enumerate() {
        match (digit, bytes.get_mut(number / 8)) {
            (b'0', _) => {}
            (b'1', Some(byte)) => *byte |= 0x80 >> (number % 8),
            _ => return Err(ValueMismatch::Text("a bit string")),
        }
    }
    Ok([&count.to_be_bytes(), bytes.as_slice()].concat())
}

fn tid(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let inner = input.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let (block, offset) = inner.and_then(|inner| inner.split_once(',')).ok_or(ValueMismatch::Text("a row's place"))?;
    Ok([number::<u32>(block)?.to_be_bytes().as_slice(), &number::<u16>(offset)?.to_be_bytes()].concat())
}

fn visible_transactions(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let mut parts = input.splitn(3, ':');
    let (Some(xmin), Some(xmax), Some(running)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ValueMismatch::Text("a snapshot"));
    };
    let running = running.split(',').filter(|id| !id.is_empty()).map(number::<u64>).collect::<Result<Vec<_>, _>>()?;
    let mut bytes = i32::try_from(running.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec();
    for id in [number::<u64>(xmin)?, number::<u64>(xmax)?].into_iter().chain(running) {
        bytes.extend(id.to_be_bytes());
    }
    Ok(bytes)
}
