//! Rows, with cells that are decoded when they are read.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use laredo_core::{Cell, Column, Schema, Tuple};

use crate::cell::FromCell;
use crate::layout::RowLayout;

/// A row of a table, with its schema. It is cheap to clone, and stays unchanged when the table
/// changes.
#[derive(Clone)]
pub struct Row {
    tuple: Tuple,
    layout: Arc<RowLayout>,
}

/// A row inside a [`crate::View`]. It is like [`Row`], and creating one costs nothing.
#[derive(Clone, Copy)]
pub struct RowRef<'a> {
    tuple: &'a Tuple,
    layout: &'a Arc<RowLayout>,
}

/// The reason why a cell cannot be read as a Rust type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CellError {
    /// The table has no such column.
    #[error("the table has no column {column}")]
    NoColumn {
        /// The requested name or number.
        column: String,
    },
    /// The Rust type does not accept the column's type.
    #[error("column `{column}` is {postgres}, which cannot be read as {rust}")]
    Type {
        /// The name of the column.
        column: String,
        /// The column's type, as PostgreSQL spells it.
        postgres: String,
        /// The requested Rust type.
        rust: &'static str,
    },
    /// The value has no representation in the Rust type. The usual case is NULL for a type that is
    /// not an `Option`.
    #[error("column `{column}` ({postgres}) cannot be read as {rust}: {source}")]
    Value {
        /// The name of the column.
        column: String,
        /// The column's type, as PostgreSQL spells it.
        postgres: String,
        /// The requested Rust type.
        rust: &'static str,
        /// The error of the decoder.
        source: Box<dyn Error + Sync + Send>,
    },
}

/// A column's name, or its number counted from 0.
pub trait ColumnIndex: fmt::Display {
    /// Returns the column's number, or `None` if the schema has no such column.
    fn find(&self, schema: &Schema) -> Option<usize>;
}

impl ColumnIndex for usize {
    fn find(&self, schema: &Schema) -> Option<usize> {
        (*self < schema.columns().len()).then_some(*self)
    }
}

impl ColumnIndex for str {
    fn find(&self, schema: &Schema) -> Option<usize> {
        schema.position_of(self)
    }
}

impl ColumnIndex for String {
    fn find(&self, schema: &Schema) -> Option<usize> {
        schema.position_of(self)
    }
}

impl<T: ColumnIndex + ?Sized> ColumnIndex for &T {
    fn find(&self, schema: &Schema) -> Option<usize> {
        (**self).find(schema)
    }
}

impl Row {
    pub(crate) fn new(tuple: Tuple, layout: Arc<RowLayout>) -> Row {
        Row { tuple, layout }
    }

    /// Returns a borrowed form of this row.
    #[must_use]
    pub fn as_ref(&self) -> RowRef<'_> {
        RowRef::new(&self.tuple, &self.layout)
    }

    /// Returns a column's value as the requested Rust type.
    ///
    /// # Errors
    /// When there is no such column, or its value cannot be read as that Rust type.
    pub fn get<'a, T: FromCell<'a>>(&'a self, column: impl ColumnIndex) -> Result<T, CellError> {
        self.as_ref().get(column)
    }

    /// Returns true if a column is NULL or does not exist.
    pub fn is_null(&self, column: impl ColumnIndex) -> bool {
        self.as_ref().is_null(column)
    }

    /// Returns the columns with their cells as PostgreSQL sent them.
    pub fn cells(&self) -> impl Iterator<Item = (&Column, Cell<'_>)> {
        self.as_ref().cells()
    }

    /// Returns the schema of the row.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        self.layout.schema()
    }

    /// Returns the bytes of the cells.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        &self.tuple
    }
}

impl<'a> RowRef<'a> {
    pub(crate) fn new(tuple: &'a Tuple, layout: &'a Arc<RowLayout>) -> RowRef<'a> {
        RowRef { tuple, layout }
    }

    /// Returns a row that outlives its view.
    #[must_use]
    pub fn to_row(self) -> Row {
        Row::new(self.tuple.clone(), self.layout.clone())
    }

    /// Returns a column's value as the requested Rust type, as [`Row::get`].
    ///
    /// # Errors
    /// When there is no such column, or its value cannot be read as that Rust type.
    pub fn get<T: FromCell<'a>>(self, column: impl ColumnIndex) -> Result<T, CellError> {
        let found = column.find(self.layout.schema());
        let Some((index, ty)) = found.and_then(|i| Some((i, self.layout.column(i)?))) else {
            return Err(CellError::NoColumn { column: column.to_string() });
        };
        let names = || {
            let column = self.layout.schema().columns().get(index);
            column.map(|c| (c.name.clone(), c.type_name.clone())).unwrap_or_default()
        };
        let rust = std::any::type_name::<T>();
        let Some(read) = T::from_cell(ty, self.tuple.as_ref().cell(index).value()) else {
            let (column, postgres) = names();
            return Err(CellError::Type { column, postgres, rust });
        };
        read.map_err(|source| {
            let (column, postgres) = names();
            CellError::Value { column, postgres, rust, source }
        })
    }

    /// Returns true if a column is NULL or does not exist.
    pub fn is_null(self, column: impl ColumnIndex) -> bool {
        let index = column.find(self.layout.schema());
        index.is_none_or(|index| self.tuple.as_ref().cell(index).value().is_none())
    }

    /// Returns the columns with their cells as PostgreSQL sent them.
    pub fn cells(self) -> impl Iterator<Item = (&'a Column, Cell<'a>)> {
        let columns = self.layout.schema().columns().iter();
        columns.zip(self.tuple.as_ref().cells())
    }

    /// Returns the schema of the row.
    #[must_use]
    pub fn schema(self) -> &'a Arc<Schema> {
        self.layout.schema()
    }

    /// Returns the bytes of the cells.
    #[must_use]
    pub fn tuple(self) -> &'a Tuple {
        self.tuple
    }
}

impl PartialEq for Row {
    /// Returns true if the columns and the cells are equal.
    fn eq(&self, other: &Row) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl PartialEq for RowRef<'_> {
    fn eq(&self, other: &RowRef<'_>) -> bool {
        self.tuple == other.tuple
            && (Arc::ptr_eq(self.layout, other.layout) || self.layout.schema() == other.layout.schema())
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl fmt::Debug for RowRef<'_> {
    /// Writes texts as texts, and all other values as their bytes in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = f.debug_struct("Row");
        for (index, (column, cell)) in self.cells().enumerate() {
            match (cell.value(), self.get::<Option<&str>>(index)) {
                (None, _) => row.field(&column.name, &format_args!("NULL")),
                (Some(_), Ok(text)) => row.field(&column.name, &text.unwrap_or_default()),
                (Some(bytes), Err(_)) => row.field(&column.name, &format_args!("{}", HexBytes(bytes))),
            };
        }
        row.finish()
    }
}

struct HexBytes<'a>(&'a [u8]);

impl fmt::Display for HexBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\\x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
