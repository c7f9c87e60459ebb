//! The types of a schema's columns as `postgres-types` needs them for decoding, built once.

use std::collections::HashMap;
use std::sync::Arc;

use laredo_core::{Oid, Schema, TypeKind};
use postgres_types::{Field, Kind, Type};

/// The deepest nesting of types. PostgreSQL's types nest only a few levels. The limit keeps a
/// malicious server from exhausting the stack.
const DEPTH_MAX: usize = 32;

/// A schema with the types of its columns.
#[derive(Debug)]
pub(crate) struct RowLayout {
    schema: Arc<Schema>,
    columns: Vec<ColumnType>,
}

/// A column's type, as declared and with domains replaced by their base types. Most Rust types do
/// not accept domains, but a Rust type that was made for a domain needs to see it.
#[derive(Debug)]
pub(crate) struct ColumnType {
    pub(crate) declared: Type,
    pub(crate) plain: Type,
}

impl RowLayout {
    pub(crate) fn new(schema: Arc<Schema>) -> RowLayout {
        let mut declared = ColumnTypeBuilder::new(&schema, false);
        let mut plain = ColumnTypeBuilder::new(&schema, true);
        let columns = schema.columns().iter().map(|column| match column.is_text {
            true => ColumnType { declared: Type::TEXT, plain: Type::TEXT },
            false => ColumnType {
                declared: declared.get(column.type_oid, DEPTH_MAX),
                plain: plain.get(column.type_oid, DEPTH_MAX),
            },
        });
        let columns = columns.collect();
        RowLayout { schema, columns }
    }

    pub(crate) fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub(crate) fn column(&self, index: usize) -> Option<&ColumnType> {
        self.columns.get(index)
    }
}

struct ColumnTypeBuilder<'a> {
    schema: &'a Schema,
    /// The types that are built. `None` while a type is being built, so that a type that contains
    /// itself ends there.
    known: HashMap<Oid, Option<Type>>,
    plain: bool,
}

impl<'a> ColumnTypeBuilder<'a> {
    fn new(schema: &'a Schema, plain: bool) -> ColumnTypeBuilder<'a> {
        ColumnTypeBuilder { schema, known: HashMap::new(), plain }
    }

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
    use super::*;
    use laredo_core::{Column, KeyColumns, TypeDef};
    use std::collections::BTreeMap;

    fn layout(oid: Oid, types: &[(Oid, TypeKind)]) -> RowLayout {
        let def = |(oid, kind): &(Oid, TypeKind)| {
            let name = format!("t{oid}");
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
        let types: BTreeMap<_, _> = types.iter().map(def).collect();
        RowLayout::new(Arc::new(Schema::new(vec![column], KeyColumns::new([0]), types)))
    }

    #[test]
    fn domains_are_seen_and_seen_through() {
        let types = [(90_001, TypeKind::Array(90_002)), (90_002, TypeKind::Domain(25))];
        let layout = layout(90_001, &types);
        let column = layout.column(0).unwrap();
        assert_eq!(*column.plain.kind(), Kind::Array(Type::TEXT));
        let Kind::Array(element) = column.declared.kind() else { panic!("{:?}", column.declared) };
        assert_eq!(*element.kind(), Kind::Domain(Type::TEXT));
    }

    #[test]
    fn a_type_that_contains_itself_ends() {
        let fields = vec![("a".to_owned(), 90_002), ("b".to_owned(), 90_001)];
        let types = [(90_001, TypeKind::Composite(fields)), (90_002, TypeKind::Array(90_001))];
        layout(90_001, &types);
    }

    #[test]
    fn a_hostile_chain_of_types_ends() {
        let chain: Vec<_> = (0..100_000).map(|i| (90_000 + i, TypeKind::Domain(90_001 + i))).collect();
        layout(90_000, &chain);
    }
}
