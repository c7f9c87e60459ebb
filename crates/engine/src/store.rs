//! A table's folder on disk: its journal in files, and its newest base. A restart goes on with both.
//!
//! `docs/journal-format.md` draws the files.

mod append;
mod error;
mod folder;
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
pub(crate) use format::{BaseFooter, Definition, Kind, RecordHead, unsealed};
pub(crate) use journal_folder::Store;
pub use journal_folder::StoreStatus;
pub(crate) use manifest::{Manifest, check_format};
pub(crate) use recover::{About, Restored, claim, open, rows_of};
pub(crate) use sums::{SUMMED_BYTES, Sums};
