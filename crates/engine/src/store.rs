//! A table's folder on disk, with its journal and its newest base. A restart continues from both.
//!
//! `docs/journal-format.md` describes the files.

mod append;
mod error;
mod folder;
mod forks;
mod format;
mod journal_folder;
mod manifest;
mod queue;
mod read;
mod recover;
mod row_form;
mod sums;
#[cfg(test)]
mod tests;

pub(crate) use append::{AppenderState, JournalAppender};
pub use error::StoreError;
pub(crate) use error::{io_error, read_error};
pub(crate) use folder::LockedFolder;
pub(crate) use forks::ForkLog;
pub(crate) use format::{BaseFooter, RecordHead, RecordKind, RowDefinition, SKIPPED, StoredCommitMark, unsealed};
pub(crate) use journal_folder::JournalFolder;
pub use journal_folder::StoreStatus;
pub(crate) use manifest::{JournalManifest, check_format};
pub(crate) use recover::{RestoreContext, RestoredJournal, claim, note_beginning, open, open_to_replace, rows_of};
pub(crate) use sums::{MegabyteChecksums, SUMMED_BYTES};
