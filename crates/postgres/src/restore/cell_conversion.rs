//! The conversion of rows of one database to rows of another.
//!
//! The binary form of an array contains the OID of its elements' type, and that of a composite
//! those of its fields' types. Each database assigns its own OIDs to user-defined types. A column
//! whose type differs between the rows and the table is therefore converted to values, and these
//! are encoded in the table's own types.

use std::borrow::Cow;

use laredo_core::{Cell, Column, Oid, Schema, Tuple, TupleRef, TypeKind, project_cell, unproject_cell};

use super::RestoreError;
use crate::catalog::{TableDefinition, type_def};

/// The first OID of user-defined types. PostgreSQL's own types have lower OIDs, which are the same
/// everywhere.
const USER_DEFINED: Oid = 16_384;

/// The OID of `money`. Amounts are numbers whose decimals `lc_monetary` decides.
const MONEY: Oid = 790;
const MONEY_ARRAY: Oid = 791;

/// The conversion of the rows' cells to cells of the table.
#[derive(Debug)]
pub(super) enum CellConversion {
    /// The cells are used unchanged.
    Unchanged,
    /// Some cells are encoded again: those of the columns that are true here.
    Encoded(Schema, Vec<bool>),
}

impl CellConversion {
    /// Compares rows of `schema` with a table. PostgreSQL itself reports a column that the table
    /// lacks.
    pub(super) fn between(schema: &Schema, table: &TableDefinition) -> CellConversion {
        let types = table.types.iter().map(|facts| (facts.oid, type_def(facts))).collect();
        let column = |column: &Column| {
            let there = table.columns.iter().find(|there| there.name == column.name && !there.generated);
            there.map_or_else(
                || column.clone(),
                |there| Column {
                    type_oid: there.type_oid,
                    type_modifier: there.type_modifier,
                    type_name: there.type_name.clone(),
                    not_null: there.not_null,
                    ..column.clone()
                },
            )
        };
        let columns: Vec<Column> = schema.columns().iter().map(column).collect();
        let table = Schema::new(columns, schema.key().clone(), types);
        let pairs = schema.columns().iter().zip(table.columns());
        let differ: Vec<bool> =
            pairs.map(|(ours, theirs)| !is_same(schema, ours.type_oid, &table, theirs.type_oid)).collect();
        if differ.contains(&true) { CellConversion::Encoded(table, differ) } else { CellConversion::Unchanged }
    }

    /// Returns a row of `schema` as a row of the table.
    ///
    /// # Errors
    /// Fails if a value is invalid for the type that its column has in the table.
    pub(super) fn row<'a>(&self, schema: &Schema, row: &'a Tuple) -> Result<Cow<'a, Tuple>, RestoreError> {
        match self {
            CellConversion::Unchanged => Ok(Cow::Borrowed(row)),
            CellConversion::Encoded(table, differ) => convert_row(schema, table, differ, row.as_ref()).map(Cow::Owned),
        }
    }
}

fn convert_row(schema: &Schema, table: &Schema, differ: &[bool], row: TupleRef<'_>) -> Result<Tuple, RestoreError> {
    let mut converted = laredo_core::TupleBuf::new();
    for (index, (cell, differs)) in row.cells().zip(differ).enumerate() {
        match cell {
            Cell::Value(_) if *differs => {
                let value = project_cell(schema, index, cell)?;
                let bytes = unproject_cell(table, index, &value)?;
                converted.push(bytes.as_deref().map_or(Cell::Null, Cell::Value));
            }
            cell => converted.push(cell),
        }
    }
    Ok(converted.as_ref().to_tuple())
}

/// Returns true if a type, with all types that it consists of, is the same in both schemas.
fn is_same(ours: &Schema, oid: Oid, theirs: &Schema, other: Oid) -> bool {
    if matches!(oid, MONEY | MONEY_ARRAY) && ours.money_decimals() != theirs.money_decimals() {
        return false;
    }
    if oid != other || oid < USER_DEFINED {
        return oid == other;
    }
    let (Some(one), Some(two)) = (ours.type_def(oid), theirs.type_def(other)) else { return false };
    let parts: Vec<Oid> = match &one.kind {
        TypeKind::Base | TypeKind::Money(_) | TypeKind::Ascii | TypeKind::Enum(_) => Vec::new(),
        TypeKind::Domain(part) | TypeKind::Array(part) | TypeKind::Range(part) | TypeKind::Multirange(part) => {
            vec![*part]
        }
        TypeKind::Composite(fields) => fields.iter().map(|(_, part)| *part).collect(),
    };
    // The recursion ends, since no type is part of itself.
    one == two && parts.into_iter().all(|part| is_same(ours, part, theirs, part))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use laredo_core::{KeyColumns, TypeDef};

    use super::*;

    fn schema(array: Oid, element: Oid, labels: &[&str]) -> Schema {
        let column = Column {
            name: "moods".to_owned(),
            type_oid: array,
            type_modifier: -1,
            type_name: "mood[]".to_owned(),
            not_null: false,
            is_text: false,
        };
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let types = BTreeMap::from([
            (array, TypeDef { name: "_mood".to_owned(), kind: TypeKind::Array(element) }),
            (element, TypeDef { name: "mood".to_owned(), kind: TypeKind::Enum(labels) }),
        ]);
        Schema::new(vec![column], KeyColumns::new([0]), types)
    }

    #[test]
    fn a_type_is_the_same_where_all_its_parts_are() {
        let ours = schema(20_001, 20_000, &["sad"]);
        for (theirs, is_it) in [
            (schema(20_001, 20_000, &["sad"]), true),
            (schema(20_001, 20_002, &["sad"]), false),
            (schema(20_003, 20_000, &["sad"]), false),
            (schema(20_001, 20_000, &["sad", "happy"]), false),
        ] {
            let column = theirs.columns()[0].type_oid;
            assert_eq!(is_same(&ours, 20_001, &theirs, column), is_it, "{theirs:?}");
        }
        assert!(is_same(&ours, 23, &ours, 23) && !is_same(&ours, 23, &ours, 20));
    }

    #[test]
    fn amounts_are_the_same_where_their_decimals_are() {
        let schema = |oid: Oid, decimals: u8| {
            let parts = vec![("amount".to_owned(), MONEY)];
            let column = Column { type_oid: oid, ..schema(1, 2, &[]).columns()[0].clone() };
            let types = BTreeMap::from([
                (MONEY, TypeDef { name: "money".to_owned(), kind: TypeKind::Money(decimals) }),
                (MONEY_ARRAY, TypeDef { name: "_money".to_owned(), kind: TypeKind::Array(MONEY) }),
                (20_000, TypeDef { name: "price".to_owned(), kind: TypeKind::Composite(parts) }),
            ]);
            Schema::new(vec![column], KeyColumns::new([0]), types)
        };
        for oid in [MONEY, MONEY_ARRAY, 20_000] {
            assert!(is_same(&schema(oid, 0), oid, &schema(oid, 0), oid));
            assert!(!is_same(&schema(oid, 0), oid, &schema(oid, 3), oid));
        }
        let (yen, dinar) = (schema(MONEY, 0), schema(MONEY, 3));
        let row: laredo_core::TupleBuf = [Cell::Value(&100_i64.to_be_bytes())].into_iter().collect();
        let converted = convert_row(&yen, &dinar, &[true], row.as_ref()).unwrap();
        assert_eq!(converted.as_ref().cell(0).value(), Some(&100_000_i64.to_be_bytes()[..]));
        assert!(convert_row(&dinar, &yen, &[true], row.as_ref()).is_err(), "a tenth of a yen");
    }

    #[test]
    fn an_array_gets_the_number_that_its_elements_have_in_the_table() {
        let (ours, theirs) = (schema(20_001, 20_000, &["sad"]), schema(30_001, 30_000, &["sad"]));
        let cell = |element: Oid| {
            let words = [1, 0, element, 1, 1, 3].map(u32::to_be_bytes).concat();
            [&words[..], b"sad"].concat()
        };
        let row: laredo_core::TupleBuf = [Cell::Value(&cell(20_000))].into_iter().collect();
        let converted = convert_row(&ours, &theirs, &[true], row.as_ref()).unwrap();
        assert_eq!(converted.as_ref().cell(0).value(), Some(&cell(30_000)[..]));
    }
}
