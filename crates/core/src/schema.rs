//! A table's columns, key and types.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::key::KeyColumns;
use crate::tuple::{Cell, TupleBuf, TupleRef};

/// A type's number in `pg_type`.
pub type Oid = u32;

/// The type `money`.
const MONEY: Oid = 790;
/// The decimals of an amount of money in most of the world.
pub(crate) const MONEY_DECIMALS: u8 = 2;

/// One replicated column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name as the catalogue spells it.
    pub name: String,
    /// Its type.
    pub type_oid: Oid,
    /// The type modifier (`atttypmod`), -1 for none.
    pub type_modifier: i32,
    /// The type as `format_type` spells it, for people and for the wire's `data_type`.
    pub type_name: String,
    /// Whether it is declared NOT NULL.
    pub not_null: bool,
    /// Whether its cells are the value's text, because the type has no binary form.
    pub is_text: bool,
}

/// What a type is made of. Archives have it by these words, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TypeKind {
    /// A base type: built in, or an extension's.
    Base,
    /// The type `money` where its amounts do not have two decimals, with their number. PostgreSQL takes it from
    /// `lc_monetary`; the bytes of an amount do not say it.
    Money(u8),
    /// The extension type `citext` in a database whose locale knows upper and lower case of ASCII letters alone.
    Ascii,
    /// An enum with its labels in order. A cell is the label.
    Enum(Vec<String>),
    /// A domain over another type. A cell is that type's.
    Domain(Oid),
    /// A row type: names and types of its fields.
    Composite(Vec<(String, Oid)>),
    /// An array of an element type.
    Array(Oid),
    /// A range of a subtype.
    Range(Oid),
    /// A multirange of a range type.
    Multirange(Oid),
}

/// A type that a column uses, directly or inside another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeDef {
    /// Its name, without its schema.
    pub name: String,
    /// What it is made of.
    pub kind: TypeKind,
}

/// A table's replicated columns in order, its key, and every type they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    columns: Vec<Column>,
    key: KeyColumns,
    types: BTreeMap<Oid, TypeDef>,
}

impl Schema {
    /// A schema. `key` holds column numbers from 0, in key order, each below the number of columns.
    #[must_use]
    pub fn new(columns: Vec<Column>, key: KeyColumns, types: BTreeMap<Oid, TypeDef>) -> Schema {
        Schema { columns, key, types }
    }

    /// The columns, in the order of a row's cells.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// What identifies a row.
    #[must_use]
    pub fn key(&self) -> &KeyColumns {
        &self.key
    }

    /// The definitions of all types that the columns use, built-in ones too.
    #[must_use]
    pub fn types(&self) -> &BTreeMap<Oid, TypeDef> {
        &self.types
    }

    /// A type's definition.
    #[must_use]
    pub fn type_def(&self, oid: Oid) -> Option<&TypeDef> {
        self.types.get(&oid)
    }

    /// Returns the number of decimals that amounts of type `money` have.
    #[must_use]
    pub fn money_decimals(&self) -> u8 {
        if let Some(TypeDef { kind: TypeKind::Money(decimals), .. }) = self.type_def(MONEY) {
            return *decimals;
        }
        MONEY_DECIMALS
    }

    /// Returns true if values of a type are read alike under another schema: all composites in it have the same fields, and
    /// amounts of money the same decimals. Other types only change under another number, and an enum's cells are its labels.
    #[must_use]
    pub fn reads_alike(&self, other: &Schema, oid: Oid) -> bool {
        self.compare_types(other, oid, &mut BTreeSet::new())
    }

    /// `seen` holds the types that were compared already, or are being compared.
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

    /// A column's number, from 0.
    #[must_use]
    pub fn position_of(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }

    /// The numbers of several columns.
    ///
    /// # Errors
    /// The first name that no column has.
    pub fn positions_of(&self, columns: &[String]) -> Result<KeyColumns, String> {
        columns
            .iter()
            .map(|name| self.position_of(name).ok_or_else(|| name.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map(KeyColumns::new)
    }
}

/// How rows of one schema become rows of the next: columns of the same name and type keep their cells, new ones are
/// NULL, dropped ones go. Server and client both do exactly this at a schema change, so that only what really differs
/// has to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCast {
    from: Vec<Option<usize>>,
}

impl RowCast {
    /// The cast from `old` to `new`.
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

    /// A row of the old schema as one of the new.
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
