//! The encoding of states and changes to artifacts on the local disk.

use std::cmp::Ordering;
use std::io::Write;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use laredo_core::{Cell, Checksum, KeyColumns, TableState, Tuple, TupleRef};
use laredo_values::{ArchivedChecksums, HexCells, ProjectError};

use crate::destination::{ArtifactStager, StageWriter, StagedArtifact};
use crate::format::{ArtifactWriter, FormatError};
use crate::layout::ArtifactFormat;
use crate::net_changes::NetChangeSet;

/// An artifact in all its formats, before it is sent to the destinations.
#[derive(Debug, Default)]
pub(crate) struct EncodedArtifact {
    pub(crate) objects: Vec<StagedArtifact>,
    /// The number of rows of a snapshot, or of changes of a diff.
    pub(crate) count: u64,
    /// The cells that were written in hex because they do not have the form of their type.
    pub(crate) hex: Arc<HexCells>,
    /// The checksum of the state that the artifact leads to.
    pub(crate) checksum: Checksum,
}

impl EncodedArtifact {
    /// Returns the size in bytes of the largest object.
    pub(crate) fn bytes(&self) -> u64 {
        self.objects.iter().map(|staged| staged.size_bytes).max().unwrap_or(0)
    }
}

/// Writes a snapshot of the state that `net` leads to from `before`. The rows are sorted, so that
/// the same rows give the same bytes. An object that a crash left behind can then be used.
///
/// # Errors
/// If the disk cannot be written, or if a row has a value that is invalid for its column.
pub(crate) fn base(
    stager: &ArtifactStager,
    formats: &[ArtifactFormat],
    before: &TableState,
    net: &NetChangeSet,
) -> Result<EncodedArtifact, FormatError> {
    let rows = net.rows(before).map(|row| (0, row.as_ref()));
    let mut rows: Vec<KeyPrefixedRow<'_>> = rows.collect();
    let mut encoded = EncodedArtifact { count: rows.len() as u64, ..EncodedArtifact::default() };
    let parts = sorted_parts(before.schema().key(), &mut rows);
    let chunks = chunks(&parts);
    for format in formats {
        let mut writer = ArtifactWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        write_all(&mut writer, &chunks)?;
        encoded.hex = writer.hex_cells().clone();
        encoded.objects.push(finish(writer)?);
    }
    Ok(encoded)
}

/// Returns the checksum of rows as archives compute it, using all threads.
///
/// # Errors
/// If a row has a value that is invalid for its column.
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
            // A thread that panicked has printed the reason. The checksum is then wrong, and
            // readers refuse the artifact.
            Ok(sum.plus(part.join().unwrap_or_else(|_| Ok(Checksum::default()))?))
        })
    })
}

/// The first bytes of a row's key, and the row. Most keys differ in these bytes, and comparing
/// numbers does not access the rows.
type KeyPrefixedRow<'a> = (u64, TupleRef<'a>);

/// Compares two rows in the order of a snapshot: by the first bytes of their keys, then by all
/// bytes of the rows.
fn order(one: &KeyPrefixedRow<'_>, other: &KeyPrefixedRow<'_>) -> Ordering {
    one.0.cmp(&other.0).then_with(|| one.1.bytes().cmp(other.1.bytes()))
}

/// Sorts the rows in as many parts as there are threads, each part separately. Consecutive rows are
/// far apart in memory, and accessing them takes most of the time.
fn sorted_parts<'a, 'b>(key: &KeyColumns, rows: &'b mut [KeyPrefixedRow<'a>]) -> Vec<&'b [KeyPrefixedRow<'a>]> {
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

/// The bytes of the rows that one thread encodes at a time: enough to be efficient, and few enough
/// for memory.
const CHUNK_BYTES: usize = 256 << 10;
/// The number of encoded chunks that wait for the writing thread, for each encoding thread.
const CHUNKS_WAITING: usize = 3;

/// The rows between two keys, with one slice for each part.
type EncodingChunk<'a, 'b> = Vec<&'b [KeyPrefixedRow<'a>]>;

/// Splits all parts at the same keys, so that the chunks follow each other. Each part proposes
/// cuts, and of every `parts.len()` proposals one is used. A chunk has about [`CHUNK_BYTES`], and
/// never more than twice that and a few rows.
fn chunks<'a, 'b>(parts: &[&'b [KeyPrefixedRow<'a>]]) -> Vec<EncodingChunk<'a, 'b>> {
    let count = parts.len().max(1);
    let mut cuts: Vec<&KeyPrefixedRow<'_>> =
        parts.iter().flat_map(|part| possible_cuts(part, CHUNK_BYTES / count)).collect();
    cuts.sort_unstable_by(|one, other| order(one, other));
    let mut rest = parts.to_vec();
    let before = |cut: &KeyPrefixedRow<'_>, part: &mut &'b [KeyPrefixedRow<'a>]| {
        let (before, after) = part.split_at(part.partition_point(|row| order(row, cut) == Ordering::Less));
        *part = after;
        before
    };
    let made = cuts.into_iter().skip(count - 1).step_by(count);
    let mut chunks: Vec<EncodingChunk<'_, '_>> =
        made.map(|cut| rest.iter_mut().map(|part| before(cut, part)).collect()).collect();
    chunks.push(rest);
    chunks
}

/// Returns the rows of a part that have at least `bytes` bytes between each other.
fn possible_cuts<'a, 'b>(part: &'b [KeyPrefixedRow<'a>], bytes: usize) -> impl Iterator<Item = &'b KeyPrefixedRow<'a>> {
    let mut before = 0;
    part.iter().filter(move |(_, row)| {
        let is_cut = before >= bytes;
        before = row.bytes().len() + if is_cut { 0 } else { before };
        is_cut
    })
}

/// Returns the rows of a chunk in order.
fn merged<'a>(chunk: &[&[KeyPrefixedRow<'a>]]) -> Vec<KeyPrefixedRow<'a>> {
    let mut rows = chunk.concat();
    // The stable sort recognizes sorted runs and merges them.
    rows.sort_by(order);
    rows
}

/// Encodes on all threads of the machine, and writes in order on the current one.
fn write_all<W: Write>(writer: &mut ArtifactWriter<W>, chunks: &[EncodingChunk<'_, '_>]) -> Result<(), FormatError> {
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
                    // If the receiver is gone, writing has failed.
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

/// Writes a diff with the changes that `net` makes to `before`, by key.
///
/// # Errors
/// The errors of [`base`].
pub(crate) fn diff(
    stager: &ArtifactStager,
    formats: &[ArtifactFormat],
    before: &TableState,
    net: &NetChangeSet,
) -> Result<EncodedArtifact, FormatError> {
    let mut encoded = EncodedArtifact::default();
    for format in formats {
        let mut writer = ArtifactWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        encoded.count = 0;
        for change in net.changes(before) {
            writer.change(&change)?;
            encoded.count += 1;
        }
        encoded.hex = writer.hex_cells().clone();
        encoded.objects.push(finish(writer)?);
    }
    Ok(encoded)
}

/// Finishes an artifact and records its size before compression.
fn finish(writer: ArtifactWriter<StageWriter>) -> Result<StagedArtifact, FormatError> {
    let unpacked_bytes = writer.unpacked_bytes();
    let mut staged = writer.finish()?.finish()?;
    staged.unpacked_bytes = unpacked_bytes;
    Ok(staged)
}

/// Returns the first eight bytes of the key's first column as a number.
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
        /// Tests keys that differ early, late, or only after the bytes that are compared first, and
        /// rows that are larger than a chunk.
        #[test]
        fn rows_come_by_key_whatever_order_they_were_in(
            keys in proptest::collection::hash_set("[ab]{0,3}(the same beginning)?[ab]{0,3}", 0..40),
            large in proptest::collection::vec(0..3 * CHUNK_BYTES, 3),
        ) {
            let key = KeyColumns::new([0]);
            let large = large.into_iter().map(|length| "x".repeat(length));
            let row = |text: String| [Cell::Value(text.as_bytes())].into_iter().collect::<TupleBuf>().as_ref().to_tuple();
            let rows: Vec<Tuple> = keys.into_iter().chain(large).map(row).collect();
            let mut keyed: Vec<KeyPrefixedRow<'_>> = rows.iter().map(|row| (0, row.as_ref())).collect();
            let parts = sorted_parts(&key, &mut keyed);
            let chunks = chunks(&parts);
            let ours: Vec<KeyPrefixedRow<'_>> = chunks.iter().flat_map(|chunk| merged(chunk)).collect();
            let mut expected: Vec<KeyPrefixedRow<'_>> = rows.iter().map(|row| (leading(&key, row.as_ref()), row.as_ref())).collect();
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
