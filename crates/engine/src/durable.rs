//! What may be forgotten, as types: a position is acknowledged only by whoever shows that nothing needs what lies before.

use std::fs::File;
use std::io;

use laredo_core::Lsn;

/// Proof that an fsync has completed. There is no other way to one than [`sync`].
#[derive(Debug)]
pub(crate) struct Synced(());

/// Waits until what was written to a file is on its disk.
///
/// # Errors
/// When the disk says no. What was written since the last success may be lost then, and trying again proves nothing.
pub(crate) fn sync(file: &File) -> io::Result<Synced> {
    file.sync_all().map(|()| Synced(()))
}

/// A position up to which the source may forget, as far as one table is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(Lsn);

impl Durable {
    /// What a table's files have: an fsync has completed since all up to here was written.
    pub(crate) fn kept(_: &Synced, position: Lsn) -> Durable {
        Durable(position)
    }

    /// Of a table without a store nothing survives, and every start copies it: what was applied will not be asked for.
    pub(crate) fn not_kept(position: Lsn) -> Durable {
        Durable(position)
    }

    /// Of tables that owe a copy: none of them can use what the source has kept for it.
    pub(crate) fn of_nobody(position: Lsn) -> Durable {
        Durable(position)
    }

    /// The position.
    #[must_use]
    pub fn position(self) -> Lsn {
        self.0
    }
}
