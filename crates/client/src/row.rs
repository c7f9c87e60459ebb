//! A row, whose cells are decoded when somebody asks for one.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use laredo_core::{Cell, Column, Schema, Tuple};
use postgres_types::FromSql;

use crate::layout::Layout;

/// A row of a table, with its schema. Cheap to clone; it stays as it was when the table moves on.
#[derive(Clone)]
pub struct Row {
    tuple: Tuple,
    layout: Arc<Layout>,
}

/// A row inside a [`crate::View`]: like [`Row`], but free to make.
#[derive(Clone, Copy)]
pub struct RowRef<'a> {
    tuple: &'a Tuple,
    layout: &'a Arc<Layout>,
}

/// Why a cell has no value of the wanted Rust type.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// No such column.
    #[error("the table has no column {column}")]
    NoColumn {
        /// The name or number asked for.
        column: String,
    },
    /// The Rust type is not made for the column's type.
    #[error("column `{column}` is {postgres}, which cannot be read as {rust}")]
    Type {
        /// The column.
        column: String,
        /// Its type as PostgreSQL spells it.
        postgres: String,
        /// The wanted Rust type.
        rust: &'static str,
    },
    /// The value cannot be had in the Rust type; above all NULL where that is not an `Option`.
    #[error("column `{column}` ({postgres}) cannot be read as {rust}: {source}")]
    Value {
        /// The column.
        column: String,
        /// Its type as PostgreSQL spells it.
        postgres: String,
        /// The wanted Rust type.
        rust: &'static str,
        /// What the decoder said.
        source: Box<dyn Error + Sync + Send>,
    },
}

/// A column's name, or its number from 0.
pub trait ColumnIndex: fmt::Display {
    /// The column's number.
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
    pub(crate) fn new(tuple: Tuple, layout: Arc<Layout>) -> Row {
        Row { tuple, layout }
    }

    /// Borrows it.
    #[must_use]
    pub fn as_ref(&self) -> RowRef<'_> {
        RowRef::new(&self.tuple, &self.layout)
    }

    /// A column's value as the Rust type that is asked for: any with a `FromSql` of `postgres-types`.
    ///
    /// # Errors
    /// When there is no such column, or its value is not one of that Rust type.
    pub fn get<'a, T: FromSql<'a>>(&'a self, column: impl ColumnIndex) -> Result<T, CellError> {
        self.as_ref().get(column)
    }

    /// Whether a column is NULL. A column that is not there is, too.
    pub fn is_null(&self, column: impl ColumnIndex) -> bool {
        self.as_ref().is_null(column)
    }

    /// The columns with their cells as PostgreSQL sent them.
    pub fn cells(&self) -> impl Iterator<Item = (&Column, Cell<'_>)> {
        self.as_ref().cells()
    }

    /// The columns.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        self.layout.schema()
    }

    /// The cells' bytes.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        &self.tuple
    }
}

impl<'a> RowRef<'a> {
    pub(crate) fn new(tuple: &'a Tuple, layout: &'a Arc<Layout>) -> RowRef<'a> {
        RowRef { tuple, layout }
    }

    /// A row that outlives its view.
    #[must_use]
    pub fn to_row(self) -> Row {
        Row::new(self.tuple.clone(), self.layout.clone())
    }

    /// As [`Row::get`].
    ///
    /// # Errors
    /// When there is no such column, or its value is not one of that Rust type.
    pub fn get<T: FromSql<'a>>(self, column: impl ColumnIndex) -> Result<T, CellError> {
        let found = column.find(self.layout.schema());
        let Some((index, types)) = found.and_then(|i| Some((i, self.layout.column(i)?))) else {
            return Err(CellError::NoColumn { column: column.to_string() });
        };
        let names = || {
            let column = self.layout.schema().columns().get(index);
            column.map(|c| (c.name.clone(), c.type_name.clone())).unwrap_or_default()
        };
        let rust = std::any::type_name::<T>();
        let accepted = [&types.declared, &types.plain].into_iter().find(|ty| T::accepts(ty));
        let Some(accepted) = accepted else {
            let (column, postgres) = names();
            return Err(CellError::Type { column, postgres, rust });
        };
        let cell = self.tuple.as_ref().cell(index).value();
        T::from_sql_nullable(accepted, cell).map_err(|source| {
            let (column, postgres) = names();
            CellError::Value { column, postgres, rust, source }
        })
    }

    /// As [`Row::is_null`].
    pub fn is_null(self, column: impl ColumnIndex) -> bool {
        let index = column.find(self.layout.schema());
        index.is_none_or(|index| self.tuple.as_ref().cell(index).value().is_none())
    }

    /// As [`Row::cells`].
    pub fn cells(self) -> impl Iterator<Item = (&'a Column, Cell<'a>)> {
        let columns = self.layout.schema().columns().iter();
        columns.zip(self.tuple.as_ref().cells())
    }

    /// The columns.
    #[must_use]
    pub fn schema(self) -> &'a Arc<Schema> {
        self.layout.schema()
    }

    /// The cells' bytes.
    #[must_use]
    pub fn tuple(self) -> &'a Tuple {
        self.tuple
    }
}

impl PartialEq for Row {
    /// Equal when columns and cells are.
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
    /// Texts as texts, anything else as its bytes in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = f.debug_struct("Row");
        for (index, (column, cell)) in self.cells().enumerate() {
            match (cell.value(), self.get::<Option<&str>>(index)) {
                (None, _) => row.field(&column.name, &format_args!("NULL")),
                (Some(_), Ok(text)) => row.field(&column.name, &text.unwrap_or_default()),
                (Some(bytes), Err(_)) => row.field(&column.name, &format_args!("{}", Hex(bytes))),
            };
        }
        row.finish()
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\\x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
