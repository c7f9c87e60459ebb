//! Text forms of network and hardware addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::Buf;

use super::{CellProblem, wire};

/// Returns the text of an `inet` or `cidr`. A `cidr` always shows its mask.
pub(super) fn address(mut input: &[u8]) -> Result<String, CellProblem> {
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
pub(super) fn hardware<const N: usize>(input: &[u8]) -> Result<String, CellProblem> {
    let octets = wire::exactly::<N>(input)?;
    Ok(octets.map(|octet| wire::hex(&[octet])).join(":"))
}
