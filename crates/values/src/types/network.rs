//! Network and hardware addresses.

use std::net::Ipv4Addr;

use super::super::text::{hex, number};
use super::super::{ValueMismatch, network};

const NETWORK: ValueMismatch = ValueMismatch::Text("a network with zeros after its mask (10.1.0.0/16)");
const HARDWARE: ValueMismatch = ValueMismatch::Text("a hardware address (08:00:2b:01:02:03)");

/// Returns the number of mask bits for the first octet of an IPv4 network in classful addressing.
fn class_bits(first: u8) -> u8 {
    match first {
        240.. => 32,
        224.. => 8,
        192.. => 24,
        128.. => 16,
        _ => 8,
    }
}

pub(super) fn inet(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    network::address(input, false)
}

/// Reads a network. Trailing octets of zero may be omitted.
pub(super) fn cidr(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = match input.contains(':') {
        true => network::address(input, true)?,
        false => network::address(&whole(input).ok_or(NETWORK)?, true)?,
    };
    // The bytes are family, mask, flag, length and address.
    let (Some(bits), Some(address)) = (bytes.get(1), bytes.get(4..)) else { return Err(NETWORK) };
    let is_host_bit = |place: usize| {
        let octet = address.get(place / 8).copied().unwrap_or(0);
        octet & (0x80 >> (place % 8)) != 0
    };
    match (usize::from(*bits)..address.len() * 8).any(is_host_bit) {
        true => Err(NETWORK),
        false => Ok(bytes),
    }
}

/// Completes a network: `10.1` becomes `10.1.0.0/16`.
fn whole(input: &str) -> Option<String> {
    let (address, mask) = match input.split_once('/') {
        Some((address, mask)) => (address, Some(number::<u8>(mask).ok()?)),
        None => (input, None),
    };
    let mut octets = address.split('.').map(|octet| number::<u8>(octet).ok()).collect::<Option<Vec<u8>>>()?;
    let count = u8::try_from(octets.len()).ok().filter(|count| (1..=4).contains(count))?;
    let bits = mask.unwrap_or_else(|| class_bits(octets[0]).max(count * 8));
    octets.resize(4, 0);
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?);
    Some(format!("{address}/{bits}"))
}

/// Reads a `macaddr`, or with `is_long` a `macaddr8`. Six bytes are extended to eight with `ff:fe`
/// in the middle.
pub(super) fn hardware(input: &str, is_long: bool) -> Result<Vec<u8>, ValueMismatch> {
    let text = input.trim();
    let parts: Vec<&str> = text.split([':', '-', '.']).collect();
    let is_single = parts.len() == 6 || parts.len() == 8;
    let digits: String = match is_single {
        true => parts.iter().map(|part| format!("{part:0>2}")).collect(),
        false => parts.concat(),
    };
    let is_even = parts.iter().all(|part| {
        let length = if is_single { 1..=2 } else { digits.len() / parts.len()..=digits.len() / parts.len() };
        length.contains(&part.len())
    });
    let bytes = hex(&digits).map_err(|_| HARDWARE)?;
    match (bytes.as_slice(), is_long, is_even) {
        ([_, _, _, _, _, _], false, true) | ([_, _, _, _, _, _, _, _], true, true) => Ok(bytes),
        ([a, b, c, d, e, f], true, true) => Ok(vec![*a, *b, *c, 0xFF, 0xFE, *d, *e, *f]),
        _ => Err(HARDWARE),
    }
}
