//! Bases in a table's folder: the same frames, followed by a footer that describes them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use laredo_core::Schema;
use tempfile::NamedTempFile;

use super::{BaseError, BaseWriter};
use crate::head::{Head, InstanceId};
use crate::store::{BaseFooter, JournalFolder, MegabyteChecksums, RowDefinition, SUMMED_BYTES, StoreError, unsealed};

/// The path of a file, and the checksum of each megabyte of its contents. For a base, the contents
/// are its frames.
#[derive(Debug)]
pub(crate) struct FileChecksums {
    pub(crate) path: PathBuf,
    pub(crate) checksums: Vec<u32>,
}

/// The destination of a base that is being written.
#[derive(Debug)]
pub(super) enum BaseTarget {
    /// A temporary file.
    Unnamed(File),
    /// A file of a store.
    Kept(Box<StoredBaseTarget>),
}

#[derive(Debug)]
pub(super) struct StoredBaseTarget {
    store: Arc<JournalFolder>,
    instance: InstanceId,
    definition: RowDefinition,
    file: NamedTempFile,
    sums: MegabyteChecksums,
}

/// The place where a table's bases are written.
#[derive(Clone, Debug)]
pub(crate) struct BaseLocation {
    /// The folder for bases without a name.
    pub(crate) folder: PathBuf,
    pub(crate) store: Option<(Arc<JournalFolder>, InstanceId)>,
}

impl BaseLocation {
    /// Begins a base.
    ///
    /// # Errors
    /// When no file can be created.
    pub(crate) fn writer(&self) -> Result<BaseWriter, BaseError> {
        match &self.store {
            Some((store, instance)) => BaseWriter::kept(store.clone(), instance.clone(), RowDefinition::default()),
            None => BaseWriter::new(&self.folder),
        }
    }
}

impl BaseTarget {
    /// Creates the file of a base in a store.
    pub(super) fn kept(
        store: Arc<JournalFolder>,
        instance: InstanceId,
        definition: RowDefinition,
    ) -> Result<BaseTarget, BaseError> {
        let file = store.folder().temporary()?;
        let sums = MegabyteChecksums::default();
        Ok(BaseTarget::Kept(Box::new(StoredBaseTarget { store, instance, definition, file, sums })))
    }

    /// Sets the definition of the rows.
    pub(super) fn define(&mut self, definition: RowDefinition) {
        if let BaseTarget::Kept(keeping) = self {
            keeping.definition = definition;
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            BaseTarget::Unnamed(file) => file.write_all(bytes),
            BaseTarget::Kept(keeping) => {
                keeping.sums.update(bytes);
                keeping.file.write_all(bytes)
            }
        }
    }

    pub(super) fn finish(
        self,
        head: Head,
        schema: &Schema,
        rows: u64,
        bytes: u64,
    ) -> Result<(File, Option<FileChecksums>), BaseError> {
        let StoredBaseTarget { store, instance, definition, mut file, sums } = match self {
            BaseTarget::Unnamed(file) => return Ok((file, None)),
            BaseTarget::Kept(keeping) => *keeping,
        };
        let checksums = sums.finish();
        let instance_of_base = instance.clone();
        let footer = BaseFooter {
            instance: instance.0,
            rows,
            bytes,
            schema: Some(laredo_proto::schema::to_wire(schema)),
            definition: Some(definition),
            checksums: checksums.clone(),
            ..BaseFooter::at(head)
        };
        file.write_all(&footer.ending())?;
        let name = JournalFolder::base_name(head.position);
        // The folder must belong to the same journal until the base has its name.
        let owner = store.owner();
        if owner.as_ref().is_some_and(|owner| *owner != instance_of_base) {
            return Err(StoreError::Replaced(store.folder().path().to_owned()).into());
        }
        let (file, _) = store.folder().persist_file(file, &name)?;
        store.keep_base(&name)?;
        drop(owner);
        Ok((file, Some(FileChecksums { path: store.folder().path().join(name), checksums })))
    }
}

/// The size of the footer's length, which is at the end of the file.
const LENGTH_BYTES: u64 = 8;
/// The maximum length of a footer: a schema, and four bytes for each megabyte of rows. A larger
/// stated length is invalid.
const FOOTER_BYTES_MAX: usize = 64 << 20;

/// Reads the footer of a base's file.
///
/// # Errors
/// When the file cannot be read, or is damaged.
pub(super) fn read_footer(file: &File, path: &Path) -> Result<BaseFooter, StoreError> {
    let io = |error| StoreError::Io { what: "reading", path: path.to_owned(), error };
    let length = file.metadata().map_err(io)?.len();
    let no_footer = || StoreError::damaged(path, length, "it does not end as a base does");
    let mut footer_bytes = [0; LENGTH_BYTES as usize];
    let footer_end = length.checked_sub(LENGTH_BYTES).ok_or_else(no_footer)?;
    file.read_exact_at(&mut footer_bytes, footer_end).map_err(io)?;
    let frames = footer_end.checked_sub(u64::from_be_bytes(footer_bytes)).ok_or_else(no_footer)?;
    let footer_bytes = usize::try_from(footer_end - frames).ok().filter(|bytes| *bytes <= FOOTER_BYTES_MAX);
    let mut footer = vec![0; footer_bytes.ok_or_else(no_footer)?];
    file.read_exact_at(&mut footer, frames).map_err(io)?;
    let footer: BaseFooter = unsealed(&footer).ok_or_else(no_footer)?;
    match footer.bytes == frames {
        true => Ok(footer),
        false => Err(StoreError::damaged(path, frames, "its length is not the one that it states")),
    }
}

impl FileChecksums {
    /// Reads `length` bytes at `at`, out of `bytes` bytes with checksums. Reads and verifies every
    /// megabyte that overlaps the range.
    pub(crate) fn read(&self, file: &File, bytes: u64, at: u64, length: usize) -> io::Result<Bytes> {
        let summed = SUMMED_BYTES as u64;
        let (first, end) = (at / summed, at + length as u64);
        let begins = first * summed;
        let read = end.div_ceil(summed).saturating_mul(summed).min(bytes).saturating_sub(begins);
        let mut whole = BytesMut::zeroed(usize::try_from(read).map_err(io::Error::other)?);
        file.read_exact_at(&mut whole, begins)?;
        for (index, megabyte) in (first..).zip(whole.chunks(SUMMED_BYTES)) {
            let stated = usize::try_from(index).ok().and_then(|index| self.checksums.get(index));
            if stated != Some(&crc32fast::hash(megabyte)) {
                let error =
                    StoreError::damaged(&self.path, index * summed, "the checksum of what follows does not fit");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        let from = usize::try_from(at - begins).map_err(io::Error::other)?;
        Ok(whole.freeze().slice(from..from + length))
    }
}
