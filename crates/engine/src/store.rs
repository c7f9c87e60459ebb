//! A table's folder on disk, with its journal and its newest base. A restart continues from both
//! ([`crate::recovery`]).
//!
//! `docs/journal-format.md` describes the files.

mod append;
mod data_file;
mod error;
mod folder;
mod forks;
mod format;
mod journal_folder;
mod manifest;
mod queue;
mod retired_folder;
mod sums;

pub(crate) use append::{AppenderState, JournalAppender, JournalFile};
pub(crate) use data_file::{DataFile, StoredPart, StoredSegment};
pub use error::StoreError;
pub(crate) use error::{io_error, read_error};
pub(crate) use folder::LockedFolder;
pub(crate) use forks::ForkLog;
pub(crate) use format::{
    BaseFooter, HEAD_BYTES, JournalFileHeader, PREFIX_BYTES, RecordHead, RecordKind, RowDefinition, SKIPPED,
    StoredCommitMark, VERSION, prefix, unsealed,
};
pub use journal_folder::StoreStatus;
pub(crate) use journal_folder::{BASE, JOURNAL, JournalFolder};
pub(crate) use manifest::{JournalManifest, check_format, claim, note_beginning};
pub use retired_folder::{FolderKind, RetiredFolder};
pub(crate) use sums::{MegabyteChecksums, SUMMED_BYTES};
