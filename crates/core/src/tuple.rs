//! A row is bytes: PostgreSQL's own binary cells, one after another.

use std::sync::Arc;

/// The length that stands for NULL, as in PostgreSQL's binary COPY.
const NULL: i32 = -1;
/// The length that stands for "unchanged TOAST value, not sent". Only rows that come from a source have it.
const UNCHANGED: i32 = -2;

/// One cell of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// A large value that an UPDATE did not touch and PostgreSQL did not send.
    Unchanged,
    /// The value's binary form (`typsend`), or its text where the column is marked so.
    Value(&'a [u8]),
}

impl<'a> Cell<'a> {
    /// The value's bytes; `None` for NULL and for what was not sent.
    #[must_use]
    pub fn value(self) -> Option<&'a [u8]> {
        match self {
            Cell::Value(bytes) => Some(bytes),
            Cell::Null | Cell::Unchanged => None,
        }
    }
}

/// A row that somebody else holds: cells in column order, each a big-endian `i32` length (-1: NULL) and that many
/// bytes. This is a binary COPY row after its field count, and a pgoutput row without its kind bytes.
///
/// Bytes from outside go through [`TupleRef::parse`]; what does not is treated as ending at its first flaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TupleRef<'a>(&'a [u8]);

/// Bytes that are not a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TupleError {
    /// A cell runs past the end, or its length is impossible.
    #[error("row is torn: cell {cell} does not fit in the {length} bytes of the row")]
    Torn {
        /// The cell's number from 0.
        cell: usize,
        /// Bytes of the whole row.
        length: usize,
    },
    /// Another number of cells than columns.
    #[error("row has {found} cells where its table has {expected} columns")]
    Count {
        /// Cells found.
        found: usize,
        /// Columns of the schema.
        expected: usize,
    },
}

impl<'a> TupleRef<'a> {
    /// Takes bytes from outside for a row of `columns` cells, all of them sent.
    ///
    /// # Errors
    /// When a cell does not fit, when the number of cells is another, or when one is marked unchanged.
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

    /// Bytes that a [`TupleBuf`] or a parsed row made.
    #[must_use]
    pub fn trusted(bytes: &'a [u8]) -> TupleRef<'a> {
        TupleRef(bytes)
    }

    /// The bytes, lengths included.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The cells in column order.
    #[must_use]
    pub fn cells(self) -> Cells<'a> {
        Cells { rest: self.0 }
    }

    /// The cell of one column, counted from 0; NULL beyond the last.
    #[must_use]
    pub fn cell(self, column: usize) -> Cell<'a> {
        self.cells().nth(column).unwrap_or(Cell::Null)
    }

    /// The row of the first `count` cells; the whole row where it has no more.
    #[must_use]
    pub fn leading(self, count: usize) -> TupleRef<'a> {
        let mut cells = self.cells();
        cells.by_ref().take(count).for_each(drop);
        TupleRef(self.0.get(..self.0.len() - cells.rest.len()).unwrap_or(self.0))
    }

    /// Whether a large value was left out.
    #[must_use]
    pub fn has_unchanged(self) -> bool {
        self.cells().any(|cell| cell == Cell::Unchanged)
    }

    /// A row of its own.
    #[must_use]
    pub fn to_tuple(self) -> Tuple {
        Tuple(self.0.into())
    }
}

/// Iterator over a row's cells.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
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

/// A whole row that many may share: the server's state, both sides of a replica, its indexes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tuple(Arc<[u8]>);

impl Tuple {
    /// Borrows it.
    #[must_use]
    pub fn as_ref(&self) -> TupleRef<'_> {
        TupleRef(&self.0)
    }

    /// Bytes of its cells, lengths included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is a row of no columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both are the same allocation.
    #[must_use]
    pub fn is_same(&self, other: &Tuple) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A row under construction; reused from row to row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TupleBuf(Vec<u8>);

impl TupleBuf {
    /// An empty row.
    #[must_use]
    pub fn new() -> TupleBuf {
        TupleBuf::default()
    }

    /// Adds a cell.
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

    /// Starts the next row.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Borrows the row so far.
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
