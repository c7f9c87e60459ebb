//! What identifies a row.

use std::hash::{BuildHasher, Hasher};

use crate::tuple::{Cell, Tuple, TupleBuf, TupleRef};

/// Which columns identify a row (or make an index), by their place in the schema, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumns(Box<[usize]>);

/// A key's cells in key order, encoded as a row. Keys are equal when their bytes are: PostgreSQL, too, sends the old
/// key whenever its bytes change, so `1.0` and `1.00` never stand for one another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Tuple);

impl Key {
    /// From the key's cells.
    pub fn new<'a>(cells: impl IntoIterator<Item = Cell<'a>>) -> Key {
        Key(cells.into_iter().collect::<TupleBuf>().as_ref().to_tuple())
    }

    /// From a row that has just the key's cells, in key order.
    #[must_use]
    pub fn from_tuple(cells: Tuple) -> Key {
        Key(cells)
    }

    /// Its cells as a row of key columns only.
    #[must_use]
    pub fn as_ref(&self) -> TupleRef<'_> {
        self.0.as_ref()
    }
}

impl KeyColumns {
    /// From column numbers in key order.
    #[must_use]
    pub fn new(columns: impl Into<Box<[usize]>>) -> KeyColumns {
        KeyColumns(columns.into())
    }

    /// The column numbers.
    #[must_use]
    pub fn columns(&self) -> &[usize] {
        &self.0
    }

    /// Whether a column belongs to the key.
    #[must_use]
    pub fn contains(&self, column: usize) -> bool {
        self.0.contains(&column)
    }

    /// A row's key.
    #[must_use]
    pub fn key_of(&self, row: TupleRef<'_>) -> Key {
        Key::new(self.cells_of(row))
    }

    /// Returns a row's key as a row of its cells, without a copy where they are the row's first ones in order.
    #[must_use]
    pub fn key_in<'a>(&self, row: TupleRef<'a>, scratch: &'a mut TupleBuf) -> TupleRef<'a> {
        if self.0.iter().enumerate().all(|(place, column)| place == *column) {
            return row.leading(self.0.len());
        }
        scratch.clear();
        self.cells_of(row).for_each(|cell| scratch.push(cell));
        scratch.as_ref()
    }

    /// Hashes the key of a whole row, the same as [`KeyColumns::hash_key`] of that key.
    pub fn hash_row(&self, hasher: &impl BuildHasher, row: TupleRef<'_>) -> u64 {
        hash_cells(hasher, self.cells_of(row))
    }

    /// Hashes a key.
    pub fn hash_key(hasher: &impl BuildHasher, key: TupleRef<'_>) -> u64 {
        hash_cells(hasher, key.cells())
    }

    /// Whether a whole row has this key.
    #[must_use]
    pub fn row_has_key(&self, row: TupleRef<'_>, key: TupleRef<'_>) -> bool {
        self.cells_of(row).eq(key.cells())
    }

    /// Whether two whole rows have one key.
    #[must_use]
    pub fn same_key(&self, one: TupleRef<'_>, other: TupleRef<'_>) -> bool {
        self.cells_of(one).eq(self.cells_of(other))
    }

    /// The key's cells of a whole row, in key order.
    pub fn cells_of<'a>(&self, row: TupleRef<'a>) -> impl Iterator<Item = Cell<'a>> {
        // Most keys are leading columns in order, so going on from the last place saves a walk; the iterator starts
        // again only where the key is in another order than the table.
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
