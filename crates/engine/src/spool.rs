//! Spools: the changes of one transaction to one table, kept until it commits. A small spool is in
//! memory, a larger one in a temporary file without a name.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laredo_core::{Oid, Schema, TupleRef};

use crate::descriptors::with_reserve;

/// The limits and the folder of spools.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// The number of bytes beyond which a spool is moved from memory to a file.
    pub memory_bytes_max: usize,
    /// The folder for temporary files.
    pub folder: PathBuf,
}

/// A change as a source reports it. Rows may lack large values that did not change, and an old row
/// may have only its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawChange<'a> {
    /// An insert of a whole row.
    Insert {
        /// The row.
        new: TupleRef<'a>,
    },
    /// An update of a row.
    Update {
        /// The old row, with at least its key. `None` if the key did not change and the source did
        /// not send the old row.
        old: Option<TupleRef<'a>>,
        /// The new row. A large value that did not change is [`laredo_core::Cell::Unchanged`].
        new: TupleRef<'a>,
    },
    /// A delete of a row.
    Delete {
        /// The old row, with at least its key.
        old: TupleRef<'a>,
    },
    /// A truncate, which removes all rows.
    Truncate,
}

/// The columns of a table, as the stream announces them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationShape {
    /// The name, type and type modifier of each column, in the order of a row's cells.
    pub columns: Vec<(String, Oid, i32)>,
}

impl RelationShape {
    /// Returns true if rows with these columns are rows of this schema.
    #[must_use]
    pub fn fits(&self, schema: &Schema) -> bool {
        let announced = self.columns.iter().map(|(name, oid, modifier)| (name.as_str(), *oid, *modifier));
        announced.eq(schema.columns().iter().map(|c| (c.name.as_str(), c.type_oid, c.type_modifier)))
    }
}

const INSERT: u8 = b'I';
const UPDATE: u8 = b'U';
const UPDATE_WITH_OLD: u8 = b'O';
const DELETE: u8 = b'D';
const TRUNCATE: u8 = b'T';
const SHAPE: u8 = b'S';

/// A writer of a spool, which receives changes as they arrive.
#[derive(Debug)]
pub struct SpoolWriter {
    options: Arc<SpoolOptions>,
    shapes: Vec<Arc<RelationShape>>,
    aborted: BTreeSet<u32>,
    buffer: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
    changes: u64,
}

/// The changes of a committed transaction to one table, in order.
#[derive(Debug)]
pub struct Spool {
    shapes: Vec<Arc<RelationShape>>,
    aborted: BTreeSet<u32>,
    records: SpoolStorage,
    changes: u64,
}

#[derive(Debug)]
enum SpoolStorage {
    Memory(Vec<u8>),
    File { file: Arc<File>, at: u64, bytes: u64 },
}

/// A file that holds the spools of waiting transactions one after another. Thousands of them must
/// not take a descriptor each.
#[derive(Debug)]
pub(crate) struct SharedSpoolFile {
    file: Arc<File>,
    end: u64,
}

/// The size above which a spool keeps its own file. Smaller ones are moved to the shared file.
const OWN_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// An entry of a spool.
#[derive(Clone, Copy, Debug)]
pub enum SpoolEntry<'a> {
    /// The shape of the rows that follow.
    Shape(&'a Arc<RelationShape>),
    /// A change.
    Change(RawChange<'a>),
}

impl SpoolWriter {
    /// Creates an empty spool.
    #[must_use]
    pub fn new(options: Arc<SpoolOptions>) -> SpoolWriter {
        SpoolWriter {
            options,
            shapes: Vec::new(),
            aborted: BTreeSet::new(),
            buffer: Vec::new(),
            file: None,
            file_bytes: 0,
            changes: 0,
        }
    }

    /// Sets the shape of the rows that follow. Does nothing if it is the current shape already.
    pub fn push_shape(&mut self, shape: &Arc<RelationShape>) {
        if self.shapes.last().is_some_and(|last| Arc::ptr_eq(last, shape)) {
            return;
        }
        let index = u32::try_from(self.shapes.len()).expect("a transaction holds far fewer schema changes");
        self.shapes.push(shape.clone());
        self.buffer.push(SHAPE);
        self.buffer.extend_from_slice(&index.to_ne_bytes());
    }

    /// Adds a change of the (sub)transaction `xid`.
    ///
    /// # Errors
    /// When the temporary file cannot be written, usually because the disk is full.
    pub fn push(&mut self, xid: u32, change: RawChange<'_>) -> io::Result<()> {
        let (kind, old, new) = match change {
            RawChange::Insert { new } => (INSERT, None, Some(new)),
            RawChange::Update { old: None, new } => (UPDATE, None, Some(new)),
            RawChange::Update { old: Some(old), new } => (UPDATE_WITH_OLD, Some(old), Some(new)),
            RawChange::Delete { old } => (DELETE, Some(old), None),
            RawChange::Truncate => (TRUNCATE, None, None),
        };
        self.buffer.push(kind);
        self.buffer.extend_from_slice(&xid.to_ne_bytes());
        for row in [old, new].into_iter().flatten() {
            let length = u32::try_from(row.bytes().len()).expect("PostgreSQL's rows are below 2 GiB");
            self.buffer.extend_from_slice(&length.to_ne_bytes());
            self.buffer.extend_from_slice(row.bytes());
        }
        self.changes += 1;
        if self.buffer.len() > self.options.memory_bytes_max {
            self.spill()?;
        }
        Ok(())
    }

    /// Discards the changes of a subtransaction: they are skipped when the spool is read.
    pub fn abort(&mut self, xid: u32) {
        self.aborted.insert(xid);
    }

    /// Completes the spool when the transaction has committed.
    ///
    /// # Errors
    /// When the temporary file cannot be written.
    pub fn finish(mut self) -> io::Result<Spool> {
        if self.file.is_some() {
            self.spill()?;
        }
        let SpoolWriter { shapes, aborted, buffer, file, file_bytes, changes, .. } = self;
        let records = match file {
            Some(file) => SpoolStorage::File { file: Arc::new(file), at: 0, bytes: file_bytes },
            None => SpoolStorage::Memory(buffer),
        };
        Ok(Spool { shapes, aborted, records, changes })
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(temporary_file(&self.options.folder)?),
        };
        file.write_all(&self.buffer)?;
        self.file_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Creates a file without a name. It is removed when its last handle is closed.
pub(crate) fn temporary_file(folder: &Path) -> io::Result<File> {
    with_reserve(|| tempfile::tempfile_in(folder))
        .map_err(|error| io::Error::new(error.kind(), format!("temporary file in {}: {error}", folder.display())))
}

/// The reason for which a search for a change ends early.
enum ChangeSearchEnd {
    Found,
    Failed(io::Error),
}

impl From<io::Error> for ChangeSearchEnd {
    fn from(error: io::Error) -> ChangeSearchEnd {
        ChangeSearchEnd::Failed(error)
    }
}

impl Spool {
    /// Returns true if all rows have this schema.
    #[must_use]
    pub fn fits(&self, schema: &Schema) -> bool {
        self.shapes.iter().all(|shape| shape.fits(schema))
    }

    /// Returns the number of changes, including those of aborted subtransactions.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Returns true if there are no changes except those of aborted subtransactions.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_void(&mut self) -> io::Result<bool> {
        if self.aborted.is_empty() || self.changes == 0 {
            return Ok(self.changes == 0);
        }
        let read = self.for_each_entry(|entry| match entry {
            SpoolEntry::Shape(_) => Ok(()),
            SpoolEntry::Change(_) => Err(ChangeSearchEnd::Found),
        });
        match read {
            Ok(()) => Ok(true),
            Err(ChangeSearchEnd::Found) => Ok(false),
            Err(ChangeSearchEnd::Failed(error)) => Err(error),
        }
    }

    /// Returns the number of bytes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        match &self.records {
            SpoolStorage::Memory(buffer) => buffer.capacity(),
            SpoolStorage::File { .. } => 0,
        }
    }

    /// Returns the number of bytes, in memory or in a file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.records {
            SpoolStorage::Memory(buffer) => buffer.len() as u64,
            SpoolStorage::File { bytes, .. } => *bytes,
        }
    }

    /// Moves the spool of a waiting transaction to a file that it shares with others. A very large
    /// spool keeps its own file.
    ///
    /// # Errors
    /// When a file cannot be read or written. The spool is unchanged in this case.
    pub(crate) fn move_to(&mut self, shared: &mut SharedSpoolFile) -> io::Result<()> {
        let at = match &self.records {
            SpoolStorage::Memory(buffer) => shared.append(buffer)?,
            SpoolStorage::File { bytes, .. } if *bytes > OWN_FILE_BYTES => return Ok(()),
            SpoolStorage::File { file, at, bytes } => {
                let mut buffer = vec![0; usize::try_from(*bytes).map_err(io::Error::other)?];
                file.read_exact_at(&mut buffer, *at)?;
                shared.append(&buffer)?
            }
        };
        self.records = SpoolStorage::File { file: shared.file.clone(), at, bytes: self.bytes() };
        Ok(())
    }

    /// Calls `each` with every entry in order, except changes of aborted subtransactions.
    ///
    /// # Errors
    /// The first error of `each`, or of reading the file.
    pub fn for_each_entry<E: From<io::Error>>(
        &mut self,
        mut each: impl FnMut(SpoolEntry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Spool { shapes, aborted, records, .. } = self;
        let mut each = |entry: SpoolRecord<'_>| match entry {
            SpoolRecord::Shape(index) => shapes.get(index).map_or(Ok(()), |shape| each(SpoolEntry::Shape(shape))),
            SpoolRecord::Change(xid, _) if aborted.contains(&xid) => Ok(()),
            SpoolRecord::Change(_, change) => each(SpoolEntry::Change(change)),
        };
        match records {
            SpoolStorage::Memory(buffer) => read_records(buffer.as_slice(), &mut each),
            SpoolStorage::File { file, at, bytes } => {
                let part = FileRangeReader { file, at: *at, left: *bytes };
                read_records(BufReader::with_capacity(READ_BYTES, part), &mut each)
            }
        }
    }
}

/// The number of bytes read from a file at once.
const READ_BYTES: usize = 256 * 1024;

impl SharedSpoolFile {
    pub(crate) fn new(folder: &Path) -> io::Result<SharedSpoolFile> {
        Ok(SharedSpoolFile { file: Arc::new(temporary_file(folder)?), end: 0 })
    }

    /// Appends bytes, and returns their offset.
    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.end;
        self.file.write_all_at(bytes, at)?;
        self.end += bytes.len() as u64;
        Ok(at)
    }
}

/// A part of a file. Other parts may be read at the same time.
struct FileRangeReader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for FileRangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

enum SpoolRecord<'a> {
    Shape(usize),
    Change(u32, RawChange<'a>),
}

fn read_records<E: From<io::Error>>(
    mut from: impl Read,
    each: &mut impl FnMut(SpoolRecord<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    let mut head = [0; 5];
    loop {
        match from.read(&mut head[..1])? {
            0 => return Ok(()),
            _ => from.read_exact(&mut head[1..])?,
        }
        let number = u32::from_ne_bytes([head[1], head[2], head[3], head[4]]);
        if matches!(head[0], UPDATE_WITH_OLD | DELETE) {
            read_row(&mut from, &mut old)?;
        }
        if matches!(head[0], INSERT | UPDATE | UPDATE_WITH_OLD) {
            read_row(&mut from, &mut new)?;
        }
        let (old, new) = (TupleRef::trusted(&old), TupleRef::trusted(&new));
        each(match head[0] {
            SHAPE => SpoolRecord::Shape(number as usize),
            INSERT => SpoolRecord::Change(number, RawChange::Insert { new }),
            UPDATE => SpoolRecord::Change(number, RawChange::Update { old: None, new }),
            UPDATE_WITH_OLD => SpoolRecord::Change(number, RawChange::Update { old: Some(old), new }),
            DELETE => SpoolRecord::Change(number, RawChange::Delete { old }),
            TRUNCATE => SpoolRecord::Change(number, RawChange::Truncate),
            other => {
                let what = format!("spooled transaction has an unknown record {other}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what).into());
            }
        })?;
    }
}

fn read_row(from: &mut impl Read, row: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    row.resize(u32::from_ne_bytes(length) as usize, 0);
    from.read_exact(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use laredo_core::{Cell, TupleBuf};

    fn row(text: &str) -> TupleBuf {
        [Cell::Value(text.as_bytes()), Cell::Null, Cell::Unchanged].into_iter().collect()
    }

    fn read_back(spool: &mut Spool) -> Vec<String> {
        let mut seen = Vec::new();
        spool
            .for_each_entry::<io::Error>(|entry| {
                seen.push(format!("{entry:?}"));
                Ok(())
            })
            .unwrap();
        seen
    }

    fn fill(memory_bytes_max: usize) -> Spool {
        let options = SpoolOptions { memory_bytes_max, folder: std::env::temp_dir() };
        let mut writer = SpoolWriter::new(Arc::new(options));
        writer.push_shape(&Arc::new(RelationShape { columns: vec![("a".into(), 25, -1)] }));
        for i in 0..500 {
            let (old, new) = (row(&format!("old {i}")), row(&format!("new {i}")));
            let (old, new) = (old.as_ref(), new.as_ref());
            writer.push(i % 3, RawChange::Insert { new }).unwrap();
            writer.push(i % 3, RawChange::Update { old: None, new }).unwrap();
            writer.push(i % 3, RawChange::Update { old: Some(old), new }).unwrap();
            writer.push(i % 3, RawChange::Delete { old }).unwrap();
            writer.push(i % 3, RawChange::Truncate).unwrap();
        }
        writer.abort(2);
        writer.finish().unwrap()
    }

    #[test]
    fn a_file_holds_what_memory_holds() {
        let mut small = fill(usize::MAX);
        let mut large = fill(1000);
        assert!(small.memory_bytes() > 0 && large.memory_bytes() == 0);
        let entries = read_back(&mut small);
        assert_eq!(entries.len(), 1 + 5 * 334, "two thirds stay: one subtransaction of three was rolled back");
        assert_eq!(entries, read_back(&mut large));
        let mut shared = SharedSpoolFile::new(&std::env::temp_dir()).unwrap();
        for (spool, what) in [(&mut small, "from memory"), (&mut large, "from its own file")] {
            spool.move_to(&mut shared).unwrap();
            assert_eq!(spool.memory_bytes(), 0);
            let SpoolStorage::File { file, .. } = &spool.records else { panic!("{what}") };
            assert!(Arc::ptr_eq(file, &shared.file), "{what}");
        }
        assert_eq!(entries, read_back(&mut small), "and again, after it moved");
        assert_eq!(entries, read_back(&mut large), "and behind another");
    }
}
