//! Faults that tests plant in a table state, to show that each comparison finds them. They are not
//! in release builds.

use std::str::FromStr;

use crate::state::TableState;
use crate::tuple::{Cell, Tuple, TupleBuf, TupleCells};

/// A fault of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryFault {
    /// A cell outside the key has another value.
    ChangedCell,
    /// A row is missing.
    MissingRow,
    /// A row exists that the table does not have.
    ExtraRow,
}

impl CanaryFault {
    /// All kinds of faults.
    pub const ALL: [CanaryFault; 3] = [CanaryFault::ChangedCell, CanaryFault::MissingRow, CanaryFault::ExtraRow];
}

impl FromStr for CanaryFault {
    type Err = String;

    /// Reads `changed-cell`, `missing-row` or `extra-row`.
    fn from_str(text: &str) -> Result<CanaryFault, String> {
        match text {
            "changed-cell" => Ok(CanaryFault::ChangedCell),
            "missing-row" => Ok(CanaryFault::MissingRow),
            "extra-row" => Ok(CanaryFault::ExtraRow),
            other => Err(format!("`{other}` is not a canary; use changed-cell, missing-row or extra-row")),
        }
    }
}

impl TableState {
    /// Plants a fault in the row whose bytes sort first. Returns false if that row does not allow
    /// it.
    pub fn plant(&mut self, canary: CanaryFault) -> bool {
        let Some(row) = self.rows().min_by_key(|row| row.as_ref().bytes()).cloned() else { return false };
        let key = self.schema().key().clone();
        match canary {
            CanaryFault::MissingRow => self.remove(key.key_of(row.as_ref()).as_ref()).is_some(),
            CanaryFault::ChangedCell => {
                let is_value = |(column, cell): &(usize, Cell<'_>)| !key.contains(*column) && is_long(cell);
                let found = row.as_ref().cells().enumerate().find(is_value).map(|(column, _)| column);
                found.is_some_and(|column| self.put(with_last_byte(&row, column, |byte| byte ^ 1)).is_some())
            }
            CanaryFault::ExtraRow => {
                let Some(column) = key.columns().last().copied().filter(|column| is_long(&row.as_ref().cell(*column)))
                else {
                    return false;
                };
                let others = (1..=127).map(|bits| with_last_byte(&row, column, |byte| byte ^ bits));
                let extra = { others }.find(|other| self.get_like(other.as_ref()).is_none());
                extra.is_some_and(|extra| self.put(extra).is_none())
            }
        }
    }
}

fn is_long(cell: &Cell<'_>) -> bool {
    cell.value().is_some_and(|value| !value.is_empty())
}

/// Returns the row with another last byte in one of its cells.
fn with_last_byte(row: &Tuple, column: usize, change: impl Fn(u8) -> u8) -> Tuple {
    let cells: TupleCells<'_> = row.as_ref().cells();
    let mut changed = TupleBuf::new();
    for (number, cell) in cells.enumerate() {
        match cell {
            Cell::Value(value) if number == column => {
                let mut value = value.to_vec();
                value.last_mut().into_iter().for_each(|byte| *byte = change(*byte));
                changed.push(Cell::Value(&value));
            }
            cell => changed.push(cell),
        }
    }
    changed.as_ref().to_tuple()
}
