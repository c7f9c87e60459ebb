//! Key values from callers, encoded as the cells that rows contain.

use std::error::Error;

use bytes::BytesMut;
use laredo_core::{Cell, KeyColumns, TupleBuf};
use postgres_types::{IsNull, Kind, ToSql, Type, WrongType};

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
/// `uuid`. Any other type with a `ToSql` of `postgres-types` is passed in [`Sql`].
///
/// Keys are compared by their bytes. So a `numeric` must have the scale that it was stored with,
/// and a `char(n)` its padding.
pub trait KeyValue {
    /// Appends the value's binary form for a column of this type.
    ///
    /// # Errors
    /// When such a column cannot contain the value.
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>>;
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
#[derive(Clone, Copy, Debug)]
pub struct Sql<T>(pub T);

/// Returns the values as cells of these columns.
pub(crate) fn encode(values: &dyn KeyValues, columns: &KeyColumns, layout: &RowLayout) -> Result<TupleBuf, KeyError> {
    let mut cells = TupleBuf::new();
    let mut bytes = BytesMut::new();
    let mut found = 0;
    values.for_each(&mut |value| {
        let column = columns.columns().get(found).copied();
        found += 1;
        let Some((index, types)) = column.and_then(|i| Some((i, layout.column(i)?))) else {
            return Ok(());
        };
        bytes.clear();
        match value.encode(&types.plain, &mut bytes) {
            Ok(IsNull::No) => cells.push(Cell::Value(&bytes)),
            Ok(IsNull::Yes) => cells.push(Cell::Null),
            Err(source) => {
                let column = layout.schema().columns().get(index);
                let (column, postgres) = column.map(|c| (c.name.clone(), c.type_name.clone())).unwrap_or_default();
                return Err(KeyError::Value { column, postgres, source });
            }
        }
        Ok(())
    })?;
    if found != columns.columns().len() {
        return Err(KeyError::Count { expected: columns.columns().len(), found });
    }
    Ok(cells)
}

fn integer<T>(value: T, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>>
where
    T: Copy + TryInto<i16> + TryInto<i32> + TryInto<i64> + TryInto<u32> + std::fmt::Display,
{
    let too_large = || -> Box<dyn Error + Sync + Send> { format!("{value} is out of range").into() };
    match *ty {
        Type::INT2 => TryInto::<i16>::try_into(value).map_err(|_| too_large())?.to_sql(ty, out),
        Type::INT4 => TryInto::<i32>::try_into(value).map_err(|_| too_large())?.to_sql(ty, out),
        Type::INT8 => TryInto::<i64>::try_into(value).map_err(|_| too_large())?.to_sql(ty, out),
        Type::OID => TryInto::<u32>::try_into(value).map_err(|_| too_large())?.to_sql(ty, out),
        _ => Err(Box::new(WrongType::new::<T>(ty.clone()))),
    }
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl KeyValue for $type {
            fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
                integer(*self, ty, out)
            }
        }
    )+};
}

integers!(i16, i32, i64, u16, u32, u64, usize);

macro_rules! as_sql {
    ($($type:ty),+) => {$(
        impl KeyValue for $type {
            fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
                self.to_sql_checked(ty, out)
            }
        }
    )+};
}

as_sql!(bool, f32, f64, Vec<u8>);

impl KeyValue for [u8] {
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql_checked(ty, out)
    }
}

impl<T: ToSql> KeyValue for Sql<T> {
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.to_sql_checked(ty, out)
    }
}

impl KeyValue for str {
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match (ty, ty.kind()) {
            (&Type::UUID, _) => {
                let uuid = parse_uuid(self).ok_or_else(|| format!("`{self}` is not a uuid"))?;
                out.extend_from_slice(&uuid);
            }
            (_, Kind::Enum(_)) => out.extend_from_slice(self.as_bytes()),
            _ => return self.to_sql_checked(ty, out),
        }
        Ok(IsNull::No)
    }
}

impl KeyValue for String {
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.as_str().encode(ty, out)
    }
}

impl<T: KeyValue> KeyValue for Option<T> {
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.as_ref().map_or(Ok(IsNull::Yes), |value| value.encode(ty, out))
    }
}

impl<T: KeyValue + ?Sized> KeyValue for &T {
    fn encode(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        (**self).encode(ty, out)
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

    fn bytes(value: impl KeyValue, ty: &Type) -> Result<Vec<u8>, String> {
        let mut out = BytesMut::new();
        value.encode(ty, &mut out).map(|_| out.to_vec()).map_err(|e| e.to_string())
    }

    #[test]
    fn integers_take_the_width_of_their_column() {
        assert_eq!(bytes(7_i64, &Type::INT4), Ok(vec![0, 0, 0, 7]));
        assert_eq!(bytes(7_i32, &Type::INT8), Ok(vec![0, 0, 0, 0, 0, 0, 0, 7]));
        assert!(bytes(40_000, &Type::INT2).is_err());
        assert!(bytes(7, &Type::TEXT).is_err());
    }

    #[test]
    fn texts_are_uuids_and_enums_too() {
        let wanted = Ok((0..16).collect());
        assert_eq!(bytes("00010203-0405-0607-0809-0a0b0c0d0e0f", &Type::UUID), wanted);
        assert!(bytes("00010203", &Type::UUID).is_err());
        let mood = Type::new("mood".into(), 90_000, Kind::Enum(vec!["sad".into()]), String::new());
        assert_eq!(bytes("sad", &mood), Ok(b"sad".to_vec()));
    }
}
