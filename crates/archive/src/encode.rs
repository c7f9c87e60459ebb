//! From states and changes to artifacts on this machine's disk.

use std::io::Write;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use laredo_core::{Cell, KeyColumns, TableState, Tuple, TupleRef};

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
    let rows = sorted(before.schema().key(), net.rows(before));
    let mut encoded = Encoded { count: rows.len() as u64, ..Encoded::default() };
    let chunks = chunks(&rows);
    for format in formats {
        let mut writer = LineWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        write_all(&mut writer, &chunks)?;
        encoded.objects.push(writer.finish()?.finish()?);
    }
    Ok(encoded)
}

/// A row, and the first bytes of its key.
type Keyed<'a> = (u64, TupleRef<'a>);

/// Rows by key. Each is far from the last one in memory, which is what takes the time: it is done on all threads.
fn sorted<'a>(key: &KeyColumns, rows: impl Iterator<Item = &'a Tuple>) -> Vec<Keyed<'a>> {
    let mut rows: Vec<Keyed<'_>> = rows.map(|row| (0, row.as_ref())).collect();
    let each = rows.len().div_ceil(threads()).max(1);
    thread::scope(|scope| {
        for part in rows.chunks_mut(each) {
            scope.spawn(move || {
                part.iter_mut().for_each(|(first, row)| *first = leading(key, *row));
                part.sort_unstable_by_key(|(first, _)| *first);
            });
        }
    });
    // This kind of sorting finds what is sorted already, and merges it.
    rows.sort_by_key(|(first, _)| *first);
    for alike in rows.chunk_by_mut(|(one, _), (other, _)| one == other).filter(|alike| alike.len() > 1) {
        alike.sort_unstable_by(|(_, one), (_, other)| one.bytes().cmp(other.bytes()));
    }
    rows
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Rows that one thread encodes in one go: enough to be worth it, and no more than memory has room for.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait, on each thread, for the one that writes.
const CHUNKS_WAITING: usize = 3;

fn chunks<'a, 'b>(rows: &'b [Keyed<'a>]) -> Vec<&'b [Keyed<'a>]> {
    let (mut chunks, mut rest, mut bytes, mut count) = (Vec::new(), rows, 0, 0);
    for (_, row) in rows {
        bytes += row.bytes().len();
        count += 1;
        if bytes >= CHUNK_BYTES {
            let (chunk, later) = rest.split_at(count);
            chunks.push(chunk);
            (rest, bytes, count) = (later, 0, 0);
        }
    }
    chunks.push(rest);
    chunks
}

/// Encodes on all of the machine's threads, and writes in order on this one.
fn write_all<W: Write>(writer: &mut LineWriter<W>, chunks: &[&[Keyed<'_>]]) -> Result<(), FormatError> {
    let threads = threads().min(chunks.len());
    let encoder = writer.encoder().clone();
    thread::scope(|scope| {
        let lane = |lane: usize| {
            let (encoded, taken) = sync_channel(CHUNKS_WAITING);
            let encoder = &encoder;
            scope.spawn(move || {
                for chunk in chunks.iter().skip(lane).step_by(threads) {
                    let mut entries = Vec::with_capacity(CHUNK_BYTES * 2);
                    let made = chunk.iter().try_for_each(|(_, row)| encoder.row(*row, &mut entries));
                    // Where nobody takes it, writing has failed.
                    if encoded.send(made.map(|()| entries)).is_err() {
                        return;
                    }
                }
            });
            taken
        };
        let lanes: Vec<Receiver<Result<Vec<u8>, FormatError>>> = (0..threads).map(lane).collect();
        for number in 0..chunks.len() {
            let entries = lanes.get(number % threads).and_then(|lane| lane.recv().ok());
            let ended = || FormatError::Io(std::io::Error::other("a thread that encodes rows has ended"));
            writer.encoded(&entries.ok_or_else(ended)??)?;
        }
        Ok(())
    })
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
fn leading(key: &KeyColumns, row: TupleRef<'_>) -> u64 {
    let mut leading = [0; 8];
    if let Some(Cell::Value(bytes)) = key.cells_of(row).next() {
        leading.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    }
    u64::from_be_bytes(leading)
}

#[cfg(test)]
mod tests {
    use laredo_core::{KeyColumns, TupleBuf};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Keys that differ in their first bytes, late, and not at all in those that are compared first.
        #[test]
        fn rows_come_by_key_whatever_order_they_were_in(keys in proptest::collection::hash_set("[ab]{0,3}(the same beginning)?[ab]{0,3}", 0..40)) {
            let row = |key: &String| [Cell::Value(key.as_bytes())].into_iter().collect::<TupleBuf>().as_ref().to_tuple();
            let rows: Vec<Tuple> = keys.iter().map(row).collect();
            let ours: Vec<&[u8]> =
                sorted(&KeyColumns::new([0]), rows.iter()).into_iter().map(|(_, row)| row.bytes()).collect();
            let mut expected: Vec<&Tuple> = rows.iter().collect();
            expected.sort_by_key(|row| (leading(&KeyColumns::new([0]), row.as_ref()), row.as_ref().bytes().to_vec()));
            let expected: Vec<&[u8]> = expected.into_iter().map(|row| row.as_ref().bytes()).collect();
            prop_assert_eq!(ours, expected);
        }
    }
}
