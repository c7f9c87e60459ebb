//! A table's columns, key and types.

use std::collections::BTreeMap;

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
