//! Types that prove that a position may be acknowledged. A caller must show that no table needs the
//! WAL before it.

use std::fs::File;
use std::io;

use laredo_core::Lsn;

/// The proof that an fsync has completed. Only [`sync`] returns one.
#[derive(Debug)]
pub(crate) struct FsyncProof(());

/// Waits until everything written to a file is on disk.
///
/// # Errors
/// When the fsync fails. Anything written since the last successful one may be lost then, and a
/// later success proves nothing.
pub(crate) fn sync(file: &File) -> io::Result<FsyncProof> {
    file.sync_all().map(|()| FsyncProof(()))
}

/// A position up to which the source may forget its WAL, as far as one table is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurablePosition(Lsn);

impl DurablePosition {
    /// Returns the position of a table's files. An fsync has completed since everything up to it
    /// was written.
    pub(crate) fn kept(_: &FsyncProof, position: Lsn) -> DurablePosition {
        DurablePosition(position)
    }

    /// Returns the position of a table without a store. Every start copies such a table, so it
    /// never requests applied changes again.
    pub(crate) fn not_kept(position: Lsn) -> DurablePosition {
        DurablePosition(position)
    }

    /// Returns the position of tables that must be copied. Those tables cannot use earlier WAL.
    pub(crate) fn not_needed(position: Lsn) -> DurablePosition {
        DurablePosition(position)
    }

    /// Returns the position.
    #[must_use]
    pub fn position(self) -> Lsn {
        self.0
    }
}
