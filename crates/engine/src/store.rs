//! A table's folder on disk, with its journal and its newest base. A restart continues from both.
//!
//! `docs/journal-format.md` describes the files.

mod append;
mod error;
mod folder;
mod forks;
mod form;
mod format;
mod journal_folder;
mod manifest;
mod queue;
mod read;
mod recover;
mod sums;
#[cfg(test)]
mod tests;

pub(crate) use append::{Appender, Begun};
pub use error::StoreError;
pub(crate) use error::{io_error, read_error};
pub(crate) use folder::Folder;
pub(crate) use forks::Forks;
pub(crate) use format::{BaseFooter, Definition, KeptMark, Kind, RecordHead, SKIPPED, unsealed};
pub(crate) use journal_folder::Store;
pub use journal_folder::StoreStatus;
pub(crate) use manifest::{Manifest, check_format};
pub(crate) use recover::{About, Restored, claim, note_beginning, open, rows_of};
pub(crate) use sums::{SUMMED_BYTES, Sums};
