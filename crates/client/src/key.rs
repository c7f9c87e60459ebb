//! Key values from callers, encoded as the cells that rows contain.

use std::error::Error;

use laredo_core::{Cell, KeyColumns, TupleBuf};

use crate::cell::{BOOL, BYTEA, CellConversionError, CellType, FLOAT4, FLOAT8, INT2, INT4, INT8, OID, UUID};
use crate::layout::RowLayout;

/// The reason why values are not a key of an index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No index with this name was declared.
    #[error("there is no index `{0}`; declare it with Replica::builder(…).index(…), or .lookup(…) for `lookup`")]
    NoIndex(String),
    /// The number of values differs from the number of columns.
    #[error("the key has {expected} columns, but {found} values were given")]
    Count {
        /// The number of columns of the key.
        expected: usize,
        /// The number of values given.
        found: usize,
    },
    /// A value that does not fit its column.
    #[error("key column `{column}` ({postgres}) cannot hold the value given: {source}")]
    Value {
        /// The name of the column.
        column: String,
        /// The column's type, as PostgreSQL spells it.
        postgres: String,
        /// The error of the encoder.
        source: Box<dyn Error + Sync + Send>,
    },
}

/// A value in a key.
///
/// Integers fit every integer column whose range includes them. A text also fits an enum and a
/// `uuid`. With the feature `postgres-types`, any other type with a `ToSql` is passed in `Sql`.
/// Only this crate can implement the trait.
///
/// Keys are compared by their bytes. So a `numeric` must have the scale that it was stored with,
/// and a `char(n)` its padding.
pub trait KeyValue {
    /// Appends the cell with the value in a column of this type.
    ///
    /// # Errors
    /// When such a column cannot contain the value.
    #[doc(hidden)]
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError>;
}

/// The values of a key, in key order: one value, a tuple of up to six, or a slice of `&dyn
/// KeyValue`.
pub trait KeyValues {
    /// Calls `each` with every value, in order.
    ///
    /// # Errors
    /// The first error that `each` returns.
    fn for_each(&self, each: &mut dyn FnMut(&dyn KeyValue) -> Result<(), KeyError>) -> Result<(), KeyError>;
}

/// A wrapper that makes any value with a `ToSql` of `postgres-types` a key value.
#[cfg(feature = "postgres-types")]
#[derive(Clone, Copy, Debug)]
pub struct Sql<T>(pub T);

/// Returns the values as cells of these columns.
pub(crate) fn encode(values: &dyn KeyValues, columns: &KeyColumns, layout: &RowLayout) -> Result<TupleBuf, KeyError> {
    let mut cells = TupleBuf::new();
    let mut found = 0;
    values.for_each(&mut |value| {
        let column = columns.columns().get(found).copied();
        found += 1;
        let Some((index, ty)) = column.and_then(|i| Some((i, layout.column(i)?))) else {
            return Ok(());
        };
        value.encode(ty, &mut cells).map_err(|source| {
            let column = layout.schema().columns().get(index);
            let (column, postgres) = column.map(|c| (c.name.clone(), c.type_name.clone())).unwrap_or_default();
            KeyError::Value { column, postgres, source }
        })
    })?;
    if found != columns.columns().len() {
        return Err(KeyError::Count { expected: columns.columns().len(), found });
    }
    Ok(cells)
}

/// Appends the bytes of a value, if the column's type is the value's.
fn push<T: ?Sized>(fits: bool, bytes: &[u8], key: &mut TupleBuf) -> Result<(), CellConversionError> {
    if !fits {
        return Err(format!("a value of the Rust type `{}` has another type", std::any::type_name::<T>()).into());
    }
    key.push(Cell::Value(bytes));
    Ok(())
}

fn push_integer<T>(value: T, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError>
where
    T: Copy + TryInto<i16> + TryInto<i32> + TryInto<i64> + TryInto<u32> + std::fmt::Display,
{
    let too_large = || format!("{value} is out of range");
    match ty.oid() {
        INT2 => push::<T>(true, &TryInto::<i16>::try_into(value).map_err(|_| too_large())?.to_be_bytes(), key),
        INT4 => push::<T>(true, &TryInto::<i32>::try_into(value).map_err(|_| too_large())?.to_be_bytes(), key),
        INT8 => push::<T>(true, &TryInto::<i64>::try_into(value).map_err(|_| too_large())?.to_be_bytes(), key),
        OID => push::<T>(true, &TryInto::<u32>::try_into(value).map_err(|_| too_large())?.to_be_bytes(), key),
        _ => push::<T>(false, &[], key),
    }
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl KeyValue for $type {
            fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
                push_integer(*self, ty, key)
            }
        }
    )+};
}

integers!(i16, i32, i64, u16, u32, u64, usize);

impl KeyValue for bool {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        push::<bool>(ty.oid() == BOOL, &[u8::from(*self)], key)
    }
}

impl KeyValue for f32 {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        push::<f32>(ty.oid() == FLOAT4, &self.to_be_bytes(), key)
    }
}

impl KeyValue for f64 {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        push::<f64>(ty.oid() == FLOAT8, &self.to_be_bytes(), key)
    }
}

impl KeyValue for [u8] {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        push::<[u8]>(ty.oid() == BYTEA, self, key)
    }
}

impl KeyValue for Vec<u8> {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        self.as_slice().encode(ty, key)
    }
}

impl KeyValue for str {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        match ty.text_version() {
            Some(version) => push::<str>(true, &[&[version], self.as_bytes()].concat(), key),
            None if ty.oid() == UUID => {
                let uuid = parse_uuid(self).ok_or_else(|| format!("`{self}` is not a uuid"))?;
                push::<str>(true, &uuid, key)
            }
            None => push::<str>(ty.is_enum() || ty.is_text(), self.as_bytes(), key),
        }
    }
}

impl KeyValue for String {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        self.as_str().encode(ty, key)
    }
}

#[cfg(feature = "postgres-types")]
impl<T: postgres_types::ToSql> KeyValue for Sql<T> {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        let mut bytes = bytes::BytesMut::new();
        match self.0.to_sql_checked(ty.sql(), &mut bytes)? {
            postgres_types::IsNull::No => key.push(Cell::Value(&bytes)),
            postgres_types::IsNull::Yes => key.push(Cell::Null),
        }
        Ok(())
    }
}

impl<T: KeyValue> KeyValue for Option<T> {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        match self {
            Some(value) => value.encode(ty, key)?,
            None => key.push(Cell::Null),
        }
        Ok(())
    }
}

impl<T: KeyValue + ?Sized> KeyValue for &T {
    fn encode(&self, ty: &CellType, key: &mut TupleBuf) -> Result<(), CellConversionError> {
        (**self).encode(ty, key)
    }
}

/// Parses a UUID with or without hyphens and braces, as PostgreSQL does.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut digits = text
        .bytes()
        .filter(|b| !matches!(b, b'-' | b'{' | b'}'))
        .map(|b| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()));
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    digits.next().is_none().then_some(uuid)
}

impl<T: KeyValue> KeyValues for T {
    fn for_each(&self, each: &mut dyn FnMut(&dyn KeyValue) -> Result<(), KeyError>) -> Result<(), KeyError> {
        each(self)
    }
}

impl KeyValues for &[&dyn KeyValue] {
    fn for_each(&self, each: &mut dyn FnMut(&dyn KeyValue) -> Result<(), KeyError>) -> Result<(), KeyError> {
        self.iter().try_for_each(|value| each(*value))
    }
}

macro_rules! tuples {
    ($($name:ident $index:tt),+) => {
        impl<$($name: KeyValue),+> KeyValues for ($($name,)+) {
            fn for_each(&self, each: &mut dyn FnMut(&dyn KeyValue) -> Result<(), KeyError>) -> Result<(), KeyError> {
                $(each(&self.$index)?;)+
                Ok(())
            }
        }
    };
}

tuples!(A 0);
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::TEXT;
    use crate::cell::tests::cell_type;
    use laredo_core::TypeKind;

    fn bytes_in(ty: &CellType, value: impl KeyValue) -> Result<Vec<u8>, String> {
        let mut cells = TupleBuf::new();
        value.encode(ty, &mut cells).map_err(|e| e.to_string())?;
        Ok(cells.as_ref().cell(0).value().unwrap_or(b"NULL").to_vec())
    }

    fn bytes(value: impl KeyValue, oid: laredo_core::Oid) -> Result<Vec<u8>, String> {
        bytes_in(&cell_type(oid, &[]), value)
    }

    #[test]
    fn integers_take_the_width_of_their_column() {
        assert_eq!(bytes(7_i64, INT4), Ok(vec![0, 0, 0, 7]));
        assert_eq!(bytes(7_i32, INT8), Ok(vec![0, 0, 0, 0, 0, 0, 0, 7]));
        assert_eq!(bytes(7_u64, OID), Ok(vec![0, 0, 0, 7]));
        assert_eq!(bytes(40_000, INT2), Err("40000 is out of range".to_owned()));
        assert_eq!(bytes(-1, OID), Err("-1 is out of range".to_owned()));
        assert!(bytes(7, TEXT).is_err());
    }

    #[test]
    fn other_values_fit_their_own_type_only() {
        assert_eq!(bytes(true, BOOL), Ok(vec![1]));
        assert_eq!(bytes(0.5_f32, FLOAT4), Ok(0.5_f32.to_be_bytes().to_vec()));
        assert_eq!(bytes(0.5_f64, FLOAT8), Ok(0.5_f64.to_be_bytes().to_vec()));
        assert_eq!(bytes(vec![7_u8], BYTEA), Ok(vec![7]));
        assert_eq!(bytes(Some("a"), TEXT), Ok(b"a".to_vec()));
        assert_eq!(bytes(None::<i32>, INT4), Ok(b"NULL".to_vec()));
        assert!(bytes(true, INT4).is_err() && bytes(0.5_f64, FLOAT4).is_err() && bytes("a", BYTEA).is_err());
    }

    #[test]
    fn texts_are_uuids_and_enums_too() {
        let wanted = Ok((0..16).collect());
        assert_eq!(bytes("00010203-0405-0607-0809-0a0b0c0d0e0f", UUID), wanted);
        assert!(bytes("00010203", UUID).is_err());
        let mood = cell_type(90_000, &[(90_000, "mood", TypeKind::Enum(vec!["sad".into()]))]);
        assert_eq!(bytes_in(&mood, "sad"), Ok(b"sad".to_vec()));
    }

    #[test]
    fn texts_of_extensions_and_domains_have_the_form_of_their_cells() {
        let types = [(90_000, "ltree", TypeKind::Base), (90_001, "path", TypeKind::Domain(90_000))];
        assert_eq!(bytes_in(&cell_type(90_001, &types), "a.b"), Ok(b"\x01a.b".to_vec()));
        let citext = cell_type(90_000, &[(90_000, "citext", TypeKind::Ascii)]);
        assert_eq!(bytes_in(&citext, "A"), Ok(b"A".to_vec()));
        assert!(bytes_in(&cell_type(90_000, &[(90_000, "other", TypeKind::Base)]), "a").is_err());
    }

    #[cfg(feature = "postgres-types")]
    #[test]
    fn any_value_of_postgres_types_can_be_a_key() {
        let timestamp = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(946_684_800);
        assert_eq!(bytes(Sql(timestamp), 1114), Ok(vec![0; 8]));
        assert_eq!(bytes(Sql(None::<i32>), INT4), Ok(b"NULL".to_vec()));
        assert!(bytes(Sql(timestamp), INT4).is_err());
    }
}
