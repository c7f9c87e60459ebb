//! Numbers of objects, rows, transactions and positions in PostgreSQL.

use bytes::Buf;
use laredo_core::{Lsn, Oid};

use super::numbers::integer;
use super::{CellContext, TypeFamily, UNKNOWN_EQUALITY, ValueEquality};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::parse_number;
use crate::value::{Value, string};
use crate::wire;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SystemType {
    /// An unsigned 32-bit number of an object, a transaction or a command.
    ObjectNumber,
    /// A `reg` type: the number of an object that PostgreSQL prints by its name.
    NamedObject,
    /// The type `xid8`.
    TransactionNumber,
    /// The type `tid`: the block and the item of a row.
    RowLocation,
    /// The type `pg_lsn`.
    LogPosition,
    /// The type `pg_snapshot`, and its older name.
    Snapshot,
}

impl TypeFamily for SystemType {
    const BUILTIN: &'static [(Oid, SystemType)] = &[
        // `oid`, `xid` and `cid`.
        (26, SystemType::ObjectNumber),
        (28, SystemType::ObjectNumber),
        (29, SystemType::ObjectNumber),
        // `regproc`, `regprocedure`, `regoper`, `regoperator`, `regclass` and `regtype`.
        (24, SystemType::NamedObject),
        (2202, SystemType::NamedObject),
        (2203, SystemType::NamedObject),
        (2204, SystemType::NamedObject),
        (2205, SystemType::NamedObject),
        (2206, SystemType::NamedObject),
        // `regconfig`, `regdictionary`, `regnamespace`, `regrole` and `regcollation`.
        (3734, SystemType::NamedObject),
        (3769, SystemType::NamedObject),
        (4089, SystemType::NamedObject),
        (4096, SystemType::NamedObject),
        (4191, SystemType::NamedObject),
        (27, SystemType::RowLocation),
        (2970, SystemType::Snapshot),
        (3220, SystemType::LogPosition),
        (5038, SystemType::Snapshot),
        (5069, SystemType::TransactionNumber),
    ];

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            SystemType::ObjectNumber | SystemType::NamedObject => {
                Ok(u32::from_be_bytes(wire::exactly(cell)?).to_string())
            }
            SystemType::TransactionNumber => Ok(u64::from_be_bytes(wire::exactly(cell)?).to_string()),
            SystemType::RowLocation => location_text(cell),
            SystemType::LogPosition => Ok(Lsn(u64::from_be_bytes(wire::exactly(cell)?)).to_string()),
            SystemType::Snapshot => snapshot_text(cell),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            SystemType::ObjectNumber | SystemType::NamedObject => {
                parse_number::<u32>(text).map(|number| number.to_be_bytes().to_vec())
            }
            SystemType::TransactionNumber => parse_number::<u64>(text).map(|number| number.to_be_bytes().to_vec()),
            SystemType::RowLocation => parse_location(text),
            SystemType::LogPosition => match text.parse::<Lsn>() {
                Ok(position) => Ok(position.0.to_be_bytes().to_vec()),
                Err(_) => Err(ValueMismatch::Text("an LSN")),
            },
            SystemType::Snapshot => parse_snapshot(text),
        }
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            SystemType::ObjectNumber | SystemType::NamedObject => {
                integer::<u32>(value).map(|number| number.to_be_bytes().to_vec())
            }
            SystemType::TransactionNumber => integer::<u64>(value).map(|number| number.to_be_bytes().to_vec()),
            SystemType::RowLocation | SystemType::LogPosition | SystemType::Snapshot => self.parse_text(string(value)?),
        }
    }

    fn equality(self) -> ValueEquality {
        match self {
            SystemType::ObjectNumber
            | SystemType::NamedObject
            | SystemType::TransactionNumber
            | SystemType::RowLocation
            | SystemType::LogPosition => ValueEquality::OfCells,
            SystemType::Snapshot => ValueEquality::Unknown(UNKNOWN_EQUALITY),
        }
    }

    fn prints_as_postgresql(self) -> bool {
        self != SystemType::NamedObject
    }
}

fn location_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let (block, offset) = (input.try_get_u32()?, input.try_get_u16()?);
    wire::end(input)?;
    Ok(format!("({block},{offset})"))
}

fn parse_location(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let inner = input.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let (block, offset) =
        inner.and_then(|inner| inner.split_once(',')).ok_or(ValueMismatch::Text("a row's location"))?;
    Ok([parse_number::<u32>(block)?.to_be_bytes().as_slice(), &parse_number::<u16>(offset)?.to_be_bytes()].concat())
}

fn snapshot_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let count = wire::count(&mut input, 8)?;
    let (xmin, xmax) = (input.try_get_u64()?, input.try_get_u64()?);
    let mut running = Vec::with_capacity(count);
    for _ in 0..count {
        running.push(input.try_get_u64()?.to_string());
    }
    wire::end(input)?;
    Ok(format!("{xmin}:{xmax}:{}", running.join(",")))
}

fn parse_snapshot(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let mut parts = input.splitn(3, ':');
    let (Some(xmin), Some(xmax), Some(running)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ValueMismatch::Text("a snapshot"));
    };
    let running =
        running.split(',').filter(|id| !id.is_empty()).map(parse_number::<u64>).collect::<Result<Vec<_>, _>>()?;
    let mut bytes = i32::try_from(running.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec();
    for id in [parse_number::<u64>(xmin)?, parse_number::<u64>(xmax)?].into_iter().chain(running) {
        bytes.extend(id.to_be_bytes());
    }
    Ok(bytes)
}
