//! A table's columns, key and types.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::KeyColumns;
use crate::tuple::{Cell, TupleBuf, TupleRef};

/// A type's number in `pg_type`.
pub type Oid = u32;

/// The type `money`.
const MONEY: Oid = 790;

/// A replicated column.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Column {
    /// The column's name, as the catalog spells it.
    pub name: String,
    /// The column's type.
    pub type_oid: Oid,
    /// The type modifier (`atttypmod`), or -1 if there is none.
    pub type_modifier: i32,
    /// The type's name as `format_type` spells it, for people and for the protocol's `data_type`.
    pub type_name: String,
    /// True if the column is declared NOT NULL.
    pub not_null: bool,
    /// True if the cells contain the values' text, because the type has no binary form.
    pub is_text: bool,
}

/// The structure of a type. Archives contain these variants by their names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum TypeKind {
    /// A base type: built-in, or of an extension.
    Base,
    /// The type `money` if its amounts do not have two decimals, with their number. PostgreSQL
    /// takes the number from `lc_monetary`; the bytes of an amount do not contain it.
    Money(u8),
    /// The extension type `citext` in a database whose locale folds only the case of ASCII letters.
    Ascii,
    /// An enum with its labels in order. A cell is the label.
    Enum(Vec<String>),
    /// A domain over another type. A cell has the form of that type.
    Domain(Oid),
    /// A row type, with the names and types of its fields.
    Composite(Vec<(String, Oid)>),
    /// An array of an element type.
    Array(Oid),
    /// A range of a subtype.
    Range(Oid),
    /// A multirange of a range type.
    Multirange(Oid),
}

/// A type that a column uses, directly or inside another type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TypeDef {
    /// The type's name, without its schema.
    pub name: String,
    /// The type's structure.
    pub kind: TypeKind,
}

/// A table's replicated columns in order, its key, and every type that they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    columns: Vec<Column>,
    key: KeyColumns,
    types: BTreeMap<Oid, TypeDef>,
}

impl Schema {
    /// The number of decimals of `money` in most locales.
    pub const USUAL_MONEY_DECIMALS: u8 = 2;

    /// Returns a schema. `key` holds column numbers from 0, in key order, each less than the number
    /// of columns.
    #[must_use]
    pub fn new(columns: Vec<Column>, key: KeyColumns, types: BTreeMap<Oid, TypeDef>) -> Schema {
        Schema { columns, key, types }
    }

    /// Returns the columns, in the order of a row's cells.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns the columns that identify a row.
    #[must_use]
    pub fn key(&self) -> &KeyColumns {
        &self.key
    }

    /// Returns the definitions of all types that the columns use, including built-in ones.
    #[must_use]
    pub fn types(&self) -> &BTreeMap<Oid, TypeDef> {
        &self.types
    }

    /// Returns a type's definition.
    #[must_use]
    pub fn type_def(&self, oid: Oid) -> Option<&TypeDef> {
        self.types.get(&oid)
    }

    /// Returns the number of decimals of amounts of type `money`.
    #[must_use]
    pub fn money_decimals(&self) -> u8 {
        if let Some(TypeDef { kind: TypeKind::Money(decimals), .. }) = self.type_def(MONEY) {
            return *decimals;
        }
        Schema::USUAL_MONEY_DECIMALS
    }

    /// Returns true if values of a type have the same meaning under another schema. All composites
    /// in the type must have the same fields, and amounts of money the same decimals. Other types
    /// change only with their number, and the cells of an enum are its labels.
    #[must_use]
    pub fn reads_alike(&self, other: &Schema, oid: Oid) -> bool {
        self.compare_types(other, oid, &mut BTreeSet::new())
    }

    /// Compares one type. `seen` holds the types that have been compared or are being compared.
    fn compare_types(&self, other: &Schema, oid: Oid, seen: &mut BTreeSet<Oid>) -> bool {
        if !seen.insert(oid) {
            return true;
        }
        let mut same = |oid: Oid| self.compare_types(other, oid, seen);
        let kinds = (self.type_def(oid).map(|def| &def.kind), other.type_def(oid).map(|def| &def.kind));
        match kinds {
            (None, None) => true,
            (Some(TypeKind::Base), Some(TypeKind::Base))
            | (Some(TypeKind::Ascii), Some(TypeKind::Ascii))
            | (Some(TypeKind::Enum(_)), Some(TypeKind::Enum(_))) => true,
            (Some(TypeKind::Money(one)), Some(TypeKind::Money(two))) => one == two,
            (Some(TypeKind::Domain(one)), Some(TypeKind::Domain(two)))
            | (Some(TypeKind::Array(one)), Some(TypeKind::Array(two)))
            | (Some(TypeKind::Range(one)), Some(TypeKind::Range(two)))
            | (Some(TypeKind::Multirange(one)), Some(TypeKind::Multirange(two))) => one == two && same(*one),
            (Some(TypeKind::Composite(one)), Some(TypeKind::Composite(two))) => {
                one == two && one.iter().all(|(_, oid)| same(*oid))
            }
            (Some(_), Some(_)) | (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Returns the schema of some of the columns, in this order, with the types that they need.
    /// Returns `None` if a column of the key is not one of them, or if there is no such column.
    #[must_use]
    pub fn with_columns(&self, columns: &[usize]) -> Option<Schema> {
        let key = self.key.columns().iter().map(|key| columns.iter().position(|column| column == key));
        let key = KeyColumns::new(key.collect::<Option<Vec<_>>>()?);
        let columns: Vec<Column> =
            columns.iter().map(|column| self.columns.get(*column).cloned()).collect::<Option<_>>()?;
        let mut needed = BTreeSet::new();
        columns.iter().for_each(|column| self.collect_types(column.type_oid, &mut needed));
        let types = self.types.iter().filter(|(oid, _)| needed.contains(oid));
        Some(Schema::new(columns, key, types.map(|(oid, def)| (*oid, def.clone())).collect()))
    }

    /// Collects a type, and the types inside it.
    fn collect_types(&self, oid: Oid, into: &mut BTreeSet<Oid>) {
        if !into.insert(oid) {
            return;
        }
        match self.type_def(oid).map(|def| &def.kind) {
            None | Some(TypeKind::Base | TypeKind::Money(_) | TypeKind::Ascii | TypeKind::Enum(_)) => {}
            Some(
                TypeKind::Domain(inner) | TypeKind::Array(inner) | TypeKind::Range(inner) | TypeKind::Multirange(inner),
            ) => self.collect_types(*inner, into),
            Some(TypeKind::Composite(fields)) => fields.iter().for_each(|(_, oid)| self.collect_types(*oid, into)),
        }
    }

    /// Returns a column's number, from 0.
    #[must_use]
    pub fn position_of(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }

    /// Returns the numbers of several columns.
    ///
    /// # Errors
    /// Returns the first name that no column has.
    pub fn positions_of(&self, columns: &[String]) -> Result<KeyColumns, String> {
        columns
            .iter()
            .map(|name| self.position_of(name).ok_or_else(|| name.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map(KeyColumns::new)
    }
}

/// A conversion of rows from one schema to the next. Columns of the same name and type keep their
/// cells, new columns are NULL, and dropped columns disappear. Server and client perform the same
/// cast at a schema change, so that the server sends only the remaining differences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCast {
    from: Vec<Option<usize>>,
}

impl RowCast {
    /// Returns the cast from `old` to `new`.
    #[must_use]
    pub fn new(old: &Schema, new: &Schema) -> RowCast {
        let source = |column: &Column| {
            old.columns.iter().position(|o| {
                o.name == column.name
                    && o.type_oid == column.type_oid
                    && o.type_modifier == column.type_modifier
                    && o.is_text == column.is_text
            })
        };
        RowCast { from: new.columns.iter().map(source).collect() }
    }

    /// Returns a row of the old schema as a row of the new one.
    #[must_use]
    pub fn apply(&self, row: TupleRef<'_>) -> TupleBuf {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        self.from.iter().map(|from| from.and_then(|i| cells.get(i).copied()).unwrap_or(Cell::Null)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Oid = 16_400;
    const OUTER: Oid = 16_500;

    fn schema(fields: &[(&str, Oid)], outer: Option<TypeKind>) -> Schema {
        let fields = fields.iter().map(|(name, oid)| ((*name).to_owned(), *oid)).collect();
        let def = |kind| TypeDef { name: "t".to_owned(), kind };
        let outer = outer.map(|kind| (OUTER, def(kind)));
        let types = [(PAIR, def(TypeKind::Composite(fields)))].into_iter().chain(outer).collect();
        Schema::new(Vec::new(), KeyColumns::new([]), types)
    }

    #[test]
    fn composites_are_compared_field_by_field_however_deep_they_are() {
        let before = [("a", 23), ("b", 25)];
        let others: [&[(&str, Oid)]; 5] = [
            &[("a", 23), ("b", 25), ("c", 23)],
            &[("a", 23)],
            &[("a", 23), ("b", 1043)],
            &[("b", 25), ("a", 23)],
            &[("a", 23), ("renamed", 25)],
        ];
        let kinds = [
            None,
            Some(TypeKind::Array(PAIR)),
            Some(TypeKind::Domain(PAIR)),
            Some(TypeKind::Range(PAIR)),
            Some(TypeKind::Multirange(PAIR)),
            Some(TypeKind::Composite(vec![("p".to_owned(), PAIR)])),
        ];
        for kind in kinds {
            let oid = if kind.is_some() { OUTER } else { PAIR };
            let old = schema(&before, kind.clone());
            assert!(old.reads_alike(&schema(&before, kind.clone()), oid), "{kind:?}");
            for fields in others {
                assert!(!old.reads_alike(&schema(fields, kind.clone()), oid), "{kind:?} {fields:?}");
            }
        }
        let (fewer, more) = (Some(TypeKind::Enum(vec![])), Some(TypeKind::Enum(vec!["a".to_owned()])));
        assert!(schema(&before, fewer.clone()).reads_alike(&schema(&before, more), OUTER), "labels are text");
        assert!(!schema(&before, fewer).reads_alike(&schema(&before, None), OUTER), "a type that is gone");
    }

    #[test]
    fn types_that_contain_themselves_are_compared_all_the_same() {
        let looped = || schema(&[("self", PAIR)], Some(TypeKind::Domain(OUTER)));
        assert!(looped().reads_alike(&looped(), PAIR));
        assert!(looped().reads_alike(&looped(), OUTER));
    }
}
