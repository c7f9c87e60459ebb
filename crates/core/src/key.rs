//! Keys, which identify rows.

use std::hash::{BuildHasher, Hasher};

use crate::tuple::{Cell, Tuple, TupleBuf, TupleRef};

/// The columns that identify a row or form an index, by their numbers in the schema, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumns(Box<[usize]>);

/// A key's cells in key order, encoded as a row. Keys are equal if their bytes are equal.
/// PostgreSQL also sends the old key whenever its bytes change, so `1.0` and `1.00` are always
/// different keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Tuple);

impl Key {
    /// Returns a key of these cells.
    pub fn new<'a>(cells: impl IntoIterator<Item = Cell<'a>>) -> Key {
        Key(cells.into_iter().collect::<TupleBuf>().as_ref().to_tuple())
    }

    /// Returns a key of a row that has just the key's cells, in key order.
    #[must_use]
    pub fn from_tuple(cells: Tuple) -> Key {
        Key(cells)
    }

    /// Returns the key's cells as a row of key columns only.
    #[must_use]
    pub fn as_ref(&self) -> TupleRef<'_> {
        self.0.as_ref()
    }
}

impl KeyColumns {
    /// Returns key columns from column numbers in key order.
    #[must_use]
    pub fn new(columns: impl Into<Box<[usize]>>) -> KeyColumns {
        KeyColumns(columns.into())
    }

    /// Returns the column numbers.
    #[must_use]
    pub fn columns(&self) -> &[usize] {
        &self.0
    }

    /// Returns true if a column belongs to the key.
    #[must_use]
    pub fn contains(&self, column: usize) -> bool {
        self.0.contains(&column)
    }

    /// Returns a row's key.
    #[must_use]
    pub fn key_of(&self, row: TupleRef<'_>) -> Key {
        Key::new(self.cells_of(row))
    }

    /// Returns a row's key as a row of its cells. Nothing is copied if they are the row's first
    /// cells in order.
    #[must_use]
    pub fn key_in<'a>(&self, row: TupleRef<'a>, scratch: &'a mut TupleBuf) -> TupleRef<'a> {
        if self.0.iter().enumerate().all(|(index, column)| index == *column) {
            return row.leading(self.0.len());
        }
        scratch.clear();
        self.cells_of(row).for_each(|cell| scratch.push(cell));
        scratch.as_ref()
    }

    /// Hashes the key of a whole row. The hash is the same as [`KeyColumns::hash_key`] of that key.
    pub fn hash_row(&self, hasher: &impl BuildHasher, row: TupleRef<'_>) -> u64 {
        hash_cells(hasher, self.cells_of(row))
    }

    /// Hashes a key.
    pub fn hash_key(hasher: &impl BuildHasher, key: TupleRef<'_>) -> u64 {
        hash_cells(hasher, key.cells())
    }

    /// Returns true if a whole row has this key.
    #[must_use]
    pub fn row_has_key(&self, row: TupleRef<'_>, key: TupleRef<'_>) -> bool {
        self.cells_of(row).eq(key.cells())
    }

    /// Returns true if two whole rows have the same key.
    #[must_use]
    pub fn same_key(&self, one: TupleRef<'_>, other: TupleRef<'_>) -> bool {
        self.cells_of(one).eq(self.cells_of(other))
    }

    /// Returns the key's cells of a whole row, in key order.
    pub fn cells_of<'a>(&self, row: TupleRef<'a>) -> impl Iterator<Item = Cell<'a>> {
        // Most keys are leading columns in order, so continuing from the last column saves
        // iterations. The iteration restarts only if the key order differs from the table's order.
        let mut cells = row.cells();
        let mut next = 0;
        self.0.iter().map(move |&column| {
            if column < next {
                cells = row.cells();
                next = 0;
            }
            let skipped = column - next;
            next = column + 1;
            cells.nth(skipped).unwrap_or(Cell::Null)
        })
    }
}

fn hash_cells<'a>(hasher: &impl BuildHasher, cells: impl Iterator<Item = Cell<'a>>) -> u64 {
    let mut state = hasher.build_hasher();
    for cell in cells {
        match cell.value() {
            Some(bytes) => {
                state.write_usize(bytes.len());
                state.write(bytes);
            }
            None => state.write_usize(usize::MAX),
        }
    }
    state.finish()
}
