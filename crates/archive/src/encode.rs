//! From states and changes to artifacts on this machine's disk.

use laredo_core::{Cell, KeyColumns, TableState, Tuple};

use crate::destination::{Staged, Stager};
use crate::format::{Format, FormatError, LineWriter};
use crate::net::Net;

/// An artifact in all its formats, on its way to the destinations.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) objects: Vec<Staged>,
    /// Rows of a base, changes of a diff.
    pub(crate) count: u64,
}

impl Encoded {
    /// Bytes of the largest of its objects.
    pub(crate) fn bytes(&self) -> u64 {
        self.objects.iter().map(|staged| staged.size_bytes).max().unwrap_or(0)
    }
}

/// All rows of the state that `net` leads to from `before`, by key. The same rows make the same bytes: an object that a crash left behind
/// is then as good as a new one.
///
/// # Errors
/// When the disk cannot be written, or a row has what is no value of its column.
pub(crate) fn base(
    stager: &Stager,
    formats: &[Format],
    before: &TableState,
    net: &Net,
) -> Result<Encoded, FormatError> {
    let key = before.schema().key();
    let mut rows: Vec<(u64, &Tuple)> = net.rows(before).map(|row| (leading(key, row), row)).collect();
    rows.sort_unstable_by(|(one, one_row), (other, other_row)| {
        one.cmp(other).then_with(|| one_row.as_ref().bytes().cmp(other_row.as_ref().bytes()))
    });
    let mut encoded = Encoded { count: rows.len() as u64, ..Encoded::default() };
    for format in formats {
        let mut writer = LineWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        rows.iter().try_for_each(|(_, row)| writer.row(row.as_ref()))?;
        encoded.objects.push(writer.finish()?.finish()?);
    }
    Ok(encoded)
}

/// What `net` changes in `before`, by key.
///
/// # Errors
/// As of [`base`].
pub(crate) fn diff(
    stager: &Stager,
    formats: &[Format],
    before: &TableState,
    net: &Net,
) -> Result<Encoded, FormatError> {
    let mut encoded = Encoded::default();
    for format in formats {
        let mut writer = LineWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        encoded.count = 0;
        for change in net.changes(before) {
            writer.change(&change)?;
            encoded.count += 1;
        }
        encoded.objects.push(writer.finish()?.finish()?);
    }
    Ok(encoded)
}

/// The first bytes of a row's key as a number: most keys differ in them, and comparing numbers needs no look at the rows.
fn leading(key: &KeyColumns, row: &Tuple) -> u64 {
    let mut leading = [0; 8];
    if let Some(Cell::Value(bytes)) = key.cells_of(row.as_ref()).next() {
        leading.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    }
    u64::from_be_bytes(leading)
}
