//! The types of columns and the decoders of `postgres-types`.

use std::collections::HashMap;

use laredo_core::{Oid, Schema, TypeKind};
use postgres_types::{Field, FromSql, Kind, Type};

use super::{CellConversionError, CellType, DEPTH_MAX, FromCell};

/// A column's type, as declared and with domains replaced by their base types. Most Rust types do
/// not accept domains, but a Rust type that was made for a domain needs to see it.
#[derive(Debug)]
pub(super) struct SqlTypes {
    declared: Type,
    plain: Type,
}

impl SqlTypes {
    pub(super) fn plain(&self) -> &Type {
        &self.plain
    }
}

impl<'a, T: FromSql<'a>> FromCell<'a> for T {
    fn from_cell(ty: &CellType, cell: Option<&'a [u8]>) -> Option<Result<T, CellConversionError>> {
        let SqlTypes { declared, plain } = &ty.sql;
        let accepted = [declared, plain].into_iter().find(|ty| T::accepts(ty))?;
        if cell.is_some_and(|cell| announces_too_much(accepted, cell)) {
            return Some(Err("it announces more elements than its bytes can hold".into()));
        }
        Some(T::from_sql_nullable(accepted, cell))
    }
}

/// The bytes before the dimensions of an array, and those of each dimension.
const ARRAY_HEAD_BYTES: usize = 12;
const DIMENSION_BYTES: usize = 8;
/// The bytes of the length of an array's element, and of an `hstore`'s key and value.
const ELEMENT_BYTES_MIN: u64 = 4;
const PAIR_BYTES_MIN: u64 = 8;

/// Returns true if a cell announces more elements than fit in it. The decoders of arrays and of
/// `hstore` reserve memory for all elements before they read the first.
fn announces_too_much(ty: &Type, cell: &[u8]) -> bool {
    let number = |at: usize| -> Option<u64> {
        let bytes = cell.get(at..)?.first_chunk::<4>()?;
        u64::try_from(i32::from_be_bytes(*bytes)).ok()
    };
    let array = || -> Option<bool> {
        let dimensions = usize::try_from(number(0)?).ok().filter(|dimensions| *dimensions > 0)?;
        let mut elements = 1_u64;
        for dimension in 0..dimensions {
            elements = elements.checked_mul(number(ARRAY_HEAD_BYTES + dimension * DIMENSION_BYTES)?)?;
        }
        let head = ARRAY_HEAD_BYTES + dimensions * DIMENSION_BYTES;
        Some(elements > cell.len().saturating_sub(head) as u64 / ELEMENT_BYTES_MIN)
    };
    // The decoders refuse what has no number here before they reserve anything.
    match ty.kind() {
        Kind::Array(_) => array().unwrap_or(false),
        _ if ty.name() == "hstore" => number(0).is_some_and(|pairs| pairs > cell.len() as u64 / PAIR_BYTES_MIN),
        _ => false,
    }
}

/// Builds the types of a schema's columns. Each type is built once.
pub(super) struct SqlTypeBuilder<'a> {
    declared: NestedTypeBuilder<'a>,
    plain: NestedTypeBuilder<'a>,
}

impl<'a> SqlTypeBuilder<'a> {
    pub(super) fn new(schema: &'a Schema) -> SqlTypeBuilder<'a> {
        let builder = |plain| NestedTypeBuilder { schema, known: HashMap::new(), plain };
        SqlTypeBuilder { declared: builder(false), plain: builder(true) }
    }

    pub(super) fn build(&mut self, oid: Oid) -> SqlTypes {
        SqlTypes { declared: self.declared.get(oid, DEPTH_MAX), plain: self.plain.get(oid, DEPTH_MAX) }
    }
}

struct NestedTypeBuilder<'a> {
    schema: &'a Schema,
    /// The types that are built. `None` while a type is being built, so that a type that contains
    /// itself ends there.
    known: HashMap<Oid, Option<Type>>,
    plain: bool,
}

impl NestedTypeBuilder<'_> {
    fn get(&mut self, oid: Oid, depth: usize) -> Type {
        if let Some(built_in) = Type::from_oid(oid) {
            return built_in;
        }
        match self.known.get(&oid) {
            Some(Some(known)) => return known.clone(),
            Some(None) => return self.opaque(oid),
            None if depth == 0 => return self.opaque(oid),
            None => self.known.insert(oid, None),
        };
        let built = self.build(oid, depth - 1);
        self.known.insert(oid, Some(built.clone()));
        built
    }

    fn build(&mut self, oid: Oid, depth: usize) -> Type {
        let schema = self.schema;
        let Some(def) = schema.type_def(oid) else {
            return self.opaque(oid);
        };
        let kind = match &def.kind {
            TypeKind::Base | TypeKind::Money(_) | TypeKind::Ascii => Kind::Simple,
            TypeKind::Enum(labels) => Kind::Enum(labels.clone()),
            TypeKind::Domain(base) if self.plain => return self.get(*base, depth),
            TypeKind::Domain(base) => Kind::Domain(self.get(*base, depth)),
            TypeKind::Array(element) => Kind::Array(self.get(*element, depth)),
            TypeKind::Range(subtype) => Kind::Range(self.get(*subtype, depth)),
            TypeKind::Multirange(range) => Kind::Multirange(self.get(*range, depth)),
            TypeKind::Composite(fields) => {
                let field = |(name, oid): &(String, Oid)| Field::new(name.clone(), self.get(*oid, depth));
                Kind::Composite(fields.iter().map(field).collect())
            }
        };
        Type::new(def.name.clone(), oid, kind, String::new())
    }

    fn opaque(&self, oid: Oid) -> Type {
        let name = self.schema.type_def(oid).map_or_else(|| format!("type {oid}"), |def| def.name.clone());
        Type::new(name, oid, Kind::Simple, String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cell_type;
    use super::*;

    #[test]
    fn domains_are_seen_and_seen_through() {
        let types = [(90_001, "a", TypeKind::Array(90_002)), (90_002, "d", TypeKind::Domain(25))];
        let SqlTypes { declared, plain } = cell_type(90_001, &types).sql;
        assert_eq!(*plain.kind(), Kind::Array(Type::TEXT));
        let Kind::Array(element) = declared.kind() else { panic!("{declared:?}") };
        assert_eq!(*element.kind(), Kind::Domain(Type::TEXT));
    }

    #[test]
    fn a_type_that_contains_itself_ends() {
        let fields = vec![("a".to_owned(), 90_002), ("b".to_owned(), 90_001)];
        cell_type(90_001, &[(90_001, "c", TypeKind::Composite(fields)), (90_002, "a", TypeKind::Array(90_001))]);
    }

    /// The decoder would reserve 48 GiB for the array, which ends the process.
    #[test]
    fn elements_that_a_cell_announces_and_lacks_reserve_no_memory() {
        let (array, hstore) = (cell_type(1009, &[]), cell_type(90_001, &[(90_001, "hstore", TypeKind::Base)]));
        let cell = |count: i32, rest: &[u8]| {
            let head = [[0, 0, 0, 1], [0; 4], [0, 0, 0, 25], count.to_be_bytes(), [0, 0, 0, 1]].concat();
            [head.as_slice(), rest].concat()
        };
        let read = |bytes: &[u8]| Vec::<Option<String>>::from_cell(&array, Some(bytes)).expect("the type fits").ok();
        assert_eq!(read(&cell(i32::MAX, &[])), None);
        assert_eq!(read(&cell(2, &[0xff; 4])), None);
        assert_eq!(read(&cell(2, &[0xff; 8])), Some(vec![None, None]));
        assert_eq!(read(&[0; 12]), Some(Vec::new()), "an array without dimensions");
        let read = |bytes: &[u8]| HashMap::<String, Option<String>>::from_cell(&hstore, Some(bytes))?.ok();
        assert_eq!(read(&i32::MAX.to_be_bytes()), None);
        let one = [[0, 0, 0, 1], [0, 0, 0, 1]].concat();
        assert_eq!(read(&[one.as_slice(), b"a", &[0xff; 4]].concat()), Some(HashMap::from([("a".to_owned(), None)])));
    }

    #[test]
    fn a_hostile_chain_of_types_ends() {
        let chain: Vec<_> = (0..100_000).map(|i| (90_000 + i, "d", TypeKind::Domain(90_001 + i))).collect();
        cell_type(90_000, &chain);
    }
}
