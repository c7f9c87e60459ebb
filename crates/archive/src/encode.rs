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
    let key = before.schema().key();
    // References to the bytes themselves: where the state has them is one more place that is far from the last one.
    let rows = net.rows(before).map(Tuple::as_ref);
    let mut rows: Vec<(u64, TupleRef<'_>)> = rows.map(|row| (leading(key, row), row)).collect();
    rows.sort_unstable_by(|(one, one_row), (other, other_row)| {
        one.cmp(other).then_with(|| one_row.bytes().cmp(other_row.bytes()))
    });
    let mut encoded = Encoded { count: rows.len() as u64, ..Encoded::default() };
    let rows: Vec<TupleRef<'_>> = rows.into_iter().map(|(_, row)| row).collect();
    let chunks = chunks(&rows);
    for format in formats {
        let mut writer = LineWriter::new(*format, before.schema().clone(), stager.begin(*format)?)?;
        write_all(&mut writer, &chunks)?;
        encoded.objects.push(writer.finish()?.finish()?);
    }
    Ok(encoded)
}

/// Rows that one thread encodes in one go: enough to be worth it, and no more than memory has room for.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait, on each thread, for the one that writes.
const CHUNKS_WAITING: usize = 2;

fn chunks<'a, 'b>(rows: &'b [TupleRef<'a>]) -> Vec<&'b [TupleRef<'a>]> {
    let (mut chunks, mut rest, mut bytes, mut count) = (Vec::new(), rows, 0, 0);
    for row in rows {
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
fn write_all<W: Write>(writer: &mut LineWriter<W>, chunks: &[&[TupleRef<'_>]]) -> Result<(), FormatError> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(chunks.len());
    let encoder = writer.encoder().clone();
    thread::scope(|scope| {
        let lane = |lane: usize| {
            let (encoded, taken) = sync_channel(CHUNKS_WAITING);
            let encoder = &encoder;
            scope.spawn(move || {
                for chunk in chunks.iter().skip(lane).step_by(threads) {
                    let mut entries = Vec::with_capacity(CHUNK_BYTES * 2);
                    let made = chunk.iter().try_for_each(|row| encoder.row(*row, &mut entries));
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
