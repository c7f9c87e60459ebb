//! The merging of an older base and the later journal into the next base.
//!
//! Changes are first collected by key, and then the rows of the older base are read. If that would
//! take much memory, changes and rows are first distributed to files by a hash of their key. These
//! files are then merged one after another.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use laredo_core::{Key, KeyColumns, RowCast, Schema, Tuple, TupleRef};
use laredo_proto::batch::{BatchEntries, BatchEntry, EntryAction};

use super::{Base, BaseError, BaseWriter};
use crate::head::Head;
use crate::segment::{Segment, frames};
use crate::spool::temporary_file;

/// The approximate amount of memory for changes that are merged at once, in bytes.
const PARTITION_BYTES: u64 = 32 * 1024 * 1024;
/// The maximum number of files open at once. Beyond it, the files grow.
const PARTITIONS_MAX: u64 = 256;
/// The memory that a change takes in addition to its bytes.
const ENTRY_BYTES: u64 = 128;
/// The number of bytes read or written at once, per file.
const BUFFER_BYTES: usize = 64 * 1024;

/// Returns the next base: the rows of `base` with all later entries of the journal, up to `head`.
/// Reads only immutable data, so it can run for long without delaying the writer.
pub(crate) fn merge(
    base: &Base,
    after: &[Segment],
    head: Head,
    folder: &Path,
    writer: BaseWriter,
) -> Result<Base, BaseError> {
    merge_in(base, after, head, folder, writer, partitions(after))
}

/// Returns the number of parts in which a journal's changes are merged. Each part then takes about
/// [`PARTITION_BYTES`] even if no row changes twice, unless the number is at its maximum.
pub(super) fn partitions(after: &[Segment]) -> usize {
    let bytes: u64 = after.iter().map(|s| s.data.frames_bytes() as u64 + s.entries() * ENTRY_BYTES).sum();
    usize::try_from(bytes.div_ceil(PARTITION_BYTES).clamp(1, PARTITIONS_MAX)).unwrap_or(1)
}

pub(super) fn merge_in(
    base: &Base,
    after: &[Segment],
    head: Head,
    folder: &Path,
    mut writer: BaseWriter,
    partitions: usize,
) -> Result<Base, BaseError> {
    if partitions > 1 {
        let schema = MergePartitions::distribute_changes(base, after, folder, partitions)?.merge(&mut writer)?;
        return writer.finish(head, schema);
    }
    let mut net = BaseNetChanges::new(base.schema.clone());
    each_step(&base.schema, after, |step| {
        match step {
            MergeStep::Schema(schema) => net.cast(schema)?,
            MergeStep::Entry(entry) => net.apply(entry),
        }
        Ok(())
    })?;
    if !net.truncated {
        base.for_each_row(|row| net.base_row(row, &mut writer))?;
    }
    net.write_rest(&mut writer)?;
    writer.finish(head, net.schema)
}

enum MergeStep<'a> {
    Schema(Arc<Schema>),
    Entry(BatchEntry<'a>),
}

/// Calls `each` with every entry and change of the schema in these segments.
fn each_step(
    schema: &Arc<Schema>,
    after: &[Segment],
    mut each: impl FnMut(MergeStep<'_>) -> Result<(), BaseError>,
) -> Result<(), BaseError> {
    let mut schema = schema.clone();
    for segment in after {
        for frame in frames(segment.data.read_frames()?) {
            if let Some(changed) = frame.batch.schema {
                schema = Arc::new(laredo_proto::schema::from_wire(changed)?);
                each(MergeStep::Schema(schema.clone()))?;
            }
            for entry in BatchEntries::new(&frame.batch.entries, &schema) {
                each(MergeStep::Entry(entry?))?;
            }
        }
    }
    Ok(())
}

/// The net changes since a base.
struct BaseNetChanges {
    schema: Arc<Schema>,
    rows: HashMap<Key, Option<Tuple>, RandomState>,
    /// The casts of a row of the base to the current schema, in order.
    casts: Vec<RowCast>,
    /// True if all earlier rows were removed, including those of the base.
    truncated: bool,
}

impl BaseNetChanges {
    fn new(schema: Arc<Schema>) -> BaseNetChanges {
        BaseNetChanges { schema, rows: HashMap::default(), casts: Vec::new(), truncated: false }
    }

    fn apply(&mut self, entry: BatchEntry<'_>) {
        match entry.action {
            EntryAction::Insert | EntryAction::Update => {
                self.rows.insert(self.schema.key().key_of(entry.row), Some(entry.row.to_tuple()));
            }
            EntryAction::Delete => {
                self.rows.insert(Key::from_tuple(entry.row.to_tuple()), None);
            }
            EntryAction::Truncate => {
                self.truncated = true;
                self.rows.clear();
            }
        }
    }

    /// Casts the collected rows to another schema.
    ///
    /// # Errors
    /// When the key is another one, and there are rows.
    fn cast(&mut self, schema: Arc<Schema>) -> Result<(), BaseError> {
        let is_empty = self.truncated && self.rows.is_empty();
        check_keys(&self.schema, &schema, is_empty)?;
        let cast = RowCast::new(&self.schema, &schema);
        for row in self.rows.values_mut().flatten() {
            *row = cast.apply(row.as_ref()).as_ref().to_tuple();
        }
        self.casts.push(cast);
        self.schema = schema;
        Ok(())
    }

    /// Writes the final version of a row of the older base, if it still exists. Called after all
    /// changes.
    fn base_row(&mut self, row: TupleRef<'_>, writer: &mut BaseWriter) -> Result<(), BaseError> {
        let mut cast = None;
        for step in &self.casts {
            cast = Some(step.apply(cast.as_ref().map_or(row, laredo_core::TupleBuf::as_ref)));
        }
        let row = cast.as_ref().map_or(row, laredo_core::TupleBuf::as_ref);
        match self.rows.remove(&self.schema.key().key_of(row)) {
            None => writer.push(row),
            Some(Some(newer)) => writer.push(newer.as_ref()),
            Some(None) => Ok(()),
        }
    }

    /// Writes the rows that the older base did not have.
    fn write_rest(&mut self, writer: &mut BaseWriter) -> Result<(), BaseError> {
        self.rows.drain().filter_map(|(_, row)| row).try_for_each(|row| writer.push(row.as_ref()))
    }
}

/// Changes, followed by the rows of a base, in files by a hash of the key. A record is its kind, a
/// length and a row.
struct MergePartitions {
    files: Vec<BufWriter<File>>,
    hasher: RandomState,
    /// The schema of the first change in the files.
    first_schema: Arc<Schema>,
    /// The changes of the schema, in the order of their records.
    schemas: Vec<Arc<Schema>>,
    schema: Arc<Schema>,
    /// True if the rows of the base and all earlier changes were removed.
    truncated: bool,
    /// True if no row was added since the last truncate.
    is_empty: bool,
}

const BASE_ROW: u8 = 0;
const INSERT: u8 = EntryAction::Insert as u8;
const UPDATE: u8 = EntryAction::Update as u8;
const DELETE: u8 = EntryAction::Delete as u8;
const SCHEMA: u8 = u8::MAX;

impl MergePartitions {
    fn distribute_changes(
        base: &Base,
        after: &[Segment],
        folder: &Path,
        count: usize,
    ) -> Result<MergePartitions, BaseError> {
        let file = || Ok(BufWriter::with_capacity(BUFFER_BYTES, temporary_file(folder)?));
        let mut dealt = MergePartitions {
            files: (0..count).map(|_| file()).collect::<io::Result<_>>()?,
            hasher: RandomState::default(),
            first_schema: base.schema.clone(),
            schemas: Vec::new(),
            schema: base.schema.clone(),
            truncated: false,
            is_empty: false,
        };
        each_step(&base.schema, after, |step| {
            match step {
                MergeStep::Schema(schema) => {
                    check_keys(&dealt.schema, &schema, dealt.is_empty)?;
                    dealt.cast(schema)?;
                }
                MergeStep::Entry(BatchEntry { action: EntryAction::Truncate, .. }) => {
                    dealt.clear()?;
                }
                MergeStep::Entry(BatchEntry { action: EntryAction::Delete, row }) => {
                    let hash = KeyColumns::hash_key(&dealt.hasher, row);
                    dealt.put(hash, DELETE, row)?;
                }
                MergeStep::Entry(BatchEntry { action, row }) => {
                    let hash = dealt.schema.key().hash_row(&dealt.hasher, row);
                    dealt.put(hash, action as u8, row)?;
                }
            }
            Ok(())
        })?;
        if !dealt.truncated {
            base.for_each_row::<BaseError>(|row| {
                let hash = base.schema.key().hash_row(&dealt.hasher, row);
                Ok(dealt.put(hash, BASE_ROW, row)?)
            })?;
        }
        Ok(dealt)
    }

    fn put(&mut self, hash: u64, kind: u8, row: TupleRef<'_>) -> io::Result<()> {
        self.is_empty = false;
        let index = usize::try_from(hash % self.files.len() as u64).unwrap_or(0);
        record(&mut self.files[index], kind, row)
    }

    fn cast(&mut self, schema: Arc<Schema>) -> io::Result<()> {
        self.schemas.push(schema.clone());
        self.schema = schema;
        self.files.iter_mut().try_for_each(|file| record(file, SCHEMA, TupleRef::trusted(&[])))
    }

    /// Removes all rows, including those of the base.
    fn clear(&mut self) -> io::Result<()> {
        (self.truncated, self.is_empty) = (true, true);
        self.schemas.clear();
        self.first_schema = self.schema.clone();
        self.files.iter_mut().try_for_each(|file| {
            file.rewind()?;
            file.get_ref().set_len(0)
        })
    }

    /// Merges one file after another. Returns the schema of the rows.
    fn merge(self, writer: &mut BaseWriter) -> Result<Arc<Schema>, BaseError> {
        for file in self.files {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            let mut net = BaseNetChanges::new(self.first_schema.clone());
            // After a truncate, the rows of the base are not in the files.
            net.truncated = self.truncated;
            let mut schemas = self.schemas.iter();
            each_record(file, |kind, row| {
                match kind {
                    BASE_ROW => return net.base_row(row, writer),
                    INSERT => net.apply(BatchEntry { action: EntryAction::Insert, row }),
                    UPDATE => net.apply(BatchEntry { action: EntryAction::Update, row }),
                    DELETE => net.apply(BatchEntry { action: EntryAction::Delete, row }),
                    _ => {
                        if let Some(schema) = schemas.next() {
                            net.cast(schema.clone())?;
                        }
                    }
                }
                Ok(())
            })?;
            net.write_rest(writer)?;
        }
        Ok(self.schema)
    }
}

/// Checks that rows keep their keys when they are cast from one schema to the other.
///
/// A journal changes the key only after a truncate. So a key always means one row, and all changes
/// of a row are merged in one part.
///
/// # Errors
/// When the keys differ, and there are rows.
fn check_keys(old: &Schema, new: &Schema, is_empty: bool) -> Result<(), BaseError> {
    let columns = |schema: &Schema| {
        let columns = schema.key().columns().iter().filter_map(|&i| schema.columns().get(i));
        columns.map(|c| (c.name.clone(), c.type_oid, c.type_modifier, c.is_text)).collect::<Vec<_>>()
    };
    if is_empty || columns(old) == columns(new) { Ok(()) } else { Err(BaseError::KeyChanged) }
}

fn record(file: &mut BufWriter<File>, kind: u8, row: TupleRef<'_>) -> io::Result<()> {
    let length = u32::try_from(row.bytes().len()).expect("PostgreSQL's rows are below 2 GiB");
    file.write_all(&[kind])?;
    file.write_all(&length.to_ne_bytes())?;
    file.write_all(row.bytes())
}

fn each_record(file: File, mut each: impl FnMut(u8, TupleRef<'_>) -> Result<(), BaseError>) -> Result<(), BaseError> {
    let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
    let (mut kind, mut length, mut row) = ([0; 1], [0; 4], Vec::new());
    while file.read(&mut kind)? > 0 {
        file.read_exact(&mut length)?;
        row.resize(u32::from_ne_bytes(length) as usize, 0);
        file.read_exact(&mut row)?;
        each(kind[0], TupleRef::trusted(&row))?;
    }
    Ok(())
}
