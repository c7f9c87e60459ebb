//! Decoders for programs that do without `postgres-types`. They accept what its decoders accept.

use super::{BOOL, BYTEA, CellConversionError, CellType, FLOAT4, FLOAT8, FromCell, INT2, INT4, INT8, OID};

/// Decodes a cell, if its type is accepted.
fn decode<'a, T>(
    is_accepted: bool,
    cell: Option<&'a [u8]>,
    decoder: impl FnOnce(&'a [u8]) -> Result<T, CellConversionError>,
) -> Option<Result<T, CellConversionError>> {
    is_accepted.then(|| decoder(cell.ok_or("the value is NULL; read it as an Option")?))
}

macro_rules! numbers {
    ($($rust:ty: $oid:ident),+) => {$(
        impl<'a> FromCell<'a> for $rust {
            fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<Self, CellConversionError>> {
                decode(ty.oid() == $oid, cell, |bytes| Ok(<$rust>::from_be_bytes(bytes.try_into()?)))
            }
        }
    )+};
}

numbers!(i16: INT2, i32: INT4, i64: INT8, u32: OID, f32: FLOAT4, f64: FLOAT8);

impl<'a> FromCell<'a> for bool {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<bool, CellConversionError>> {
        decode(ty.oid() == BOOL, cell, |bytes| Ok(<[u8; 1]>::try_from(bytes)? != [0]))
    }
}

impl<'a> FromCell<'a> for &'a str {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<&'a str, CellConversionError>> {
        decode(ty.is_text(), cell, |bytes| {
            let text = match ty.text_version() {
                Some(version) => bytes.strip_prefix(&[version]).ok_or("its version is unknown")?,
                None => bytes,
            };
            Ok(std::str::from_utf8(text)?)
        })
    }
}

impl<'a> FromCell<'a> for &'a [u8] {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<&'a [u8], CellConversionError>> {
        decode(ty.oid() == BYTEA, cell, Ok)
    }
}

impl<'a> FromCell<'a> for String {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<String, CellConversionError>> {
        Some(<&str>::from_cell(ty, cell)?.map(str::to_owned))
    }
}

impl<'a> FromCell<'a> for Vec<u8> {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<Vec<u8>, CellConversionError>> {
        Some(<&[u8]>::from_cell(ty, cell)?.map(<[u8]>::to_vec))
    }
}

impl<'a, T: FromCell<'a>> FromCell<'a> for Option<T> {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<Option<T>, CellConversionError>> {
        let read = T::from_cell(ty, cell)?;
        Some(if cell.is_some() { read.map(Some) } else { Ok(None) })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use laredo_core::{Oid, TypeKind};
    use postgres_types::{FromSql, Kind, Type};

    use super::super::tests::cell_type;
    use super::*;

    /// Checks that a cell is accepted and read as `postgres-types` does.
    fn compare<'a, T: FromCell<'a> + FromSql<'a> + Debug>(ty: &CellType, theirs: &Type, bytes: &'a [u8]) {
        let ours = T::from_cell(ty, Some(bytes)).map(Result::ok);
        let accepted = <T as FromSql>::accepts(theirs);
        let theirs = accepted.then(|| T::from_sql(theirs, bytes).ok());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{ty:?}, {bytes:?}");
    }

    fn compare_all(ty: &CellType, theirs: &Type) {
        let cells: [&[u8]; 12] = [
            b"",
            b"\0",
            b"\x01",
            b"a",
            b"\xff",
            b"ab",
            b"abc",
            b"\x01a.b",
            b"\xc3\xa9",
            b"\x7f\xc0\0\0",
            b"12345678",
            b"123456789",
        ];
        for bytes in cells {
            compare::<bool>(ty, theirs, bytes);
            compare::<i16>(ty, theirs, bytes);
            compare::<i32>(ty, theirs, bytes);
            compare::<i64>(ty, theirs, bytes);
            compare::<u32>(ty, theirs, bytes);
            compare::<f32>(ty, theirs, bytes);
            compare::<f64>(ty, theirs, bytes);
            compare::<&str>(ty, theirs, bytes);
            compare::<String>(ty, theirs, bytes);
            compare::<&[u8]>(ty, theirs, bytes);
            compare::<Vec<u8>>(ty, theirs, bytes);
            compare::<Option<&str>>(ty, theirs, bytes);
        }
    }

    #[test]
    fn every_type_is_read_as_postgres_types_reads_it() {
        let built_in: Vec<(Oid, Type)> = (0..10_000).filter_map(|oid| Some((oid, Type::from_oid(oid)?))).collect();
        assert!(built_in.len() > 100, "{}", built_in.len());
        for (oid, theirs) in built_in {
            compare_all(&cell_type(oid, &[]), &theirs);
        }
        for name in ["citext", "ltree", "lquery", "ltxtquery", "hstore", "other"] {
            let theirs = Type::new(name.to_owned(), 90_000, Kind::Simple, String::new());
            compare_all(&cell_type(90_000, &[(90_000, name, TypeKind::Base)]), &theirs);
        }
        let labels = || vec!["sad".to_owned()];
        let theirs = Type::new("mood".to_owned(), 90_000, Kind::Enum(labels()), String::new());
        compare_all(&cell_type(90_000, &[(90_000, "mood", TypeKind::Enum(labels()))]), &theirs);
    }
}
