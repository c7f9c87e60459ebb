//! From states and changes to artifacts on this machine's disk.

use std::cmp::Ordering;
use std::io::Write;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use laredo_core::{ArchivedChecksums, Cell, Checksum, HexCells, KeyColumns, ProjectError, TableState, Tuple, TupleRef};

use crate::destination::{Staged, Stager};
use crate::format::{Format, FormatError, LineWriter};
use crate::net::Net;

/// An artifact in all its formats, on its way to the destinations.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) objects: Vec<Staged>,
    /// Rows of a base, changes of a diff.
    pub(crate) count: u64,
    /// Cells that were written in hex, because they do not have the form of their type.
    pub(crate) hex: Arc<HexCells>,
    /// The checksum of the state that it leads to.
    pub(crate) checksum: Checksum,
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
    let rows = net.rows(before).map(|row| (0, row.as_ref()));
    let mut rows: Vec<Keyed<'_>> = rows.collect();
    let mut encoded = Encoded { count: rows.len() as u64, ..Encoded::default() };
    let parts = sorted_parts(before.schema().key(), &mut rows);
    let chunks = chunks(&parts);
    for format in formats {
        let mut writer = LineWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        write_all(&mut writer, &chunks)?;
        encoded.hex = writer.hex_cells().clone();
        encoded.objects.push(writer.finish()?.finish()?);
    }
    Ok(encoded)
}

/// The checksum of rows as they are taken in an archive, made on all threads.
///
/// # Errors
/// When a row has what is no value of its column.
pub(crate) fn checksum<'a>(
    rows: impl Iterator<Item = &'a Tuple>,
    sums: &ArchivedChecksums,
) -> Result<Checksum, ProjectError> {
    let rows: Vec<&Tuple> = rows.collect();
    let of = |rows: &[&Tuple]| {
        rows.iter().try_fold(Checksum::default(), |sum, row| Ok(sum.plus(sums.of_row(row.as_ref())?)))
    };
    thread::scope(|scope| {
        let parts = rows.chunks(rows.len().div_ceil(threads()).max(1));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || of(part))).collect();
        parts.into_iter().try_fold(Checksum::default(), |sum, part| {
            // A part that panicked has printed why. The sum is wrong then, and readers refuse the artifact.
            Ok(sum.plus(part.join().unwrap_or_else(|_| Ok(Checksum::default()))?))
        })
    })
}

/// A row, and the first bytes of its key: most keys differ in them, and comparing numbers needs no look at the rows.
type Keyed<'a> = (u64, TupleRef<'a>);

/// Rows as they come in a base: by key, and where their beginnings are the same, by all of their bytes.
fn order(one: &Keyed<'_>, other: &Keyed<'_>) -> Ordering {
    one.0.cmp(&other.0).then_with(|| one.1.bytes().cmp(other.1.bytes()))
}

/// Sorts as many parts of the rows as there are threads, each for itself. Each row is far from the last one in memory, which is what
/// takes the time.
fn sorted_parts<'a, 'b>(key: &KeyColumns, rows: &'b mut [Keyed<'a>]) -> Vec<&'b [Keyed<'a>]> {
    let each = rows.len().div_ceil(threads()).max(1);
    thread::scope(|scope| {
        for part in rows.chunks_mut(each) {
            scope.spawn(move || {
                part.iter_mut().for_each(|(first, row)| *first = leading(key, *row));
                part.sort_unstable_by(order);
            });
        }
    });
    rows.chunks(each).collect()
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Rows that one thread encodes in one go: enough to be worth it, and no more than memory has room for.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait, on each thread, for the one that writes.
const CHUNKS_WAITING: usize = 3;

/// The rows between two keys, from each part.
type Chunk<'a, 'b> = Vec<&'b [Keyed<'a>]>;

/// Cuts all parts at the same keys, so that the chunks follow each other. Each part says where it could be cut; of as many cuts as there are
/// parts one is made, which has about [`CHUNK_BYTES`] before it, and never more than twice that and a few rows.
fn chunks<'a, 'b>(parts: &[&'b [Keyed<'a>]]) -> Vec<Chunk<'a, 'b>> {
    let count = parts.len().max(1);
    let mut cuts: Vec<&Keyed<'_>> = parts.iter().flat_map(|part| possible_cuts(part, CHUNK_BYTES / count)).collect();
    cuts.sort_unstable_by(|one, other| order(one, other));
    let mut rest = parts.to_vec();
    let before = |cut: &Keyed<'_>, part: &mut &'b [Keyed<'a>]| {
        let (before, after) = part.split_at(part.partition_point(|row| order(row, cut) == Ordering::Less));
        *part = after;
        before
    };
    let made = cuts.into_iter().skip(count - 1).step_by(count);
    let mut chunks: Vec<Chunk<'_, '_>> =
        made.map(|cut| rest.iter_mut().map(|part| before(cut, part)).collect()).collect();
    chunks.push(rest);
    chunks
}

/// Rows of a part that have so many bytes before them since the last one.
fn possible_cuts<'a, 'b>(part: &'b [Keyed<'a>], bytes: usize) -> impl Iterator<Item = &'b Keyed<'a>> {
    let mut before = 0;
    part.iter().filter(move |(_, row)| {
        let is_cut = before >= bytes;
        before = row.bytes().len() + if is_cut { 0 } else { before };
        is_cut
    })
}

/// Rows of a chunk in their order.
fn merged<'a>(chunk: &[&[Keyed<'a>]]) -> Vec<Keyed<'a>> {
    let mut rows = chunk.concat();
    // This kind of sorting finds what is sorted already, and merges it.
    rows.sort_by(order);
    rows
}

/// Encodes on all of the machine's threads, and writes in order on this one.
fn write_all<W: Write>(writer: &mut LineWriter<W>, chunks: &[Chunk<'_, '_>]) -> Result<(), FormatError> {
    let threads = threads().min(chunks.len());
    let encoder = writer.encoder().clone();
    thread::scope(|scope| {
        let lane = |lane: usize| {
            let (encoded, taken) = sync_channel(CHUNKS_WAITING);
            let encoder = &encoder;
            scope.spawn(move || {
                for chunk in chunks.iter().skip(lane).step_by(threads) {
                    let mut entries = Vec::with_capacity(CHUNK_BYTES * 2);
                    let made = merged(chunk).iter().try_for_each(|(_, row)| encoder.row(*row, &mut entries));
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
        encoded.hex = writer.hex_cells().clone();
        encoded.objects.push(writer.finish()?.finish()?);
    }
    Ok(encoded)
}

/// The first bytes of a row's key as a number.
fn leading(key: &KeyColumns, row: TupleRef<'_>) -> u64 {
    let mut leading = [0; 8];
    if let Some(Cell::Value(bytes)) = key.cells_of(row).next() {
        leading.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    }
    u64::from_be_bytes(leading)
}

#[cfg(test)]
mod tests {
    use laredo_core::TupleBuf;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Keys that differ in their first bytes, late, and not at all in those that are compared first; rows that are larger than a chunk.
        #[test]
        fn rows_come_by_key_whatever_order_they_were_in(
            keys in proptest::collection::hash_set("[ab]{0,3}(the same beginning)?[ab]{0,3}", 0..40),
            large in proptest::collection::vec(0..3 * CHUNK_BYTES, 3),
        ) {
            let key = KeyColumns::new([0]);
            let large = large.into_iter().map(|length| "x".repeat(length));
            let row = |text: String| [Cell::Value(text.as_bytes())].into_iter().collect::<TupleBuf>().as_ref().to_tuple();
            let rows: Vec<Tuple> = keys.into_iter().chain(large).map(row).collect();
            let mut keyed: Vec<Keyed<'_>> = rows.iter().map(|row| (0, row.as_ref())).collect();
            let parts = sorted_parts(&key, &mut keyed);
            let chunks = chunks(&parts);
            let ours: Vec<Keyed<'_>> = chunks.iter().flat_map(|chunk| merged(chunk)).collect();
            let mut expected: Vec<Keyed<'_>> = rows.iter().map(|row| (leading(&key, row.as_ref()), row.as_ref())).collect();
            expected.sort_by(order);
            prop_assert_eq!(ours, expected);
            for chunk in chunks {
                let largest = chunk.iter().copied().flatten().map(|(_, row)| row.bytes().len()).max().unwrap_or(0);
                let bytes: usize = chunk.iter().copied().flatten().map(|(_, row)| row.bytes().len()).sum();
                prop_assert!(bytes <= 2 * CHUNK_BYTES + 2 * parts.len() * largest, "{bytes} bytes");
            }
        }
    }
}
