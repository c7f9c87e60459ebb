//! A table's folder on disk: its journal in files, and its newest base. A restart goes on with both.
//!
//! `docs/journal-format.md` draws the files.

mod append;
mod error;
mod folder;
mod format;
mod manifest;
mod queue;
mod read;
mod recover;
mod sums;
#[cfg(test)]
mod tests;

pub(crate) use append::{Appender, Begun};
pub use error::StoreError;
pub(crate) use folder::Store;
pub use folder::StoreStatus;
pub(crate) use format::{BaseFooter, Definition, Kind, RecordHead, sealed, unsealed};
pub(crate) use recover::{About, Restored, claim, open};
pub(crate) use sums::{SUMMED_BYTES, Sums};
