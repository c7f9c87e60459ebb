//! The types of cells, and cells as values of Rust types.

use std::error::Error;

use laredo_core::{Oid, Schema, TypeKind};

#[cfg(not(feature = "postgres-types"))]
mod plain;
#[cfg(feature = "postgres-types")]
mod sql;

pub(crate) const BOOL: Oid = 16;
pub(crate) const BYTEA: Oid = 17;
pub(crate) const INT8: Oid = 20;
pub(crate) const INT2: Oid = 21;
pub(crate) const INT4: Oid = 23;
pub(crate) const TEXT: Oid = 25;
pub(crate) const OID: Oid = 26;
pub(crate) const FLOAT4: Oid = 700;
pub(crate) const FLOAT8: Oid = 701;
pub(crate) const UUID: Oid = 2950;
/// The built-in types whose cells are texts: `name`, `text`, `unknown`, `bpchar` and `varchar`.
const TEXTS: [Oid; 5] = [19, TEXT, 705, 1042, 1043];

/// The deepest nesting of types. PostgreSQL's types nest only a few levels. The limit keeps a
/// malicious server from exhausting the stack.
const DEPTH_MAX: usize = 32;

/// The error of a decoder or an encoder.
pub(crate) type CellConversionError = Box<dyn Error + Sync + Send>;

/// A column's type, as far as its cells need it. Outside of this crate it has no name, which seals
/// the traits that use it.
#[derive(Debug)]
pub struct CellType {
    /// The type, with domains replaced by their base types.
    oid: Oid,
    /// The name of that type, if the schema defines the type.
    name: String,
    is_enum: bool,
    #[cfg(feature = "postgres-types")]
    sql: sql::SqlTypes,
}

/// A Rust type that a cell can be read as.
///
/// With the feature `postgres-types`, which is on by default, these are all types that implement
/// `FromSql` of the crate `postgres-types`. Without it, they are `bool`, `i16`, `i32`, `i64`,
/// `u32`, `f32`, `f64`, `&str`, `String`, `&[u8]`, `Vec<u8>` and an `Option` of these. Only this
/// crate can implement the trait.
#[diagnostic::on_unimplemented(
    message = "a cell cannot be read as `{Self}`",
    note = "with the feature `postgres-types` of laredo-client, every type with a `FromSql` can be read"
)]
pub trait FromCell<'a>: Sized {
    /// Decodes a cell, which is `None` for NULL. Returns `None` if cells of this type cannot be
    /// read as the Rust type.
    #[doc(hidden)]
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<Self, CellConversionError>>;
}

impl CellType {
    /// Returns the types of a schema's columns.
    pub(crate) fn of_columns(schema: &Schema) -> Vec<CellType> {
        #[cfg(feature = "postgres-types")]
        let mut builder = sql::SqlTypeBuilder::new(schema);
        let columns = schema.columns().iter().map(|column| {
            let declared = if column.is_text { TEXT } else { column.type_oid };
            let oid = without_domains(schema, declared);
            let definition = schema.type_def(oid);
            CellType {
                oid,
                name: definition.map(|definition| definition.name.clone()).unwrap_or_default(),
                is_enum: definition.is_some_and(|definition| matches!(definition.kind, TypeKind::Enum(_))),
                #[cfg(feature = "postgres-types")]
                sql: builder.build(declared),
            }
        });
        columns.collect()
    }

    /// Returns the type's OID, with domains replaced by their base types.
    pub(crate) fn oid(&self) -> Oid {
        self.oid
    }

    /// Returns true if a cell is the label of an enum.
    pub(crate) fn is_enum(&self) -> bool {
        self.is_enum
    }

    /// Returns true if a cell is a text, after [`CellType::text_version`].
    pub(crate) fn is_text(&self) -> bool {
        TEXTS.contains(&self.oid) || self.name == "citext" || self.text_version().is_some()
    }

    /// Returns the version byte with which the texts of the extension `ltree` begin.
    pub(crate) fn text_version(&self) -> Option<u8> {
        matches!(self.name.as_str(), "ltree" | "lquery" | "ltxtquery").then_some(1)
    }

    /// Returns the type of `postgres-types`, with domains replaced by their base types.
    #[cfg(feature = "postgres-types")]
    pub(crate) fn sql(&self) -> &postgres_types::Type {
        self.sql.plain()
    }
}

/// Returns the base type of a domain. A type that is not a domain is returned as it is.
fn without_domains(schema: &Schema, declared: Oid) -> Oid {
    let base = |oid: &Oid| match schema.type_def(*oid).map(|definition| &definition.kind) {
        Some(TypeKind::Domain(base)) => Some(*base),
        Some(_) | None => None,
    };
    std::iter::successors(Some(declared), base).take(DEPTH_MAX).last().unwrap_or(declared)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use laredo_core::{Column, KeyColumns, TypeDef};

    /// Returns the type of a column in a schema with these types.
    pub(crate) fn cell_type(oid: Oid, types: &[(Oid, &str, TypeKind)]) -> CellType {
        let define = |(oid, name, kind): &(Oid, &str, TypeKind)| {
            let name = (*name).to_owned();
            (*oid, TypeDef { name, kind: kind.clone() })
        };
        let column = Column {
            name: "c".to_owned(),
            type_oid: oid,
            type_modifier: -1,
            type_name: "c".to_owned(),
            not_null: false,
            is_text: false,
        };
        let schema = Schema::new(vec![column], KeyColumns::new([0]), types.iter().map(define).collect());
        CellType::of_columns(&schema).remove(0)
    }

    fn read<'a, T: FromCell<'a>>(ty: &CellType, bytes: &'a [u8]) -> Option<Option<T>> {
        T::from_cell(ty, Some(bytes)).map(Result::ok)
    }

    #[test]
    fn a_number_is_read_from_its_own_type_only() {
        let bytes = 7_i32.to_be_bytes();
        let int4 = cell_type(INT4, &[]);
        assert_eq!(read::<i32>(&int4, &bytes), Some(Some(7)));
        assert_eq!(read::<i32>(&int4, &bytes[1..]), Some(None), "too short");
        assert_eq!(read::<i64>(&int4, &bytes), None);
        assert_eq!(read::<&str>(&int4, &bytes), None);
        assert_eq!(read::<u32>(&cell_type(OID, &[]), &bytes), Some(Some(7)));
        assert_eq!(read::<i16>(&cell_type(INT2, &[]), &bytes[2..]), Some(Some(7)));
        assert_eq!(read::<i64>(&cell_type(INT8, &[]), &7_i64.to_be_bytes()), Some(Some(7)));
        assert_eq!(read::<f32>(&cell_type(FLOAT4, &[]), &0.5_f32.to_be_bytes()), Some(Some(0.5)));
        assert_eq!(read::<f64>(&cell_type(FLOAT8, &[]), &0.5_f64.to_be_bytes()), Some(Some(0.5)));
        assert_eq!(read::<bool>(&cell_type(BOOL, &[]), &[1]), Some(Some(true)));
        assert_eq!(read::<bool>(&cell_type(BOOL, &[]), &[]), Some(None));
    }

    #[test]
    fn texts_and_bytes_are_borrowed_from_the_row() {
        for oid in TEXTS {
            assert_eq!(read::<&str>(&cell_type(oid, &[]), b"a"), Some(Some("a")));
        }
        let text = cell_type(TEXT, &[]);
        assert_eq!(read::<String>(&text, b"a"), Some(Some("a".to_owned())));
        assert_eq!(read::<&str>(&text, b"\xff"), Some(None), "not UTF-8");
        assert_eq!(read::<&[u8]>(&text, b"a"), None);
        let bytea = cell_type(BYTEA, &[]);
        assert_eq!(read::<&[u8]>(&bytea, b"a\xff"), Some(Some(&b"a\xff"[..])));
        assert_eq!(read::<Vec<u8>>(&bytea, b"a"), Some(Some(b"a".to_vec())));
        assert_eq!(read::<&str>(&bytea, b"a"), None);
    }

    #[test]
    fn extensions_texts_are_read_and_enums_are_not() {
        let named = |name| cell_type(90_001, &[(90_001, name, TypeKind::Base)]);
        assert_eq!(read::<&str>(&named("citext"), b"a"), Some(Some("a")));
        assert_eq!(read::<&str>(&named("ltree"), b"\x01a.b"), Some(Some("a.b")));
        assert_eq!(read::<&str>(&named("ltree"), b"a.b"), Some(None), "no version");
        assert_eq!(read::<&str>(&named("other"), b"a"), None);
        let mood = cell_type(90_001, &[(90_001, "mood", TypeKind::Enum(vec!["sad".to_owned()]))]);
        assert_eq!(read::<&str>(&mood, b"sad"), None);
    }

    #[test]
    fn domains_are_seen_through() {
        let types = [(90_001, "d", TypeKind::Domain(90_002)), (90_002, "e", TypeKind::Domain(INT4))];
        assert_eq!(read::<i32>(&cell_type(90_001, &types), &7_i32.to_be_bytes()), Some(Some(7)));
        let endless = [(90_001, "d", TypeKind::Domain(90_001))];
        assert_eq!(read::<i32>(&cell_type(90_001, &endless), &7_i32.to_be_bytes()), None);
    }

    #[test]
    fn null_is_an_option() {
        let int4 = cell_type(INT4, &[]);
        assert!(Option::<i32>::from_cell(&int4, None).is_some_and(|read| read.is_ok_and(|value| value.is_none())));
        assert!(i32::from_cell(&int4, None).is_some_and(|read| read.is_err()));
        assert!(Option::<i64>::from_cell(&int4, None).is_none(), "another type");
        assert_eq!(read::<Option<i32>>(&int4, &7_i32.to_be_bytes()), Some(Some(Some(7))));
    }
}
