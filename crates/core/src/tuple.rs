//! Rows as bytes: PostgreSQL's own binary cells, one after another.

use std::sync::Arc;

/// The length that marks NULL, as in PostgreSQL's binary COPY.
const NULL: i32 = -1;
/// The length that marks an unchanged TOAST value that was not sent. Only rows that come from a
/// source contain it.
const UNCHANGED: i32 = -2;

/// A cell of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// A large value that an UPDATE did not change and PostgreSQL did not send.
    Unchanged,
    /// The value's binary form (`typsend`), or its text if the column is marked as text.
    Value(&'a [u8]),
}

impl<'a> Cell<'a> {
    /// Returns the value's bytes; `None` for NULL and for a value that was not sent.
    #[must_use]
    pub fn value(self) -> Option<&'a [u8]> {
        match self {
            Cell::Value(bytes) => Some(bytes),
            Cell::Null | Cell::Unchanged => None,
        }
    }
}

/// A borrowed row: cells in column order, each with a big-endian `i32` length (-1 for NULL) and
/// that many bytes. A binary COPY row after its field count has this form, and so does a pgoutput
/// row without its kind bytes.
///
/// External bytes must go through [`TupleRef::parse`]. Iterating over a row that was not parsed
/// ends at the first flaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TupleRef<'a>(&'a [u8]);

/// An error for bytes that are not a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TupleError {
    /// A cell that exceeds the row, or has an invalid length.
    #[error("row is torn: cell {cell} does not fit in the {length} bytes of the row")]
    Torn {
        /// The cell's number, from 0.
        cell: usize,
        /// The length of the whole row in bytes.
        length: usize,
    },
    /// A number of cells that differs from the number of columns.
    #[error("row has {found} cells where its table has {expected} columns")]
    Count {
        /// The number of cells found.
        found: usize,
        /// The number of columns of the schema.
        expected: usize,
    },
}

impl<'a> TupleRef<'a> {
    /// Checks external bytes as a row of `columns` cells, all of them sent.
    ///
    /// # Errors
    /// Returns an error if a cell does not fit, the number of cells differs, or a cell is marked
    /// unchanged.
    pub fn parse(bytes: &'a [u8], columns: usize) -> Result<TupleRef<'a>, TupleError> {
        let tuple = TupleRef(bytes);
        let mut cells = tuple.cells();
        let mut found = 0;
        for cell in cells.by_ref() {
            if cell == Cell::Unchanged {
                return Err(TupleError::Torn { cell: found, length: bytes.len() });
            }
            found += 1;
        }
        if !cells.rest.is_empty() {
            return Err(TupleError::Torn { cell: found, length: bytes.len() });
        }
        if found != columns {
            return Err(TupleError::Count { found, expected: columns });
        }
        Ok(tuple)
    }

    /// Wraps bytes that come from a [`TupleBuf`] or from a parsed row, without checking them.
    #[must_use]
    pub fn trusted(bytes: &'a [u8]) -> TupleRef<'a> {
        TupleRef(bytes)
    }

    /// Returns the bytes, including the length prefixes.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Returns the cells in column order.
    #[must_use]
    pub fn cells(self) -> TupleCells<'a> {
        TupleCells { rest: self.0 }
    }

    /// Returns the cell of a column, counted from 0. It is NULL for columns beyond the last cell.
    #[must_use]
    pub fn cell(self, column: usize) -> Cell<'a> {
        self.cells().nth(column).unwrap_or(Cell::Null)
    }

    /// Returns the row of the first `count` cells, or the whole row if it has fewer.
    #[must_use]
    pub fn leading(self, count: usize) -> TupleRef<'a> {
        let mut cells = self.cells();
        cells.by_ref().take(count).for_each(drop);
        TupleRef(self.0.get(..self.0.len() - cells.rest.len()).unwrap_or(self.0))
    }

    /// Returns true if a large value was not sent.
    #[must_use]
    pub fn has_unchanged(self) -> bool {
        self.cells().any(|cell| cell == Cell::Unchanged)
    }

    /// Returns an owned copy of the row.
    #[must_use]
    pub fn to_tuple(self) -> Tuple {
        Tuple(self.0.into())
    }
}

/// An iterator over a row's cells.
#[derive(Clone, Debug)]
pub struct TupleCells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for TupleCells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        let (head, rest) = self.rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*head);
        match length {
            NULL => {
                self.rest = rest;
                Some(Cell::Null)
            }
            UNCHANGED => {
                self.rest = rest;
                Some(Cell::Unchanged)
            }
            _ => {
                let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                self.rest = rest;
                Some(Cell::Value(value))
            }
        }
    }
}

/// A shared row, for example of a server's table state, or of a replica and its indexes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tuple(Arc<[u8]>);

impl Tuple {
    /// Returns a borrowed row.
    #[must_use]
    pub fn as_ref(&self) -> TupleRef<'_> {
        TupleRef(&self.0)
    }

    /// Returns the row's size in bytes, including the length prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true for a row without columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if both are the same allocation.
    #[must_use]
    pub fn is_same(&self, other: &Tuple) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A row under construction. The buffer can be reused for further rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TupleBuf(Vec<u8>);

impl TupleBuf {
    /// Returns an empty row.
    #[must_use]
    pub fn new() -> TupleBuf {
        TupleBuf::default()
    }

    /// Appends a cell.
    pub fn push(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Null => self.0.extend_from_slice(&NULL.to_be_bytes()),
            Cell::Unchanged => self.0.extend_from_slice(&UNCHANGED.to_be_bytes()),
            Cell::Value(bytes) => {
                let length = i32::try_from(bytes.len()).expect("PostgreSQL's values are below 1 GiB");
                self.0.extend_from_slice(&length.to_be_bytes());
                self.0.extend_from_slice(bytes);
            }
        }
    }

    /// Empties the buffer, for the next row.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the cells so far as a borrowed row.
    #[must_use]
    pub fn as_ref(&self) -> TupleRef<'_> {
        TupleRef(&self.0)
    }
}

impl<'a> FromIterator<Cell<'a>> for TupleBuf {
    fn from_iter<I: IntoIterator<Item = Cell<'a>>>(cells: I) -> TupleBuf {
        let mut row = TupleBuf::new();
        cells.into_iter().for_each(|cell| row.push(cell));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cells_come_back(cells: Vec<Option<Vec<u8>>>) {
            let row: TupleBuf = cells.iter().map(|c| c.as_deref().map_or(Cell::Null, Cell::Value)).collect();
            let parsed = TupleRef::parse(row.as_ref().bytes(), cells.len()).unwrap();
            let back: Vec<_> = parsed.cells().map(|c| c.value().map(<[u8]>::to_vec)).collect();
            prop_assert_eq!(back, cells);
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>, columns in 0_usize..8) {
            if let Ok(row) = TupleRef::parse(&bytes, columns) {
                prop_assert_eq!(row.cells().count(), columns);
            }
        }
    }

    #[test]
    fn a_row_with_an_unsent_value_is_not_whole() {
        let row: TupleBuf = [Cell::Value(b"a"), Cell::Unchanged].into_iter().collect();
        assert!(row.as_ref().has_unchanged());
        assert!(TupleRef::parse(row.as_ref().bytes(), 2).is_err());
    }
}
