//! Conversion of cells to values.

#[cfg(test)]
mod tests;

use laredo_core::{Cell, Oid, Schema, TupleRef};

use crate::problem::{CellProblem, NESTING_MAX};
use crate::shape::TypeShape;
use crate::types::CellContext;
use crate::value::Value;
use crate::wire;

/// An error for a cell that cannot be projected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` has a cell that is not a value of type {type_name}: {problem}")]
pub struct ProjectError {
    /// The column's name.
    pub column: String,
    /// The type's name.
    pub type_name: String,
    /// The problem with the cell.
    pub problem: CellProblem,
}

/// Returns the projection of one cell.
///
/// # Errors
/// Returns an error if the bytes are not a value of the column's type, or the schema has no such
/// column.
pub fn project_cell(schema: &Schema, column: usize, cell: Cell<'_>) -> Result<Value, ProjectError> {
    let Some(definition) = schema.columns().get(column) else {
        return Err(ProjectError {
            column: column.to_string(),
            type_name: "unknown".to_owned(),
            problem: CellProblem::NoColumn,
        });
    };
    let value = match cell {
        Cell::Null => Ok(Value::Null),
        Cell::Unchanged => Err(CellProblem::Unsent),
        Cell::Value(bytes) if definition.is_text => wire::utf8(bytes).map(|text| Value::String(text.to_owned())),
        Cell::Value(bytes) => CellDecoder::new(schema, schema.key().contains(column)).value(definition.type_oid, bytes),
    };
    value.map_err(|problem| ProjectError {
        column: definition.name.clone(),
        type_name: definition.type_name.clone(),
        problem,
    })
}

/// Returns the projections of a row by column name, in the schema's order. Cells that a short row
/// lacks are NULL.
///
/// # Errors
/// Returns an error if the bytes of a cell are not a value of the column's type.
pub fn project_row<'s>(schema: &'s Schema, row: TupleRef<'_>) -> Result<Vec<(&'s str, Value)>, ProjectError> {
    let mut cells = row.cells();
    schema
        .columns()
        .iter()
        .enumerate()
        .map(|(number, column)| {
            let cell = cells.next().unwrap_or(Cell::Null);
            Ok((column.name.as_str(), project_cell(schema, number, cell)?))
        })
        .collect()
}

/// A decoder of one cell, within limits of depth and size.
pub(crate) struct CellDecoder<'s> {
    schema: &'s Schema,
    context: CellContext,
}

impl<'s> CellDecoder<'s> {
    pub(crate) fn new(schema: &'s Schema, is_key: bool) -> CellDecoder<'s> {
        CellDecoder { schema, context: CellContext::new(is_key) }
    }

    /// Returns the projection of a value, by the rules in the documentation of this crate.
    pub(crate) fn value(&mut self, oid: Oid, bytes: &[u8]) -> Result<Value, CellProblem> {
        match self.enter(oid)? {
            TypeShape::Base(base) => base.project(&mut self.context, bytes),
            TypeShape::Array(element) => self.deeper(|inner| inner.array(oid, element, bytes)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite(fields, bytes)),
            TypeShape::Range(_) | TypeShape::Multirange(_) => self.text(oid, bytes).map(Value::String),
        }
    }

    /// Returns the projection of a value that may be NULL.
    pub(crate) fn optional_value(&mut self, oid: Oid, bytes: Option<&[u8]>) -> Result<Value, CellProblem> {
        bytes.map_or(Ok(Value::Null), |bytes| self.value(oid, bytes))
    }

    /// Returns PostgreSQL's text form of a value.
    pub(crate) fn text(&mut self, oid: Oid, bytes: &[u8]) -> Result<String, CellProblem> {
        match self.enter(oid)? {
            TypeShape::Base(base) => base.to_text(&mut self.context, bytes),
            TypeShape::Array(element) => self.deeper(|inner| inner.array_text(element, bytes)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite_text(fields, bytes)),
            TypeShape::Range(subtype) => self.deeper(|inner| inner.range(subtype, bytes)),
            TypeShape::Multirange(range) => self.deeper(|inner| inner.multirange(range, bytes)),
        }
    }

    /// Returns the structure of a type, unless it nests too deeply.
    pub(crate) fn enter(&self, oid: Oid) -> Result<TypeShape<'s>, CellProblem> {
        if self.context.depth > NESTING_MAX {
            return Err(CellProblem::TooDeep);
        }
        TypeShape::of(self.schema, oid)
    }

    pub(crate) fn deeper<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CellProblem>,
    ) -> Result<T, CellProblem> {
        self.context.depth += 1;
        let result = read(self);
        self.context.depth -= 1;
        result
    }
}
