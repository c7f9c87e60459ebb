//! Network and hardware addresses from their text forms.

use std::net::IpAddr;

use super::ValueMismatch;
use super::text::hex;

/// Reads an `inet` or `cidr`.
pub(super) fn address(input: &str, is_cidr: bool) -> Result<Vec<u8>, ValueMismatch> {
    let wrong = ValueMismatch::Text("a network address");
    let (address, bits) = match input.split_once('/') {
        Some((address, bits)) => (address, Some(super::text::number::<u8>(bits)?)),
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
pub(super) fn hardware<const N: usize>(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = hex(&input.replace(':', ""))?;
    if bytes.len() == N { Ok(bytes) } else { Err(ValueMismatch::Text("a hardware address")) }
}
