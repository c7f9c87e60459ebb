//! A connection that streams.

use laredo_core::{Lsn, Xid};

use crate::transport::{ReplicationReader, ReplicationWriter};

#[derive(Debug)]
pub(super) struct Session {
    pub(super) reader: ReplicationReader,
    pub(super) writer: ReplicationWriter,
    pub(super) slot: String,
    /// Commits that end after this come.
    pub(super) from: Lsn,
    /// What the slot has confirmed.
    pub(super) floor: Lsn,
    pub(super) recent: Xid,
    /// Set where commits before `from` were never sent.
    pub(super) restarted: Option<String>,
}
