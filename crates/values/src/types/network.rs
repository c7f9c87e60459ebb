//! Network and hardware addresses.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Buf;
use laredo_core::Oid;

use super::{CellContext, TypeFamily, ValueEquality};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::{hex, parse_hex, parse_number};
use crate::value::{Value, string};
use crate::wire;

const NETWORK: ValueMismatch = ValueMismatch::Text("a network with zeros after its mask (10.1.0.0/16)");
const HARDWARE: ValueMismatch = ValueMismatch::Text("a hardware address (08:00:2b:01:02:03)");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkType {
    Inet,
    Cidr,
    Macaddr,
    Macaddr8,
}

impl TypeFamily for NetworkType {
    const BUILTIN: &'static [(Oid, NetworkType)] = &[
        (650, NetworkType::Cidr),
        (774, NetworkType::Macaddr8),
        (829, NetworkType::Macaddr),
        (869, NetworkType::Inet),
    ];

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            NetworkType::Inet | NetworkType::Cidr => address_text(cell),
            NetworkType::Macaddr => hardware_text::<6>(cell),
            NetworkType::Macaddr8 => hardware_text::<8>(cell),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            NetworkType::Inet => parse_address(text, false),
            NetworkType::Cidr => parse_address(text, true),
            NetworkType::Macaddr => parse_hardware::<6>(text),
            NetworkType::Macaddr8 => parse_hardware::<8>(text),
        }
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        let text = string(value)?;
        match self {
            NetworkType::Inet => parse_address(text, false),
            NetworkType::Cidr => parse_cidr_literal(text),
            NetworkType::Macaddr => parse_hardware_literal(text, false),
            NetworkType::Macaddr8 => parse_hardware_literal(text, true),
        }
    }

    fn equality(self) -> ValueEquality {
        match self {
            NetworkType::Inet | NetworkType::Cidr => ValueEquality::OfCanonicalForms,
            NetworkType::Macaddr | NetworkType::Macaddr8 => ValueEquality::OfCells,
        }
    }

    fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
        match self {
            NetworkType::Inet | NetworkType::Cidr => {
                // The flag that distinguishes `cidr` from `inet` does not count.
                let [family, mask, _, rest @ ..] = cell else { return Err(CellProblem::Torn) };
                Ok([&[*family, *mask][..], rest].concat().into())
            }
            NetworkType::Macaddr | NetworkType::Macaddr8 => Ok(cell.into()),
        }
    }
}

/// Returns the text of an `inet` or `cidr`. A `cidr` always shows its mask.
fn address_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let family = input.try_get_u8()?;
    let bits = input.try_get_u8()?;
    let is_cidr = input.try_get_u8()? != 0;
    let length = usize::from(input.try_get_u8()?);
    let address = wire::take_bytes(&mut input, length)?;
    wire::end(input)?;
    let (text, host_bits) = match (family, address.len()) {
        (2, 4) => (Ipv4Addr::from(wire::exactly::<4>(address)?).to_string(), 32),
        (3, 16) => (ipv6(Ipv6Addr::from(wire::exactly::<16>(address)?)), 128),
        _ => return Err(CellProblem::Impossible("address family")),
    };
    match bits {
        _ if bits > host_bits => Err(CellProblem::Impossible("mask")),
        _ if bits == host_bits && !is_cidr => Ok(text),
        _ => Ok(format!("{text}/{bits}")),
    }
}

/// Returns the text of an IPv6 address. PostgreSQL writes the last 32 bits of an address that
/// begins with 96 zeros as IPv4.
fn ipv6(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => {
            let [.., a, b, c, d] = address.octets();
            format!("::{}", Ipv4Addr::new(a, b, c, d))
        }
        _ => address.to_string(),
    }
}

/// Returns the text of a `macaddr` (6 bytes) or `macaddr8` (8 bytes).
fn hardware_text<const N: usize>(input: &[u8]) -> Result<String, CellProblem> {
    let octets = wire::exactly::<N>(input)?;
    Ok(octets.map(|octet| hex(&[octet])).join(":"))
}

/// Reads an `inet` or `cidr`.
fn parse_address(input: &str, is_cidr: bool) -> Result<Vec<u8>, ValueMismatch> {
    let wrong = ValueMismatch::Text("a network address");
    let (address, bits) = match input.split_once('/') {
        Some((address, bits)) => (address, Some(parse_number::<u8>(bits)?)),
        None => (input, None),
    };
    let (family, host_bits, bytes) = match address.parse().map_err(|_| wrong)? {
        IpAddr::V4(address) => (2, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (3, 128, address.octets().to_vec()),
    };
    let bits = bits.unwrap_or(host_bits);
    if bits > host_bits {
        return Err(ValueMismatch::Range);
    }
    let length = if family == 2 { 4 } else { 16 };
    Ok([&[family, bits, u8::from(is_cidr), length], bytes.as_slice()].concat())
}

/// Reads a `macaddr` (6 bytes) or `macaddr8` (8 bytes).
fn parse_hardware<const N: usize>(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = parse_hex(&input.replace(':', ""))?;
    if bytes.len() == N { Ok(bytes) } else { Err(ValueMismatch::Text("a hardware address")) }
}

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

/// Reads a network. Trailing octets of zero may be omitted.
fn parse_cidr_literal(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = match input.contains(':') {
        true => parse_address(input, true)?,
        false => parse_address(&whole_network(input).ok_or(NETWORK)?, true)?,
    };
    // The bytes are family, mask, flag, length and address.
    let (Some(bits), Some(address)) = (bytes.get(1), bytes.get(4..)) else { return Err(NETWORK) };
    let is_host_bit = |bit: usize| {
        let octet = address.get(bit / 8).copied().unwrap_or(0);
        octet & (0x80 >> (bit % 8)) != 0
    };
    match (usize::from(*bits)..address.len() * 8).any(is_host_bit) {
        true => Err(NETWORK),
        false => Ok(bytes),
    }
}

/// Completes a network: `10.1` becomes `10.1.0.0/16`.
fn whole_network(input: &str) -> Option<String> {
    let (address, mask) = match input.split_once('/') {
        Some((address, mask)) => (address, Some(parse_number::<u8>(mask).ok()?)),
        None => (input, None),
    };
    let mut octets = address.split('.').map(|octet| parse_number::<u8>(octet).ok()).collect::<Option<Vec<u8>>>()?;
    let count = u8::try_from(octets.len()).ok().filter(|count| (1..=4).contains(count))?;
    let bits = mask.unwrap_or_else(|| class_bits(octets[0]).max(count * 8));
    octets.resize(4, 0);
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?);
    Some(format!("{address}/{bits}"))
}

/// Reads a `macaddr`, or with `is_long` a `macaddr8`. Six bytes are extended to eight with `ff:fe`
/// in the middle.
fn parse_hardware_literal(input: &str, is_long: bool) -> Result<Vec<u8>, ValueMismatch> {
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
    let bytes = parse_hex(&digits).map_err(|_| HARDWARE)?;
    match (bytes.as_slice(), is_long, is_even) {
        ([_, _, _, _, _, _], false, true) | ([_, _, _, _, _, _, _, _], true, true) => Ok(bytes),
        ([a, b, c, d, e, f], true, true) => Ok(vec![*a, *b, *c, 0xFF, 0xFE, *d, *e, *f]),
        _ => Err(HARDWARE),
    }
}
